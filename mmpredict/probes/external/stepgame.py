"""StepGame (Shi et al. 2022, AAAI): where is one agent to another, k hops apart?

Layout: `qa{k}_{split}.json` as {"0": {story, question, label}}, in `TrainVersion` or
`CompleteVersion/{clean,noise}`; or the later form, rows of story, question, label, k_hop as JSONL
or Parquet. Releases before February 2024 have faulty templates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmpredict.probes.external.bench import Answers, Bench, BenchError, grades, mean_of, means_by
from mmpredict.probes.external.tables import (
    check_columns,
    listing,
    need_folder,
    read_json,
    read_rows,
)
from mmpredict.probes.items import Evidence, Item, Suite

LABELS = (
    "left",
    "right",
    "above",
    "below",
    "upper-left",
    "upper-right",
    "lower-left",
    "lower-right",
    "overlap",
)
NEEDS = ("story", "question", "label")
HOMES = ("", "TrainVersion", "Dataset/TrainVersion", "CompleteVersion", "Dataset/CompleteVersion")


def load(root: Path, part: str = "") -> Bench:
    """`part` is the split, test by default; or clean or noise, of which the test split is read."""
    root = need_folder(root)
    inner = part if part in ("clean", "noise") else ""
    split = "test" if inner or not part else part
    homes = [home for name in HOMES if (home := root / name / inner).is_dir()]
    rows: list[tuple[str, Path, Any, int]] = []
    for home in homes:
        rows = [*_by_hops(home, split)] or [*_by_rows(home, split)]
        if rows:
            break
    if not rows:
        raise BenchError(
            f"{root} has no qa<k>_{split}.json and no {split}.jsonl or .parquet; {listing(root)}"
        )
    items = tuple(_item(*row) for row in rows)
    return Bench("stepgame", Suite("stepgame", items), metric)


def metric(items: Sequence[Item], answers: Answers) -> dict[str, float]:
    """Accuracy for each number of hops, and their mean."""
    by_hops = means_by(items, grades(items, answers), lambda item: item.family)
    found = {f"{name}_accuracy": by_hops[name] for name in sorted(by_hops, key=_hops)}
    return {**found, "accuracy": mean_of(found.values())}


def _hops(name: str) -> int:
    return int(name.removeprefix("k"))


def _by_hops(home: Path, split: str) -> Iterator[tuple[str, Path, Any, int]]:
    for path in sorted(home.glob(f"qa*_{split}.json")):
        match = re.fullmatch(rf"qa(\d+)_{split}", path.stem)
        whole = read_json(path)
        if match is None or not isinstance(whole, dict):
            raise BenchError(f'{path}: expected qa<k>_{split}.json with {{"0": {{story, ...}}}}')
        for name, row in whole.items():
            check_columns(path, row, NEEDS, f", entry {name!r}")
            yield f"k{match[1]}/{name}", path, row, int(match[1])


def _by_rows(home: Path, split: str) -> Iterator[tuple[str, Path, Any, int]]:
    paths = [p for s in (".jsonl", ".parquet") for p in sorted(home.glob(f"{split}*{s}"))]
    for path in paths[:1]:
        for number, row in enumerate(read_rows(path, (*NEEDS, "k_hop"))):
            yield f"k{row['k_hop']}/{number}", path, row, int(row["k_hop"])


def _item(name: str, path: Path, row: dict[str, Any], hops: int) -> Item:
    if row["label"] not in LABELS:
        raise BenchError(f"{path}, {name}: label {row['label']!r} is none of {', '.join(LABELS)}")
    story = row["story"]
    told = (story,) if isinstance(story, str) else tuple(story)
    return Item(
        id=name,
        family=f"k{hops}",
        score="mc",
        evidence=(Evidence(told=told),),
        variants=("text",),
        question=row["question"],
        choices=LABELS,
        answer=LABELS.index(row["label"]),
        chance=1 / len(LABELS),
        cluster=name,
        split="test",
        condition={"hops": hops},
    )
