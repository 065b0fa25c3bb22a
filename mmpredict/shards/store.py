"""Samples out of shards, near or far. In: the number of a sample. Out: its members or its Clip.

Every member's sha256 is compared with the index at each read, so that a flipped bit is an error and
never a training example.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from mmpredict.media import MediaBytes, MediaError, read_clip
from mmpredict.schema import Clip, TextPiece, UserError
from mmpredict.shards.addresses import beside, local_path, scheme_of, shown
from mmpredict.shards.index import INDEX_NAME, Index, IndexDamaged, Member, Sample, parse_index
from mmpredict.shards.members import clip_of_members, pieces_of
from mmpredict.shards.remote import RangeReader, Remote

MAX_SAMPLE_BYTES = 2 * 1024**3
_MAX_INDEX_BYTES = 8 * 1024**3
_SHARD_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_SOUND = frozenset(("audio.npy", "flac"))
_FRAMES = frozenset(("video.npy", "mp4"))


class Store:
    """The samples of a folder of shards.

    Args:
        root: the folder that `mmpredict prepare` wrote, its index, or the URL of either.
        remote: how a URL is reached.
        check: compare the sha256 of every member at each read; False trusts the disk and the
            network.
        max_bytes: of one sample.

    Raises:
        UserError: there is no index, or it is damaged.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        remote: Remote = Remote(),
        check: bool = True,
        max_bytes: int = MAX_SAMPLE_BYTES,
    ) -> None:
        self.check, self.max_bytes = check, max_bytes
        self.reader = RangeReader(remote)
        self.root = _index_address(os.fspath(root), remote)
        self.index: Index = parse_index(self._index_bytes(), shown(self.root))
        odd = [s.name for s in self.index.shards if not _SHARD_NAME.fullmatch(s.name)]
        if odd:
            raise IndexDamaged(f"{shown(self.root)}: shard {odd[0]!r} lies outside of the folder")

    def _index_bytes(self) -> bytes:
        try:
            return self.reader.whole(self.root, _MAX_INDEX_BYTES)
        except MediaError as error:
            folder = shown(beside(self.root, ""))
            raise UserError(
                f"{error}; take a folder of shards, or make one with "
                f"`mmpredict prepare SOURCE --out {folder}`, which also goes on with a preparation "
                "that was stopped"
            ) from error

    def __len__(self) -> int:
        return len(self.index.samples)

    def address(self, shard: int) -> str:
        """Where a shard lies."""
        return beside(self.root, self.index.shards[shard].name)

    def name(self, sample: Sample, suffix: str = "") -> str:
        """What a person calls a sample or its member: 000000.tar!key.mp4."""
        name = f"{self.index.shards[sample.shard].name}!{sample.key}"
        return f"{name}.{suffix}" if suffix else name

    def members(self, sample: Sample, suffixes: Collection[str] | None = None) -> dict[str, bytes]:
        """Content of a sample's members by suffix, checked.

        Args:
            sample: of this store's index.
            suffixes: which; None for all.

        Raises:
            MediaError: it cannot be read, or differs from what was written.
        """
        wanted = [m for m in sample.members if suffixes is None or m.suffix in suffixes]
        if not wanted:
            return {}
        # Neighbours in the tar: one request, with the headers between them.
        start = min(member.offset for member in wanted)
        stop = max(member.offset + member.size for member in wanted)
        if stop - start > self.max_bytes or start < 0:
            raise MediaError(
                self.name(sample),
                f"{stop - start:,} bytes, over the limit of {self.max_bytes:,}",
                kind="limits",
            )
        shard = self.index.shards[sample.shard]
        address = self.address(sample.shard)
        try:
            data = self.reader.read(address, start, stop - start, size=shard.bytes)
        except MediaError as error:
            reason = f"its shard {error.path}: {error.reason}"
            name = self.name(sample, wanted[0].suffix)
            raise MediaError(name, reason, kind=error.kind) from error
        return {m.suffix: self._part(sample, m, data, start) for m in wanted}

    def _part(self, sample: Sample, member: Member, data: bytes, start: int) -> bytes:
        at = member.offset - start
        part = data[at : at + member.size]
        if self.check and hashlib.sha256(part).hexdigest() != member.sha256:
            raise MediaError(
                self.name(sample, member.suffix),
                "its bytes differ from the index (sha256); `mmpredict inspect DIR --verify` lists "
                "all that do",
                kind="hash",
            )
        return part

    def about(self, sample: Sample) -> dict[str, Any]:
        """The json of a sample."""
        data = self.members(sample, ("json",)).get("json", b"")
        try:
            return json.loads(data)
        except ValueError as error:
            raise MediaError(self.name(sample, "json"), f"not JSON: {error}") from error

    def texts(self, sample: Sample) -> tuple[TextPiece, ...]:
        """All text of a sample."""
        return pieces_of(self.about(sample)) if "text" in sample.streams else ()

    def file_suffix(self, sample: Sample) -> str | None:
        """The suffix of the file that a sample of the form "keep" holds; None for text alone."""
        return next((m.suffix for m in sample.members if m.suffix != "json"), None)

    def file(self, sample: Sample) -> MediaBytes:
        """The file of a sample of the form "keep"."""
        suffix = self.file_suffix(sample)
        if suffix is None:
            raise MediaError(self.name(sample), "holds no media file")
        return MediaBytes(self.name(sample, suffix), self.members(sample, (suffix,))[suffix])

    def read(self, sample: Sample, *, frames: bool = True, sound: bool = True) -> Clip:
        """A sample as it is stored; for the form "keep" the whole file at its own rates.

        Args:
            sample: of this store's index.
            frames, sound: False leaves the stream out, and its bytes where they are.

        Raises:
            MediaError: it cannot be read, or differs from what was written.
        """
        if sample.form != "keep":
            left_out = (frozenset() if frames else _FRAMES) | (frozenset() if sound else _SOUND)
            suffixes = {m.suffix for m in sample.members} - left_out
            return clip_of_members(self.members(sample, suffixes), self.name(sample))
        about = pieces_of(self.about(sample))
        has = (frames and "video" in sample.streams, sound and "audio" in sample.streams)
        if self.file_suffix(sample) is None or not any(has):
            return Clip(texts=about, name=self.name(sample))
        clip = read_clip(self.file(sample), frames=has[0], sound=has[1])
        return Clip(**{**clip.__dict__, "texts": about})

    def samples_of(self, shard: int) -> Sequence[Sample]:
        """The samples of one shard, in their order."""
        first = sum(s.samples for s in self.index.shards[:shard])
        return self.index.samples[first : first + self.index.shards[shard].samples]


def _index_address(root: str, remote: Remote) -> str:
    """Where the index of a folder lies."""
    if scheme_of(root, remote.schemes) != "file":
        if root.partition("?")[0].endswith(INDEX_NAME):
            return root
        address, question, query = root.partition("?")
        return beside(address.rstrip("/") + "/" + question + query, INDEX_NAME)
    path = local_path(root)
    return str(path if path.name == INDEX_NAME else path / INDEX_NAME)


def local_folder(store: Store) -> Path | None:
    """The folder of a store; None if it is elsewhere."""
    if scheme_of(store.root, store.reader.remote.schemes) != "file":
        return None
    return local_path(store.root).parent
