"""Plots of matched sets about what is heard: from where, when and of what a sound comes.

A thing is tossed and bounces, in full view or (occluded) on a floor that a low screen hides. The
pictures of a take are always those of a lawful clip; starts are what is seen, ends what is heard.
"""

from __future__ import annotations

from dataclasses import replace

from .families import Casting
from .physics import wall_x
from .set_parts import (
    MARGIN_S,
    Draft,
    behind,
    bystanders,
    cover,
    need,
    need_seen,
    played,
    tossed,
    with_bystanders,
)
from .stage import FLOOR, LANES_Z, MATERIALS, ObjectSpec, ScreenSpec, Stage
from .take import Resound, Take
from .truth import Event, read_history

LATE_S = 0.2  # how late the sound of an impact is
OFFSET_S = (0.2, 0.3)  # between what is seen and what is heard, to either side
_LOW_M = 0.35  # height of the things that a low screen would hide
_LOUD = 0.8  # m/s: change of speed from which an impact is plain to hear
_APART_S = 0.3  # between two impacts that are heard apart


def sound_dir(cast: Casting, occluded: bool, variant: int) -> Draft:
    """A thing bounces on the left (A) or on the right (B), and is heard from there or there."""
    lane, side = cast.lane(), (-1, 1)[variant % 2]
    spec = tossed(cast, cast.thing(lane, "ball", "ball", "box"), cast.between(0.6, 1.05))
    spec = replace(spec, x=side * cast.between(0.55, 0.8) * wall_x(LANES_Z[lane]))
    two = replace(spec, x=-spec.x)
    others = bystanders(cast, spec, two, still=1.0)
    screens = (_low_screen(spec), _low_screen(two)) if occluded else ()
    a, b = (with_bystanders(behind(screens, s), others) for s in (spec, two))
    side_name = "left" if side < 0 else "right"
    return _heard_crosswise(a, b, {"side": side_name, "material": spec.material})


def av_sync(cast: Casting, occluded: bool, variant: int) -> Draft:
    """A thing comes down early or late (A, B), and is heard early or late.

    What is heard is, in the possible and in the impossible takes alike, the sound of a lawful clip;
    in half of the impossible ones it comes too early, in half too late.
    """
    lane = cast.lane()
    spec = cast.thing(lane, "ball", "ball", "box", "cup", "cone")
    spec = replace(spec, x=cast.between(-0.6, 0.6) * wall_x(LANES_Z[lane]))
    offset_s, lands_s = cast.between(*OFFSET_S), cast.between(0.55, 0.85)
    early, late = (tossed(cast, spec, time_s) for time_s in (lands_s, lands_s + offset_s))
    pair = (early, late) if variant % 2 else (late, early)
    others = bystanders(cast, *pair, still=1.0)
    screens = (_low_screen(spec),) if occluded else ()
    a, b = (with_bystanders(behind(screens, s), others) for s in pair)
    return _heard_crosswise(a, b, {"offset_s": round(offset_s, 3), "material": spec.material})


def _heard_crosswise(a: Stage, b: Stage, condition: dict[str, str | float | bool]) -> Draft:
    """What is seen of the one, with the sound of the one and of the other."""
    target, first_s = len(a.objects) - 1, []
    for stage in (a, b):
        strikes = _strikes(stage, target)
        need(len(strikes) > 0, "no sound")
        first_s.append(strikes[0][1].time_s)
        need_seen(stage, target, 0.0, first_s[-1], 4, 0.8)
    takes = (
        Take(a, ""),
        Take(a, "", other=b, heard="other"),
        Take(b, "", other=a, heard="other"),
        Take(b, ""),
    )
    return Draft(takes, min(first_s) - MARGIN_S, target, condition)


def sound_event(cast: Casting, occluded: bool, variant: int) -> Draft:
    """A bounce sounds of what the thing is made of, and when it happens.

    Of one material (A) or another (B), a thing bounces twice. The first bounce tells the material.
    Material: the second one sounds of that or of the other material, so that each material is heard
    after the cut as often in possible takes as in impossible ones. Late: it comes LATE_S too late;
    here a late sound itself is the difference, and what is matched is all else.
    """
    plot = ("material", "late")[variant % 2]
    lane = cast.lane()
    spec = tossed(cast, cast.thing(lane, "ball"), cast.between(0.3, 0.6))
    spec = replace(spec, x=cast.between(-0.6, 0.6) * wall_x(LANES_Z[lane]))
    first, second = (MATERIALS[int(k)] for k in cast.rng.permutation(len(MATERIALS))[:2])
    one, two = (replace(spec, material=material) for material in (first, second))
    others = bystanders(cast, one, still=1.0)
    screens = (_low_screen(spec),) if occluded else ()
    a, b = (with_bystanders(behind(screens, s), others) for s in (one, two))
    (a_take, a_cut_s), (b_take, b_cut_s) = (
        _second_changed(stage, other if plot == "material" else "")
        for stage, other in ((a, second), (b, first))
    )
    takes = (Take(a, ""), a_take, b_take, Take(b, ""))
    condition = {"plot": plot, "material": first, "other_material": second}
    return Draft(takes, min(a_cut_s, b_cut_s), len(others), condition)


def _second_changed(stage: Stage, material: str) -> tuple[Take, float]:
    """The stage with its second bounce, and what follows, of another material; or ("") late."""
    target = len(stage.objects) - 1
    strikes = _strikes(stage, target)
    need(len(strikes) >= 2, "no two bounces")
    times = [event.time_s for _, event in strikes]
    need(times[1] - times[0] > _APART_S and times[1] < stage.seconds - 0.4, "not apart")
    need_seen(stage, target, 0.0, times[1], 5, 0.6)
    change = {"material": material} if material else {"delay_s": LATE_S}
    sounds = tuple(Resound(number, **change) for number, _ in strikes[1:])
    return Take(stage, "", sounds=sounds), times[1] - MARGIN_S


def _low_screen(spec: ObjectSpec) -> ScreenSpec:
    """Hides the floor where the thing comes down."""
    low = replace(spec, y=spec.foot, height=_LOW_M)
    return cover(replace(low, y=low.foot)).standing()


def _strikes(stage: Stage, target: int) -> list[tuple[int, Event]]:
    """The impacts of the target, numbered among all events.

    Refused where others sound, too, or one of the first two is soft.
    """
    motion = played(stage)
    events = read_history(stage, motion).events
    strikes = [(k, event) for k, event in enumerate(events) if event.impulse > 0]
    need(all(e.a == target and e.b == FLOOR for _, e in strikes), "others sound, too")
    loud = _LOUD * motion.mass_N[target]
    need(all(event.impulse > loud for _, event in strikes[:2]), "too soft")
    return strikes
