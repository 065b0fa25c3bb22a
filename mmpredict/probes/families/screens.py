"""Two things go behind a screen, one comes out again: permanence, appearance_order.

In: a number and a split. Out: two shots of one scene, in which both things exchange their roles,
and drafts. In half of the scenes the one that is hidden first comes out, in half it stays.
"""

from __future__ import annotations

from dataclasses import replace

from mmpredict.world import Take
from mmpredict.world.families import Casting
from mmpredict.world.physics import STEP_HZ, wall_x
from mmpredict.world.stage import LANES_Z, ScreenSpec, Stage

from .draft import Draft
from .shot import FPS, Shot, cast_until, exchange, suits_layout

_UNTIL_S = 1.625
_GAP_S = 0.25  # between the two moments at which they are gone: two pictures
_PACE_MPS = 1.45  # mean speed for which these times are; where all is faster, they are shorter
_CLEAR = 0.75


def build_screen(number: int, split: str, seed: int) -> list[Shot]:
    """Two shots of two balls that roll behind a screen."""
    name = f"screen/{split}/{seed}/{number}"

    def build(cast: Casting) -> list[Shot] | None:
        pace = _PACE_MPS / (sum(cast.condition.speeds(split)) / 2)
        until_s = round(_UNTIL_S * pace * FPS) / FPS
        stage = _stage(cast, max(1.0, until_s))
        if not suits_layout(stage, split, mirrored=False):
            return None
        shots = []
        for source, played in ((f"{name}/one", stage), (f"{name}/two", exchange(stage, 0, 1))):
            shot = Shot(source, Take(played, name), until_s, name, {"a": 0, "b": 1})
            facts = _facts(shot, _GAP_S * pace)
            if facts is None:
                return None
            shots.append(replace(shot, facts=facts))
        return shots if shots[0].facts["first"] == shots[1].facts["first"] else None

    return cast_until(build, f"screen/{seed}/{number}", split)


def _stage(cast: Casting, seconds: float) -> Stage:
    """One ball is likely to be through in time, the other not."""
    screen = ScreenSpec(cast.between(-0.2, 0.2), 2.9, cast.between(1.1, 1.4), 1.1)
    low, high = cast.condition.speeds(cast.split)
    lanes = [1, 2] if cast.chance(0.3) else [2, 1]
    paces = low * cast.between(0.6, 0.95), low + (high - low) * cast.between(0.5, 1.0)
    for lane, speed in zip(lanes, paces, strict=True):
        spec, side = cast.thing(lane, "ball"), cast.side()
        x = side * cast.between(0.5, 0.97) * (wall_x(LANES_Z[lane]) - spec.width / 2 - 0.02)
        cast.put(spec, x=x, vx=-side * speed)
    total = 5 if cast.split == "test_size" else int(cast.rng.integers(2, 4))
    while len(cast.objects) < total:  # before the screen, where they hide least
        spec = cast.thing(0, "box", "cone", "cup", "ball", most=0.3)
        cast.put(spec, x=cast.place(0, -0.8, 0.8))
    order = [0, 1] if cast.chance(0.5) else [1, 0]  # numbers tell nothing
    objects = [cast.objects[k] for k in order] + cast.objects[2:]
    return Stage(tuple(objects), seconds, screen=screen)


def _facts(shot: Shot, gap_s: float) -> dict[str, str | float | int | bool] | None:
    """Who is hidden first and who is hidden at the end; None where it is not plain."""
    hidden_KN = shot.history.hidden_KN[: shot.last + 1]
    if not hidden_KN[:, :2].any(0).all() or min(shot.seen_at(0.0)) < 0.5:
        return None
    gone = hidden_KN[:, :2].argmax(0) / STEP_HZ
    if abs(gone[0] - gone[1]) < gap_s or gone.min() < 0.125:
        return None
    end = hidden_KN[-1]
    stays = [n for n in (0, 1) if end[n] and shot.history.hidden_KN[-1, n]]
    out = [n for n in (0, 1) if shot.seen_N[n] >= _CLEAR]
    if len(stays) != 1 or len(out) != 1 or min([*shot.seen_N[2:], 1.0]) < 0.5:
        return None
    first = int(gone[1] < gone[0])
    return {"first": first, "stays": stays[0], "first_stays": first == stays[0]}


def permanence(shot: Shot) -> list[Draft]:
    """Is it still there, behind the screen."""
    stays = shot.facts["stays"]
    told = goes_and_comes(shot)
    drafts = []
    for n in (0, 1):
        name = shot.names[n]
        drafts.append(
            Draft(
                "permanence",
                shot,
                f"{shot.cluster}/hidden",
                (f"is {name} hidden?", f"is {name} hidden behind the screen?"),
                (f"is {name} behind the screen now?", f"{name} is behind the screen yes or no?"),
                "yes" if n == stays else "no",
                ("yes", "no"),
                told,
                condition={"first_stays": shot.facts["first_stays"]},
            )
        )
    return drafts


def goes_and_comes(shot: Shot) -> tuple[str, ...]:
    """What happened, in caption words."""
    first, out = int(shot.facts["first"]), 1 - int(shot.facts["stays"])
    lines = [f"{shot.names[n]} goes behind the screen" for n in (first, 1 - first)]
    return (*lines, f"{shot.names[out]} comes out")


def appearance_order(shot: Shot) -> list[Draft]:
    """Which of the two was gone first."""
    names = shot.names[:2]
    return [
        Draft(
            "appearance_order",
            shot,
            f"{shot.cluster}/order",
            (),
            (
                f"which goes behind the screen first {names[0]} or {names[1]}?",
                f"{names[0]} or {names[1]} which is hidden first?",
            ),
            names[int(shot.facts["first"])],
            (names[0], names[1]),
            goes_and_comes(shot),
            condition={"first_stays": shot.facts["first_stays"]},
        )
    ]
