"""Physics-IQ: the score from measures, measures from masks and frames, both from files."""

from __future__ import annotations

import csv
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from mmpredict.media import write_clip
from mmpredict.probes.external import BenchError, load_bench
from mmpredict.probes.external.physics_iq import (
    VIEWS,
    Shots,
    View,
    measured,
    overlap,
    physics_iq,
    weighted_overlap,
)
from mmpredict.schema import Clip

from .layouts import put, table

TOLERANCE = 1e-9
SCENE = "trimmed-ball-and-block-fall"
FRAMES = 8


def random_view(generator) -> View:
    """Numbers from 0.2 to 1, errors small."""
    draw = generator.uniform
    values = {f.name: draw(0.2, 1) for f in fields(View)}
    for name in ("overlap", "overlap_takes"):
        values[name] = draw(0.2, 1, FRAMES).tolist()
    for name in ("mse", "mse_takes"):
        values[name] = draw(0, 0.1, FRAMES).tolist()
    return View(**values)


def plain_score(scenes) -> float:
    """The published formula on columns, written anew from calculate_iq_score.py's arithmetic:
    per-frame numbers to 4 places, means over views and frames within a scene, then over scenes;
    of the takes, means over scenes and frames within a view, then over views, rounded."""
    four = {name: [] for name in ("mse", "overlap", "spatial", "weighted")}
    for scene in scenes:
        for name in ("mse", "overlap"):
            joined = [round(x, 4) for view in VIEWS for x in getattr(scene[view], name)]
            four[name].append(sum(joined) / len(joined))
    takes = {}
    for name in ("mse_takes", "overlap_takes"):
        by_view = []
        for view in VIEWS:
            column = [round(x, 4) for scene in scenes for x in getattr(scene[view], name)]
            by_view.append(sum(column) / len(column))
        takes[name] = round(sum(by_view) / 3, 4)
    for name, places in (("spatial", 5), ("weighted", 4)):
        four[name] = [getattr(scene[view], name) for scene in scenes for view in VIEWS]
        column = [getattr(scene[view], f"{name}_takes") for scene in scenes for view in VIEWS]
        takes[f"{name}_takes"] = round(sum(column) / len(column), places)
    mean = {name: sum(column) / len(column) for name, column in four.items()}
    third = sum(mean[n] / takes[f"{n}_takes"] for n in ("overlap", "spatial", "weighted")) / 3
    return round(max(0.0, min(100.0, 100 * (third - (mean["mse"] - takes["mse_takes"])))), 2)


def test_score_is_the_published_formula():
    generator = np.random.default_rng(0)
    seen = []
    for _ in range(30):
        scenes = [{view: random_view(generator) for view in VIEWS} for _ in range(3)]
        # worse than the second take, so that the score is not always 100
        worse = [
            {
                v: replace(s, spatial=0.4 * s.spatial, weighted=0.3 * s.weighted)
                for v, s in x.items()
            }
            for x in scenes
        ]
        for rows in (scenes, worse):
            scored = physics_iq(rows)["physics_iq"]
            assert abs(scored - plain_score(rows)) < TOLERANCE
            seen.append(scored)
    assert len(set(seen)) > 20 and min(seen) > 0


def test_score_by_hand():
    """As good as a second take is 100; half of every overlap and no error more is 50."""
    same = View([0.02] * 2, [0.8, 0.6], 0.5, 0.4, [0.02] * 2, [0.8, 0.6], 0.5, 0.4)
    assert physics_iq([dict.fromkeys(VIEWS, same)])["physics_iq"] == 100
    half = replace(same, overlap=[0.4, 0.3], spatial=0.25, weighted=0.2)
    assert physics_iq([dict.fromkeys(VIEWS, half)])["physics_iq"] == 50
    dark = replace(half, mse=[0.12, 0.12])
    assert physics_iq([dict.fromkeys(VIEWS, dark)])["physics_iq"] == 40
    nothing = replace(half, mse=[1.0, 1.0], overlap=[0, 0], spatial=0, weighted=0)
    assert physics_iq([dict.fromkeys(VIEWS, nothing)])["physics_iq"] == 0


