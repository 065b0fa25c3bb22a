"""CATER (Girdhar and Ramanan 2020, ICLR): which actions happen, in which order, and where the
golden object is in the end, under which cone.

Layout: `lists/<task>/{train,val}.txt`, lines of `<video> <class>[,<class>...]`, and `videos/`.
Tasks: actions_present (14 actions), actions_order_uniq (301 pairs in an order), localize (6 x 6
cells), localize_4x4, localize_8x8.

Scored are mAP for actions; top 1, top 5 and the L1 distance in cells for places. Asked zero-shot
are actions_present and the places; the 301 orders are for a readout of frozen features only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from mmpredict.probes.external.agreement import average_precision
from mmpredict.probes.external.bench import (
    Answers,
    Bench,
    BenchError,
    Readout,
    faults_of,
    mean_of,
    missing_files,
)
from mmpredict.probes.external.tables import listing, need_folder, read_lines
from mmpredict.probes.items import Evidence, Files, Item, Suite

# in the order of the class numbers; the golden object is called "spl" in the lists
ACTIONS = (
    "a sphere slides",
    "a sphere is picked up and placed",
    "the golden object slides",
    "the golden object is picked up and placed",
    "the golden object rotates",
    "a cylinder is picked up and placed",
    "a cylinder slides",
    "a cylinder rotates",
    "a cube slides",
    "a cube is picked up and placed",
    "a cube rotates",
    "a cone covers something",
    "a cone is picked up and placed",
    "a cone slides",
)
SIDES = {"localize": 6, "localize_4x4": 4, "localize_8x8": 8}
CLASSES = {"actions_present": len(ACTIONS), "actions_order_uniq": 301}
CLASSES |= {task: side * side for task, side in SIDES.items()}
WHERE = "In which cell is the golden object at the end?"


def load(root: Path, part: str = "") -> Bench:
    """`part` is a task; by default the first of the list that is there."""
    root = need_folder(root)
    lists = need_folder(root, "lists", "list")
    there = [task for task in CLASSES if (lists / task).is_dir()]
    if not there or part not in ("", *there):
        raise BenchError(f"{lists} has no {part or ', '.join(CLASSES)}; it has {listing(lists)}")
    task = part or there[0]
    videos = {path.name: path for path in root.rglob("*") if path.suffix in (".avi", ".mp4")}
    labels: dict[str, tuple[int, ...]] = {}
    split: dict[str, str] = {}
    for name, kind in (("train.txt", "train"), ("val.txt", "test")):
        for video, classes in _read(lists / task / name, CLASSES[task]).items():
            labels[video], split[video] = classes, kind
    sources = {n: Files(video=str(videos.get(n, root / "videos" / n))) for n in labels}
    tested = {n: labels[n] for n in labels if split[n] == "test"}
    items = [item for name, classes in tested.items() for item in _items(task, name, classes)]
    return Bench(
        "cater",
        Suite(f"cater-{task}", tuple(items), sources),
        metric,
        faults_of(items, missing_files(sources)),
        () if items else (f"{task} is not asked zero-shot; use the readout (--readout)",),
        readout=Readout(labels, split, CLASSES[task], several=task not in SIDES),
        readout_metric=partial(readout_score, places_side=SIDES.get(task, 0)),
    )


def metric(items: Sequence[Item], answers: Answers) -> dict[str, float]:
    """mAP over the actions that occur, by how much likelier "yes" is than "no"; or places."""
    actions = [item for item in items if item.family == "actions_present"]
    found: dict[str, float] = {}
    if actions:
        values = []
        for name in dict.fromkeys(item.template for item in actions):
            part = [item for item in actions if item.template == name]
            scores = [answers[item.id][0] - answers[item.id][1] for item in part]
            values.append(average_precision(scores, [item.answer == 0 for item in part]))
        found["mAP"] = mean_of(v for v in values if v == v)
    for task, side in SIDES.items():
        part = [item for item in items if item.family == task]
        if part:
            found |= places([answers[i.id] for i in part], [i.answer for i in part], side)
    return found


def places(scores: Sequence[Sequence[float]], truth: Sequence[int], side: int) -> dict[str, float]:
    """Top 1, top 5 and the mean L1 distance in cells, with ties as guesses among the tied cells."""
    best = [[k for k, v in enumerate(row) if v == max(row)] for row in scores]
    pairs = list(zip(best, truth, strict=True))
    return {
        "top1": mean_of((t in cells) / len(cells) for cells, t in pairs),
        "top5": mean_of(_within(row, t, 5) for row, t in zip(scores, truth, strict=True)),
        "l1": mean_of(mean_of(distance(c, t, side) for c in cells) for cells, t in pairs),
    }


def distance(first: int, second: int, side: int) -> int:
    """Steps between two cells that are numbered row by row."""
    return abs(first // side - second // side) + abs(first % side - second % side)


def mean_average_precision(
    scores: Sequence[Sequence[float]], classes: Sequence[Sequence[int]]
) -> float:
    """Of a readout: rows of scores by class, and the classes that each clip shows; over the classes
    that occur."""
    values = []
    for k in range(len(scores[0])):
        values.append(average_precision([row[k] for row in scores], [k in c for c in classes]))
    return mean_of(v for v in values if v == v)


def readout_score(
    bench: Bench, scores: Mapping[str, Sequence[float]], places_side: int = 0
) -> dict[str, float]:
    """The published metric of a readout's scores of the test clips.

    Args:
        bench: whose labels are used.
        scores: for each test clip, one number per class.
        places_side: cells along a side where the classes are places; 0 where they are actions.
    """
    labels = bench.labels_for_training()
    names = [name for name in labels.labels if labels.split[name] == "test"]
    lacks = [n for n in names if len(scores.get(n, ())) != labels.classes]
    if lacks:
        raise BenchError(f"cater: {len(lacks)} clips lack {labels.classes} scores: {lacks[:3]}")
    rows, truth = [scores[n] for n in names], [labels.labels[n] for n in names]
    if places_side:
        return places(rows, [classes[0] for classes in truth], places_side)
    return {"mAP": mean_average_precision(rows, truth)}


def _within(row: Sequence[float], truth: int, count: int) -> float:
    """Chance that the true cell is among the first `count`, tied cells in any order."""
    above = sum(v > row[truth] for v in row)
    tied = sum(v == row[truth] for v in row)
    return min(max(count - above, 0) / tied, 1.0)


def _read(path: Path, classes: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        video, _, text = line.strip().rpartition(" ")
        try:
            shown = tuple(int(cell) for cell in text.split(","))
        except ValueError:
            shown = ()
        if not video or not shown or not all(0 <= k < classes for k in shown):
            raise BenchError(
                f"{path}, line {number}: {line[:60]!r} is not '<video> <class>[,<class>]' with "
                f"classes from 0 to {classes - 1}"
            )
        found[Path(video).name] = shown
    if not found:
        raise BenchError(f"{path} has no lines")
    return found


def _items(task: str, video: str, classes: Sequence[int]) -> list[Item]:
    ask: Callable[..., Item] = lambda **more: Item(  # noqa: E731 - what all of them share
        family=task,
        score="mc",
        evidence=(Evidence(video),),
        variants=("video",),
        cluster=video,
        split="test",
        **more,
    )
    if task in SIDES:
        side = SIDES[task]
        cells = tuple(f"row {k // side + 1}, column {k % side + 1}" for k in range(side * side))
        return [
            ask(
                id=f"{task}/{video}",
                question=WHERE,
                choices=cells,
                answer=classes[0],
                chance=1 / len(cells),
            )
        ]
    if task != "actions_present":
        return []
    return [
        ask(
            id=f"{task}/{video}/{k}",
            question=f"Is it so that {words}?",
            choices=("yes", "no"),
            answer=0 if k in classes else 1,
            template=f"action/{k}",
        )
        for k, words in enumerate(ACTIONS)
    ]
