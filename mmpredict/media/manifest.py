"""A list of files with spans, captions, speakers and weights: one JSON object a line.

In: a .jsonl file. Out: ManifestRows, in its order.

| key | meaning |
|---|---|
| path | the file; relative paths count from the manifest's folder and stay inside it |
| start, end | the span, in seconds on the file's clock; without them the whole file |
| text | what belongs to the span as a whole, without times |
| captions | [{"text", "start", "end", "speaker"}], in seconds on the file's clock |
| speaker | stands before each text: "Anna: Hello"; a caption's own counts first |
| weight | how often the row is drawn, against 1 for the others; 0 leaves it out |
| id | a name of the row, of its own |

Only "path" must be there. A file outside the folder must be named by its absolute path, and
addresses (http:, concat:, pipe:, file:) are refused: a manifest from elsewhere can lead neither to
other files by accident nor to a network.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

from mmpredict.media.limits import Limits, MediaError
from mmpredict.media.local import open_local
from mmpredict.schema import TextPiece

_ROW_KEYS = ("path", "start", "end", "text", "captions", "speaker", "weight", "id")
_CAPTION_KEYS = ("text", "start", "end", "speaker")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")
_SHOWN = 80  # characters of a wrong value


@dataclass(frozen=True)
class ManifestRow:
    """A span of a file, and what is known of it.

    Args:
        path: the file; nobody has looked whether it exists.
        start_s, end_s: seconds on the file's clock; an end of None is the file's own.
        texts: the untimed text first, then the captions with times on the file's clock; speakers
            stand before what they say.
        weight: how often it is drawn, against 1; 0 for never.
        id: its name, or "".
        line: where it stands in the manifest, from 1.
    """

    path: Path
    start_s: float = 0.0
    end_s: float | None = None
    texts: tuple[TextPiece, ...] = ()
    weight: float = 1.0
    id: str = ""
    line: int = 0


@dataclass(frozen=True)
class _Line:
    """One line on its way to a row; knows where it stands."""

    manifest: Path
    number: int
    row: dict[str, Any]
    where: str = ""

    def refuse(self, reason: str) -> NoReturn:
        raise MediaError(self.manifest, f"line {self.number}: {self.where}{reason}")

    def check_keys(self, known: tuple[str, ...]) -> None:
        for key in self.row:
            if key not in known:
                close = difflib.get_close_matches(key, known, 1)
                hint = f'; did you mean "{close[0]}"?' if close else ""
                self.refuse(f"unknown key {_shown(key)}{hint} Known: {', '.join(known)}")

    def words(self, key: str) -> str | None:
        """A text that is there and not blank, or None if the key is absent."""
        value = self.row.get(key)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            self.refuse(f'"{key}" is {_shown(value)}; it must be a text that is not blank')
        return value

    def number_of(self, key: str, missing: str | None = None) -> float | None:
        """A number from 0 up, or None if the key is absent; `missing` is what to say then."""
        value = self.row.get(key)
        if value is None:
            if missing:
                self.refuse(f'"{key}" is missing; {missing}')
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(f'"{key}" is {_shown(value)}; it must be a number')
        if not (0 <= value < math.inf):
            self.refuse(f'"{key}" is {_shown(value)}; it must be 0 or more')
        return float(value)


def read_manifest(path: str | PathLike[str], limits: Limits | None = None) -> list[ManifestRow]:
    """Read a manifest; see the table above.

    Spans are not held against the files here: that needs their headers, and reading them does it.

    Args:
        path: a local .jsonl file in UTF-8.
        limits: of these, `max_bytes` counts.

    Raises:
        MediaError: a row that cannot be understood; names the line and the remedy.
    """
    path = Path(path)
    rows: list[ManifestRow] = []
    lines: dict[str, int] = {}
    with open_local(path, limits or Limits()) as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            row = _row(_parsed(path, number, raw))
            if row.id in lines:
                raise MediaError(
                    path, f"line {number}: id {_shown(row.id)} is that of line {lines[row.id]} too"
                )
            if row.id:
                lines[row.id] = number
            rows.append(row)
    return rows


def _parsed(path: Path, number: int, raw: bytes) -> _Line:
    try:
        row = json.loads(
            raw.decode(), object_pairs_hook=_without_twins, parse_constant=_no_constant
        )
    except UnicodeDecodeError as error:
        raise MediaError(
            path, f"line {number}: not utf-8: byte 0x{raw[error.start]:02x} at {error.start}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise MediaError(path, f"line {number}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise MediaError(
            path, f'line {number}: {_shown(row)}; expected an object like {{"path": "a.mp4"}}'
        )
    return _Line(path, number, row)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return row


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _row(line: _Line) -> ManifestRow:
    line.check_keys(_ROW_KEYS)
    start_s, end_s = line.number_of("start") or 0.0, line.number_of("end")
    if end_s is not None and end_s <= start_s:
        line.refuse(f'"end" is {end_s:g} s, not after "start" at {start_s:g} s')
    weight = line.number_of("weight")
    return ManifestRow(
        _path(line),
        start_s,
        end_s,
        _texts(line),
        1.0 if weight is None else weight,
        line.words("id") or "",
        line.number,
    )


def _path(line: _Line) -> Path:
    """A local path; what leaves the manifest's folder must say so by being absolute."""
    given = line.words("path")
    if given is None:
        line.refuse('"path" is missing; it names the file')
    if "\0" in given:
        line.refuse(f'"path" {_shown(given)} has a NUL in it')
    if _SCHEME.match(given):
        line.refuse(
            f'"path" {_shown(given)} is an address; only local files are read: fetch it and give '
            'its path (a file of this very name is "./<name>")'
        )
    if given.startswith("~"):
        line.refuse(f'"path" {_shown(given)}: "~" is not expanded; write the whole path')
    folder = line.manifest.parent
    if os.path.isabs(given):
        return Path(given)
    if os.path.normpath(given).split(os.sep)[0] == os.pardir:
        line.refuse(
            f'"path" {_shown(given)} leaves the folder of the manifest; give an absolute path '
            "if it is meant"
        )
    return folder / os.path.normpath(given)


def _texts(line: _Line) -> tuple[TextPiece, ...]:
    speaker, text = line.words("speaker"), line.words("text")
    pieces = [TextPiece(_said(speaker, text))] if text is not None else []
    captions = line.row.get("captions")
    if captions is None:
        captions = []
    if not isinstance(captions, list):
        line.refuse(f'"captions" is {_shown(captions)}; expected [{{"text", "start", "end"}}]')
    for index, caption in enumerate(captions):
        if not isinstance(caption, dict):
            line.refuse(f'captions[{index}] is {_shown(caption)}; expected {{"text", ...}}')
        cue = _Line(line.manifest, line.number, caption, f"captions[{index}]: ")
        cue.check_keys(_CAPTION_KEYS)
        words = cue.words("text")
        if words is None:
            cue.refuse('"text" is missing')
        both = 'a caption has its times; a text without them is "text" of the row'
        start_s, end_s = cue.number_of("start", both), cue.number_of("end", both)
        assert start_s is not None and end_s is not None
        if end_s < start_s:
            cue.refuse(f"ends at {end_s:g} s, before its start at {start_s:g} s")
        pieces.append(TextPiece(_said(cue.words("speaker") or speaker, words), start_s, end_s))
    return tuple(pieces)


def _said(speaker: str | None, text: str) -> str:
    return f"{speaker.strip()}: {text.strip()}" if speaker else text.strip()


def _shown(value: Any) -> str:
    """A wrong value for a message, on one line and not too long."""
    text = ascii(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
