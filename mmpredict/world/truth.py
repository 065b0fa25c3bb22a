"""Motion to truth: who stands on what, is inside what, and what happened when.

Events are found in the physics log, so they do not depend on the frame rate or the picture's size.
Shapes: K log entries, T frames, N objects, E events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .physics import STEP_HZ, Contacts, Motion, support_from
from .stage import (
    COLOURS,
    CUP_WALL,
    EYE_HEIGHT,
    FLOOR,
    HAND,
    MATERIALS,
    NONE,
    SCREEN,
    SHAPES,
    ObjectSpec,
    ScreenSpec,
    Stage,
    screen_offset,
)

_LOUD = 0.22  # m/s: change of speed of the lighter partner from which a contact is an event
_QUIET_S = 0.08  # the same pair makes no second event within this time
_FALL_SPEED = 0.9  # m/s downward from which an object is falling
_MOVING = 0.15  # m/s from which an object counts as moving


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Args:
        time_s: when.
        kind: "start", "hit", "land", "bounce", "wall", "fall", "enter", "hide", "appear", "grab",
            "lift", "carry" or "release".
        a: the object it happened to (of a hit: the one that came).
        b: its partner: an object, or FLOOR, WALL, HAND, SCREEN, NONE (-1, -3, -4, -5, -2).
        position: x, y, z of the place, m.
        impulse: kg m/s of a contact, 0 of the rest.
    """

    time_s: float
    kind: str
    a: int
    b: int
    position: tuple[float, float, float]
    impulse: float = 0.0


@dataclass(frozen=True)
class Truth:
    """All there is to know of a clip, frame by frame.

    Args:
        times_s: (T,) float64.
        names: "red ball" and so on, different for every object.
        colour_N, shape_N, material_N: int64 numbers into COLOURS, SHAPES, MATERIALS.
        size_N2: (N, 2) float32 width and height, m.
        lane_N: int64, 0 is nearest.
        hangs_from_N: int64 object on whose string it hangs, or NONE.
        position_TN3: float32 x, y, z of the middle (of a cone: the centroid), m.
        velocity_TN3: float32, m/s.
        angle_TN: float32 turn since the start, radians, positive to the left.
        visible_TN: float32 share of the object's own pixels that the picture shows, 0 to 1.
        support_TN: int64 what it stands on: an object, FLOOR (-1) or NONE (-2).
        container_TN: int64 the cup it is in, or NONE.
        held_TN: bool, in the hand.
        events: in order of time; those of the whole clip.
    """

    times_s: Tensor
    names: tuple[str, ...]
    colour_N: Tensor
    shape_N: Tensor
    material_N: Tensor
    size_N2: Tensor
    lane_N: Tensor
    hangs_from_N: Tensor
    position_TN3: Tensor
    velocity_TN3: Tensor
    angle_TN: Tensor
    visible_TN: Tensor
    support_TN: Tensor
    container_TN: Tensor
    held_TN: Tensor
    events: tuple[Event, ...]


@dataclass(frozen=True)
class History:
    """The relations at every step of the physics log, and the events."""

    support_KN: np.ndarray
    container_KN: np.ndarray
    hidden_KN: np.ndarray
    events: tuple[Event, ...]


def read_history(stage: Stage, motion: Motion) -> History:
    """Work out relations and events from the physics log."""
    num_entries, num_objects = motion.state_KN6.shape[:2]
    support_KN = support_from(motion.contacts, num_entries, num_objects)
    container_KN = _containers(stage, motion)
    hidden_KN = _hidden(stage, motion)
    events = _contact_events(stage, motion, container_KN)
    events += _starts(stage, motion, container_KN) + _falls(stage, motion, support_KN)
    events += _changes(stage, motion, container_KN, "enter")
    events += _screen_events(stage, motion, hidden_KN) + _hand_events(stage, motion)
    events.sort(key=lambda e: (e.time_s, e.kind, e.a, e.b))
    return History(support_KN, container_KN, hidden_KN, tuple(events))


def _position(stage: Stage, motion: Motion, entry: int, n: int) -> tuple[float, float, float]:
    x, y = motion.state_KN6[entry, n, :2]
    return float(x), float(y), stage.objects[n].z


