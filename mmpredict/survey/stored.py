"""What shards hold, by their index alone; or a lone tar of somebody else, by its headers.

In: a folder of shards, its index, one of its shards, or any tar. Out: a ShardsSurvey or TarSurvey.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmpredict.shards.index import INDEX_NAME, Index, Samples, sample_row
from mmpredict.shards.remote import RangeReader, Remote
from mmpredict.shards.store import Store
from mmpredict.shards.tar_read import scan_tar

BY_HASH = "by hash"  # the split of a sample that names none


@dataclass(frozen=True)
class ShardsSurvey:
    """All about a folder of shards, or about one of them.

    Args:
        root: the folder; `shard` one file of it, or "" for all.
        shards: name, bytes and samples of each.
        samples, members: how many there are.
        sources: files that they were made from.
        bytes: of the shards.
        seconds: of all samples.
        forms, splits: how many samples are of each. A sample that names no split goes where the
            hash of its source says.
        streams: how many samples have each stream.
        frames, sound_s, characters: of all samples.
        pictures, sounds: sizes and rates that were seen, and in how many samples.
        tokens: by stream, as the preparation counted them.
        codecs: the encoders that counted them, by stream; None where there was none.
        settings: of the preparation.
        skipped: (source, kind, reason) of what could not be used.
        skipped_kinds: how many of each kind.
        fingerprint: sha256 of the index; equal exactly if all content is.
    """

    root: str
    shard: str
    shards: list[tuple[str, int, int]]
    samples: int
    members: int
    sources: int
    bytes: int
    seconds: float
    forms: dict[str, int]
    splits: dict[str, int]
    streams: dict[str, int]
    frames: int
    sound_s: float
    characters: int
    pictures: dict[str, int]
    sounds: dict[str, int]
    tokens: dict[str, int]
    codecs: Mapping[str, Any]
    settings: Mapping[str, Any]
    skipped: list[tuple[str, str, str]]
    skipped_kinds: dict[str, int]
    fingerprint: str


@dataclass(frozen=True)
class TarSurvey:
    """A tar without an index, as WebDataset has them.

    Args:
        path: the file.
        bytes: its size.
        members, samples: files, and different names up to their first dot.
        suffixes: how many members have each, and their bytes.
        first: names of the first members.
    """

    path: str
    bytes: int
    members: int
    samples: int
    suffixes: dict[str, tuple[int, int]]
    first: list[str]


@dataclass
class _Sums:
    """Added up sample by sample: an index may have millions."""

    samples: int = 0
    members: int = 0
    seconds: float = 0.0
    frames: int = 0
    sound_s: float = 0.0
    characters: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    streams: Counter[str] = field(default_factory=Counter)
    pictures: Counter[str] = field(default_factory=Counter)
    sounds: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    sources: set[int] = field(default_factory=set)

    def add(self, row: Mapping[str, Any]) -> None:
        streams = row["streams"]
        self.samples += 1
        self.members += len(row["members"])
        self.seconds += row["duration_s"]
        self.forms[row["form"]] += 1
        self.splits[row["split"] or BY_HASH] += 1
        self.sources.add(row["source"])
        self.tokens.update(row["tokens"])
        for name in ("video", "audio", "text"):
            self.streams[name] += name in streams
        self.streams.update(f"series {name}" for name in streams.get("series", {}))
        video, audio = streams.get("video"), streams.get("audio")
        if video is not None:
            self.frames += video.get("frames") or 0
            rate = f" {video['fps']:.4g} fps" if video.get("fps") else ""
            self.pictures[f"{video['width']}x{video['height']}{rate}"] += 1
        if audio is not None:
            self.sound_s += (audio.get("samples") or 0) / audio["sample_rate"]
            self.sounds[f"{audio['sample_rate']} Hz {audio['channels']} ch"] += 1
        self.characters += streams.get("text", {}).get("characters", 0)


def survey_shards(
    root: str | os.PathLike[str], *, remote: Remote = Remote()
) -> ShardsSurvey | TarSurvey:
    """Add up an index; nothing of the shards themselves is read.

    Args:
        root: a folder of shards or the URL of one, its index, or a .tar. A tar beside an index is
            looked up in it; another is scanned.
        remote: how a URL is reached.

    Raises:
        ValueError: there is no index, or it is damaged; or the tar is none that is read.
    """
    name = os.fspath(root)
    path = Path(name)
    is_tar = "://" not in name and path.suffix.lower() == ".tar"
    if is_tar and not (path.parent / INDEX_NAME).is_file():
        return survey_tar(path)
    store = Store(path.parent if is_tar else name, remote=remote)
    number = _number(store.index, path.name) if is_tar else None
    if is_tar and number is None:
        return survey_tar(path)
    return _survey(store, number)


def _number(index: Index, name: str) -> int | None:
    return next((n for n, shard in enumerate(index.shards) if shard.name == name), None)


def _survey(store: Store, number: int | None) -> ShardsSurvey:
    index, sums = store.index, _Sums()
    for row in _rows(index):
        if number is None or row["shard"] == number:
            sums.add(row)
    shards = index.shards if number is None else index.shards[number : number + 1]
    skipped = index.skipped if number is None else ()
    seen = (sums.forms, sums.splits, sums.streams)
    return ShardsSurvey(
        store.root.removesuffix(INDEX_NAME).rstrip("/"),
        "" if number is None else shards[0].name,
        [(shard.name, shard.bytes, shard.samples) for shard in shards],
        sums.samples,
        sums.members,
        len(sums.sources),
        sum(shard.bytes for shard in shards),
        sums.seconds,
        *({name: count for name, count in found.most_common() if count} for found in seen),
        sums.frames,
        sums.sound_s,
        sums.characters,
        dict(sums.pictures.most_common()),
        dict(sums.sounds.most_common()),
        dict(sums.tokens),
        dict(index.header.codecs),
        dict(index.header.settings),
        [(source.path, source.kind, source.reason) for source in skipped],
        dict(Counter(source.kind for source in skipped).most_common()),
        index.fingerprint,
    )


def _rows(index: Index) -> Iterator[Mapping[str, Any]]:
    """Every sample as its line has it."""
    samples = index.samples
    for number in range(len(samples)):
        plain = samples.plain(number) if isinstance(samples, Samples) else None
        yield sample_row(samples[number]) if plain is None else plain


@dataclass(frozen=True)
class _File:
    """A local file as the scanner of tars wants it."""

    name: str
    size: int
    reader: RangeReader

    def read(self, offset: int, length: int) -> bytes:
        return self.reader.read(self.name, offset, length)


def survey_tar(path: Path) -> TarSurvey:
    """List a tar that has no index.

    Raises:
        MediaError: it is damaged or holds what is refused.
    """
    reader = RangeReader()
    size = reader.size(str(path))
    members = scan_tar(_File(str(path), size, reader))
    suffixes: dict[str, tuple[int, int]] = {}
    keys: dict[str, None] = {}
    for member in members:
        folder, _, base = member.name.rpartition("/")
        stem, dot, suffix = base.partition(".")
        keys[f"{folder}/{stem}"] = None
        count, total = suffixes.get(dot + suffix, (0, 0))
        suffixes[dot + suffix] = (count + 1, total + member.size)
    return TarSurvey(
        str(path), size, len(members), len(keys), suffixes, [m.name for m in members[:10]]
    )
