"""Physics-IQ (Motamed et al. 2025, arXiv 2501.09038): does a generated video move where the real
one moves?

Layout: `split-videos/{conditioning,testing}-videos/30FPS/NNNN_<kind>_30FPS_<view>_take-<k>_<scene>.
mp4`, `video-masks/real/30FPS/NNNN_video-masks_30FPS_...`, `switch-frames`, and `descriptions.csv`
(scenario, description, category, generated_video_name). 66 scenes, three views, two takes; a model
goes on from the conditioning videos of take 1, for five seconds.

A folder of generated videos holds `NNNN_*.mp4` and, below `masks/`, `NNNN_*.mp4`: where it moves,
as the authors' own mask generator writes it. Motion masks are compared in space and time, in space,
and in space weighted by how often; each is divided by what the second take of the real scene gets
against the first, and the excess of the squared error over that of the second take is taken off.
Rounding is the authors': numbers per frame to 4 places, the score to 2.

Shapes: T frames, H W pixels.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mmpredict.media import MediaError, read_clip
from mmpredict.probes.external.bench import Answers, Bench, BenchError, Continuation
from mmpredict.probes.external.tables import listing, need_folder, read_rows
from mmpredict.probes.items import Files, Item, Suite

VIEWS = ("perspective-left", "perspective-center", "perspective-right")
FPS = 30
SECONDS = 5
SHRINK = 4  # frames are compared at a quarter of the real ones' size
NEEDS = ("scenario", "description", "category", "generated_video_name")


@dataclass(frozen=True)
class View:
    """One view of a scene, measured.

    Args:
        mse: squared error of each frame, generated against take 1; values from 0 to 1.
        overlap: intersection over union of the masks of each frame.
        spatial, weighted: the same of where anything moves at all, and of how often.
        mse_takes, overlap_takes, spatial_takes, weighted_takes: take 2 against take 1.
    """

    mse: Sequence[float]
    overlap: Sequence[float]
    spatial: float
    weighted: float
    mse_takes: Sequence[float]
    overlap_takes: Sequence[float]
    spatial_takes: float
    weighted_takes: float


@dataclass(frozen=True)
class Shots:
    """Frames (T, 3, H, W) from 0 to 1 and masks (T, H, W) of take 1, take 2 and the generated."""

    frames: tuple[np.ndarray, np.ndarray, np.ndarray]
    masks: tuple[np.ndarray, np.ndarray, np.ndarray]


def load(root: Path, part: str = "") -> Bench:
    """`part` is a category ("Solid Mechanics"); all if empty."""
    root = need_folder(root)
    paths = [root / "descriptions.csv", root / "descriptions" / "descriptions.csv"]
    table = next((path for path in paths if path.is_file()), paths[0])
    rows = [row for row in read_rows(table, NEEDS) if part in ("", row["category"])]
    given = _by_number(_videos(root, "conditioning-videos"))
    sources: dict[str, Files] = {}
    tasks: list[Continuation] = []
    for row in rows:
        number = row["scenario"][:4]
        if "take-1" not in row["scenario"]:
            continue  # take 2 is only there to be compared with
        if number not in given:
            raise BenchError(f"{table}: {row['scenario']} has no conditioning video {number}_*.mp4")
        sources[number] = Files(video=str(given[number]))
        name = row["generated_video_name"]
        tasks.append(Continuation(name, number, float(SECONDS), row["description"], FPS))
    if not tasks:
        raise BenchError(f"{table} has no take-1 of {part or 'any category'}")
    names = {task.source for task in tasks}
    return Bench(
        "physics_iq",
        Suite("physics_iq", (), sources),
        metric,
        notes=(f"{len(tasks)} videos to generate; nothing is asked",),
        exports={"tasks": write_tasks},
        continuations=tuple(tasks),
        judge=partial(judge, root, names),
    )


def metric(items: Sequence[Item], answers: Answers) -> dict[str, float]:
    """Nothing is asked, so there is nothing to score here; see `judge`."""
    return {}


def judge(root: Path, names: set[str], generated: Path) -> dict[str, float]:
    """The score of a folder of generated videos with their masks.

    Raises:
        BenchError: a video or a mask is missing, unreadable or too short; says which.
    """
    real, masks = _by_number(_videos(root, "testing-videos")), _by_number(_masks(root))
    scenes: dict[str, dict[tuple[str, str], str]] = {}
    for number, path in real.items():
        parts = path.stem.split("_", 5)
        if len(parts) != 6 or parts[3] not in VIEWS:
            raise BenchError(
                f"{path}: expected NNNN_testing-videos_{FPS}FPS_<view>_take-<k>_<scene>"
            )
        scenes.setdefault(parts[5], {})[parts[3], parts[4]] = number
    made, made_masks = (_by_number(need_folder(generated, *f)) for f in ((), ("masks",)))
    rows: list[dict[str, View]] = []
    for scene, numbers in scenes.items():
        if not names & {numbers.get((view, "take-1"), "") for view in VIEWS}:
            continue
        row = {}
        for view in VIEWS:
            first, second = (_found(numbers, (view, k), scene) for k in ("take-1", "take-2"))
            triple = (first, second)
            paths = [_found(real, n, scene) for n in triple] + [_found(made, first, scene)]
            shown = [_found(masks, n, scene) for n in triple] + [_found(made_masks, first, scene)]
            row[view] = measured(_shots(paths, shown))
        rows.append(row)
    return physics_iq(rows)


def physics_iq(scenes: Sequence[Mapping[str, View]]) -> dict[str, float]:
    """The published score from the measures of all scenes, 0 to 100, and its parts.

    Args:
        scenes: for each, its three views.
    """
    views = [view for scene in scenes for view in scene.values()]
    mse = np.mean([_rounded_mean([scene[v].mse for v in VIEWS]) for scene in scenes])
    overlap = np.mean([_rounded_mean([scene[v].overlap for v in VIEWS]) for scene in scenes])
    spatial = np.mean([view.spatial for view in views])
    weighted = np.mean([view.weighted for view in views])
    mse_takes = round(np.mean([_over(scenes, v, "mse_takes") for v in VIEWS]), 4)
    overlap_takes = round(np.mean([_over(scenes, v, "overlap_takes") for v in VIEWS]), 4)
    spatial_takes = round(np.mean([view.spatial_takes for view in views]), 5)
    weighted_takes = round(np.mean([view.weighted_takes for view in views]), 4)
    ratios = (overlap / overlap_takes, spatial / spatial_takes, weighted / weighted_takes)
    score = 100 * (sum(ratios) / 3 - (mse - mse_takes))
    return {
        "physics_iq": round(float(max(min(score, 100.0), 0.0)), 2),
        "spatiotemporal_iou": float(overlap),
        "spatial_iou": float(spatial),
        "weighted_spatial_iou": float(weighted),
        "mse": float(mse),
        "scenes": len(scenes),
    }


def measured(shots: Shots) -> View:
    """Compare the generated with take 1, and take 2 with take 1."""
    take_1, take_2, made = ((mask > 0) for mask in shots.masks)
    real_1, real_2, video = shots.frames
    return View(
        mse=squared_errors(real_1, video),
        overlap=[overlap(a, b) for a, b in zip(take_1, made, strict=True)],
        spatial=overlap(take_1.any(0), made.any(0)),
        weighted=weighted_overlap(take_1, made),
        mse_takes=squared_errors(real_1, real_2),
        overlap_takes=[overlap(a, b) for a, b in zip(take_1, take_2, strict=True)],
        spatial_takes=overlap(take_1.any(0), take_2.any(0)),
        weighted_takes=weighted_overlap(take_1, take_2),
    )


def overlap(first_HW: np.ndarray, second_HW: np.ndarray) -> float:
    """Intersection over union; 1 where neither has anything."""
    union = np.logical_or(first_HW, second_HW).sum()
    return float(np.logical_and(first_HW, second_HW).sum() / union) if union else 1.0


def weighted_overlap(first_THW: np.ndarray, second_THW: np.ndarray) -> float:
    """Sum of the lesser over sum of the greater share of frames in which each pixel moves."""
    shares = [mask.sum(0) / len(mask) for mask in (first_THW, second_THW)]
    union = np.maximum(*shares).sum()
    return float(np.minimum(*shares).sum() / union) if union else 1.0


def squared_errors(first: np.ndarray, second: np.ndarray) -> list[float]:
    """Mean squared error of each frame."""
    return [float(v) for v in np.square(first - second).mean(axis=(1, 2, 3))]


def write_tasks(bench: Bench, answers: Answers, out: Path) -> list[Path]:
    """`tasks.csv`: what to generate from what, and under which name to hand it in."""
    path = out / "tasks.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["generated_video_name", "conditioning_video", "seconds", "description"])
        for task in bench.continuations:
            given = bench.suite.sources[task.source].video
            writer.writerow([task.file, given, task.seconds, task.prompt])
    return [path]


def _rounded_mean(rows: Sequence[Sequence[float]]) -> float:
    return float(np.mean([round(value, 4) for row in rows for value in row]))


def _over(scenes: Sequence[Mapping[str, View]], view: str, name: str) -> float:
    return _rounded_mean([getattr(scene[view], name) for scene in scenes])


def _shots(videos: Sequence[Path], masks: Sequence[Path]) -> Shots:
    first = _frames(videos[0])
    size = (first.shape[2] // SHRINK, first.shape[3] // SHRINK)
    frames = [_resized(f, size) / 255 for f in (first, *map(_frames, videos[1:]))]
    moving = [_resized(_frames(path), size)[:, 0] > 127 for path in masks]
    shortest = min(len(f) for f in (*frames, *moving))
    if any(len(f) != shortest for f in (*frames, *moving)):
        lengths = [len(f) for f in (*frames, *moving)]
        raise BenchError(f"{videos[2]}: frames of videos and masks are {lengths}; need the same")
    return Shots(tuple(frames), tuple(moving))


def _frames(path: Path) -> np.ndarray:
    """(T, 3, H, W) of the first five seconds."""
    try:
        clip = read_clip(path, duration_s=float(SECONDS), sound=False)
    except (MediaError, OSError) as error:
        raise BenchError(f"a video of Physics-IQ cannot be read: {error}") from error
    return clip.frames_TCHW[: FPS * SECONDS].float().numpy()


def _resized(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Between the four nearest pixels, not smoothed before, rounded half up to grey levels."""
    small = torch.nn.functional.interpolate(
        torch.from_numpy(frames), size=size, mode="bilinear", align_corners=False
    )
    return np.floor(small.double().numpy() + 0.5)


def _videos(root: Path, kind: str) -> Path:
    return need_folder(root, f"split-videos/{kind}/{FPS}FPS", f"{kind}/{FPS}FPS")


def _masks(root: Path) -> Path:
    return need_folder(root, f"video-masks/real/{FPS}FPS")


def _by_number(folder: Path) -> dict[str, Path]:
    """Videos by the four digits with which they begin."""
    found = {path.name[:4]: path for path in sorted(folder.glob("[0-9][0-9][0-9][0-9]_*.mp4"))}
    if not found:
        raise BenchError(f"{folder} has no NNNN_*.mp4; it has {listing(folder)}")
    return found


def _found(table: Mapping, key: object, scene: str) -> object:
    if key not in table:
        raise BenchError(
            f"Physics-IQ scene {scene!r}: {key} is missing; there is {list(table)[:6]}"
        )
    return table[key]
