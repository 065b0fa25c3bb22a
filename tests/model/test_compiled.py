"""Compiled ways in and out: the same function, one compilation for any number of blocks, and copies
with weights of their own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from mmpredict.model import HeadConfig, Predictor, PredictorConfig
from mmpredict.objectives import LossWeights, next_loss
from mmpredict.schema import Batch, Layout
from mmpredict.sequence import pack
from tests import builders
from tests.builders import AUDIO, TEXT, VIDEO, generator


def model(layout: Layout = builders.LAYOUT, **config: Any) -> Predictor:
    """What begins at 0 is woken, so that every path carries signal."""
    heads = {"video": HeadConfig(dim=32, draws=2), "audio": HeadConfig(dim=32)}
    sizes = {"dim": 32, "depth": 1, "num_heads": 2} | config
    names = [spec.name for spec in layout.streams]
    heads = {name: head for name, head in heads.items() if name in names}
    predictor = Predictor(layout, PredictorConfig(heads=heads, **sizes))
    g = generator(3)
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=g))
    return predictor.train()


def frames(count: int) -> Batch:
    rows = [[builders.document({VIDEO}, seed=r, blocks=(0, count, 0))] for r in range(2)]
    return pack(rows, context_length=96)


def step(predictor: Predictor, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    predictor.zero_grad()
    loss = next_loss(predictor(batch, generator(0)), predictor.layout, LossWeights()).total
    loss.backward()
    return loss.detach(), [p.grad for p in predictor.parameters() if p.grad is not None]


def test_blocks_that_are_asked_for_are_those_of_all():
    """z and the previous block of some, whatever the horizon, are rows of those of all."""
    predictor, batch = model(horizons=(1, 2)), builders.packed_rows()
    hidden = predictor.hidden(batch)
    for modality in (AUDIO, VIDEO, TEXT):
        for ahead in (1,) if modality == TEXT else (1, 2):
            chosen = predictor.chosen(batch, modality, ahead)
            z = predictor.condition(batch, hidden, modality, ahead)
            some = predictor.condition(batch, hidden, modality, ahead, chosen)
            torch.testing.assert_close(some, z[chosen], rtol=1e-4, atol=1e-5)
            if modality != TEXT:
                before = predictor.previous(batch, modality, ahead=ahead)[chosen]
                found = predictor.previous(batch, modality, ahead=ahead, chosen=chosen)
                assert torch.equal(found, before)


@pytest.mark.slow
def test_ways_in_and_out_compile_once_and_compute_the_same():
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    plain = model(Layout((builders.LAYOUT[VIDEO],)))
    compiled = copy.deepcopy(plain)
    compiled.compile_layers()
    compiled.trunk = copy.deepcopy(plain.trunk)  # its own compilations are another test's
    graphs = []
    for count in (4, 6, 3):
        (a, a_grads), (b, b_grads) = step(plain, frames(count)), step(compiled, frames(count))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        for x, y in zip(a_grads, b_grads, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == [3, 3, 3]  # the way in, what is asked, and the head
    twin = copy.deepcopy(compiled)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.1)
    plain.load_state_dict(twin.state_dict())
    torch.testing.assert_close(
        step(twin, frames(4))[0], step(plain, frames(4))[0], rtol=1e-4, atol=0
    )
