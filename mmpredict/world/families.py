"""Seed to stage: one function per family decides who stands where and what will set them going.

A `Casting` makes the choices that all families share and knows the rules of its split.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .condition import Condition
from .physics import wall_x
from .stage import (
    COLOURS,
    CUP_WALL,
    HELD_OUT_LANE,
    HELD_OUT_X,
    LANES_Z,
    MATERIALS,
    SHAPES,
    HandSpec,
    Move,
    ObjectSpec,
    ScreenSpec,
    Stage,
    StringSpec,
    is_held_out_pair,
    is_held_out_place,
    random_for,
)

# Widths (m, least and most) and height as a share of the width.
_WIDTH = {
    "ball": (0.5, 0.76),
    "box": (0.52, 0.76),
    "cup": (0.84, 1.0),
    "plate": (0.84, 1.05),
    "cone": (0.56, 0.76),
}
_HEIGHT = {"ball": 1.0, "box": 1.0, "cup": 0.56, "plate": 0.2, "cone": 1.05}
_GAP = 0.06  # m of free space between objects that are put down beside each other
_ATTEMPTS = 200
_TRIES = 6  # for each passer-by, before all is laid out anew
_SCREENS_Z = (2.9, 3.55)  # between the lanes


class DoesNotFit(Exception):
    """This draw cannot be laid out; the next attempt draws anew."""


@dataclass
class Casting:
    """The choices of one attempt. Objects are collected in `objects`."""

    rng: np.random.Generator
    condition: Condition
    split: str

    def __post_init__(self) -> None:
        self.objects: list[ObjectSpec] = []
        low, high = self.condition.counts(self.split)
        self.num_objects = int(self.rng.integers(low, high + 1))

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def one_of(self, *choices: str) -> str:
        return choices[int(self.rng.integers(len(choices)))]

    def side(self) -> int:
        return -1 if self.chance(0.5) else 1

    def speed(self) -> float:
        return self.between(*self.condition.speeds(self.split))

    def lane(self, *lanes: int) -> int:
        """One of these lanes (all, if none is named); test_layout leans to its own lane."""
        lanes = lanes or tuple(range(len(LANES_Z)))
        if self.split == "test_layout" and HELD_OUT_LANE in lanes and self.chance(0.7):
            return HELD_OUT_LANE
        return int(lanes[int(self.rng.integers(len(lanes)))])

    def place(self, lane: int, low: float = -0.75, high: float = 0.75) -> float:
        """An x between two shares of the lane's half width."""
        edge = wall_x(LANES_Z[lane])
        if self.split == "test_layout" and lane == HELD_OUT_LANE and self.chance(0.7):
            left, right = max(HELD_OUT_X[0], low * edge), min(HELD_OUT_X[1], high * edge)
            if left < right:
                return self.between(left, right)
        return self.between(low * edge, high * edge)

    def thing(self, lane: int, *shapes: str, width: float = 0.0, most: float = 1.0) -> ObjectSpec:
        """A new object of one of these shapes, standing on the floor at x = 0, not yet on stage.

        Args:
            width: fixed width, m; 0 draws one.
            most: share of the range of widths that may be drawn.
        """
        shape = self.one_of(*shapes)
        used = {spec.name for spec in self.objects}
        want = self.split == "test_comp"
        free = [c for c in COLOURS if is_held_out_pair(c, shape) == want]
        free = [c for c in free if f"{c} {shape}" not in used]
        if not free:
            raise DoesNotFit(f"no colour left for one more {shape}")
        colour, material = self.one_of(*free), self.one_of(*MATERIALS)
        low, high = _WIDTH[shape]
        width = width or self.between(low, low + most * (high - low))
        height = width * _HEIGHT[shape]
        foot = height / 3 if shape == "cone" else height / 2
        return ObjectSpec(colour, shape, material, width, height, lane, 0.0, foot)

    def put(self, spec: ObjectSpec, **changes: float) -> ObjectSpec:
        """Bring an object on stage; it must stand clear of what is already there."""
        spec = replace(spec, **changes)
        if abs(spec.x) + spec.width / 2 > wall_x(spec.z) - 0.01 or spec.top > 2.25:
            raise DoesNotFit("outside the room")
        if any(_touch(spec, other) for other in self.objects):
            raise DoesNotFit("inside another object")
        self.objects.append(spec)
        return spec

    def put_on(self, lower: ObjectSpec, spec: ObjectSpec, shift: float = 0.0) -> ObjectSpec:
        """Bring an object on stage, on top of another one."""
        return self.put(spec, x=lower.x + shift, y=lower.top + spec.foot)

    def extras(self, lanes: tuple[int, ...], still: float = 0.12) -> None:
        """Fill up to the number of objects with passers-by in these lanes.

        Args:
            still: share of the passers-by that only stand there.
        """
        for _ in range(_TRIES * self.num_objects):
            if len(self.objects) >= self.num_objects:
                return
            try:
                self._extra(lanes, still)
            except DoesNotFit:
                continue  # the same passer-by may fit elsewhere, or another one here
        raise DoesNotFit("no room for all the passers-by")

    def _extra(self, lanes: tuple[int, ...], still: float) -> None:
        spec = self.thing(self.lane(*lanes), "ball", "ball", *SHAPES)
        x, v = self.place(spec.lane, -0.8, 0.8), 0.0
        if self.chance(1 - still):
            inward = -1 if x > 0 else 1
            v = (inward if self.chance(0.7) else -inward) * self.speed()
        if v and (spec.shape == "cone" or (spec.shape == "box" and self.chance(0.5))):
            self.put(spec, x=x, y=spec.foot + self.between(0.6, 1.4), vx=0.5 * v)
        else:
            self.put(spec, x=x, vx=v)


