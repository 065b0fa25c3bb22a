"""What is heard: sound_dir, sound_event, which_hit.

In: a number and a split. Out: two shots of one scene, and drafts. A knock comes from another place
and another material in each shot of a `knock`; the shots of a `blind` hit have the same pictures,
bit for bit, and only their sound tells which of two things a hidden ball has hit.
"""

from __future__ import annotations

from dataclasses import replace

from mmpredict.world import FLOOR, MATERIALS, Take
from mmpredict.world.families import Casting
from mmpredict.world.physics import wall_x
from mmpredict.world.stage import LANES_Z, ScreenSpec, Stage

from .draft import HEARD, Draft
from .shot import FPS, Shot, cast_until, suits_layout

_SIDES = ("left", "middle", "right")
_UNTIL_S = 1.0
_CLEAR = 0.6
_HEARD_S = 0.1  # of the sound of a hit is given, and no picture of what comes after it


def build_knock(number: int, split: str, seed: int) -> list[Shot]:
    """Two shots of one thing that falls to the floor."""
    name = f"knock/{split}/{seed}/{number}"
    step = 1 + number // 9 % 2
    plans = [(_SIDES[(number + k) % 3], MATERIALS[(number // 3 + k * step) % 3]) for k in range(2)]

    def build(cast: Casting) -> list[Shot] | None:
        lane = cast.lane(0, 1)
        thing = cast.thing(lane, "ball", "box", "plate")
        height, shots = cast.between(0.8, 1.3), []
        others = _standing(cast, 4 if cast.split == "test_size" else int(cast.rng.integers(1, 3)))
        shift = cast.between(-0.06, 0.06)
        for side, material in plans:
            place = (_SIDES.index(side) - 1) * 0.72 * wall_x(LANES_Z[lane]) + shift
            cast.objects = []
            for spec in others:
                cast.put(spec)
            falls = replace(thing, material=material)
            cast.put(falls, x=place, y=height + thing.foot)
            stage = Stage(tuple(cast.objects), _UNTIL_S)
            if not suits_layout(stage, split, mirrored=False):
                return None
            facts = {"side": side, "material": material}
            roles = {"falls": len(others)}
            shots.append(Shot(f"{name}/{side}", Take(stage, name), _UNTIL_S, name, roles, facts))
        return shots if all(_knocks(shot) for shot in shots) else None

    return cast_until(build, f"knock/{seed}/{number}", split)


def _standing(cast: Casting, count: int) -> list:
    things = []
    for _ in range(count):
        lane = cast.lane(1, 2)
        spec = cast.thing(lane, "box", "cone", "cup", "ball")
        cast.objects.append(spec)
        things.append(replace(spec, x=cast.place(lane, -0.85, 0.85)))
    return things


def _knocks(shot: Shot) -> bool:
    """All is seen, and the thing is heard to meet the floor in time, and nothing else is."""
    strikes = [e for e in shot.history.events if e.impulse > 0]
    if not strikes or min(shot.seen_N) < _CLEAR or strikes[0].time_s > shot.until_s - 0.15:
        return False
    return all(e.a == shot.roles["falls"] and e.b == FLOOR for e in strikes)


def sound_dir(shot: Shot) -> list[Draft]:
    """From which side the sound comes."""
    return [
        Draft(
            "sound_dir",
            shot,
            f"{shot.cluster}/side",
            (),
            (
                "on which side is the hit left right or middle?",
                "the hit is on the left the right or in the middle?",
            ),
            str(shot.facts["side"]),
            _SIDES,
            variants=HEARD,
        )
    ]


def sound_event(shot: Shot) -> list[Draft]:
    """What that is made of which hit the floor."""
    name = shot.name("falls")
    return [
        Draft(
            "sound_event",
            shot,
            f"{shot.cluster}/material",
            (f"what is {name} made of?",),
            (f"{name} is made of what?", f"of what is {name} made?"),
            str(shot.facts["material"]),
            MATERIALS,
            variants=HEARD,
        )
    ]


def build_blind(number: int, split: str, seed: int) -> list[Shot]:
    """Two shots of a hidden ball that hits the thing on its left, or the one on its right."""
    name = f"blind/{split}/{seed}/{number}"

    def build(cast: Casting) -> list[Shot] | None:
        lane, z = 1, 2.9
        middle = cast.between(-0.1, 0.1)
        ball = replace(cast.thing(lane, "ball", width=0.5), material="metal")
        cast.objects.append(ball)
        apart = cast.between(1.0, 1.12)
        pair = []
        for k, material in enumerate(cast.rng.permutation(3).tolist()[:2]):
            spec = cast.thing(lane, "box", "cone", "box")
            pair.append(replace(spec, material=MATERIALS[material]))
            cast.objects.append(spec)
            pair[k] = replace(pair[k], x=middle + (2 * k - 1) * apart)
        cast.objects = []
        for spec in pair:
            cast.put(spec)
        frame = int(cast.rng.integers(3, 6))  # the last picture before the hit
        gaps = [apart - p.width / 2 - ball.width / 2 for p in pair]
        screen = ScreenSpec(middle * z / LANES_Z[lane], z, 2 * apart * z / LANES_Z[lane], 0.8)
        extra = _bystanders(cast, 2) if split == "test_size" else []
        shots = []
        for k, side in enumerate((-1, 1)):
            due = frame / FPS + 0.012
            speed = gaps[k] / due * 1.04  # what rolling costs it
            moving = replace(ball, x=middle, vx=side * speed)
            stage = Stage((*cast.objects, moving, *extra), 1.0, screen=screen)
            until_s = (frame + 1) / FPS - 0.002
            facts = {"hit": k}
            shots.append(Shot(f"{name}/{k}", Take(stage, name), until_s, name, {}, facts))
            if not suits_layout(stage, split, mirrored=False) or not _is_blind(shots[-1]):
                return None
        return shots

    return cast_until(build, f"blind/{seed}/{number}", split)


def _bystanders(cast: Casting, count: int) -> list:
    """Things in the other depths, in the corners."""
    things = []
    for k in range(count):
        spec = cast.thing(2, "box", "cone", "cup")
        cast.objects.append(spec)
        x = (2 * k - 1) * 0.85 * (wall_x(spec.z) - spec.width / 2)
        things.append(replace(spec, x=x))
    del cast.objects[-count:]
    return things


def _is_blind(shot: Shot) -> bool:
    """The ball is never seen, both others are half seen; the right one is hit just after the last
    picture, and heard in time."""
    ball = next(n for n, spec in enumerate(shot.stage.objects) if spec.vx)
    strikes = [e for e in shot.history.events if e.impulse > 0]
    if not strikes or {strikes[0].a, strikes[0].b} != {ball, int(shot.facts["hit"])}:
        return False
    late = strikes[0].time_s - shot.last_s
    if not 0.004 < late < shot.until_s - shot.last_s - _HEARD_S:
        return False
    seen_N = shot.seen_N
    rest = [share for n, share in enumerate(seen_N) if n != ball]
    return seen_N[ball] == 0 and shot.seen_at(0.0)[ball] == 0 and min(rest) > 0.3


def which_hit(shot: Shot) -> list[Draft]:
    """Which of two was hit: the picture shows where they are, the sound where the hit was."""
    one, two = shot.names[:2]
    hit = int(shot.facts["hit"])
    variants = ("video+audio",)
    drafts = [
        Draft(
            "which_hit",
            shot,
            f"{shot.cluster}/which",
            (),
            (f"which is hit {one} or {two}?", f"{one} or {two} which is hit?"),
            shot.names[hit],
            (one, two),
            variants=variants,
        )
    ]
    for n in (0, 1):
        texts = (f"is {shot.names[n]} hit?", f"{shot.names[n]} is hit yes or no?")
        right = "yes" if n == hit else "no"
        group = f"{shot.cluster}/is"
        drafts.append(
            Draft("which_hit", shot, group, (), texts, right, ("yes", "no"), variants=variants)
        )
    return drafts
