"""How each thing looks: offsets in pixels from its origin (y down) to alpha and colour.

Shapes: T frames, h w pixels of a patch. Distances are in pixels, negative inside.
"""

from __future__ import annotations

import numpy as np

from .physics import CUP_BASE
from .stage import EYE_HEIGHT, ObjectSpec

RGB = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (245, 215, 40),
    "purple": (150, 50, 180),
    "orange": (245, 130, 20),
    "white": (246, 246, 246),
    "black": (34, 34, 40),
}
_SKIN = np.float32([232, 184, 152])
_SLEEVE = np.float32([90, 120, 130])
_SCREEN = np.float32([84, 62, 74])


def reach(spec: ObjectSpec, turns: bool) -> tuple[float, float]:
    """How far the object may extend from its origin (x, y), m."""
    if spec.shape == "ball":
        return spec.width / 2, spec.width / 2
    tall = spec.height - spec.foot + (0.2 * spec.width if spec.shape == "cup" else 0.0)
    far = float(np.hypot(spec.width / 2, max(tall, spec.foot)))
    return (far, far) if turns else (spec.width / 2, max(tall, spec.foot))


def half_width_at_middle(spec: ObjectSpec) -> float:
    """Half the width of an upright object at the height of its origin, m."""
    return {"cone": 0.33, "cup": 0.45}.get(spec.shape, 0.5) * spec.width