def _touch(one: ObjectSpec, two: ObjectSpec) -> bool:
    if one.lane != two.lane:
        return False
    apart_x = abs(one.x - two.x) - (one.width + two.width) / 2
    apart_y = max(one.y - one.foot - two.top, two.y - two.foot - one.top)
    if "cup" in (one.shape, two.shape) and "ball" in (one.shape, two.shape):
        cup, ball = (one, two) if one.shape == "cup" else (two, one)
        inside = abs(ball.x - cup.x) < 0.05 and ball.y > cup.y - cup.foot + CUP_WALL
        if inside and ball.width < 0.66 * cup.width:
            return False
    return apart_x < _GAP and apart_y < -1e-6


def _others(lane: int) -> tuple[int, ...]:
    return tuple(k for k in range(len(LANES_Z)) if k != lane)


def _roll_and_bounce(cast: Casting) -> Stage:
    """Balls roll, boxes slide, things fall and bounce, and meet each other."""
    lane, side = cast.lane(), cast.side()
    edge = wall_x(LANES_Z[lane])
    plot = cast.one_of("roll", "roll", "roll", "meet", "drop", "slide")
    if plot == "drop":
        first = cast.thing(lane, "ball", "ball", "box", "plate")
        height = first.foot + cast.between(0.8, 1.6)
        cast.put(first, x=cast.place(lane), y=height, vx=-side * cast.between(0.0, 0.8))
    else:
        first = cast.thing(lane, *(("box", "cup", "plate") if plot == "slide" else ("ball",)))
        push = 1.3 if plot == "slide" else 1.0  # friction takes its share
        x = side * cast.between(0.55, 0.95) * (edge - first.width / 2 - 0.02)
        cast.put(first, x=x, vx=-side * push * cast.speed())
        if cast.num_objects > 1 and (plot == "meet" or cast.chance(0.85)):
            shapes = ("ball",) if plot == "meet" else ("ball", "box", "box", "cup", "plate", "cone")
            second = cast.thing(lane, *shapes)
            vx = side * cast.speed() if plot == "meet" else 0.0
            cast.put(second, x=-side * cast.between(-0.1, 0.8) * (edge - second.width / 2), vx=vx)
    cast.extras(_others(lane))
    return Stage(tuple(cast.objects), cast.condition.seconds)


def _occluder(cast: Casting) -> Stage:
    """A screen stands before one or two lanes; things pass, meet or wait behind it."""
    lane, side = cast.lane(1, 2), cast.side()
    edge = wall_x(LANES_Z[lane])
    z = _SCREENS_Z[0] if lane == 1 or cast.chance(0.5) else _SCREENS_Z[1]
    width, height = cast.between(0.9, 1.25), cast.between(1.0, 1.25)
    x = cast.between(-0.35, 0.35) * wall_x(z)
    leave_s, dx, dy = None, 0.0, 0.0
    if cast.chance(0.5):
        leave_s = cast.between(0.45, 0.6) * cast.condition.seconds
        dx, dy = (0.0, 2.6) if cast.chance(0.5) else (cast.side() * 3.5, 0.0)
    screen = ScreenSpec(x, z, width, height, leave_s, dx, dy)
    behind = x * LANES_Z[lane] / z  # the place that the middle of the screen hides
    first = cast.thing(lane, "ball")
    far = side * cast.between(0.75, 0.97) * (edge - first.width / 2 - 0.02)
    cast.put(first, x=far, vx=-side * 1.15 * cast.speed())
    if cast.num_objects > 1 and cast.chance(0.45):
        cast.put(cast.thing(lane, "box", "cup", "cone", "ball", most=0.5), x=behind - side * 0.1)
    cast.extras(_others(lane), still=0.15)
    return Stage(tuple(cast.objects), cast.condition.seconds, screen=screen)


