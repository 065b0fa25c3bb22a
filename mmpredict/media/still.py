"""A png or jpg as a video of one frame.

In: the bytes of the file. Out: a stand-in for an open container with one video stream, one packet
in it, and one finished RGB frame at t = 0.

The size is read from the header and held against the limits before a decoder sees the file. The
picture is turned as the camera's orientation says and, where it is transparent, laid on white;
grey, palette and 16-bit pictures become 8-bit RGB. Colour profiles are not applied.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from mmpredict.media.limits import Limits, MediaError
from mmpredict.media.turning import exif_turning, turned

PNG_MARK, JPEG_MARK = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
# A still has no length of its own. Two thousandths of a second make it the frame on show at t = 0
# and at no other step of any grid.
_LENGTH = 2
_STAMPS_PER_S = 1000
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_FULL_CHROMA = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND


@dataclass(frozen=True)
class _Header:
    """What stands before the pixels: size, how to turn the picture, what the decoder gets."""

    codec: str
    width: int
    height: int
    turning: tuple[bool, int]
    data: bytes = field(repr=False)
    notices: tuple[str, ...] = ()


@dataclass
class _Context:
    width: int
    height: int
    name: str
    sample_aspect_ratio: None = None
    thread_type: str = ""
    thread_count: int = 1


@dataclass
class StillStream:
    """What readers ask of a video stream."""

    codec_context: _Context
    index: int = 0
    type: str = "video"
    time_base: Fraction = Fraction(1, _STAMPS_PER_S)
    start_time: int = 0
    duration: None = None
    average_rate: None = None
    guessed_rate: None = None
    frames: int = 1


@dataclass
class _Packet:
    container: StillContainer
    stream: StillStream
    pts: int | None = 0
    dts: int | None = 0
    duration: int = _LENGTH
    stream_index: int = 0
    is_corrupt: bool = False
    is_keyframe: bool = True

    def decode(self) -> list[Any]:
        return [] if self.pts is None else [self.container.frame()]


class StillContainer:
    """What readers ask of a container; decodes when its one packet is decoded."""

    duration = None

    def __init__(self, path: Path, data: bytes, limits: Limits) -> None:
        self.path, self.limits = path, limits
        self.header = (
            _png_header(path, data) if data.startswith(PNG_MARK) else _jpeg_header(path, data)
        )
        height, width = self.header.height, self.header.width
        limits.check(path, pixels=width * height)
        if self.header.turning[1] % 2:
            height, width = width, height
        self.streams = [StillStream(_Context(width, height, self.header.codec))]
        self.notices = self.header.notices

    def seek(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: there is only the start."""

    def demux(self, streams: Any = None) -> Iterator[_Packet]:
        """The packet, and the empty one that ends every stream."""
        yield _Packet(self, self.streams[0])
        yield _Packet(self, self.streams[0], pts=None, dts=None)

    def frame(self) -> Any:
        """The picture, ready to be shown."""
        context = av.CodecContext.create(self.header.codec, "r")
        context.thread_count = 1
        context.options = {"max_pixels": str(self.limits.max_pixels), "err_detect": "explode"}
        frames = context.decode(av.Packet(self.header.data)) or context.decode(None)
        if not frames:
            raise MediaError(self.path, "its picture cannot be decoded")
        if frames[0].is_corrupt:
            raise MediaError(self.path, "its picture is damaged")
        rgb_HWC = turned(_opaque(frames[0]), *self.header.turning)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb_HWC), format="rgb24")
        frame.time_base, frame.pts, frame.duration = Fraction(1, _STAMPS_PER_S), 0, _LENGTH
        return frame


def _opaque(frame: Any) -> NDArray[np.uint8]:
    """A decoded frame as (H, W, 3) RGB, laid on white where it lets through."""

    def converted(name: str) -> NDArray[np.uint8]:
        return (
            VideoReformatter()
            .reformat(frame, format=name, interpolation=_FULL_CHROMA, threads=1)
            .to_ndarray()
        )

    alpha = frame.format.has_palette or any(c.is_alpha for c in frame.format.components)
    if not alpha:
        return converted("rgb24")
    rgba_HWC = converted("rgba")
    share_HW1 = rgba_HWC[..., 3:].astype(np.uint16)
    if (share_HW1 == 255).all():
        return rgba_HWC[..., :3]
    blended_HWC = rgba_HWC[..., :3] * share_HW1 + 255 * (255 - share_HW1)
    return ((blended_HWC + 127) // 255).astype(np.uint8)


def _png_header(path: Path, data: bytes) -> _Header:
    """Of the chunks only those that make the picture are kept: others can inflate to any size."""
    at, kept, turning, notices = len(PNG_MARK), [PNG_MARK], (False, 0), []
    kind = b""
    while kind != b"IEND":
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data):
            raise MediaError(path, f"the png breaks off in its chunk at byte {at:,}")
        if int.from_bytes(data[end - 4 : end], "big") != zlib.crc32(data[at + 4 : end - 4]):
            raise MediaError(path, f"the png is damaged: wrong checksum of its chunk at {at:,}")
        if len(kept) == 1 and (kind != b"IHDR" or length != 13):
            raise MediaError(path, "a png without a header")
        if kind in _PNG_KEPT:
            kept.append(data[at:end])
        elif kind == b"eXIf":
            turning = exif_turning(data[at + 8 : end - 4])
        elif kind == b"acTL":
            notices.append("an animated png; its first picture is read")
        at = end
    width, height = (int.from_bytes(kept[1][8 + i : 12 + i], "big") for i in (0, 4))
    return _Header("png", width, height, turning, b"".join(kept), tuple(notices))


def _jpeg_header(path: Path, data: bytes) -> _Header:
    """Size and orientation from the segments before the pixels."""
    at, size, turning = 2, None, (False, 0)
    while True:
        while data[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        mark, length = data[at : at + 2], int.from_bytes(data[at + 2 : at + 4], "big")
        if len(mark) < 2 or mark[0] != 0xFF or length < 2 or at + 2 + length > len(data):
            raise MediaError(path, f"the jpg breaks off in its header at byte {at:,}")
        kind, content = mark[1], data[at + 4 : at + 2 + length]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC) and len(content) >= 6:
            size = int.from_bytes(content[3:5], "big"), int.from_bytes(content[1:3], "big")
        elif kind == 0xE1 and content.startswith(b"Exif\0\0"):
            turning = exif_turning(content[6:])
        at += 2 + length
        if kind == 0xDA:
            break
    if size is None or 0 in size:
        raise MediaError(path, "a jpg that does not say how large it is")
    if data.find(b"\xff\xd9", at) < 0:
        raise MediaError(path, "the jpg breaks off before its end")
    return _Header("mjpeg", *size, turning, data)
