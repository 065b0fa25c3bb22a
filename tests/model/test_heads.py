"""Laws of the heads: a flow head is born as the exact posterior, samples rightly, and learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from mmpredict.model import HeadConfig
from mmpredict.model.heads import FlowHead, SoftmaxHead, values_head
from mmpredict.objectives.losses import flow_matching
from mmpredict.schema import StreamSpec
from tests.builders import VIDEO, generator

FRAME = StreamSpec(modality=VIDEO, name="video", width=4, rows=2, cols=3)
CHUNK = StreamSpec(modality=0, name="audio", width=4)
BOTH = pytest.mark.parametrize("spec", [FRAME, CHUNK], ids=["frame", "chunk"])


def new_head(spec: StreamSpec, kind: str = "flow", **config: object) -> nn.Module:
    sizes = {} if kind == "regression" else {"dim": 32, "depth": 1}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return values_head(spec, 16, HeadConfig(kind=kind, **(sizes | config)))


def inputs(spec: StreamSpec, blocks: int = 5) -> tuple[Tensor, Tensor]:
    """z and the previous block."""
    g = generator(0)
    P = spec.positions_per_block
    return torch.randn(blocks, P, 16, generator=g), torch.randn(blocks, P, 4, generator=g)


@BOTH
def test_training_starts_at_the_copy_of_the_last_block(spec: StreamSpec):
    for kind in ("flow", "regression"):
        z, previous = inputs(spec)
        assert torch.equal(new_head(spec, kind=kind).mean(z, previous), previous)


@BOTH
def test_at_first_the_denoiser_is_the_exact_gaussian_posterior(spec: StreamSpec):
    """x ~ N(m, s^2), seen as y = t x + (1 - t) n: precisions add up, and weigh the two opinions."""
    head = new_head(spec)
    with torch.no_grad():
        head.to_log_sigma.bias.copy_(torch.tensor([0.1, 0.5, 1.0, 2.0]).log())
    z, mean = inputs(spec)
    outlook = head.outlook(z, mean)  # at first the mean is the previous block
    noised = torch.randn(3, *mean.shape, generator=generator(2))
    level = torch.tensor([0.05, 0.5, 0.999])[:, None].expand(3, 5)
    t, sigma = level[..., None, None].double(), outlook.log_sigma_MPD.detach().exp().double()
    of_prior, of_noised = sigma**-2, (t / (1 - t)) ** 2
    expected = (mean * of_prior + noised / t * of_noised) / (of_prior + of_noised)
    torch.testing.assert_close(
        head.denoise(noised, level, outlook).double(), expected, atol=1e-4, rtol=1e-4
    )


@BOTH
@pytest.mark.parametrize(("sigma", "steps"), [(0.5, 20), (0.5, 60), (0.1, 60)])
def test_samples_of_a_gaussian_have_its_mean_and_deviation(
    spec: StreamSpec, sigma: float, steps: int
):
    head = new_head(spec)
    with torch.no_grad():
        head.to_log_sigma.bias.fill_(math.log(sigma))
    z, previous = inputs(spec, blocks=2)
    x = head.sample(z, previous, draws=500, steps=steps, generator=generator(3))
    assert x.shape == (500, *previous.shape)
    away = x - previous
    assert float(away.mean(0).abs().max()) < 5 * sigma / 500**0.5
    # Euler steps narrow the bell (measured: 0.93 of sigma 0.5 after 20 steps), they never widen it.
    assert 0.85 * sigma < float(away.std()) < 1.03 * sigma


@BOTH
def test_temperature_zero_is_the_mean_and_draws_agree(spec: StreamSpec):
    for kind in ("flow", "regression"):
        head = new_head(spec, kind=kind)
        z, previous = inputs(spec)
        mean = head.mean(z, previous).detach()
        cold = head.sample(z, previous, draws=3, temperature=0)
        assert torch.equal(cold, mean.expand(3, *mean.shape))
    warm = new_head(spec).sample(z, previous, draws=2, generator=generator(0))
    again = new_head(spec).sample(z, previous, draws=2, generator=generator(0))
    assert torch.equal(warm, again) and not torch.equal(warm[0], warm[1])


@BOTH
def test_the_flow_does_not_pull_the_mean_along(spec: StreamSpec):
    """The mean is taught by its own error alone; the flow reads it as given."""
    head = new_head(spec)
    z, previous = inputs(spec)
    targets = torch.randn(previous.shape, generator=generator(4))
    said = head(z, previous, targets, generator(5))
    flow_matching(said).backward()
    assert all(p.grad is None for p in head.block_mean.parameters())
    assert head.to_log_sigma.weight.grad is not None and head.to_correction.weight.grad is not None
    assert torch.equal(said.targets_MPD, targets)


def test_two_possible_futures_are_learned_as_two_and_whole():
    """Blocks are all +1 or all -1: samples must choose a side, the same in all positions."""
    head = new_head(FRAME, draws=2)
    z, previous = torch.zeros(48, 6, 16), torch.zeros(48, 6, 4)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    g = generator(6)
    for _ in range(150):
        side = torch.randint(2, (48, 1, 1), generator=g) * 2.0 - 1
        loss = flow_matching(head(z, previous, side.expand(48, 6, 4), g))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = head.sample(z[:1], previous[:1], draws=200, generator=g)[:, 0]
    sides = x.mean((1, 2))
    assert float((sides.abs() - 1).abs().mean()) < 0.15  # a head without a choice would say 0
    assert float(x.std((1, 2)).mean()) < 0.2  # the positions agree
    assert 0.3 < float((sides > 0).float().mean()) < 0.7


def test_words_are_said_with_the_table_that_reads_them():
    table = nn.Embedding(7, 16)
    head = SoftmaxHead(table)
    assert head.weight is table.weight
    z = torch.randn(3, 16, generator=generator(7))
    torch.testing.assert_close(head.logits(z), z @ table.weight.T / 4)
    assert head.logits(z.bfloat16()).dtype == torch.float32


def test_every_width_works_and_none_is_refused():
    for dim in (2, 8, 32, 48, 64, 96, 100, 128, 80):
        head = FlowHead(FRAME, 16, HeadConfig(dim=dim, depth=1))
        assert head.sample(*inputs(FRAME), steps=1).isfinite().all()
    for name in ("dim", "depth", "draws"):
        with pytest.raises(ValueError, match=f"head.{name}=0"):
            HeadConfig(**{name: 0})


def test_sigma_is_read_from_the_past_value_by_value():
    """Of still blocks and noisy ones, the samples of the still ones must be still."""
    head = new_head(FRAME)
    g = generator(6)
    noisy = (torch.arange(48) % 2).float()[:, None, None]
    z, previous = noisy.expand(48, 6, 16) * 2 - 1, torch.zeros(48, 6, 4)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(150):
        targets = torch.randn(48, 6, 4, generator=g) * noisy
        loss = flow_matching(head(z, previous, targets, g))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = head.sample(z[:2], previous[:2], draws=200, generator=g)
    still, moving = x[:, 0].std(), x[:, 1].std()
    assert float(still) < 0.1 and 0.7 < float(moving) < 1.2
