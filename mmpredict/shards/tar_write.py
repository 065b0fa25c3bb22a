"""Members to tar bytes: uncompressed, and the same for the same members, whenever and by whom.

In: the members of samples, in order. Out: stretches of a ustar archive. A stretch is whole blocks
and names nothing outside itself, so stretches may be moved between archives as they are; an archive
is stretches one after the other and END.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from mmpredict.media import MediaError
from mmpredict.shards.index import Member

BLOCK = 512
END = bytes(2 * BLOCK)
_CHUNK = 1 << 20
_MAX_SIZE = 8**11 - 1  # what the eleven octal digits of ustar hold


def header(name: str, size: int) -> bytes:
    """The block before a member: no owner, no time, readable by all."""
    if size > _MAX_SIZE:
        reason = f"{size:,} bytes, over the limit of {_MAX_SIZE:,} for a tar member"
        raise MediaError(name, reason, kind="limits")
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    block = info.tobuf(tarfile.USTAR_FORMAT)
    assert len(block) == BLOCK, f"{name} takes more than one block"
    return block


def stretch_size(sizes: Iterable[int]) -> int:
    """Bytes that members of these sizes take."""
    return sum(BLOCK + size + -size % BLOCK for size in sizes)


def write_sample(
    file: BinaryIO, key: str, members: Iterable[tuple[str, bytes | Path]]
) -> list[Member]:
    """Append the members of a sample, each from memory or from a file; where they came to lie."""
    written = []
    for suffix, content in members:
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        file.write(header(f"{key}.{suffix}", size))
        at = file.tell()
        digest = hashlib.sha256()
        for piece in _pieces(content):
            digest.update(piece)
            file.write(piece)
        if file.tell() - at != size:
            raise MediaError(str(content), "changed while it was read")
        file.write(bytes(-size % BLOCK))
        written.append(Member(suffix, at, size, digest.hexdigest()))
    return written


def _pieces(content: bytes | Path) -> Iterable[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while piece := file.read(_CHUNK):
            yield piece