def _stack(cast: Casting) -> Stage:
    """A tower is hit, grows by one that falls on it, comes down in pieces, or leans too far."""
    lane, side = cast.lane(), cast.side()
    edge = wall_x(LANES_Z[lane])
    plot = cast.one_of("hit", "hit", "drop", "build", "lean")
    storeys = min(3, max(2, cast.num_objects - 1))  # one is left to hit it or to pass by
    x = cast.place(lane, -0.6, 0.6) if plot != "hit" else -side * cast.between(0.0, 0.5) * edge
    below = cast.put(cast.thing(lane, "box", most=0.5), x=x)
    for storey in range(1, storeys):
        is_last = storey == storeys - 1
        upper = cast.thing(lane, "box", "plate", *(("ball", "cone") if is_last else ()), most=0.5)
        shift = cast.between(-0.08, 0.08)
        if plot == "lean" and is_last:
            shift = side * (0.5 * below.width + cast.between(-0.02, 0.12))
        if plot == "build" or (plot == "drop" and is_last):
            height = below.top + upper.foot + cast.between(0.5, 0.95)
            below = cast.put(upper, x=below.x + shift, y=height)
        else:
            below = cast.put_on(below, upper, 0.3 * shift if upper.shape == "ball" else shift)
    if plot == "hit":
        ball = cast.thing(lane, "ball")
        far = side * cast.between(0.7, 0.97) * (edge - ball.width / 2 - 0.02)
        cast.put(replace(ball, material="metal"), x=far, vx=-side * 1.5 * cast.speed())
    cast.extras(_others(lane))
    return Stage(tuple(cast.objects), cast.condition.seconds)


def _container(cast: Casting) -> Stage:
    """A ball falls into a cup or past it, or travels in it."""
    lane, side = cast.lane(0, 1), cast.side()
    edge = wall_x(LANES_Z[lane])
    plot = cast.one_of("drop_in", "drop_in", "miss", "ride", "hit")
    cup = cast.thing(lane, "cup")
    ball = cast.thing(lane, "ball", width=cast.between(0.5, 0.58) * cup.width)
    inside = CUP_WALL + ball.foot
    if plot == "ride":
        cup = cast.put(cup, x=side * 0.55 * edge, vx=-side * 1.4 * cast.speed())
        cast.put(ball, x=cup.x, y=inside, vx=cup.vx)
    elif plot == "hit":
        cup = cast.put(cup, x=-side * cast.between(0.0, 0.4) * edge)
        cast.put(ball, x=cup.x, y=inside)
        if cast.num_objects > 2:
            other = replace(cast.thing(lane, "ball"), material="metal")
            cast.put(other, x=side * 0.8 * (edge - 0.4), vx=-side * 1.3 * cast.speed())
        else:
            cast.objects[0] = replace(cup, vx=-side * 0.8 * cast.speed())
    else:
        cup = cast.put(cup, x=cast.place(lane, -0.6, 0.6))
        off = side * (0.5 * cup.width + cast.between(0.1, 0.3)) if plot == "miss" else 0.0
        cast.put(ball, x=cup.x + off, y=cup.top + ball.foot + cast.between(0.6, 1.3))
    cast.extras(_others(lane))
    return Stage(tuple(cast.objects), cast.condition.seconds)


def _pick_up(cast: Casting) -> Stage:
    """A hand takes one object; what stands on it, in it or hangs from it follows or falls."""
    lane, seconds = cast.lane(0, 1), cast.condition.seconds
    plot = cast.one_of("full_cup", "carry", "carry", "tug", "hung", "bridge", "alone")
    plot = plot if cast.num_objects > (2 if plot == "bridge" else 1) else "alone"
    side = cast.side()
    x = side * cast.between(0.0, 0.35) * wall_x(LANES_Z[lane])
    strings: tuple[StringSpec, ...] = ()
    build: Callable[..., ObjectSpec] = _TARGETS[plot]
    target = build(cast, lane, x, side)
    if plot == "hung":
        upper, lower = cast.objects
        strings = (StringSpec(0, 1, upper.y - upper.foot - lower.top + 0.02),)
    number = cast.objects.index(target)
    hand = _hand_for(cast, plot, number, side, seconds)
    cast.extras(_others(lane), still=0.15)
    return Stage(tuple(cast.objects), seconds, strings, hand=hand)


