"""CLEVRER (Yi et al. 2020, ICLR): questions about colliding objects: what is there, what caused it,
what comes next, what would happen without.

Layout: `validation.json` (or train), a list of {scene_index, video_filename,
questions[{question_id, question, question_type, answer | choices[{choice_id, choice, answer}]}]};
videos `video_*.mp4` and annotations `annotation_*.json` anywhere below. The test questions have no
answers.

Descriptive questions choose among the 21 words that answer them. Of the others every choice is
judged on its own, "correct" or "wrong": scored per option and per question (all options right, also
where no option is correct).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmpredict.probes.external.bench import (
    Answers,
    Bench,
    BenchError,
    all_right,
    faults_of,
    grades,
    mean_of,
    missing_files,
)
from mmpredict.probes.external.tables import check_columns, listing, need_folder, read_json
from mmpredict.probes.items import Evidence, Files, Item, Suite

WORDS = ("yes", "no", "0", "1", "2", "3", "4", "5")
WORDS += ("gray", "red", "blue", "green", "brown", "cyan", "purple", "yellow")
WORDS += ("cube", "sphere", "cylinder", "metal", "rubber")
TYPES = ("descriptive", "explanatory", "predictive", "counterfactual")
FPS = 25.6  # 128 frames in 5 s


def load(root: Path, part: str = "") -> Bench:
    """`part` is a question type; all if empty."""
    root = need_folder(root)
    names = ("validation.json", "train.json")
    paths = [p for name in names for p in (root / name, root / "questions" / name) if p.is_file()]
    if not paths:
        raise BenchError(f"{root} has no {' or '.join(names)}; it has {listing(root)}")
    videos = {path.name: path for path in root.rglob("video_*.mp4")}
    items: list[Item] = []
    sources: dict[str, Files] = {}
    for number, scene in enumerate(read_json(paths[0])):
        where = f", entry {number}"
        check_columns(paths[0], scene, ("scene_index", "video_filename", "questions"), where)
        name = scene["video_filename"]
        sources[name] = Files(video=str(videos.get(name, root / name)))
        for row in scene["questions"]:
            needs = ("question_id", "question", "question_type")
            check_columns(paths[0], row, needs, where)
            kind = row["question_type"].split("_")[0]
            if kind not in TYPES:
                raise BenchError(f"{paths[0]}{where}: question_type {row['question_type']!r}")
            if part in ("", kind):
                items += _items(paths[0], scene, row, kind)
    asked = {item.cluster for item in items}
    sources = {name: files for name, files in sources.items() if name in asked}
    return Bench(
        "clevrer",
        Suite("clevrer", tuple(items), sources),
        metric,
        faults_of(items, missing_files(sources)),
    )


def metric(items: Sequence[Item], answers: Answers) -> dict[str, float]:
    """Descriptive accuracy; per option and per question for each other type and together."""
    values = grades(items, answers)
    found: dict[str, float] = {}
    told = [item for item in items if item.family == "descriptive"]
    if told:
        found["descriptive_accuracy"] = mean_of(values[item.id] for item in told)
    judged = [item for item in items if item.family != "descriptive"]
    for kind in (*TYPES[1:], ""):
        part = [item for item in judged if kind in ("", item.family)]
        if part:
            prefix = f"{kind}_" if kind else ""
            right = all_right(part, values, lambda item: item.group)
            found[f"{prefix}per_option"] = mean_of(values[item.id] for item in part)
            found[f"{prefix}per_question"] = mean_of(right.values())
    return found


def motion(path: str | Path) -> dict[int, list[tuple[float, tuple[float, ...], tuple[float, ...]]]]:
    """Where the objects of an annotation are and how fast, as targets of a probe.

    Returns:
        Object id -> (seconds, location, velocity) for every frame in which it is in view.

    Raises:
        BenchError: the file lacks motion_trajectory, or an object lacks a column.
    """
    annotation = read_json(path)
    check_columns(path, annotation, ("motion_trajectory",))
    found: dict[int, list[tuple[float, tuple[float, ...], tuple[float, ...]]]] = {}
    for frame in annotation["motion_trajectory"]:
        check_columns(path, frame, ("frame_id", "objects"))
        for thing in frame["objects"]:
            check_columns(path, thing, ("object_id", "location", "velocity"))
            if thing.get("inside_camera_view", True):
                row = (frame["frame_id"] / FPS, tuple(thing["location"]), tuple(thing["velocity"]))
                found.setdefault(thing["object_id"], []).append(row)
    return found


def _items(path: Path, scene: dict[str, Any], row: dict[str, Any], kind: str) -> list[Item]:
    name = f"{scene['scene_index']:05d}/{row['question_id']}"
    if kind == "descriptive":
        check_columns(path, row, ("answer",), f", {name} (the test set has no answers)")
        if row["answer"] not in WORDS:
            raise BenchError(f"{path}, {name}: answer {row['answer']!r} is none of {WORDS}")
        return [_item(name, scene, row["question"], WORDS, WORDS.index(row["answer"]), kind)]
    check_columns(path, row, ("choices",), f", {name}")
    items = []
    for choice in row["choices"]:
        needs = ("choice_id", "choice", "answer")
        check_columns(path, choice, needs, f", {name} (the test set has no answers)")
        if choice["answer"] not in ("correct", "wrong"):
            raise BenchError(f"{path}, {name}: {choice['answer']!r} is not correct or wrong")
        question = f"{row['question']} {choice['choice']}?"
        answer = 0 if choice["answer"] == "correct" else 1
        full = f"{name}/{choice['choice_id']}"
        items.append(_item(full, scene, question, ("yes", "no"), answer, kind))
    return items


def _item(  # noqa: PLR0913 - what makes a question
    name: str,
    scene: dict[str, Any],
    question: str,
    choices: tuple[str, ...],
    answer: int,
    kind: str,
) -> Item:
    return Item(
        id=name,
        family=kind,
        score="mc",
        evidence=(Evidence(scene["video_filename"]),),
        variants=("video",),
        question=question,
        choices=choices,
        answer=answer,
        chance=1 / len(choices),
        cluster=scene["video_filename"],
        group="/".join(name.split("/")[:2]),
        split="validation",
    )
