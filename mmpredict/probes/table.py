"""The results as Markdown. In: the dict of results.json. Out: lines; a view, nothing is computed.

One table per form of the evidence: families down, then the score with its interval, what a guess
gets, every baseline, and the claim that the intervals allow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NOTES = {
    "best constant": "the one number that is best over these very items, always said",
    "own majority": "knows how often each answer is right among these very items; more than "
    "anybody who has not seen their answers can know, and of small files far more",
}


def markdown(results: Mapping[str, Any]) -> str:
    """Tables of all variants, under a head that says what was measured."""
    head = results["about"]
    lines = [f"Suite {head['suite']} ({head['suite_sha'][:12]}), world {head['world_version']}, "]
    lines[0] += f"{head['model']}"
    for variant, found in results["variants"].items():
        families = found["families"]
        lines += ["", f"### Evidence: {variant}", "", *_table(families), ""]
        lines += [f"{name}: {note}." for name, note in notes(families)]
        if found["macro"] is not None:
            estimate, low, high = found["macro"]
            lines += [
                f"Mean over families, 0 = chance, 1 = all right: {estimate:.3f} "
                f"[{low:.3f}, {high:.3f}]; middle half of the families: {found['iqm']:.3f}."
            ]
    return "\n".join(lines) + "\n"


def _table(families: Mapping[str, Mapping[str, Any]]) -> list[str]:
    names = baseline_names(families)
    rows = [["family", *heads(names), "claim"]]
    rows += [[f, *cells(entry, names), entry["claim"]] for f, entry in families.items()]
    rule = ["---", *("---:" for _ in rows[0][1:-1]), "---"]
    return ["| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:])]


def notes(families: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What must be known of baselines that have seen the answers."""
    return [(name, NOTES[name]) for name in baseline_names(families) if name in NOTES]


def baseline_names(families: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """In the order in which they come first."""
    return list(dict.fromkeys(n for entry in families.values() for n in entry["baselines"]))


def heads(baselines: Sequence[str]) -> list[str]:
    """Of the columns that `cells` fills."""
    shown = ["items", "scenes", "score", "95 %", "chance", "all of a group"]
    return [*shown, *baselines, "ties"]


def cells(entry: Mapping[str, Any], baselines: Sequence[str]) -> list[str]:
    """A family's numbers as they are printed; blank where it could not be asked."""
    if entry["score"] is None:
        return ["0", *("" for _ in heads(baselines)[1:])]
    low, high = entry["interval"]
    beside = [entry["baselines"].get(name, {}).get("score") for name in baselines]
    return [
        f"{entry['n']}" + (f" (+{entry['errors']} errors)" if entry["errors"] else ""),
        str(entry["clusters"]),
        f"{entry['score']:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{entry['chance']:.3f}",
        _group(entry),
        *("" if score is None else f"{score:.3f}" for score in beside),
        f"{100 * entry['tie_rate']:.0f} %",
    ]


def _group(entry: Mapping[str, Any]) -> str:
    if "group_score" not in entry:
        return ""
    return f"{entry['group_score']:.3f} ({entry['group_chance']:.3f})"
