"""A hand is about to let go of a thing: support.

In: a number and a split. Out: two shots of one scene, in which the hand holds the thing above one
other, above a second one, or above the floor, and drafts about where it will land.
"""

from __future__ import annotations

from mmpredict.world import FLOOR, Take
from mmpredict.world.families import Casting
from mmpredict.world.physics import wall_x
from mmpredict.world.stage import LANES_Z, HandSpec, Stage

from .draft import Draft
from .shot import Shot, cast_until, suits_layout

_SPOTS = ("first", "second", "floor")
_UNTIL_S, _RELEASE_S = 0.5, 0.55
_CLEAR = 0.6


def build_drop(number: int, split: str, seed: int) -> list[Shot]:
    """Two shots of a hand above two of three places; the question comes before it lets go."""
    name = f"drop/{split}/{seed}/{number}"
    spots = _SPOTS[number % 3], _SPOTS[(number + 1) % 3]

    def build(cast: Casting) -> list[Shot] | None:
        lane = cast.lane(0, 1)
        things = []
        for _ in range(2):
            things.append(cast.thing(lane, "box", "plate", most=0.4))
            cast.objects.append(things[-1])
        held = cast.thing(lane, "box", "ball", "cone", most=0.1)
        # The outer places are out of the region of test_layout, or in it.
        third = wall_x(LANES_Z[lane]) * (0.55 if split == "test_layout" else 2 / 3)
        turn = cast.rng.permutation(3).tolist()
        places = {spot: third * (turn[k] - 1) for k, spot in enumerate(_SPOTS)}
        height, side, shift = cast.between(1.1, 1.4), cast.side(), cast.between(-0.05, 0.05)
        shots = []
        for spot in spots:
            cast.objects = []
            cast.put(things[0], x=places["first"])
            cast.put(things[1], x=places["second"])
            cast.put(held, x=places[spot] + shift, y=height + held.foot)
            hand = HandSpec(2, side, 0.0, (), release_s=_RELEASE_S)
            stage = Stage(tuple(cast.objects), 1.25, hand=hand)
            roles, facts = {"first": 0, "second": 1, "held": 2}, {"spot": spot}
            shot = Shot(f"{name}/{spot}", Take(stage, name), _UNTIL_S, name, roles, facts)
            if not suits_layout(stage, split, mirrored=False) or not _lands(shot):
                return None
            shots.append(shot)
        return shots

    return cast_until(build, f"drop/{seed}/{number}", split)


def _lands(shot: Shot) -> bool:
    """All is seen, and the first thing that is met is what was meant."""
    held = shot.roles["held"]
    met = [e for e in shot.history.events if e.kind in ("land", "bounce", "hit") and e.a == held]
    if not met or shot.seen_N.min() < _CLEAR:
        return False
    return met[0].b == shot.roles.get(str(shot.facts["spot"]), FLOOR)


def landing(shot: Shot) -> list[Draft]:
    """Family support: on what the thing in the hand will land."""
    held, spot = shot.name("held"), str(shot.facts["spot"])
    is_floor = spot == "floor"
    below = f"nothing is below {held}" if is_floor else f"{held} is above {shot.name(spot)}"
    return [
        Draft(
            "support",
            shot,
            f"{shot.cluster}/land",
            (),
            (
                f"the hand lets go of {held} on what does it land?",
                f"the hand drops {held} what does it hit first?",
            ),
            "the floor" if is_floor else shot.name(spot),
            (shot.name("first"), shot.name("second"), "the floor"),
            (below, f"the hand takes {held}"),
            condition={"asks": "land"},
        )
    ]
