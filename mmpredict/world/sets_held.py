"""Plots of matched sets about what holds what: solid things stop others, the unsupported falls, and
what is lifted takes along what is on it, in it or tied to it, and nothing else.

Each has two lawful stages, A and B. Hidden: what makes the difference (the thing that stops or
supports, the place of the load) is behind a screen when the world is swapped, so that pictures
before and after are those of lawful clips. In full view that is impossible, as the thing that makes
the difference stays in the picture; there a breach acts inside of the physics, and what is matched
is the motion of the target: it moves, after the cut, in A with the breach as in B, and in B with
the breach as in A.
"""

from __future__ import annotations

from dataclasses import replace

from .families import Casting
from .physics import STEP_HZ, Breach, Motion, wall_x
from .set_parts import (
    MARGIN_S,
    SECONDS,
    SLIDE_S,
    Cover,
    Draft,
    behind,
    bystanders,
    cover,
    exchanged,
    highest,
    last_frame,
    last_hidden,
    need,
    need_seen,
    played,
    seen,
    tossed,
    with_bystanders,
)
from .stage import CUP_WALL, HandSpec, Move, ObjectSpec, ScreenSpec, Stage, StringSpec
from .take import Take

_COME_S = (0.12, 0.3)  # when a screen comes
_BESIDE_M = (0.1, 0.3)  # between a thing and what stands beside it
_STRING_M = 0.16
_OVER_M = 0.1  # so much of what rests on a hidden thing is hidden, too: it is not on the screen


def solidity(cast: Casting, occluded: bool, variant: int) -> Draft:
    """What meets a block stops or bounces (A); where none is, it goes on (B).

    A ball rolls, or a thing falls. Hidden: a screen comes before the block, or the open place, and
    one sees what comes out beside it, or stays in sight above it. In full view: A with a target
    that passes through the block, and B with one that turns where nothing is.
    """
    plot = ("roll", "fall")[variant % 2]
    block, target, hidden = (_rolls if plot == "roll" else _falls)(cast)
    others = bystanders(cast, block, target, still=1.0, own=2, backed=False)
    screen = cover(*hidden, over=_OVER_M if plot == "fall" else 0.0)
    come_s = cast.between(*_COME_S)
    screens = (screen.coming(cast.side(), come_s, None),) if occluded else ()
    a = with_bystanders(behind(screens, block, target), others)
    b = with_bystanders(behind(screens, target), others)
    n = len(others) + 1
    a_motion, b_motion = played(a), played(b)
    step = _meeting(a_motion, n - 1, n)
    need_seen(b, n - 1, 0.0, step / STEP_HZ, 2)
    if plot == "roll":
        need_seen(b, n - 1, step / STEP_HZ, SECONDS, 3)
    if not occluded:
        need_seen(a, n, step / STEP_HZ, SECONDS, 4)
        takes = _crossed_by_breach(a, b, a_motion, step)
        return Draft(takes, step / STEP_HZ - MARGIN_S, n, {"plot": plot})
    swap = step - 1
    if plot == "roll":
        swap = min(swap, _need_stop(a_motion, screen, block, target))
    else:
        need_seen(a, n, step / STEP_HZ, SECONDS, 4, 0.5)
        share_T = seen(b)[int(step / STEP_HZ * 8) + 1 :, n - 1]
        need((share_T < 0.1).sum() >= 3, "not hidden")
    there_s = come_s + SLIDE_S
    need(last_frame(swap / STEP_HZ) > there_s, "met before the screen is there")
    same = a_motion.state_KN6[swap, n] == b_motion.state_KN6[swap, n - 1]
    need(same.all(), "met before")
    return Draft(exchanged(a, b, swap / STEP_HZ), swap / STEP_HZ, n, {"plot": plot})


Block = tuple[ObjectSpec, ObjectSpec, tuple[ObjectSpec, ...]]  # block, target, what to hide


def _rolls(cast: Casting) -> Block:
    """A light ball against a heavy block."""
    lane = cast.lane()
    target = cast.thing(lane, "ball", most=0.2)
    target = replace(target, material=cast.one_of("rubber", "wood"))
    cast.objects.append(target)
    block = replace(cast.thing(lane, "box", width=cast.between(0.66, 0.76)), material="metal")
    way, edge = cast.side(), wall_x(block.z)
    block = replace(block, x=way * cast.between(-0.2, 0.3) * edge)
    slid = replace(block, x=block.x + 0.1 * way)  # so far it may be pushed
    met = replace(target, x=block.x - way * (block.width + target.width + 0.1) / 2)
    x = -way * cast.between(0.85, 0.98) * (edge - target.width / 2 - 0.02)
    speed = (met.x - x) * way / cast.between(0.55, 0.68)
    low, high = cast.condition.speeds(cast.split)
    need(low <= speed <= 1.25 * high, "not as fast as the split wants")
    out = way * slid.x + 0.66 * slid.width + 0.045 * block.z + target.width / 2
    need(out < edge - target.width / 2 - 0.05, "no room to be seen behind the block")
    need((out - way * x) / speed < 1.45, "too late behind the block")
    return block, replace(target, x=x, vx=way * speed), (met, block, slid)


