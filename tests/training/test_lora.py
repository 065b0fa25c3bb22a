"""Adapters: nothing changes before the first step, the base never does, and base and adapters
together are one plain predictor."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mmpredict.training.lora import Lora, LoraLinear, adapt, linear_maps, merge
from tests.builders import LAYOUT, packed_rows, predictor

MAPS = ["trunk.layers.0.attention.q_proj", "trunk.layers.1.feed_forward.down_proj"]


def said(model: nn.Module) -> list[torch.Tensor]:
    prediction = model(packed_rows(), torch.Generator().manual_seed(0))
    found = [prediction.next_stream.logits_MV]
    for stream in prediction.streams.values():
        found.append(getattr(stream, "logits_MV", getattr(stream, "mean_MPD", None)))
    return found


def wake(model: nn.Module) -> None:
    """Adapters as a training leaves them."""
    for module in model.modules():
        if isinstance(module, LoraLinear):
            nn.init.normal_(module.up_OR, std=0.1)


@pytest.mark.parametrize("experts", ["none", "ffn"])
def test_at_first_nothing_changes_bit_by_bit(experts: str):
    model = predictor(experts=experts).eval()
    before = said(model)
    adapt(model, [n for n in linear_maps(model) if n.startswith("trunk")], Lora(rank=2))
    assert all(torch.equal(a, b) for a, b in zip(before, said(model), strict=True))


def test_merged_says_the_same_and_is_plain():
    model = predictor().eval()
    names = list(model.state_dict())
    adapt(model, MAPS, Lora(rank=2, alpha=3.0))
    wake(model)
    before = said(model)
    assert sorted(merge(model)) == sorted(MAPS)
    assert list(model.state_dict()) == names
    for a, b in zip(before, said(model), strict=True):
        torch.testing.assert_close(a, b)


def test_weight_is_what_the_map_comes_to():
    """Generation reads weights past `forward`."""
    model = predictor()
    adapt(model, MAPS, Lora(rank=3, alpha=6.0))
    wake(model)
    module = model.get_submodule(MAPS[0])
    x = torch.randn(5, module.in_features)
    torch.testing.assert_close(module(x), x @ module.weight.T)
    expected = module.base + 2.0 * module.up_OR @ module.down_RI
    assert torch.equal(module.weight, expected)


def test_gradients_reach_the_adapters_and_a_copy_stands_alone():
    model = predictor()
    adapt(model, MAPS, Lora(rank=2))
    other = copy.deepcopy(model)
    module, twin = model.get_submodule(MAPS[0]), other.get_submodule(MAPS[0])
    module.base.requires_grad_(False)
    module(torch.randn(4, module.in_features)).square().sum().backward()
    assert module.up_OR.grad.abs().sum() > 0 and module.base.grad is None
    with torch.no_grad():
        module.up_OR += 1
    assert not twin.up_OR.any()


def test_only_linear_maps_are_offered():
    model = predictor(LAYOUT)
    maps = linear_maps(model)
    assert "trunk.layers.0.attention.o_proj" in maps and "embed.linear.video" in maps
    assert not any("norm" in name or "tables" in name for name in maps)


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"rank": 0}, "rank=0"), ({"alpha": 0.0}, "alpha=0"), ({"targets": ()}, "targets is empty")],
)
def test_bad_settings(settings: dict, text: str):
    with pytest.raises(ValueError, match=text):
        Lora(**settings)
