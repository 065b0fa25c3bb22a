"""Scorers whose score is known: they check the suite, the grading and the statistics, and need no
model. In: items. Out: numbers, as a model would say them.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmpredict.probes.grading import mean_relative_accuracy
from mmpredict.probes.items import Item

Numbers = dict[str, list[float]]


@dataclass(frozen=True)
class Oracle:
    """Knows the answers: scores 1 everywhere. `says_wrong` turns every answer round: the
    anti-oracle scores 0 (of numeric items: the worst of the choices)."""

    says_wrong: bool = False

    def scores(self, items: Sequence[Item], variant: str) -> list[Numbers]:
        sign = -1.0 if self.says_wrong else 1.0
        return [{"oracle": [sign * x for x in _truth(item)]} for item in items]


@dataclass(frozen=True)
class Constant:
    """Says the same of everything: ties, so exactly chance."""

    def scores(self, items: Sequence[Item], variant: str) -> list[Numbers]:
        return [{"constant": [0.0] * len(_truth(item))} for item in items]


@dataclass(frozen=True)
class Random:
    """Guesses: chance in the mean. An answer depends on the seed and the item's name alone."""

    seed: int = 0

    def scores(self, items: Sequence[Item], variant: str) -> list[Numbers]:
        found = []
        for item in items:
            name = zlib.crc32(f"{item.id}/{variant}".encode())
            draws = np.random.default_rng([self.seed, name]).standard_normal(len(_truth(item)))
            found.append({"random": draws.tolist()})
        return found


class Majority:
    """Habit: of each choice, how right it was on the mean when it was offered in the same family.
    What can be scored without the evidence; of numbers, the constant that comes nearest. Of clips
    and of pairs of statements it knows nothing.

    Args:
        items: whose answers are known. Where they are the very items that are asked, the score is
            too good: what is rarely offered tells of its own answer.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self._right: Counter[tuple[str, str]] = Counter()
        self._offered: Counter[tuple[str, str]] = Counter()
        for item in items:
            if item.score in ("mc", "numeric"):
                self._offered.update((item.family, choice) for choice in item.choices)
                for choice, right in zip(item.choices, _truth(item), strict=True):
                    self._right[item.family, choice] += right

    def scores(self, items: Sequence[Item], variant: str) -> list[Numbers]:
        found = []
        for item in items:
            said = [0.0] * len(_truth(item))
            if item.score in ("mc", "numeric"):
                keys = [(item.family, choice) for choice in item.choices]
                said = [
                    self._right[key] / self._offered[key] if key in self._offered else item.chance
                    for key in keys
                ]
            found.append({"majority": said})
        return found


def _truth(item: Item) -> list[float]:
    """What a perfect scorer says: 1 of what is right, 0 of what is wrong."""
    if item.score == "voe":
        return [float(not possible) for possible in item.possible]
    if item.score == "minpair":
        return [1.0, 0.0, 0.0, 1.0]
    if item.score == "numeric":
        return [mean_relative_accuracy(float(c), item.numeric) for c in item.choices]
    return [float(number == item.answer) for number in range(len(item.choices))]
