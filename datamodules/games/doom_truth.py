"""What Doom knows of its scenes. In: the server's answer. Out: truth by frames, and what to say.

Shapes: T frames, K objects of all frames one after the other, N steps, h w the model's pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.games.doom_server import VARIABLES
from datamodules.games.episodes import words
from datamodules.games.screens import Fit

SELF = "Self"  # the player's own category
MONSTER = "Monster"
NOTICED_AREA = 1 / 400  # of the picture: what is smaller does not get a word
GAINS = (("HITCOUNT", "Hits."), ("KILLCOUNT", "Kills."), ("ITEMCOUNT", "Picks up."))

Events = tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class DoomObjects:
    """Everything in the map but the player, frame after frame; K is over all frames.

    Lengths are in map units (a person is 56 high), angles in radians, counter-clockwise.

    Args:
        frame_K: int64, the frame.
        id_K: int64, the same for one thing in all frames of a document.
        name_K: int64 into `names`.
        names, categories: such as "Zombieman", "Monster".
        position_K3: float32 x, y, z.
        velocity_K3: float32, units per step of 1/35 s.
        angle_K: float32, where it faces.
        azimuth_K: float32, where it is as the player looks: positive is to the left.
        distance_K: float32 from the player, level.
        pixels_K: int64, how many of the screen's 160 x 120 pixels show it; 0 when hidden.
        box_K4: float32 left, top, right, bottom in the model's pixels; NaN when hidden.
    """

    frame_K: Tensor
    id_K: Tensor
    name_K: Tensor
    names: tuple[str, ...]
    categories: tuple[str, ...]
    position_K3: Tensor
    velocity_K3: Tensor
    angle_K: Tensor
    azimuth_K: Tensor
    distance_K: Tensor
    pixels_K: Tensor
    box_K4: Tensor


@dataclass(frozen=True)
class DoomTruth:
    """The scene at each frame; units as in `DoomObjects`.

    Args:
        times_s: (T,) float64, as in the clip.
        depth_Thw: float32 at the model's size, as the engine gives it: 0 near to 255 far.
        position_T3, velocity_T3: float32, of the player.
        angle_T: float32, where the player looks.
        health_T: float32.
        objects: all else in the map.
        events: (seconds, what happened) of the whole document.
    """

    times_s: Tensor
    depth_Thw: Tensor
    position_T3: Tensor
    velocity_T3: Tensor
    angle_T: Tensor
    health_T: Tensor
    objects: DoomObjects
    events: Events


def column(variables_NV: NDArray[np.float64], *names: str) -> NDArray[np.float64]:
    """(N, len(names)) of the game's variables."""
    return variables_NV[:, [VARIABLES.index(name) for name in names]]


def read_truth(
    pictures: Sequence[Mapping[str, Any]],
    variables_TV: NDArray[np.float64],
    times_s: Tensor,
    fit: Fit,
    events: Events,
) -> DoomTruth:
    """The truth of the frames; `variables_TV` are those of the same states."""

    def floats(*names: str) -> Tensor:
        return torch.from_numpy(column(variables_TV, *names).astype(np.float32))

    depth_THW = np.array([picture["depth"] for picture in pictures], np.uint8)
    return DoomTruth(
        times_s=times_s,
        depth_Thw=fit.maps(depth_THW.reshape(-1, *fit.native)),
        position_T3=floats("POSITION_X", "POSITION_Y", "POSITION_Z"),
        velocity_T3=floats("VELOCITY_X", "VELOCITY_Y", "VELOCITY_Z"),
        angle_T=floats("ANGLE")[:, 0].deg2rad(),
        health_T=floats("HEALTH")[:, 0],
        objects=_objects(pictures, variables_TV, fit),
        events=events,
    )


