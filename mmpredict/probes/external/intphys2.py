"""IntPhys 2 (Bordes et al. 2025, arXiv 2506.09849): pairs of a possible and an impossible video.

Layout: `{Debug,Main}/metadata.csv` (SceneIndex, filename, type, condition, env, game_name, ...) and
`Videos/<filename>.mp4`. The name of a video stands under `filename`, `name` or `file_name`, with or
without folder and suffix. HeldOut has videos but no labels; its answers go out as JSONL with
`model_answer`, true where the model holds the video to be possible.

Licence: CC BY-NC 4.0, for evaluation only.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mmpredict.probes.external.bench import (
    Answers,
    Bench,
    BenchError,
    asked_answers,
    faults_of,
    grades,
    mean_of,
    means_by,
    missing_files,
)
from mmpredict.probes.external.tables import listing, need_folder, read_rows
from mmpredict.probes.items import Evidence, Files, Item, Suite

NEEDS = ("SceneIndex", "filename", "type", "condition")
SPELLINGS = {"filename": ("name", "file_name", "filename")}
TYPES = ("1_Possible", "1_Impossible", "2_Possible", "2_Impossible")
# which scenery is how hard, and which games have a camera that stands still
DIFFICULTY = {"BasicLevel_0": "easy"}
DIFFICULTY |= dict.fromkeys(
    ("SaltFlats_0", "DesertMap_0", "RaceTrack_0", "TropicalIsland_0"), "medium"
)
DIFFICULTY |= dict.fromkeys(
    ("PLVDaylight_0", "Egypt_0", "RuralAustralia03_0", "ParkingGarage_0", "None"), "hard"
)
FIXED = {
    "FixedMarryPoppins",
    "FixedJumpSolidity",
    "RotatingCup",
    "HotAirBallon",
    "SphereFallingDown",
    "SolidityFallingFlat",
}
REFUSAL = "IntPhys 2 is licensed for evaluation only; probes trained on it are not"


def load(root: Path, part: str = "") -> Bench:
    """`part` is Debug, Main or HeldOut; all that are there if empty."""
    need_folder(root)
    names = [n for n in ("Debug", "Main", "HeldOut") if (root / n).is_dir() and part in ("", n)]
    if not names:
        raise BenchError(f"{root} has no {part or 'Debug, Main, HeldOut'}; it has {listing(root)}")
    items: list[Item] = []
    sources: dict[str, Files] = {}
    for name in names:
        if name != "HeldOut":
            found, files = _pairs(root / name)
            items += found
            sources |= files
    secret, files = _held_out(root / "HeldOut") if "HeldOut" in names else ((), {})
    notes = (f"{len(files)} held-out videos: exported, not scored",) if files else ()
    return Bench(
        "intphys2",
        Suite("intphys2", tuple(items), sources),
        metric,
        faults_of(items, missing_files(sources)),
        notes,
        Suite("intphys2-heldout", secret, files),
        {"heldout": write_held_out},
        training_refused=REFUSAL,
    )


def metric(items: Sequence[Item], answers: Answers) -> dict[str, float]:
    """Share of pairs in which the impossible video surprises more; ties half, `_strict` wrong."""
    values = grades(items, answers)
    found: dict[str, float] = {}
    for split in dict.fromkeys(item.split for item in items):
        part = [item for item in items if item.split == split]
        found[f"{split}_accuracy"] = mean_of(values[item.id] for item in part)
        found[f"{split}_accuracy_strict"] = mean_of(float(values[item.id] == 1) for item in part)
        for key in ("condition", "difficulty", "camera"):
            for name, value in means_by(part, values, lambda i, k=key: i.condition[k]).items():
                found[f"{split}_{key}_{name}"] = value
    return found


def write_held_out(bench: Bench, answers: Answers, out: Path) -> list[Path]:
    """One line a video. Half of the videos are possible, so those that surprise no more than the
    median are called possible."""
    items = bench.unlabelled.items
    asked_answers(items, answers, bench.name)
    surprise = {
        e.source: v for item in items for e, v in zip(item.evidence, answers[item.id], strict=True)
    }
    if not surprise:
        raise BenchError(f"{bench.name}: there is no HeldOut folder to export answers of")
    middle = statistics.median(surprise.values())
    path = out / "intphys2_heldout.jsonl"
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for source, value in sorted(surprise.items()):
            row = {"row_id": PurePosixPath(source).name, "model_answer": value <= middle}
            file.write(json.dumps(row) + "\n")
    return [path]


def _pairs(folder: Path) -> tuple[list[Item], dict[str, Files]]:
    path = folder / "metadata.csv"
    scenes: dict[str, dict[str, dict[str, Any]]] = {}
    for row in read_rows(path, NEEDS, SPELLINGS):
        if row["type"] not in TYPES:
            raise BenchError(f"{path}: type {row['type']!r} is not one of {', '.join(TYPES)}")
        of_scene = scenes.setdefault(row["SceneIndex"], {})
        if row["type"] in of_scene:
            raise BenchError(f"{path}: scene {row['SceneIndex']} has two videos {row['type']}")
        of_scene[row["type"]] = row
    items, sources = [], {}
    for scene, rows in scenes.items():
        for number in ("1", "2"):
            pair = [rows.get(f"{number}_{kind}") for kind in ("Possible", "Impossible")]
            if pair == [None, None]:
                continue
            if None in pair:
                raise BenchError(f"{path}: scene {scene} has {', '.join(rows)}; a pair needs both")
            names = [_source(folder, row["filename"]) for row in pair]
            sources |= {n: Files(video=str(folder / "Videos" / f"{_stem(n)}.mp4")) for n in names}
            items.append(_item(folder.name, scene, number, names, pair[0]))
    return items, sources


def _item(split: str, scene: str, number: str, names: list[str], row: dict[str, Any]) -> Item:
    game, environment = row.get("game_name", ""), row.get("env", "")
    camera = "fixed" if game in FIXED else "moving" if game else "unknown"
    law = row["condition"].split("_")[0]  # immutability_texture, continuity_swap
    return Item(
        id=f"{split}/{scene}/{number}",
        family=law,
        score="voe",
        evidence=tuple(Evidence(name) for name in names),
        variants=("video",),
        possible=(True, False),
        cut_s=0.0,
        cluster=f"{split}/{scene}",
        group=f"{split}/{scene}",
        split=split,
        condition={
            "condition": law,
            "difficulty": DIFFICULTY.get(environment, "unknown"),
            "camera": camera,
        },
    )


def _held_out(folder: Path) -> tuple[tuple[Item, ...], dict[str, Files]]:
    videos = sorted(need_folder(folder, "Videos").glob("*.mp4"))
    if len(videos) < 2:
        raise BenchError(f"{folder}/Videos has {len(videos)} mp4 files; it needs two or more")
    names = [_source(folder, video.name) for video in videos]
    files = {name: Files(video=str(video)) for name, video in zip(names, videos, strict=True)}
    starts = range(0, len(names) - 1, 2)
    chunks = [names[k : k + 2] if k + 3 != len(names) else names[k:] for k in starts]
    items = [
        Item(
            id=f"HeldOut/{number:04d}",
            family="heldout",
            score="voe",
            evidence=tuple(Evidence(name) for name in chunk),
            variants=("video",),
            possible=(True, *[False] * (len(chunk) - 1)),  # placeholders, never scored
            cut_s=0.0,
            cluster=chunk[0],
            split="test_unlabelled",
        )
        for number, chunk in enumerate(chunks)
    ]
    return tuple(items), files


def _stem(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).name.removesuffix(".mp4")


def _source(folder: Path, name: str) -> str:
    return f"{folder.name}/{_stem(name)}"
