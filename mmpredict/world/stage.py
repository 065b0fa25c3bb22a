"""What stands on the stage before the first moment: objects, strings, a screen, a hand. Plain data.

Units: metres, seconds, radians. x runs right, y up, z away from the eye; x = 0 is straight ahead
and y = 0 the floor. Depth comes in lanes: an object keeps its lane, and only meets others in it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

WORLD_VERSION = "1"

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SHAPES = ("ball", "box", "cup", "plate", "cone")
MATERIALS = ("rubber", "wood", "metal")

LANES_Z = (2.6, 3.2, 3.9)  # depth of the lanes, nearest first
WALL_Z = 4.6  # depth of the back wall
EYE_HEIGHT = 1.5
GRAVITY = 6.0  # below 9.8: a fall of 1.5 m takes 0.7 s, so 8 frames a second show how it goes
CUP_WALL = 0.07  # thickness of a cup's walls and bottom

# Codes that stand where an object's number may stand (support, partner of an event).
FLOOR, NONE, WALL, HAND, SCREEN = -1, -2, -3, -4, -5

# Composition: one colour in three of every shape is kept for the split test_comp.
_HELD_OUT_EVERY, _HELD_OUT_REST = 3, 2
# Layout: no scene but those of test_layout has an object start in this stretch of the middle lane.
HELD_OUT_LANE = 1
HELD_OUT_X = (0.3, 1.0)


def is_held_out_pair(colour: str, shape: str) -> bool:
    """Whether this colour of this shape is reserved for `test_comp`."""
    number = COLOURS.index(colour) + SHAPES.index(shape)
    return number % _HELD_OUT_EVERY == _HELD_OUT_REST


def is_held_out_place(lane: int, x: float) -> bool:
    """Whether an object that starts here belongs to `test_layout`."""
    return lane == HELD_OUT_LANE and HELD_OUT_X[0] <= x <= HELD_OUT_X[1]


def random_for(*key: object) -> np.random.Generator:
    """A generator that depends on the key alone, the same in every process."""
    digest = hashlib.blake2b("|".join(map(str, (WORLD_VERSION, *key))).encode(), digest_size=16)
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest.digest(), "little")))


@dataclass(frozen=True)
class ObjectSpec:
    """One object at time 0.

    Args:
        width, height: outer size, m. A ball has width == height.
        x, y: where its origin stands, m: the middle, of a cone the centroid.
        vx, vy: first velocity, m/s. A ball on the floor starts out rolling.
    """

    colour: str
    shape: str
    material: str
    width: float
    height: float
    lane: int
    x: float
    y: float
    vx: float = 0.0
    vy: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def z(self) -> float:
        return LANES_Z[self.lane]

    @property
    def foot(self) -> float:
        """Height of the origin above the object's lowest point when it stands upright."""
        return self.height / 3 if self.shape == "cone" else self.height / 2

    @property
    def top(self) -> float:
        """Height of its highest point at time 0."""
        return self.y - self.foot + self.height


@dataclass(frozen=True)
class StringSpec:
    """A string from the bottom of one object to the top of another."""

    upper: int
    lower: int
    length: float


@dataclass(frozen=True)
class ScreenSpec:
    """An opaque screen on the floor; it slides away from `leave_s` on, if that is given, and comes
    back from `back_s` on, if that is given. One that starts outside the picture comes and goes."""

    x: float
    z: float
    width: float
    height: float
    leave_s: float | None = None
    leave_dx: float = 0.0
    leave_dy: float = 0.0
    leave_takes_s: float = 0.4
    back_s: float | None = None


@dataclass(frozen=True)
class Move:
    """The hand carries what it holds by (dx, dy) metres between two times."""

    start_s: float
    end_s: float
    dx: float
    dy: float


@dataclass(frozen=True)
class HandSpec:
    """A hand that comes in from one side, takes an object, moves it and may let go.

    Args:
        side: -1 comes from the left, +1 from the right.
    """

    target: int
    side: int
    grab_s: float
    moves: tuple[Move, ...]
    release_s: float | None = None


@dataclass(frozen=True)
class Stage:
    """Everything that decides what will happen.

    Args:
        more_screens: beside the first one, at its depth.
    """

    objects: tuple[ObjectSpec, ...]
    seconds: float
    strings: tuple[StringSpec, ...] = ()
    screen: ScreenSpec | None = None
    hand: HandSpec | None = None
    more_screens: tuple[ScreenSpec, ...] = ()

    @property
    def screens(self) -> tuple[ScreenSpec, ...]:
        """All of them."""
        return ((self.screen,) if self.screen else ()) + self.more_screens


def ease(u: np.ndarray | float) -> np.ndarray:
    """From 0 to 1 with a soft start and stop, for u from 0 to 1."""
    return 0.5 - 0.5 * np.cos(np.pi * np.clip(u, 0.0, 1.0))


def screen_offset(screen: ScreenSpec, times_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far the screen has moved (dx, dy) at each time, m."""
    if screen.leave_s is None:
        return np.zeros_like(times_T), np.zeros_like(times_T)
    done_T = ease((times_T - screen.leave_s) / screen.leave_takes_s)
    if screen.back_s is not None:
        done_T = done_T - ease((times_T - screen.back_s) / screen.leave_takes_s)
    return screen.leave_dx * done_T, screen.leave_dy * done_T


def carried(hand: HandSpec, times_T: np.ndarray) -> np.ndarray:
    """(T, 2) how far the hand has carried its object (dx, dy) at each time, m."""
    path_T2 = np.zeros((len(times_T), 2))
    for move in hand.moves:
        done_T = ease((times_T - move.start_s) / (move.end_s - move.start_s))
        path_T2 += done_T[:, None] * (move.dx, move.dy)
    return path_T2
