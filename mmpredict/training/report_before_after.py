"""The table of before and after. In: what before_after.json holds. Out: rows, for the terminal and
for report.html.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from mmpredict.training.report_table import number

FILE = "before_after.json"
MEASURES = ("nats_per_token", "energy_score", "mse_of_mean")
Row = tuple[str, str, float | None, float | None]  # data and stream, measure, before, after


def rows(found: Mapping[str, Any]) -> list[Row]:
    """The table's rows; beside the mean of the probes, its change with the standard error over
    families."""
    before, after = found["before"], found["after"]
    table: list[Row] = []
    for data, scores in after["scores"].items():
        for stream, mine in scores.items():
            if isinstance(mine, Mapping):
                then = before["scores"].get(data, {}).get(stream, {})
                table += [
                    (f"{data}: {stream}", m.replace("_", " "), then.get(m), mine[m])
                    for m in MEASURES
                    if m in mine
                ]
    pairs = [(before["probes"].get(n), value) for n, value in after["probes"].items()]
    if len(pairs) > 1 and all(first is not None for first, _ in pairs):
        first, last = (fmean(side) for side in zip(*pairs, strict=True))
        error = stdev(b - a for a, b in pairs) / math.sqrt(len(pairs))
        told = f"accuracy, {len(pairs)} families ({last - first:+.3f} +- {error:.3f})"
        table.append(("probes, smoke", told, first, last))
    return table


def change(first: float | None, last: float | None) -> str:
    if not first or last is None:
        return "-"
    return f"{(last - first) / first:+.1%}"


def print_table(table: list[Row]) -> None:
    """The table on the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(
        title=Text("before and after", style="bold"),
        caption=Text("validation documents; lower is better, of probes higher", style="dim"),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
    )
    for head in ("", "measure", "before", "after", "change"):
        shown.add_column(head, justify="right" if head in ("before", "after", "change") else "left")
    for what, measure, first, last in table:
        cells = (what, measure, number(first), number(last), change(first, last))
        shown.add_row(*(Text(cell) for cell in cells))
    Console(highlight=False).print(shown)


def html_section(run_dir: Path) -> str:
    """The same as HTML; "" where there is none."""
    try:
        found = json.loads((run_dir / FILE).read_text(encoding="utf-8"))
        table = rows(found)
    except (OSError, ValueError, KeyError, AttributeError):
        return ""
    lines = [
        f"<tr><td>{html.escape(what)}</td><td>{html.escape(measure)}</td>"
        f"<td class=n>{number(first)}</td><td class=n>{number(last)}</td>"
        f"<td class=n>{change(first, last)}</td></tr>"
        for what, measure, first, last in table
    ]
    head = "<th></th><th>measure</th><th class=n>before</th><th class=n>after</th><th></th>"
    note = "Validation documents before the first step and after the last; of probes, higher is "
    return (
        f'<p class="note">{note}better, of all else lower.</p><table><thead><tr>{head}</tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table>"
    )
