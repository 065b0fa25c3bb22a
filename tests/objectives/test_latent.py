"""Laws of features said ahead: their losses, their surprise, and the meter of collapse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmpredict.objectives import LossWeights, effective_rank, latent_surprise, next_loss
from mmpredict.objectives.latent import latent_loss
from mmpredict.schema import LatentPrediction, Prediction
from tests.builders import LAYOUT, VIDEO, generator
from tests.objectives.test_losses import frames


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def said(seed: int = 0) -> LatentPrediction:
    return LatentPrediction(normal(3, 6, 8, seed=seed), normal(3, 6, 8, seed=seed + 1))


def test_effective_rank_of_matrices_whose_rank_is_known():
    assert float(effective_rank(torch.eye(7))) == pytest.approx(7)
    assert float(effective_rank(torch.eye(7, 20) * 3e4)) == pytest.approx(7)
    one = normal(50, 1) @ normal(1, 9)
    assert float(effective_rank(one)) == pytest.approx(1, abs=1e-3)
    assert float(effective_rank(torch.zeros(5, 4))) == 0
    # Singular values 3 and 1: exp of the entropy of (3/4, 1/4).
    expected = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert float(effective_rank(torch.diag(torch.tensor([3.0, 1.0, 0.0])))) == pytest.approx(
        expected
    )


def test_effective_rank_turns_with_the_space_and_ignores_size():
    x = normal(40, 6) * torch.tensor([5.0, 3, 1, 1, 0.1, 0.1])
    rotation, _ = torch.linalg.qr(normal(6, 6, seed=1))
    rank = effective_rank(x)
    assert 1 < float(rank) < 6
    for same in (x @ rotation, 1000 * x, x.flip(0), x.bfloat16().float()):
        torch.testing.assert_close(effective_rank(same), rank, atol=0.02, rtol=0.01)
    assert effective_rank(x.half()).isfinite()


def test_losses_are_what_they_say():
    features = said()
    away = (features.said_MPF - features.targets_MPF).abs()
    smooth = torch.where(away < 1, 0.5 * away**2, away - 0.5).mean()
    torch.testing.assert_close(latent_loss(features, "smooth_l1"), smooth)
    a, b = features.said_MPF, features.targets_MPF
    cosine = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    torch.testing.assert_close(latent_loss(features, "cosine"), (1 - cosine).mean())
    torch.testing.assert_close(latent_surprise(features), (1 - cosine).mean(1))
    torch.testing.assert_close(latent_surprise(features, "squared"), (away**2).mean((1, 2)))


def test_surprise_is_of_one_block_alone():
    features = said()
    changed = features.targets_MPF.clone()
    changed[1] = features.said_MPF[1]
    other = LatentPrediction(features.said_MPF, changed)
    for kind in ("cosine", "squared"):
        before, after = latent_surprise(features, kind), latent_surprise(other, kind)
        assert torch.equal(before[[0, 2]], after[[0, 2]])
        assert float(after[1]) == pytest.approx(0, abs=1e-6) and float(before[1]) > 0.1


def total(weights: LossWeights, latents: dict[int, LatentPrediction]) -> Tensor:
    prediction = Prediction({VIDEO: frames()}, None, latents)
    return next_loss(prediction, LAYOUT, weights).total


@pytest.mark.parametrize("kind", ["smooth_l1", "cosine"])
def test_the_part_is_weighted_named_and_added(kind):
    weights = LossWeights(streams={"video": 0.5}, latent=3.0, latent_loss=kind)
    features = said()
    losses = next_loss(Prediction({VIDEO: frames()}, None, {VIDEO: features}), LAYOUT, weights)
    part = latent_loss(features, kind)
    torch.testing.assert_close(losses.parts["video_latent"], part)
    torch.testing.assert_close(losses.total - total(weights, {}), 0.5 * 3.0 * part)


def test_wrong_weights_are_refused():
    with pytest.raises(ValueError, match="latent_loss='l3' is none of smooth_l1, cosine"):
        LossWeights(latent_loss="l3")
    with pytest.raises(ValueError, match="latent"):
        LossWeights(latent=-1.0)
