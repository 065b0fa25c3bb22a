"""Which files of a folder are media."""

from __future__ import annotations

import os
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
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
MEDIA_SUFFIXES = VIDEO_SUFFIXES + AUDIO_SUFFIXES + IMAGE_SUFFIXES


def list_media(root: str | PathLike[str]) -> list[Path]:
    """All video, sound and image files under `root`, by suffix, sorted by path.

    Hidden files and folders (a leading dot) are skipped and folder links not followed, so that a
    circle of links cannot hang it. A `root` that is itself a media file is the only one listed.
    """
    root = Path(root)
    if not root.exists():
        raise ValueError(f"{root}: no such folder")
    if root.is_file():
        return [root] if _is_media(root.name) else []
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [
            Path(folder, name) for name in names if _is_media(name) and Path(folder, name).is_file()
        ]
    return sorted(found)


def _is_media(name: str) -> bool:
    suffix = os.path.splitext(name)[1].lower()
    return not name.startswith(".") and suffix in MEDIA_SUFFIXES
