"""What there is to prepare. In: a folder, a file or a manifest. Out: sources, in order of name.

Media are found by suffix, text beside them belongs to them, and other .txt and .jsonl files are
documents of text. Hidden files and folders are passed over; what else is left alone (links to
folders, suffixes of no known kind) is counted, so that a person can see it.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmpredict.media import (
    AUDIO_SUFFIXES,
    IMAGE_SUFFIXES,
    TEXT_SUFFIXES,
    VIDEO_SUFFIXES,
    ManifestRow,
    read_manifest,
    sidecar_text,
)
from mmpredict.schema import TextPiece, UserError
from mmpredict.shards.members import SAFE, piece_row

DOCUMENT_SUFFIXES = (".txt", ".jsonl")
_MAX_NAME = 60  # characters of a source's name in a key; a ustar name has room for 100 in all
_KINDS = {
    **dict.fromkeys(VIDEO_SUFFIXES, "video"),
    **dict.fromkeys(AUDIO_SUFFIXES, "audio"),
    **dict.fromkeys(IMAGE_SUFFIXES, "image"),
    ".gif": "video",
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
    """The sources, and how many files of each suffix are none."""

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
    if root.is_dir():
        return _in_folder(root, out.resolve())
    if root.suffix.lower() == ".jsonl":
        return Findings(_named(read_manifest(root), root.parent))
    kind = _KINDS.get(root.suffix.lower())
    if kind is None and root.suffix.lower() in DOCUMENT_SUFFIXES:
        return Findings([Found(root.name, root, "text")])
    if kind is None:
        raise UserError(f"{root} is no media file by its suffix, no text and no manifest (.jsonl)")
    return Findings([Found(root.name, root, kind, sidecar_text(root))])


def _in_folder(root: Path, out: Path) -> Findings:
    found = Findings()

    def unreadable(error: OSError) -> None:
        found.left_alone[f"folder {error.filename} ({error.strerror})"] += 1

    for folder, subfolders, names in os.walk(root, onerror=unreadable):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        links = [name for name in subfolders if os.path.islink(Path(folder, name))]
        found.left_alone.update({"link to a folder": len(links)} if links else {})
        if out.is_relative_to(Path(folder).resolve()):
            subfolders[:] = [n for n in subfolders if Path(folder, n).resolve() != out]
        _of_one_folder(root, Path(folder), sorted(n for n in names if not n.startswith(".")), found)
    found.sources.sort(key=lambda source: source.name)
    return found


def _of_one_folder(root: Path, folder: Path, names: list[str], found: Findings) -> None:
    suffixes = {name: os.path.splitext(name)[1].lower() for name in names}
    media = [name for name in names if suffixes[name] in _KINDS]
    texts = [name for name in names if suffixes[name] in TEXT_SUFFIXES]
    with_text = {start for name in texts for start in _starts(name)}
    stems = {os.path.splitext(name)[0] for name in media}
    for name in names:
        path, suffix = folder / name, suffixes[name]
        shown = path.relative_to(root).as_posix()
        if suffix in _KINDS:
            stem = os.path.splitext(name)[0]
            beside = sidecar_text(path) if stem in with_text else None
            found.sources.append(Found(shown, path, _KINDS[suffix], beside))
        elif suffix in DOCUMENT_SUFFIXES and not stems.intersection(_starts(name)):
            found.sources.append(Found(shown, path, "text"))
        elif suffix not in TEXT_SUFFIXES or not stems.intersection(_starts(name)):
            found.left_alone[suffix or "no suffix"] += 1


def _starts(name: str) -> Iterable[str]:
    """clip.en.srt may belong to a file of the stem clip.en or clip."""
    parts = name.split(".")
    return (".".join(parts[:n]) for n in range(1, len(parts)))


def _named(rows: list[ManifestRow], folder: Path) -> list[Found]:
    found, taken = [], Counter[str]()
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
        suffix = row.path.suffix.lower()
        kind = _KINDS.get(suffix, "text" if suffix in DOCUMENT_SUFFIXES else "video")
        texts = row.texts or None
        beside = sidecar_text(row.path) if texts is None and row.path.is_file() else None
        span = (row.start_s, row.end_s)
        found.append(Found(name, row.path, kind, beside, *span, texts, row.weight))
    return sorted(found, key=lambda source: source.name)