def _objects(
    pictures: Sequence[Mapping[str, Any]], variables_TV: NDArray[np.float64], fit: Fit
) -> DoomObjects:
    kinds: dict[tuple[str, str], int] = {}
    whole, numbers, boxes = [], [], []
    for t, picture in enumerate(pictures):
        seen = {row[0]: row[3:] for row in picture["seen"]}
        pixels_V = np.bincount(picture["mask"].ravel(), minlength=256)
        for number, name, category, *values in picture["objects"]:
            if category == SELF:
                continue
            kind = kinds.setdefault((name, category), len(kinds))
            value, x, y, width, height = seen.get(number, (0, *[math.nan] * 4))
            pixels = int(pixels_V[value]) if number in seen else 0
            boxes.append((x, y, x + width, y + height) if pixels else (math.nan,) * 4)
            whole.append((t, number, kind, pixels))
            numbers.append(values)
    whole_K4 = torch.tensor(whole, dtype=torch.int64).reshape(-1, 4)
    numbers_K7 = np.array(numbers, np.float64).reshape(-1, 7)
    player_K3 = column(variables_TV, "POSITION_X", "POSITION_Y", "ANGLE")[whole_K4[:, 0].numpy()]
    offset_K2 = numbers_K7[:, :2] - player_K3[:, :2]
    turn_K = np.arctan2(offset_K2[:, 1], offset_K2[:, 0]) - np.deg2rad(player_K3[:, 2])
    azimuth_K = (turn_K + math.pi) % (2 * math.pi) - math.pi

    def floats(values: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32))

    return DoomObjects(
        frame_K=whole_K4[:, 0],
        id_K=whole_K4[:, 1],
        name_K=whole_K4[:, 2],
        names=tuple(name for name, _ in kinds),
        categories=tuple(category for _, category in kinds),
        position_K3=floats(numbers_K7[:, :3]),
        velocity_K3=floats(numbers_K7[:, 3:6]),
        angle_K=floats(np.deg2rad(numbers_K7[:, 6])),
        azimuth_K=floats(azimuth_K),
        distance_K=floats(np.hypot(offset_K2[:, 0], offset_K2[:, 1])),
        pixels_K=whole_K4[:, 3],
        box_K4=fit.boxes(np.array(boxes, np.float64)),
    )


def read_events(
    pictures: Sequence[Mapping[str, Any]],
    times_s: Tensor,
    variables_NV: NDArray[np.float64],
    step_hz: int,
    fit: Fit,
) -> Events:
    """What comes into sight, on which side; and what is done and suffered."""
    events = _sights(pictures, times_s.tolist(), fit)
    counts_NG = column(variables_NV, *(name for name, _ in GAINS)).astype(int)
    hurt_N, health_N, dead_N = column(variables_NV, "DAMAGE_TAKEN", "HEALTH", "DEAD").astype(int).T
    for n in range(1, len(variables_NV)):
        time_s = n / step_hz
        events += [
            (time_s, said)
            for (_, said), more in zip(GAINS, counts_NG[n] > counts_NG[n - 1], strict=True)
            if more
        ]
        if hurt_N[n] > hurt_N[n - 1]:
            events.append((time_s, f"Hurt by {hurt_N[n] - hurt_N[n - 1]}."))
        if health_N[n] > health_N[n - 1]:
            events.append((time_s, f"Gains {health_N[n] - health_N[n - 1]} health."))
        if dead_N[n] > dead_N[n - 1]:
            events.append((time_s, "Dies."))
    return tuple(sorted(events, key=lambda event: event[0]))


def _sights(
    pictures: Sequence[Mapping[str, Any]], times: Sequence[float], fit: Fit
) -> list[tuple[float, str]]:
    """Monsters that the frame before did not show, or showed too small."""
    events, before = [], set()
    height, width = fit.size
    for picture, time_s in zip(pictures, times, strict=True):
        now = {}
        for number, name, category, _, x, y, box_width, box_height in picture["seen"]:
            box = np.array([[x, y, x + box_width, y + box_height]], np.float64)
            left, top, right, bottom = fit.boxes(box)[0].tolist()
            if (
                category == MONSTER
                and (right - left) * (bottom - top) >= NOTICED_AREA * height * width
            ):
                third = int((left + right) / 2 / width * 3)
                now[number] = f"{words(name).capitalize()} {('left', 'ahead', 'right')[third]}."
        events += [(time_s, said) for number, said in sorted(now.items()) if number not in before]
        before = set(now)
    return events
