"""Figures that several benchmarks report. In: scores and labels. Out: one number."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence


def average_precision(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Area under precision over recall as a sum of steps: sum of (R_k - R_k-1) P_k over the
    distinct scores, the highest first. Equal scores are one step, so that the order of the rows
    does not matter. NaN without a positive."""
    positive = sum(labels)
    if not positive:
        return math.nan
    order = sorted(range(len(scores)), key=lambda k: -scores[k])
    area, hits, start = 0.0, 0, 0
    while start < len(order):
        stop = start
        while stop < len(order) and scores[order[stop]] == scores[order[start]]:
            stop += 1
        gained = sum(labels[k] for k in order[start:stop])
        hits += gained
        area += gained / positive * hits / stop
        start = stop
    return area


def cohens_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Agreement of two judges beyond chance: (p_o - p_e) / (1 - p_e) (Cohen 1960). NaN where both
    always say the same one thing."""
    n = len(first)
    if not n or n != len(second):
        raise ValueError(f"kappa needs two rows of one length, got {n} and {len(second)}")
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    labels = set(first) | set(second)
    expected = sum(list(first).count(v) * list(second).count(v) for v in labels) / n**2
    return (observed - expected) / (1 - expected) if expected < 1 else math.nan


def macro_f1(said: Sequence[Hashable], truth: Sequence[Hashable], classes: Sequence) -> float:
    """Mean over classes of the harmonic mean of precision and recall; 0 for a class that is never
    said or never true."""
    values = []
    for name in classes:
        both = sum(a == b == name for a, b in zip(said, truth, strict=True))
        total = list(said).count(name) + list(truth).count(name)
        values.append(2 * both / total if total else 0.0)
    return sum(values) / len(values)
