"""Where media come from: a regular local file, or bytes that lie in memory.

In: a path or MediaBytes. Out: an open binary file that nothing else can hide behind: no pipe, no
device, no address.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from mmpredict.media.limits import Limits, MediaError


@dataclass(frozen=True)
class MediaBytes:
    """A file that lies in memory: a member of an archive, a cell of a table.

    Args:
        name: with its suffix, which says what kind of text it is; also stands in errors.
        data: the whole file.
    """

    name: str
    data: bytes = field(repr=False)


def source_path(source: str | PathLike[str] | MediaBytes) -> Path:
    """The path, or the name of bytes in memory as one, for messages and suffixes."""
    return Path(source.name if isinstance(source, MediaBytes) else source)


@contextmanager
def open_local(source: str | PathLike[str] | MediaBytes, limits: Limits) -> Iterator[BinaryIO]:
    """Open a regular file, or bytes in memory, of an allowed size for reading.

    Raises:
        MediaError: no such file, not a regular one, or too large.
    """
    path = source_path(source)
    if isinstance(source, MediaBytes):
        limits.check(path, bytes_=len(source.data))
        with io.BytesIO(source.data) as file:
            yield file
        return
    try:
        # stat before open: opening a pipe would wait for its other end.
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise MediaError(path, "not a regular file")
        limits.check(path, bytes_=status.st_size)
        opened = path.open("rb")
    except MediaError:
        raise
    except FileNotFoundError as error:
        raise MediaError(path, "no such file", kind="missing") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise MediaError(path, getattr(error, "strerror", None) or str(error)) from error
    with opened:
        yield opened
