"""How far, how big, how many in a room: distance, size_order, counting.

In: the shot of a room. Out: drafts.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from mmpredict.world import COLOURS, SHAPES

from .draft import Draft
from .rooms import most_alike
from .shot import Shot

UNIT_M = 0.5  # one step of a distance
_STEPS = 6
_BESIDE = 0.3  # share of a step that a distance must keep from the border to the next number


def distance(shot: Shot) -> list[Draft]:
    """How many steps of half a metre two things are apart on the ground, 1 to 6."""
    ground_N2 = np.stack([shot.xy_N2[:, 0], shot.z_N], 1)
    choices = tuple(str(k) for k in range(1, _STEPS + 1))
    drafts = []
    for a, b in combinations(range(len(shot.names)), 2):
        steps = float(np.hypot(*(ground_N2[a] - ground_N2[b]))) / UNIT_M
        near = round(steps)
        if not 1 <= near <= _STEPS or abs(steps - near) > 0.5 - _BESIDE:
            continue
        one, two = shot.names[a], shot.names[b]
        drafts.append(
            Draft(
                "distance",
                shot,
                f"{shot.cluster}/{a}-{b}",
                (),
                (f"how many steps from {one} to {two}?", f"from {one} to {two} how many steps?"),
                str(near),
                choices,
                is_number=True,
            )
        )
    return drafts


def size_order(shot: Shot) -> list[Draft]:
    """Which of two alike is bigger, and which is smaller, whatever the picture shows of them."""
    near, far = shot.roles["near"], shot.roles["far"]
    objects = shot.stage.objects
    big, small = (near, far) if objects[near].width > objects[far].width else (far, near)
    one, two = (shot.names[k] for k in sorted((near, far)))
    pictured = objects[big].width / objects[big].z / (objects[small].width / objects[small].z)
    drafts = []
    for word, opposite, right, other in (
        ("bigger", "smaller", big, small),
        ("smaller", "bigger", small, big),
    ):
        told = (f"{shot.names[other]} is {opposite} than {shot.names[right]}",)
        drafts.append(
            Draft(
                "size_order",
                shot,
                f"{shot.cluster}/size",
                (),
                (f"which is {word} {one} or {two}?", f"{one} or {two} which is {word}?"),
                shot.names[right],
                (one, two),
                told,
                condition={"bigger_in_picture": pictured > 1.05},
            )
        )
    return drafts


def counting(shot: Shot, split: str) -> list[Draft]:
    """How many of a shape, or of a colour, there are."""
    objects = shot.stage.objects
    labels = counting_labels(split)
    told = _listed(shot)
    drafts = []
    for shape in SHAPES:
        plural = {"box": "boxes"}.get(shape, f"{shape}s")
        count = sum(spec.shape == shape for spec in objects)
        known = (f"how many {plural} are there?",)
        fresh = (f"how many {plural} can be seen?", f"there are how many {plural}?")
        drafts.append(_count(shot, plural, known, fresh, (count, labels, told)))
    for colour in COLOURS:
        count = sum(spec.colour == colour for spec in objects)
        fresh = (f"how many things are {colour}?", f"how many {colour} things are there?")
        drafts.append(_count(shot, colour, (), fresh, (count, labels, told)))
    return [draft for draft in drafts if draft.right in labels]


def counting_labels(split: str) -> tuple[str, ...]:
    """The numbers that are asked for."""
    return tuple(str(k) for k in range(most_alike(split) + 1))


def _count(
    shot: Shot,
    noun: str,
    known: tuple[str, ...],
    fresh: tuple[str, ...],
    found: tuple[int, tuple[str, ...], tuple[str, ...]],
) -> Draft:
    count, labels, told = found
    return Draft(
        "counting",
        shot,
        f"{shot.cluster}/counting",
        known,
        fresh,
        str(count),
        labels,
        told,
        stratum=noun,
    )


def _listed(shot: Shot) -> tuple[str, ...]:
    """All that is there, in the words that open a clip."""
    names = [f"a{'n' * (o.colour == 'orange')} {o.name}" for o in shot.stage.objects]
    pairs = [names[k : k + 2] for k in range(0, len(names), 2)]
    return tuple(f"here is {' and '.join(pair)}" for pair in pairs)
