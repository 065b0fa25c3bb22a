"""Is the impossible more surprising than the possible? Numbers with intervals, in plain torch.

Shapes: S training seeds, N scenes (or matched pairs), B bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DRAWS = 2000
LEVEL = 0.95


def relative(possible: Tensor, impossible: Tensor) -> Tensor:
    """(...) share of matched pairs in which the impossible clip surprises more; a tie counts half.

    Args:
        possible, impossible: (..., N) surprise of both clips of every pair.
    """
    return (torch.sign(impossible - possible).double() + 1).div(2).mean(-1)


def unpaired(possible: Tensor, impossible: Tensor) -> Tensor:
    """(...) area under the ROC curve: the same over all pairings of a possible with an impossible
    clip, of whatever scenes."""
    wins = torch.sign(impossible[..., None, :] - possible[..., :, None]).double() + 1
    return wins.div(2).mean((-1, -2))


def interval(
    statistic: Callable[..., Tensor], *values_SN: Tensor, seed: int = 0
) -> tuple[float, float, float]:
    """Mean over seeds of a statistic over scenes, and its bootstrap interval.

    Seeds and scenes are drawn anew (two levels); all values of a scene stay together, because what
    two clips of one scene say is not independent. Deviations between seeds are widened by
    sqrt(S / (S - 1)): with 3 seeds the plain bootstrap shows two thirds of their variance.

    Args:
        statistic: of (..., N) values, one tensor for each in `values_SN`.
        values_SN: what was measured, per training seed and scene.
    """
    S, N = values_SN[0].shape
    generator = torch.Generator().manual_seed(seed)
    by_seed_S = statistic(*values_SN).double()
    centre = float(by_seed_S.mean())
    seeds_BS = torch.randint(S, (DRAWS, S), generator=generator)
    drawn_B = torch.empty(DRAWS, dtype=torch.float64)
    widen = (S / (S - 1)) ** 0.5 if S > 1 else 1.0
    for b in range(DRAWS):
        scenes_N = torch.randint(N, (N,), generator=generator)
        again_S = statistic(*(v[:, scenes_N] for v in values_SN)).double()
        of_scenes = float(again_S.mean())
        drawn_B[b] = of_scenes + widen * (float(by_seed_S[seeds_BS[b]].mean()) - centre)
    low, high = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    return centre, float(drawn_B.quantile(low)), float(drawn_B.quantile(high))


def mean(values: Tensor) -> Tensor:
    """(...) the plain mean over scenes."""
    return values.double().mean(-1)
