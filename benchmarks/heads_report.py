"""From the lines of finished trainings to figures with intervals, a plot and the tables of a page.

Shapes: S training seeds, N scenes.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from heads_rollout import JUDGED, THRESHOLD
from heads_statistics import interval, mean, relative, unpaired
from torch import Tensor

DEFAULT = "flow"
NEAR_M = 0.5  # a valid frame is right if its objects are so near to where they should be (mean)
LAST = JUDGED[-1]
VIDEO_KINDS = ("teleport", "vanish", "wrong_turn")
SOUND_KINDS = ("silent_impact", "phantom_sound", "late_sound")
KINDS = VIDEO_KINDS + SOUND_KINDS
BASELINE_ROWS = (
    ("the prompt's last frame", "copy_last"),
    ("the truth", "truth"),
    ("the truth through fsq's tokenizer", "recoded"),
)
START, STOP = "<!-- measured: {} -->", "<!-- end of {} -->"
Run = dict[str, Any]
Figures = dict[str, Any]


def read_runs(path: Path) -> list[Run]:
    """The lines of finished jobs; a line that a kill cut short is left out."""
    if not path.exists():
        return []
    runs = []
    for line in path.read_text().splitlines():
        try:
            runs.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{path}: a broken line is left out: {line[:60]!r}")
    return runs


def figures(runs: list[Run], steps: int) -> Figures:
    """Everything by size and arm: per figure its mean over seeds, interval, and each seed's own."""
    final = [r for r in runs if r["stage"] == "final" and r["steps"] == steps]
    tuned = [r for r in runs if r["stage"] == "tune"]
    found: Figures = {"arms": {}, "differences": {}, "baselines": {}, "tuning": {}}
    for run in tuned:
        found["tuning"].setdefault(run["arm"], {})[str(run["lr"])] = run["score"]
    for run in runs:
        if run["stage"] == "scene":
            found["baselines"][str(run["size"])] = _baselines(run)
    for size in sorted({r["size"] for r in final}):
        rows = found["arms"].setdefault(str(size), {})
        for arm in dict.fromkeys(r["arm"] for r in final):
            mine = [r for r in final if r["size"] == size and r["arm"] == arm]
            mine.sort(key=lambda r: r["seed"])
            if mine:
                rows[arm] = _figures_of(mine)
        found["differences"][str(size)] = _differences([r for r in final if r["size"] == size])
    return found


def _differences(runs: list[Run]) -> dict[str, Any]:
    """Each arm less the default, on the same scenes and seeds: of two means whose intervals overlap
    one can still be better on nearly every scene."""
    by_arm: dict[str, dict[int, Run]] = {}
    for run in runs:
        by_arm.setdefault(run["arm"], {})[run["seed"]] = run
    default, rows = by_arm.get(DEFAULT, {}), {}
    for arm, of_seed in by_arm.items():
        seeds = sorted(set(default) & set(of_seed))
        if arm == DEFAULT or not seeds:
            continue
        theirs = _by_scene([of_seed[s] for s in seeds])
        ours = _by_scene([default[s] for s in seeds])
        rows[arm] = {name: _figure(mean, theirs[name] - ours[name]) for name in ours}
    return rows


def _by_scene(runs: list[Run]) -> dict[str, Tensor]:
    """(S, N) of what is compared scene by scene, or pair by pair."""
    found = {
        name: _stacked(runs, "held_out", name)
        for name in ("video/energy_score", "audio/energy_score")
    }
    for kind in ("vanish", "wrong_turn", "late_sound"):
        stream = "video" if kind in VIDEO_KINDS else "audio"
        one, two = (
            _stacked(runs, "surprise", kind, f"{side}/{stream}")
            for side in ("possible", "impossible")
        )
        found[f"pairs/{kind}"] = (torch.sign(two - one) + 1) / 2
    misfit = _stacked(runs, "rollout", f"misfit/{JUDGED[0]}")
    found[f"valid/{JUDGED[0]}"] = _valid_and_right(misfit, misfit)[0]
    return found


