"""Which columns of a table hold what. In: its schema, as Hugging Face writes it. Out: one column of
media and those with text; printed, so that a wrong guess is seen.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

KINDS = ("video", "audio", "image")  # in the order in which a medium is chosen
TEXT_NAMES = (
    "text",
    "caption",
    "captions",
    "sentence",
    "transcription",
    "transcript",
    "transcripts",
    "normalized_text",
    "description",
    "title",
    "content",
    "prompt",
    "question",
    "answer",
    "instruction",
    "output",
)
_HINTS = {
    "video": ("video", "clip", "movie", "mp4"),
    "audio": ("audio", "sound", "speech", "wav", "mp3"),
    "image": ("image", "img", "picture", "photo", "png", "jpg", "jpeg"),
}


@dataclass(frozen=True)
class Columns:
    """What is read of a row.

    Args:
        kind: "video", "audio" or "image"; None for text alone.
        medium: the column with the media, a struct of bytes and path, bytes, or a path.
        texts: columns with text, in this order.
    """

    kind: str | None
    medium: str | None
    texts: tuple[str, ...]

    def __str__(self) -> str:
        medium = f"{self.kind} from {self.medium!r}" if self.medium else "no media"
        texts = "text from " + ", ".join(map(repr, self.texts)) if self.texts else "no text"
        return f"{medium}, {texts}"


@dataclass(frozen=True)
class Asked:
    """Columns that the user names; None leaves the choice to the schema."""

    video: str | None = None
    audio: str | None = None
    image: str | None = None
    texts: tuple[str, ...] | None = None


def find_columns(schema: Any, asked: Asked, wanted: Sequence[str], name: str) -> Columns:
    """Choose the columns of a table.

    Args:
        schema: a pyarrow schema.
        asked: what the user says.
        wanted: streams of the run: "video", "audio", "text".
        name: of the file, for messages.

    Raises:
        ValueError: a column that is not there or cannot be what it is said to be.
    """
    types = {field.name: _type(field.type) for field in schema}
    told = _told(schema.metadata)
    for column in (asked.video, asked.audio, asked.image, *(asked.texts or ())):
        if column is not None and column not in types:
            have = ", ".join(f"{name} ({kind})" for name, kind in types.items())
            raise ValueError(f"{name}: no column {column!r}; it has {have}")
    found: dict[str, str] = {}
    for kind in KINDS:
        column = getattr(asked, kind) or _guess(kind, types, told)
        if column is not None:
            if types[column] not in ("media", "bytes", "string"):
                raise ValueError(
                    f"{name}: column {column!r} is {types[column]}; {kind} is read from a struct "
                    "of bytes and path, from bytes, or from a path"
                )
            found[kind] = column
    usable = [k for k in KINDS if k in found and ("audio" if k == "audio" else "video") in wanted]
    # A video has sound of its own, so that a run on sound alone reads it, too.
    if "video" in found and "audio" in wanted and "video" not in usable and not usable:
        usable = ["video"]
    named = [k for k in usable if getattr(asked, k) is not None]
    kind = (named or usable or [None])[0]
    medium = found[kind] if kind else None
    texts = asked.texts if asked.texts is not None else _texts(types, medium is None)
    for column in texts:
        if types[column] not in ("string", "strings"):
            raise ValueError(f"{name}: column {column!r} is {types[column]}, not text")
    return Columns(kind, medium, tuple(t for t in texts if t != medium) if "text" in wanted else ())


def _type(of: Any) -> str:
    """A pyarrow type in our words."""
    import pyarrow.types as kinds

    if kinds.is_struct(of) and {field.name for field in of} >= {"bytes", "path"}:
        return "media"
    if kinds.is_binary(of) or kinds.is_large_binary(of):
        return "bytes"
    if kinds.is_string(of) or kinds.is_large_string(of):
        return "string"
    if kinds.is_list(of) and (
        kinds.is_string(of.value_type) or kinds.is_large_string(of.value_type)
    ):
        return "strings"
    return str(of)


def _told(metadata: Any) -> dict[str, str]:
    """What the file says of its columns in the way of Hugging Face: {"image": "Image"}."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature["_type"] for name, feature in features.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _guess(kind: str, types: dict[str, str], told: dict[str, str]) -> str | None:
    for column, said in told.items():
        if said.lower() == kind and types.get(column) in ("media", "bytes", "string"):
            return column
    for column, found in types.items():
        if column in told and told[column].lower() in KINDS:
            continue  # it is another kind
        if found in ("media", "bytes") and any(hint in column.lower() for hint in _HINTS[kind]):
            return column
    return None


def _texts(types: dict[str, str], alone: bool) -> tuple[str, ...]:
    """Columns that are text by their names; a table of one text column needs no name for it."""
    strings = [name for name, found in types.items() if found in ("string", "strings")]
    known = [name for name in TEXT_NAMES if name in strings]
    if not known and alone and len(strings) == 1:
        return tuple(strings)
    return tuple(known)
