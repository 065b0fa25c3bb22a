"""Laws of scenes: pure functions of their names; splits apart; one world at every rate and size."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmpredict.world import (
    COLOURS,
    FAMILIES,
    SHAPES,
    SPLITS,
    Condition,
    Recording,
    Scene,
    draw_scene,
    is_held_out_pair,
    is_held_out_place,
)
from mmpredict.world.families import build_stage

ROOT = Path(__file__).resolve().parents[2]


def fingerprint(recordings: list[Recording]) -> str:
    digest = hashlib.sha256()
    for recording in recordings:
        clip, truth = recording.clip, recording.truth
        digest.update(clip.frames_TCHW.numpy().tobytes())
        digest.update(clip.waveform_CS.numpy().tobytes())
        digest.update(repr((clip.texts, recording.questions, truth.events)).encode())
        for tensor in (truth.position_TN3, truth.visible_TN, truth.support_TN, truth.container_TN):
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def film_some() -> list[Recording]:
    return [draw_scene(k, split=SPLITS[k % 7], seed=3).record(32) for k in range(15)]


def test_same_bytes_in_two_processes():
    code = "from tests.world.test_world_scene import *; print(fingerprint(film_some()))"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == fingerprint(film_some())


def test_filming_leaves_the_global_generators_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    draw_scene(0, split="train", condition=Condition(camera_noise=2.0)).record(32)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_size_and_rate_do_not_change_what_happens(family):
    scene = draw_scene(5, split="train", families=(family,))
    slow, fast = scene.record(32, 8.0), scene.record((64, 48), 24.0, sample_rate=8000)
    assert slow.truth.events == fast.truth.events
    assert slow.clip.texts == fast.clip.texts and slow.questions == fast.questions
    assert torch.equal(slow.truth.times_s, fast.truth.times_s[::3])
    assert torch.equal(slow.truth.position_TN3, fast.truth.position_TN3[::3])
    assert torch.equal(slow.truth.support_TN, fast.truth.support_TN[::3])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_every_split_records(family, split):
    for index in range(3):
        recording = draw_scene(index, split=split, families=(family,)).record(32)
        clip, truth = recording.clip, recording.truth
        T, N = 16, len(truth.names)
        assert clip.frames_TCHW.shape == (T, 3, 32, 32) and clip.waveform_CS.shape == (2, 32000)
        assert truth.position_TN3.shape == (T, N, 3) and truth.visible_TN.shape == (T, N)
        assert len(set(truth.names)) == N and recording.questions
        visible_TN = truth.visible_TN.numpy()
        assert np.isfinite(truth.position_TN3.numpy()).all()
        assert np.isfinite(clip.waveform_CS.numpy()).all()
        assert 0 <= visible_TN.min() and 0.5 < visible_TN.max() <= 1
        times = [event.time_s for event in truth.events]
        assert times == sorted(times)


def test_splits_share_no_scene():
    seeds = {split: {draw_scene(k, split=split).seed for k in range(500)} for split in SPLITS}
    assert len(set().union(*seeds.values())) == 500 * len(SPLITS)


def test_compositions_are_kept_apart():
    def pairs(split: str) -> set[tuple[str, str]]:
        found = set()
        for family in FAMILIES:
            for seed in range(60):
                stage = build_stage(seed, family, split, Condition())
                found |= {(spec.colour, spec.shape) for spec in stage.objects}
        return found

    seen, unseen = pairs("train"), pairs("test_comp")
    assert not seen & unseen
    assert all(is_held_out_pair(*pair) for pair in unseen)
    assert {c for c, _ in seen} == set(COLOURS) and {s for _, s in seen} == set(SHAPES)
    assert {s for _, s in unseen} == set(SHAPES)
    assert pairs("dev") <= {(c, s) for c in COLOURS for s in SHAPES if not is_held_out_pair(c, s)}


def test_layouts_speeds_and_counts_are_kept_apart():
    for family in FAMILIES:
        for seed in range(20):
            stages = {s: build_stage(seed, family, s, Condition()) for s in SPLITS}
            for split, stage in stages.items():
                inside = any(is_held_out_place(spec.lane, spec.x) for spec in stage.objects)
                assert inside == (split == "test_layout"), (family, split)
            assert len(stages["test_size"].objects) >= 5 > len(stages["train"].objects)
    moving = [
        max(abs(s.vx) for s in build_stage(seed, "occluder", split, Condition()).objects)
        for split in ("train", "test_speed")
        for seed in range(20)
    ]
    assert max(moving[:20]) < min(moving[20:])


def test_clips_move_and_are_told():
    moving = []
    for index in range(50):
        recording = draw_scene(index, split="train").record(32, sound=False)
        frames = recording.clip.frames_TCHW.numpy().astype(np.int16)
        moving.append((np.abs(np.diff(frames, axis=0)).max((1, 2, 3)) > 12).mean())
        assert recording.clip.texts
    assert np.mean(moving) > 0.75


def test_longer_clips_keep_time():
    recording = Scene(1, "pick_up", Condition(seconds=3.5)).record(32, 10.0)
    assert len(recording.clip.times_s) == 35 and recording.clip.waveform_CS.shape[1] == 56000


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (lambda: Scene(0, "stacks"), "roll_and_bounce"),
        (lambda: Scene(0, "stack", split="tests"), "test_iid"),
        (lambda: Scene(0, "stack").record(8), "16 px"),
        (lambda: Scene(0, "stack").record(channels=3), "1 or 2"),
        (lambda: Condition(seconds=0.1), "1 or more"),
        (lambda: Condition(speech="loud"), "captions"),
        (lambda: Condition(speed=(2.0, 1.0)), "least, most"),
        (lambda: Scene(0, "stack", Condition(num_objects=(30, 30))).record(), "fewer objects"),
        (lambda: draw_scene(0, split="all"), "train"),
        (lambda: draw_scene(0, split="train", families=()), "one or more"),
    ],
)
def test_mistakes_are_explained(call, hint):
    with pytest.raises(ValueError, match=hint):
        call()


def test_memory_does_not_grow_with_scenes():
    """The engine's own buffers are never freed by it; a new pair per scene lost 0.25 MB each."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        pytest.skip("needs /proc")

    def resident_mb() -> float:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def record(first: int, last: int) -> float:
        for index in range(first, last):
            draw_scene(index, split="train").record(frames=False, sound=False)
        return resident_mb()

    before = record(0, 60)
    assert record(60, 200) - before < 10  # a leak of 0.25 MB a scene would show 35