def _containers(stage: Stage, motion: Motion) -> np.ndarray:
    """(K, N) the cup in which the middle of each object is."""
    container_KN = np.full(motion.state_KN6.shape[:2], NONE)
    for c, cup in enumerate(stage.objects):
        if cup.shape != "cup":
            continue
        for n, spec in enumerate(stage.objects):
            if n == c or spec.lane != cup.lane or spec.width > cup.width - 2 * CUP_WALL:
                continue
            offset_K2 = motion.state_KN6[:, n, :2] - motion.state_KN6[:, c, :2]
            turn_K = motion.state_KN6[:, c, 2]
            x_K = np.cos(turn_K) * offset_K2[:, 0] + np.sin(turn_K) * offset_K2[:, 1]
            y_K = np.cos(turn_K) * offset_K2[:, 1] - np.sin(turn_K) * offset_K2[:, 0]
            inside_K = (np.abs(x_K) < cup.width / 2 - CUP_WALL) & (np.abs(y_K) < cup.height / 2)
            container_KN[inside_K, n] = c
    return container_KN


def hides(
    screen: ScreenSpec, spec: ObjectSpec, x_K: np.ndarray, y_K: np.ndarray, times_K: np.ndarray
) -> np.ndarray:
    """(K,) whether the whole object is behind the screen, as seen by the eye."""
    if spec.z < screen.z:
        return np.zeros(len(times_K), bool)
    dx_K, dy_K = screen_offset(screen, times_K)
    reach, nearer = spec.width / 2, screen.z / spec.z  # a line of sight shrinks towards the eye
    left_K, right_K = (x_K - reach) * nearer, (x_K + reach) * nearer
    top_K = EYE_HEIGHT + (y_K + spec.height - spec.foot - EYE_HEIGHT) * nearer
    inside_K = (left_K >= screen.x + dx_K - screen.width / 2) & (
        right_K <= screen.x + dx_K + screen.width / 2
    )
    foot_K = EYE_HEIGHT + (y_K - spec.foot - EYE_HEIGHT) * nearer
    return inside_K & (top_K <= screen.height + dy_K) & (foot_K >= dy_K)


def _hidden(stage: Stage, motion: Motion) -> np.ndarray:
    hidden_KN = np.zeros(motion.state_KN6.shape[:2], bool)
    for screen in stage.screens:
        for n, spec in enumerate(stage.objects):
            x_K, y_K = motion.state_KN6[:, n, 0], motion.state_KN6[:, n, 1]
            hidden_KN[:, n] |= hides(screen, spec, x_K, y_K, motion.times_K)
    return hidden_KN


def _contact_events(stage: Stage, motion: Motion, container_KN: np.ndarray) -> list[Event]:
    contacts, events = motion.contacts, []
    mass_N = np.r_[motion.mass_N, np.full(5, np.inf)]  # codes below 0 index the end: the room
    light_E = np.minimum(mass_N[contacts.a_E], mass_N[contacts.b_E])
    loud_E = contacts.first_E & (contacts.impulse_E > _LOUD * light_E)
    last: dict[tuple[int, int], float] = {}
    for row in np.flatnonzero(loud_E):
        a, b = int(contacts.a_E[row]), int(contacts.b_E[row])
        step = int(contacts.step_E[row])
        time_s = (step + 1) / STEP_HZ
        if time_s - last.get((a, b), -1.0) < _QUIET_S:
            continue
        last[a, b] = time_s
        kind, a, b = _contact_kind(contacts, row, motion.state_KN6[step])
        x, y = contacts.point_E2[row]
        place = (float(x), float(y), stage.objects[a].z)
        events.append(Event(time_s, kind, a, b, place, float(contacts.impulse_E[row])))
    return events


def _contact_kind(contacts: Contacts, row: int, state_N6: np.ndarray) -> tuple[str, int, int]:
    """What to call a contact, and who came to whom."""
    a, b = int(contacts.a_E[row]), int(contacts.b_E[row])
    if b < 0:
        return ("bounce" if b == FLOOR else "wall"), a, b
    normal = contacts.normal_E2[row]
    if abs(normal[1]) > 0.7:
        upper, lower = (b, a) if normal[1] > 0 else (a, b)
        falls = state_N6[upper, 4] - state_N6[lower, 4] < -0.2
        return ("land" if falls else "hit"), upper, lower
    # The one that moves towards the other along the line between them came.
    pace_a, pace_b = state_N6[a, 3:5] @ normal, -(state_N6[b, 3:5] @ normal)
    return ("hit", a, b) if pace_a >= pace_b else ("hit", b, a)


def _starts(stage: Stage, motion: Motion, container_KN: np.ndarray) -> list[Event]:
    """Objects that move along the floor from the first moment."""
    events = []
    for n, spec in enumerate(stage.objects):
        if abs(spec.vx) > 0.3 and spec.y - spec.foot < 0.01 and container_KN[0, n] == NONE:
            events.append(Event(0.0, "start", n, FLOOR, _position(stage, motion, 0, n)))
    return events


