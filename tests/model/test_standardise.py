"""The scale of the inputs: the data's own, and never so small that a value explodes."""

from __future__ import annotations

import torch

from mmpredict.model import PredictorConfig
from mmpredict.model.embed import STD_FLOOR, Embed
from mmpredict.schema import Layout, Statistics, StreamSpec


def embed(own_units: bool, mean: list[float], std: list[float]) -> Embed:
    spec = StreamSpec(modality=3, name="x", width=len(mean), own_units=own_units)
    made = Embed(Layout((spec,)), PredictorConfig(dim=8, num_heads=1))
    made.set_statistics(Statistics(mean={3: torch.tensor(mean)}, std={3: torch.tensor(std)}))
    return made


def test_values_with_their_own_units_keep_their_own_scale():
    """A gripper in millimetres must not drown a joint in radians."""
    made = embed(True, [300.0, 0.1], [40.0, 0.01])
    raw = torch.tensor([[340.0, 0.11], [260.0, 0.09]])
    expected = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    assert torch.allclose(made.standardise["x"](raw), expected, atol=1e-4)
    assert torch.allclose(made.standardise["x"].inverse(expected), raw, atol=1e-4)


def test_a_value_that_stood_still_keeps_its_unit():
    made = embed(True, [0.0, 1000.0, 5.0], [0.0, 1e-4, 1e-2])
    assert torch.allclose(made.standardise["x"].std, torch.tensor([1.0, 1.0, 1e-2]))


def test_values_of_one_kind_hold_each_other():
    made = embed(False, [0.0, 0.0], [1.0, 0.0])
    assert torch.allclose(made.standardise["x"].std, torch.tensor([1.0, STD_FLOOR * 0.5]))
