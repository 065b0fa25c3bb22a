"""The results for a reader: a plot of all families, and their tables. In: the dict of results.json.
Out: HTML for the report, without a script and without a network."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

from mmpredict.probes.table import baseline_names, cells, heads, notes

COLOURS = {"text": "#a05fc4", "audio": "#2a9d63", "video": "#2f6fde", "video+audio": "#d9822b"}
INK = "#80858e"  # can be read on light and on dark paper
LEFT, WIDTH, RIGHT = 150, 560, 20  # pixels
LINE, LANE, HEAD, FOOT = 17, 9, 30, 26
MARKS = "x+<>o"  # of baselines, in their order


def section(results: Mapping[str, Any], pictures: Mapping[str, bytes] | None = None) -> str:
    """All of it.

    Args:
        results: as in results.json.
        pictures: PNGs of matched sets, by their titles.
    """
    about = results["about"]
    note = (
        f"Suite {about['suite']}, {about['suite_sha'][:12]}. A point is the share of right answers "
        "with its 95 % interval (scenes resampled); the grey bar is chance, the small marks are "
        "baselines on the same items. Claims follow from the intervals, adjusted for the number of "
        "families."
    )
    parts = [f'<p class="note">{html.escape(note)}</p>', plot(results["variants"])]
    for variant, found in results["variants"].items():
        parts.append(f"<h3>evidence: {html.escape(variant)}</h3>{_table(found['families'])}")
        for name, words in notes(found["families"]):
            parts.append(f'<p class="note">{html.escape(f"{name}: {words}.")}</p>')
        if found["macro"] is not None:
            estimate, low, high = found["macro"]
            parts.append(
                f'<p class="note">Mean over families, 0 = chance, 1 = all right: {estimate:.3f} '
                f"[{low:.3f}, {high:.3f}]</p>"
            )
    return "".join(parts) + _sets(pictures or {})


def _sets(pictures: Mapping[str, bytes]) -> str:
    if not pictures:
        return ""
    note = (
        "Matched sets. Up to the grey line the clips that begin alike are the same, bit for bit; "
        "then the laws hold in some (blue) and not in the others (red). The lines are the model's "
        "surprise at each frame and chunk."
    )
    cards = "".join(
        f'<h3>{html.escape(title)}</h3><div class="card"><img alt="{html.escape(title)}" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}"></div>'
        for title, png in pictures.items()
    )
    return f'<p class="note">{note}</p>{cards}'


def plot(variants: Mapping[str, Any]) -> str:
    """SVG: families down, scores across, a lane for each form of the evidence."""
    families = list(dict.fromkeys(f for found in variants.values() for f in found["families"]))
    baselines = list(
        dict.fromkeys(n for found in variants.values() for n in baseline_names(found["families"]))
    )
    top = HEAD + LINE * _lines_of(baselines)
    parts, y = [_axis(top)], top
    for family in families:
        shown = [(v, found["families"][family]) for v, found in variants.items()
                 if found["families"].get(family, {}).get("score") is not None]  # fmt: skip
        height = max(LINE, LANE * len(shown) + 6)
        middle = y + height / 2
        parts.append(_text(LEFT - 8, middle + 4, family.replace("_", " "), "end"))
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y}" y2="{y}" stroke="{INK}" '
                     'stroke-opacity=".18"/>')  # fmt: skip
        for lane, (variant, entry) in enumerate(shown):
            at = middle + LANE * (lane - (len(shown) - 1) / 2)
            parts.append(_point(entry, at, COLOURS.get(variant, INK), baselines))
        y += height
    parts.append(_legend(list(variants), baselines))
    body = "".join(parts).replace("@BOTTOM@", f"{y}")
    size = f'viewBox="0 0 {WIDTH + RIGHT} {y + FOOT}" width="{WIDTH + RIGHT}"'
    return (
        f'<div class="card"><svg {size} role="img" aria-label="scores by family" '
        f'style="font:11px sans-serif">{body}</svg></div>'
    )


def _lines_of(baselines: Sequence[str]) -> int:
    return -(-len(baselines) // 3)


def _x(score: float) -> float:
    return LEFT + (WIDTH - LEFT) * min(1.0, max(0.0, score))


def _axis(top: float) -> str:
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x = _x(tick)
        parts.append(
            f'<line x1="{x}" x2="{x}" y1="{top}" y2="@BOTTOM@" stroke="{INK}" '
            f'stroke-opacity=".3"/>{_text(x, top - 5, f"{tick:g}", "middle")}'
        )
    return "".join(parts)


def _point(entry: Mapping[str, Any], y: float, colour: str, baselines: Sequence[str]) -> str:
    low, high = (_x(max(0.0, min(1.0, edge))) for edge in entry["interval"])
    chance, x = _x(entry["chance"]), _x(entry["score"])
    parts = [
        f'<line x1="{chance}" x2="{chance}" y1="{y - 5}" y2="{y + 5}" stroke="{INK}" '
        'stroke-width="3" stroke-opacity=".6"/>',
        f'<line x1="{low}" x2="{high}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>',
        f'<circle cx="{x}" cy="{y}" r="3.4" fill="{colour}"/>',
    ]
    for number, name in enumerate(baselines):
        score = entry["baselines"].get(name, {}).get("score")
        if score is not None:
            parts.append(_text(_x(score), y + 3.5, MARKS[number % len(MARKS)], "middle", colour))
    return "".join(parts)


def _legend(variants: Sequence[str], baselines: Sequence[str]) -> str:
    parts = []
    for number, variant in enumerate(variants):
        x = LEFT + 105 * number
        parts.append(f'<circle cx="{x + 4}" cy="8" r="3.4" fill="{COLOURS.get(variant, INK)}"/>')
        parts.append(_text(x + 12, 12, variant, "start"))
    for number, name in enumerate(baselines):
        mark = f"{MARKS[number % len(MARKS)]} {name}"
        parts.append(_text(LEFT + 140 * (number % 3), 12 + LINE * (1 + number // 3), mark, "start"))
    return "".join(parts)


def _text(x: float, y: float, words: str, anchor: str, colour: str = INK) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">'
        f"{html.escape(words)}</text>"
    )


def _table(families: Mapping[str, Mapping[str, Any]]) -> str:
    names = baseline_names(families)
    head = "".join(f'<th class="n">{html.escape(head)}</th>' for head in heads(names))
    rows = [f"<tr><th>family</th><th>claim</th>{head}</tr>"]
    for family, entry in families.items():
        kind = {"above": "better", "below": "worse"}.get(entry["claim"].split(" ")[0], "level")
        numbers = "".join(f'<td class="n">{cell}</td>' for cell in cells(entry, names))
        rows.append(
            f'<tr><td>{html.escape(family)}</td><td class="{kind}">{html.escape(entry["claim"])}'
            f"</td>{numbers}</tr>"
        )
    return f'<div class="wide"><table><tbody>{"".join(rows)}</tbody></table></div>'
