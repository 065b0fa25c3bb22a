"""Words alone: text_transfer. Chains of relations between things of the world, as in bAbI 17
(Weston et al. 2015) and StepGame (Shi et al. 2022), with 1 to 5 steps between what is asked.

In: a number and a split. Out: drafts without a shot. Every thing stands one step left, right, above
or below the one before it; asked are pairs that differ in one direction alone.
"""

from __future__ import annotations

from mmpredict.world import COLOURS, SHAPES, is_held_out_pair
from mmpredict.world.stage import random_for

from .draft import Draft

MOST_HOPS = 5
LABELS = ("left", "right", "above", "below")
_STEPS = {"left": (-1, 0), "right": (1, 0), "above": (0, 1), "below": (0, -1)}
_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def text_transfer(number: int, split: str, seed: int) -> list[Draft]:
    """All pairs of one chain that can be asked, each way round; `balanced` chooses."""
    rng = random_for("words", seed, split, number)
    want = split == "test_comp"
    names = [f"{c} {s}" for c in COLOURS for s in SHAPES if is_held_out_pair(c, s) == want]
    things = [f"the {names[k]}" for k in rng.permutation(len(names))[: MOST_HOPS + 1]]
    places, lines = [(0, 0)], []
    for k in range(MOST_HOPS):
        way = LABELS[int(rng.integers(4))]
        while _step(places[-1], way) in places:  # nothing stands where another thing stands
            way = LABELS[int(rng.integers(4))]
        places.append(_step(places[-1], way))
        lines.append(_line(things[k + 1], way, things[k], bool(rng.random() < 0.5)))
    cluster = f"words/{split}/{seed}/{number}"
    drafts = []
    for a in range(len(things)):
        for b in range(len(things)):
            right = _way(places[b], places[a])
            if a == b or right is None:
                continue
            told = [lines[k] for k in rng.permutation(MOST_HOPS) if min(a, b) <= k < max(a, b)]
            if any(line.startswith(things[a]) and line.endswith(things[b]) for line in told):
                continue  # that would be the answer itself
            drafts.append(_draft((things[a], things[b]), right, tuple(told), cluster))
    return drafts


def _draft(pair: tuple[str, str], right: str, told: tuple[str, ...], cluster: str) -> Draft:
    a, b = pair
    return Draft(
        "text_transfer",
        None,
        f"{cluster}/{'-'.join(sorted(pair))}",
        (f"on which side of {b} is {a}?",),
        (f"{a} is on which side of {b}?", f"from {b} on which side is {a}?"),
        right,
        LABELS,
        told,
        cluster=cluster,
        stratum=f"{len(told)} hops",
        condition={"hops": len(told)},
    )


def _step(place: tuple[int, int], way: str) -> tuple[int, int]:
    return place[0] + _STEPS[way][0], place[1] + _STEPS[way][1]


def _line(new: str, way: str, old: str, is_turned: bool) -> str:
    """ "the red ball is left of the blue box", or the same from the other one's side."""
    one, side, two = (old, _OPPOSITE[way], new) if is_turned else (new, way, old)
    return f"{one} is {side}{' of' if side in ('left', 'right') else ''} {two}"


def _way(start: tuple[int, int], end: tuple[int, int]) -> str | None:
    """Where `end` is as seen from `start`, if that is one of the four directions."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    if (dx == 0) == (dy == 0):
        return None
    return ("right" if dx > 0 else "left") if dx else ("above" if dy > 0 else "below")
