"""Curves. In: metrics.csv. Out: one small SVG per measure of each stream, its baselines on the same axes."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Points = list[tuple[float, float]]  # (step, value)

INK = "#010203"  # stands for the text colour of the page, which is light or dark
TRAIN, HELD_OUT = "#8ab4f8", "#2f6fde"
BASELINES = ("#d9822b", "#2a9d63", "#a05fc4", "#c2405a")
MOST_POINTS = 800  # of a curve; more cannot be seen at this size
WIDE_RANGE = 30  # largest over smallest value from which the axis is logarithmic
OTHERS = {"train/loss/next_stream": "whose turn is next (nats)", "train/lr": "learning rate"}


@dataclass(frozen=True)
class Panel:
    """One set of axes: `solid` are curves of the model, `dashed` its baselines, both by label."""

    title: str
    solid: Mapping[str, Points]
    dashed: Mapping[str, Points]


def read_metrics(path: Path) -> dict[str, Points]:
    """Every metric as (step, value); empty without the file. Damaged cells are left out."""
    series: dict[str, Points] = {}
    if not path.is_file():
        return series
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            step = _float(row.get("step"))
            for name, cell in row.items():
                value = _float(cell) if name not in (None, "step", "epoch") else None
                if step is not None and value is not None:
                    series.setdefault(name, []).append((step, value))
    return {name: sorted(points) for name, points in series.items()}


def _float(cell: str | None) -> float | None:
    try:
        value = float(cell) if cell else None
    except (TypeError, ValueError):
        return None
    return value if value is not None and abs(value) != float("inf") and value == value else None


def stream_names(series: Mapping[str, Points]) -> list[str]:
    """The streams that the metrics speak of."""
    validated = {m[1] for name in series if (m := re.match(r"val/([^/]+)/", name))}
    trained = {m[1] for name in series if (m := re.match(r"train/loss/([^/]+)$", name))}
    whole = {n for n in trained if re.sub(r"_(mean|flow)$", "", n) == n and n != "next_stream"}
    return sorted(validated | whole)


def panels(series: Mapping[str, Points], name: str) -> list[Panel]:
    """The axes of one stream; what was not logged is left out."""
    is_text = f"val/{name}/nats_per_token" in series or f"train/loss/{name}_mean" not in series
    if is_text and f"val/{name}/mse_of_mean" not in series:
        baselines = {
            m[1]: points
            for key, points in series.items()
            if (m := re.match(rf"val/{re.escape(name)}/([^/]+)$", key)) and m[1] != "nats_per_token"
        }
        solid = {"training": f"train/loss/{name}", "held out": f"val/{name}/nats_per_token"}
        return _kept([Panel("nats per token", _pick(series, solid), baselines)])
    error = {"training": f"train/loss/{name}_mean", "held out": f"val/{name}/mse_of_mean"}
    score = {"held out": f"val/{name}/energy_score"}
    flow = {"training": f"train/loss/{name}_flow"}
    return _kept(
        [
            Panel(
                "squared error of the mean",
                _pick(series, error),
                _baselines(series, name, "mse_of_mean"),
            ),
            Panel("energy score", _pick(series, score), _baselines(series, name, "energy_score")),
            Panel("flow-matching loss", _pick(series, flow), {}),
        ]
    )


def other_panels(series: Mapping[str, Points]) -> list[Panel]:
    """What belongs to no stream."""
    return _kept([Panel(title, _pick(series, {"": key}), {}) for key, title in OTHERS.items()])


def _kept(found: Sequence[Panel]) -> list[Panel]:
    return [panel for panel in found if panel.solid]


def _pick(series: Mapping[str, Points], keys: Mapping[str, str]) -> dict[str, Points]:
    return {label: series[key] for label, key in keys.items() if key in series}


def _baselines(series: Mapping[str, Points], name: str, measure: str) -> dict[str, Points]:
    pattern = re.compile(rf"val/{re.escape(name)}/([^/]+)/{measure}$")
    return {m[1]: points for key, points in series.items() if (m := pattern.match(key))}


def draw(panel: Panel) -> str:
    """The panel as an SVG element without outside references; its text takes the page's colour."""
    import matplotlib
    from matplotlib.figure import Figure

    settings = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    settings |= dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "text.color"), INK)
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.6, 2.7))
        figure.subplots_adjust(left=0.13, right=0.98, top=0.88, bottom=0.13)
        axes = figure.subplots()
        _plot(axes, panel)
        axes.set_title(panel.title, loc="left", fontsize=9.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.15, color=INK)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 width="100%" role="img"', svg, count=1)
    return svg.replace(INK, "currentColor")


def _plot(axes: object, panel: Panel) -> None:
    """Lines of the model, dashed lines of the baselines drawn over the whole width, and a legend."""
    last = max(step for points in panel.solid.values() for step, _ in points)
    for label, points in panel.solid.items():
        x, y = zip(*_thin(points), strict=True)
        style = {"color": TRAIN, "lw": 1.1} if label == "training" else {"color": HELD_OUT, "lw": 1.9}
        marker = "o" if label == "held out" and len(points) < 30 else None
        axes.plot(x, y, label=label or None, marker=marker, ms=3, **style)
    for (label, points), colour in zip(panel.dashed.items(), BASELINES * 9, strict=False):
        points = [(0.0, points[0][1]), *points, (max(last, points[-1][0]), points[-1][1])]
        x, y = zip(*_thin(points), strict=True)
        axes.plot(x, y, label=label.replace("_", " "), color=colour, lw=1.3, ls=(0, (4, 3)))
    lines = [*panel.solid.values(), *panel.dashed.values()]
    values = [value for points in lines for _, value in points]
    if min(values) > 0 and max(values) / min(values) > WIDE_RANGE:
        axes.set_yscale("log")
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)


def _thin(points: Points) -> Points:
    """At most MOST_POINTS of them; each stands for the mean of its neighbours."""
    size = -(-len(points) // MOST_POINTS)
    if size == 1:
        return points
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(g[-1][0], sum(value for _, value in g) / len(g)) for g in groups]
