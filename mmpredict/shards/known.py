"""What has been made already, by the last preparation or by one that was stopped.

In: DIR. Out: for every source that is known, where the bytes of its samples lie. Three places hold
such bytes: finished shards under the index, shards that wait to be put in place (each with a file
of rows beside it), and spool files of single sources.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmpredict.schema import UserError
from mmpredict.shards.index import INDEX_NAME, Index, Samples, SkippedSource, read_index
from mmpredict.shards.spool import read_rows
from mmpredict.shards.tar_write import BLOCK, END, stretch_size

WORK_NAME = ".prepare"
RETRIED = ("timeout", "memory", "crash")  # may end otherwise on another day
Row = dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """A sample's stretch of tar.

    Args:
        path: the file it lies in.
        at, size: where.
        row: its line of the index, without shard and source; offsets of members count from `at`.
    """

    path: Path
    at: int
    size: int
    row: Row


@dataclass(frozen=True)
class Known:
    """A source whose samples need not be made again.

    Args:
        sha256: of the source when they were made.
        bytes: its size.
        stat: its size and time then (see convert.stat_of); None where nobody wrote them down.
        skipped: what of it could not be used.
        pieces: its samples, read when they are asked for.
        spool: the spool file that holds them, if one does.
    """

    sha256: str
    bytes: int
    stat: Any
    skipped: list[SkippedSource]
    pieces: Callable[[], Iterator[Piece]]
    spool: Path | None = None

    @property
    def final(self) -> bool:
        """Whether making it again would come to the same."""
        return not any(skipped.kind in RETRIED for skipped in self.skipped)


def spool_path(work: Path, name: str) -> Path:
    """The spool file of a source."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return work / "spool" / digest[:2] / f"{digest[2:24]}.spool"


def old_index(out: Path) -> Index | None:
    """The index of DIR, if there is one."""
    return read_index(out) if (out / INDEX_NAME).exists() else None


def known_sources(out: Path, index: Index | None) -> dict[str, Known]:
    """What the index and the shards that wait know; for spool files ask `from_spool`."""
    work = out / WORK_NAME
    known = {} if index is None else _from_index(out, index, read_seen(work))
    for folder in sorted(work.glob("old-*")):
        known |= _from_waiting(folder)
    return known


def read_seen(work: Path) -> dict[str, Any]:
    """Sizes and times of the sources at the last preparation."""
    try:
        lines = (work / "seen.jsonl").read_bytes().splitlines()
        return dict(json.loads(line) for line in lines)
    except (OSError, ValueError):
        return {}


def from_spool(work: Path, name: str) -> Known | None:
    """A source whose spool file is there and whole."""
    path = spool_path(work, name)
    rows = read_rows(path)
    if rows is None or rows["name"] != name or rows.get("same"):
        return None
    skipped = [_skip(name, rows["sha256"], row) for row in rows["skipped"]]

    def pieces() -> Iterator[Piece]:
        again = read_rows(path)
        assert again is not None
        for row in again["samples"]:
            yield Piece(path, row.pop("at"), row.pop("size"), row)

    return Known(rows["sha256"], rows["bytes"], rows["stat"], skipped, pieces, path)


def _skip(name: str, sha256: str, row: Mapping[str, str]) -> SkippedSource:
    return SkippedSource(name, row["kind"], row["reason"], row.get("modality", ""), sha256)


def _from_index(out: Path, index: Index, seen: Mapping[str, Any]) -> dict[str, Known]:
    assert isinstance(index.samples, Samples)
    spans = _spans(index.samples)
    sound = [_size(out / shard.name) == shard.bytes for shard in index.shards]
    skipped: dict[str, list[SkippedSource]] = {}
    for skip in index.skipped:
        skipped.setdefault(skip.path, []).append(skip)
    known = {}
    for number, source in enumerate(index.sources):
        first, last, first_shard, last_shard = spans[number]
        if all(sound[first_shard : last_shard + 1]):
            known[source.path] = Known(
                source.sha256,
                source.bytes,
                seen.get(source.path),
                skipped.pop(source.path, []),
                _IndexPieces(out, index, first, last),
            )
    for name, skips in skipped.items():
        if name not in known and all(skip.sha256 for skip in skips):
            known[name] = Known(skips[0].sha256, 0, seen.get(name), skips, _nothing)
    return known


def _nothing() -> Iterator[Piece]:
    return iter(())


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _spans(samples: Samples) -> dict[int, list[int]]:
    """Of each source's number: its first and last sample, and their shards."""
    spans: dict[int, list[int]] = {}
    for number in range(len(samples)):
        row = samples.plain(number)
        span = spans.setdefault(row["source"], [number, number, row["shard"], row["shard"]])
        span[1], span[3] = number, row["shard"]
    return spans


@dataclass(frozen=True)
class _IndexPieces:
    """The pieces of samples `first` to `last` of an index."""

    out: Path
    index: Index
    first: int
    last: int

    def __call__(self) -> Iterator[Piece]:
        assert isinstance(self.index.samples, Samples)
        for number in range(self.first, self.last + 1):
            row = self.index.samples.plain(number)
            shard = self.index.shards[row.pop("shard")]
            row.pop("source")
            yield piece_of(self.out / shard.name, row)


def piece_of(path: Path, row: Row) -> Piece:
    """The stretch of a sample whose members' offsets count from the start of its shard."""
    at = row["members"][0][1] - BLOCK
    size = stretch_size(member[2] for member in row["members"])
    members = [[suffix, offset - at, *rest] for suffix, offset, *rest in row["members"]]
    return Piece(path, at, size, {**row, "members": members})


def _from_waiting(folder: Path) -> dict[str, Known]:
    """Sources of which every sample lies in the waiting shards of a folder."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            told = json.loads(path.read_bytes())
        except ValueError:
            continue
        shard = path.with_suffix(".tar")
        if _size(shard) != told["bytes"]:
            continue
        for source in told["sources"]:
            entry = found.setdefault(source["name"], {**source, "lies": []})
            if entry["sha256"] == source["sha256"]:
                entry["lies"] += [(shard, row) for row in source["rows"]]
    return {
        name: Known(
            entry["sha256"],
            entry["bytes"],
            entry["stat"],
            [_skip(name, entry["sha256"], row) for row in entry["skipped"]],
            _WaitingPieces(entry["lies"]),
        )
        for name, entry in found.items()
        if len(entry["lies"]) == entry["samples"]
    }


@dataclass(frozen=True)
class _WaitingPieces:
    lies: list[tuple[Path, Row]]

    def __call__(self) -> Iterator[Piece]:
        return (piece_of(path, row) for path, row in self.lies)


def check_ours(out: Path) -> None:
    """Refuse a folder that holds something and was not made by a preparation."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    if out.is_dir() and not (out / INDEX_NAME).exists() and not (out / WORK_NAME).exists():
        if any(out.iterdir()):
            raise UserError(
                f"--out {out} holds files but no {INDEX_NAME}; give an empty or new folder"
            )


def whole_size(pieces: list[Piece]) -> int:
    """Bytes of a shard of these pieces."""
    return sum(piece.size for piece in pieces) + len(END)
