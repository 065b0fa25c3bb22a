"""Where things stand to each other in a room: left_right, above_below, between, nearer_farther,
rel_direction.

In: the shot of a room. Out: drafts. What is told never states what is asked: it is asked the other
way round, or follows over a third thing.
"""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np

from .draft import Draft
from .shot import Shot

_ANGLE = 28.0  # degrees that a direction must keep from the borders of its sector
_APART = 0.5  # m on the ground between the three things of a direction


def left_right(shot: Shot) -> list[Draft]:
    """Is a left or right of b, and b of a. Two pairs that something stands between, so that words
    can tell it over the third."""
    order = np.argsort(shot.xy_N2[:, 0] / shot.z_N).tolist()
    order = _apart(shot, order)
    pairs = [(a, c) for a, c in combinations(range(len(order)), 2) if c - a > 1]
    pairs.sort(key=lambda pair: sorted(order[k] for k in pair))  # the same ones in the mirror
    drafts = []
    for first, last in pairs[:2]:
        told = _chain(shot, order[first : last + 1])
        for a, b in permutations((order[first], order[last])):
            right = "left" if shot.is_left(a, b) else "right"
            group = f"{shot.cluster}/{min(a, b)}-{max(a, b)}"
            drafts.append(
                Draft(
                    "left_right",
                    shot,
                    group,
                    left_right_known(shot.names[a], shot.names[b]),
                    left_right_fresh(shot.names[a], shot.names[b]),
                    right,
                    ("left", "right"),
                    told,
                )
            )
    return drafts


def left_right_known(a: str, b: str) -> tuple[str, ...]:
    """The wordings that training has."""
    return f"is {a} left or right of {b}?", f"on which side of {b} is {a}?"


def left_right_fresh(a: str, b: str) -> tuple[str, ...]:
    """Wordings that training has not."""
    return f"{a} is on which side of {b}?", f"{a} is left or right of {b}?"


def _apart(shot: Shot, order: list[int]) -> list[int]:
    """Of two things above each other only the lower one is in the order from left to right."""
    if "below" not in shot.roles:
        return order
    return [k for k in order if k != shot.roles["high"]]


def _chain(shot: Shot, order: list[int]) -> tuple[str, ...]:
    """From left to right, each thing by its neighbour; the side that is named alternates."""
    lines = []
    for k, (a, b) in enumerate(zip(order, order[1:], strict=False)):
        side, one, two = ("left", a, b) if (k + a) % 2 else ("right", b, a)
        lines.append(f"{shot.names[one]} is {side} of {shot.names[two]}")
    return tuple(lines)


def above_below(shot: Shot) -> list[Draft]:
    """Is a above or below b, and b of a."""
    high, below = shot.roles["high"], shot.roles.get("below")
    lower = [k for k in range(len(shot.names)) if k != high and shot.is_above(high, k)]
    if below is not None:  # the pair that is plainest comes first
        lower = [below] + [k for k in lower if k != below]
    drafts = []
    for other in lower[:2]:
        told = _heights(shot, high, below, other)
        for a, b in permutations((high, other)):
            one, two = shot.names[a], shot.names[b]
            drafts.append(
                Draft(
                    "above_below",
                    shot,
                    f"{shot.cluster}/{other}",
                    (f"is {one} above or below {two}?", f"{one} is above or below {two}?"),
                    (f"is {one} below or above {two}?", f"{one} is below or above {two}?"),
                    "above" if a == high else "below",
                    ("above", "below"),
                    told,
                    condition={"stacked": other == below},
                )
            )
    return drafts


def _heights(shot: Shot, high: int, below: int | None, other: int) -> tuple[str, ...]:
    if below is None:
        return (f"{shot.names[other]} is on the floor", f"the hand lifts {shot.names[high]}")
    lines = (f"{shot.names[high]} is on {shot.names[below]}",)
    return lines if other == below else (*lines, f"{shot.names[other]} is on the floor")


