"""Vectors in time for people: a table as a csv file and back, and lanes of a picture.

Shapes: T vectors, D values of a vector.
"""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mmpredict.schema import Series

SERIES_SUFFIX = ".csv"
MOST_LANES = 8  # values drawn of a vector
LANE_PX = 22


def write_table(file: BinaryIO, name: str, series: Series) -> None:
    """A line per vector: seconds,action_0,action_1,...; `read_table` gives every bit back."""
    columns = [f"{name}_{d}" for d in range(series.values_TD.shape[1])]
    lines = [",".join(["seconds", *columns])]
    for time_s, values in zip(series.times_s.tolist(), series.values_TD.tolist(), strict=True):
        lines.append(",".join([repr(time_s), *(f"{value:.9g}" for value in values)]))
    file.write(("\n".join(lines) + "\n").encode("ascii"))


def read_table(path: str | os.PathLike[str]) -> tuple[str, Series]:
    """Name and vectors of a file that `write_table` wrote, or that looks so."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file) if row]
    heads = [head.strip() for head in rows[0]] if rows else []
    name = heads[1].rpartition("_")[0] if len(heads) > 1 else ""
    if not name or heads != ["seconds", *(f"{name}_{d}" for d in range(len(heads) - 1))]:
        raise ValueError(
            f"{path}: the first line must be seconds,NAME_0,NAME_1,... with the name of a stream, "
            f"such as seconds,action_0,action_1; it is {','.join(heads)[:80]!r}"
        )
    numbers = [_numbers(row, len(heads), f"{path} line {n}") for n, row in enumerate(rows[1:], 2)]
    table = torch.tensor(numbers, dtype=torch.float64).view(-1, len(heads))
    late = (table[:, 0].diff() <= 0).nonzero()
    if len(late):
        raise ValueError(f"{path} line {int(late[0]) + 3}: its time is not after that before it")
    return name, Series(table[:, 1:].float(), table[:, 0])


def _numbers(row: list[str], count: int, where: str) -> list[float]:
    try:
        numbers = [float(cell) for cell in row]
    except ValueError as error:
        raise ValueError(f"{where}: {str(error)}") from None
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{where}: needs {count} finite numbers, has {','.join(row)[:80]!r}")
    return numbers


def lanes_height(series: Series) -> int:
    """Pixels that `draw_lanes` wants."""
    return LANE_PX * min(MOST_LANES, series.values_TD.shape[1]) + 6


def draw_lanes(
    axes: Any, name: str, series: Series, *, prompt_end_s: float | None, colours: tuple[str, str]
) -> None:
    """Each value in a lane of its own, from its least to its greatest; each holds until the next.

    Args:
        axes: of matplotlib, with the time axis set.
        name: of the series.
        series: one vector or more.
        prompt_end_s: where the second colour begins; None for the first throughout.
        colours: of the prompt and of what was made.
    """
    shown = min(MOST_LANES, series.values_TD.shape[1])
    times_s = series.times_s.double()
    hold_s = float(times_s.diff().median()) if len(times_s) > 1 else 0.1
    edges_s = torch.cat([times_s, times_s[-1:] + hold_s])
    until_s = math.inf if prompt_end_s is None else prompt_end_s - 1e-6
    made = int((times_s < until_s).sum())
    for lane in range(shown):
        values = series.values_TD[:, lane].double()
        low, high = float(values.min()), float(values.max())
        height = (values - low) / (high - low) if high > low else torch.full_like(values, 0.5)
        y = shown - 1 - lane + 0.1 + 0.8 * torch.cat([height, height[-1:]])
        for part, colour in ((slice(0, made + 1), colours[0]), (slice(made, None), colours[1])):
            steps = {"drawstyle": "steps-post", "color": colour, "lw": 1.2}
            if len(edges_s[part]) > 1:
                axes.plot(edges_s[part].numpy(), y[part].numpy(), **steps)
    axes.set_ylim(0, shown)
    axes.set_yticks([shown - 0.5 - lane for lane in range(shown)], [str(d) for d in range(shown)])
    axes.tick_params(axis="y", labelsize=6, length=0, pad=1)
    more = series.values_TD.shape[1] - shown
    axes.set_ylabel(f"{name}\n+{more} more" if more else name, fontsize=8)


def table_path(stem: Path, name: str) -> Path:
    """x.action.csv beside x.mp4."""
    return stem.with_name(f"{stem.name}.{name}{SERIES_SUFFIX}")
