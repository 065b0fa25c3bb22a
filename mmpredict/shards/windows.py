"""A file in windows of one length. In: a source and the settings. Out: clips, one after the other.

A few windows are decoded at one go and none is kept, so that hours of film take no more memory than
a minute.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from mmpredict.media import BehindTheEndError, MediaError, MediaInfo, read_clip, read_windows
from mmpredict.media.cutting import SHORTEST_WINDOW_S
from mmpredict.schema import Clip
from mmpredict.shards.members import length_s
from mmpredict.shards.sandbox import Item
from mmpredict.shards.settings import Settings

_BYTES_AT_ONCE = 64 * 1024**2
_MOST_AT_ONCE = 64


@dataclass(frozen=True)
class WindowRead:
    """A window of a file: where it lies, and its clip or why there is none.

    Args:
        start_s, end_s: on the file's clock.
        clip: what it holds, without text.
        is_last: of its file.
    """

    start_s: float
    end_s: float
    clip: Clip | MediaError
    is_last: bool = False

    @property
    def named(self) -> str:
        return f"{self.start_s:g}-{self.end_s:g} s"


def windows_of(item: Item, info: MediaInfo, settings: Settings) -> Iterator[WindowRead]:
    """All windows of an item's file or span of it, up to where it really ends.

    Raises:
        MediaError: there is nothing at all to read.
    """
    if info.still:
        clip = read_clip(item["path"], size=tuple(settings.size), limits=settings.limits)
        yield WindowRead(0.0, 0.0, clip, is_last=True)
        return
    held: WindowRead | None = None
    for window in _until_the_end(item, info, settings):
        if held is not None:
            if _too_short(window):
                break
            yield held
        held = window
    if held is not None:
        yield WindowRead(held.start_s, held.end_s, held.clip, is_last=True)


def _too_short(window: WindowRead) -> bool:
    return not isinstance(window.clip, MediaError) and length_s(window.clip) < SHORTEST_WINDOW_S


def _until_the_end(item: Item, info: MediaInfo, settings: Settings) -> Iterator[WindowRead]:
    first_s, step_s = item["start_s"], settings.clip_seconds
    span_end_s = item["end_s"]
    at_once = _at_once(settings)
    number = 0
    last_s = math.inf if span_end_s is None else span_end_s - SHORTEST_WINDOW_S + 1e-6
    while first_s + number * step_s < last_s:
        start_s = first_s + number * step_s
        # One window more than the header promises is tried, for headers may promise too little.
        whole = min(at_once, max(1, math.ceil((info.duration_s - start_s) / step_s - 1e-6)))
        if span_end_s is not None:
            whole = min(whole, int((span_end_s - start_s) / step_s + 1e-6))
        length = step_s if whole else span_end_s - start_s
        clips = _read(item, settings, start_s, length, max(1, whole))
        for clip in clips:
            start_s = first_s + number * step_s
            over = isinstance(clip, MediaError) and (
                isinstance(clip, BehindTheEndError) or start_s >= info.duration_s
            )
            if over and number:
                return
            if over:
                raise clip
            yield WindowRead(start_s, start_s + length, clip)
            number += 1
        if not whole or _ended(clips[-1], length, settings):
            return


def _ended(clip: Clip | MediaError, length: float, settings: Settings) -> bool:
    """Whether the file ends in this window."""
    return not isinstance(clip, MediaError) and length_s(clip) < length - 0.5 / settings.fps


def _at_once(settings: Settings) -> int:
    height, width = settings.size
    frames = settings.clip_seconds * settings.fps * height * width * 3
    sound = settings.clip_seconds * settings.sample_rate * settings.channels * 4
    return int(max(1, min(_MOST_AT_ONCE, _BYTES_AT_ONCE // max(1.0, frames + sound))))


def _read(
    item: Item, settings: Settings, start_s: float, length_s: float, count: int
) -> list[Clip | MediaError]:
    return read_windows(
        item["path"],
        start_s,
        length_s,
        count,
        fps=settings.fps,
        size=tuple(settings.size),
        sample_rate=settings.sample_rate,
        channels=settings.channels,
        limits=settings.limits,
    )