def between(shot: Shot) -> list[Draft]:
    """Which of three is in the middle; what is in the middle of one three is at the end of the
    other."""
    order = _apart(shot, np.argsort(shot.xy_N2[:, 0] / shot.z_N).tolist())
    if len(order) < 4:
        return []
    triples = [order[:3], order[1:4]] if order[0] % 2 else [order[1:4], order[:3]]
    drafts = []
    for triple in triples:
        said = sorted(triple, key=lambda k: shot.names[k][::-1])  # an order that tells nothing
        listed = f"{shot.names[said[0]]} {shot.names[said[1]]} or {shot.names[said[2]]}"
        names = tuple(shot.names[k] for k in said)
        drafts.append(
            Draft(
                "between",
                shot,
                f"{shot.cluster}/{order[1]}-{order[2]}",
                (),
                (
                    f"which is between the others {listed}?",
                    f"{listed} which has one on the left and one on the right?",
                ),
                shot.names[triple[1]],
                names,
                _chain(shot, triple),
            )
        )
    return drafts


def nearer_farther(shot: Shot) -> list[Draft]:
    """Which of two is nearer to the eye, and which is behind."""
    lanes = [spec.lane for spec in shot.stage.objects]
    twins = shot.roles["near"], shot.roles["far"]
    pairs = [(a, b) for a, b in permutations(range(len(lanes)), 2) if lanes[a] + 2 == lanes[b]]
    pairs.sort(key=lambda pair: pair != twins)
    middle = shot.roles["middle"]
    drafts = []
    for near, far in pairs[:2]:
        told = (
            f"{shot.names[far]} is behind {shot.names[middle]}",
            f"{shot.names[middle]} is behind {shot.names[near]}",
        )
        one, two = (shot.names[k] for k in sorted((near, far)))
        same = (near, far) == twins and bool(shot.facts["same_size_in_picture"])
        for word, right in (("nearer", near), ("behind", far)):
            drafts.append(
                Draft(
                    "nearer_farther",
                    shot,
                    f"{shot.cluster}/{near}-{far}",
                    (f"which is {word} {one} or {two}?",),
                    (f"{one} or {two} which is {word}?", f"{one} or {two} is {word}?"),
                    shot.names[right],
                    (one, two),
                    told,
                    condition={"same_size_in_picture": same},
                )
            )
    return drafts


def rel_direction(shot: Shot) -> list[Draft]:
    """Standing at a and looking at b: is c left, right or behind; and standing at b."""
    drafts = []
    for a, b, c in permutations(range(len(shot.names)), 3):
        right = _sector(shot, a, b, c)
        if right is None:
            continue
        names = shot.names[a], shot.names[b], shot.names[c]
        drafts.append(
            Draft(
                "rel_direction",
                shot,
                f"{shot.cluster}/{c}-{min(a, b)}-{max(a, b)}",
                (),
                rel_direction_fresh(*names),
                right,
                ("left", "right", "behind"),
            )
        )
    return drafts


def rel_direction_fresh(a: str, b: str, c: str) -> tuple[str, ...]:
    """The wordings."""
    return (
        f"from {a} to {b} is {c} on the left on the right or behind?",
        f"you are at {a} and look at {b} on which side is {c}?",
    )


def _sector(shot: Shot, a: int, b: int, c: int) -> str | None:
    """Where c is on the ground for one who stands at a and faces b; None near a border, and in
    front."""
    ground_N2 = np.stack([shot.xy_N2[:, 0], shot.z_N], 1)
    ahead, there = ground_N2[b] - ground_N2[a], ground_N2[c] - ground_N2[a]
    if min(np.hypot(*ahead), np.hypot(*there)) < _APART:
        return None
    cross = ahead[0] * there[1] - ahead[1] * there[0]
    angle = float(np.degrees(np.arctan2(cross, ahead @ there)))
    if abs(angle) > 135 + _ANGLE / 2:
        return "behind"
    if 45 + _ANGLE / 2 < abs(angle) < 135 - _ANGLE / 2:
        return "left" if angle > 0 else "right"
    return None
