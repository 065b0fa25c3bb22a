"""Many neighbouring windows of a file from one decoding pass.

In: a file and a row of windows. Out: for each the Clip that `read_clip` gives, or its MediaError.

How the two stay equal: every window has a FrameCollector of its own, which is handed the frame on
show when the one before it is full; the sound of all is laid out and resampled once and cut at the
windows' samples. Whatever a reader that starts at a window might see otherwise (damage, sound
stamps that do not add up, streams that lag behind each other) sends that window through `read_clip`
itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from torch import Tensor

from mmpredict.media.audio import SoundCollector
from mmpredict.media.container import Source, open_source
from mmpredict.media.limits import Limits, MediaError
from mmpredict.media.local import MediaBytes
from mmpredict.media.reader import (
    MAX_INTERLEAVE_S,
    NOT_WORTH_SEEKING_S,
    Request,
    attempts,
    collectors,
    decoded,
    finished,
    packets,
    read_clip,
    seek,
)
from mmpredict.media.video import FrameCollector, SeekMissed
from mmpredict.schema import Clip

_HEAD_FRAMES = 3  # of sound, from which a file's lattice of packets is known
_BEYOND_S = 0.001  # the last window is full before the run is


def read_windows(  # noqa: PLR0913 - the arguments of read_clip, and how many
    source: str | PathLike[str] | MediaBytes,
    start_s: float,
    window_s: float,
    count: int,
    *,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    sample_rate: int | None = None,
    channels: int | None = None,
    frames: bool = True,
    sound: bool = True,
    limits: Limits | None = None,
) -> list[Clip | MediaError]:
    """Decode the windows [start_s + k * window_s, start_s + (k + 1) * window_s) at one go.

    Random windows cost a seek and everything since the last key frame, each; neighbours read
    together cost what lies in them.

    Each result is what `read_clip` gives for that window, to the bit; a window that it refuses is a
    MediaError in its place and spoils no other. One exception: a decoder of sound that draws noise
    (AAC with noise substitution, AC-3, MP2 in its last bit) draws it by what it decoded before, and
    one that filters recursively (Opus) forgets that only to the last bits of a float; there alone
    the waveforms differ as two calls of `read_clip` with overlapping windows do.

    All windows are in memory together; ask for as many as may be.

    Args:
        source: a local file, or one that lies in memory.
        start_s: start of the first window, seconds on the file's clock.
        window_s: length of each.
        count: how many.
        fps, size, sample_rate, channels, frames, sound, limits: as in `read_clip`. `limits` hold
            for each window by itself.
    """
    request = Request(start_s, window_s, fps, size, sample_rate, channels, frames, sound)
    if window_s is None or count < 0:
        raise ValueError(f"window_s is {window_s} and count {count}; give a length and a number")
    limits = limits or Limits()
    requests = [replace(request, start_s=start_s + k * window_s) for k in range(count)]
    results: list[Clip | MediaError] = []
    while len(results) < count:
        found = _one_pass(source, requests[len(results) :], limits)
        results += found
        if len(results) < count:  # the next one stopped the pass; later ones may be whole
            results.append(_alone(source, requests[len(results)], limits))
    return results


def _alone(
    source: str | PathLike[str] | MediaBytes, request: Request, limits: Limits
) -> Clip | MediaError:
    asked = {name: getattr(request, name) for name in request.__dataclass_fields__}
    try:
        return read_clip(source, limits=limits, **asked)
    except MediaError as error:
        return error


def _one_pass(
    source: str | PathLike[str] | MediaBytes, requests: list[Request], limits: Limits
) -> list[Clip | MediaError]:
    """The first windows, as many as one pass gives; fewer than all where it met damage."""
    for aim_s, sparsely in attempts(requests[0].start_s):
        try:
            with open_source(source, limits) as opened:
                results = _attempt(opened, requests, limits, aim_s=aim_s, sparsely=sparsely)
        except MediaError:
            return []
        if results is not None:
            return [
                _alone(source, request, limits) if result is None else result
                for request, result in zip(requests, results, strict=False)
            ]
    raise AssertionError("the last attempt reads from the start and does not miss")


def _attempt(
    source: Source,
    requests: list[Request],
    limits: Limits,
    *,
    aim_s: float | None,
    sparsely: bool,
) -> list[Clip | MediaError | None] | None:
    """The windows that one pass gives from where a seek leads; None if it leads behind them."""
    try:
        run = _Run(source, requests, limits, is_sought=aim_s is not None)
        if aim_s is not None:
            seek(source, run.video, run.sound, aim_s=aim_s, sparsely=sparsely)
        whole = run.decode()
        return [run.result(k) for k in range(run.closed if not whole else len(requests))]
    except SeekMissed:
        return None


class _Run:
    """One pass over the packets of a file for windows that follow each other.

    Args:
        source: the open file.
        requests: the windows.
        limits: held against each window.
        is_sought: True if the pass starts with a seek.
    """

    def __init__(
        self, source: Source, requests: list[Request], limits: Limits, *, is_sought: bool
    ) -> None:
        self.source, self.requests, self.limits = source, requests, limits
        self.spans = [request.span_s for request in requests]
        whole_s = (self.spans[0][0], self.spans[-1][1])
        self.video, _ = collectors(source, requests[0], limits, sought=is_sought)
        whole = replace(requests[0], duration_s=whole_s[1] - whole_s[0] + _BEYOND_S)
        room = replace(limits, max_bytes=limits.max_bytes * len(requests))
        _, self.sound = collectors(source, whole, room, sought=is_sought)
        self.watch = None if self.sound is None else _Watch(self.sound, is_sought)
        self.filled: list[FrameCollector] = []
        self.heard_to: list[int | None] = []  # the sample reached when each window was closed
        self.closed = 0  # how many windows have all they need

    def decode(self) -> bool:
        """Run the packets through; False if damage stopped it, with `closed` windows whole."""
        source = self.source
        indices = [] if self.video is None else [source.video.index]
        if self.sound is not None:
            indices.append(source.audio.index)
        try:
            for packet, at_s in packets(source, indices, self.video):
                if self.video is not None and packet.stream.index == source.video.index:
                    if len(self.filled) < len(self.requests):
                        self._see(decoded(source, packet, at_s))
                elif not self.sound.done:
                    self._hear(decoded(source, packet, at_s))
                self._close(at_s)
                if self.closed == len(self.requests):
                    return True
            while self.closed < len(self.requests):
                self._close(math.inf)
        except MediaError:
            return False
        return True

    def _see(self, frames: list[Any]) -> None:
        for frame in frames:
            if len(self.filled) == len(self.requests):
                return
            self.video.add(frame)
            while self.video.done and len(self.filled) < len(self.requests):
                self._fill()

    def _fill(self) -> None:
        """The window that frames go to is full, or nothing more will come; take the next."""
        self.video.close()
        self.filled.append(self.video)
        if len(self.filled) < len(self.requests):
            self.video = self.video.following(self.spans[len(self.filled)])

    def _hear(self, frames: list[Any]) -> None:
        for frame in frames:
            self.watch.add(frame)
            if self.sound.done:
                return

    def _close(self, at_s: float) -> None:
        """Close the windows that have all they need, or that `read_clip` would wait no longer for;
        the file has come to `at_s`."""
        while self.closed < len(self.requests):
            end_s = self.spans[self.closed][1]
            seen = self.video is None or len(self.filled) > self.closed
            late = at_s > end_s + MAX_INTERLEAVE_S
            if not late and not (seen and self._heard(end_s)):
                return
            if not seen:
                self._fill()
            self.closed += 1
            self.heard_to.append(self._next_index())

    def _next_index(self) -> int | None:
        if self.sound is None or not self.sound.rate:
            return None
        return self.sound.timeline.next_index

    def _heard(self, end_s: float) -> bool:
        if self.sound is None:
            return True
        reached = self._next_index()
        return reached is not None and reached >= self.sound.needed_until(end_s)

    def result(self, k: int) -> Clip | MediaError | None:
        """A closed window; None if only a reader of its own can tell."""
        request, video = self.requests[k], self.filled[k] if self.filled else None
        sound = None
        if self.sound is not None:
            if not self._agrees(k):
                return None
            sound = _Part(self.sound, self.heard_to[k])
            if self.limits.refusal(bytes_=self.sound.bytes_of(request.duration_s)):
                return None  # its reason depends on how far decoding comes
        try:
            return finished(self.source, request, video, sound)
        except MediaError as error:
            return error

    def _agrees(self, k: int) -> bool:
        """Whether a reader of this window alone lays the same sound at the same samples."""
        start_s, end_s = self.spans[k]
        reached, final = self.heard_to[k], self._next_index()
        if final is None:
            return True  # no sound at all
        needed = self.sound.needed_until(end_s)
        if reached != final and (reached is None or reached < needed):
            return False  # it came after the window was closed
        return start_s <= NOT_WORTH_SEEKING_S or self.watch.first_odd > needed


class _Watch:
    """Notes from which sample on a reader that starts in the middle of a file would lay the sound
    elsewhere, because stamps and samples do not add up.

    Args:
        sound: takes the frames.
        is_sought: True after a seek; the collector knows the file's lattice then.
    """

    def __init__(self, sound: SoundCollector, is_sought: bool) -> None:
        self.sound = sound
        self.first_odd = math.inf
        self.head: list[Any] | None = [] if not is_sought and not sound.stamps_are_exact() else None
        self.places: list[int] = []  # of the frames in `head`
        self.lattice: tuple[int, int] | None = None
        self.is_sought = is_sought

    def add(self, frame: Any) -> None:
        first, cut = self.sound.add(frame)
        if self.head is None:
            self._compare(frame, first - cut)
            return
        self.head.append(frame)
        self.places.append(first - cut)
        if len(self.head) == _HEAD_FRAMES:
            self.lattice = self.sound.lattice_of(self.head)
            for early, place in zip(self.head, self.places, strict=True):
                self._compare(early, place)
            self.head = None

    def _compare(self, frame: Any, place: int) -> None:
        lattice = self.sound.lattice if self.is_sought else self.lattice
        if frame.pts is None or self.sound.place_after_seek(frame, lattice) != place:
            self.first_odd = min(self.first_odd, place)


@dataclass(frozen=True)
class _Part:
    """The sound of a run as a reader of one window knows it.

    Args:
        sound: of the run.
        reached: the sample that was reached when the window was closed.
    """

    sound: SoundCollector
    reached: int | None

    @property
    def rate(self) -> int:
        return self.sound.rate

    @property
    def target_rate(self) -> int:
        return self.sound.target_rate

    def end_from(self, start_s: float) -> float:
        return self.sound.end_from(start_s, self.reached)

    def window(self, start_s: float, length_s: float) -> Tensor | None:
        return self.sound.window(start_s, length_s)

    def notices(self, start_s: float, length_s: float) -> list[str]:
        return self.sound.notices(start_s, length_s)
