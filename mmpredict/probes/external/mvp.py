"""MVP, Minimal Video Pairs (Krojer et al. 2025, arXiv 2506.09987): one question, two videos that
differ in little, opposite answers.

Layout: rows as Parquet or JSONL (video_id `<stem>_<k>`, video_path, question, candidates, answer,
source), one file or folder a task, and `videos/`. Scored are single accuracy and pair accuracy
(both of a pair right; a guess gets 1/4), for each task and as the plain mean over tasks.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmpredict.probes.external.bench import (
    Answers,
    Bench,
    BenchError,
    all_right,
    asked_answers,
    faults_of,
    grades,
    mean_of,
    missing_files,
)
from mmpredict.probes.external.tables import listing, need_folder, read_rows, row_files
from mmpredict.probes.items import Evidence, Files, Item, Suite

NEEDS = ("video_id", "video_path", "question", "candidates", "answer", "source")
TASKS = (
    "human_object_interactions",
    "robot_object_interactions",
    "intuitive_physics",
    "temporal_reasoning",
)


def load(root: Path, part: str = "") -> Bench:
    """`part` is a task; all if empty."""
    root = need_folder(root)
    files = [p for p in row_files(root) if "videos" not in p.relative_to(root).parts]
    files = [p for p in files if part in str(p.relative_to(root))]
    if not files:
        raise BenchError(f"{root} has no Parquet or JSONL of {part or 'any task'}; {listing(root)}")
    items: list[Item] = []
    sources: dict[str, Files] = {}
    for path in files:
        task = next((t for t in TASKS if t in str(path.relative_to(root))), path.stem)
        for row in read_rows(path, NEEDS):
            item = _item(path, task, row)
            items.append(item)
            sources[item.evidence[0].source] = Files(video=str(root / "videos" / row["video_path"]))
    sizes: dict[str, int] = {}
    for item in items:
        sizes[item.group] = sizes.get(item.group, 0) + 1
    odd = [f"{group} ({n})" for group, n in sizes.items() if n != 2]
    if odd:
        raise BenchError(f"{root}: pairs need two rows each, not so: {', '.join(odd[:5])}")
    return Bench(
        "mvp",
        Suite("mvp", tuple(items), sources),
        metric,
        faults_of(items, missing_files(sources)),
        exports={"leaderboard": write_leaderboard},
    )


def metric(items: Sequence[Item], answers: Answers) -> dict[str, float]:
    """Single and pair accuracy; a tie counts as a guess, also within a pair."""
    values = grades(items, answers)
    found: dict[str, float] = {}
    for task in dict.fromkeys(item.family for item in items):
        part = [item for item in items if item.family == task]
        found[f"{task}_single_accuracy"] = mean_of(values[item.id] for item in part)
        found[f"{task}_pair_accuracy"] = mean_of(all_right(part, values, _pair).values())
    for name in ("single_accuracy", "pair_accuracy"):
        found[name] = mean_of(v for key, v in found.items() if key.endswith(f"_{name}"))
    return found


def write_leaderboard(bench: Bench, answers: Answers, out: Path) -> list[Path]:
    """`mvp_<task>.jsonl` with the chosen candidate of every row."""
    asked_answers(bench.asked, answers, bench.name)
    paths = []
    for task in bench.suite.families:
        path = out / f"mvp_{task}.jsonl"
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for item in bench.asked:
                if item.family == task:
                    row = answers[item.id]
                    chosen = item.choices[max(range(len(row)), key=row.__getitem__)]
                    cells = {"data_name": "mvp", "row_id": item.id.split("/", 1)[1]}
                    cells |= {"model_answer": chosen, "task": task}
                    file.write(json.dumps(cells, ensure_ascii=False) + "\n")
        paths.append(path)
    return paths


def _pair(item: Item) -> str:
    return item.group


def _item(path: Path, task: str, row: dict[str, Any]) -> Item:
    candidates = row["candidates"]
    try:
        choices = ast.literal_eval(candidates) if isinstance(candidates, str) else candidates
        choices = tuple(map(str, choices))
        answer = choices.index(str(row["answer"]))
    except (ValueError, SyntaxError, TypeError) as error:
        raise BenchError(
            f"{path}, {row['video_id']}: answer {row['answer']!r} is not among the candidates "
            f"{candidates!r}"
        ) from error
    stem, separator, _ = str(row["video_id"]).rpartition("_")
    if not separator:
        raise BenchError(f"{path}: video_id {row['video_id']!r} is not <pair>_<number>")
    return Item(
        id=f"{task}/{row['video_id']}",
        family=task,
        score="mc",
        evidence=(Evidence(str(row["video_path"])),),
        variants=("video",),
        question=str(row["question"]),
        choices=choices,
        answer=answer,
        chance=1 / len(choices),
        cluster=f"{task}/{stem}",
        group=f"{task}/{stem}",
        split="test",
        condition={"source": str(row["source"])},
    )
