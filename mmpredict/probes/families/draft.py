"""From a question about a shot to an item: wording, order of the choices, chance, balance.

In: drafts, as the families make them. Out: items. A draft holds every wording; the group decides
which one is used, so that partners with opposite answers are asked in the same words, and a draw of
its own orders the choices of every item.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mmpredict.world.stage import random_for

from ..grading import mean_relative_accuracy
from ..items import Evidence, Item
from .shot import Shot

SEEN = ("video", "video+audio")
HEARD = ("audio", "video+audio")


@dataclass(frozen=True)
class Draft:
    """A question that is not yet worded.

    Args:
        family: what the item belongs to.
        shot: what is shown; None where all is told.
        cluster, group: as of the item; the group also decides the wording.
        known: wordings that occur in training; may be empty.
        fresh: wordings that never do.
        right: the right choice.
        wrong: the others.
        told: the evidence in words; without it there is no variant "text".
        variants: of pictures and sound that can answer it.
        stratum: labels are balanced within it (`balanced`).
        condition: for tables.
        is_number: a numeric item; `right` is the number.
    """

    family: str
    shot: Shot | None
    group: str
    known: tuple[str, ...]
    fresh: tuple[str, ...]
    right: str
    wrong: tuple[str, ...]
    told: tuple[str, ...] = ()
    variants: tuple[str, ...] = SEEN
    cluster: str = ""
    stratum: str = ""
    condition: Mapping[str, str | float | int | bool] = field(default_factory=dict)
    is_number: bool = False


def finish(drafts: Iterable[Draft], split: str) -> list[Item]:
    """Word the drafts; items are numbered within their family and scene."""
    numbers: dict[str, int] = defaultdict(int)
    decks: dict[tuple[str, int], list[int]] = defaultdict(list)
    items = []
    for draft in drafts:
        cluster = draft.cluster or draft.shot.cluster
        place = f"{draft.family}/{cluster}"
        count = len({draft.right, *draft.wrong})
        deck = decks[draft.family, count]
        if not deck:  # every place is dealt once before any comes again
            shuffle = random_for("places", draft.family, place, numbers[place], split)
            deck += shuffle.permutation(count).tolist()
        name = f"{place}/{numbers[place]}"
        items.append(_worded(draft, cluster, name, split, deck.pop()))
        numbers[place] += 1
    return items


def _worded(draft: Draft, cluster: str, name: str, split: str, place: int) -> Item:
    """The item, with its right answer at this place; numbers stand in their order."""
    words = random_for("wording", draft.family, draft.group)
    is_fresh = not draft.known or bool(words.random() < 0.5)
    wordings = draft.fresh if is_fresh else draft.known
    number = int(words.integers(len(wordings)))
    choices = list(dict.fromkeys((draft.right, *draft.wrong)))
    if draft.is_number:
        choices.sort(key=float)  # a scale has an order
    else:
        order = random_for("choices", draft.family, name, split)
        choices = [choices[1 + k] for k in order.permutation(len(choices) - 1)]
        choices.insert(place, draft.right)
    chance = 1 / len(choices)
    if draft.is_number:
        said = [mean_relative_accuracy(float(c), float(draft.right)) for c in choices]
        chance = sum(said) / len(said)
    shot = draft.shot
    evidence = Evidence(shot.source if shot else "", shot.until_s if shot else None, draft.told)
    return Item(
        id=name,
        family=draft.family,
        score="numeric" if draft.is_number else "mc",
        evidence=(evidence,),
        variants=(("text",) if draft.told else ()) + (draft.variants if shot else ()),
        question=wordings[number],
        choices=tuple(choices),
        answer=choices.index(draft.right),
        numeric=float(draft.right) if draft.is_number else None,
        chance=chance,
        cluster=cluster,
        group=draft.group,
        split=split,
        template=f"{draft.family}/{'fresh' if is_fresh else 'known'}{number}",
        paraphrase=is_fresh,
        condition=dict(draft.condition),
    )


def balanced(drafts: list[Draft], per_cluster: int, labels: tuple[str, ...]) -> list[Draft]:
    """Keep so many of each scene that every label is right equally often in every stratum.

    Scenes come in turn, and of a scene the drafts whose label was rare so far; what is then too
    much of a label is dropped from the end.
    """
    kept: list[Draft] = []
    counts: dict[tuple[str, str], int] = defaultdict(int)
    by_cluster: dict[str, list[Draft]] = defaultdict(list)
    for draft in drafts:
        by_cluster[draft.cluster or draft.shot.cluster].append(draft)
    for group in by_cluster.values():
        left = [draft for draft in group if draft.right in labels]
        for _ in range(min(per_cluster, len(left))):
            best = min(left, key=lambda d: counts[d.stratum, d.right])
            left.remove(best)
            counts[best.stratum, best.right] += 1
            kept.append(best)
    strata = {draft.stratum for draft in kept}
    quota = {s: min(counts[s, label] for label in labels) for s in strata}
    used: dict[tuple[str, str], int] = defaultdict(int)
    even = []
    for draft in kept:
        used[draft.stratum, draft.right] += 1
        if used[draft.stratum, draft.right] <= quota[draft.stratum]:
            even.append(draft)
    return even


def common_labels(drafts: list[Draft], share: float = 0.1) -> tuple[str, ...]:
    """The right answers that at least this share of the drafts has, in order: a number that the
    world seldom shows cannot be balanced."""
    counts: dict[str, int] = defaultdict(int)
    for draft in drafts:
        counts[draft.right] += 1
    return tuple(sorted(label for label, n in counts.items() if n >= share * len(drafts)))
