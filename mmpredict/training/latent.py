"""Watches whether features said ahead still tell frames apart. In: predictions of steps that are
logged. Out: effective ranks for the log, and one warning per stream where they collapse.
"""

from __future__ import annotations

import warnings
from collections import Counter

import torch
from torch import Tensor

from mmpredict.objectives import effective_rank
from mmpredict.schema import LatentPrediction, Layout, Prediction

LEAST_SHARE = 0.1  # of the targets' rank: said features below it have collapsed
LEAST_RANK = 1.5  # of the targets themselves; 1 is all frames alike
PATIENCE = 5  # looks in a row: at first all features are alike, and that passes
MOST_VECTORS = 1024  # of a batch, evenly spaced: an SVD's cost grows with them


class LatentMonitor:
    """Effective ranks of what is said of each stream's features, and of the features.

    Args:
        layout: the streams.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.low: Counter[str] = Counter()  # looks in a row

    @torch.no_grad()
    def look(self, prediction: Prediction) -> dict[str, Tensor]:
        """Ranks by metric name; warns once where they stay low. Reads the device."""
        metrics = {}
        for modality, latent in prediction.latents.items():
            name = self.layout[modality].name
            said, target = (effective_rank(x) for x in some_vectors(latent))
            metrics[f"train/latent/{name}_rank_said"] = said
            metrics[f"train/latent/{name}_rank_target"] = target
            self._judge(name, float(said), float(target))
        return metrics

    def _judge(self, name: str, said: float, target: float) -> None:
        fallen = said < LEAST_SHARE * target or target < LEAST_RANK
        self.low[name] = self.low[name] + 1 if fallen else 0
        if self.low[name] == PATIENCE:
            warnings.warn(
                f"the features said of {name} have collapsed: effective rank {said:.1f}, of their "
                f"targets {target:.1f}, at {PATIENCE} looks in a row. What is said is (nearly) the "
                "same for all frames. Lower weights.latent, raise the decay of target: ema, or "
                "take a frozen target",
                stacklevel=2,
            )


def some_vectors(latent: LatentPrediction) -> tuple[Tensor, Tensor]:
    """(N, F) said and targets: the same vectors of both, at most MOST_VECTORS."""
    said, targets = latent.said_MPF.flatten(0, 1), latent.targets_MPF.flatten(0, 1)
    if len(said) <= MOST_VECTORS:
        return said, targets
    # Not every k-th: k may be a multiple of P, and then all come from one place of the frame.
    chosen = torch.linspace(0, len(said) - 1, MOST_VECTORS, device=said.device).long()
    return said[chosen], targets[chosen]
