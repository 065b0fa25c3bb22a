"""The index of a folder of shards: where every sample lies and what it holds.

`prepare` writes DIR/000000.tar, 000001.tar, ... and, last and at one go, DIR/index.jsonl. The index
is text, one JSON object a line, in this order (`counts` in the header says how many of each):

| lines | holds |
|---|---|
| 1 | header: {"format", "version", "settings", "codecs", "counts"} |
| shards | {"shard": name, "bytes", "sha256", "samples"} |
| sources | {"source": relative path, "bytes", "sha256"} |
| skipped | {"skipped": relative path, "kind", "reason", "modality", "sha256"} |
| samples | {"key", "shard", "members", "form", "duration_s", "streams", "source", ...} |
| 1 | {"end": sha256 of all lines before, in hex} |

`shard` and `source` of a sample are numbers of lines of their tables, from 0. Samples stand in the
order in which they lie in the shards. A sample of key K has members K.SUFFIX, neighbours in one
shard; `members` is [[suffix, offset, size, sha256], ...] with the offset of the content itself.

| form | members |
|---|---|
| keep | json, and the source file as it is under its own suffix (mp4, wav, png, ...) |
| encoded | json; mp4 (H.264, no sound) if there are frames; flac (16 bit) if there is sound |
| raw | json; video.npy (T, C, H, W) uint8; audio.npy (C, S) int16 or float32 |

A sample of text alone has only its json. What the json holds says `mmpredict.shards.members`.
The sha256 of a source is that of the whole file; if there is text beside it, that of both digests
in hex, one a line.
Everything is deterministic: the same sources and settings give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from mmpredict.schema import UserError
from mmpredict.tokens import Codecs

INDEX_NAME = "index.jsonl"
FORMAT = "mmpredict shards"
VERSION = 1
Form = Literal["keep", "encoded", "raw"]
FORMS: tuple[Form, ...] = ("keep", "encoded", "raw")


class IndexDamaged(UserError):
    """The index is cut short, altered or no index at all."""


@dataclass(frozen=True)
class Member:
    """One file of a sample.

    Args:
        suffix: what follows the key and a dot: "json", "video.npy".
        offset, size: of its content in the shard, in bytes.
        sha256: of its content, in hex.
    """

    suffix: str
    offset: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Sample:
    """One document, or for the form "keep" one file that a reader cuts into documents.

    Args:
        key: unique name, [A-Za-z0-9_/-] only.
        shard: number of its shard.
        members: its files, in the order in which they lie.
        form: "keep", "encoded" or "raw".
        duration_s: length of what it holds; 0 for an image or text alone.
        streams: what it holds, by stream; a stream that is missing has no entry.
            video: {"frames", "height", "width", "fps"}; fps is the grid's, 0 off any grid.
            audio: {"sample_rate", "channels", "samples", "start_s"}.
            text: {"pieces", "characters", "timed"} (`timed`: how many pieces have times).
            series: {name: {"steps", "width"}}.
            For the form "keep" video and audio are the file's own facts.
        source: number of its source.
        start_s: where in the source it starts.
        split: "train", "val", "test", or None where the source's sha256 is to decide.
        tokens: how many tokens ("text", "audio") and frames' tokens ("video") it has with the
            codecs of the header; a stream that the codecs leave out has no entry. For "keep",
            those of the whole file read at the codecs' rates and size.
        weight: how often it is to be drawn, against 1 for the others (from a manifest).
    """

    key: str
    shard: int
    members: tuple[Member, ...]
    form: str
    duration_s: float
    streams: Mapping[str, Any]
    source: int
    start_s: float = 0.0
    split: str | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)
    weight: float = 1.0

    def member(self, suffix: str) -> Member | None:
        """The member with this suffix."""
        return next((m for m in self.members if m.suffix == suffix), None)


@dataclass(frozen=True)
class Shard:
    """A tar file: its name in the folder, size, sha256 in hex and number of samples."""

    name: str
    bytes: int
    sha256: str
    samples: int


@dataclass(frozen=True)
class Source:
    """What samples were made from: path relative to the folder that was prepared, size, sha256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SkippedSource:
    """A source that could not be used.

    Args:
        path: relative, as in Source.
        kind: in one word, for counting: "unreadable", "limits", "empty", "timeout", "crash".
        reason: why, for a person.
        modality: "video", "audio", "text", "image" by its suffix; "recipe" for documents.
        sha256: of the file; empty where it could not be read to its end.
    """

    path: str
    kind: str
    reason: str
    modality: str
    sha256: str = ""


