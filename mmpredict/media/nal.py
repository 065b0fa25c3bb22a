"""Whether the parts of an H.264 or H.265 packet can be told apart, without decoding it.

A decoder that is told to leave out what no other frame needs decides so by the head of each part
(NAL unit). Where a head is damaged it leaves out silently what others do need.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_SLICES = {"h264": range(1, 6), "hevc": range(32)}
_START_CODE = re.compile(b"\0\0\1")


def looks_whole(packet: bytes, codec: str, extradata: bytes | None) -> bool:
    """False if a part's head makes no sense, or none holds a picture; True for other codecs.

    Args:
        packet: of one picture.
        codec: its name.
        extradata: the stream's header, which says how parts are parted.
    """
    slices = _SLICES.get(codec)
    if slices is None or not packet:
        return True
    kinds = []
    for head in _heads(packet, codec, extradata or b""):
        if head is None or head & 0x80:
            return False
        kinds.append(head & 0x1F if codec == "h264" else head >> 1)
    return any(kind in slices for kind in kinds)


def _heads(packet: bytes, codec: str, extradata: bytes) -> Iterator[int | None]:
    """The first byte of each part; None where the packet ends before one."""
    place = 4 if codec == "h264" else 21  # of the size of the lengths before the parts
    if extradata[:1] != b"\1" or len(extradata) <= place:
        for found in _START_CODE.finditer(packet):
            yield packet[found.end()] if found.end() < len(packet) else None
        return
    size, at = (extradata[place] & 3) + 1, 0
    while at < len(packet):
        length = int.from_bytes(packet[at : at + size], "big")
        at += size
        if length == 0 or at + length > len(packet):
            yield None
            return
        yield packet[at]
        at += length
