"""A hand takes a cup or a box: pick_up, containment, support.

In: a number and a split. Out: two shots of one scene, in which two things alike exchange their
places (one in the cup or on the box, one beside it; or both beside it), and drafts about them.
Half of the scenes are asked before the hand has moved anything, so that the answer is a forecast.
"""

from __future__ import annotations

from dataclasses import replace

from mmpredict.world import Take
from mmpredict.world.families import Casting, DoesNotFit
from mmpredict.world.physics import wall_x
from mmpredict.world.stage import CUP_WALL, LANES_Z, HandSpec, Move, ObjectSpec, Stage

from .draft import Draft
from .shot import Shot, cast_until, suits_layout

_LOADED = (("a", "b"), ("b", ""), ("", "a"))  # who is in the cup, in the two shots of a scene
_BEFORE_S, _AFTER_S = 0.375, 1.625
_GRAB_S = 0.33
_CLEAR = 0.6


def build_hand(number: int, split: str, seed: int) -> list[Shot]:
    """Two shots of a hand that takes a cup (even numbers) or a box (odd ones)."""
    is_cup = number % 2 == 0
    until_s = _AFTER_S if number // 2 % 2 else _BEFORE_S
    loads = _LOADED[number // 4 % 3]
    name = f"hand/{split}/{seed}/{number}"

    def build(cast: Casting) -> list[Shot] | None:
        scene = _Scene(cast, is_cup)
        shots = []
        for load in loads:
            stage = scene.stage(load)
            if not suits_layout(stage, split, mirrored=False):
                return None
            roles = {"target": 0, "a": 1, "b": 2, "mark": 3}
            facts = {"load": load, "is_cup": is_cup, "forecast": until_s == _BEFORE_S}
            facts["way"] = "right" if scene.way > 0 else "left"
            source = f"{name}/{load or 'none'}"
            shots.append(Shot(source, Take(stage, name), until_s, name, roles, facts))
        return shots if all(_is_clear(shot) for shot in shots) else None

    return cast_until(build, f"hand/{seed}/{number}", split)


class _Scene:
    """What both shots share: the things, the places beside the target, and what the hand does."""

    def __init__(self, cast: Casting, is_cup: bool) -> None:
        self.cast, self.is_cup, self.way = cast, is_cup, cast.side()
        self.lane = cast.lane(0, 1)
        others = [k for k in range(len(LANES_Z)) if k != self.lane]
        mark_lane, free_lane = (others[k] for k in cast.rng.permutation(2))
        self.target = self._named("cup" if is_cup else "box", self.lane, 0.0)
        shape = "ball" if is_cup else cast.one_of("box", "cone")
        width = cast.between(0.5, 0.58) * self.target.width if is_cup else cast.between(0.5, 0.6)
        self.pair = [self._named(shape, self.lane, width) for _ in range(2)]
        if is_cup and "black" in {spec.colour for spec in self.pair}:
            raise DoesNotFit("what is black is not seen in the dark of a cup")
        self.mark = self._named(cast.one_of("ball", "box", "cone", "plate"), mark_lane, 0.0)
        self.lanes = (free_lane, mark_lane)
        start = -self.way * cast.between(0.4, 0.55)
        self.target = replace(self.target, x=start)
        self.mark = replace(self.mark, x=cast.between(-0.06, 0.06))
        if cast.split == "test_layout":
            self.mark = replace(self.mark, x=cast.between(0.3, 0.4))
        self.beside = [-self.way * cast.between(0.55, 0.85), -self.way * cast.between(0.4, 0.85)]
        self.extra = self._bystander() if cast.split == "test_size" else None
        lift = Move(_GRAB_S + 0.05, _GRAB_S + 0.72, 0.0, cast.between(0.4, 0.5))
        moves = (lift,)
        if is_cup:  # what only stands on a box would slide off
            moves += (Move(lift.end_s - 0.1, lift.end_s + 0.5, self.way * 0.95, 0.0),)
        self.hand = HandSpec(0, cast.side(), _GRAB_S, moves)

    def _named(self, shape: str, lane: int, width: float) -> ObjectSpec:
        spec = self.cast.thing(lane, shape, width=width)
        self.cast.objects.append(spec)
        return spec

    def _bystander(self) -> ObjectSpec:
        spec = self._named("ball", self.lanes[0], 0.0)
        return replace(spec, x=self.way * 0.7 * (wall_x(spec.z) - 0.3))

    def stage(self, load: str) -> Stage:
        """The stage with this one of the pair in or on the target."""
        cast, target = self.cast, self.target
        cast.objects = []
        cast.put(target)
        for k, role in enumerate("ab"):
            spec = self.pair[k]
            if role == load and self.is_cup:
                cast.put(spec, x=target.x, y=CUP_WALL + spec.foot)
            elif role == load:
                cast.put_on(target, spec)
            else:
                lane = self.lanes[0 if load else k]
                x = self.beside[0 if load else k] * (wall_x(LANES_Z[lane]) - 0.1)
                cast.put(replace(spec, lane=lane), x=x)
        cast.put(self.mark)
        if self.extra:
            cast.put(self.extra)
        return Stage(tuple(cast.objects), _AFTER_S, hand=self.hand)


def _is_clear(shot: Shot) -> bool:
    """What is asked about is seen at the start and at the end (but for the inside of a cup), and
    the load goes along to the end."""
    first_N = shot.seen_at(0.0)
    load = shot.roles.get(str(shot.facts["load"]), -1)
    in_cup = load if shot.facts["is_cup"] else -1
    for seen_N in (first_N, shot.seen_N):
        if any(seen < (0.1 if n == in_cup else _CLEAR) for n, seen in enumerate(seen_N)):
            return False
    target = shot.roles["target"]
    for entry in (0, -1):
        inside = shot.history.container_KN[entry]
        below = shot.history.support_KN[entry]
        for n in (shot.roles["a"], shot.roles["b"]):
            is_with = (inside if shot.facts["is_cup"] else below)[n] == target
            on_floor = shot.motion.state_KN6[entry, n, 1] < shot.stage.objects[n].foot + 0.03
            if is_with != (n == load) or (n != load and not on_floor):
                return False
    return True


def _told(shot: Shot) -> tuple[str, ...]:
    """Where the pair is, in caption words."""
    word = "in" if shot.facts["is_cup"] else "on"
    lines = []
    for role in "ab":
        place = f"{word} {shot.name('target')}" if role == shot.facts["load"] else "on the floor"
        lines.append(f"{shot.name(role)} is {place}")
    return tuple(lines)


def pick_up(shot: Shot) -> list[Draft]:
    """What moves with the thing that is taken; did it move; and where is it now."""
    target, load = shot.name("target"), str(shot.facts["load"])
    names = shot.name("a"), shot.name("b")
    told = (*_told(shot), f"the hand lifts {target}")
    base = {"forecast": shot.facts["forecast"], "is_cup": shot.facts["is_cup"]}
    drafts = [
        Draft(
            "pick_up",
            shot,
            f"{shot.cluster}/with",
            (f"what moves with {target}?", f"what goes with {target}?"),
            (f"{target} moves with what?", f"with {target} what goes up?"),
            shot.name(load) if load else "nothing",
            (*names, "nothing"),
            told,
            condition={**base, "asks": "what"},
        )
    ]
    if shot.facts["forecast"] or not load:
        return drafts
    for role in "ab":
        drafts.append(_did_move(shot, role, told, base))
        if shot.facts["is_cup"]:
            drafts += _where_now(shot, role, base)
    return drafts


def _did_move(shot: Shot, role: str, told: tuple[str, ...], base: dict) -> Draft:
    name = shot.name(role)
    return Draft(
        "pick_up",
        shot,
        f"{shot.cluster}/moved",
        (f"did {name} move?", f"has {name} moved?"),
        (f"is {name} moved?", f"{name} has moved yes or no?"),
        "yes" if role == shot.facts["load"] else "no",
        ("yes", "no"),
        told,
        condition={**base, "asks": "moved"},
    )


def _where_now(shot: Shot, role: str, base: dict) -> list[Draft]:
    """Left or right of a mark that the load was carried past."""
    is_left = shot.is_left(shot.roles[role], shot.roles["mark"])
    if is_left is None:
        return []
    name, mark, target = shot.name(role), shot.name("mark"), shot.name("target")
    told = (
        *_told(shot),
        f"the hand moves {target} {shot.facts['way']}",
        f"{target} is {shot.facts['way']} of {mark}",
    )
    other = shot.name("b" if role == "a" else "a")
    if role != shot.facts["load"]:  # the one that stayed: over the cup, which is now elsewhere
        told = (f"{other} is in {target}", f"{mark} is {shot.facts['way']} of {name}")
    return [
        Draft(
            "pick_up",
            shot,
            f"{shot.cluster}/where/{role}",
            (f"is {name} left or right of {mark}?", f"on which side of {mark} is {name}?"),
            (f"is {name} now left or right of {mark}?", f"{name} is left or right of {mark}?"),
            "left" if is_left else "right",
            ("left", "right"),
            told,
            condition={**base, "asks": "where"},
        )
    ]


def containment(shot: Shot) -> list[Draft]:
    """What is in the cup."""
    if not shot.facts["is_cup"]:
        return []
    cup, load = shot.name("target"), str(shot.facts["load"])
    names = shot.name("a"), shot.name("b")
    told = tuple(
        f"{shot.name(role)} {'falls into ' + cup if role == load else 'is on the floor'}"
        for role in "ab"
    )
    moved = () if shot.facts["forecast"] else (f"the hand moves {cup} {shot.facts['way']}",)
    return [
        Draft(
            "containment",
            shot,
            f"{shot.cluster}/in",
            (f"what is in {cup}?", f"what is inside {cup}?"),
            (f"{cup} has what in it?", f"what is now in {cup}?"),
            shot.name(load) if load else "nothing",
            (*names, "nothing"),
            (*told, *moved),
            condition={"moved": not shot.facts["forecast"]},
        )
    ]


def standing(shot: Shot) -> list[Draft]:
    """Family support: what each of the pair is on."""
    if shot.facts["is_cup"] or not shot.facts["load"]:
        return []
    target, drafts = shot.name("target"), []
    for role in "ab":
        name, is_on = shot.name(role), role == shot.facts["load"]
        drafts.append(
            Draft(
                "support",
                shot,
                f"{shot.cluster}/on",
                (f"what is {name} on?", f"on what does {name} stand?"),
                (f"{name} is on what?", f"what is {name} on now?"),
                target if is_on else "the floor",
                (target, "the floor"),
                (f"{name} {'lands on ' + target if is_on else 'falls to the floor'}",),
                condition={"asks": "on", "lifted": not shot.facts["forecast"]},
            )
        )
    return drafts
