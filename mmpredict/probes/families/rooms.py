"""Rooms: four things in three depths, at rest but for a hand or a ball; most relations are asked
of them.

In: a number and a split. Out: a shot. What a room must offer is drawn first, so that no answer
hangs on a word: how many of which shape, whether the nearer or the farther of two alike is the
bigger one, and which of them fill the same part of the picture.
"""

from __future__ import annotations

from dataclasses import replace

from mmpredict.world import COLOURS, Take, is_held_out_pair
from mmpredict.world.families import Casting, DoesNotFit
from mmpredict.world.physics import wall_x
from mmpredict.world.stage import (
    HELD_OUT_LANE,
    LANES_Z,
    SHAPES,
    HandSpec,
    Move,
    ObjectSpec,
    Stage,
    random_for,
)

from .shot import Shot, cast_until, suits_layout

UNTIL_S = 1.25
_TWINS = {"ball": (0.5, 0.75), "box": (0.52, 0.76), "cone": (0.56, 0.76)}
_TWINS |= {"cup": (0.84, 1.0), "plate": (0.84, 1.05)}
_FLAT = ("box", "plate")  # what something can stand on
_CLEAR = 0.62  # share of a named thing that must be seen


def most_alike(split: str) -> int:
    """The highest number of things of one shape in the rooms of a split; test_comp has fewer
    colours."""
    return {"test_comp": 2, "test_size": 5}.get(split, 4)


def build_room(number: int, split: str, seed: int, *, mirrored: bool) -> list[Shot]:
    """One room; where it is `mirrored`, the same with left and right exchanged as well."""
    plan = random_for("room", seed, split, number)
    count = number % (most_alike(split) + 1)
    shape = SHAPES[(number // (most_alike(split) + 1)) % len(SHAPES)]
    if split == "test_comp" and count > 1 and _colours(shape, split) < count + 1:
        shape = ("box", "cup", "cone")[int(plan.integers(3))]
    is_bigger_far = bool(plan.random() < 0.5)

    def build(cast: Casting) -> Shot | None:
        shapes = _shapes(cast, shape, count)
        stage, roles = _lay_out(cast, shapes, is_bigger_far)
        if not suits_layout(stage, split, mirrored=mirrored):
            return None
        name = f"room/{split}/{seed}/{number}"
        facts = {"same_size_in_picture": is_bigger_far, "lifted": stage.hand is not None}
        shot = Shot(name, Take(stage, name), UNTIL_S, name, roles, facts)
        return shot if _is_clear(shot) else None

    shot = cast_until(build, f"room/{seed}/{number}", split)
    if not mirrored:
        return [shot]
    return [shot, replace(shot, source=f"{shot.source}/mirrored", take=shot.take.mirrored())]


def _colours(shape: str, split: str) -> int:
    return sum(is_held_out_pair(colour, shape) == (split == "test_comp") for colour in COLOURS)


def _shapes(cast: Casting, shape: str, count: int) -> list[str]:
    """The shapes of a room's things: `count` of `shape`; the first two are alike."""
    total = 5 if cast.split == "test_size" else 4
    others = [s for s in SHAPES if s != shape]
    others = [others[k] for k in cast.rng.permutation(len(others))]
    if count >= 2:
        rest = others[: total - count]
        return [shape] * count + rest
    rest = others[: total - 2 - count]  # the twins are of another shape; nothing else is alike
    rest = [others[3], others[3], *rest[: total - 2 - count]]
    return rest + [shape] * count


def _lay_out(cast: Casting, shapes: list[str], is_bigger_far: bool) -> tuple[Stage, dict[str, int]]:
    """Twins stand in the nearest and the farthest depth; one thing is on another, or is lifted."""
    near, far = (0, 2)
    low, high = _TWINS[shapes[0]]
    sizes = (low, high) if is_bigger_far else (high, low)
    specs = [_thing(cast, shapes[k], lane, sizes[k]) for k, lane in enumerate((near, far))]
    lanes = [1, 0 if cast.chance(0.5) else 2, int(cast.rng.integers(3))]
    specs += [_draw(cast, s, lane) for s, lane in zip(shapes[2:], lanes, strict=False)]
    roles = {"near": 0, "far": 1, "middle": 2, "fourth": 3}
    below = 0 if specs[3].lane == near else 1
    cast.objects.clear()
    hand = None
    stacks = specs[below].shape in _FLAT and specs[3].shape not in ("ball", *_FLAT[1:])
    if stacks and cast.chance(0.8):
        roles |= {"high": 3, "below": below}
    else:
        lifted = int(cast.rng.integers(4))
        roles["high"] = lifted
        side = cast.side()
        lift = Move(0.42, 1.0, 0.0, cast.between(0.75, 0.95))
        hand = HandSpec(lifted, side, 0.36, (lift,))
    spots = cast.rng.permutation(len(specs)).tolist()
    for k, spec in enumerate(specs):
        if roles.get("below") is not None and k == 3:
            lower = cast.objects[below]
            if spec.width > 1.25 * lower.width:
                raise DoesNotFit("too wide to stand there")
            cast.put_on(lower, spec, cast.between(-0.05, 0.05))
        else:
            cast.put(spec, x=_spot(cast, spots[k], len(specs), spec.lane))
    objects = list(cast.objects)
    roll = objects[2]
    if roll.shape == "ball" and hand is None and cast.chance(0.7):
        objects[2] = replace(roll, vx=cast.side() * 0.6 * cast.speed())
    order = cast.rng.permutation(len(objects)).tolist()  # numbers tell nothing
    place = {old: new for new, old in enumerate(order)}
    hand = hand and replace(hand, target=place[hand.target])
    stage = Stage(tuple(objects[k] for k in order), UNTIL_S, hand=hand)
    return stage, {role: place[k] for role, k in roles.items()}


def _spot(cast: Casting, place: int, count: int, lane: int) -> float:
    """An x in the `place`-th of `count` equal parts of the picture."""
    share = (place + cast.between(0.15, 0.85)) / count
    if cast.split == "test_layout" and lane == HELD_OUT_LANE:
        return cast.place(lane)
    return (2 * share - 1) * (wall_x(LANES_Z[lane]) - 0.3)


def _thing(cast: Casting, shape: str, lane: int, width: float) -> ObjectSpec:
    spec = cast.thing(lane, shape, width=width)
    cast.objects.append(spec)  # its name is taken
    return spec


def _draw(cast: Casting, shape: str, lane: int) -> ObjectSpec:
    return _thing(cast, shape, lane, 0.0)


def _is_clear(shot: Shot) -> bool:
    """All is seen at the end, apart, and in the depth and height that were meant."""
    num = len(shot.stage.objects)
    if shot.seen_N.min() < _CLEAR:
        return False
    high, below = shot.roles["high"], shot.roles.get("below")
    for a in range(num):
        for b in range(a):
            stacked = below is not None and {a, b} == {high, below}
            if not stacked and shot.is_left(a, b) is None:
                return False
    others = [k for k in range(num) if k != high]
    if below is not None:
        others = [below] + [k for k in others if shot.is_above(high, k) is not None]
    return all(shot.is_above(high, k) for k in others) and len(set(others)) >= 2
