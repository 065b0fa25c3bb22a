"""Which document stands at which place of an epoch: a pure function of (seed, epoch).

In: how many documents, which of them are read together (runs), how often each is wanted (weights).
Out: the documents' numbers in the order in which they are seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def generator_of(seed: int, epoch: int) -> torch.Generator:
    """The one source of randomness of an epoch's order."""
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


def order_of(
    size: int,
    generator: torch.Generator,
    *,
    runs: Sequence[range] | None = None,
    weights: Tensor | None = None,
    spread: int = 16,
) -> Tensor:
    """(places,) int64 numbers of documents.

    Runs come in random order; each one's documents are scattered over the places of the next
    `spread` runs, so that a run is read in one go while neighbours in a batch come from different
    runs. With weights, the epoch has round(sum of weights) places and each document as many of
    them as its weight says, to within one.
    """
    if weights is not None:
        numbers = systematic(weights, places_of(weights), generator)
    else:
        numbers = torch.arange(size)
    if runs is None:
        return numbers[torch.randperm(len(numbers), generator=generator)]
    run_of = run_numbers(runs, numbers)
    places = torch.randperm(len(runs), generator=generator)
    keys = places[run_of] + spread * torch.rand(
        len(numbers), generator=generator, dtype=torch.float64
    )
    return numbers[torch.argsort(keys, stable=True)]


def places_of(weights: Tensor) -> int:
    """Places of an epoch in which documents come as often as their weights say."""
    return max(1, round(float(weights.sum())))


def run_numbers(runs: Sequence[range] | None, numbers: Tensor) -> Tensor:
    """The run that each document belongs to; without runs each is its own."""
    if runs is None:
        return numbers
    starts = torch.tensor([run.start for run in runs])
    return torch.searchsorted(starts, numbers, right=True) - 1


def systematic(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` draws with shares `weights`, rising; each number comes floor or ceil of its expected
    times (systematic sampling: one random start, equal steps)."""
    if not len(weights) or bool((weights < 0).any()) or not 0 < float(weights.sum()) < torch.inf:
        raise ValueError("weights must be 0 or more, finite, and not all 0")
    edges = weights.double().cumsum(0) / weights.double().sum()
    start = torch.rand(1, generator=generator, dtype=torch.float64)
    ticks = (torch.arange(count, dtype=torch.float64) + start) / count
    # Rounding may leave the last edge a hair below 1.
    last = int((weights > 0).nonzero()[-1])
    return torch.searchsorted(edges, ticks, right=True).clamp(max=last)
