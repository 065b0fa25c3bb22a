"""What all benchmarks share: command line, the machine's passport, fair timing, the result file.

A result file holds {"name", "ratios", "figures", "environment"}. Ratios compare two things measured
in the same run and travel between machines; figures have units in their names and belong to this
machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch


def parse_arguments(description: str) -> argparse.Namespace:
    """The two options of every benchmark: `smoke` (bool) and `json` (Path or None)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--smoke", action="store_true", help="a few seconds: does it run at all?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    return parser.parse_args()


def environment() -> dict[str, object]:
    """Where and when this was measured."""
    load = os.getloadavg() if hasattr(os, "getloadavg") else ()
    info: dict[str, object] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_average": [round(x, 2) for x in load],
    }
    if torch.cuda.is_available():
        info["gpu"] = torch.cuda.get_device_name()
    return info


def _cpu_model() -> str:
    """The processor's own name; Linux keeps it in /proc."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, over rounds: least, middle, most; of wall time and of CPU time.

    CPU time counts all threads of this process, so it is the fair measure on a shared machine where
    one thread is used, and the wrong one for a GPU.
    """

    wall_min_s: float
    wall_median_s: float
    wall_max_s: float
    cpu_min_s: float
    cpu_median_s: float
    cpu_max_s: float
    rounds: int


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 5,
    warm_up: int = 1,
    synchronize: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Time several calls in turn, round by round, so that a noisy moment hits all of them.

    Args:
        calls: name to what is timed. Every other round runs in the opposite order.
        warm_up: untimed rounds before.
        synchronize: waits for the device, as `torch.cuda.synchronize`.
    """
    wait = synchronize or (lambda: None)
    walls: dict[str, list[float]] = {name: [] for name in calls}
    cpus: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm_up + rounds):
        names = list(calls) if turn % 2 == 0 else list(reversed(calls))
        for name in names:
            wait()
            wall, cpu = time.perf_counter(), time.process_time()
            calls[name]()
            wait()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if turn >= warm_up:
                walls[name].append(wall)
                cpus[name].append(cpu)
    return {name: _summary(walls[name], cpus[name]) for name in calls}


def _summary(wall: list[float], cpu: list[float]) -> Timing:
    middle = statistics.median
    return Timing(min(wall), middle(wall), max(wall), min(cpu), middle(cpu), max(cpu), len(wall))


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """Columns as wide as they need to be; the first to the left, the rest to the right."""
    widths = [max(len(row[k]) for row in [head, *rows]) for k in range(len(head))]
    for row in [head, ["-" * width for width in widths], *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells[1:]]))


def write_result(
    path: Path | None,
    name: str,
    *,
    ratios: Mapping[str, float],
    figures: Mapping[str, object],
) -> None:
    """Write the result file, if one is asked for."""
    if path is None:
        return
    result = {
        "name": name,
        "ratios": dict(ratios),
        "figures": dict(figures),
        "environment": environment(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {path}")
