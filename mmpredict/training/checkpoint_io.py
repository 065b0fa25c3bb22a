"""Writes checkpoints such that a kill, a full disk or a bad disk never costs the one before.

In: a checkpoint as Lightning makes it, and a path. Out: the file, and its sha256 beside it.

1. write:    to NAME.part in the target's own folder, straight from the tensors, no copy in memory
2. verify:   fsync, then read back what is on the disk and compare with what was written
3. replace:  the new hash is added to NAME.sha256, the file replaced, the old hash dropped

At every moment there is a whole file under the final name, and a hash that fits it. The sha256 is
of the bytes as they left memory, so a disk that changes them is noticed; the reading back compares
their CRC, which costs a quarter of a second sha256.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from mmpredict.training.checkpoint import (
    CHUNK,
    files_of,
    hashes_path,
    known_hashes,
    read,
    refuse_url,
)

PART = ".part"
Hashes = Mapping[str, str]  # of the files of a checkpoint; "" for one that is a single file


class VerifiedCheckpointIO(CheckpointIO):
    """Plugin of a Trainer: `Trainer(plugins=[VerifiedCheckpointIO()])`.

    What cannot be written raises OSError and leaves the old file; the callback `Checkpoints` turns
    that into a warning.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write `path` and `path.sha256`, or leave both as they were."""
        if storage_options is not None:
            raise TypeError("VerifiedCheckpointIO writes local files; it has no storage_options")
        write(checkpoint, path)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """`checkpoint.read`, whatever is asked for: on the CPU, tensors and plain types only."""
        return read(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint and its hash."""
        remove(Path(path))
        hashes_path(Path(path)).unlink(missing_ok=True)


def with_verified_io(plugins: Any) -> list[Any]:
    """What was given as Trainer(plugins=...), and ours unless there is one for checkpoints."""
    wanted = list(plugins) if isinstance(plugins, list) else [] if plugins is None else [plugins]
    brings_one = any(isinstance(plugin, CheckpointIO) for plugin in wanted)
    return wanted if brings_one else [*wanted, VerifiedCheckpointIO()]


