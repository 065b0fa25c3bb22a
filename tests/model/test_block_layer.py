"""Attention inside a block is attention, forward and back, however it is computed."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mmpredict.model.block_layer import SmallAttention
from tests.builders import generator


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("positions", [2, 5])
def test_small_attention_and_its_gradients_are_those_of_the_library(causal: bool, positions: int):
    g = generator(0)
    q, k, v, weight = torch.randn(4, 6, positions, 3, generator=g, dtype=torch.float64)
    mine = [x.clone().requires_grad_() for x in (q, k, v)]
    theirs = [x.clone().requires_grad_() for x in (q, k, v)]
    said = SmallAttention.apply(*mine, causal)
    expected = F.scaled_dot_product_attention(*theirs, is_causal=causal, scale=1.0)
    torch.testing.assert_close(said, expected)
    (said * weight).sum().backward()
    (expected * weight).sum().backward()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_in_bfloat16_shares_and_their_gradients_are_weighed_in_float32():
    """Gradients stay as near to the exact ones as bfloat16 inputs allow."""
    g = generator(1)
    exact = [torch.randn(8, 16, 32, generator=g).bfloat16().double() for _ in range(4)]
    sides = []
    for dtype in (torch.float64, torch.bfloat16):
        q, k, v = (x.to(dtype, copy=True).requires_grad_() for x in exact[:3])
        SmallAttention.apply(q * 32**-0.5, k, v, False).backward(exact[3].to(dtype))
        sides.append([x.grad.double() for x in (q, k, v)])
    for truth, found in zip(*sides, strict=True):
        assert float((truth - found).norm() / truth.norm()) < 0.01
