"""Two contexts, two captions, each true in one of them: caption_minpair (the form of EWoK, Ivanova
et al. 2024).

In: two shots of one scene. Out: items. What is told of a context is never the caption itself.
"""

from __future__ import annotations

from itertools import combinations

from mmpredict.world.stage import random_for

from ..items import Evidence, Item
from .draft import SEEN
from .screens import goes_and_comes
from .shot import Shot


def of_rooms(shots: list[Shot]) -> list[Item]:
    """A room and its mirror image: left of, right of."""
    if len(shots) < 2:
        return []
    one, two = shots
    pairs = [(a, b) for a, b in combinations(range(len(one.names)), 2) if _is_flipped(shots, a, b)]
    items = []
    for k, (a, b) in enumerate(pairs[:2]):
        first, second = one.names[a], one.names[b]
        side = "left" if one.is_left(a, b) else "right"
        other = "right" if side == "left" else "left"
        known = tuple(f"{first} is {s} of {second}" for s in (side, other))
        fresh = tuple(f"on the {s} of {second} is {first}" for s in (side, other))
        told = tuple((f"{second} is {s} of {first}",) for s in (other, side))
        items.append(_item(shots, str(k), (known, fresh), told, "left_right"))
    return items


def _is_flipped(shots: list[Shot], a: int, b: int) -> bool:
    sides = {shot.is_left(a, b) for shot in shots}
    return sides == {True, False}


def of_hands(shots: list[Shot]) -> list[Item]:
    """Who is in the cup, or on the box."""
    loads = [str(shot.facts["load"]) for shot in shots]
    if not all(loads) or loads[0] == loads[1]:
        return []
    shot = shots[0]
    target = shot.name("target")
    word, verb = ("in", "falls into") if shot.facts["is_cup"] else ("on", "lands on")
    names = [shot.name(load) for load in loads]
    known = tuple(f"{name} is {word} {target}" for name in names)
    fresh = tuple(f"{word} {target} is {name}" for name in names)
    told = tuple(
        (f"{names[k]} {verb} {target}", f"{names[1 - k]} falls to the floor") for k in (0, 1)
    )
    return [
        _item(shots, "load", (known, fresh), told, "containment" if word == "in" else "support")
    ]


def of_screens(shots: list[Shot]) -> list[Item]:
    """Who is hidden."""
    names = [shot.names[int(shot.facts["stays"])] for shot in shots]
    known = tuple(f"{name} is hidden" for name in names)
    fresh = tuple(f"the screen hides {name}" for name in names)
    told = tuple(goes_and_comes(shot) for shot in shots)
    return [_item(shots, "hidden", (known, fresh), told, "permanence")]


def _item(
    shots: list[Shot],
    number: str,
    wordings: tuple[tuple[str, ...], tuple[str, ...]],
    told: tuple[tuple[str, ...], ...],
    relation: str,
) -> Item:
    cluster = shots[0].cluster
    name = f"caption_minpair/{cluster}/{number}"
    is_fresh = bool(random_for("wording", name).random() < 0.5)
    return Item(
        id=name,
        family="caption_minpair",
        score="minpair",
        evidence=tuple(
            Evidence(shot.source, shot.until_s, lines)
            for shot, lines in zip(shots, told, strict=True)
        ),
        variants=("text", *SEEN),
        choices=wordings[is_fresh],
        chance=0.5,
        cluster=cluster,
        group=name,
        split=cluster.split("/")[1],
        template=f"caption_minpair/{relation}/{'fresh' if is_fresh else 'known'}",
        paraphrase=is_fresh,
        condition={"relation": relation},
    )
