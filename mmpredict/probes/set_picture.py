"""One matched set as a picture: the frames of each clip, and under them how surprised the model is
at each moment. In: a voe item, its clips as filmed, its curves. Out: a PNG.

Lettering and lines are greys and colours that can be read on light and on dark paper.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from mmpredict.probes.items import Item
from mmpredict.probes.surprise import Curve

INK = "#80858e"
LAWFUL, BROKEN = "#2f6fde", "#c2405a"
WIDTH_IN, DPI, GAP = 9.0, 120, 1
STYLES = ("-", "--", ":", "-.")


def draw_set(
    item: Item,
    frames: Sequence[Tensor],
    times_s: Sequence[float],
    curves: Sequence[Sequence[Curve]],
) -> bytes:
    """PNG.

    Args:
        item: a voe set.
        frames: of each clip (T, 3, H, W) uint8; () where nothing is seen.
        times_s: of the frames.
        curves: of each clip, of each stream.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    streams = [curve.stream for curve in curves[0]]
    strips = _strips(frames) if len(frames) else None
    inner = 0.0 if strips is None else (WIDTH_IN - 1.65) * strips.shape[0] / strips.shape[1]
    height = inner + 0.35 + 1.5 * len(streams) + 0.45
    figure = Figure((WIDTH_IN, height), DPI)
    figure.patch.set_alpha(0)
    canvas = FigureCanvasAgg(figure)
    left, width = 1.42 / WIDTH_IN, 1 - 1.65 / WIDTH_IN
    start, end = 0.0, max(curve.times_s[-1] for clip in curves for curve in clip)
    if strips is not None:
        end = times_s[-1] + (times_s[-1] - times_s[0]) / max(1, len(times_s) - 1)
        axes = figure.add_axes((left, 1 - (inner + 0.3) / height, width, inner / height))
        axes.imshow(strips, interpolation="nearest", aspect="auto")
        rows = strips.shape[0] / len(frames)
        labels = [_label(possible) for possible in item.possible]
        axes.set_yticks([rows * (n + 0.5) for n in range(len(frames))], labels)
        axes.set_xticks([])
        _tidy(axes)
        for label, possible in zip(axes.get_yticklabels(), item.possible, strict=True):
            label.set_color(LAWFUL if possible else BROKEN)
    for row, stream in enumerate(streams):
        bottom = 0.42 + 1.5 * (len(streams) - 1 - row)
        axes = figure.add_axes((left, bottom / height, width, 1.25 / height))
        _lines(axes, item, [clip[row] for clip in curves])
        axes.set_xlim(start, end)
        axes.set_ylabel(f"{stream}\n({curves[0][row].unit})", color=INK, fontsize=9)
        if row == len(streams) - 1:
            axes.set_xlabel("s", color=INK, fontsize=9)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return buffer.getvalue()


def _strips(frames: Sequence[Tensor]) -> np.ndarray:
    """A row of frames per clip."""
    T, _, H, W = frames[0].shape
    paper = np.zeros((len(frames) * (H + GAP), T * (W + GAP), 4), np.uint8)
    for row, clip_TCHW in enumerate(frames):
        for t, frame in enumerate(clip_TCHW.permute(0, 2, 3, 1).numpy()):
            y, x = row * (H + GAP), t * (W + GAP)
            paper[y : y + H, x : x + W, :3] = frame
            paper[y : y + H, x : x + W, 3] = 255
    return paper


def _lines(axes: Any, item: Item, curves: Sequence[Curve]) -> None:
    for number, (curve, possible) in enumerate(zip(curves, item.possible, strict=True)):
        axes.plot(
            curve.times_s,
            curve.prediction,
            STYLES[number % len(STYLES)],
            color=LAWFUL if possible else BROKEN,
            linewidth=1.3,
        )
    axes.axvline(item.cut_s, color=INK, linewidth=1, alpha=0.6)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    _tidy(axes)


def _label(possible: bool) -> str:
    return "possible" if possible else "impossible"


def _tidy(axes: Any) -> None:
    axes.patch.set_alpha(0)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    for spine in axes.spines.values():
        spine.set_color(INK)
        spine.set_alpha(0.4)
