"""Pure functions: a loss and its trivial baselines for every stream."""

from mmpredict.objectives.baselines import NgramCounts, copy_last, ids_and_previous, mean_block
from mmpredict.objectives.latent import effective_rank, latent_surprise
from mmpredict.objectives.losses import (
    Losses,
    LossWeights,
    keep_in_range,
    next_loss,
    token_nll,
)
from mmpredict.objectives.metrics import energy_score, squared_error

__all__ = [
    "LossWeights",
    "Losses",
    "NgramCounts",
    "copy_last",
    "effective_rank",
    "energy_score",
    "ids_and_previous",
    "keep_in_range",
    "latent_surprise",
    "mean_block",
    "next_loss",
    "squared_error",
    "token_nll",
]
