"""What the blocks of a gif say, read without decoding a picture.

In: an open file. Out: its frames and length, held against the limits before any picture is decoded,
and its bytes with the delays that are meant.

Every frame stays for its own delay. Delays of 0 and 1 hundredths of a second count as 10, as in all
browsers (they were written for "as fast as you can"); the repetitions that a gif asks for are not
played. Where it is transparent it is shown on white.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from mmpredict.media.limits import Limits, MediaError

GIF_MARKS = (b"GIF87a", b"GIF89a")
_EXTENSION, _IMAGE, _TRAILER, _CONTROL = 0x21, 0x2C, 0x3B, 0xF9
_SHORTEST, _USUAL = 2, 10  # hundredths of a second


@dataclass(frozen=True)
class GifFacts:
    """Frames of a gif, how long they are shown in seconds, and its bytes with those delays."""

    frames: int
    duration_s: float
    data: bytes = field(repr=False)


def gif_facts(file: BinaryIO, path: Path, limits: Limits) -> GifFacts:
    """Walk the blocks of a gif.

    Raises:
        MediaError: over a limit, cut off, or no gif after all.
    """
    data = bytearray(file.read())
    if len(data) < 13:
        raise MediaError(path, "the gif breaks off in its header")
    width, height = data[6] | data[7] << 8, data[8] | data[9] << 8
    limits.check(path, pixels=width * height)
    frames = hundredths = 0
    try:
        for at in _delays(data, path):
            delay = data[at] | data[at + 1] << 8 if at else 0
            if delay < _SHORTEST:
                delay = _USUAL
                if at:
                    data[at], data[at + 1] = delay, 0
            frames += 1
            hundredths += delay
            reason = limits.refusal(frames=frames, duration_s=hundredths / 100)
            if reason:
                raise MediaError(path, f"at least {reason}", kind="limits")
    except IndexError:
        raise MediaError(path, f"the gif breaks off after {frames} whole frames") from None
    if not frames:
        raise MediaError(path, "a gif without a picture", kind="empty")
    return GifFacts(frames, hundredths / 100, bytes(data))


def _delays(data: bytes | bytearray, path: Path) -> Iterator[int]:
    """Where the delay of each frame stands, two bytes of hundredths of a second; 0 for nowhere."""
    at, delay_at = 13 + _table(data[10]), 0
    while at < len(data) and data[at] != _TRAILER:  # some writers forget the trailer
        if data[at] == _EXTENSION:
            if data[at + 1] == _CONTROL and data[at + 2] == 4:
                delay_at = at + 4
            at = _after_parts(data, at + 2)
        elif data[at] == _IMAGE:
            at = _after_parts(data, at + 11 + _table(data[at + 9]))
            yield delay_at
            delay_at = 0
        elif data[at] == 0:  # padding
            at += 1
        else:
            raise MediaError(path, f"no gif block at byte {at:,}")


def _table(flags: int) -> int:
    """Bytes of a colour table."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _after_parts(data: bytes | bytearray, at: int) -> int:
    """The end of a chain of parts, each with its length before it, closed by an empty one."""
    while data[at]:
        at += data[at] + 1
    return at + 1
