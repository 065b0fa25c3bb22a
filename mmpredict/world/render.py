"""Stage and motion to frames. Every object is painted into small patches, all frames at once.

A patch is a window that follows its object; what is inside comes from signed distances (px,
negative inside), so edges are smooth and motion below a pixel shows. Far things are painted first.
Shapes: T frames, H W pixels, h w pixels of a patch, N objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import sprites
from .camera import Camera
from .physics import Motion
from .stage import LANES_Z, WALL_Z, ScreenSpec, Stage, StringSpec, random_for, screen_offset

_SHADOW = 0.38  # how dark the middle of a shadow is
_SHADOW_REACH = 1.5  # m above the floor at which a shadow has faded to 1/e
_HAND_SIZE = 0.3  # m
_NOBODY = 255
_WIDE = 0.45  # width over depth of a screen that needs a wider padding


@dataclass(frozen=True)
class Shot:
    """What is to be painted: the stage, and where everything is at the times of the frames."""

    stage: Stage
    motion: Motion
    times_T: np.ndarray
    state_TN6: np.ndarray


@dataclass(frozen=True)
class Patch:
    """Windows of one size that follow a point through the frames.

    Args:
        index_Thw: place of each pixel in the padded canvas, flat.
        dx_T1w, dy_Th1: pixel centre minus the point, px; y down.
    """

    index_Thw: np.ndarray
    dx_T1w: np.ndarray
    dy_Th1: np.ndarray


class Canvas:
    """A padded stack of frames; padding takes what leaves the picture.

    Args:
        background_HW3: uint8.
        num_frames: T.
        paints: False keeps only who is seen where, not the colours.
        widest: width of the widest screen over its depth.
    """

    def __init__(
        self,
        camera: Camera,
        background_HW3: np.ndarray | None,
        num_frames: int,
        widest: float = 0.0,
    ) -> None:
        H, W = camera.height, camera.width
        self.camera, self.pad = camera, camera.focal // 2 + 2
        if widest > _WIDE:  # what is outside must fit into the padding
            self.pad = int(widest * camera.focal) + 6
        self.shape = (num_frames, H + 2 * self.pad, W + 2 * self.pad)
        self.owner = np.full(self.shape, _NOBODY, np.uint8)
        self.colours = None
        if background_HW3 is not None:
            self.colours = np.empty((*self.shape, 3), np.uint8)
            self.colours[:, self.pad : self.pad + H, self.pad : self.pad + W] = background_HW3

    def patch(self, column_T: np.ndarray, row_T: np.ndarray, half_w: float, half_h: float) -> Patch:
        """Windows around points that reach at least half_w and half_h px to each side."""
        T, H, W = self.shape
        reach_w = min(int(np.ceil(half_w)) + 1, W // 2 - 1)
        reach_h = min(int(np.ceil(half_h)) + 1, H // 2 - 1)
        left_T = np.floor(column_T).astype(np.int64) - reach_w
        up_T = np.floor(row_T).astype(np.int64) - reach_h
        # A window that is wholly outside is kept just outside, in the padding.
        base_x_T = np.clip(left_T + self.pad, 0, W - 2 * reach_w - 1)
        base_y_T = np.clip(up_T + self.pad, 0, H - 2 * reach_h - 1)
        x_w, y_h = np.arange(2 * reach_w + 1), np.arange(2 * reach_h + 1)
        start_T = (np.arange(T) * H + base_y_T) * W + base_x_T
        index_Thw = start_T[:, None, None] + (y_h[:, None] * W + x_w)[None]
        dx_Tw = (left_T + 0.5 - column_T)[:, None] + x_w
        dy_Th = (up_T + 0.5 - row_T)[:, None] + y_h
        return Patch(
            index_Thw, dx_Tw[:, None, :].astype(np.float32), dy_Th[:, :, None].astype(np.float32)
        )

    def paint(self, patch: Patch, alpha_Thw: np.ndarray, rgb: np.ndarray, owner: int) -> None:
        """Lay paint over the canvas. rgb broadcasts against (T, h, w, 3), 0 to 255."""
        index_Thw = patch.index_Thw
        if owner >= 0:
            flat_owner = self.owner.reshape(-1)
            flat_owner[index_Thw[alpha_Thw > 0.5]] = owner
        if self.colours is None:
            return
        flat = self.colours.reshape(-1, 3)
        below = flat[index_Thw].astype(np.float32)
        below += (rgb - below) * alpha_Thw[..., None]
        flat[index_Thw] = below.astype(np.uint8)

    def inside(self, values: np.ndarray) -> np.ndarray:
        """Cut the padding off."""
        pad = self.pad
        return values[:, pad : values.shape[1] - pad, pad : values.shape[2] - pad]


def render(
    stage: Stage,
    motion: Motion,
    times_T: np.ndarray,
    size: tuple[int, int],
    seed: int,
    *,
    paints: bool = True,
) -> tuple[np.ndarray | None, np.ndarray]:
    """Paint the stage at the given times.

    Args:
        size: height and width of the frames, px.
        seed: decides wall, floor and light.
        paints: False skips the colours.

    Returns:
        (T, H, W, 3) uint8 frames or None, and (T, N) the visible share of every object.
    """
    camera = Camera(*size)
    look = random_for("look", seed)
    widest = max((screen.width / screen.z for screen in stage.screens), default=0.0)
    canvas = Canvas(camera, _background(camera, look) if paints else None, len(times_T), widest)
    shot = Shot(stage, motion, times_T, motion.at(times_T))
    if paints:
        for n in range(len(stage.objects)):
            _paint_shadow(canvas, shot, n)
    own_TN = np.ones((len(times_T), len(stage.objects)))
    screen_is_due = stage.screen is not None
    for lane in reversed(range(len(LANES_Z))):
        if screen_is_due and stage.screen.z > LANES_Z[lane]:
            _paint_screens(canvas, shot)
            screen_is_due = False
        _paint_lane(canvas, shot, lane, own_TN)
    if screen_is_due:
        _paint_screens(canvas, shot)
    owner = canvas.inside(canvas.owner)
    seen = [(owner == n).sum((1, 2)) for n in range(len(stage.objects))]
    visible_TN = np.stack(seen, 1) / np.maximum(own_TN, 1)
    return (canvas.inside(canvas.colours) if paints else None), visible_TN


def _paint_lane(canvas: Canvas, shot: Shot, lane: int, own_TN: np.ndarray) -> None:
    """Strings, the backs of cups, objects, the fronts of cups, the hand.

    Args:
        own_TN: is filled with how many pixels each object would take if nothing hid it.
    """
    stage, state_TN6 = shot.stage, shot.state_TN6
    here = [n for n, spec in enumerate(stage.objects) if spec.lane == lane]
    for string in stage.strings:
        if string.upper in here:
            _paint_string(canvas, shot, string)
    layers = [(n, "back") for n in here if stage.objects[n].shape == "cup"]
    layers += [(n, "whole") for n in here if stage.objects[n].shape != "cup"]
    layers += [(n, "front") for n in here if stage.objects[n].shape == "cup"]
    backs: dict[int, np.ndarray] = {}
    for n, layer in layers:
        spec, state_T6 = stage.objects[n], state_TN6[:, n]
        scale = canvas.camera.scale(spec.z)
        column_T, row_T = canvas.camera.project(state_T6[:, 0], state_T6[:, 1], spec.z)
        reach = sprites.reach(spec, bool(np.abs(state_T6[:, 2]).max() > 0.02))
        patch = canvas.patch(column_T, row_T, reach[0] * scale, reach[1] * scale)
        alpha, rgb = sprites.draw(spec, layer, patch.dx_T1w, patch.dy_Th1, scale, state_T6)
        canvas.paint(patch, alpha, rgb, n)
        own = alpha > 0.5
        if layer == "back":
            backs[n] = own
            continue
        own_TN[:, n] = (own | backs[n] if n in backs else own).sum((1, 2))
    if stage.hand and stage.hand.target in here:
        _paint_hand(canvas, shot)


def _paint_shadow(canvas: Canvas, shot: Shot, n: int) -> None:
    spec, x_T, y_T = shot.stage.objects[n], shot.state_TN6[:, n, 0], shot.state_TN6[:, n, 1]
    half_w = 0.6 * spec.width * canvas.camera.scale(spec.z)
    half_h = 0.28 * half_w
    column_T, row_T = canvas.camera.project(x_T, np.zeros_like(y_T), spec.z)
    patch = canvas.patch(column_T, row_T, half_w, half_h)
    away_Thw = (patch.dx_T1w / half_w) ** 2 + (patch.dy_Th1 / half_h) ** 2
    strength_T = _SHADOW * np.exp(-np.maximum(y_T - spec.foot, 0) / _SHADOW_REACH)
    alpha = np.clip(1.2 - away_Thw, 0, 1) * strength_T[:, None, None].astype(np.float32)
    canvas.paint(patch, alpha, np.float32([10, 10, 20]), -1)


def _paint_screens(canvas: Canvas, shot: Shot) -> None:
    for screen in shot.stage.screens:
        _paint_screen(canvas, shot, screen)


def _paint_screen(canvas: Canvas, shot: Shot, screen: ScreenSpec) -> None:
    camera = canvas.camera
    dx_T, dy_T = screen_offset(screen, shot.times_T)
    scale = camera.scale(screen.z)
    half_w, half_h = screen.width / 2 * scale, screen.height / 2 * scale
    column_T, row_T = camera.project(screen.x + dx_T, screen.height / 2 + dy_T, screen.z)
    patch = canvas.patch(column_T, row_T, half_w, half_h)
    alpha, rgb = sprites.draw_screen(patch.dx_T1w, patch.dy_Th1, half_w, half_h)
    canvas.paint(patch, alpha, rgb, len(shot.stage.objects))


def _paint_string(canvas: Canvas, shot: Shot, string: StringSpec) -> None:
    ends, objects = [], shot.stage.objects
    for n in (string.upper, string.lower):
        spec, (x_T, y_T, turn_T) = objects[n], shot.state_TN6[:, n, :3].T
        along = -spec.foot if n == string.upper else spec.height - spec.foot
        end = x_T - np.sin(turn_T) * along, y_T + np.cos(turn_T) * along
        ends.append(canvas.camera.project(*end, spec.z))
    (c0_T, r0_T), (c1_T, r1_T) = ends
    half_w = np.abs(c1_T - c0_T).max() / 2 + 1
    half_h = np.abs(r1_T - r0_T).max() / 2 + 1
    patch = canvas.patch((c0_T + c1_T) / 2, (r0_T + r1_T) / 2, half_w, half_h)
    vx, vy = (c1_T - c0_T) / 2, (r1_T - r0_T) / 2
    width = 0.02 * canvas.camera.scale(objects[string.upper].z)
    away = sprites.segment(patch.dx_T1w, patch.dy_Th1, vx, vy) - max(width, 0.5)
    canvas.paint(patch, np.clip(0.5 - away, 0, 1), np.float32([240, 235, 215]), len(objects))


def _paint_hand(canvas: Canvas, shot: Shot) -> None:
    """The hand rests against the side of its object; its arm reaches out of the picture."""
    stage = shot.stage
    hand, spec, camera = stage.hand, stage.objects[stage.hand.target], canvas.camera
    grip_x = hand.side * (sprites.half_width_at_middle(spec) + 0.25 * _HAND_SIZE)
    path_T2 = hand_path(stage, shot.motion, shot.times_T) + (grip_x, 0.0)
    scale = camera.scale(spec.z)
    column_T, row_T = camera.project(path_T2[:, 0], path_T2[:, 1], spec.z)
    # One window as wide as the picture, so that the arm always reaches its edge.
    middle_T = np.full_like(column_T, camera.width / 2)
    patch = canvas.patch(middle_T, row_T, camera.width / 2 - 1, 0.75 * _HAND_SIZE * scale)
    shift_T11 = (middle_T - column_T)[:, None, None].astype(np.float32)
    dx = (patch.dx_T1w + shift_T11) * hand.side
    alpha, rgb = sprites.draw_hand(dx, patch.dy_Th1, _HAND_SIZE * scale)
    canvas.paint(patch, alpha, rgb, len(stage.objects))


def hand_path(stage: Stage, motion: Motion, times_T: np.ndarray) -> np.ndarray:
    """(T, 2) the point x, y that the hand holds or reaches for, m. It waits 3 m to the side."""
    hand = stage.hand
    away = 3.0 * hand.side
    came_T = np.clip((times_T - hand.grab_s + 0.45) / 0.45, 0, 1)
    away_T = away * (1 - np.sin(came_T * np.pi / 2))
    path_T2 = motion.at(np.maximum(times_T, hand.grab_s))[:, hand.target, :2].copy()
    if hand.release_s is not None:
        last_2 = motion.at(np.array([hand.release_s]))[0, hand.target, :2]
        path_T2[times_T > hand.release_s] = last_2
        went_T = np.clip((times_T - hand.release_s) / 0.5, 0, 1)
        away_T = away_T + away * (1 - np.cos(went_T * np.pi / 2))
    path_T2[:, 0] += away_T
    return path_T2


def _background(camera: Camera, look: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8: a wall with a soft light and stripes, a floor with boards that run away."""
    hue = look.uniform(-12, 12, (2, 3))
    wall, floor = np.array([172, 178, 184]) + hue[0], np.array([128, 112, 96]) + hue[1]
    wall, floor = wall * look.uniform(0.85, 1.1), floor * look.uniform(0.85, 1.15)
    stripes, boards = look.uniform(0.4, 1.2), look.uniform(0.35, 0.8)
    phase, light = look.uniform(0, 2 * np.pi), look.uniform(-0.12, 0.12)
    H, W = camera.height, camera.width
    row_H1, column_1W = np.arange(H)[:, None] + 0.5, np.arange(W)[None] + 0.5
    _, edge = camera.project(0.0, 0.0, WALL_Z)
    x_1W = (column_1W - W / 2) / camera.focal
    depth_H1 = (
        WALL_Z
        * (edge - camera.project(0.0, 1.6, 1.0)[1])
        / np.maximum(row_H1 - camera.project(0.0, 1.6, 1.0)[1], 1e-3)
    )
    wall_HW = 1 + light * x_1W * 2 + 0.03 * np.sin(x_1W * WALL_Z / stripes * 2 * np.pi + phase)
    wall_HW = wall_HW - 0.10 * (row_H1 / H)
    near_H1 = np.clip((WALL_Z - depth_H1) / WALL_Z, 0, 1)
    floor_HW = 0.86 + 0.34 * near_H1 + 0.05 * np.sin(x_1W * depth_H1 / boards * 2 * np.pi + phase)
    on_floor_HW = np.clip(row_H1 - edge + 0.5, 0, 1)[..., None] * np.ones((1, W, 1))
    picture = wall * wall_HW[..., None] * (1 - on_floor_HW)
    picture = picture + floor * floor_HW[..., None] * on_floor_HW
    return np.clip(picture, 0, 255).astype(np.uint8)
