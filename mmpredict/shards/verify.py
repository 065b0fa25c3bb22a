"""Whether shards still hold what was written. In: their folder. Out: every damaged member, by name.

A whole shard is read once, in one stream. Only where its sha256 differs are its members looked at
one by one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

from mmpredict.media import MediaError
from mmpredict.shards.index import INDEX_NAME, IndexDamaged
from mmpredict.shards.remote import RangeReader, Remote
from mmpredict.shards.store import Store, local_folder

_CHUNK_BYTES = 8 << 20
_MAX_THREADS = 8  # hashing one stream takes one core; more than a disk gives are of no use

Progress = Callable[[int, int], None]  # bytes looked at, of how many


@dataclass(frozen=True)
class Damage:
    """What is wrong with a member ("000000.tar!key.mp4"), a shard or the index, and why."""

    member: str
    reason: str

    def __str__(self) -> str:
        return f"{self.member}: {self.reason}"


def verify(
    root: str | os.PathLike[str], *, remote: Remote = Remote(), progress: Progress | None = None
) -> list[Damage]:
    """Compare every byte of a folder of shards with its index.

    Args:
        root: the folder, or the URL of one.
        remote: how a URL is reached.
        progress: told how far it is, from several threads, one at a time.

    Returns:
        All damage, in the order of the shards; empty if there is none.

    Raises:
        UserError: there is no index at all.
    """
    try:
        store = Store(root, remote=remote)
    except IndexDamaged as error:
        return [Damage(INDEX_NAME, str(error).rpartition(": ")[2])]
    check = _Check(store, progress)
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        found = list(pool.map(check.shard, range(len(store.index.shards))))
    return [*(damage for of_shard in found for damage in of_shard), *_strangers(store)]


class _Check:
    def __init__(self, store: Store, progress: Progress | None) -> None:
        self.store, self.progress = store, progress
        self.done, self.total = 0, sum(shard.bytes for shard in store.index.shards)
        self._lock = Lock()

    def shard(self, number: int) -> list[Damage]:
        """What is wrong with one shard."""
        shard = self.store.index.shards[number]
        reader = RangeReader(self.store.reader.remote)  # of this thread
        address = self.store.address(number)
        try:
            size = reader.size(address)
            digest = self._digest(reader, address, min(size, shard.bytes))
        except MediaError as error:
            return [Damage(shard.name, f"{error.reason}; it holds {shard.samples:,} samples")]
        if size == shard.bytes and digest == shard.sha256:
            return []
        damaged = list(self._members(number, reader, address))
        if size != shard.bytes:
            damaged.insert(
                0, Damage(shard.name, f"has {size:,} bytes, the index says {shard.bytes:,}")
            )
        # Headers and padding carry no content, but other tools read them.
        return damaged or [
            Damage(shard.name, "bytes between its members differ from what was made")
        ]

    def _digest(self, reader: RangeReader, address: str, size: int) -> str:
        digest = hashlib.sha256()
        for start in range(0, size, _CHUNK_BYTES):
            chunk = reader.read(address, start, min(_CHUNK_BYTES, size - start))
            digest.update(chunk)
            if self.progress is not None:
                with self._lock:
                    self.done += len(chunk)
                    self.progress(self.done, self.total)
        return digest.hexdigest()

    def _members(self, number: int, reader: RangeReader, address: str) -> Iterator[Damage]:
        for sample in self.store.samples_of(number):
            for member in sample.members:
                name = self.store.name(sample, member.suffix)
                try:
                    data = reader.read(address, member.offset, member.size)
                except MediaError as error:
                    yield Damage(name, error.reason)
                    continue
                if hashlib.sha256(data).hexdigest() != member.sha256:
                    yield Damage(name, "its bytes differ from the index (sha256)")


def _strangers(store: Store) -> list[Damage]:
    """Shards that the index does not know; only a folder of this machine can be listed."""
    folder = local_folder(store)
    if folder is None:
        return []
    known = {shard.name for shard in store.index.shards}
    return [
        Damage(path.name, "is not in the index")
        for path in sorted(folder.glob("*.tar"))
        if path.name not in known
    ]