@dataclass(frozen=True)
class Header:
    """The first line.

    Args:
        settings: what was asked of the preparation: plain JSON.
        codecs: for each of "audio", "video", "text" the signature of the codec that counted
            tokens (see `codec_signatures`); None where none did.
    """

    settings: Mapping[str, Any]
    codecs: Mapping[str, Any]


class Samples(Sequence[Sample]):
    """The samples of an index, each parsed when it is asked for.

    A million of them are a million short lines in one bytes object and one array of their starts.
    """

    def __init__(self, lines: bytes, first: int, starts: np.ndarray) -> None:
        self._lines, self._first, self._starts = lines, first, starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return _sample(self.plain(index % len(self)))

    def plain(self, index: int) -> dict[str, Any]:
        """The line of a sample as plain JSON: for columns over all samples, a quarter of the
        cost."""
        start, stop = self._starts[index], self._starts[index + 1]
        return json.loads(self._lines[start:stop])


@dataclass(frozen=True)
class Index:
    """A whole index, read."""

    header: Header
    shards: tuple[Shard, ...]
    sources: tuple[Source, ...]
    skipped: tuple[SkippedSource, ...]
    samples: Sequence[Sample]
    sha256: str = ""

    @property
    def fingerprint(self) -> str:
        """Of everything that the shards hold; equal exactly if all content is."""
        return self.sha256


def read_index(folder: str | PathLike[str]) -> Index:
    """The index of a folder of shards.

    Raises:
        UserError: there is none (a preparation that was stopped has none until it is run again).
        IndexDamaged: it is cut short or altered.
    """
    path = Path(folder) / INDEX_NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: no {INDEX_NAME}; make one with `mmpredict prepare SOURCE --out {folder}`, "
            "which also goes on with a preparation that was stopped"
        ) from error
    return parse_index(data, str(path))


def parse_index(data: bytes, name: str) -> Index:
    """The index in `data`; `name` says in messages where it came from."""
    starts = _line_starts(data)
    if len(starts) < 3:
        raise IndexDamaged(f"{name}: not an index of shards")
    try:
        header = json.loads(data[: starts[1]])
        known = isinstance(header, dict) and header.get("format") == FORMAT
    except ValueError:
        known = False
    if not known:
        raise IndexDamaged(f"{name}: line 1 does not say {FORMAT!r}; not an index of shards")
    if header.get("version") != VERSION:
        raise UserError(
            f"{name}: version {header.get('version')} of the format, this program reads {VERSION}; "
            "prepare the data again"
        )
    digest = hashlib.sha256(memoryview(data)[: starts[-2]]).hexdigest()
    try:
        end = json.loads(data[starts[-2] :])["end"]
    except (ValueError, KeyError, TypeError):
        raise IndexDamaged(f"{name}: cut short after {len(starts) - 1} lines") from None
    if end != digest:
        raise IndexDamaged(f"{name}: its content does not have the sha256 of its last line")
    return _tables(data, starts, header, digest)


def _line_starts(data: bytes) -> np.ndarray:
    """Where each line starts, and the end of the last one."""
    step, found = 1 << 24, [np.zeros(1, np.int64)]
    for at in range(0, len(data), step):
        chunk = np.frombuffer(data, np.uint8, min(step, len(data) - at), at)
        found.append(np.flatnonzero(chunk == 10) + (at + 1))
    starts = np.concatenate(found)
    return starts if starts[-1] == len(data) else np.append(starts, len(data))


