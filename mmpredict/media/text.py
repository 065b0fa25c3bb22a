"""Text files to TextPieces, timed where the file has times, and back.

| suffix | becomes |
|---|---|
| .txt | one untimed piece per paragraph (paragraphs are parted by empty lines) |
| .srt .vtt | one timed piece per cue, in the order of the file; tags and markup removed |
| .json | Whisper's layout or a list of {"text", "start", "end"}; words if every segment has them |
| .jsonl | one piece per line: {"text", and start and end or neither} |
| video, sound | the cues of the subtitle track inside the file, on the file's clock; () if none |

Files are UTF-8, or UTF-16 with its mark. Paragraphs keep their text to the blank, save empty lines
around them and blanks at their end; timed pieces have no white space at their ends.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

from mmpredict.media.folder import AUDIO_SUFFIXES, TEXT_SUFFIXES, VIDEO_SUFFIXES
from mmpredict.media.limits import Limits, MediaError
from mmpredict.media.local import MediaBytes, open_local, source_path
from mmpredict.media.subtitles import plain, read_track
from mmpredict.media.writer import written_whole
from mmpredict.schema import TextPiece

TEXT_LIMITS = Limits(max_bytes=64 * 1024**2)
_CLOCK = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})(?:[.,](\d{1,9}))?"
_CUE_TIMES = re.compile(rf"^\s*{_CLOCK}\s*-->\s*{_CLOCK}(?:\s|$)")
_VTT_NOTES = ("WEBVTT", "NOTE", "STYLE", "REGION")
_PARAGRAPH_ENDS = re.compile(r"\n(?:[ \t]*\n)+")
_BLANKS = " \t\n"
_EXPECTED = (
    'expected a list of {"text", "start", "end"}, {"words": [{"word", "start", "end"}]} '
    'or {"segments": [{"text", "start", "end"}]}'
)


def read_text(
    source: str | PathLike[str] | MediaBytes, limits: Limits = TEXT_LIMITS
) -> tuple[TextPiece, ...]:
    """Read a text file by its suffix; see the table above.

    Args:
        source: a local file, or bytes whose name has the suffix.
        limits: what is too much of a text file (`max_bytes`); a media file has `Limits()`.

    Raises:
        MediaError: no text file, or a row that cannot be understood; names the line.
    """
    path = source_path(source)
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES + AUDIO_SUFFIXES:
        return read_track(source)
    text = _decoded(source, limits)
    if suffix == ".txt":
        paragraphs = _PARAGRAPH_ENDS.split(text)
        # Blanks at the start of a line are part of the text: verse, code.
        kept = (p.strip("\n").rstrip(_BLANKS) for p in paragraphs)
        return tuple(TextPiece(p) for p in kept if p)
    if suffix in (".srt", ".vtt"):
        return _cues(path, text)
    if suffix == ".json":
        try:
            return _from_json(path, json.loads(text))
        except (json.JSONDecodeError, RecursionError) as error:
            raise MediaError(path, f"not JSON: {error}") from error
    if suffix == ".jsonl":
        return _from_lines(path, text)
    raise MediaError(path, f"unknown kind of text {suffix!r}; known: {', '.join(TEXT_SUFFIXES)}")


def write_text(path: str | PathLike[str], texts: Iterable[TextPiece]) -> None:
    """Write pieces as paragraphs; `read_text` gives the same pieces without their times."""
    paragraphs = (
        _PARAGRAPH_ENDS.sub("\n", piece.text.strip("\n").rstrip(_BLANKS)) for piece in texts
    )
    _write(path, "\n\n".join(paragraph for paragraph in paragraphs if paragraph))


def write_srt(path: str | PathLike[str], texts: Iterable[TextPiece]) -> None:
    """Write the timed pieces as SubRip cues, to the millisecond; untimed ones are left out."""
    cues = []
    for piece in texts:
        if piece.start_s is None or piece.end_s is None or not piece.text.strip():
            continue
        text = re.sub(r"\n\s*\n", "\n", piece.text.strip())
        cues.append(
            f"{len(cues) + 1}\n{_srt_clock(piece.start_s)} --> {_srt_clock(piece.end_s)}\n{text}\n"
        )
    _write(path, "\n".join(cues))


def _write(path: str | PathLike[str], text: str) -> None:
    with written_whole(path) as file:
        file.write(text.encode("utf-8", errors="replace"))  # a lone surrogate has no UTF-8
        file.write(b"" if text.endswith("\n") or not text else b"\n")


def _srt_clock(time_s: float) -> str:
    seconds, milliseconds = divmod(round(max(0.0, time_s) * 1000), 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d},{milliseconds:03d}"


def _decoded(source: str | PathLike[str] | MediaBytes, limits: Limits) -> str:
    """The text of a file with plain line ends."""
    path = source_path(source)
    with open_local(source, limits) as file:
        raw = file.read()
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise MediaError(
            path,
            f"not {error.encoding}: byte 0x{raw[error.start]:02x} at {error.start}; "
            "convert it to UTF-8",
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _cues(path: Path, text: str) -> tuple[TextPiece, ...]:
    """SubRip and WebVTT alike: a line of times, then lines of text up to an empty line or the next
    cue."""
    pieces: list[TextPiece] = []
    rows: list[str] = []
    times: tuple[float, float] | None = None  # of the cue whose rows are being gathered

    def close() -> None:
        words = plain("\n".join(rows))
        if times is not None and words:
            pieces.append(TextPiece(words, *times))
        rows.clear()

    for number, line in enumerate(text.split("\n"), start=1):
        found = _CUE_TIMES.match(line)
        if found:
            if rows and times is not None and rows[-1].strip().isdigit():
                rows.pop()  # the next cue's number, where the empty line before it is missing
            close()
            times = _seconds(found.groups()[:4]), _seconds(found.groups()[4:])
            if times[1] < times[0]:
                raise MediaError(
                    path, f"line {number}: the cue ends before it starts: {line.strip()}"
                )
        elif "-->" in line and times is None and not line.startswith(_VTT_NOTES):
            raise MediaError(
                path,
                f"line {number}: {line.strip()[:60]!r} has no times like "
                "00:00:01,000 --> 00:00:02,500",
            )
        elif line.strip():
            rows.append(line)
        else:
            close()
            times = None
    close()
    if not pieces and "-->" not in text and not text.startswith("WEBVTT") and text.strip():
        raise MediaError(
            path, "line 1: no cue found; expected times like 00:00:01,000 --> 00:00:02,500"
        )
    return tuple(pieces)


def _seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, fraction = parts
    whole = int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0)
    return whole + (float(f"0.{fraction}") if fraction else 0.0)


def _from_json(path: Path, content: Any) -> tuple[TextPiece, ...]:
    rows, name = content, "row"
    if isinstance(content, dict):
        name = next(
            (key for key in ("segments", "words") if isinstance(content.get(key), list)), ""
        )
        if not name:
            raise MediaError(path, f"line 1: keys {sorted(content)[:8]}; {_EXPECTED}")
        rows = content[name]
        # Words say when each was spoken; a segment only says when all of them were over.
        if (
            name == "segments"
            and rows
            and all(isinstance(r, dict) and r.get("words") for r in rows)
        ):
            rows, name = [word for row in rows for word in row["words"]], "word"
    if not isinstance(rows, list):
        raise MediaError(path, f"line 1: a {type(rows).__name__}; {_EXPECTED}")
    pieces = (_piece(path, f"{name}[{number}]", row) for number, row in enumerate(rows))
    return tuple(piece for piece in pieces if piece is not None)


def _from_lines(path: Path, text: str) -> tuple[TextPiece, ...]:
    pieces = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise MediaError(path, f"line {number}: not JSON: {error}") from error
            piece = _piece(path, f"line {number}", row)
            if piece is not None:
                pieces.append(piece)
    return tuple(pieces)


def _piece(path: Path, where: str, row: Any) -> TextPiece | None:
    """One row of JSON; None if its text is empty."""
    text = row.get("text", row.get("word")) if isinstance(row, dict) else None
    if not isinstance(text, str):
        keys = sorted(row)[:8] if isinstance(row, dict) else type(row).__name__
        raise MediaError(
            path,
            f'{where}: got {keys}; expected "text" (or "word"), and "start" and '
            '"end" in seconds or neither',
        )
    start, end = row.get("start"), row.get("end")
    if not text.strip():
        return None
    if start is None and end is None:
        return TextPiece(text.strip())
    for value in (start, end):
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise MediaError(
                path,
                f"{where}: start {start!r} and end {end!r}; expected two numbers of "
                "seconds, or neither",
            )
    if end < start:
        raise MediaError(path, f"{where}: ends at {end} s, before its start {start} s")
    return TextPiece(text.strip(), float(start), float(end))
