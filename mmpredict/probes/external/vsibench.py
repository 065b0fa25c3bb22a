"""VSI-Bench (Yang et al. 2024, arXiv 2412.14171): sizes, distances, counts, directions and ways in
filmed rooms.

Layout: rows (dataset, scene_name, question_type, question, options, ground_truth) as JSONL, TSV or
Parquet, and `<dataset>/<scene_name>.mp4`. Six types are multiple choice, four ask for a number.

Numbers are chosen from a list: the true values of all questions of the type, thinned to at most 32;
`ceiling` says what the best choices reach. They are scored by mean relative accuracy, with the
paper's strict sign; published code has "at most" in its place, given as `overall_or_equal`. The
overall score is the mean over eight tasks, the three degrees of direction being one.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmpredict.probes.external.bench import (
    Answers,
    Bench,
    BenchError,
    faults_of,
    grades,
    mean_of,
    means_by,
    missing_files,
)
from mmpredict.probes.external.tables import listing, need_folder, read_rows, row_files
from mmpredict.probes.grading import MRA_THRESHOLDS, mean_relative_accuracy
from mmpredict.probes.items import Evidence, Files, Item, Suite

DIRECTION = "object_rel_direction"
CHOSEN = (
    f"{DIRECTION}_easy",
    f"{DIRECTION}_medium",
    f"{DIRECTION}_hard",
    "object_rel_distance",
    "route_planning",
    "obj_appearance_order",
)
NUMBERS = (
    "object_abs_distance",
    "object_counting",
    "object_size_estimation",
    "room_size_estimation",
)
TASKS = 8
NEEDS = ("dataset", "scene_name", "question_type", "question", "options", "ground_truth")
MOST = 32  # numbers to choose from
SLACK = 1e-9  # an error that is the threshold but for rounding is at most the threshold


def load(root: Path, part: str = "") -> Bench:
    """`part` is a question type; all if empty."""
    root = need_folder(root)
    paths = [path for path in row_files(root) if path.parent == root]
    if not paths:
        raise BenchError(f"{root} has no JSONL, TSV or Parquet; it has {listing(root)}")
    rows = [(path, row) for path in paths for row in read_rows(path, NEEDS)]
    strange = {row["question_type"] for _, row in rows} - {*CHOSEN, *NUMBERS}
    if strange:
        raise BenchError(f"{paths[0]}: unknown question_type {', '.join(sorted(strange))}")
    numbers = {
        kind: _numbers([r for _, r in rows if r["question_type"] == kind]) for kind in NUMBERS
    }
    items: list[Item] = []
    sources: dict[str, Files] = {}
    for number, (path, row) in enumerate(rows):
        kind = row["question_type"]
        if part in ("", kind):
            source = f"{row['dataset']}/{row['scene_name']}"
            sources[source] = Files(video=str(root / f"{source}.mp4"))
            name = f"{kind}/{row.get('id', number)}"
            items.append(
                _choice(path, name, row, source)
                if kind in CHOSEN
                else _number(path, name, row, source, numbers[kind])
            )
    return Bench(
        "vsibench",
        Suite("vsibench", tuple(items), sources),
        metric,
        faults_of(items, missing_files(sources)),
    )


def metric(items: Sequence[Item], answers: Answers) -> dict[str, float]:
    """Each type, the direction as one task, the overall mean and how many of 8 tasks it is of."""
    values = grades(items, answers)
    loose = {
        item.id: _or_equal(item, answers[item.id]) if item.score == "numeric" else values[item.id]
        for item in items
    }
    best = {item.id: _best(item) for item in items}
    by_type = means_by(items, values, lambda item: item.family)
    tasks = _tasks(by_type)
    found = {f"{name}_accuracy": value for name, value in by_type.items()}
    if DIRECTION in tasks:
        found[f"{DIRECTION}_accuracy"] = tasks[DIRECTION]
    return {
        **found,
        "overall": mean_of(tasks.values()),
        "overall_or_equal": mean_of(_tasks(means_by(items, loose, _family)).values()),
        "ceiling": mean_of(_tasks(means_by(items, best, _family)).values()),
        "tasks": len(tasks),
    }


def _family(item: Item) -> str:
    return item.family


def _tasks(by_type: dict[str, float]) -> dict[str, float]:
    degrees = [value for name, value in by_type.items() if name.startswith(DIRECTION)]
    others = {k: v for k, v in by_type.items() if not k.startswith(DIRECTION)}
    return {**others, DIRECTION: mean_of(degrees)} if degrees else others


def _or_equal(item: Item, row: Sequence[float]) -> float:
    """Mean relative accuracy with "at most" in the place of "less than"."""
    best = [float(c) for c, v in zip(item.choices, row, strict=True) if v == max(row)]
    return mean_of(_at_most(said, item.numeric) for said in best)


def _at_most(said: float, truth: float) -> float:
    if not truth:
        return float(said == truth)
    error = abs(said - truth) / abs(truth)
    return mean_of(float(error <= 1 - t + SLACK) for t in MRA_THRESHOLDS)


def _best(item: Item) -> float:
    if item.score != "numeric":
        return 1.0
    return max(mean_relative_accuracy(float(c), item.numeric) for c in item.choices)


def _numbers(rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """True values of one type, from small to large, at most `MOST` of them evenly by rank."""
    values = sorted({str(row["ground_truth"]).strip() for row in rows}, key=float)
    if len(values) <= MOST:
        return tuple(values)
    return tuple(values[round(k * (len(values) - 1) / (MOST - 1))] for k in range(MOST))


def _choice(path: Path, name: str, row: dict[str, Any], source: str) -> Item:
    options = row["options"]
    if isinstance(options, str):
        try:
            options = ast.literal_eval(options)
        except (ValueError, SyntaxError) as error:
            raise BenchError(f"{path}, {name}: options {options[:60]!r} are no list") from error
    letters = [str(option).partition(".")[0].strip() for option in options or ()]
    if row["ground_truth"] not in letters:
        raise BenchError(
            f"{path}, {name}: ground_truth {row['ground_truth']!r} is none of the options {options}"
        )
    choices = tuple(str(option).partition(".")[2].strip() for option in options)
    return _item(name, row, source, choices, letters.index(row["ground_truth"]))


def _number(
    path: Path, name: str, row: dict[str, Any], source: str, numbers: tuple[str, ...]
) -> Item:
    truth = float(row["ground_truth"])
    if len(numbers) < 2:
        raise BenchError(f"{path}, {name}: all questions of its type have the answer {truth}")
    values = [mean_relative_accuracy(float(n), truth) for n in numbers]
    nearest = min(range(len(numbers)), key=lambda k: abs(float(numbers[k]) - truth))
    return _item(
        name, row, source, numbers, nearest, numeric=truth, chance=min(mean_of(values), 1 - 1e-9)
    )


def _item(  # noqa: PLR0913 - what makes a question
    name: str,
    row: dict[str, Any],
    source: str,
    choices: tuple[str, ...],
    answer: int,
    *,
    numeric: float | None = None,
    chance: float = 0.0,
) -> Item:
    return Item(
        id=name,
        family=row["question_type"],
        score="mc" if numeric is None else "numeric",
        evidence=(Evidence(source),),
        variants=("video",),
        question=str(row["question"]),
        choices=choices,
        answer=answer,
        numeric=numeric,
        chance=chance or 1 / len(choices),
        cluster=source,
        split="test",
    )
