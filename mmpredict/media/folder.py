"""What a folder holds that can be trained on. In: a folder. Out: media, each with the text file
beside it, texts that belong to none, and what is left alone.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

VIDEO_SUFFIXES = (
    ".mp4",
    ".m4v",
    ".mov",
    ".mkv",
    ".webm",
    ".avi",
    ".mpg",
    ".mpeg",
    ".mts",
    ".m2ts",
    ".flv",
    ".ogv",
    ".3gp",
    ".wmv",
    ".gif",
)
AUDIO_SUFFIXES = (
    ".wav",
    ".mp3",
    ".flac",
    ".ogg",
    ".oga",
    ".opus",
    ".m4a",
    ".aac",
    ".wma",
    ".aif",
    ".aiff",
)
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
MEDIA_SUFFIXES = VIDEO_SUFFIXES + AUDIO_SUFFIXES + IMAGE_SUFFIXES
TEXT_SUFFIXES = (".srt", ".vtt", ".json", ".jsonl", ".txt")  # also the order in which one is chosen
ALONE_SUFFIXES = (".srt", ".vtt", ".jsonl", ".txt")  # a .json without a medium is mostly no text
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{2,4})*")


@dataclass(frozen=True)
class Listing:
    """The files of a folder, sorted by path.

    Args:
        media: videos, sounds and images, each with the text file beside it, or None.
        texts: text files that stand beside no medium.
        others: how many are left alone, by suffix, or what they are in words.
        closed: folders that cannot be read, and why.
    """

    media: dict[Path, Path | None] = field(default_factory=dict)
    texts: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    closed: dict[Path, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.media or self.texts)


def list_folder(root: str | PathLike[str], *, without: Path | None = None) -> Listing:
    """All media and texts of a folder and those below; `root` may be one file, too.

    Hidden files and folders (a leading dot) are passed over, and folder links not followed, so that
    a circle of links cannot hang it. clip.mp4 takes the text of clip.srt, else clip.vtt, clip.json,
    clip.jsonl, clip.txt; else one with a language, clip.en.srt, in the same order of suffixes and
    then by alphabet. An image with the stem of a video or sound beside it is its cover, and left
    alone.

    One walk, however many files there are: nothing is looked up per file.

    Args:
        root: a folder, or a file, which may be hidden or a cover.
        without: a folder that is passed over with all that lies in it.

    Raises:
        ValueError: there is nothing at `root`.
    """
    root = Path(root)
    if not root.exists():
        raise ValueError(f"{root}: no such folder")
    if not root.is_dir():
        return _list_file(root)
    found = Listing()
    without = None if without is None else without.resolve()

    def closed(error: OSError) -> None:
        found.closed[Path(error.filename)] = error.strerror or str(error)

    for name, subfolders, names in os.walk(root, onerror=closed):
        folder = Path(name)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        links = sum(os.path.islink(folder / name) for name in subfolders)
        found.others.update({"link to a folder": links} if links else {})
        if without is not None and without.is_relative_to(folder.resolve()):
            subfolders[:] = [name for name in subfolders if (folder / name).resolve() != without]
        _add_names(folder, names, found)
    return Listing(
        dict(sorted(found.media.items())), sorted(found.texts), found.others, found.closed
    )


def texts_beside(paths: Iterable[Path]) -> dict[Path, Path | None]:
    """The text file that belongs to each medium, as `list_folder` chooses it; None for none."""
    paths = list(paths)
    by_folder: dict[Path, dict[str, list[tuple[bool, int, str]]]] = {}
    for folder in {path.parent for path in paths}:
        try:
            names = [name for name in os.listdir(folder) if _kind(name) == "text"]
        except OSError:
            names = []
        by_folder[folder] = _texts_by_stem([n for n in names if (folder / n).is_file()])
    return {path: _beside(path, by_folder[path.parent]) for path in paths}


def _list_file(path: Path) -> Listing:
    suffix = path.suffix.lower()
    if suffix in MEDIA_SUFFIXES:
        return Listing(texts_beside([path]))
    if suffix in ALONE_SUFFIXES:
        return Listing(texts=[path])
    return Listing(others=Counter([suffix or "no suffix"]))


def _add_names(folder: Path, names: Iterable[str], found: Listing) -> None:
    """The files of one folder."""
    by_kind: dict[str, list[str]] = {"moving": [], "image": [], "text": []}
    for name in names:
        kind = _kind(name)
        if kind == "other":
            found.others[os.path.splitext(name)[1].lower() or "no suffix"] += 1
        elif kind != "hidden" and (folder / name).is_file():
            by_kind[kind].append(name)
        elif kind != "hidden":
            found.others["broken link or no file"] += 1
    texts = _texts_by_stem(by_kind["text"])
    stems = {os.path.splitext(name)[0] for name in by_kind["moving"]}
    images = [name for name in by_kind["image"] if os.path.splitext(name)[0] not in stems]
    covers = len(by_kind["image"]) - len(images)
    found.others.update({"cover picture": covers} if covers else {})
    for name in by_kind["moving"] + images:
        found.media[folder / name] = _beside(folder / name, texts)
        stems.add(os.path.splitext(name)[0])
    taken = {name for stem in stems for *_, name in texts.get(stem, ())}
    for name in by_kind["text"]:
        suffix = os.path.splitext(name)[1].lower()
        if name not in taken and suffix in ALONE_SUFFIXES:
            found.texts.append(folder / name)
        elif name not in taken:
            found.others[suffix] += 1


def _kind(name: str) -> str:
    suffix = os.path.splitext(name)[1].lower()
    if name.startswith("."):
        return "hidden"
    if suffix in VIDEO_SUFFIXES + AUDIO_SUFFIXES:
        return "moving"
    if suffix in IMAGE_SUFFIXES:
        return "image"
    return "text" if suffix in TEXT_SUFFIXES else "other"


def _beside(path: Path, texts: dict[str, list[tuple[bool, int, str]]]) -> Path | None:
    best = min(texts.get(os.path.splitext(path.name)[0], ()), default=None)
    return None if best is None else path.with_name(best[-1])


def _texts_by_stem(names: Iterable[str]) -> dict[str, list[tuple[bool, int, str]]]:
    """For each stem its text files; the smallest entry comes first in the choice.

    clip.en.srt stands under clip, and under clip.en as well: there may be a clip.en.mp4.
    """
    found: dict[str, list[tuple[bool, int, str]]] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        place = TEXT_SUFFIXES.index(suffix.lower())
        found.setdefault(stem, []).append((False, place, name))
        base, dot, language = stem.rpartition(".")
        if dot and _LANGUAGE.fullmatch(language):
            found.setdefault(base, []).append((True, place, name))
    return found
