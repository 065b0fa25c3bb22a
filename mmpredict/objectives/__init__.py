"""Pure functions: a loss and its trivial baselines for every stream."""

from mmpredict.objectives.baselines import NgramCounts, copy_last, ids_and_previous, mean_block
from mmpredict.objectives.losses import Losses, LossWeights, next_loss, token_nll
from mmpredict.objectives.metrics import energy_score, squared_error

__all__ = [
    "LossWeights",
    "Losses",
    "NgramCounts",
    "copy_last",
    "energy_score",
    "ids_and_previous",
    "mean_block",
    "next_loss",
    "squared_error",
    "token_nll",
]
