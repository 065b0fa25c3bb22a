"""The figure of the head comparison: every seed a point, every mean with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from heads_report import DEFAULT, KINDS, LAST, Figures

COLOURS = {"32": "#2f6f9f", "64": "#c8501e"}
PANELS = {
    "video energy score": "video/energy_score",
    "audio energy score": "audio/energy_score",
    f"valid after {LAST} frames": f"valid/{LAST}",
    **{kind.replace("_", " "): f"pairs/{kind}" for kind in KINDS},
    "video bits per value": "video/bits_per_value",
    "audio bits per value": "audio/bits_per_value",
    "text nats per token": "text/nats",
}
BETTER = {
    "video energy score": "lower",
    "audio energy score": "lower",
    "text nats per token": "lower",
}
BETTER |= {"video bits per value": "lower", "audio bits per value": "lower"}
GAP = 0.2  # between the two sizes of an arm


def draw(found: Figures, path: Path) -> None:
    """Write the figure as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9.2), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    arms = list(dict.fromkeys(arm for rows in found["arms"].values() for arm in rows))
    axes = figure.subplots(3, 4, sharey=True).ravel()
    for place, (title, name) in zip(axes, PANELS.items(), strict=True):
        for shift, (size, rows) in enumerate(found["arms"].items()):
            offset = GAP * (shift - 0.5 * (len(found["arms"]) - 1))
            _draw_arms(place, rows, arms, (name, size, offset))
        _dress(place, title, name, arms, found)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    print(f"wrote {path}")


def _draw_arms(
    axes: Any, rows: dict[str, Any], arms: list[str], what: tuple[str, str, float]
) -> None:
    """The arms of one size: interval, mean, seeds."""
    name, size, offset = what
    colour = COLOURS.get(size, "#555555")
    for k, arm in enumerate(arms):
        if arm not in rows:
            continue
        value, y = rows[arm][name], k + offset
        axes.plot([value["low"], value["high"]], [y, y], color=colour, lw=2.5, alpha=0.45)
        label = f"{size}x{size}" if k == 0 else None
        axes.plot(value["mean"], y, "|", ms=13, mew=2.5, color=colour, label=label)
        seeds = value["seeds"]
        axes.plot(seeds, [y] * len(seeds), "o", ms=4.5, mfc="white", mec=colour)


def _dress(axes: Any, title: str, name: str, arms: list[str], found: Figures) -> None:
    better = BETTER.get(title, "higher")
    axes.set_title(f"{title} ({better} is better)", fontsize=10)
    axes.set_yticks(range(len(arms)), arms, fontsize=10)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.axhspan(arms.index(DEFAULT) - 0.5, arms.index(DEFAULT) + 0.5, color="#f3efe6", zorder=0)
    axes.grid(axis="x", color="#dddddd", lw=0.7)
    axes.tick_params(labelsize=9)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    if name.startswith("pairs/"):
        axes.axvline(0.5, color="#888888", lw=1, ls="--")
    if name.startswith(("pairs/", "valid/")):
        axes.set_xlim(-0.03, 1.03)
    stream, what = name.split("/", 1)
    for size, rows in found["arms"].items():
        copied = next(iter(rows.values())).get(f"{stream}/copy_last/{what}")
        if copied:
            axes.axvline(copied["mean"], color=COLOURS.get(size, "#555555"), lw=1, ls=":")
