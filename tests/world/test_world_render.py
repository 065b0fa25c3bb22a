"""Laws of the world's pictures: perspective, who hides whom, and what shows."""

from __future__ import annotations

import numpy as np
import pytest

from mmpredict.world import Condition, draw_scene
from mmpredict.world.camera import Camera
from mmpredict.world.physics import simulate
from mmpredict.world.render import render
from mmpredict.world.stage import LANES_Z, ObjectSpec, ScreenSpec, Stage


def box(x: float, lane: int, *, colour: str = "red", vx: float = 0.0) -> ObjectSpec:
    return ObjectSpec(colour, "box", "rubber", 0.5, 0.5, lane, x, 0.25, vx)


def shot(stage: Stage, size: tuple[int, int] = (64, 64), times=(0.0,)):
    return render(stage, simulate(stage), np.array(times), size, 0)


def red_pixels(picture_HW3: np.ndarray) -> np.ndarray:
    r, g, b = (picture_HW3[..., k].astype(int) for k in range(3))
    return (r > 110) & (r > 2 * g) & (r > 2 * b)


def test_hidden_behind_the_screen_and_whole_in_front_of_it():
    screen = ScreenSpec(0.0, 2.9, 1.1, 1.1)
    frames, visible = shot(Stage((box(0.0, 1), box(0.0, 0, colour="blue")), 1.0, screen=screen))
    assert visible[0].tolist() == [0.0, 1.0]
    assert not red_pixels(frames[0]).any()


def test_screen_that_leaves_shows_what_was_behind():
    screen = ScreenSpec(0.0, 2.9, 1.1, 1.1, leave_s=0.2, leave_dx=3.5)
    _, visible = shot(Stage((box(0.0, 1),), 1.0, screen=screen), times=(0.0, 0.9))
    assert visible[:, 0].tolist() == [0.0, 1.0]


def test_nearer_is_larger_lower_and_in_front():
    areas, lowest = [], []
    for lane in range(len(LANES_Z)):
        frames, _ = shot(Stage((box(0.0, lane),), 1.0))
        mask = red_pixels(frames[0])
        areas.append(mask.sum())
        lowest.append(np.flatnonzero(mask.any(1)).max())
    assert areas[0] > areas[1] > areas[2] and lowest[0] > lowest[1] > lowest[2]
    front = ObjectSpec("blue", "box", "wood", 0.8, 0.8, 0, 0.0, 0.4)
    _, visible = shot(Stage((box(0.0, 2), front), 1.0))
    assert visible[0, 0] < 0.7 and visible[0, 1] == 1.0


def test_pixels_are_where_the_camera_says():
    for x, lane in ((-0.6, 0), (0.4, 1), (0.9, 2)):
        frames, _ = shot(Stage((box(x, lane),), 1.0), size=(96, 96))
        rows, columns = np.nonzero(red_pixels(frames[0]))
        column, row = Camera(96, 96).project(x, 0.25, LANES_Z[lane])
        assert columns.mean() + 0.5 == pytest.approx(column, abs=0.7)
        assert rows.mean() + 0.5 == pytest.approx(row, abs=0.7)


def test_motion_below_a_pixel_shows():
    frames, _ = shot(Stage((box(-0.5, 0, vx=1.0),), 1.0), times=(0.0, 0.01))
    assert (frames[0] != frames[1]).any()


def test_what_leaves_the_picture_is_painted_without_error():
    wide = (32, 64)
    for x in (-2.0, 2.0):
        stage = Stage((ObjectSpec("red", "ball", "metal", 0.6, 0.6, 0, x, 3.0),), 1.0)
        _, visible = shot(stage, size=wide)
        assert visible[0, 0] == 0.0


@pytest.mark.parametrize("size", [32, 64, (48, 80), (80, 48), 128])
def test_any_size(size):
    height, width = (size, size) if isinstance(size, int) else size
    clip = draw_scene(4, split="train").record(size, 4.0, sound=False).clip
    assert clip.frames_TCHW.shape == (8, 3, height, width)


def test_skipping_the_frames_keeps_the_visible_share():
    scene = draw_scene(1, split="train")
    seen, unseen = scene.record(), scene.record(frames=False)
    assert unseen.clip.frames_TCHW is None
    assert np.array_equal(seen.truth.visible_TN, unseen.truth.visible_TN)


def test_camera_noise_is_as_strong_as_asked():
    plain = draw_scene(2, split="train").record(sound=False).clip.frames_TCHW.float()
    noisy = draw_scene(2, split="train", condition=Condition(camera_noise=4.0))
    spread = (noisy.record(sound=False).clip.frames_TCHW.float() - plain).std()
    assert spread == pytest.approx(4.0, rel=0.1)
