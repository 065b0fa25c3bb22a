"""From what a model said of an item to how right that is. In: an item and numbers. Out: a grade.

A scorer says one number per choice (the higher, the likelier), or per clip of a voe set (the
higher, the more surprising), or, of a minpair, per statement and context. Ties count as they would
in a guess, in every family: published scorers count them as right, as wrong or as half, and a model
that says the same of everything then gets 1, 0 or a half (PROBES 0.6).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from .items import Item

TIE = 1e-6  # relative: closer numbers are the same
_EXACT = 1e-9
MRA_THRESHOLDS = tuple(0.5 + 0.05 * k for k in range(10))  # .50, .55, ... .95


class Scorer(Protocol):
    """Whoever can be asked."""

    def scores(self, items: Sequence[Item], variant: str) -> list[dict[str, list[float]]]:
        """For every item, rows of numbers by the name of the rule ("sum", "pmi", "prediction"...).

        mc, numeric: one per choice. voe: the surprise at each clip. minpair: four, the chance of
        statement 1 and 2 after context 1, then after context 2.
        """


@dataclass(frozen=True)
class Grade:
    """How right an answer is.

    Args:
        score: 0 to 1; what a guess gets is the item's `chance`.
        tied: whether the numbers did not decide.
    """

    score: float
    tied: bool = False


def grade(item: Item, numbers: Sequence[float]) -> Grade:
    """Judge what was said of an item.

    Raises:
        ValueError: where numbers are missing or not finite.
    """
    expected = {"voe": len(item.evidence), "minpair": 4}.get(item.score, len(item.choices))
    if len(numbers) != expected or not all(map(math.isfinite, numbers)):
        raise ValueError(f"item {item.id!r}: got {list(numbers)}, needs {expected} finite numbers")
    if item.score == "voe":
        return _grade_set(item, numbers)
    if item.score == "minpair":
        first, second = _compare(numbers[0], numbers[2]), _compare(numbers[3], numbers[1])
        return Grade((first + second) / 2, 0.5 in (first, second))
    best = [k for k, number in enumerate(numbers) if _compare(number, max(numbers)) == 0.5]
    if item.score == "numeric":
        values = [mean_relative_accuracy(float(item.choices[k]), item.numeric) for k in best]
        return Grade(sum(values) / len(values), len(best) > 1)
    return Grade((item.answer in best) / len(best), len(best) > 1)


def _grade_set(item: Item, surprise: Sequence[float]) -> Grade:
    """1 where the impossible clips surprise more in the mean than the possible ones (the relative
    score of IntPhys, Riochet et al. 2018)."""
    broken = [s for s, possible in zip(surprise, item.possible, strict=True) if not possible]
    lawful = [s for s, possible in zip(surprise, item.possible, strict=True) if possible]
    score = _compare(sum(broken) / len(broken), sum(lawful) / len(lawful))
    return Grade(score, score == 0.5)


def _compare(more: float, less: float) -> float:
    """1 if `more` is more, 0 if it is less, 0.5 if they are the same."""
    if abs(more - less) <= TIE * max(abs(more), abs(less)):
        return 0.5
    return float(more > less)


def mean_relative_accuracy(said: float, truth: float) -> float:
    """Share of the thresholds t = .50, .55 ... .95 at which |said - truth| / |truth| < 1 - t (Yang
    et al. 2024, VSI-Bench, MRA; the paper's strict sign, and a truth of 0 asks for 0)."""
    error = abs(said - truth) / abs(truth) if truth else math.inf * (said != truth)
    if math.isnan(error):
        error = 0.0
    # 7 of 10 is 30 % off, not less: floats must not turn the strict sign.
    return sum(error < 1 - t - _EXACT for t in MRA_THRESHOLDS) / len(MRA_THRESHOLDS)


def constant_scores(item: Item) -> dict[str, float]:
    """What a numeric item gives to each of its choices: a family is known by guessing where it is
    known by saying one number always."""
    return {c: mean_relative_accuracy(float(c), item.numeric) for c in item.choices}


def best_constant(scores: Sequence[Mapping[str, float]]) -> list[float]:
    """Of each item, what the one number gets that is best over all of them.

    Args:
        scores: of each item, as of `constant_scores`; a number that an item does not offer gets 0.
    """
    said = dict.fromkeys(number for one in scores for number in one)
    return max(([one.get(number, 0.0) for one in scores] for number in said), key=sum)