def _turned(dx: np.ndarray, dy: np.ndarray, turn_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets in the object's own frame (x right, y up), (T, h, w)."""
    cos_T = np.cos(turn_T).astype(np.float32)[:, None, None]
    sin_T = np.sin(turn_T).astype(np.float32)[:, None, None]
    return cos_T * dx - sin_T * dy, -sin_T * dx - cos_T * dy


def _cover(distance: np.ndarray) -> np.ndarray:
    """Share of a pixel that lies inside."""
    return np.clip(0.5 - distance, 0, 1)


def _box(u: np.ndarray, v: np.ndarray, half_w: float, half_h: float) -> np.ndarray:
    """Distance to an upright box; exact inside and beside the edges."""
    return np.maximum(np.abs(u) - half_w, np.abs(v) - half_h)


def segment(dx: np.ndarray, dy: np.ndarray, vx_T: np.ndarray, vy_T: np.ndarray) -> np.ndarray:
    """Distance to the line from (-vx, -vy) to (vx, vy), (T, h, w)."""
    vx, vy = (v.astype(np.float32)[:, None, None] for v in (vx_T, vy_T))
    along = np.clip((dx * vx + dy * vy) / np.maximum(vx**2 + vy**2, 1e-6), -1, 1)
    return np.hypot(dx - along * vx, dy - along * vy)


def draw(
    spec: ObjectSpec,
    layer: str,
    dx: np.ndarray,
    dy: np.ndarray,
    scale: float,
    state_T6: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Paint one object.

    Args:
        layer: "whole", or of a cup its "back" or "front".
        dx, dy: (T, 1, w) and (T, h, 1) offsets from its origin, px.
        scale: px per m.
        state_T6: x, y, angle and so on.

    Returns:
        (T, h, w) alpha and (T, h, w, 3) colours from 0 to 255.
    """
    u, v = _turned(dx, dy, state_T6[:, 2])
    half_w, half_h = spec.width / 2 * scale, spec.height / 2 * scale
    base = np.float32(RGB[spec.colour])
    if spec.shape == "cup":
        rim_h = np.maximum(_rim_tilt(spec, state_T6) * half_w, 0.7)
        rim = (np.hypot(u / half_w, (v - half_h) / rim_h) - 1) * rim_h
        if layer == "back":
            edge = np.clip(1.2 - np.abs(rim + 0.6), 0, 1)
            return _cover(rim), (0.42 + 0.5 * edge)[..., None] * base
        alpha, light = _draw_cup_front(u, v, half_w, half_h, rim)
        return alpha, np.clip(light[..., None] * base, 0, 255)
    if spec.shape == "ball":
        alpha, light = _draw_ball(dx, dy, u, v, half_w)
    elif spec.shape == "cone":
        alpha, light = _draw_cone(u, v, half_w, spec.foot * scale, spec.height * scale)
    else:
        alpha, light = _draw_box(u, v, half_w, half_h)
    # The mark of the material: metal shines, wood has a grain.
    if spec.material == "wood":
        light = light - 0.10 * (np.sin(v * (9.0 / half_w)) > 0.3)
    rgb = light[..., None] * base
    if spec.material == "metal":
        spot = np.hypot(dx + 0.38 * half_w, dy + 0.42 * half_h) / (0.34 * half_h + 0.6)
        rgb += np.clip(1.3 - spot, 0, 1)[..., None] * np.float32(0.8) * (255 - rgb)
    return alpha, np.clip(rgb, 0, 255)


def _draw_ball(
    dx: np.ndarray, dy: np.ndarray, u: np.ndarray, v: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """A band across shows how it turns."""
    away = np.hypot(dx, dy)
    light = 1.06 - 0.22 * (dx + dy) / radius * 0.7 - 0.12 * (away / radius) ** 2
    band = _cover(np.abs(v) - 0.2 * radius)
    return _cover(away - radius), light * (1 - 0.5 * band)


def _draw_box(
    u: np.ndarray, v: np.ndarray, half_w: float, half_h: float
) -> tuple[np.ndarray, np.ndarray]:
    """A dark frame around a plain face."""
    distance = _box(u, v, half_w, half_h)
    frame = np.clip(distance + 0.22 * min(half_h, half_w) + 0.5, 0, 1)
    return _cover(distance), 1.05 - 0.35 * frame + 0.06 * v / half_h


def _draw_cone(
    u: np.ndarray, v: np.ndarray, half_w: float, foot: float, height: float
) -> tuple[np.ndarray, np.ndarray]:
    slope = height / np.hypot(height, half_w)
    sides = (np.abs(u) - half_w * (height - foot - v) / height) * slope
    distance = np.maximum(sides, -foot - v)
    return _cover(distance), 0.95 - 0.3 * u / half_w


def _rim_tilt(spec: ObjectSpec, state_T6: np.ndarray) -> np.ndarray:
    """(T, 1, 1) half height of the open rim as a share of its half width, as the eye looks down."""
    top_T = state_T6[:, 1] + spec.height / 2
    tilt_T = np.clip((EYE_HEIGHT - top_T) / spec.z, 0.06, 0.35) * np.abs(np.cos(state_T6[:, 2]))
    return tilt_T.astype(np.float32)[:, None, None]


def _draw_cup_front(
    u: np.ndarray, v: np.ndarray, half_w: float, half_h: float, rim: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The front wall hides what lies deep in the cup; the rest is seen through the rim."""
    wide = half_w * (CUP_BASE + (1 - CUP_BASE) * (v + half_h) / (2 * half_h))
    body = np.maximum(np.abs(u) - wide, np.maximum(v - half_h, -half_h - v))
    lip = np.clip(1.2 - np.abs(rim), 0, 1)
    light = 1.0 - 0.28 * u / half_w + 0.25 * lip - 0.2 * (v < -0.72 * half_h)
    return _cover(np.maximum(body, -rim)), light


def draw_screen(
    dx: np.ndarray, dy: np.ndarray, half_w: float, half_h: float
) -> tuple[np.ndarray, np.ndarray]:
    """A dark cloth with folds."""
    distance = _box(dx, dy, half_w, half_h)
    light = 1.0 + 0.16 * np.cos(dx * (5 * np.pi / half_w)) - 0.3 * np.clip(distance + 1.6, 0, 1)
    return _cover(distance), light[..., None] * _SCREEN + 0 * distance[..., None]


def draw_hand(dx: np.ndarray, dy: np.ndarray, size: float) -> tuple[np.ndarray, np.ndarray]:
    """A hand at the origin whose arm runs towards +x; thumb and fingers reach a little to -x."""
    half = 0.5 * size
    palm = np.hypot(dx - 0.1 * size, dy) - half
    finger_rows = np.abs(np.abs(dy) - 0.32 * size) - 0.2 * size
    fingers = np.maximum(np.abs(dx + 0.15 * size) - half, finger_rows)
    arm = np.maximum(-dx, np.abs(dy) - 0.34 * size)
    distance = np.minimum(np.minimum(palm, fingers), arm)
    sleeve = np.clip(dx - 1.5 * size, 0, 1)[..., None] + 0 * distance[..., None]
    light = 1.0 - 0.25 * np.clip(distance + 1.4, 0, 1) - 0.15 * np.clip(dy / size + 0.2, 0, 1)
    return _cover(distance), light[..., None] * (_SKIN * (1 - sleeve) + _SLEEVE * sleeve)
