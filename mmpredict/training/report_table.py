"""The closing table. In: the dict of results.json. Out: rows, for the terminal and for report.html.

Every measure is lower-is-better, so a model earns its place in a row only by a smaller number.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LEVEL = 0.01  # differences below this share are not worth a claim


@dataclass(frozen=True)
class Row:
    """One measure of one stream beside its baselines; `verdicts` has one entry per baseline."""

    stream: str
    measure: str
    model: float | None
    baselines: Mapping[str, float | None]

    @property
    def verdicts(self) -> list[str]:
        return [verdict(self.model, value) for value in self.baselines.values()]


def table_rows(results: Mapping[str, Any]) -> list[Row]:
    """The rows of every stream that `results` has."""
    return [row for name, scores in _streams(results) for row in _rows_of(name, scores)]


def _streams(results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, scores in results.items():
        if isinstance(scores, Mapping):
            yield name, scores


def _rows_of(name: str, scores: Mapping[str, Any]) -> Iterator[Row]:
    baselines = scores.get("baselines", {})
    for measure, model in scores.items():
        if measure == "baselines":
            continue
        beside = {
            _plain(b): value.get(measure) if isinstance(value, Mapping) else value
            for b, value in baselines.items()
        }
        yield Row(name, _plain(measure), model, beside)


def verdict(model: float | None, baseline: float | None) -> str:
    """How the model stands to a baseline, in words that claim no more than the numbers."""
    if not _known(model) or not _known(baseline) or baseline <= 0:
        return "no comparison"
    gain = (baseline - model) / baseline
    if abs(gain) < LEVEL:
        return "level with it"
    if gain < -1:
        return f"worse, {model / baseline:.1f} times it"
    percent = abs(gain) * 100
    shown = f"{percent:.1f}" if percent < 10 else f"{percent:.0f}"
    return f"{'better' if gain > 0 else 'worse'} by {shown} %"


def number(value: float | None) -> str:
    """Three significant digits; a dash for what is not known."""
    return f"{value:#.3g}" if _known(value) else "-"


def caption(results: Mapping[str, Any]) -> str:
    """How much was scored, and how long the training took."""
    parts = [f"{results.get('held_out_scenes', 0):,} held-out documents; lower is better"]
    seconds = results.get("seconds")
    if _known(seconds):
        parts.append(f"trained for {seconds:,.1f} s")
    if any("energy_score" in scores for _, scores in _streams(results)):
        parts.append("all but text in standard deviations of the training data")
    return "; ".join(parts)


def print_table(results: Mapping[str, Any], title: str) -> None:
    """The table on the terminal, at most 80 columns wide."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title, style="bold"),
        caption=Text(caption(results), style="dim"),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
    )
    for head in ("stream", "measure", "model", "baseline", "", "the model is"):
        table.add_column(head, justify="right" if head in ("model", "") else "left", no_wrap=True)
    for row in table_rows(results):
        cells = (
            row.stream,
            row.measure,
            number(row.model),
            "\n".join(row.baselines),
            "\n".join(number(value) for value in row.baselines.values()),
            "\n".join(row.verdicts),
        )
        table.add_row(*(Text(cell) for cell in cells))
    Console(highlight=False).print(table)


def html_table(results: Mapping[str, Any]) -> str:
    """The same table as HTML."""
    parts = [
        "<table><thead><tr><th>stream</th><th>measure</th><th class=n>model</th><th>baseline</th>"
        "<th class=n></th><th>the model is</th></tr></thead>"
    ]
    for row in table_rows(results):
        span = max(1, len(row.baselines))
        lines = list(zip(row.baselines.items(), row.verdicts, strict=True)) or [(("", None), "")]
        parts.append("<tbody>")
        for i, ((name, value), said) in enumerate(lines):
            kind = said.replace(",", "").partition(" ")[0] or "no"
            left = (
                f"<td rowspan={span}>{html.escape(row.stream)}</td>"
                f"<td rowspan={span}>{html.escape(row.measure)}</td>"
                f"<td rowspan={span} class=n><b>{number(row.model)}</b></td>"
            )
            parts.append(
                f"<tr>{left if i == 0 else ''}<td>{html.escape(name)}</td>"
                f"<td class=n>{number(value)}</td><td class={kind}>"
                f"{html.escape(said)}</td></tr>"
            )
        parts.append("</tbody>")
    return "".join(parts) + f"</table><p class=note>{html.escape(caption(results))}</p>"


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