def _tables(data: bytes, starts: np.ndarray, header: dict[str, Any], digest: str) -> Index:
    counts, at = header["counts"], 1

    def rows(name: str) -> Iterator[dict[str, Any]]:
        nonlocal at
        for line in range(at, at + counts[name]):
            yield json.loads(data[starts[line] : starts[line + 1]])
        at += counts[name]

    shards = tuple(Shard(r["shard"], r["bytes"], r["sha256"], r["samples"]) for r in rows("shards"))
    sources = tuple(Source(r["source"], r["bytes"], r["sha256"]) for r in rows("sources"))
    skipped = tuple(
        SkippedSource(r["skipped"], r["kind"], r["reason"], r["modality"], r["sha256"])
        for r in rows("skipped")
    )
    samples = Samples(data, at, starts[at : at + counts["samples"] + 1])
    return Index(
        Header(header["settings"], header["codecs"]), shards, sources, skipped, samples, digest
    )


def _sample(row: dict[str, Any]) -> Sample:
    members = tuple(Member(*member) for member in row.pop("members"))
    return Sample(members=members, **row)


def sample_row(sample: Sample) -> dict[str, Any]:
    """A sample as its line has it."""
    members = [[m.suffix, m.offset, m.size, m.sha256] for m in sample.members]
    return {**sample.__dict__, "members": members}


def write_index(folder: str | PathLike[str], index: Index) -> str:
    """Write DIR/index.jsonl at one go, under its name only when it is whole; its fingerprint."""
    lines = (as_line(sample_row(sample)) for sample in index.samples)
    return write_lines(Path(folder) / INDEX_NAME, index, len(index.samples), lines)


def write_lines(path: Path, index: Index, count: int, sample_lines: Iterable[bytes]) -> str:
    """`write_index` with the lines of the samples given in place of `index.samples`."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    digest = hashlib.sha256()
    try:
        with part.open("wb") as file:
            for line in chain(map(as_line, _rows(index, count)), sample_lines):
                digest.update(line)
                file.write(line)
            file.write(as_line({"end": digest.hexdigest()}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return digest.hexdigest()


def as_line(row: Mapping[str, Any]) -> bytes:
    """One line of JSON: compact, ASCII, without NaN."""
    return json.dumps(row, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _rows(index: Index, count: int) -> Iterable[Mapping[str, Any]]:
    yield {
        "format": FORMAT,
        "version": VERSION,
        "settings": index.header.settings,
        "codecs": index.header.codecs,
        "counts": {
            "shards": len(index.shards),
            "sources": len(index.sources),
            "skipped": len(index.skipped),
            "samples": count,
        },
    }
    for shard in index.shards:
        plain = dict(shard.__dict__)
        yield {"shard": plain.pop("name"), **plain}
    for source in index.sources:
        yield {"source": source.path, "bytes": source.bytes, "sha256": source.sha256}
    for skipped in index.skipped:
        plain = dict(skipped.__dict__)
        yield {"skipped": plain.pop("path"), **plain}


def codec_signatures(codecs: Codecs | None) -> dict[str, Any]:
    """What decides how many tokens a codec makes, by stream; None where there is no codec.

    Two codecs with equal signatures make equally many tokens of every clip. A vocabulary is
    represented by its sha256.
    """
    plain: dict[str, Any] = {"audio": None, "video": None, "text": None}
    plain |= codecs.to_plain() if codecs is not None else {}
    if plain["video"] is not None:
        plain["video"]["size"] = list(codecs.video.height_width)  # type: ignore[union-attr]
    if plain["text"] is not None:
        vocabulary = plain["text"].pop("vocabulary")
        plain["text"].pop("path")
        digest = None if vocabulary is None else hashlib.sha256(vocabulary.encode()).hexdigest()
        plain["text"]["vocabulary_sha256"] = digest
        if plain["text"]["kind"] == "bytes":
            plain["text"]["vocab_size"] = None  # has no say with bytes
    return plain
