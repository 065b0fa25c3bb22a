"""The loss of a Prediction: each stream by its own count, then weighted or balanced, then added up.

Shapes: M blocks, P positions per block, D values, R draws, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mmpredict.objectives.latent import LATENT_LOSSES, latent_loss
from mmpredict.schema import IdsPrediction, Layout, Prediction, ValuesPrediction

VELOCITY_CLIP = 0.05  # the weight would explode: 1 - level is not taken smaller
LOG_VARIANCE_RANGE = (-2.0, 2.0)  # a stream counts at most 7.4 times, at least a 7.4th


@dataclass(frozen=True)
class LossWeights:
    """Weights of the sum.

    Args:
        streams: per stream name; 1 where not named, 0 leaves the stream unlearned.
        mean: of the regression beside the flow, the mixture or the codes (without it the trunk
            learns no motion from them).
        z: of the squared log-partition of id logits (keeps logits small).
        next_stream: of the choice whose turn is next.
        latent: of features said beside the values of a stream (predictor.latent).
        latent_loss: smooth_l1, or cosine.
        balance: `fixed` adds the weighted losses; `uncertainty` divides each by a learned variance
            first.
    """

    streams: Mapping[str, float] | None = None
    mean: float = 1.0
    z: float = 1e-4
    next_stream: float = 0.1
    latent: float = 1.0
    latent_loss: Literal["smooth_l1", "cosine"] = "smooth_l1"
    balance: Literal["fixed", "uncertainty"] = "fixed"

    def __post_init__(self) -> None:
        if self.balance not in ("fixed", "uncertainty"):
            raise ValueError(f"weights.balance={self.balance!r} is neither fixed nor uncertainty")
        if self.latent_loss not in LATENT_LOSSES:
            raise ValueError(
                f"weights.latent_loss={self.latent_loss!r} is none of {', '.join(LATENT_LOSSES)}"
            )
        named = {f"streams.{name}": weight for name, weight in (self.streams or {}).items()}
        named |= {"mean": self.mean, "z": self.z, "next_stream": self.next_stream}
        named["latent"] = self.latent
        bad = {name: weight for name, weight in named.items() if not 0 <= weight < float("inf")}
        if bad:
            raise ValueError(f"weights must be 0 or more: {bad}")

    def check(self, layout: Layout) -> None:
        """Raise ValueError where a weight is given to a stream that the run does not have."""
        names = [spec.name for spec in layout.streams]
        unknown = sorted(set(self.streams or {}) - set(names))
        if unknown:
            raise ValueError(f"weights.streams names {unknown}; this run has the streams {names}")

    def of(self, name: str) -> float:
        """Weight of a stream."""
        return (self.streams or {}).get(name, 1.0)


@dataclass(frozen=True)
class Losses:
    """The weighted total, and unweighted parts by name ("video", "video_flow", "video_mean",
    ...).
    """

    total: Tensor
    parts: Mapping[str, Tensor]


def next_loss(
    prediction: Prediction,
    layout: Layout,
    weights: LossWeights,
    log_variances: Mapping[str, Tensor] | None = None,
    *,
    factors: Mapping[str, float] | None = None,
) -> Losses:
    """Every stream's loss per predicted block or value, weighted and summed.

    A stream that the batch lacks has no part and adds nothing.

    Args:
        prediction: of a batch.
        layout: the streams.
        weights: of the sum.
        log_variances: learned, by stream name; given where `weights.balance` is `uncertainty`.
        factors: on the total's shares, by stream name and "next_stream"; given where this is a part
            of a batch. Such a part may be without a single counted block.
    """
    parts: dict[str, Tensor] = {}
    shares: list[Tensor] = []  # of the total
    for modality, said in prediction.streams.items():
        name = layout[modality].name
        if isinstance(said, IdsPrediction):
            loss = _ids_loss(said, name, weights, parts)
        else:
            loss = _values_loss(said, name, weights, parts)
        if weights.balance == "uncertainty":
            loss = _balanced(loss, name, log_variances)
        shares.append(_scaled(weights.of(name) * loss, factors, name))
    for modality, features in prediction.latents.items():
        name = layout[modality].name
        part = parts[f"{name}_latent"] = latent_loss(features, weights.latent_loss)
        shares.append(_scaled(weights.of(name) * weights.latent * part, factors, name))
    if prediction.next_stream is not None:
        parts["next_stream"] = cross_entropy(prediction.next_stream)
        turns = weights.next_stream * parts["next_stream"]
        shares.append(_scaled(turns, factors, "next_stream"))
    if not shares and factors is not None:
        return Losses(torch.zeros(()), parts)
    if not shares:
        raise ValueError("a batch without a single counted block has no loss")
    return Losses(sum(shares[1:], shares[0]), parts)


def _scaled(share: Tensor, factors: Mapping[str, float] | None, name: str) -> Tensor:
    return share if factors is None else share * factors[name]


def _ids_loss(
    said: IdsPrediction, name: str, weights: LossWeights, parts: dict[str, Tensor]
) -> Tensor:
    parts[name] = cross_entropy(said)
    return parts[name] + weights.z * z_loss(said)


def _values_loss(
    said: ValuesPrediction, name: str, weights: LossWeights, parts: dict[str, Tensor]
) -> Tensor:
    """The regression, beside what else was said: a denoised block or a likelihood."""
    mean = parts[f"{name}_mean"] = F.mse_loss(said.mean_MPD, said.targets_MPD)
    if said.denoised_RMPD is not None:
        parts[f"{name}_flow"] = flow_matching(said)
        parts[name] = parts[f"{name}_flow"] + weights.mean * mean
    elif said.nats_MP is not None:
        parts[f"{name}_nats"] = said.nats_MP.mean()
        parts[name] = parts[f"{name}_nats"] + weights.mean * mean
    else:
        parts[name] = mean
    return parts[name]


def _balanced(loss: Tensor, name: str, log_variances: Mapping[str, Tensor] | None) -> Tensor:
    """exp(-s) L + s: the loss in units of a learned variance exp(s) (Kendall et al. 2018).

    s counts as clamped to LOG_VARIANCE_RANGE, but its gradient passes: outside the range it would
    be 0, and s never come back. A loss that can be negative (a density's) drives s to the low end.
    """
    if log_variances is None or name not in log_variances:
        have = sorted(log_variances or ())
        raise ValueError(f"balance: uncertainty needs a log variance of {name}; there are {have}")
    s = log_variances[name]
    s = s + (s.clamp(*LOG_VARIANCE_RANGE) - s).detach()
    return (-s).exp() * loss + s


@torch.no_grad()
def keep_in_range(log_variances: Mapping[str, Tensor]) -> None:
    """Bring log variances back into their range; to be called after every step."""
    for s in log_variances.values():
        s.clamp_(*LOG_VARIANCE_RANGE)


def cross_entropy(said: IdsPrediction) -> Tensor:
    """Mean negative log-likelihood, nats per id."""
    return F.cross_entropy(said.logits_MV, said.targets_M)


def z_loss(said: IdsPrediction) -> Tensor:
    """Mean squared log-partition (PaLM, Chowdhery et al. 2022)."""
    return said.logits_MV.logsumexp(dim=-1).square().mean()


def flow_matching(said: ValuesPrediction) -> Tensor:
    """Mean squared error of the velocity that x-prediction implies: ||(X_hat - X) / (1 - t)||^2."""
    away_RM = (1 - said.level_RM).clamp(min=VELOCITY_CLIP)
    return BlockErrors.apply(said.denoised_RMPD, said.targets_MPD, away_RM.square().reciprocal())


class BlockErrors(torch.autograd.Function):
    """Mean of weight * (x - y)^2, with one weight for each block: as autograd's, but it walks over
    blocks of pixels three times, forward and back, in the place of about ten."""

    @staticmethod
    def forward(ctx: Any, x_RMPD: Tensor, y_MPD: Tensor, weight_RM: Tensor) -> Tensor:
        away_RMPD = x_RMPD - y_MPD
        share_RM = weight_RM / away_RMPD.numel()
        ctx.save_for_backward(away_RMPD, share_RM)
        norm_RM = torch.linalg.vector_norm(away_RMPD, dim=(-2, -1))
        return (share_RM * norm_RM.square()).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        away_RMPD, share_RM = ctx.saved_tensors
        of_x = away_RMPD * (2 * grad * share_RM)[..., None, None]
        return of_x, -of_x.sum(0) if ctx.needs_input_grad[1] else None, None


def token_nll(said: IdsPrediction) -> Tensor:
    """(M,) nats of each id."""
    return -torch.gather(said.logits_MV.log_softmax(-1), 1, said.targets_M[:, None])[:, 0]
