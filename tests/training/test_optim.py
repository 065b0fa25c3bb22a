"""Laws of the schedule, of what decays, and of a run that goes on with other settings."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mmpredict.training.optim import (
    OptimizerSettings,
    optimizer_for,
    restate,
    settings_of,
    warmup_stable_decay,
)


def rates(steps: int, shown: int, shape: str = "linear") -> list[float]:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=1.0)
    schedule = warmup_stable_decay(
        optimizer, steps=steps, warmup_share=0.1, decay_share=0.3, shape=shape
    )
    seen = []
    for _ in range(shown):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize("shape", ["linear", "sqrt"])
def test_rises_stays_and_falls_to_zero(shape: str):
    seen = rates(100, 101, shape)
    assert seen[0] == 0.1 and seen[9] == 1.0
    assert seen[9:71] == [1.0] * 62
    assert all(a > b for a, b in zip(seen[70:100], seen[71:101], strict=True))
    assert seen[99] > 0 and seen[100] == 0
    progress = 15 / 30
    halfway = 1 - (progress if shape == "linear" else math.sqrt(progress))
    assert seen[85] == pytest.approx(halfway)


def test_without_an_end_the_rate_stays():
    seen = rates(-1, 300)
    assert seen[0] == 0.01 and seen[150:] == [1.0] * 150


def test_a_share_of_one_decays_from_the_first_step():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=1.0)
    warmup_stable_decay(optimizer, steps=10, warmup_share=0.0, decay_share=1.0)
    assert optimizer.param_groups[0]["lr"] == 1.0
    for wrong in (-0.1, 1.5):
        with pytest.raises(ValueError, match="decay_share"):
            warmup_stable_decay(optimizer, steps=10, warmup_share=0.0, decay_share=wrong)


def module() -> nn.ModuleDict:
    parts = nn.ModuleDict(
        {"table": nn.Embedding(5, 4), "linear": nn.Linear(4, 4), "norm": nn.RMSNorm(4)}
    )
    parts["frozen"] = nn.Linear(4, 4).requires_grad_(False)
    return parts


def test_only_matrices_decay_and_tables_do_not():
    parts = module()
    optimizer = optimizer_for(parts, OptimizerSettings(lr=1.0, weight_decay=0.5))
    decayed, plain = optimizer.param_groups
    assert [p is parts["linear"].weight for p in decayed["params"]] == [True]
    assert decayed["weight_decay"] == 0.5 and plain["weight_decay"] == 0.0
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in parts.parameters() if p.requires_grad}


def test_weights_of_the_losses_move_ten_times_as_fast_and_do_not_decay():
    balance = nn.Parameter(torch.zeros(()))
    optimizer = optimizer_for(module(), OptimizerSettings(lr=0.01), balance=[balance])
    *_, group = optimizer.param_groups
    assert group["params"] == [balance] and group["weight_decay"] == 0
    assert group["lr"] == pytest.approx(0.1)
    schedule = warmup_stable_decay(optimizer, steps=10, warmup_share=0.2, decay_share=0.5)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.005, 0.005, 0.05])
    assert schedule.base_lrs == pytest.approx([0.01, 0.01, 0.1])


def test_a_resumed_run_is_moved_by_its_own_settings():
    """torch would keep the checkpoint's; the moments are kept, of course."""

    def run(lr: float, decay: float, steps: int):
        optimizer = optimizer_for(parts, OptimizerSettings(lr=lr, weight_decay=decay))
        schedule = warmup_stable_decay(optimizer, steps=steps, warmup_share=0.1, decay_share=0.2)
        return optimizer, schedule, settings_of(optimizer)

    parts = module()
    optimizer, schedule, _ = run(0.1, 0.3, 10)
    for _ in range(5):
        for parameter in parts.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        schedule.step()
    saved = optimizer.state_dict(), schedule.state_dict()

    same, same_schedule, own = run(0.1, 0.3, 10)
    same.load_state_dict(saved[0])
    same_schedule.load_state_dict(saved[1])
    assert restate(same, same_schedule, own) == {}
    assert same.state_dict()["param_groups"] == saved[0]["param_groups"]

    other, other_schedule, own = run(0.05, 0.0, 100)  # a later end, so the rate stays up
    other.load_state_dict(saved[0])
    other_schedule.load_state_dict(saved[1])
    changed = restate(other, other_schedule, own)
    assert changed == {"initial_lr": (0.1, 0.05), "weight_decay": (0.3, 0.0)}
    assert other.param_groups[0]["lr"] == pytest.approx(0.05 * 6 / 10)
    assert other.param_groups[0]["weight_decay"] == 0.0
    weight = parts["linear"].weight
    assert torch.equal(other.state[weight]["exp_avg"], optimizer.state[weight]["exp_avg"])
    for _ in range(20):
        other_schedule.step()
    assert other.param_groups[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize("wrong", [{"kind": "sgd"}, {"lr": -1.0}, {"weight_decay": -0.1}])
def test_wrong_settings_are_refused(wrong: dict):
    with pytest.raises(ValueError, match=next(iter(wrong)).replace("kind", "sgd")):
        OptimizerSettings(**wrong)
