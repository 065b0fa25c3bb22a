"""What a preparation has to say at its end. In: its Summary. Out: plain JSON, lines, exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mmpredict.shards.prepare import Summary

LISTED = 20  # skipped sources that are named; the index names all
MIN_BAD = 10  # a share of bad sources says little of a handful
DONE, TOO_BAD = 0, 2


def plain(summary: Summary, left_alone: Mapping[str, int], seconds: float) -> dict[str, Any]:
    """The summary as JSON; every skipped source by name."""
    row = asdict(replace(summary, tokens=Counter()))
    row["tokens"] = dict(sorted(summary.tokens.items()))
    row["skipped_by_kind"] = dict(_counts(summary))
    row["left_alone"] = dict(sorted(left_alone.items()))
    row["seconds"] = round(seconds, 3)
    return row


def told(summary: Summary, out: Path, left_alone: Mapping[str, int], seconds: float) -> list[str]:
    """The summary for a person."""
    made = [f"{summary.converted} converted", f"{summary.unchanged} unchanged"]
    made += [f"{summary.removed} gone"] if summary.removed else []
    lines = [
        f"{out}: {summary.samples} samples of {summary.used} sources in {summary.shards} shards, "
        f"{summary.bytes / 1e6:.1f} MB ({', '.join(made)}; {seconds:.1f} s)"
    ]
    if summary.tokens:
        counts = ", ".join(f"{name} {count:,}" for name, count in sorted(summary.tokens.items()))
        lines.append(f"tokens: {counts}")
    if left_alone:
        kinds = ", ".join(f"{shown(what)} {n}" for what, n in sorted(left_alone.items()))
        lines.append(f"left alone: {kinds}")
    if summary.skipped:
        counts = ", ".join(f"{what} {count}" for what, count in _counts(summary).items())
        lines.append(f"skipped, of {summary.bad_sources} sources: {counts}")
        listed = summary.skipped[:LISTED]
        lines += [f"  {shown(skip.path)}: {shown(skip.reason)}" for skip in listed]
        rest = len(summary.skipped) - LISTED
        lines += [f"  ... and {rest} more in the index"] if rest > 0 else []
    return lines


def shown(text: str) -> str:
    """A name that a stranger chose, safe for a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _counts(summary: Summary) -> dict[str, int]:
    """How often each kind of reason in each modality."""
    counts = Counter(f"{skip.kind} {skip.modality}" for skip in summary.skipped)
    return dict(sorted(counts.items()))


def exit_code(summary: Summary, max_skipped: float) -> tuple[int, str]:
    """The exit code, and why it is not 0.

    Too much is bad if nothing can be used, or if more than the share `max_skipped` of the sources
    is bad, and that is at least MIN_BAD of them or more than half.
    """
    bad, total = summary.bad_sources, summary.sources
    if not summary.samples:
        return TOO_BAD, f"none of {total} sources can be used"
    if bad > max_skipped * total and (bad >= MIN_BAD or bad > total / 2):
        return TOO_BAD, (
            f"{bad} of {total} sources cannot be used, over --max_skipped {max_skipped:g}; "
            "the shards hold the rest"
        )
    return DONE, ""
