"""What one media file holds and what a run would make of it.

In: a path, or a source that a folder or a manifest names, and a Plan. Out: a FileSurvey: measured
facts, documents and tokens, what is odd, what would be skipped and why. Nothing raises for a bad
file: it comes back with its reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from mmpredict.media import MediaError, MediaInfo, probe, read_text, texts_beside
from mmpredict.media.examine import examine
from mmpredict.media.facts import FileFacts
from mmpredict.schema import TextPiece
from mmpredict.shards.sources import Found
from mmpredict.survey.expected import Expected, Lost, Plan, text_tokens
from mmpredict.survey.oddities import Odd, odd_things
from mmpredict.tokens import TextTokens

SPAN_SLACK_S = 0.5  # a span may pass the header's length by so much, or by 2 %: headers round
UNUSED = "has no stream that the recipe uses"


@dataclass(frozen=True)
class TextFacts:
    """A text.

    Args:
        path: the file that it lies in.
        pieces, timed: how many pieces, and how many of them have times.
        characters: of all pieces.
        tokens: with END after each piece; bytes where the vocabulary is yet to be trained.
        first_s, last_s: span of the timed pieces; None without any.
        beyond: pieces that begin at the end of their medium or later.
        error: why it cannot be read; None if it can.
    """

    path: str
    pieces: int = 0
    timed: int = 0
    characters: int = 0
    tokens: int = 0
    first_s: float | None = None
    last_s: float | None = None
    beyond: int = 0
    error: str | None = None


@dataclass(frozen=True)
class FileSurvey:
    """All about one file, or one span of it.

    Args:
        name: as a person calls it: relative to its folder, with the span of a manifest's row.
        path: the file.
        kind: "video", "sound", "image" or "unreadable".
        bytes: size of the file.
        span_s: from which documents are cut: start and end on the file's clock, by its header.
        facts: what was measured of the file; None if it cannot be opened.
        text: the text that belongs to it, or None.
        documents: that a run gets from it.
        tokens: positions by stream.
        lost: documents that cannot be read.
        odd: what is unusual.
        notices: what the reader says.
        refused: why nothing of it can be used; None if something can.
        read_cpu_s: processor time to read one document, mean of first and last; 0 if none was.
    """

    name: str
    path: str
    kind: str
    bytes: int
    span_s: tuple[float, float] = (0.0, 0.0)
    facts: FileFacts | None = None
    text: TextFacts | None = None
    documents: int = 0
    tokens: dict[str, int] = field(default_factory=dict)
    lost: tuple[Lost, ...] = ()
    odd: tuple[Odd, ...] = ()
    notices: tuple[str, ...] = ()
    refused: str | None = None
    read_cpu_s: float = 0.0


Measured = tuple[MediaInfo, FileFacts]


def measure(path: Path, plan: Plan, *, decode: bool = False) -> Measured | str:
    """Header and facts of a file, or why there are none."""
    try:
        info = probe(path, plan.limits)
        return info, examine(path, decode=decode, limits=plan.limits)
    except MediaError as error:
        return error.reason
    except Exception as error:  # one bad file never stops a survey
        return f"cannot be inspected: {error} ({type(error).__name__})"


def survey_file(
    path: str | PathLike[str], plan: Plan | None = None, *, decode: bool = False
) -> FileSurvey:
    """Measure a media file and what a run would make of it.

    Args:
        path: a local file.
        plan: the run; None for the default encoders.
        decode: decode everything. Otherwise stamps are read, the first two minutes of sound are
            listened to, and the first and the last document are read as a run would.
    """
    plan, path = plan or Plan(), Path(path)
    source = Found(str(path), path, "media", texts_beside([path])[path])
    return survey_source(source, plan, measure(path, plan, decode=decode))


def survey_source(source: Found, plan: Plan, measured: Measured | str) -> FileSurvey:
    """What a run would make of a source.

    Args:
        source: a file or a span of one, and the text that belongs to it.
        plan: the run.
        measured: what `measure` says of the file.
    """
    path = source.path
    size = path.stat().st_size if path.is_file() else 0
    if isinstance(measured, str):
        return FileSurvey(source.name, str(path), "unreadable", size, refused=measured)
    info, facts = measured
    end_s = info.duration_s if source.end_s is None else min(source.end_s, info.duration_s)
    span_s = (source.start_s, end_s)
    reason = _wrong_span(source, info)
    if reason is not None:
        kind = _kind(info)
        return FileSurvey(source.name, str(path), kind, size, span_s, facts, refused=reason)
    expected = Expected(path, plan, info, facts, span_s)
    text, pieces = _text_of(source, plan, info)
    # Text of a manifest's row belongs to its span, text of a file to the file.
    text_span_s = span_s if source.texts is not None else (0.0, info.duration_s)
    expected.try_out()
    refused = _refused(expected, text)
    return FileSurvey(
        source.name,
        str(path),
        _kind(info),
        size,
        span_s,
        facts,
        text,
        0 if refused else len(expected.kept),
        {} if refused else expected.tokens(pieces, text_span_s),
        () if refused else tuple(expected.lost.values()),
        (*odd_things(facts, expected.video, expected.audio), *_odd_text(text)),
        tuple(expected.notices),
        refused,
        expected.read_cpu_s,
    )


def survey_text(path: Path, codec: TextTokens | None) -> TextFacts:
    """Read a text file."""
    try:
        return _text_facts(path, read_text(path), codec)
    except ValueError as error:
        return TextFacts(str(path), error=getattr(error, "reason", str(error)))


def _text_facts(
    path: Path, pieces: Sequence[TextPiece], codec: TextTokens | None, end_s: float | None = None
) -> TextFacts:
    timed = [piece for piece in pieces if piece.start_s is not None]
    return TextFacts(
        str(path),
        len(pieces),
        len(timed),
        sum(len(piece.text) for piece in pieces),
        sum(text_tokens(piece, codec) for piece in pieces),
        min((p.start_s for p in timed if p.start_s is not None), default=None),
        max((p.end_s for p in timed if p.end_s is not None), default=None),
        sum(end_s is not None and p.start_s is not None and p.start_s >= end_s for p in timed),
    )


def _text_of(
    source: Found, plan: Plan, info: MediaInfo
) -> tuple[TextFacts | None, Sequence[TextPiece] | None]:
    """The text that a manifest gives, else that of the file beside it, else its own subtitles."""
    codec = plan.codecs.text
    if codec is None:
        return None, None
    own = source.path if info.text_codec else None
    path = source.path if source.texts is not None else source.beside or own
    if path is None:
        return None, None
    try:
        pieces = source.texts if source.texts is not None else read_text(path)
        return _text_facts(path, pieces, codec, info.duration_s or None), pieces
    except ValueError as error:
        return TextFacts(str(path), error=getattr(error, "reason", str(error))), None


def _wrong_span(source: Found, info: MediaInfo) -> str | None:
    """Why a manifest's row cannot be used."""
    if source.weight == 0:
        return "its weight is 0"
    slack_s = max(SPAN_SLACK_S, 0.02 * info.duration_s)
    last_s = max(source.start_s, source.end_s or 0.0)
    if not info.still and last_s > info.duration_s + slack_s:
        return f"its span goes to {last_s:g} s, the file to {info.duration_s:.2f} s"
    return None


def _refused(expected: Expected, text: TextFacts | None) -> str | None:
    """Why nothing of a file can be used."""
    has_text = text is not None and text.error is None and text.tokens > 0
    if text is not None and text.error is not None:
        return f"{Path(text.path).name}: {text.error}"
    if expected.video is None and expected.audio is None:
        return None if has_text else UNUSED
    if not expected.kept and not has_text:
        return next(iter(expected.lost.values())).reason
    return None


def _odd_text(text: TextFacts | None) -> Iterable[Odd]:
    if text is not None and text.beyond:
        after = f"{text.beyond} of {text.pieces} pieces begin after the end"
        yield Odd("text beyond the end", after)


def _kind(info: MediaInfo) -> str:
    if info.still:
        return "image"
    return "video" if info.has_video else "sound"
