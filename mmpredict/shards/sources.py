"""What there is to prepare. In: a folder, a file or a manifest. Out: sources, in order of name.

A folder holds what `mmpredict.media.list_folder` finds in it, here as where it is trained on as it
is. What is left alone is counted, so that a person can see it.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmpredict.media import (
    AUDIO_SUFFIXES,
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    ManifestRow,
    list_folder,
    read_manifest,
    texts_beside,
)
from mmpredict.media.folder import ALONE_SUFFIXES
from mmpredict.schema import TextPiece, UserError
from mmpredict.shards.members import SAFE, piece_row

_MAX_NAME = 60  # characters of a source's name in a key; a ustar name has room for 100 in all
_KINDS = {
    **dict.fromkeys(VIDEO_SUFFIXES, "video"),
    **dict.fromkeys(AUDIO_SUFFIXES, "audio"),
    **dict.fromkeys(IMAGE_SUFFIXES, "image"),
}


@dataclass(frozen=True)
class Found:
    """A source.

    Args:
        name: relative path, with /; of a manifest's span with #start-end or #id behind it.
        path: the file.
        kind: "video", "audio", "image" or "text", by its suffix.
        beside: the file with its text.
        start_s, end_s: the span of it that is wanted; None for its end.
        texts: what a manifest says of it, in place of text beside it; None where it says nothing.
        weight: how often it is to be drawn, against 1.
    """

    name: str
    path: Path
    kind: str
    beside: Path | None = None
    start_s: float = 0.0
    end_s: float | None = None
    texts: tuple[TextPiece, ...] | None = None
    weight: float = 1.0

    def item(self) -> dict[str, Any]:
        """As plain JSON, for a worker."""
        return {
            "name": self.name,
            "path": str(self.path),
            "kind": self.kind,
            "beside": None if self.beside is None else str(self.beside),
            "start_s": self.start_s,
            "end_s": self.end_s,
            "texts": None if self.texts is None else [piece_row(piece) for piece in self.texts],
            "weight": self.weight,
        }


@dataclass
class Findings:
    """The sources, and how much of what else there is left alone, by suffix or in words."""

    sources: list[Found] = field(default_factory=list)
    left_alone: Counter[str] = field(default_factory=Counter)


def key_of(name: str, number: int) -> str:
    """The key of a source's sample: readable, safe as a path, and not like any other's.

    It depends on nothing but the name of the source and the number, so that keys stay when other
    sources come and go.
    """
    stem = name.rsplit(".", 1)[0] if "." in name.rsplit("/", 1)[-1] else name
    safe = "".join(c if c in SAFE or c == "/" else "_" for c in stem)
    safe = "/".join(part for part in safe.split("/") if part)[-_MAX_NAME:].strip("/")
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{safe}-{digest[:12]}-{number:05d}"


def find_sources(source: str | os.PathLike[str], out: Path) -> Findings:
    """The sources of a folder, a file or a manifest (.jsonl); nothing under `out` is one.

    Raises:
        UserError: there is no such folder, or `out` is the folder itself.
        MediaError: the manifest cannot be read.
    """
    root = Path(source)
    if not root.exists():
        raise UserError(f"{root} does not exist; give a folder, a media file or a manifest")
    if root.resolve() == out.resolve():
        raise UserError(f"--out {out} is the folder to be read; give another one")
    if root.is_file() and root.suffix.lower() == ".jsonl":
        return Findings(_named(read_manifest(root), root.parent))
    listing = list_folder(root, without=out)
    if not listing and not root.is_dir():
        raise UserError(f"{root} is no media file by its suffix, no text and no manifest (.jsonl)")
    folder = root if root.is_dir() else root.parent
    found = [
        Found(path.relative_to(folder).as_posix(), path, _kind(path), beside)
        for path, beside in listing.media.items()
    ]
    found += [Found(path.relative_to(folder).as_posix(), path, "text") for path in listing.texts]
    left_alone = listing.others.copy()
    left_alone.update(f"folder {path} ({reason})" for path, reason in listing.closed.items())
    return Findings(sorted(found, key=lambda source: source.name), left_alone)


def _named(rows: list[ManifestRow], folder: Path) -> list[Found]:
    found, taken = [], Counter[str]()
    besides = texts_beside({row.path for row in rows})
    for row in rows:
        inside = row.path.is_relative_to(folder)
        name = (row.path.relative_to(folder) if inside else row.path).as_posix().lstrip("/")
        if row.id:
            name += f"#{row.id}"
        elif row.start_s or row.end_s is not None:
            name += f"#{row.start_s:g}-" + ("" if row.end_s is None else f"{row.end_s:g}")
        taken[name] += 1
        if taken[name] > 1:
            name += f"#{taken[name]}"
        texts = row.texts or None
        kind = _kind(row.path)
        beside = None if texts or kind == "text" else besides[row.path]
        span = (row.start_s, row.end_s)
        found.append(Found(name, row.path, kind, beside, *span, texts, row.weight))
    return sorted(found, key=lambda source: source.name)


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    return _KINDS.get(suffix, "text" if suffix in ALONE_SUFFIXES else "video")
