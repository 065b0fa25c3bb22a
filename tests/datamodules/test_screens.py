"""Screens to pictures: by area, undistorted unless asked, frames and boxes in the same place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datamodules.games.screens import Fit, action_steps, count_within, frame_steps

TALL, FOUR_TO_THREE = (210, 160), 1.75  # a television's picture


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_a_whole_ratio_is_the_mean_of_its_pixels():
    screens = noise(3, 12, 20, 3)
    found = Fit((12, 20), (4, 5), how="squeeze").frames(screens)
    blocks = screens.reshape(3, 4, 3, 5, 4, 3).astype(float).mean((2, 4))
    assert found.dtype == torch.uint8 and tuple(found.shape) == (3, 3, 4, 5)
    error = np.abs(found.permute(0, 2, 3, 1).numpy() - blocks).max()
    assert error <= 0.5 + 255 / 4096


@pytest.mark.parametrize("how", ["crop", "squeeze"])
@pytest.mark.parametrize("size", [(24, 32), (32, 32), (10, 40)])
def test_any_ratio_is_the_area(size, how):
    """Against a screen of 16 x 16 points per pixel, each of which is wholly in one cell."""
    fit, fine = Fit((21, 16), size, FOUR_TO_THREE, how), 16
    screen = noise(1, 21, 16, 1)
    top, left, bottom, right = fit.window
    points = screen[0, :, :, 0].repeat(fine, 0).repeat(fine, 1).astype(float)
    rows = ((np.arange(21 * fine) + 0.5) / fine - top) / (bottom - top) * size[0]
    cols = ((np.arange(16 * fine) + 0.5) / fine - left) / (right - left) * size[1]
    sums, counts = np.zeros(size), np.zeros(size)
    inside = np.ix_((rows >= 0) & (rows < size[0]), (cols >= 0) & (cols < size[1]))
    at = np.ix_(rows.astype(int), cols.astype(int))
    at = tuple(np.broadcast_to(a, points.shape)[inside] for a in at)
    np.add.at(sums, at, points[inside])
    np.add.at(counts, at, 1)
    assert np.abs(fit.frames(screen)[0, 0].numpy() - sums / counts).max() < 12  # of coarse cells
    assert np.abs(fit.frames(screen)[0, 0].numpy() - sums / counts).mean() < 1.5


def test_plain_screens_stay_plain():
    for value in (0, 77, 255):
        screens = np.full((1, *TALL, 3), value, np.uint8)
        assert (Fit(TALL, (24, 32), FOUR_TO_THREE).frames(screens) == value).all()


def test_nothing_is_distorted_or_everything_is_seen():
    assert Fit(TALL, (24, 32), FOUR_TO_THREE).window == (0, 0, 210, 160)
    for size in ((32, 32), (16, 64), (24, 40)):
        top, left, bottom, right = Fit(TALL, size, FOUR_TO_THREE).window
        shape = (right - left) * FOUR_TO_THREE / (bottom - top)
        assert shape == pytest.approx(size[1] / size[0])
        assert (top + bottom, left + right) == pytest.approx((210, 160)), "around the centre"
        assert bottom - top == 210 or right - left == 160, "no more than need be is cut off"
        assert Fit(TALL, size, FOUR_TO_THREE, "squeeze").window == (0, 0, 210, 160)


def test_an_unknown_fit_is_refused():
    with pytest.raises(ValueError, match=r"data.fit='stretch' must be one of crop, squeeze"):
        Fit(TALL, (24, 32), 1.75, "stretch")


@pytest.mark.parametrize("how", ["crop", "squeeze"])
def test_boxes_lie_where_the_picture_shows_the_thing(how):
    fit = Fit((120, 160), (48, 48), 1.0, how)
    screens = np.zeros((1, 120, 160, 3), np.uint8)
    screens[0, 30:90, 50:110] = 255
    left, top, right, bottom = fit.boxes(np.array([[50, 30, 110, 90]]))[0].tolist()
    lit = fit.frames(screens)[0, 0].float() / 255
    assert lit.sum() == pytest.approx((right - left) * (bottom - top), rel=0.02)
    rows, cols = torch.nonzero(lit > 0.5, as_tuple=True)
    edges = (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1)
    assert [int(e) for e in edges] == pytest.approx([left, top, right, bottom], abs=0.51)


def test_what_is_cut_off_has_no_box():
    boxes = Fit((120, 160), (48, 48)).boxes(np.array([[0, 10, 15, 50], [10, 0, 60, 120]]))
    assert boxes[0, 0] == boxes[0, 2] == 0, "left of the picture"
    assert boxes[1].tolist() == [0, 0, 16, 48]


def test_maps_are_means_without_rounding():
    depth = np.zeros((1, 4, 4), np.uint8)
    depth[0, 0, 0] = 1
    assert Fit((4, 4), (2, 2)).maps(depth)[0].tolist() == [[0.25, 0], [0, 0]]


@pytest.mark.parametrize(("fps", "step_hz"), [(8, 35), (8.75, 35), (10, 60), (7.5, 60), (60, 35)])
def test_frames_never_show_and_actions_never_cause_what_lies_on_the_other_side(fps, step_hz):
    times = np.arange(count_within(3.0, fps)) / fps
    shown = frame_steps(3.0, fps, step_hz) / step_hz
    works = action_steps(3.0, fps, step_hz) / step_hz
    assert len(times) == len(shown) == len(works)
    assert (shown <= times + 1e-6).all() and (times - shown < 1 / step_hz).all()
    assert (works >= times - 1e-6).all() and (works - times < 1 / step_hz).all()
    if step_hz % fps == 0:
        assert np.allclose(shown, times) and np.allclose(works, times)