def _falls(stage: Stage, motion: Motion, support_KN: np.ndarray) -> list[Event]:
    """The first moment of every fast way down without support; b is what it stood on before."""
    events = []
    for n, spec in enumerate(stage.objects):
        falling_K = (motion.state_KN6[:, n, 4] < -_FALL_SPEED) & (support_KN[:, n] == NONE)
        falling_K &= motion.state_KN6[:, n, 1] > spec.foot + 0.05
        for entry in np.flatnonzero(falling_K[1:] & ~falling_K[:-1])[:1] + 1:
            stood = support_KN[:entry, n]
            stood = stood[stood != NONE]
            before = int(stood[-1]) if len(stood) else NONE
            if before >= 0:  # both may go down together, as when the hand lets go of a load
                state_N6 = motion.state_KN6[entry]
                before = before if state_N6[n, 4] - state_N6[before, 4] < -0.5 else NONE
            place = _position(stage, motion, entry, n)
            events.append(Event(int(entry) / STEP_HZ, "fall", n, before, place))
    return events


def _changes(stage: Stage, motion: Motion, value_KN: np.ndarray, kind: str) -> list[Event]:
    """An event wherever an object takes a new partner."""
    events = []
    entries, objects = np.nonzero((value_KN[1:] != value_KN[:-1]) & (value_KN[1:] != NONE))
    for entry, n in zip((entries + 1).tolist(), objects.tolist(), strict=True):
        place = _position(stage, motion, entry, n)
        events.append(Event(entry / STEP_HZ, kind, n, int(value_KN[entry, n]), place))
    return events


def _screen_events(stage: Stage, motion: Motion, hidden_KN: np.ndarray) -> list[Event]:
    events = []
    entries, objects = np.nonzero(hidden_KN[1:] != hidden_KN[:-1])
    for entry, n in zip((entries + 1).tolist(), objects.tolist(), strict=True):
        kind = "hide" if hidden_KN[entry, n] else "appear"
        place = _position(stage, motion, entry, n)
        events.append(Event(entry / STEP_HZ, kind, n, SCREEN, place))
    return events


def _hand_events(stage: Stage, motion: Motion) -> list[Event]:
    hand = stage.hand
    if hand is None or not motion.held_K.any():
        return []
    times = [("grab", hand.grab_s)]
    times += [("lift" if m.dy > 0 else "carry", m.start_s) for m in hand.moves]
    if hand.release_s is not None:
        times.append(("release", hand.release_s))
    last = len(motion.state_KN6) - 1
    events = []
    for kind, time_s in times:
        if time_s < stage.seconds:
            entry = min(round(time_s * STEP_HZ), last)
            place = _position(stage, motion, entry, hand.target)
            events.append(Event(entry / STEP_HZ, kind, hand.target, HAND, place))
    return events


def frame_truth(
    stage: Stage, motion: Motion, history: History, times_T: np.ndarray, visible_TN: np.ndarray
) -> Truth:
    """The truth at the times of the frames."""
    state_TN6 = motion.at(times_T)
    entry_T = np.clip(np.round(times_T * STEP_HZ).astype(int), 0, len(motion.state_KN6) - 1)
    T, N = state_TN6.shape[:2]
    z_TN1 = np.broadcast_to(np.array([spec.z for spec in stage.objects])[None, :, None], (T, N, 1))
    held_TN = np.zeros((T, N), bool)
    if stage.hand:
        held_TN[:, stage.hand.target] = motion.held_K[entry_T]
    hangs_N = np.full(N, NONE)
    for string in stage.strings:
        hangs_N[string.lower] = string.upper
    objects = stage.objects

    def floats(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32))

    return Truth(
        times_s=torch.from_numpy(np.asarray(times_T, np.float64)),
        names=tuple(spec.name for spec in objects),
        colour_N=torch.tensor([COLOURS.index(spec.colour) for spec in objects]),
        shape_N=torch.tensor([SHAPES.index(spec.shape) for spec in objects]),
        material_N=torch.tensor([MATERIALS.index(spec.material) for spec in objects]),
        size_N2=torch.tensor([[spec.width, spec.height] for spec in objects]),
        lane_N=torch.tensor([spec.lane for spec in objects]),
        hangs_from_N=torch.from_numpy(hangs_N),
        position_TN3=floats(np.concatenate([state_TN6[..., :2], z_TN1], -1)),
        velocity_TN3=floats(np.concatenate([state_TN6[..., 3:5], 0 * z_TN1], -1)),
        angle_TN=floats(state_TN6[..., 2]),
        visible_TN=floats(visible_TN),
        support_TN=torch.from_numpy(history.support_KN[entry_T]),
        container_TN=torch.from_numpy(history.container_KN[entry_T]),
        held_TN=torch.from_numpy(held_TN),
        events=history.events,
    )
