"""The survey of a folder as lines of text."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from mmpredict.survey.expected import Plan
from mmpredict.survey.folder import FolderSurvey
from mmpredict.survey.page_file import gives
from mmpredict.survey.page_rows import LABEL, counted, listed, many, names, row, size, span
from mmpredict.survey.source import TextFacts

EXAMPLES = 3  # files named for each thing that is odd
REMEDIES = {
    "long GOP": "random access is slow; `mmpredict prepare --encode` cures it",
    "late sound": "kept so when read; is it meant?",
    "late picture": "kept so when read; is it meant?",
    "wrong duration in header": "documents after the end are skipped",
}


def folder_page(
    survey: FolderSurvey, plan: Plan, *, decode: bool = False, show_all: bool = False
) -> list[str]:
    """What a folder holds, added up."""
    whole = f"{_unit(survey)} of {'a manifest' if _unit(survey) == 'row' else 'media'}"
    lines = [f"{survey.root}: {many(survey.found, whole)}"]
    lines += row("looked at", looked_at(survey, decode))
    lines += ["", *kinds_table(survey), ""]
    seen = {
        "pictures": survey.pictures,
        "frames a s": survey.frame_rates,
        "sounds": survey.sounds,
        "codecs": survey.codecs,
    }
    for name, counts in seen.items():
        if counts:
            lines += row(name, counted(counts))
    lines += row("missing", missing(survey))
    if survey.texts_alone:
        lines += row("text alone", alone(survey.texts_alone))
    if survey.other_files:
        lines += row("not read", f"other files: {counted(survey.other_files)}")
    lines += gives(survey.documents, survey.tokens, plan)
    if survey.documents:
        lines += row("an epoch", estimate(survey, plan))
    longest = plan.longest
    if longest > plan.context_length:
        lines += row(
            "too long",
            f"a document of {plan.clip_seconds:g} s is {longest:,} positions, a row has "
            f"{plan.context_length:,}: raise data.loading.context_length, or take shorter clips, "
            "smaller frames, fewer of them or larger patches",
        )
    lines += odd_rows(survey, show_all)
    lines += listed("skipped", _unit(survey), survey.skipped, show_all)
    if survey.lost:
        what = f"document of {_unit(survey)}s that are otherwise read"
        lines += listed("in part", what, survey.lost, show_all)
    return lines


def _unit(survey: FolderSurvey) -> str:
    """What is surveyed one by one."""
    return "file" if os.path.isdir(survey.root) else "row"


def looked_at(survey: FolderSurvey, decode: bool) -> str:
    count = len(survey.files)
    which = "all" if count == survey.found else f"{count:,} of them, spread evenly"
    how = "everything decoded from start to end"
    if not decode:
        how = "stamps of all packets, sound, the first and the last document (--decode decodes all)"
    return f"{which}: {how}"


def kinds_table(survey: FolderSurvey) -> list[str]:
    """Files, length, frames and size by kind."""
    lines = [f"  {'':<{LABEL}}{'files':>9}{'length':>14}{'frames':>14}{'size':>10}"]
    for name, kind in survey.kinds.items():
        if kind.files:
            frames = f"{kind.frames:,}" if kind.frames else "-"
            length = span(kind.seconds) if name in ("video", "sound") else "-"
            figures = f"{kind.files:>9,}{length:>14}{frames:>14}{size(kind.bytes):>10}"
            lines.append(f"  {name:<{LABEL}}{figures}")
    return lines


def missing(survey: FolderSurvey) -> str:
    """Which streams how many files lack."""
    parts = []
    for words, count in sorted(survey.missing.items()):
        lack, _, kind = words.rpartition(": ")
        parts.append(f"{many(count, kind)} {lack}")
    return ", ".join(parts) or "no stream"


def alone(texts: Sequence[TextFacts]) -> str:
    """Text files that belong to no medium."""
    good = [text for text in texts if text.error is None]
    characters, tokens = sum(t.characters for t in good), sum(t.tokens for t in good)
    words = f"{many(len(texts), 'file without a medium')}, {characters:,} characters"
    bad = len(texts) - len(good)
    return f"{words}, {tokens:,} tokens" + (f"; {bad:,} unreadable" if bad else "")


def estimate(survey: FolderSurvey, plan: Plan) -> str:
    """Steps and cost of seeing everything once."""
    scale = survey.found / max(1, len(survey.files))
    about = "about " if scale > 1 else ""
    steps = max(1, math.ceil(survey.steps * scale))
    return (
        f"{about}{many(steps, 'step')} of {plan.rows} rows of {plan.context_length:,} positions, "
        "for training, validation and test together; to read all documents one by one takes "
        f"{about}{span(survey.read_cpu_s * scale)} of one core"
    )


def odd_rows(survey: FolderSurvey, show_all: bool) -> list[str]:
    """What is unusual, kind by kind, the commonest first."""
    lines: list[str] = []
    for kind, found in sorted(survey.odd.items(), key=lambda item: -len(item[1])):
        remedy = f" ({REMEDIES[kind]})" if kind in REMEDIES else ""
        lines += row("note", f"{kind}: {many(len(found), _unit(survey))}{remedy}")
        lines += names(found, show_all, first=EXAMPLES)
    return lines
