"""Plots of matched sets about what is heard: from where, when and of what a sound comes.

A thing is tossed and bounces, in full view or (occluded) on a floor that a low screen hides. The
pictures of a take are always those of a lawful clip; starts are what is seen, ends what is heard.
"""

from __future__ import annotations

from dataclasses import replace

from .families import Casting, DoesNotFit
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
from .stage import FLOOR, GRAVITY, LANES_Z, MATERIALS, ObjectSpec, ScreenSpec, Stage
from .take import Take
from .truth import Event, read_history

LATE_S = 0.2  # how much later the second impact is, and is heard
OFFSET_S = (0.2, 0.3)  # between what is seen and what is heard, to either side
_LOW_M = 0.35  # height of the things that a low screen would hide
_LOUD = 0.8  # m/s: change of speed from which an impact is plain to hear
_APART_S = 0.3  # between two impacts that are heard apart
_SAME_S = 0.006  # impacts so near are at the same moment: less than a fifth of a chunk of sound
_CORRECTIONS = 4
_LOWEST_M, _HIGHEST_M = 0.15, 1.5  # of a toss


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
    """A second bounce sounds of what the thing is made of, and when it happens.

    Material: of one (A) or another (B), a thing bounces twice, the second time at the same moment;
    the first bounce tells the material. Late: of one material, it comes down the second time LATE_S
    earlier or later. From the second bounce on is heard what is heard of A or of B, to the sample:
    when, how loud and of what is the same in possible takes as in impossible ones.
    """
    plot = ("material", "late")[variant % 2]
    lane = cast.lane()
    first, second = (MATERIALS[int(k)] for k in cast.rng.permutation(len(MATERIALS))[:2])
    if plot == "late":
        second = first
    lands_s = cast.between(0.3, 0.6)
    spec = replace(tossed(cast, cast.thing(lane, "ball"), lands_s), material=first)
    spec = replace(spec, x=cast.between(-0.6, 0.6) * wall_x(LANES_Z[lane]))
    others = bystanders(cast, spec, still=1.0)
    screens = (_low_screen(spec),) if occluded else ()
    a = with_bystanders(behind(screens, spec), others)
    shift_s = LATE_S * cast.side() if plot == "late" else 0.0
    second_s = _bounces(a)[1] + shift_s
    b = _bouncing_at(cast, a, replace(spec, material=second), (lands_s, second_s))
    from_s = min(_bounces(a)[1], _bounces(b)[1]) - MARGIN_S
    takes = (
        Take(a, ""),
        Take(a, "", other=b, heard="other", heard_from_s=from_s),
        Take(b, "", other=a, heard="other", heard_from_s=from_s),
        Take(b, ""),
    )
    condition = {"plot": plot, "material": first, "other_material": second}
    return Draft(takes, from_s, len(others), condition)


def _bouncing_at(
    cast: Casting, stage: Stage, spec: ObjectSpec, times_s: tuple[float, float]
) -> Stage:
    """The stage with another last object that comes down at about the first of these times and at
    the second one: it is tossed so high that the bounce takes so long."""
    lands_s, second_s = times_s
    # The longer the way down, the faster it comes, the longer the bounce: in proportion.
    for _ in range(_CORRECTIONS):
        height = spec.y - spec.foot
        need(_LOWEST_M < height < _HIGHEST_M, "too low or too high")
        spec = tossed(cast, spec, lands_s, height=height)
        now = replace(stage, objects=(*stage.objects[:-1], spec))
        found = _bounces(now)
        if abs(found[1] - second_s) < _SAME_S:
            return now
        speed = height / lands_s + 0.5 * GRAVITY * lands_s
        speed *= (second_s - found[0]) / (found[1] - found[0])
        spec = replace(spec, y=spec.foot + speed * lands_s - 0.5 * GRAVITY * lands_s**2)
    raise DoesNotFit("no toss that bounces then")


def _bounces(stage: Stage) -> tuple[float, float]:
    """When the last object bounces for the first and for the second time, in sight and heard."""
    target = len(stage.objects) - 1
    strikes = _strikes(stage, target)
    need(len(strikes) >= 2, "no two bounces")
    first_s, second_s = (event.time_s for _, event in strikes[:2])
    need(second_s - first_s > _APART_S and second_s < stage.seconds - 0.4, "not apart")
    need_seen(stage, target, 0.0, second_s, 5, 0.6)
    return first_s, second_s


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
