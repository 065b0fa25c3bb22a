"""How a stored picture has to be turned before it is shown.

In: a display matrix (mp4, mkv), or the orientation number that cameras leave in jpg and png. Out:
whether to mirror it left to right, and then how many quarter turns counter-clockwise.
"""

from __future__ import annotations

import math
import struct
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

_IDENTITY = (0x10000, 0, 0, 0, 0x10000)
_MATRIX_OFFSETS = {b"mvhd": (36, 48), b"tkhd": (40, 52)}  # by version of the box, after its type
_MAX_BOXES = 10_000
_MATROSKA_TRACKS, _MATROSKA_PROJECTION = b"\x16\x54\xae\x6b", b"\x76\x70"
_MATROSKA_HEAD = 1 << 16
# Orientation numbers of EXIF 1 to 8 as (mirrored, quarter turns).
_EXIF = (
    (False, 0),
    (True, 0),
    (False, 2),
    (True, 2),
    (True, 1),
    (False, 3),
    (True, 3),
    (False, 1),
)
_ORIENTATION_TAG, _SHORT = 0x0112, 3


def turning(frame: Any) -> tuple[bool, int]:
    """(mirrored, quarter turns) that a decoded frame asks for; (False, 0) for most."""
    try:
        matrix = next((d for d in frame.side_data if d.type.name == "DISPLAYMATRIX"), None)
    except ValueError:  # a kind of side data that PyAV has no name for
        return False, round(frame.rotation / 90) % 4
    if matrix is None:
        return False, 0
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    return _turning_of(a, b, c, d)


def _turning_of(a: int, b: int, c: int, d: int) -> tuple[bool, int]:
    """Of the matrix that takes the stored axes right and down to (a, b) and (c, d)."""
    mirrored = a * d - b * c < 0
    sign = -1 if mirrored else 1
    return mirrored, round(math.atan2(-sign * b, sign * a) / (math.pi / 2)) % 4


def turned(picture_HWC: NDArray[np.uint8], mirrored: bool, turns: int) -> NDArray[np.uint8]:
    """The picture as it is to be shown."""
    if mirrored:
        picture_HWC = picture_HWC[:, ::-1]
    return np.rot90(picture_HWC, turns) if turns else picture_HWC


def exif_turning(tiff: bytes) -> tuple[bool, int]:
    """What the first directory of an EXIF block says; (False, 0) if it says nothing sound."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return False, 0
    try:
        (at,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, at)
        for entry in range(min(count, 512)):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, at + 2 + 12 * entry)
            if tag == _ORIENTATION_TAG and kind == _SHORT and 1 <= value <= 8:
                return _EXIF[value - 1]
    except struct.error:  # points outside the block
        pass
    return False, 0


def may_be_turned(file: BinaryIO, format_name: str) -> bool:
    """Whether a look at a decoded frame is worth it: False only if the header turns nothing.

    Reads a few dozen bytes of an mp4 or the head of an mkv; other formats have no place for it.
    Leaves the file's position where it was.
    """
    position = file.tell()
    try:
        if "mp4" in format_name:
            return _mp4_turns(file)
        if "matroska" in format_name:
            file.seek(0)
            head = file.read(_MATROSKA_HEAD)
            return _MATROSKA_TRACKS not in head or _MATROSKA_PROJECTION in head
        return False
    finally:
        file.seek(position)


def _mp4_turns(file: BinaryIO) -> bool:
    """Whether any matrix in the headers of the movie and its tracks is not the identity."""
    spans = [(0, file.seek(0, 2))]
    for _ in range(_MAX_BOXES):
        if not spans:
            return False
        at, end = spans.pop()
        if at + 8 > end:
            continue
        file.seek(at)
        head = file.read(16)
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        body = at + 8
        if size == 1:
            size, body = int.from_bytes(head[8:16], "big"), at + 16
        size = size or end - at
        if size < body - at:
            return True  # not to be understood here
        spans.append((at + size, end))
        if kind in (b"moov", b"trak"):
            spans.append((body, min(end, at + size)))
        elif kind in _MATRIX_OFFSETS:
            file.seek(body)
            content = file.read(96)
            offset = _MATRIX_OFFSETS[kind][1 if content[:1] == b"\x01" else 0]
            if len(content) < offset + 20 or struct.unpack_from(">5i", content, offset) != (
                _IDENTITY
            ):
                return True
    return True
