"""Shards on their way into DIR. In: the samples of all sources, in order. Out: DIR as it should be.

New shards wait in DIR/.prepare/new until all is there; shards of DIR that stay as they are are left
alone. Then a list of what is to be done is written, and done: the index goes first, the shards take
their places, and the new index comes last. Whoever is stopped in between goes on with the list. So
an index in DIR always names whole shards, and a shard in DIR is always whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from mmpredict.schema import UserError
from mmpredict.shards.index import (
    INDEX_NAME,
    Header,
    Index,
    Shard,
    SkippedSource,
    Source,
    as_line,
    write_lines,
)
from mmpredict.shards.known import WORK_NAME, Known, Piece, whole_size
from mmpredict.shards.tar_write import BLOCK, END, header

_CHUNK = 1 << 20
_SHARD = re.compile(r"\d{6,}\.tar")


@dataclass
class _Open:
    """The shard that is being gathered: its pieces, and the sources they are of."""

    pieces: list[Piece] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    size: int = len(END)


class Stage:
    """Takes sources in order and lays their samples out in shards.

    Args:
        out: DIR.
        header: of the index.
        shard_bytes: a shard is closed before it would grow larger.
        before: the index that DIR has, or None.
    """

    def __init__(self, out: Path, header: Header, shard_bytes: int, before: Index | None) -> None:
        self.out, self.header, self.shard_bytes = out, header, shard_bytes
        self.new = out / WORK_NAME / "new"
        self.digests = {s.name: s.sha256 for s in before.shards} if before is not None else {}
        self.before = before
        self.shards: list[Shard] = []
        self.sources: list[Source] = []
        self.skipped: list[SkippedSource] = []
        self.lines: list[bytes] = []
        self.seen: list[bytes] = []
        self.bytes_copied = 0
        self._open = _Open()
        self._told: dict[int, dict[str, Any]] = {}  # of sources that are not wholly in shards
        self._spools: list[tuple[int, Path]] = []
        self.new.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, known: Known) -> None:
        """The next source."""
        self.skipped += known.skipped
        if known.stat is not None:
            self.seen.append(as_line([name, known.stat]))  # type: ignore[arg-type]
        pieces = list(known.pieces())
        if not pieces:
            return
        number = len(self.sources)
        self.sources.append(Source(name, known.bytes, known.sha256))
        self._told[number] = {
            "name": name,
            "sha256": known.sha256,
            "bytes": known.bytes,
            "stat": known.stat,
            "skipped": [
                {"kind": skip.kind, "reason": skip.reason, "modality": skip.modality}
                for skip in known.skipped
            ],
            "samples": len(pieces),
        }
        if known.spool is not None:
            self._spools.append((number, known.spool))
        for piece in pieces:
            if self._open.pieces and self._open.size + piece.size > self.shard_bytes:
                self._close_shard()
            self._open.pieces.append(piece)
            self._open.sources.append(number)
            self._open.size += piece.size

    def _close_shard(self) -> None:
        done, self._open = self._open, _Open()
        name = f"{len(self.shards):06d}.tar"
        rows, at = [], 0
        for piece, source in zip(done.pieces, done.sources, strict=True):
            row = _placed(piece.row, at)
            self.lines.append(as_line({**row, "shard": len(self.shards), "source": source}))
            rows.append((source, row))
            at += piece.size
        sha256 = self._reuse(name, done.pieces)
        if sha256 is None:
            sha256 = self._write(name, done.pieces)
            self._tell(name, at + len(END), sha256, rows)
        self.shards.append(Shard(name, at + len(END), sha256, len(rows)))
        # The bytes of all sources before the last one, which may go on, are in shards now.
        last = done.sources[-1]
        for number, spool in self._spools:
            if number < last:
                spool.unlink(missing_ok=True)
        self._spools = [(n, path) for n, path in self._spools if n >= last]
        self._told = {n: told for n, told in self._told.items() if n >= last}

    def _reuse(self, name: str, pieces: list[Piece]) -> str | None:
        """The sha256 of a whole shard of just these pieces that exists already, put in place."""
        path = pieces[0].path
        if path.name != name or any(piece.path != path for piece in pieces):
            return None
        at = 0
        for piece in pieces:
            if piece.at != at:
                return None
            at += piece.size
        if path.stat().st_size != whole_size(pieces):
            return None
        if path.parent == self.out:
            return self.digests[name]
        told = json.loads(path.with_suffix(".json").read_bytes())
        os.replace(path, self.new / name)
        os.replace(path.with_suffix(".json"), (self.new / name).with_suffix(".json"))
        return told["shard_sha256"]

    def _write(self, name: str, pieces: list[Piece]) -> str:
        digest = hashlib.sha256()
        part = self.new / f".{name}.part"
        with part.open("wb") as target:
            source: BinaryIO | None = None
            for piece in pieces:
                if source is None or source.name != str(piece.path):
                    if source is not None:
                        source.close()
                    source = piece.path.open("rb")
                self._copy(piece, source, target, digest)
            if source is not None:
                source.close()
            target.write(END)
            digest.update(END)
            target.flush()
            os.fsync(target.fileno())
        os.replace(part, self.new / name)
        self.bytes_copied += whole_size(pieces)
        return digest.hexdigest()

    def _copy(self, piece: Piece, source: BinaryIO, target: BinaryIO, digest: Any) -> None:
        """A sample; its members are held against their sha256 on the way."""
        for suffix, offset, size, sha256 in piece.row["members"]:
            head = header(f"{piece.row['key']}.{suffix}", size)
            target.write(head)
            digest.update(head)
            source.seek(piece.at + offset)
            member, left = hashlib.sha256(), size
            while left and (data := source.read(min(left, _CHUNK))):
                target.write(data)
                digest.update(data)
                member.update(data)
                left -= len(data)
            if member.hexdigest() != sha256:
                raise UserError(
                    f"{piece.path}: {piece.row['key']}.{suffix} does not have the sha256 that was "
                    "written down for it; delete this file and run again"
                )
            target.write(bytes(-size % BLOCK))
            digest.update(bytes(-size % BLOCK))

    def _tell(self, name: str, size: int, sha256: str, rows: list[tuple[int, Any]]) -> None:
        """Write beside a waiting shard what it holds, for a later run to take it from there."""
        told: dict[int, dict[str, Any]] = {}
        for number, row in rows:
            told.setdefault(number, {**self._told[number], "rows": []})["rows"].append(row)
        content = {"bytes": size, "shard_sha256": sha256, "sources": list(told.values())}
        path = (self.new / name).with_suffix(".json")
        write_whole(path, [json.dumps(content).encode()])

    def finish(self) -> str:
        """Close the last shard and put all in place; the fingerprint of the index."""
        if self._open.pieces:
            self._close_shard()
        index = Index(self.header, tuple(self.shards), tuple(self.sources), tuple(self.skipped), ())
        fingerprint = write_lines(self.new / INDEX_NAME, index, len(self.lines), self.lines)
        write_whole(self.new / "seen.jsonl", self.seen)
        names = [shard.name for shard in self.shards]
        same = self.before is not None and self.before.sha256 == fingerprint
        work = self.out / WORK_NAME
        write_whole(work / "commit.json", [json.dumps({"shards": names, "same": same}).encode()])
        put_in_place(self.out)
        return fingerprint


def _placed(row: dict[str, Any], at: int) -> dict[str, Any]:
    members = [[suffix, offset + at, *rest] for suffix, offset, *rest in row["members"]]
    return {**row, "members": members}


def write_whole(path: Path, parts: Iterable[bytes]) -> None:
    """A file that is there whole or not at all, also after the power failed."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def put_in_place(out: Path) -> None:
    """Do, or go on doing, what the list of a finished preparation says; nothing without one."""
    work = out / WORK_NAME
    new, commit = work / "new", work / "commit.json"
    if not commit.exists():
        return
    told = json.loads(commit.read_bytes())
    waiting = [name for name in told["shards"] if (new / name).exists()]
    surplus = [p for p in out.iterdir() if _SHARD.fullmatch(p.name)]
    surplus = [path for path in surplus if path.name not in told["shards"]]
    index = new / INDEX_NAME
    if index.exists():  # until it has moved, what is in DIR may be a mixture
        if waiting or surplus:
            (out / INDEX_NAME).unlink(missing_ok=True)
        for name in waiting:
            os.replace(new / name, out / name)
        for path in surplus:
            path.unlink()
        _sync(out)
        if not (told["same"] and (out / INDEX_NAME).exists()):
            os.replace(index, out / INDEX_NAME)
            _sync(out)
    if (new / "seen.jsonl").exists():
        os.replace(new / "seen.jsonl", work / "seen.jsonl")
    commit.unlink()
    sweep(work)


def sweep(work: Path) -> None:
    """Remove what a finished preparation has no more use for."""
    for path in [work / "new", work / "spool", *work.glob("old-*")]:
        shutil.rmtree(path, ignore_errors=True)
    (work / "settings.json").unlink(missing_ok=True)


def set_aside(work: Path) -> None:
    """Shards that wait from a run that was stopped become a store to take samples from."""
    new = work / "new"
    if new.is_dir() and any(new.glob("*.tar")):
        number = 1 + max((int(p.name[4:]) for p in work.glob("old-*")), default=0)
        os.replace(new, work / f"old-{number:06d}")
    shutil.rmtree(new, ignore_errors=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