def _falls(cast: Casting) -> Block:
    """A thing that is tossed up and comes down on a block."""
    lane = cast.lane()
    block = cast.thing(lane, "box")
    block = replace(block, x=cast.place(lane, -0.6, 0.6))
    cast.objects.append(block)
    target = cast.thing(lane, "ball", "box", most=0.4)
    need(target.height < block.height + 0.02, "it would not fit behind the screen")
    target = replace(target, material=cast.one_of("wood", "metal"))  # these hardly bounce
    target = replace(tossed(cast, target, cast.between(0.75, 1.0), block.top), x=block.x)
    return block, target, (block,)


def _need_stop(motion: Motion, screen: Cover, block: ObjectSpec, target: ObjectSpec) -> int:
    """The ball and the block stay hidden, or the ball comes back; the last step at which the ball
    is hidden on its way in."""
    path_KN = motion.state_KN6[:, -2:, 0]
    need(screen.hides(block, path_KN[:, 0]).all(), "the block comes out")
    need(abs(motion.state_KN6[:, -2, 2]).max() < 0.05, "the block tilts")
    way = 1 if target.vx > 0 else -1
    need((way * (path_KN[:, 0] - path_KN[:, 1]) > 0).all(), "the ball gets past the block")
    return round(last_hidden(screen.hides(target, path_KN[:, 1])) * STEP_HZ)


def _meeting(motion: Motion, a: int, b: int) -> int:
    """The first step in which two objects touch."""
    contacts = motion.contacts
    mine_E = (contacts.a_E == a) & (contacts.b_E == b)
    need(mine_E.any(), "they never meet")
    return int(contacts.step_E[mine_E][0])


def _crossed_by_breach(
    a: Stage, b: Stage, motion: Motion, step: int
) -> tuple[Take, Take, Take, Take]:
    """The last object passes through the one before it in A, and turns as in A on B."""
    n = len(a.objects) - 1
    vx, vy = motion.state_KN6[step + 2, n, 3:5].tolist()
    return (
        Take(a, ""),
        Take(a, "", breaches=(Breach(step, n, through=n - 1),)),
        Take(b, "", breaches=(Breach(step, n - 1, velocity=(vx, vy)),)),
        Take(b, ""),
    )


def gravity(cast: Casting, occluded: bool, variant: int) -> Draft:
    """What a hand lets go stays on its support (A); where there is none, it falls (B).

    Hidden: a screen comes before the support, or the open place, while the hand still holds the
    thing above it; one sees whether it stays or goes down behind the screen. In full view: A with a
    thing that falls through its support, and B with one that hangs in the air.
    """
    lane = cast.lane()
    support = cast.thing(lane, "box")
    support = replace(support, x=cast.place(lane, -0.5, 0.5))
    cast.objects.append(support)
    target = cast.thing(lane, ("ball", "box", "cup")[variant % 3], most=0.4)
    need(target.height < support.height + 0.02, "it would not fit behind the screen")
    target = replace(target, material=cast.one_of("wood", "metal"))  # these hardly bounce
    target = replace(target, x=support.x, y=support.top + target.foot)
    others = bystanders(cast, support, target, still=1.0, own=2, backed=False)
    come_s, release = cast.between(*_COME_S), round(cast.between(0.7, 1.0) * STEP_HZ)
    screens = (cover(support, over=_OVER_M).coming(cast.side(), come_s, None),) if occluded else ()
    side = cast.side()
    a, b = (
        with_bystanders(
            replace(
                behind(screens, *own),
                hand=HandSpec(len(own) - 1, side, 0.0, (), release / STEP_HZ),
            ),
            others,
        )
        for own in ((support, target), (target,))
    )
    n, release_s = len(others) + 1, release / STEP_HZ
    motions = played(a), played(b)
    need(abs(motions[0].state_KN6[:, n, :2] - motions[0].state_KN6[0, n, :2]).max() < 0.04, "rolls")
    need_seen(a, n, release_s, SECONDS, 4, 0.5 if occluded else 0.8)
    condition = {"plot": target.shape}
    if not occluded:
        need_seen(b, n - 1, release_s, SECONDS, 4, 0.8)
        takes = (
            Take(a, ""),
            Take(a, "", breaches=(Breach(release, n, through=n - 1),)),
            Take(b, "", breaches=(Breach(release, n - 1, hangs=True),)),
            Take(b, ""),
        )
        return Draft(takes, release_s - MARGIN_S, n, condition)
    need((seen(b)[-3:, n - 1] < 0.2).any(), "not hidden")
    swap_s = release_s - 1 / STEP_HZ
    return Draft(exchanged(a, b, swap_s), swap_s, n, condition)


