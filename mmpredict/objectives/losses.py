"""The loss of a Prediction: each stream by its own count, then weighted, then added up.

Shapes: M blocks, P positions per block, D values, R draws, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmpredict.schema import IdsPrediction, Layout, Prediction, ValuesPrediction

VELOCITY_CLIP = 0.05  # the weight would explode: 1 - level is not taken smaller


@dataclass(frozen=True)
class LossWeights:
    """Weights of the sum.

    Args:
        streams: per stream name; 1 where not named.
        mean: of the regression beside the flow (the flow alone leaves motion unlearned).
        z: of the squared log-partition of id logits (keeps logits small).
        next_stream: of the choice whose turn is next.
    """

    streams: Mapping[str, float] | None = None
    mean: float = 1.0
    z: float = 1e-4
    next_stream: float = 0.1

    def check(self, layout: Layout) -> None:
        """Raise ValueError where a weight is given to a stream that the run does not have."""
        names = [spec.name for spec in layout.streams]
        unknown = sorted(set(self.streams or {}) - set(names))
        if unknown:
            raise ValueError(f"weights.streams names {unknown}; this run has the streams {names}")


@dataclass(frozen=True)
class Losses:
    """The weighted total, and unweighted parts by name ("video", "video_flow", "video_mean",
    ...).
    """

    total: Tensor
    parts: Mapping[str, Tensor]


def next_loss(prediction: Prediction, layout: Layout, weights: LossWeights) -> Losses:
    """Every stream's loss per predicted block or value, weighted and summed.

    A stream that the batch lacks has no part and adds nothing.
    """
    parts: dict[str, Tensor] = {}
    total: Tensor | None = None
    for modality, said in prediction.streams.items():
        name = layout[modality].name
        if isinstance(said, IdsPrediction):
            parts[name] = cross_entropy(said)
            loss = parts[name] + weights.z * z_loss(said)
        else:
            loss = _values_loss(said, name, weights, parts)
        loss = (weights.streams or {}).get(name, 1.0) * loss
        total = loss if total is None else total + loss
    if prediction.next_stream is not None:
        parts["next_stream"] = cross_entropy(prediction.next_stream)
        turn = weights.next_stream * parts["next_stream"]
        total = turn if total is None else total + turn
    if total is None:
        raise ValueError("a batch without a single counted block has no loss")
    return Losses(total, parts)


def _values_loss(
    said: ValuesPrediction, name: str, weights: LossWeights, parts: dict[str, Tensor]
) -> Tensor:
    parts[f"{name}_mean"] = F.mse_loss(said.mean_MPD, said.targets_MPD)
    if said.denoised_RMPD is None:
        parts[name] = parts[f"{name}_mean"]
        return parts[name]
    parts[f"{name}_flow"] = flow_matching(said)
    parts[name] = parts[f"{name}_flow"] + weights.mean * parts[f"{name}_mean"]
    return parts[name]


def cross_entropy(said: IdsPrediction) -> Tensor:
    """Mean negative log-likelihood, nats per id."""
    return F.cross_entropy(said.logits_MV, said.targets_M)


def z_loss(said: IdsPrediction) -> Tensor:
    """Mean squared log-partition (PaLM, Chowdhery et al. 2022)."""
    return said.logits_MV.logsumexp(dim=-1).square().mean()


def flow_matching(said: ValuesPrediction) -> Tensor:
    """Mean squared error of the velocity that x-prediction implies: ||(X_hat - X) / (1 - t)||^2."""
    away = (1 - said.level_RM).clamp(min=VELOCITY_CLIP)[..., None, None]
    return ((said.denoised_RMPD - said.targets_MPD) / away).square().mean()


def token_nll(said: IdsPrediction) -> Tensor:
    """(M,) nats of each id."""
    return -torch.gather(said.logits_MV.log_softmax(-1), 1, said.targets_M[:, None])[:, 0]
