"""Laws of the loss: each stream by its own count, then weighted, then added."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmpredict.objectives import LossWeights, keep_in_range, next_loss, token_nll
from mmpredict.objectives.losses import cross_entropy, flow_matching, z_loss
from mmpredict.schema import IdsPrediction, Prediction, ValuesPrediction
from tests.builders import AUDIO, LAYOUT, TEXT, VIDEO, generator

PLAIN = LossWeights()


def words(count: int = 6, seed: int = 0) -> IdsPrediction:
    g = generator(seed)
    return IdsPrediction(
        torch.randn(count, 11, generator=g), torch.randint(11, (count,), generator=g)
    )


def frames(blocks: int = 3, seed: int = 1, flow: bool = True) -> ValuesPrediction:
    g = generator(seed)
    mean, targets = torch.randn(2, blocks, 6, 4, generator=g)
    if not flow:
        return ValuesPrediction(mean, targets)
    denoised = torch.randn(2, blocks, 6, 4, generator=g)
    return ValuesPrediction(mean, targets, denoised, torch.rand(2, blocks, generator=g))


def twice(x: Tensor, dim: int = 0) -> Tensor:
    return torch.cat([x, x], dim)


def loss_of(streams: dict, turn: IdsPrediction | None = None, weights: LossWeights = PLAIN):
    return next_loss(Prediction(streams, turn), LAYOUT, weights)


def test_every_stream_is_divided_by_its_own_count():
    said = frames()
    one = loss_of({VIDEO: said, TEXT: words()})
    more_words = IdsPrediction(twice(words().logits_MV), twice(words().targets_M))
    more_frames = ValuesPrediction(
        twice(said.mean_MPD),
        twice(said.targets_MPD),
        twice(said.denoised_RMPD, 1),
        twice(said.level_RM, 1),
    )
    for streams in ({VIDEO: said, TEXT: more_words}, {VIDEO: more_frames, TEXT: words()}):
        other = loss_of(streams)
        assert other.parts.keys() == one.parts.keys()
        for name in one.parts:
            torch.testing.assert_close(other.parts[name], one.parts[name])
        torch.testing.assert_close(other.total, one.total)


def test_the_total_is_the_weighted_sum_of_the_parts():
    weights = LossWeights(streams={"video": 3.0, "text": 0.5}, mean=0.25, z=0.01, next_stream=2.0)
    streams = {AUDIO: frames(seed=3, flow=False), VIDEO: frames(), TEXT: words()}
    said, turn = Prediction(streams, words(seed=5)), words(seed=5)
    losses = next_loss(said, LAYOUT, weights)
    parts = losses.parts
    assert set(parts) == {
        "audio", "audio_mean", "video", "video_flow", "video_mean", "text", "next_stream",
    }  # fmt: skip
    torch.testing.assert_close(parts["video"], parts["video_flow"] + 0.25 * parts["video_mean"])
    assert parts["audio"] == parts["audio_mean"]
    expected = (
        parts["audio"]
        + 3.0 * parts["video"]
        + 0.5 * (parts["text"] + 0.01 * z_loss(words()))
        + 2.0 * cross_entropy(turn)
    )
    torch.testing.assert_close(losses.total, expected)


def test_parts_are_what_they_are_called():
    said, text = frames(), words()
    parts = loss_of({VIDEO: said, TEXT: text}).parts
    error = said.mean_MPD - said.targets_MPD
    assert float(parts["video_mean"]) == pytest.approx(float((error**2).mean()), rel=1e-5)
    chances = text.logits_MV.softmax(-1)[torch.arange(6), text.targets_M]
    assert float(parts["text"]) == pytest.approx(float(-chances.log().mean()), rel=1e-5)
    torch.testing.assert_close(token_nll(text), -chances.log())
    even = IdsPrediction(torch.zeros(4, 11), torch.arange(4))
    assert float(cross_entropy(even)) == pytest.approx(math.log(11))
    assert float(z_loss(even)) == pytest.approx(math.log(11) ** 2, rel=1e-5)


def test_the_flow_loss_is_that_of_the_velocity_and_does_not_explode():
    """The true velocity is X - noise; x-prediction implies (X_hat - X_t) / (1 - t)."""
    g = generator(9)
    clean, noise, guess = torch.randn(3, 1, 4, 2, 3, generator=g)
    level = torch.tensor([[0.1, 0.5, 0.9, 0.94]])
    t = level[..., None, None]
    noised = t * clean + (1 - t) * noise
    implied = (guess - noised) / (1 - t)
    said = ValuesPrediction(guess[0], clean[0], guess, level)
    torch.testing.assert_close(
        flow_matching(said), (implied - (clean - noise)).square().mean(), atol=1e-3, rtol=1e-4
    )
    at_the_end = ValuesPrediction(guess[0], clean[0], guess, torch.ones(1, 4))
    assert float(flow_matching(at_the_end)) == pytest.approx(
        400 * float((guess - clean).square().mean()), rel=1e-4
    )


def test_the_flow_loss_teaches_what_its_formula_says():
    """Gradients of ||(X_hat - X) / (1 - t)||^2 with respect to both, several draws per block."""
    g = generator(10)
    clean = torch.randn(3, 2, 5, generator=g, dtype=torch.float64).requires_grad_()
    guess = torch.randn(2, 3, 2, 5, generator=g, dtype=torch.float64).requires_grad_()
    level = 0.9 * torch.rand(2, 3, generator=g, dtype=torch.float64)
    said = ValuesPrediction(guess[0], clean, guess, level)
    found = torch.autograd.grad(flow_matching(said), (guess, clean))
    formula = ((guess - clean) / (1 - level)[..., None, None]).square().mean()
    for a, b in zip(found, torch.autograd.grad(formula, (guess, clean)), strict=True):
        torch.testing.assert_close(a, b)


def test_absent_streams_add_nothing():
    both, alone = loss_of({TEXT: words()}, words(seed=2)), loss_of({TEXT: words()})
    assert set(alone.parts) == {"text"}
    torch.testing.assert_close(both.total - alone.total, 0.1 * cross_entropy(words(seed=2)))
    assert float(loss_of({}, words()).total) == pytest.approx(0.1 * float(cross_entropy(words())))


def test_a_batch_without_a_counted_block_is_refused():
    with pytest.raises(ValueError, match="without a single counted block"):
        loss_of({})


def codes(blocks: int = 3, seed: int = 4) -> ValuesPrediction:
    g = generator(seed)
    mean, targets = torch.randn(2, blocks, 6, 4, generator=g)
    return ValuesPrediction(mean, targets, nats_MP=torch.rand(blocks, 6, generator=g))


def test_a_likelihood_is_averaged_over_positions_beside_the_mean():
    said = codes()
    losses = loss_of({VIDEO: said}, weights=LossWeights(mean=0.5))
    assert set(losses.parts) == {"video", "video_nats", "video_mean"}
    torch.testing.assert_close(losses.parts["video_nats"], said.nats_MP.sum() / 18)
    expected = losses.parts["video_nats"] + 0.5 * losses.parts["video_mean"]
    torch.testing.assert_close(losses.total, expected)
    alone = loss_of({VIDEO: said}, weights=LossWeights(mean=0.0))
    torch.testing.assert_close(alone.total, alone.parts["video_nats"])


UNCERTAIN = LossWeights(streams={"video": 3.0}, balance="uncertainty")


def log_variances(**values: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}


def balanced(log_s: dict[str, Tensor], weights: LossWeights = UNCERTAIN, streams=None):
    streams = streams or {VIDEO: frames(), TEXT: words()}
    return next_loss(Prediction(streams, words(seed=5)), LAYOUT, weights, log_s)


def test_uncertainty_divides_each_loss_by_its_variance():
    losses = balanced(log_variances(video=0.7, text=-0.4))
    text = losses.parts["text"] + UNCERTAIN.z * z_loss(words())
    expected = (
        3.0 * (math.exp(-0.7) * losses.parts["video"] + 0.7)
        + (math.exp(0.4) * text - 0.4)
        + UNCERTAIN.next_stream * losses.parts["next_stream"]
    )
    torch.testing.assert_close(losses.total, expected)
    fixed = loss_of({VIDEO: frames(), TEXT: words()}, words(seed=5))
    for name, part in fixed.parts.items():
        assert torch.equal(part, losses.parts[name])  # what is logged stays comparable


def test_at_its_best_a_log_variance_is_the_log_of_its_loss():
    log_s = log_variances(text=0.0)
    plain = LossWeights(z=0.0, balance="uncertainty")
    for _ in range(200):
        total = balanced(log_s, plain, {TEXT: words()}).total
        (grad,) = torch.autograd.grad(total, log_s["text"])
        log_s["text"] = (log_s["text"] - 0.1 * grad).detach().requires_grad_()
    best = float(cross_entropy(words()).log())
    assert float(log_s["text"].detach()) == pytest.approx(best, abs=0.01)


@pytest.mark.parametrize(("far", "clamped"), [(9.0, 2.0), (-9.0, -2.0)])
def test_log_variances_are_clamped_but_can_come_back(far: float, clamped: float):
    outside, at_the_edge = log_variances(text=far), log_variances(text=clamped)
    assert torch.equal(
        balanced(outside, streams={TEXT: words()}).total,
        balanced(at_the_edge, streams={TEXT: words()}).total,
    )
    balanced(outside, streams={TEXT: words()}).total.backward()
    inwards = -float(outside["text"].grad) * math.copysign(1.0, -far)  # a step of descent
    assert inwards > 0  # the loss of these words lies between exp(-2) and exp(2)
    keep_in_range(outside)
    assert float(outside["text"].detach()) == clamped


def test_a_stream_of_weight_zero_moves_nothing():
    log_s = log_variances(video=0.3, text=0.1)
    weights = LossWeights(streams={"video": 0.0}, balance="uncertainty")
    balanced(log_s, weights).total.backward()
    assert float(log_s["video"].grad) == 0 and float(log_s["text"].grad) != 0


def test_balancing_needs_its_variances_and_known_names():
    for given, missing in ((None, "video"), (log_variances(video=0.0), "text")):
        with pytest.raises(ValueError, match=f"log variance of {missing}"):
            balanced(given)
    with pytest.raises(ValueError, match="neither fixed nor uncertainty"):
        LossWeights(balance="gradnorm")
    for bad in ({"streams": {"video": -1.0}}, {"mean": -0.1}, {"z": float("nan")}):
        with pytest.raises(ValueError, match="0 or more"):
            LossWeights(**bad)
