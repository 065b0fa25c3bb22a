"""What a folder holds that can be trained on. In: a folder. Out: media, each with its text file,
and texts that belong to none.

One walk over the folder, however many files it has: nothing is looked up per file.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from mmpredict.media import AUDIO_SUFFIXES, IMAGE_SUFFIXES, TEXT_SUFFIXES, VIDEO_SUFFIXES

ALONE_SUFFIXES = (".srt", ".vtt", ".jsonl", ".txt")  # a lone .json is mostly no text
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{2,4})*")


@dataclass(frozen=True)
class Listing:
    """The files of a folder, sorted by path.

    Args:
        media: videos, sounds and images, each with the text file beside it, or None.
        texts: text files that stand beside no media file.
    """

    media: dict[Path, Path | None]
    texts: list[Path]

    def __bool__(self) -> bool:
        return bool(self.media or self.texts)


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def list_folder(root: Path, *, deep: bool = True) -> Listing:
    """All media and texts of a folder and, if `deep`, those below; `root` may be one file, too.

    Hidden files and folders are left out and folder links not followed. clip.mp4 takes the text of
    clip.srt, else clip.vtt, clip.json, clip.jsonl, clip.txt, else clip.en.srt and the like, as
    `media.sidecar_text` has it. An image with the stem of a video or sound beside it is its cover,
    and left out.
    """
    media: dict[Path, Path | None] = {}
    alone: list[Path] = []
    if root.is_file():
        here = _list_names(root.parent, [entry.name for entry in root.parent.iterdir()])
        if root in here.media:
            return Listing({root: here.media[root]}, [])
        known = root.suffix.lower() in ALONE_SUFFIXES
        return Listing({}, [root] if known else [])
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if deep and not name.startswith(".")]
        here = _list_names(Path(folder), names)
        media |= here.media
        alone += here.texts
    return Listing(dict(sorted(media.items())), sorted(alone))


def _list_names(folder: Path, names: list[str]) -> Listing:
    by_kind: dict[str, list[str]] = {"moving": [], "image": [], "text": []}
    for name in names:
        kind = _kind(name)
        if kind and (folder / name).is_file():
            by_kind[kind].append(name)
    texts = _texts_by_stem(by_kind["text"])
    stems = {os.path.splitext(name)[0] for name in by_kind["moving"]}
    images = [name for name in by_kind["image"] if os.path.splitext(name)[0] not in stems]
    media = {}
    for name in by_kind["moving"] + images:
        stem = os.path.splitext(name)[0]
        beside = min(texts.get(stem, ()), default=None)
        media[folder / name] = folder / beside[-1] if beside else None
        stems.add(stem)
    taken = {name for stem in stems for *_, name in texts.get(stem, ())}
    alone = [
        folder / name
        for name in by_kind["text"]
        if name not in taken and os.path.splitext(name)[1].lower() in ALONE_SUFFIXES
    ]
    return Listing(media, alone)


def _kind(name: str) -> str | None:
    suffix = os.path.splitext(name)[1].lower()
    if name.startswith("."):
        return None
    if suffix in VIDEO_SUFFIXES + AUDIO_SUFFIXES:
        return "moving"
    if suffix in IMAGE_SUFFIXES:
        return "image"
    return "text" if suffix in TEXT_SUFFIXES else None


def _texts_by_stem(names: list[str]) -> dict[str, list[tuple[bool, int, str]]]:
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
