"""Plots of matched sets about what is seen: things last, keep their looks, and move without gaps.

Each has two lawful stages, A and B, that differ in one thing; at a moment the world is swapped from
the one to the other. With a screen the difference is hidden just then, and pictures before and
after are those of lawful clips.

Shapes: K entries of the physics log.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from .families import Casting
from .physics import STEP_HZ, wall_x
from .set_parts import (
    FPS,
    SECONDS,
    SLIDE_S,
    TALL,
    Cover,
    Draft,
    behind,
    bystanders,
    cover,
    exchanged,
    last_hidden,
    need,
    need_seen,
    played,
    rolling,
    with_bystanders,
)
from .sprites import RGB
from .stage import COLOURS, ObjectSpec, Stage, is_held_out_pair

_COME_S = (0.3, 0.45)  # when a screen comes
_HIDDEN_S = (0.3, 0.5)  # how long it then hides
_SWAP_S = (0.8, 1.1)  # when the world is swapped in full view
_APART = 130.0  # distance between two colours (RGB) that are plain to tell apart
_JUMP_M = 0.7  # a jump is at least so long
# Slower, a ball does not come out of the second screen in time; faster, few frames show it.
_GAP_SPEED = (1.9, 3.0)  # m/s
_GAP_SPEED_TEST_SPEED = (3.0, 3.3)  # of the split test_speed: faster than in all the others

Pair = tuple[ObjectSpec, ObjectSpec | None]


def permanence(cast: Casting, occluded: bool, variant: int) -> Draft:
    """A thing is there (A) or not (B): it may neither be gone nor have come.

    A screen comes before its place and goes; or a ball goes behind a screen and comes out. Not
    occluded: it vanishes or appears in full view.
    """
    moving = variant % 2 == 1
    spec = cast.thing(cast.lane(), *(("ball",) if moving else TALL))
    return _exchange(cast, occluded, moving, (spec, None))


def shape_constancy(cast: Casting, occluded: bool, variant: int) -> Draft:
    """A thing has one colour or shape (A) or another (B), and may not change it.

    As in `permanence`; what moves changes its colour alone.
    """
    moving, plot = ((True, "colour"), (False, "colour"), (False, "shape"))[variant % 3]
    spec = cast.thing(cast.lane(), *(("ball",) if moving else TALL))
    other = _recoloured(cast, spec) if plot == "colour" else _reshaped(cast, spec)
    draft = _exchange(cast, occluded, moving, (spec, other))
    return replace(draft, condition={**draft.condition, "plot": plot})


def continuity(cast: Casting, occluded: bool, variant: int) -> Draft:
    """A thing does not get from one place to another unseen.

    Standing: it is on the left (A) or on the right (B); two screens come before both places and
    go, and the gap between them stays open. Moving: a ball passes behind two screens and is seen
    in the gap (A), or there is none (B); here the world is swapped twice, so that the ball fails to
    show in the gap, or shows in it alone. Not occluded: it jumps in full view.
    """
    moving = variant % 2 == 1
    if moving:
        build = _gap if occluded else _leap
    else:
        build = _two_places
    a, b, swaps_s = build(cast, occluded)
    draft = Draft(exchanged(a, b, *swaps_s), swaps_s[0], len(a.objects) - 1)
    return replace(draft, condition={"moving": moving})


def _recoloured(cast: Casting, spec: ObjectSpec) -> ObjectSpec:
    """The same thing in a colour that is plainly another one."""
    want = cast.split == "test_comp"
    mine = np.array(RGB[spec.colour])
    apart = [c for c in COLOURS if np.linalg.norm(mine - np.array(RGB[c])) >= _APART]
    free = [c for c in apart if is_held_out_pair(c, spec.shape) == want]
    need(len(free) > 0, "no other colour")
    return replace(spec, colour=cast.one_of(*free))


def _reshaped(cast: Casting, spec: ObjectSpec) -> ObjectSpec:
    """Another thing of the same colour and material, about as wide."""
    want = cast.split == "test_comp"
    shapes = [s for s in TALL if s != spec.shape and is_held_out_pair(spec.colour, s) == want]
    need(len(shapes) > 0, "no other shape of this colour")
    other = cast.thing(spec.lane, *shapes)
    return replace(other, colour=spec.colour, material=spec.material)


def _exchange(cast: Casting, occluded: bool, moving: bool, pair: Pair) -> Draft:
    """At a place, or on its way, is the one or the other (None: nothing)."""
    build = _passing if moving else _standing
    a, b, swap_s = build(cast, occluded, pair)
    return Draft(exchanged(a, b, swap_s), swap_s, len(a.objects) - 1, {"moving": moving})


def _standing(cast: Casting, occluded: bool, pair: Pair) -> tuple[Stage, Stage, float]:
    """A screen comes before its place and goes."""
    x = cast.place(pair[0].lane, -0.6, 0.6)
    specs = [replace(spec, x=x, y=spec.foot) for spec in pair if spec]
    others = bystanders(cast, *specs)
    screen, come_s, swap_s = None, 0.0, cast.between(*_SWAP_S)
    if occluded:
        come_s = cast.between(*_COME_S)
        swap_s = come_s + SLIDE_S + cast.between(*_HIDDEN_S)
        hidden = cover(*specs, spare=cast.between(0.0, 0.2))
        screen = hidden.coming(cast.side(), come_s, swap_s)
    a, b = (
        with_bystanders(Stage((spec,) if spec else (), SECONDS, screen=screen), others)
        for spec in (*specs, None)[:2]
    )
    need_seen(a, len(others), 0.0, come_s if occluded else swap_s, 3)
    need_seen(a, len(others), swap_s + SLIDE_S * occluded, SECONDS, 4)
    return a, b, swap_s


def _passing(cast: Casting, occluded: bool, pair: Pair) -> tuple[Stage, Stage, float]:
    """A ball goes behind a screen that stands there, and comes out."""
    ball = rolling(cast, pair[0], fast=1.3, nearest=0.92)
    specs = [ball] + [replace(s, x=ball.x, vx=ball.vx) for s in pair[1:] if s]
    path_K = played(Stage((ball,), SECONDS)).state_KN6[:, 0, 0]
    screen, swap_s = None, cast.between(*_SWAP_S)
    if occluded:
        way = 1 if ball.vx > 0 else -1
        middle = way * cast.between(-0.25, 0.15) * wall_x(ball.z)
        reach = abs(ball.vx) * cast.between(0.04, 0.12)
        hidden = cover(replace(ball, x=middle - reach), replace(ball, x=middle + reach))
        screen, swap_s = hidden.standing(), last_hidden(hidden.hides(ball, path_K))
        # Alone first: that is cheap.
        alone = Stage((ball,), SECONDS, screen=screen)
        need_seen(alone, 0, 0.0, swap_s, 2)
        need_seen(alone, 0, swap_s, SECONDS, 3)
    others = bystanders(cast, *specs)
    a, b = (
        with_bystanders(Stage((spec,) if spec else (), SECONDS, screen=screen), others)
        for spec in (*specs, None)[:2]
    )
    need_seen(a, len(others), 0.0, swap_s, 2)
    need_seen(a, len(others), swap_s, SECONDS, 3)
    return a, b, swap_s


def _two_places(cast: Casting, occluded: bool) -> tuple[Stage, Stage, tuple[float, ...]]:
    """On the left or on the right."""
    spec = cast.thing(cast.lane(), *TALL, most=0.4)
    edge, side = wall_x(spec.z), cast.side()
    places = [way * side * cast.between(0.45, 0.7) * edge for way in (-1, 1)]
    way = replace(spec, x=sum(places) / 2, width=abs(places[0] - places[1]))
    others = bystanders(cast, *(replace(spec, x=x) for x in places), way)
    screens, come_s, swap_s = (), 0.0, cast.between(*_SWAP_S)
    if occluded:
        come_s = cast.between(*_COME_S)
        swap_s = come_s + SLIDE_S + cast.between(*_HIDDEN_S)
        covers = [cover(replace(spec, x=x), spare=cast.between(0.0, 0.1)) for x in places]
        _need_gap(covers, spec)
        screens = tuple(c.coming(1 if c.x > 0 else -1, come_s, swap_s) for c in covers)
    stages = [with_bystanders(behind(screens, replace(spec, x=x)), others) for x in places]
    for stage in stages:
        need_seen(stage, len(others), 0.0, come_s if occluded else swap_s, 3)
        need_seen(stage, len(others), swap_s + SLIDE_S * occluded, SECONDS, 4)
    return stages[0], stages[1], (swap_s,)


def _gap(cast: Casting, _occluded: bool) -> tuple[Stage, Stage, tuple[float, ...]]:
    """A ball passes two screens, or there is none."""
    ball = rolling(cast, cast.thing(2, "ball", most=0.15), nearest=0.96)
    fast = cast.split == "test_speed"
    speed = cast.between(*(_GAP_SPEED_TEST_SPEED if fast else _GAP_SPEED))
    ball = replace(ball, vx=math.copysign(speed, ball.vx))
    path_K = played(Stage((ball,), SECONDS)).state_KN6[:, 0, 0]
    # Each screen hides the ball for a moment, which is that of a frame.
    frames = round(cast.between(1.65, 1.9) * FPS / abs(ball.vx))
    x_T = path_K[:: round(STEP_HZ / FPS)]
    first = int(np.abs(x_T[: len(x_T) - frames] + x_T[frames:]).argmin())  # in the middle
    first_s, second_s = first / FPS, (first + frames) / FPS
    need(second_s < SECONDS - 3 / FPS, "it would not come out")
    places = [x_T[first], x_T[first + frames]]
    middle = float(sum(places)) / 2
    covers = [cover(replace(ball, x=float(x)), spare=4 * abs(ball.vx) / STEP_HZ) for x in places]
    _need_gap(covers, ball)
    screens = tuple(c.standing() for c in covers)
    alone = behind(screens, ball)
    _need_in_gap(alone, 0, first_s, second_s)
    others = bystanders(cast, ball, replace(ball, x=middle))
    a, b = (with_bystanders(behind(screens, *own), others) for own in ((ball,), ()))
    _need_in_gap(a, len(others), first_s, second_s)
    return a, b, (first_s, second_s)


def _leap(cast: Casting, _occluded: bool) -> tuple[Stage, Stage, tuple[float, ...]]:
    """A ball rolls here or further on."""
    ball = rolling(cast, cast.thing(cast.lane(), "ball"))
    jump = (1 if ball.vx > 0 else -1) * cast.between(0.8, 1.3)
    specs = [ball, replace(ball, x=ball.x + jump)]
    if cast.chance(0.5):
        specs.reverse()
    swap_s = cast.between(0.45, 0.9)
    free = wall_x(ball.z) - ball.width / 2 - 0.3 * abs(ball.vx)
    need(all(abs(s.x + s.vx * swap_s) < free for s in specs), "near a wall")
    others = bystanders(cast, *specs)
    stages = [with_bystanders(Stage((spec,), SECONDS), others) for spec in specs]
    places = []
    for stage in stages:
        need_seen(stage, len(others), 0.0, swap_s, 3)
        need_seen(stage, len(others), swap_s, SECONDS, 4)
        entry = played(stage).at(np.array([swap_s - 0.2, swap_s, swap_s + 0.2]))[:, -1]
        need(np.abs(entry[:, 3] - entry[0, 3]).max() < 0.3, "turns at the moment of the jump")
        places.append(entry[1, 0])
    need(abs(places[0] - places[1]) > _JUMP_M, "hardly a jump")
    return stages[0], stages[1], (swap_s,)


def _need_in_gap(stage: Stage, n: int, first_s: float, second_s: float) -> None:
    """It is seen before, in the gap and afterwards."""
    need_seen(stage, n, 0.0, first_s, 1)
    need_seen(stage, n, first_s, second_s, 1, 0.7)
    need_seen(stage, n, second_s, SECONDS, 2)


def _need_gap(covers: list[Cover], spec: ObjectSpec) -> None:
    """Between two screens a thing would be seen in full."""
    left, right = sorted(covers, key=lambda c: c.x)
    gap = (right.x - right.width / 2) - (left.x + left.width / 2)
    need(gap > 1.1 * spec.width * left.z / spec.z, "no gap")
