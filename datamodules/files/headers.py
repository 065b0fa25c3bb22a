"""Looking at many files before a run. In: paths. Out: each one's header and a hash of its content,
or why it cannot be used.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from datamodules.feed.documents import Skipped
from mmpredict.media import Limits, MediaError, MediaInfo, probe

THREADS = 8  # a disk across the network answers many at a time; decoding needs no more
HASHED_BYTES = 1 << 16  # of the head and of the tail; tells files apart, quick for large ones
QUIET_S = 5.0  # for so long no progress is shown, and between two lines of it

Result = TypeVar("Result")


@dataclass(frozen=True)
class Header:
    """A usable file: what its header says, and the hash of its content."""

    info: MediaInfo
    digest: str


def read_headers(
    paths: Iterable[Path], limits: Limits, *, show: bool = True
) -> dict[Path, Header | Skipped]:
    """Probe and hash every file, once each."""

    def look(path: Path) -> Header | Skipped:
        try:
            return Header(probe(path, limits), content_hash(path))
        except MediaError as error:
            return skipped(error)
        except OSError as error:
            return Skipped(str(path), error.strerror or str(error))

    return look_at(dict.fromkeys(paths), look, show=show)


def look_at(
    paths: Iterable[Path], look: Callable[[Path], Result], *, show: bool = True
) -> dict[Path, Result]:
    """`look` at every file, several at a time; says how far it is when that takes long."""
    paths = list(paths)
    found: dict[Path, Result] = {}
    said_s = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        for path, result in zip(paths, pool.map(look, paths), strict=True):
            found[path] = result
            if show and time.monotonic() - said_s > QUIET_S:
                said_s = time.monotonic()
                line = f"looking at the files: {len(found)} of {len(paths)}"
                print(line, file=sys.stderr, flush=True)
    return found


def skipped(error: MediaError) -> Skipped:
    """A file that cannot be used, with the kind of its reason."""
    return Skipped(error.path, error.reason, kind=error.kind)


def content_hash(path: Path) -> str:
    """sha256 of a file's size, head and tail."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HASHED_BYTES)
        file.seek(max(0, size - HASHED_BYTES))
        tail = file.read(HASHED_BYTES)
    return hashlib.sha256(b"%d:" % size + head + tail).hexdigest()
