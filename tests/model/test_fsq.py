"""Laws of finite scalar quantisation and of the autoencoder around it."""

from __future__ import annotations

import math

import pytest
import torch

from mmpredict.model.fsq import BlockTokenizer, FsqConfig, Quantiser
from tests.builders import generator
from tests.model.heads_small import CHUNK, CODES, FRAME

LEVELS = pytest.mark.parametrize(
    "levels", [(8, 5, 5, 5), (2,), (3, 2), (7, 5, 5, 5, 5), (8, 8, 8, 6, 5)], ids=str
)


@LEVELS
def test_codes_to_levels_to_codes_is_the_identity(levels: tuple[int, ...]):
    quantiser = Quantiser(levels)
    codes = torch.arange(math.prod(levels))
    values = quantiser.levels(codes)
    assert torch.equal(quantiser.codes(values), codes)
    assert len(values.unique(dim=0)) == len(codes) and float(values.abs().max()) <= 1


@LEVELS
def test_every_code_can_be_reached_and_no_other(levels: tuple[int, ...]):
    quantiser = Quantiser(levels)
    x = 3 * torch.randn(200_000, len(levels), generator=generator(0))
    codes = quantiser.codes(quantiser(x))
    assert int(codes.min()) >= 0 and int(codes.max()) < quantiser.num_codes
    edge = torch.cartesian_prod(*[torch.tensor([-50.0, 50.0])] * len(levels))
    edge = edge.view(-1, len(levels))
    for c, count in enumerate(levels):
        found = quantiser(x)[:, c].unique()
        assert len(found) == count
        ends = quantiser(edge)[:, c]
        assert torch.equal(ends.unique(), found[[0, -1]])  # no level outside, however far


@LEVELS
def test_levels_stay_levels(levels: tuple[int, ...]):
    """Quantising what was quantised, before the squeeze, changes nothing."""
    quantiser = Quantiser(levels)
    codes = torch.arange(quantiser.num_codes)
    inner = quantiser.levels(codes) * (quantiser.steps_C // 2) + quantiser.offset_C
    x = (inner / quantiser.half_C).atanh() - quantiser.shift_C
    assert torch.equal(quantiser.codes(quantiser(x)), codes)


def test_the_gradient_goes_straight_through_the_rounding():
    quantiser = Quantiser((8, 5))
    x = torch.randn(6, 2, generator=generator(1), requires_grad=True)
    quantiser(x).sum().backward()
    squeezed = ((x + quantiser.shift_C).tanh() * quantiser.half_C) / (quantiser.steps_C // 2)
    (expected,) = torch.autograd.grad(squeezed.sum(), x)
    torch.testing.assert_close(x.grad, expected)
    assert bool((x.grad > 0).all())


@pytest.mark.parametrize("spec", [FRAME, CHUNK], ids=["frame", "chunk"])
def test_encode_and_decode_are_the_two_halves(spec):
    tokenizer = BlockTokenizer(spec, CODES)
    x = torch.randn(7, spec.positions_per_block, 4, generator=generator(2))
    again, levels = tokenizer(x)
    codes = tokenizer.encode(x)
    assert codes.shape == (7, spec.positions_per_block, 2)
    assert torch.equal(tokenizer.quantiser.levels(codes), levels.detach())
    torch.testing.assert_close(tokenizer.decode(codes), again)


def test_training_uses_the_codes_and_brings_the_values_back():
    """Values on a ring: 60 codes for 2 values, nearly all that the ring needs in use."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = BlockTokenizer(
            CHUNK, FsqConfig(levels=(8, 8), codes_per_position=1, dim=32, depth=1)
        )
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=5e-3)
    g = generator(3)
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min(1.0, 2 * (1 - step / 400))
        angle = 2 * math.pi * torch.rand(256, 1, 1, generator=g)
        x = torch.cat([angle.sin(), angle.cos(), (2 * angle).sin(), (2 * angle).cos()], -1)
        again, _ = tokenizer(x)
        loss = (again - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02  # the variance is 0.5
    assert len(tokenizer.encode(x).unique()) > 25


def test_sizes_are_checked():
    for levels in ((), (1, 5), (256, 257)):
        with pytest.raises(ValueError, match="product of at most 65536"):
            FsqConfig(levels=levels)
    for name in ("codes_per_position", "dim", "depth"):
        with pytest.raises(ValueError, match=f"{name}=0"):
            FsqConfig(**{name: 0})
    assert FsqConfig(levels=[4, 3]) == FsqConfig(levels=(4, 3))  # as a recipe gives them
