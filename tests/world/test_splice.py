"""Truth of a spliced recording: what an object stands on, is in or hangs from keeps its name,
however the objects are numbered on the two stages."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmpredict.world import Film, Take
from mmpredict.world.splice import NOWHERE
from mmpredict.world.stage import CUP_WALL, ObjectSpec, Stage, StringSpec
from mmpredict.world.truth import Truth

SWAP_S = 0.5
FILM = Film((16, 16), sound=False)


def thing(colour: str, shape: str, x: float = 0.0, size: float = 0.3) -> ObjectSpec:
    """At rest on the floor."""
    spec = ObjectSpec(colour, shape, "wood", size, size, 1, x, 0.0)
    return replace(spec, y=spec.foot)


BOX = thing("red", "box", 0.5, 0.4)
TOP = replace(thing("blue", "box", 0.5, 0.2), y=BOX.top + 0.1)
CUP = thing("green", "cup", -0.5, 0.4)
BALL = thing("white", "ball", -0.5, 0.18)
BALL = replace(BALL, y=CUP_WALL + BALL.foot)
CONE = thing("yellow", "cone", 0.0)
ASIDE = replace(BALL, x=-0.1, y=BALL.foot), replace(TOP, x=0.9, y=TOP.foot)

# The same things in another order: on the one each stands apart, on the other one is on, one in.
APART = Stage((ASIDE[0], CONE, BOX, ASIDE[1], CUP), 1.0)
TOGETHER = Stage((BOX, CUP, TOP, BALL), 1.0)


def truth(first: Stage, second: Stage) -> Truth:
    return Take(first, "k", other=second, swaps_s=(SWAP_S,)).record(FILM).truth


def names_of(truth: Truth, field: str, time_s: float) -> dict[str, str]:
    """Object -> the object that a field names at a moment; only where it names one."""
    frame = int((truth.times_s <= time_s).sum()) - 1
    codes = getattr(truth, field)[frame].tolist()
    return {n: truth.names[c] for n, c in zip(truth.names, codes, strict=True) if c >= 0}


@pytest.mark.parametrize("before", [True, False])
def test_supports_and_containers_keep_their_names(before):
    stages = (TOGETHER, APART) if before else (APART, TOGETHER)
    found = truth(*stages)
    when, otherwise = (0.4, 0.9) if before else (0.9, 0.4)
    assert names_of(found, "support_TN", when) == {"blue box": "red box", "white ball": "green cup"}
    assert names_of(found, "container_TN", when) == {"white ball": "green cup"}
    assert names_of(found, "support_TN", otherwise) == {}
    assert names_of(found, "container_TN", otherwise) == {}
    alone = Take(TOGETHER, "k").record(FILM).truth
    assert names_of(alone, "support_TN", when) == names_of(found, "support_TN", when)


def test_what_is_only_on_one_stage_is_nowhere_on_the_other():
    found = truth(APART, TOGETHER)
    cone = found.names.index("yellow cone")
    assert found.position_TN3[-1, cone, 0] == NOWHERE[0] and found.visible_TN[-1, cone] == 0
    assert found.position_TN3[0, cone, 0] != NOWHERE[0]
    assert set(found.names) == {o.name for o in (*APART.objects, *TOGETHER.objects)}
    again = truth(TOGETHER, APART)  # here the cone is the new one
    assert again.names[-1] == "yellow cone" and again.names[:4] == (
        "red box", "green cup", "blue box", "white ball",
    )  # fmt: skip


def test_events_and_strings_keep_their_names():
    """A ball falls on the second stage only, and a thing hangs from another there."""
    falls = replace(ASIDE[0], y=1.2)
    upper = replace(thing("orange", "plate", 0.6), y=0.8)
    lower = replace(thing("purple", "box", 0.6, 0.2), y=0.3)
    second = Stage((upper, lower, CONE, falls), 1.5, strings=(StringSpec(0, 1, 0.4),))
    first = replace(APART, seconds=1.5)
    found = truth(first, second)
    ball = found.names.index("white ball")
    strikes = [e for e in found.events if e.kind == "bounce" and e.time_s > SWAP_S and e.impulse]
    assert ball in {e.a for e in strikes}
    alone = Take(second, "k").record(FILM).truth
    assert {found.names[e.a] for e in strikes} <= {
        alone.names[e.a] for e in alone.events if e.time_s > SWAP_S
    }
    hangs = {
        name: found.names[code]
        for name, code in zip(found.names, found.hangs_from_N.tolist(), strict=True)
        if code >= 0
    }
    expected = {
        name: alone.names[code]
        for name, code in zip(alone.names, alone.hangs_from_N.tolist(), strict=True)
        if code >= 0
    }
    assert hangs == expected != {}