def test_measures_by_hand():
    """Take 1 moves at the first of two pixels, in both frames; the generated one in one frame, and
    then at the other pixel."""
    first = np.array([[[1, 0]], [[1, 0]]], dtype=bool)
    made = np.array([[[1, 0]], [[0, 1]]], dtype=bool)
    still = np.zeros((2, 1, 2), dtype=bool)
    frames = [np.full((2, 3, 1, 2), v) for v in (0.5, 0.7, 0.1)]
    view = measured(Shots(tuple(frames), (first, first, made)))
    assert view.overlap == [1, 0] and view.overlap_takes == [1, 1]
    assert view.spatial == 0.5 and view.spatial_takes == 1
    # shares (1, 0) and (1/2, 1/2): 1/2 over 3/2
    assert view.weighted == pytest.approx(1 / 3, abs=TOLERANCE)
    assert view.mse == pytest.approx([0.16, 0.16]) and view.mse_takes == pytest.approx([0.04] * 2)
    assert overlap(still[0], still[0]) == weighted_overlap(still, still) == 1


def film(path, shift: int, *, mask: bool) -> None:
    """A bright square of 8 x 8 that moves to the right, 2 pixels a frame from `shift` on."""
    frames = torch.zeros(FRAMES, 3, 32, 32, dtype=torch.uint8)
    for k in range(FRAMES):
        frames[k, :, 8:16, shift + 2 * k : shift + 2 * k + 8] = 255 if mask else 200
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(path, Clip(frames, torch.arange(FRAMES).double() / 30), crf=0)


def build(root, made_shift: int):
    rows = []
    for number, (take, view) in enumerate([(t, v) for t in (1, 2) for v in VIEWS], 1):
        code, shift = f"{number:04d}", 0 if take == 1 else 2
        name = f"30FPS_{view}_take-{take}_{SCENE}.mp4"
        film(
            root / f"split-videos/testing-videos/30FPS/{code}_testing-videos_{name}", shift, mask=0
        )
        film(root / f"video-masks/real/30FPS/{code}_video-masks_{name}", shift, mask=True)
        rows.append(
            {
                "scenario": f"{code}_{view}_take-{take}_{SCENE}.mp4",
                "description": "Two pillows, a caf\u00e9.",
                "category": "Solid Mechanics",
                "generated_video_name": f"{code}_{view}_{SCENE}.mp4",
                "unknown column": "x",
            }
        )
        if take == 1:
            folder = root / "split-videos/conditioning-videos/30FPS"
            film(folder / f"{code}_conditioning-videos_{name}", 0, mask=False)
            film(root / f"made/{code}_{view}_{SCENE}.mp4", made_shift, mask=False)
            film(root / f"made/masks/{code}_video-masks_{name}", made_shift, mask=True)
    put(root / "descriptions.csv", table(rows))
    return root


def test_folder_as_good_as_the_second_take(tmp_path):
    bench = load_bench("physics_iq", build(tmp_path, made_shift=2))
    assert [task.file[:4] for task in bench.continuations] == ["0001", "0002", "0003"]
    assert {task.seconds for task in bench.continuations} == {5.0}
    # to the rounding of the second take's numbers, as the authors round them
    assert bench.judge(tmp_path / "made")["physics_iq"] == pytest.approx(100, abs=0.02)


def test_folder_that_is_worse_than_the_second_take(tmp_path):
    """The square 6 pixels off, against 2 of the second take."""
    bench = load_bench("physics_iq", build(tmp_path, made_shift=6))
    scored = bench.judge(tmp_path / "made")
    assert 0 < scored["physics_iq"] < 60 and scored["scenes"] == 1
    # at a quarter of the size the middle two of every four pixels count: 6 of 32 pixels are 1.5
    assert 0 < scored["spatiotemporal_iou"] < 0.5


def test_tasks_and_names(tmp_path):
    bench = load_bench("physics_iq", build(tmp_path, made_shift=2))
    (path,) = bench.export("tasks", {}, tmp_path / "out")
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    assert rows[0]["generated_video_name"] == f"0001_perspective-left_{SCENE}.mp4"
    assert rows[0]["conditioning_video"].endswith(f"take-1_{SCENE}.mp4")
    (tmp_path / "made" / f"0002_perspective-center_{SCENE}.mp4").unlink()
    with pytest.raises(BenchError, match=f"'{SCENE}': 0002 is missing"):
        bench.judge(tmp_path / "made")


def test_a_damaged_video_is_named(tmp_path):
    bench = load_bench("physics_iq", build(tmp_path, made_shift=2))
    put(tmp_path / "made" / f"0001_perspective-left_{SCENE}.mp4", b"rubbish")
    with pytest.raises(BenchError, match=r"cannot be read: .*0001_perspective-left_"):
        bench.judge(tmp_path / "made")
    with pytest.raises(BenchError, match="no take-1 of Fluids|nothing of|has no"):
        load_bench("physics_iq:Fluids", tmp_path)
