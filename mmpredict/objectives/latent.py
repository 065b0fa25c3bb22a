"""Scores of features said ahead, and a meter of how much they still tell frames apart.

Shapes: M blocks, P positions per block, F features, N vectors.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mmpredict.schema import LatentPrediction

LATENT_LOSSES = ("smooth_l1", "cosine")


def latent_loss(
    said: LatentPrediction, kind: Literal["smooth_l1", "cosine"] = "smooth_l1"
) -> Tensor:
    """Mean error of the features.

    Args:
        said: features with their targets.
        kind: `smooth_l1` (data2vec, Baevski et al. 2022; V-JEPA's L1, Bardes et al. 2024, rounded
            off below 1), or `cosine`, 1 - cosine, which does not mind their size.
    """
    if kind == "smooth_l1":
        return F.smooth_l1_loss(said.said_MPF, said.targets_MPF)
    return latent_surprise(said, "cosine").mean()


def latent_surprise(
    said: LatentPrediction, kind: Literal["squared", "cosine"] = "cosine"
) -> Tensor:
    """(M,) how far each block's features are from what was said, mean over its positions: 1 -
    cosine, or the squared error per feature."""
    if kind == "squared":
        return (said.said_MPF - said.targets_MPF).square().mean(dim=(1, 2))
    return (1 - F.cosine_similarity(said.said_MPF, said.targets_MPF, dim=-1)).mean(dim=1)


def effective_rank(vectors_NF: Tensor) -> Tensor:
    """exp of the entropy of the singular values, as shares of their sum (Roy & Vetterli 2007).

    1 where all vectors point the same way, min(N, F) where they fill all directions evenly, 0 where
    all are 0. Low ranks of features tell poor encoders without labels (RankMe, Garrido et al.
    2023).
    """
    sizes = torch.linalg.svdvals(vectors_NF.float())
    total = sizes.sum()
    shares = sizes / total.clamp(min=torch.finfo(sizes.dtype).tiny)
    return torch.where(total > 0, torch.special.entr(shares).sum().exp(), 0.0)
