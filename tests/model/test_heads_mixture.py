"""Laws of the mixture head: a density, causal inside the block, that learns what it is shown."""

from __future__ import annotations

import math

import pytest
import torch

from mmpredict.model.heads.density import DEQUANTISATION, gaussian_nats
from mmpredict.model.heads.mixture import Mixture
from mmpredict.objectives.losses import LossWeights, _values_loss
from mmpredict.schema import StreamSpec
from tests.builders import generator
from tests.model.heads_small import FRAME, NUMBER, Z, inputs, new_head

PAIR = StreamSpec(modality=0, name="audio", width=1, rows=1, cols=2)


def test_a_position_sees_the_positions_before_it_only():
    """And z of its own position or before; all of z comes through the mean."""
    head = new_head(FRAME, "gmm")
    z, previous, targets = inputs(FRAME)
    x = targets.clone().requires_grad_()
    nats_MP = head.mixture(z, head.mean(z, previous), x).nats(targets)
    for p in range(6):
        (grad,) = torch.autograd.grad(nats_MP[:, p].sum(), x, retain_graph=True)
        assert not grad[:, p:].any()
        assert all(grad[:, q].any() for q in range(p))


def test_blocks_do_not_see_each_other():
    head = new_head(FRAME, "gmm")
    z, previous, targets = inputs(FRAME)
    x = targets.clone().requires_grad_()
    nats_MP = head.mixture(z, head.mean(z, previous), x).nats(x)
    (grad,) = torch.autograd.grad(nats_MP[2].sum(), x)
    assert grad[2].any() and not grad[[0, 1, 3, 4]].any()


def test_the_density_of_a_block_integrates_to_one():
    """Over both values of a block of two positions, by the sum over a fine grid."""
    head = new_head(PAIR, "gmm", components=3)
    z, previous, _ = inputs(PAIR, blocks=1)
    grid = torch.linspace(-10, 10, 201)
    x = torch.cartesian_prod(grid, grid)[:, :, None]
    many = (len(x), -1, -1)
    with torch.no_grad():
        mixture = head.mixture(z.expand(many), head.mean(z, previous).expand(many), x)
        mass = (-mixture.nats(x).sum(1)).exp().sum() * float(grid[1] - grid[0]) ** 2
    assert float(mass) == pytest.approx(1, abs=5e-3)


def test_nats_of_one_gaussian_are_its_formula():
    g = generator(0)
    x, mean, log_sigma = torch.randn(3, 7, 4, generator=g)
    said = Mixture(torch.zeros(7, 1), mean[:, None], log_sigma[:, None])
    variance = (2 * log_sigma).exp() + DEQUANTISATION**2
    torch.testing.assert_close(said.nats(x), gaussian_nats(x, mean, variance).sum(-1))
    normal = torch.distributions.Normal(mean, variance.sqrt())
    torch.testing.assert_close(said.nats(x), -normal.log_prob(x).sum(-1))


def test_drawing_one_after_the_other_is_what_teacher_forcing_says():
    """A cold sample: each value is the likeliest component's mean, given those drawn before."""
    head = new_head(FRAME, "gmm")
    z, previous, _ = inputs(FRAME)
    drawn = head.sample(z, previous, temperature=0)[0]
    with torch.no_grad():
        said = head.mixture(z, head.mean(z, previous), drawn)
    best = said.logits_K.argmax(-1)[..., None, None].expand(-1, -1, 1, 4)
    torch.testing.assert_close(said.mean_KD.gather(2, best)[:, :, 0], drawn, atol=1e-4, rtol=1e-4)


def fit(head: torch.nn.Module, spec: StreamSpec, draw, steps: int) -> None:
    z = torch.zeros(256, spec.positions_per_block, Z)
    previous = torch.zeros(256, spec.positions_per_block, spec.width)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    g = generator(6)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1.0, 2 * (1 - step / steps))
        loss = _values_loss(head(z, previous, draw(g), g), "x", LossWeights(), {})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def two_sided(g: torch.Generator) -> torch.Tensor:
    """-1 with chance 0.3, else 1, each with deviation 0.1."""
    side = (torch.rand(256, 1, 1, generator=g) > 0.3) * 2.0 - 1
    return side + 0.1 * torch.randn(256, 1, 1, generator=g)


@pytest.mark.parametrize(("kind", "slack"), [("gmm", 0.05), ("flow", 0.25)])
def test_two_possible_values_are_learned_with_their_chances(kind: str, slack: float):
    """Samples have the mixture's chances, mean and spread; nats come near its entropy."""
    head = new_head(NUMBER, kind)
    fit(head, NUMBER, two_sided, steps=300)
    z, previous = torch.zeros(1, 1, Z), torch.zeros(1, 1, 1)
    x = head.sample(z, previous, draws=2000, steps=30, generator=generator(1)).flatten()
    low = x < 0
    assert 0.25 < float(low.float().mean()) < 0.35
    assert float(x[low].mean()) == pytest.approx(-1, abs=0.07)
    assert float(x[~low].mean()) == pytest.approx(1, abs=0.07)
    assert 0.05 < float(x[~low].std()) < 0.15
    truth = torch.cat([two_sided(generator(9 + n)) for n in range(8)])
    many = (len(truth), 1, -1)
    # one noise serves all blocks, so an average over noises takes several calls
    nats = torch.stack(
        [head.nats(z.expand(many), previous.expand(many), truth, generator(n)) for n in range(8)]
    )
    chances = -0.3 * math.log(0.3) - 0.7 * math.log(0.7)
    entropy = chances + 0.5 * math.log(2 * math.pi * math.e * (0.01 + DEQUANTISATION**2))
    assert entropy - 0.03 < float(nats.mean()) < entropy + slack


def test_positions_agree():
    """Blocks are all +1 or all -1: after the first position the others are known."""
    head = new_head(FRAME, "gmm", components=2)

    def sides(g: torch.Generator) -> torch.Tensor:
        side = torch.randint(2, (256, 1, 1), generator=g) * 2.0 - 1
        return side.expand(256, 6, 4) + 0.1 * torch.randn(256, 6, 4, generator=g)

    fit(head, FRAME, sides, steps=60)
    z, previous = torch.zeros(1, 6, Z), torch.zeros(1, 6, 4)
    x = head.sample(z, previous, draws=200, generator=generator(1))[:, 0].mean(2)
    assert 0.3 < float((x[:, 0] > 0).float().mean()) < 0.7
    assert float((x.sign() == x[:, :1].sign()).float().mean()) > 0.97


def test_min_p_leaves_unlikely_components_out():
    head = new_head(NUMBER, "gmm", components=2)
    with torch.no_grad():
        head.to_mixture.weight.zero_()
        head.to_mixture.bias.copy_(torch.tensor([0.0, -2.0, 5.0, -5.0, -3.0, -3.0]))
    z, previous = torch.zeros(1, 1, Z), torch.zeros(1, 1, 1)

    def share_low(min_p: float) -> float:
        x = head.sample(z, previous, draws=2000, min_p=min_p, generator=generator(1))
        return float((x - head.mean(z, previous).detach() < 0).float().mean())

    assert share_low(0.0) == pytest.approx(1 / (1 + math.e**2), abs=0.03)
    assert share_low(0.1) > 0.05 and share_low(0.2) == 0
