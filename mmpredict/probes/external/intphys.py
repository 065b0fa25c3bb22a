"""IntPhys 2019 (Riochet et al. 2018, arXiv 1803.07616): permanence, shape, continuity in sets of
two possible and two impossible movies.

Layout: `dev/O1/<scene>/<1..4>/scene/*.png` and `<1..4>/status.json` (header.is_possible; version
1.0 has a bare `possible`). Scenes of the test set have no status; they are exported as `answer.txt`
in a zip, one `O1/0001/1 0.9751` a line.

The authors' score.py counts a tie as right (`pos < imp` is the error); other code counts it as
wrong. Both are given, and `relative_error` counts half. Their split into visible and occluded reads
the scene's name, which current releases do not carry: where it is missing, so is the split.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmpredict.probes.external.bench import (
    Answers,
    Bench,
    BenchError,
    asked_answers,
    faults_of,
    grades,
    mean_of,
    missing_files,
)
from mmpredict.probes.external.tables import listing, need_folder, read_json
from mmpredict.probes.items import Evidence, Files, Item, Suite
from mmpredict.probes.stats import auroc

BLOCKS = ("O1", "O2", "O3")
MOVIES = ("1", "2", "3", "4")
FPS = 15.0
CONDITIONS = ("visible", "occluded")


def load(root: Path, part: str = "") -> Bench:
    """Scenes of `dev` (or of all folders with blocks); `part` is a block."""
    need_folder(root)
    folders = [root, *(root / name for name in ("dev", "test") if (root / name).is_dir())]
    blocks = [f / b for f in folders for b in BLOCKS if (f / b).is_dir() and part in ("", b)]
    if not blocks:
        raise BenchError(f"{root} has no {part or 'O1, O2 or O3'}, nor in dev/; {listing(root)}")
    known: list[Item] = []
    secret: list[Item] = []
    shown: dict[str, Files] = {}
    hidden: dict[str, Files] = {}  # scenes of dev and test may have the same names
    for block in blocks:
        for scene in sorted(entry for entry in block.iterdir() if entry.is_dir()):
            marks = _marks(scene)
            names = [f"{block.name}/{scene.name}/{movie}" for movie in MOVIES]
            files = {n: _movie(scene / m / "scene") for n, m in zip(names, MOVIES, strict=True)}
            (hidden if marks is None else shown).update(files)
            (secret if marks is None else known).append(_item(names, block.name, scene.name, marks))
    return Bench(
        "intphys",
        Suite("intphys", tuple(known), shown),
        metric,
        faults_of(known, missing_files(shown)),
        (f"{len(secret)} scenes have no status.json: exported, not scored",) if secret else (),
        Suite("intphys-test", tuple(secret), hidden),
        {"answer": write_answer},
    )


def metric(items: Sequence[Item], answers: Answers) -> dict[str, float]:
    """Equations 1 and 2 of the paper for each block and condition, and means over the blocks."""
    found: dict[str, float] = {}
    for block in dict.fromkeys(item.family for item in items):
        of_block = [item for item in items if item.family == block]
        found.update(_errors(of_block, answers, f"{block}_"))
        for condition in CONDITIONS:
            of_both = [item for item in of_block if item.condition.get("condition") == condition]
            if of_both:
                found.update(_errors(of_both, answers, f"{block}_{condition}_"))
    for name in ("relative_error", "relative_error_official", "relative_error_strict"):
        found[name] = mean_of(v for k, v in found.items() if k[2:] == f"_{name}")
    found["absolute_error"] = mean_of(v for k, v in found.items() if k[2:] == "_absolute_error")
    return found


def _errors(items: Sequence[Item], answers: Answers, prefix: str) -> dict[str, float]:
    lost, tied_or_lost = [], []
    possible: list[float] = []
    impossible: list[float] = []
    for item in items:
        surprise = answers[item.id]
        lawful = [-s for s, p in zip(surprise, item.possible, strict=True) if p]
        broken = [-s for s, p in zip(surprise, item.possible, strict=True) if not p]
        lost.append(float(sum(lawful) < sum(broken)))
        tied_or_lost.append(float(sum(lawful) <= sum(broken)))
        possible += lawful
        impossible += broken
    return {
        f"{prefix}relative_error": 1 - mean_of(grades(items, answers).values()),
        f"{prefix}relative_error_official": mean_of(lost),
        f"{prefix}relative_error_strict": mean_of(tied_or_lost),
        f"{prefix}absolute_error": 1 - auroc(possible, impossible),
    }


def write_answer(bench: Bench, answers: Answers, out: Path) -> list[Path]:
    """`answer.zip` with the plausibility of every movie, from 0 to 1.

    Surprise is turned around and scaled by one straight line for all movies, so that both errors
    stay what they are.
    """
    items = bench.unlabelled.items if bench.unlabelled.items else bench.suite.items
    asked_answers(items, answers, bench.name)
    values = [v for item in items for v in answers[item.id]]
    low, width = min(values), (max(values) - min(values)) or 1.0
    lines = [
        f"{evidence.source} {1 - (surprise - low) / width:.10f}\n"
        for item in items
        for evidence, surprise in zip(item.evidence, answers[item.id], strict=True)
    ]
    path = out / "answer.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("answer.txt", "".join(lines))
    return [path]


def _marks(scene: Path) -> tuple[bool, ...] | None:
    """Of each movie, whether it is possible; None for a scene of the test set."""
    lacks = [movie for movie in MOVIES if not (scene / movie / "scene").is_dir()]
    if lacks:
        raise BenchError(f"{scene} needs 1..4/scene; {', '.join(lacks)} missing; {listing(scene)}")
    found = [scene / movie / "status.json" for movie in MOVIES]
    there = [path for path in found if path.is_file()]
    if not there:
        return None
    if len(there) < len(MOVIES):
        raise BenchError(f"{scene}: {len(there)} of 4 movies have a status.json; needs all or none")
    marks = tuple(_mark(path) for path in found)
    if marks.count(True) != 2:
        raise BenchError(f"{scene}: possible are {marks}; a set has two possible movies of four")
    return marks


def _mark(path: Path) -> bool:
    status: Mapping[str, Any] = read_json(path)
    header = status.get("header", {})
    mark = header.get("is_possible", status.get("possible"))
    if not isinstance(mark, bool):
        raise BenchError(
            f"{path}: no true or false at header.is_possible (nor at possible, as in version 1.0); "
            f"found {', '.join(status)}; header: {', '.join(header) or 'nothing'}"
        )
    return mark


def _movie(folder: Path) -> Files:
    pictures = sorted(p for p in folder.iterdir() if p.suffix in (".png", ".jpg", ".jpeg"))
    if not pictures:
        raise BenchError(f"{folder} has no pictures; it has {listing(folder)}")
    return Files(images=tuple(map(str, pictures)), end_s=len(pictures) / FPS)


def _item(names: list[str], block: str, scene: str, marks: tuple[bool, ...] | None) -> Item:
    condition = [name for name in CONDITIONS if name in scene]
    return Item(
        id=f"{block}/{scene}",
        family=block,
        score="voe",
        evidence=tuple(Evidence(name) for name in names),
        variants=("video",),
        possible=marks or (True, True, False, False),  # placeholders, never scored
        cut_s=0.0,
        cluster=f"{block}/{scene}",
        split="dev" if marks else "test_unlabelled",
        condition={"condition": condition[0]} if condition else {},
    )