def _target_full_cup(cast: Casting, lane: int, x: float, side: int) -> ObjectSpec:
    cup = cast.put(cast.thing(lane, "cup"), x=x)
    ball = cast.thing(lane, "ball", width=cast.between(0.5, 0.58) * cup.width)
    cast.put(ball, x=x, y=CUP_WALL + ball.foot)
    return cup


def _target_with_load(cast: Casting, lane: int, x: float, side: int) -> ObjectSpec:
    lower = cast.put(cast.thing(lane, "box", "box", "plate", most=0.6), x=x)
    load = cast.thing(lane, "box", "plate", "cone", "cup", most=0.3)
    cast.put_on(lower, load, cast.between(-0.05, 0.05))
    return lower


def _target_hung(cast: Casting, lane: int, x: float, side: int) -> ObjectSpec:
    lower_height = 0.14
    upper = cast.thing(lane, "box", "plate", "cone", most=0.6)
    lower = cast.thing(lane, "ball", "box", most=0.3)
    upper = cast.put(upper, x=x, y=upper.foot + lower.height + lower_height)
    cast.put(lower, x=x)
    return upper


def _target_bridge(cast: Casting, lane: int, x: float, side: int) -> ObjectSpec:
    span = 0.5
    target = cast.put(cast.thing(lane, "box", width=0.55), x=side * span)
    cast.put(cast.thing(lane, "box", width=0.55), x=-side * span)
    plank = cast.thing(lane, "plate", width=1.45)
    cast.put(replace(plank, height=0.16), x=0.0, y=target.top + 0.08)
    return target


def _target_alone(cast: Casting, lane: int, x: float, side: int) -> ObjectSpec:
    target = cast.put(cast.thing(lane, "ball", "box", "cup", "cone", "plate"), x=x)
    if cast.num_objects > 1:
        other = cast.thing(lane, "ball", "box", "cone", most=0.4)
        away = (target.width + other.width) / 2 + cast.between(0.08, 0.4)
        cast.put(other, x=x - side * away)
    return target


_TARGETS = {
    "full_cup": _target_full_cup,
    "carry": _target_with_load,
    "tug": _target_with_load,
    "hung": _target_hung,
    "bridge": _target_bridge,
    "alone": _target_alone,
}


def _hand_for(cast: Casting, plot: str, target: int, side: int, seconds: float) -> HandSpec:
    """Take at about a quarter of the clip, lift slowly, carry sideways; or pull away at once."""
    # What a string hangs from is in the hand from the start: nothing else could hold it up.
    grab = 0.0 if plot == "hung" else cast.between(0.2, 0.26) * seconds
    if plot == "tug":
        pull = Move(grab + 0.08, grab + 0.33, side * cast.between(0.65, 0.8), 0.0)
        return HandSpec(target, side, grab, (pull,))
    # The load stays on only while the hand brakes more softly than gravity.
    lift_takes = max(0.7, 0.36 * seconds)
    dy = cast.between(0.4, 0.6) * (1.25 if plot in ("alone", "full_cup", "hung") else 1.0)
    start = grab + (0.3 if plot == "hung" else 0.05)
    lift = Move(start, start + lift_takes, 0.0, dy)
    carry_end = min(lift.end_s + 0.6, seconds)
    moves, release = (lift,), None
    if cast.chance(0.6) and plot != "bridge":
        moves += (Move(lift.end_s - 0.1, carry_end, side * cast.between(0.15, 0.45), 0.0),)
    if cast.chance(0.25) and plot in ("alone", "full_cup", "carry"):
        release = lift.end_s + 0.02
        moves = (lift,)
    return HandSpec(target, side, grab, moves, release)


_BUILDERS: dict[str, Callable[[Casting], Stage]] = {
    "roll_and_bounce": _roll_and_bounce,
    "occluder": _occluder,
    "stack": _stack,
    "container": _container,
    "pick_up": _pick_up,
}
FAMILIES = tuple(_BUILDERS)


def build_stage(seed: int, family: str, split: str, condition: Condition) -> Stage:
    """Lay out one scene; a pure function of its arguments."""
    rng = random_for("stage", seed, family, split)
    for _ in range(_ATTEMPTS):
        try:
            stage = _BUILDERS[family](Casting(rng, condition, split))
        except DoesNotFit:
            continue
        in_region = any(is_held_out_place(spec.lane, spec.x) for spec in stage.objects)
        if in_region == (split == "test_layout"):
            return stage
    raise ValueError(
        f"no room for {condition.counts(split)} objects in a scene of {family!r} ({split}, seed "
        f"{seed}) after {_ATTEMPTS} attempts; ask for fewer objects"
    )