def pick_up(cast: Casting, occluded: bool, variant: int) -> Draft:
    """A load on, in or tied to what a hand lifts goes along (A); one beside it stays (B).

    Hidden: a screen comes before all, the hand takes hold behind it, and when it has gone one sees
    where the load is. In full view: A with a load that falls through what is lifted, and B with one
    that goes up beside it, held by nothing; not with a string.
    """
    plot = ("on", "in", "hung")[variant % (3 if occluded else 2)]
    lane, side = cast.lane(0, 1), cast.side()
    lifted, load = _LOADED[plot](cast, lane)
    x = cast.between(-0.3, 0.3) * wall_x(lifted.z)
    lifted, load = replace(lifted, x=x), replace(load, x=x)
    apart = (lifted.width + load.width) / 2 + cast.between(*_BESIDE_M)
    beside = replace(load, x=lifted.x - side * apart, y=load.foot)
    others = bystanders(cast, lifted, load, beside, still=1.0, own=2, backed=False)
    come_s, grab_s = cast.between(*_COME_S), cast.between(0.62, 0.72)
    screens: tuple[ScreenSpec, ...] = ()
    if occluded:
        hidden = cover(lifted, load, beside)
        screens = (hidden.coming(cast.side(), come_s, grab_s + cast.between(0.3, 0.45)),)
    lift = Move(grab_s + 0.05, grab_s + 0.75, 0.0, cast.between(0.45, 0.65))
    need(max(lifted.top, load.top) + lift.dy < highest(lane), "too high")
    hand = HandSpec(0, side, 0.0 if plot == "hung" else grab_s, (lift,))
    gap = lifted.y - lifted.foot - load.top
    strings = (StringSpec(0, 1, gap + 0.02),) if plot == "hung" else ()
    a = replace(behind(screens, lifted, load), hand=hand, strings=strings)
    b = replace(behind(screens, lifted, beside), hand=hand)
    a, b = with_bystanders(a, others), with_bystanders(b, others)
    n = len(others) + 1
    _need_load(a, b, n, plot)
    if not occluded:
        step = round(lift.start_s * STEP_HZ)
        takes = (
            Take(a, ""),
            Take(a, "", breaches=(Breach(step, n, through=n - 1),)),
            Take(b, "", breaches=(Breach(step, n, glued_to=n - 1),)),
            Take(b, ""),
        )
        return Draft(takes, step / STEP_HZ - MARGIN_S, n, {"plot": plot})
    need(grab_s > come_s + SLIDE_S + 0.01, "seen before the screen is there")
    return Draft(exchanged(a, b, grab_s), grab_s, n, {"plot": plot})


def _need_load(a: Stage, b: Stage, n: int, plot: str) -> None:
    """In A the load goes up with what is lifted, in B it stays; both are seen."""
    motions = played(a), played(b)
    with_it, alone = (motion.state_KN6[[0, -1], n, :2] for motion in motions)
    rise = motions[0].state_KN6[-1, n - 1, 1] - motions[0].state_KN6[0, n - 1, 1]
    need(abs(with_it[1, 1] - with_it[0, 1] - rise) < 0.1, "the load does not go along")
    need(abs(with_it[1, 0] - with_it[0, 0]) < 0.1, "the load slips")
    need(abs(alone[1] - alone[0]).max() < 0.04, "it does not stay")
    for stage in (a, b):
        last = seen(stage)[-3:]
        need(last[:, n - 1].min() > 0.6, "what is lifted is not seen")
        need(plot == "in" or last[:, n].min() > 0.75, "the load is not seen")
    need_seen(b, n, 0.0, 0.25, 2)
    need(seen(b)[-3:, n].min() > 0.75, "not seen on the floor")


def _load_on(cast: Casting, lane: int) -> tuple[ObjectSpec, ObjectSpec]:
    lower = cast.thing(lane, "box", most=0.4)
    cast.objects.append(lower)
    load = cast.thing(lane, "box", "cone", "cup", most=0.2)
    return lower, replace(load, y=lower.top + load.foot)


def _load_in(cast: Casting, lane: int) -> tuple[ObjectSpec, ObjectSpec]:
    cup = cast.thing(lane, "cup")
    cast.objects.append(cup)
    ball = cast.thing(lane, "ball", width=cast.between(0.5, 0.58) * cup.width)
    return cup, replace(ball, y=CUP_WALL + ball.foot)


def _load_hung(cast: Casting, lane: int) -> tuple[ObjectSpec, ObjectSpec]:
    load = cast.thing(lane, "ball", "box", most=0.3)
    cast.objects.append(load)
    upper = cast.thing(lane, "plate", most=0.3)
    return replace(upper, y=upper.foot + load.height + _STRING_M), load


_LOADED = {"on": _load_on, "in": _load_in, "hung": _load_hung}
