"""Curves. In: metrics.csv. Out: one small SVG per measure of each stream, with its baselines."""

from __future__ import annotations

import csv
import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Points = list[tuple[float, float]]  # (step, value)

WIDTH, HEIGHT, LEFT = 340, 230, 44  # pixels of a panel, and where its curves begin
LINE = 17  # pixels of a line of the legend
LETTER = 6.3  # pixels, about, of the legend
TRAIN, HELD_OUT = "#8ab4f8", "#2f6fde"
BASELINES = ("#d9822b", "#2a9d63", "#a05fc4", "#c2405a")
MOST_POINTS = 400  # of a curve; more cannot be seen at this size
MOST_DOTS = 30
WIDE_RANGE = 30  # largest over smallest value from which the axis is logarithmic
ORDER = "audio video text"  # as in the table; others after them
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
    whole = {
        n
        for n in trained
        if re.sub(r"_(mean|flow|nats|latent)$", "", n) == n and n != "next_stream"
    }
    return sorted(validated | whole, key=lambda name: (ORDER.find(name) % 99, name))


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
    nats = {"training": f"train/loss/{name}_nats"}
    features = {"training": f"train/loss/{name}_latent"}
    said, target = (f"train/latent/{name}_rank_{which}" for which in ("said", "target"))
    return _kept(
        [
            Panel(
                "squared error of the mean",
                _pick(series, error),
                _baselines(series, name, "mse_of_mean"),
            ),
            Panel("energy score", _pick(series, score), _baselines(series, name, "energy_score")),
            Panel("flow-matching loss", _pick(series, flow), {}),
            Panel("nats of the mixture or codes", _pick(series, nats), {}),
            Panel("loss of the features", _pick(series, features), {}),
            Panel(
                "effective rank of the features",
                _pick(series, {"training": said}),
                _pick(series, {"target": target}),
            ),
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


@dataclass(frozen=True)
class Scale:
    """Maps values of one axis to pixels, from `low` to `high` onto `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = (math.log10(x) for x in (low, high, value))
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[float]:
        """Round numbers inside the axis."""
        if self.is_log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            decades = [10.0**n for n in range(first, last + 1)]
            factors = (1, 2, 5) if len(decades) < 5 else (1,)
            found = [f * d for d in decades for f in factors]
        else:
            rough = (self.high - self.low) / 6  # between 2 and 6 ticks
            size = 10.0 ** math.floor(math.log10(rough))
            step = next(f * size for f in (1, 2, 5, 10) if f * size >= rough)
            first, last = math.floor(self.low / step), math.ceil(self.high / step)
            found = [n * step for n in range(first, last + 1)]
        slack = 1e-9 * abs(self.high)
        return [tick for tick in found if self.low - slack <= tick <= self.high + slack]


def draw(panel: Panel) -> str:
    """The panel as an SVG element without outside references, in the colour of the page's text."""
    last = max(step for points in panel.solid.values() for step, _ in points) or 1.0
    drawn = [
        (label, points, TRAIN if label == "training" else HELD_OUT, "")
        for label, points in panel.solid.items()
    ]
    for (label, points), colour in zip(panel.dashed.items(), BASELINES * 9, strict=False):
        across = [(0.0, points[0][1]), *points, (max(last, points[-1][0]), points[-1][1])]
        drawn.append((label.replace("_", " "), across, colour, ' stroke-dasharray="6 4"'))
    legend, lines = _legend([(label, colour, dash) for label, _, colour, dash in drawn if label])
    x_scale, y_scale = _scales(drawn, last, top=28 + LINE * lines)
    parts = [_axes(x_scale, y_scale)]
    parts += [_curve(points, colour, dash, x_scale, y_scale) for _, points, colour, dash in drawn]
    parts.append(legend)
    title = html.escape(panel.title)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" role="img" aria-label="{title}" '
        'font-size="12" fill="currentColor">'
        f'<text x="4" y="14" font-weight="600">{title}</text>{"".join(parts)}</svg>'
    )


def _scales(
    drawn: Sequence[tuple[str, Points, str, str]], last: float, top: float
) -> tuple[Scale, Scale]:
    values = [value for _, points, _, _ in drawn for _, value in points]
    low, high = min(values), max(values)
    is_log = low > 0 and high / low > WIDE_RANGE
    if is_log:
        low, high = low / 1.15, high * 1.15
    else:
        room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        low, high = (0.0 if 0 <= low < high / 2 else low - room), high + room
    return Scale(0.0, last, LEFT, WIDTH - 12), Scale(low, high, HEIGHT - 24, top, is_log)


def _axes(x_scale: Scale, y_scale: Scale) -> str:
    parts = []
    for tick in y_scale.ticks:
        y = y_scale(tick)
        parts.append(
            f'<path d="M{LEFT} {y}H{WIDTH - 12}" stroke="currentColor" stroke-opacity=".13"/>'
            f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end" opacity=".7">{_short(tick)}</text>'
        )
    for tick in x_scale.ticks:
        parts.append(
            f'<text x="{x_scale(tick)}" y="{HEIGHT - 6}" text-anchor="middle" opacity=".7">'
            f"{_short(tick)}</text>"
        )
    return "".join(parts)


def _curve(points: Points, colour: str, dash: str, x_scale: Scale, y_scale: Scale) -> str:
    places = [(x_scale(step), y_scale(value)) for step, value in _thin(points)]
    line = " ".join(f"{x},{y}" for x, y in places)
    width = "1.3" if colour == TRAIN else "2"
    style = f'fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"{dash}'
    dots = ""
    if colour == HELD_OUT and len(places) <= MOST_DOTS:
        dots = "".join(f'<circle cx="{x}" cy="{y}" r="2.6" fill="{colour}"/>' for x, y in places)
    return f'<polyline points="{line}" {style}/>{dots}'


def _legend(labels: Sequence[tuple[str, str, str]]) -> tuple[str, int]:
    """The legend below the title, and its number of lines."""
    x, line, parts = 4.0, 1, []
    for label, colour, dash in labels:
        width = 38 + LETTER * len(label)
        if x + width > WIDTH + 12 and x > 4:
            x, line = 4.0, line + 1
        y = 14 + LINE * line
        parts.append(
            f'<path d="M{x:.0f} {y - 4}h18" stroke="{colour}" stroke-width="2"{dash}/>'
            f'<text x="{x + 23:.0f}" y="{y}">{html.escape(label)}</text>'
        )
        x += width
    return "".join(parts), line if labels else 0


def _short(tick: float) -> str:
    """At most six characters, which the left margin holds."""
    if abs(tick) >= 10_000:
        return f"{tick / 1000:.4g}k"
    plain = f"{tick:.4g}"
    return plain if len(plain) < 6 else f"{tick:.1e}".replace("e-0", "e-").replace(".0e", "e")


def _thin(points: Points) -> Points:
    """At most MOST_POINTS of them; each stands for the mean of its neighbours."""
    size = -(-len(points) // MOST_POINTS)
    if size == 1:
        return points
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(g[-1][0], sum(value for _, value in g) / len(g)) for g in groups]