def write(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint and its hash, in place of an older one."""
    refuse_url(path)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + PART)
    try:
        check_room(checkpoint, path.parent)
        digest = _write_part(checkpoint, part)
        put(part, path, {"": digest})
    finally:
        part.unlink(missing_ok=True)  # there is one only if something went wrong


def _write_part(checkpoint: Mapping[str, Any], part: Path) -> str:
    """Write one file, see that it is on the disk as it was in memory; its sha256."""
    with part.open("wb", buffering=0) as file:
        out = _Hashing(file)
        try:
            torch.save(checkpoint, out)
        except Exception:
            if out.error is not None:  # torch wraps it beyond recognition
                raise out.error from None
            raise
        os.fsync(file.fileno())
    crc, size = _crc_on_disk(part)
    if (crc, size) != (out.crc, out.size):
        raise OSError(errno.EIO, "the disk does not give back what was written", str(part))
    return out.sha.hexdigest()


class _Hashing:
    """A file that is written to, and hashed on the way; torch hands it views of the tensors."""

    def __init__(self, file: Any) -> None:
        self.file, self.sha = file, hashlib.sha256()
        self.crc = self.size = 0
        self.error: OSError | None = None

    def write(self, data: memoryview | bytes) -> int:
        view = memoryview(data).cast("B")
        try:
            done = 0
            while done < len(view):
                done += self.file.write(view[done:])
        except OSError as error:
            self.error = self.error or error
            raise
        self.sha.update(view)
        self.crc, self.size = zlib.crc32(view, self.crc), self.size + len(view)
        return len(view)

    def flush(self) -> None:
        """Nothing waits: the file is unbuffered."""


def _crc_on_disk(path: Path) -> tuple[int, int]:
    """CRC-32 and length of a file, from the disk rather than from the memory before it."""
    crc = size = 0
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while chunk := file.read(CHUNK):
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
    return crc, size


def check_room(checkpoint: Mapping[str, Any], folder: Path) -> None:
    """Refuse at once what the disk has no room for, instead of filling it first."""
    need, free = size_of(checkpoint), shutil.disk_usage(folder).free
    if free < need:
        said = f"the checkpoint needs about {need / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free"
        raise OSError(errno.ENOSPC, said, str(folder))


def size_of(checkpoint: Any) -> int:
    """Bytes of all tensors in nested plain types, those that share memory once."""
    storages: dict[tuple[str, int], int] = {}
    waiting = [checkpoint]
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, torch.Tensor):
            with suppress(RuntimeError, NotImplementedError):  # a tensor without memory of its own
                storage = thing.untyped_storage()
                storages[str(thing.device), storage.data_ptr()] = storage.nbytes()
        elif isinstance(thing, Mapping):
            waiting.extend(thing.values())
        elif isinstance(thing, list | tuple):
            waiting.extend(thing)
    return sum(storages.values())


# -- putting files in place --------------------------------------------------------------------


def seal(path: Path) -> Hashes:
    """See that the files of a checkpoint are on the disk; their hashes."""
    found = {}
    for file_path in files_of(path):
        name = str(file_path.relative_to(path)) if path.is_dir() else ""
        with file_path.open("rb") as file:
            os.fsync(file.fileno())
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def put(part: Path, path: Path, hashes: Hashes) -> None:
    """Rename a whole checkpoint to its final name; at every moment a hash fits what stands there.

    A folder cannot be replaced in one step: the old one goes aside first, as NAME.old.part.
    """
    known: list[str] = []
    if path.exists() and hashes_path(path).is_file():
        with suppress(OSError, UnicodeDecodeError):  # a damaged note of the old one
            old = known_hashes(path)
            known = [_line(path, n, digest) for n, some in old.items() for digest in sorted(some)]
    new = [_line(path, name, digest) for name, digest in hashes.items()]
    if known or not path.exists():
        _write_lines(hashes_path(path), new + [line for line in known if line not in new])
    aside = path.with_name(f"{path.name}.old{PART}")
    if path.is_dir() or (part.is_dir() and path.exists()):
        remove(aside)
        os.replace(path, aside)
    os.replace(part, path)
    sync_folder(path.parent)
    with suppress(OSError):  # then the old hash stands there too, and does no harm
        _write_lines(hashes_path(path), new)
        remove(aside)


def shift(source: Path, target: Path) -> None:
    """Move a checkpoint and its hashes to another name in its folder."""
    put(source, target, _hashes_of(source))
    hashes_path(source).unlink(missing_ok=True)


def keep_as(source: Path, target: Path) -> None:
    """Give a checkpoint a second name; where the disk has no hard links, or for a folder, its only
    one."""
    part = target.with_name(target.name + PART)
    remove(part)
    try:
        if source.is_dir():
            raise IsADirectoryError
        os.link(source, part)
    except OSError:
        shift(source, target)
    else:
        put(part, target, _hashes_of(source))


def settle(part: Path, path: Path) -> None:
    """Give what a sharded strategy has written, a folder or a file, its hashes and its name."""
    known = not part.is_dir() and hashes_path(part).is_file()
    put(part, path, _hashes_of(part) if known else seal(part))
    hashes_path(part).unlink(missing_ok=True)


def _hashes_of(path: Path) -> Hashes:
    """The hashes beside a checkpoint; where there are none, or two for a file, made anew."""
    if hashes_path(path).is_file():
        known = known_hashes(path)
        if known and all(len(some) == 1 for some in known.values()):
            return {name: min(some) for name, some in known.items()}
    return seal(path)


def _line(path: Path, name: str, digest: str) -> str:
    return f"{digest}  {path.name}{'/' if name else ''}{name}\n"


def _write_lines(path: Path, lines: list[str]) -> None:
    part = path.with_name(path.name + PART)
    try:
        with part.open("w", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """See that renames in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks cannot
            raise
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> list[str]:
    """Delete what starts that were killed while saving have left; their names."""
    left = sorted(folder.glob(f"*{PART}"))
    for path in left:
        remove(path)
    return [path.name for path in left]
