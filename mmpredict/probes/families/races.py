"""Two balls roll in different depths: velocity, speed_class, ttc, ttc_frames.

In: a number and a split. Out: two shots of one scene, in which the balls exchange their roles, and
drafts. In half of the scenes the faster one meets its wall later. What comes after the question is
played, but not shown.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mmpredict.world import Condition, Take
from mmpredict.world.families import Casting
from mmpredict.world.physics import STEP_HZ, simulate, wall_x
from mmpredict.world.stage import LANES_Z, WALL, Stage
from mmpredict.world.truth import read_history

from .draft import Draft
from .shot import FPS, Shot, cast_until, exchange, suits_layout

_UNTIL_S = 1.0
_AHEAD_S = 2.2  # so far the future is played
_WINDOW_S = 0.5  # the speed is the mean over so long before the question
_FASTER = 1.35  # times as fast, on the ground and in the picture
_GAP_S = 0.25
_PACE_MPS = 1.45  # mean speed for which these times are; where all is faster, they are shorter
_UNIT_MPS = 0.5
_BESIDE = 0.28  # share of a step that a number must keep from the border to the next
_MOST = 8


@dataclass(frozen=True)
class _Plan:
    """What a race must keep: when it is asked, over how long the speed is taken, how far apart in
    time the walls are met, how many times as fast the faster one is."""

    until_s: float
    window_s: float
    gap_s: float
    ratio: float


def build_race(number: int, split: str, seed: int) -> list[Shot]:
    """Two shots of two balls that roll."""
    name = f"race/{split}/{seed}/{number}"
    faster_is_first = number % 2 == 0
    pace = _PACE_MPS / (sum(Condition().speeds(split)) / 2)
    until_s = round(_UNTIL_S * pace * FPS) / FPS
    low, high = Condition().speeds(split)
    ratio = min(_FASTER, 1 + 0.4 * (high / low - 1))
    plan = _Plan(until_s, round(_WINDOW_S * pace * FPS) / FPS, _GAP_S * pace, ratio)

    def build(cast: Casting) -> list[Shot] | None:
        stage = _stage(cast)
        if not suits_layout(stage, split, mirrored=False) or not _may(stage, plan, faster_is_first):
            return None
        shots = []
        for source, played in ((f"{name}/one", stage), (f"{name}/two", exchange(stage, 0, 1))):
            shot = Shot(source, Take(played, name), until_s, name, {"a": 0, "b": 1})
            facts = _facts(shot, plan)
            if facts is None or facts["faster_is_first"] != faster_is_first:
                return None
            shots.append(replace(shot, facts=facts))
        same = all(shots[0].facts[k] == shots[1].facts[k] for k in ("faster", "first"))
        return shots if same else None

    return cast_until(build, f"race/{seed}/{number}", split)


def _stage(cast: Casting) -> Stage:
    lanes = cast.rng.permutation(3).tolist()
    standing = 3 if cast.split == "test_size" else int(cast.rng.integers(0, 2))
    if standing == 3:  # they stand at the back, where they hide nothing
        lanes = [0, 1, 2] if cast.chance(0.5) else [1, 0, 2]
    for lane in lanes[:2]:
        spec, side = cast.thing(lane, "ball"), cast.side()
        x = cast.between(-0.95, 0.95) * (wall_x(LANES_Z[lane]) - spec.width / 2 - 0.02)
        cast.put(spec, x=x, vx=side * cast.speed())
    for k in range(standing):
        spec = cast.thing(lanes[2], "box", "cone", "cup", most=0.2)
        share = (k + cast.between(0.3, 0.7)) / standing
        cast.put(spec, x=(2 * share - 1) * 0.9 * wall_x(LANES_Z[lanes[2]]))
    return Stage(tuple(cast.objects), 1.0)


def _may(stage: Stage, plan: _Plan, faster_is_first: bool) -> bool:
    """Whether it may be worth playing, by first speeds alone."""
    one, two = stage.objects[:2]
    speeds = abs(one.vx), abs(two.vx)
    ways = [wall_x(o.z) - o.width / 2 - np.sign(o.vx) * o.x for o in (one, two)]
    times = [way / speed for way, speed in zip(ways, speeds, strict=True)]
    if min(times) < plan.until_s or abs(times[0] - times[1]) < 0.8 * plan.gap_s:
        return False
    faster, first = int(speeds[1] > speeds[0]), int(times[1] < times[0])
    return max(speeds) > plan.ratio * min(speeds) and (faster == first) == faster_is_first


def _facts(shot: Shot, plan: _Plan) -> dict[str, str | float | int | bool] | None:
    """Speeds, and when the walls are met; None where it is not plain to see."""
    if min(shot.seen_at(0.0)[:2]) < 0.7 or min(shot.seen_N[:2]) < 0.8:
        return None
    start = shot.last - round(plan.window_s * STEP_HZ)
    way_KN = shot.motion.state_KN6[start : shot.last + 1, :2, 0]
    speed_N = np.abs(way_KN[-1] - way_KN[0]) / plan.window_s
    seen_N = speed_N / shot.z_N[:2]
    faster = int(speed_N[1] > speed_N[0])
    slower = 1 - faster
    if (
        speed_N[faster] < plan.ratio * speed_N[slower]
        or seen_N[faster] < plan.ratio * seen_N[slower]
    ):
        return None
    later = replace(shot.stage, seconds=plan.until_s + _AHEAD_S)
    events = read_history(later, simulate(later)).events
    hits = [[e.time_s for e in events if e.a == n and e.b == WALL] for n in (0, 1)]
    if not all(hits) or min(map(min, hits)) < plan.until_s + 0.1:
        return None
    times = [min(hit) for hit in hits]
    if abs(times[0] - times[1]) < plan.gap_s:
        return None
    first = int(times[1] < times[0])
    facts = {"faster": faster, "first": first, "faster_is_first": faster == first}
    return (
        facts
        | {f"speed_{n}": float(speed_N[n]) for n in (0, 1)}
        | {f"hit_{n}": times[n] for n in (0, 1)}
    )


def velocity(shot: Shot) -> list[Draft]:
    """Which of two is faster, and which slower."""
    one, two = shot.names[:2]
    faster = int(shot.facts["faster"])
    return [
        Draft(
            "velocity",
            shot,
            f"{shot.cluster}/speed",
            (),
            (f"which is {word} {one} or {two}?", f"{one} or {two} which goes {word}?"),
            shot.names[right],
            (one, two),
            condition={"faster_is_first": shot.facts["faster_is_first"]},
        )
        for word, right in (("faster", faster), ("slower", 1 - faster))
    ]


def ttc(shot: Shot) -> list[Draft]:
    """Which of two will meet its wall first (time to contact)."""
    one, two = shot.names[:2]
    return [
        Draft(
            "ttc",
            shot,
            f"{shot.cluster}/wall",
            (),
            (
                f"which hits the wall first {one} or {two}?",
                f"{one} or {two} which hits the wall first?",
            ),
            shot.names[int(shot.facts["first"])],
            (one, two),
            condition={"faster_is_first": shot.facts["faster_is_first"]},
        )
    ]


def speed_class(shot: Shot) -> list[Draft]:
    """How many steps of half a metre a ball goes in a second."""
    drafts = []
    for n in (0, 1):
        name, steps = shot.names[n], float(shot.facts[f"speed_{n}"]) / _UNIT_MPS
        texts = (f"how fast is {name}?", f"{name} goes how fast?")
        drafts += _number("speed_class", shot, n, texts, steps)
    return drafts


def ttc_frames(shot: Shot) -> list[Draft]:
    """In how many pictures (8 a second) a ball meets its wall."""
    drafts = []
    for n in (0, 1):
        frames = (float(shot.facts[f"hit_{n}"]) - shot.last_s) * FPS
        name = shot.names[n]
        texts = (f"in how many frames does {name} hit the wall?", f"{name} hits the wall when?")
        drafts += _number("ttc_frames", shot, n, texts, frames)
    return drafts


def _number(family: str, shot: Shot, n: int, texts: tuple[str, ...], value: float) -> list[Draft]:
    near = round(value)
    if abs(value - near) > 0.5 - _BESIDE or not 1 <= near <= _MOST:
        return []
    choices = tuple(str(k) for k in range(1, _MOST + 1))
    group = f"{shot.cluster}/{family}/{n}"
    return [Draft(family, shot, group, (), texts, str(near), choices, is_number=True)]