def _stacked(runs: list[Run], *path: str) -> Tensor:
    """(S, N) of one list in every run."""
    values = []
    for run in runs:
        for part in path:
            run = run[part]
        values.append(run)
    return torch.tensor(values, dtype=torch.float64)


def _figure(statistic: Callable[..., Tensor], *values_SN: Tensor) -> dict[str, Any]:
    known_N = ~torch.stack([v.isnan().any(0) for v in values_SN]).any(0)
    values_SN = tuple(v[:, known_N] for v in values_SN)
    centre, low, high = interval(statistic, *values_SN)
    if statistic is not mean or float(values_SN[0].max()) <= 1 and float(values_SN[0].min()) == 0:
        low, high = max(0.0, low), min(1.0, high)  # shares: the widened bootstrap may leave 0..1
    return {
        "mean": centre,
        "low": low,
        "high": high,
        "seeds": statistic(*values_SN).tolist(),
        "scenes": values_SN[0].shape[1],
    }


def _figures_of(runs: list[Run]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name in runs[0]["held_out"]:
        rows[name] = _figure(mean, _stacked(runs, "held_out", name))
    for kind in KINDS:
        rows |= _surprise(runs, kind)
    rows["pairs/silent_and_phantom"] = _balanced(runs)
    for frame in JUDGED:
        misfit, place = (
            _stacked(runs, "rollout", f"{what}/{frame}") for what in ("misfit", "place_error_m")
        )
        valid, right = _valid_and_right(misfit, place)
        rows[f"valid/{frame}"] = _figure(mean, valid)
        rows[f"right/{frame}"] = _figure(mean, right)
    rows["cost"] = {
        "parameters": runs[0]["parameters"],
        "lr": runs[0]["lr"],
        "train_cpu_s": statistics.mean(r["train_cpu_s"] for r in runs),
        "seeds": [r["seed"] for r in runs],
    } | {k: v for k, v in runs[0].items() if k.startswith("tokenizer/")}
    return rows


def _surprise(runs: list[Run], kind: str) -> dict[str, Any]:
    """Of one kind of pairs: by the stream that shows it, by the other, and by their sum."""
    stream, other = ("video", "audio") if kind in VIDEO_KINDS else ("audio", "video")
    sides = {}
    for side in ("possible", "impossible"):
        mine = _stacked(runs, "surprise", kind, f"{side}/{stream}")
        theirs = _stacked(runs, "surprise", kind, f"{side}/{other}")
        sides[side] = (mine, mine + theirs)
    own, total = zip(sides["possible"], sides["impossible"], strict=True)
    return {
        f"pairs/{kind}": _figure(relative, *own),
        f"pairs_by_sum/{kind}": _figure(relative, *total),
        f"auc/{kind}": _figure(unpaired, *own),
    }


def _balanced(runs: list[Run]) -> dict[str, Any]:
    """Mean of silent impacts and phantom sounds: who finds sound surprising and silence not, or the
    other way round, whatever is seen, gets one half."""
    sides = []
    for kind in ("silent_impact", "phantom_sound"):
        sides += [
            _stacked(runs, "surprise", kind, f"{s}/audio") for s in ("possible", "impossible")
        ]
    return _figure(lambda a, b, c, d: (relative(a, b) + relative(c, d)) / 2, *sides)


def _valid_and_right(misfit: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """1, 0, or NaN where a frame could not be judged."""
    valid = torch.where(misfit.isnan(), torch.nan, (misfit <= THRESHOLD).double())
    return valid, valid * (place <= NEAR_M)


def _baselines(run: Run) -> dict[str, Any]:
    def shares(scores: dict[str, list[float]]) -> dict[str, float]:
        found = {}
        for frame in JUDGED:
            misfit, place = (
                torch.tensor(scores[f"{what}/{frame}"]) for what in ("misfit", "place_error_m")
            )
            valid, right = _valid_and_right(misfit, place)
            found[f"valid/{frame}"] = float(valid.nanmean())
            found[f"right/{frame}"] = float(right.nanmean())
        return found

    return {
        "called valid": run["calibration"],
        "truth": shares(run["truth"]),
        "copy_last": shares(run["copy_last"]),
        "recoded": shares(run["recoded"]),
    }


def ratios(found: Figures) -> dict[str, float]:
    """The default against the best of the others (energy scores: below 1 is better; shares of
    pairs and of valid frames: above 1 is better)."""
    names = {"video/energy_score": min, "audio/energy_score": min, f"valid/{LAST}": max}
    result = {}
    for size, rows in found["arms"].items():
        others = [row for arm, row in rows.items() if arm != DEFAULT]
        if DEFAULT not in rows or not others:
            continue
        for name, best in names.items():
            rival = best(row[name]["mean"] for row in others)
            own = rows[DEFAULT][name]["mean"]
            result[f"{name.replace('/', '_')}_vs_best_other_{size}"] = own / rival if rival else 0.0
        pairs = {arm: _mean_pairs(row) for arm, row in rows.items()}
        rival = max(value for arm, value in pairs.items() if arm != DEFAULT)
        result[f"matched_pairs_vs_best_other_{size}"] = pairs[DEFAULT] / rival
    return result


def _mean_pairs(row: dict[str, Any]) -> float:
    return statistics.mean(row[f"pairs/{kind}"]["mean"] for kind in KINDS)


# Tables.

COLUMNS = {
    "forecasts": {
        "video energy score": ("video/energy_score", 3, min),
        "audio energy score": ("audio/energy_score", 3, min),
        "video error of the mean": ("video/mse_of_mean", 4, min),
        "video bits": ("video/bits_per_value", 2, min),
        "audio bits": ("audio/bits_per_value", 2, min),
        "text nats": ("text/nats", 2, min),
    },
    "pairs": {
        **{kind.replace("_", " "): (f"pairs/{kind}", 2, max) for kind in KINDS},
        "silent and phantom": ("pairs/silent_and_phantom", 2, max),
    },
    "rollouts": {
        **{f"valid after {frame}": (f"valid/{frame}", 2, max) for frame in JUDGED},
        **{f"right after {frame}": (f"right/{frame}", 2, max) for frame in (JUDGED[0], JUDGED[1])},
    },
    "unpaired": {kind.replace("_", " "): (f"auc/{kind}", 2, max) for kind in KINDS},
}


def tables(found: Figures, which: str) -> str:
    """One Markdown table per frame size: mean over seeds and interval; the best mean is bold."""
    columns = COLUMNS[which]
    parts = []
    for size, rows in found["arms"].items():
        head = f"| {size}x{size} | " + " | ".join(columns) + " |"
        lines = [head, "| --- " * (len(columns) + 1) + "|"]
        best = {c: pick(r[n]["mean"] for r in rows.values()) for c, (n, _, pick) in columns.items()}
        for arm, row in rows.items():
            cells = [_cell(row[name], digits, best[c]) for c, (name, digits, _) in columns.items()]
            lines.append(f"| {arm} | " + " | ".join(cells) + " |")
        lines += _baseline_lines(found, size, which)
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cell(figure: dict[str, Any], digits: int, best: float) -> str:
    centre = f"{figure['mean']:.{digits}f}"
    centre = f"**{centre}**" if figure["mean"] == best else centre
    return f"{centre} ({figure['low']:.{digits}f}..{figure['high']:.{digits}f})"


def _baseline_lines(found: Figures, size: str, which: str) -> list[str]:
    columns = COLUMNS[which]
    if which == "forecasts":
        row = next(iter(found["arms"][size].values()))
        cells = []
        for name, digits, _ in columns.values():
            stream, what = name.split("/")
            copied = row.get(f"{stream}/copy_last/{what}")
            cells.append(f"{copied['mean']:.{digits}f}" if copied else "")
        return ["| copy the last block | " + " | ".join(cells) + " |"]
    if which == "rollouts" and size in found["baselines"]:
        baselines = found["baselines"][size]
        return [
            f"| {label} | "
            + " | ".join(f"{baselines[key][name]:.2f}" for name, _, _ in columns.values())
            + " |"
            for label, key in BASELINE_ROWS
        ]
    return []


def difference_table(found: Figures) -> str:
    """Arm less default; bold where the interval does not hold 0."""
    parts = []
    for size, rows in found["differences"].items():
        names = list(next(iter(rows.values()), {}))
        labels = [n.replace("pairs/", "").replace("/", " ").replace("_", " ") for n in names]
        lines = [f"| {size}x{size} | " + " | ".join(labels) + " |"]
        lines.append("| --- " * (len(names) + 1) + "|")
        for arm, row in rows.items():
            cells = []
            for name in names:
                value, digits = row[name], 3 if "energy" in name else 2
                centre = f"{value['mean']:+.{digits}f}"
                sure = value["low"] > 0 or value["high"] < 0
                span = f"({value['low']:+.{digits}f}..{value['high']:+.{digits}f})"
                cells.append(f"**{centre}** {span}" if sure else f"{centre} {span}")
            lines.append(f"| {arm} less {DEFAULT} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def cost_table(found: Figures) -> str:
    """Parameters, learning rate, and seconds of training."""
    lines = [
        "| arm | size | parameters | learning rate | training, CPU s | seeds |",
        "| --- " * 6 + "|",
    ]
    for size, rows in found["arms"].items():
        for arm, row in rows.items():
            cost = row["cost"]
            tokenizer = sum(v for k, v in cost.items() if k.endswith("/cpu_s"))
            extra = f" + {tokenizer:.0f} (tokenizers)" if tokenizer else ""
            lines.append(
                f"| {arm} | {size} | {cost['parameters'] / 1e6:.2f} M | {cost['lr']:g} | "
                f"{cost['train_cpu_s']:.0f}{extra} | {len(cost['seeds'])} |"
            )
    return "\n".join(lines)


def calibration_table(found: Figures) -> str:
    """What the test of validity says of frames of which the answer is known."""
    sizes = list(found["baselines"])
    kinds = {k: None for size in sizes for k in found["baselines"][size]["called valid"]}
    lines = ["| frames | size | called valid |", "| --- | --- | --- |"]
    for kind in kinds:
        for size in sizes:
            share = found["baselines"][size]["called valid"].get(kind)
            if share is not None:
                lines.append(f"| {kind} | {size} | {share:.0%} |")
    return "\n".join(lines)


def tuning_table(found: Figures) -> str:
    """Scores by which learning rates were chosen."""
    rates = sorted({float(lr) for scores in found["tuning"].values() for lr in scores})
    lines = ["| arm | " + " | ".join(f"{lr:g}" for lr in rates) + " |"]
    lines.append("| --- " * (len(rates) + 1) + "|")
    for arm, scores in found["tuning"].items():
        by_rate = {float(lr): score for lr, score in scores.items()}
        cells = [f"{by_rate[lr]:.3f}" if lr in by_rate else "" for lr in rates]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_table(found: Figures, page: Path) -> None:
    """Put the tables between their marks in a page; the text around them stays."""
    made = {which: tables(found, which) for which in COLUMNS}
    made |= {
        "differences": difference_table(found),
        "cost": cost_table(found),
        "calibration": calibration_table(found),
        "tuning": tuning_table(found),
    }
    text = page.read_text()
    for name, table in made.items():
        start, stop = START.format(name), STOP.format(name)
        if start not in text:
            continue
        before, rest = text.split(start, 1)
        text = f"{before}{start}\n\n{table}\n\n{stop}{rest.split(stop, 1)[1]}"
    page.write_text(text)
    print(f"wrote the tables of {page}")
