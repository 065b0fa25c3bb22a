"""Laws of the clock: pure arithmetic, no files."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmpredict.media.audio import mixing_matrix, resample
from mmpredict.media.clock import (
    FrameGrid,
    SampleTimeline,
    file_origin_s,
    resampling_lattice,
    snap_to_lattice,
)


def shown(grid, stamps, end_s):
    ends = [*stamps[1:], end_s]
    return [
        (k, i) for i, (a, b) in enumerate(zip(stamps, ends, strict=True)) for k in grid.show(a, b)
    ]


def test_the_grid_shows_the_last_frame_that_is_due():
    assert shown(FrameGrid(10, math.inf), [0.0, 0.15, 0.31], 0.5) == [
        (0, 0),
        (1, 0),
        (2, 1),
        (3, 1),
        (4, 2),
    ]


def test_every_grid_time_is_shown_once_for_any_stamps():
    stamps = sorted(torch.rand(200, generator=torch.Generator().manual_seed(0)).mul(9).tolist())
    steps = [k for k, _ in shown(FrameGrid(7.3, math.inf), stamps, 9.1)]
    assert steps == list(range(steps[0], steps[0] + len(steps)))


def test_stamps_rounded_to_milliseconds_repeat_no_frame():
    stamps = [round(k / 30, 3) for k in range(300)]
    assert shown(FrameGrid(30, math.inf), stamps, 10.0) == [(k, k) for k in range(300)]


def test_a_first_frame_stands_in_for_less_than_half_a_step():
    assert shown(FrameGrid(10, math.inf), [0.04], 0.2) == [(0, 0), (1, 0)]
    assert shown(FrameGrid(10, math.inf), [0.06], 0.2) == [(1, 0)]


def test_the_grid_stops_before_its_end():
    assert [k for k, _ in shown(FrameGrid(10, 0.5), [0.0], 9.0)] == [0, 1, 2, 3, 4]


def test_the_origin_is_the_earliest_start_and_priming_is_none():
    assert file_origin_s([1.4, 1.6]) == 1.4
    assert file_origin_s([-0.02, 0.0]) == 0.0
    assert file_origin_s([None, 0.5]) == 0.5
    assert file_origin_s([None]) == 0.0


def test_sound_gaps_become_holes_and_overlaps_are_cut():
    line = SampleTimeline(1000)
    assert line.place(0, 100) == (0, 0)
    assert line.place(104, 100) == (100, 0)  # jitter
    assert line.place(300, 100) == (300, 0)  # 100 samples are missing
    assert line.place(350, 100) == (400, 50)  # 50 came twice
    assert (line.hole_samples, line.cut_samples, line.next_index) == (100, 50, 450)
    assert line.place(0, 100) == (450, 100)  # all of it came before


def test_rounded_stamps_find_their_lattice():
    for n in range(50):
        truth = 37 + n * 1024
        rounded = round(truth / 44.1) * 44.1  # a stamp in whole milliseconds
        assert snap_to_lattice(round(rounded), 37, 1024, 44.1) == truth
    assert snap_to_lattice(500, 37, 1024, 44.1) == 500  # not on it: the stamp counts


@pytest.mark.parametrize("rates", [(48_000, 16_000), (44_100, 16_000), (16_000, 24_000)])
def test_resampling_has_no_lag(rates):
    source, target = rates
    time_s = np.arange(source) / source
    tone = np.sin(2 * np.pi * 440 * time_s).astype(np.float32)[None]
    exact = np.sin(2 * np.pi * 440 * np.arange(target) / target)
    found = resample(tone, source, target)[0]
    assert abs(len(found) - target) <= 2
    inner = slice(200, target - 200)
    assert np.abs(found[inner] - exact[inner]).max() < 2e-3
    a, b = resampling_lattice(source, target)
    assert a * target == b * source


def test_mixing_never_clips_and_keeps_sides():
    surround = ["FL", "FR", "FC", "LFE", "BL", "BR"]
    for names in (
        surround,
        ["FL", "FR"],
        ["NONE"] * 4,
        ["FL", "FR", "FC", "LFE", "SL", "SR", "BL", "BR"],
    ):
        for channels in (1, 2):
            matrix = mixing_matrix(names, channels)
            assert matrix.shape == (channels, len(names))
            assert matrix.min() >= 0 and matrix.sum(1).max() == pytest.approx(1.0)
    left, right = mixing_matrix(surround, 2)
    assert left[0] > 0 and right[0] == 0 and left[3] == 0 and left[2] == right[2]
    assert mixing_matrix(["FL", "FR"], 1).tolist() == [[0.5, 0.5]]
