"""Pictures of predictions. In: frames, spectra, vectors. Out: uint8 images with transparent paper.

The lettering is a grey that can be read on light and on dark pages alike.

Shapes: T frames, C channels (colours or ears), H W pixels, F mel bins, J spectra, K vectors of D
values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

INK = "#80858e"
DPI = 120
WIDTH_IN = 9.0
GAP = 1  # pixels of the frames between two frames
DECIBEL = 10 / math.log(10)  # of a natural log of power
RANGE_DB = 80.0  # below the loudest; what lies lower is drawn black
MOST_VALUES = 8  # of a vector, drawn one below the other
LINES = (("#80858e", 3.0), ("#2f6fde", 1.4), ("#d9822b", 0.9))  # colour and width, in turn


def strip(rows: Mapping[str, Tensor], times_s: Sequence[float]) -> np.ndarray:
    """Frames side by side, one labelled row per kind.

    Args:
        rows: label -> (T, 3, H, W) uint8; all of one size.
        times_s: (T,) when each column is shown.

    Returns:
        (height, width, 4) uint8.
    """
    T, _, H, W = next(iter(rows.values())).shape
    paper = np.zeros((len(rows) * (H + GAP) - GAP, T * (W + GAP) - GAP, 4), np.uint8)
    for r, frames_TCHW in enumerate(rows.values()):
        for t, frame in enumerate(frames_TCHW.permute(0, 2, 3, 1).numpy()):
            y, x = r * (H + GAP), t * (W + GAP)
            paper[y : y + H, x : x + W, :3] = frame
            paper[y : y + H, x : x + W, 3] = 255
    inner = (WIDTH_IN - 1.5) * paper.shape[0] / paper.shape[1]
    height = inner + 0.33
    figure = _figure(height)
    axes = figure.add_axes((1.42 / WIDTH_IN, 0.08 / height, 1 - 1.5 / WIDTH_IN, inner / height))
    axes.imshow(paper, interpolation="nearest", aspect="auto")
    axes.set_yticks([r * (H + GAP) + H / 2 for r in range(len(rows))], list(rows))
    axes.set_xticks([t * (W + GAP) + W / 2 for t in range(T)], [f"{s:.2f} s" for s in times_s])
    axes.xaxis.tick_top()
    _tidy(axes)
    axes.spines[:].set_visible(False)
    return _pixels(figure)


def spectrograms(
    rows: Mapping[str, Tensor], *, start_s: float, end_s: float, mel_hz: Sequence[float]
) -> np.ndarray:
    """Log-mel power, one labelled row per kind and one column per ear, on one colour scale.

    Args:
        rows: label -> (C, F, J) natural logs of mel power.
        start_s, end_s: of the time axis.
        mel_hz: (F,) centres of the mel bins.
    """
    ears = {1: ("mono",), 2: ("left ear", "right ear")}
    C, F, J = next(iter(rows.values())).shape
    loudest = float(next(iter(rows.values())).max()) * DECIBEL
    gap_x, gap_y = max(1, J // 60), 2
    tiles = np.full((len(rows) * (F + gap_y) - gap_y, C * (J + gap_x) - gap_x), np.nan, np.float32)
    corners = [(r * (F + gap_y), c * (J + gap_x)) for r in range(len(rows)) for c in range(C)]
    flat = [mel_FJ for mel_CFJ in rows.values() for mel_FJ in mel_CFJ.float().numpy()]
    for (y, x), mel_FJ in zip(corners, flat, strict=True):
        tiles[y : y + F, x : x + J] = mel_FJ[::-1] * DECIBEL
    height = 1.2 * len(rows) + 0.55
    figure = _figure(height)
    axes = figure.add_axes((0.165, 0.27 / height, 0.745, 1 - 0.52 / height))
    image = axes.imshow(
        tiles,
        aspect="auto",
        interpolation="nearest",
        cmap="magma",
        vmin=loudest - RANGE_DB,
        vmax=loudest,
    )
    shown = range(0, F, max(1, F // 4))
    axes.set_yticks(
        [r * (F + gap_y) + F - 1 - b for r in range(len(rows)) for b in shown],
        [_hertz(mel_hz[b]) for _ in rows for b in shown],
    )
    shares = (0.0, 0.25, 0.5, 0.75)
    axes.set_xticks(
        [c * (J + gap_x) + s * J for c in range(C) for s in shares],
        [f"{start_s + s * (end_s - start_s):.2f} s" for _ in range(C) for s in shares],
    )
    _tidy(axes)
    axes.spines[:].set_visible(False)
    words = {"color": INK, "fontsize": 9, "transform": axes.transData}
    for c in range(C):
        x = c * (J + gap_x) + J / 2
        axes.text(x, -1.5, ears.get(C, range(C))[c], ha="center", va="bottom", **words)
    for r, label in enumerate(rows):
        y = 1 - (r * (F + gap_y) + F / 2) / len(tiles)
        where = {"ha": "right", "va": "center", "transform": axes.transAxes}
        axes.text(-0.095, y, label.replace(" ", "\n"), color=INK, fontsize=9, **where)
    beside = figure.add_axes((0.92, 0.27 / height, 0.012, 1 - 0.52 / height))
    bar = figure.colorbar(image, cax=beside)
    bar.set_label("dB of full scale", fontsize=8, color=INK)
    bar.outline.set_visible(False)
    _tidy(bar.ax)
    return _pixels(figure)


def lines(rows: Mapping[str, Tensor], times_s: Sequence[float], name: str) -> np.ndarray:
    """Vectors over time: one set of axes per value, one labelled line per kind.

    Args:
        rows: label -> (K, D); the first is drawn broad, the next ones on it.
        times_s: (K,) when each vector holds.
        name: of the stream.
    """
    D = next(iter(rows.values())).shape[1]
    shown = min(D, MOST_VALUES)
    height = 0.75 * shown + 0.62
    figure = _figure(height)
    for d in range(shown):
        bottom = 0.28 + 0.75 * (shown - 1 - d)
        box = (1.1 / WIDTH_IN, bottom / height, 1 - 1.25 / WIDTH_IN, 0.65 / height)
        axes = figure.add_axes(box)
        for (label, values_KD), (colour, broad) in zip(rows.items(), LINES * 9, strict=False):
            marker = "." if len(times_s) == 1 else None
            look = {"color": colour, "lw": broad, "label": label, "marker": marker}
            axes.plot(list(times_s), values_KD[:, d].tolist(), **look)
        axes.set_ylabel(f"{name} {d}", color=INK, fontsize=8)
        axes.locator_params(axis="y", nbins=3)
        axes.margins(x=0.01)
        _tidy(axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelbottom=d == shown - 1)
        if d == shown - 1:
            axes.xaxis.set_major_formatter("{x:.2f} s")
    more = f"the first {shown} of {D} values" if shown < D else None
    handles, labels = axes.get_legend_handles_labels()
    legend = {"ncols": len(rows), "frameon": False, "fontsize": 8, "labelcolor": INK}
    figure.legend(handles, labels, loc="upper right", title=more, **legend)
    return _pixels(figure)


def amplified_difference(a_TCHW: Tensor, b_TCHW: Tensor) -> Tensor:
    """|a - b| twice as bright as it is, uint8."""
    return ((a_TCHW.float() - b_TCHW.float()).abs() * 2).clamp(max=255).to(torch.uint8)


def write_png(path: Path, image: np.ndarray) -> None:
    """Save an image that one of the functions above made."""
    from matplotlib.image import imsave

    imsave(path, image)


def read_png(path: Path) -> np.ndarray:
    """(height, width, 3) uint8 on white."""
    from matplotlib.image import imread

    image = (imread(path) * 255).round().astype(np.uint8)
    return on_white(image) if image.shape[2] == 4 else image


def on_white(image: np.ndarray) -> np.ndarray:
    """(height, width, 3): without transparency, for viewers that have none."""
    alpha = image[..., 3:].astype(np.float32) / 255
    return (image[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def _figure(height_in: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, facecolor="none")
    FigureCanvasAgg(figure)
    return figure


def _pixels(figure: Any) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba()).copy()


def _tidy(axes: Any) -> None:
    axes.set_facecolor("none")
    axes.tick_params(colors=INK, labelsize=8, length=2, pad=2)
    for side in axes.spines.values():
        side.set_color(INK)
        side.set_linewidth(0.5)


def _hertz(value: float) -> str:
    return f"{value / 1000:.1f} kHz" if value >= 1000 else f"{value:.0f} Hz"
