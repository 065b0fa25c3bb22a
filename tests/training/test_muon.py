"""Laws of Muon beside AdamW in one optimiser."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

from mmpredict.training.muon import MuonAdamW
from mmpredict.training.optim import OptimizerSettings, optimizer_for, warmup_stable_decay

LR = 0.02


def small(seed: int = 0) -> nn.ModuleDict:
    torch.manual_seed(seed)
    return nn.ModuleDict(
        {
            "table": nn.Embedding(7, 32),
            "trunk": nn.Sequential(nn.Linear(32, 48, bias=False), nn.Linear(48, 32)),
            "gate": nn.Linear(32, 4),
        }
    )


def built(module: nn.ModuleDict) -> MuonAdamW:
    settings = OptimizerSettings("muon", lr=LR, weight_decay=0.1)
    optimizer = optimizer_for(module, settings, trunk=module["trunk"])
    assert isinstance(optimizer, MuonAdamW)
    return optimizer


def give_gradients(module: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def walk(module: nn.ModuleDict, optimizer: Any, steps: range, schedule: Any = None) -> None:
    for step in steps:
        give_gradients(module, step)
        optimizer.step()
        if schedule is not None:
            schedule.step()


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_hidden_matrices_move_along_an_orthogonal_matrix_of_adamws_size():
    module = small()
    weight = module["trunk"][0].weight
    before = weight.detach().clone()
    walk(module, built(module), range(1))
    step = (before * (1 - LR * 0.1) - weight.detach()) / LR
    values = torch.linalg.svdvals(step) / (0.2 * 48**0.5)
    assert 0.5 < float(values.min()) and float(values.max()) < 1.3
    # 0.2 sqrt(max) on an orthogonal matrix: each entry moves by about 0.2 of the rate
    assert float(step.square().mean().sqrt()) == pytest.approx(0.2, rel=0.2)


def test_equals_torchs_own_two_optimisers_bit_by_bit():
    ours, theirs = small(), small()
    walk(ours, built(ours), range(4))
    hidden = [layer.weight for layer in theirs["trunk"]]
    rest = {n: p for n, p in theirs.named_parameters() if all(p is not h for h in hidden)}
    muon = torch.optim.Muon(hidden, lr=LR, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    decayed = [rest.pop("gate.weight")]
    groups = [
        {"params": decayed, "weight_decay": 0.1},
        {"params": list(rest.values()), "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), fused=True)
    for step in range(4):
        give_gradients(theirs, step)
        muon.step()
        adamw.step()
    assert equal(weights(ours), weights(theirs))


def test_two_steps_saved_and_two_more_equal_four():
    module = small()
    optimizer = built(module)
    walk(module, optimizer, range(2))
    file = io.BytesIO()
    torch.save([module.state_dict(), optimizer.state_dict()], file)
    walk(module, optimizer, range(2, 4))

    resumed = small(seed=1)
    second = built(resumed)
    file.seek(0)
    values, state = torch.load(file, weights_only=True)
    resumed.load_state_dict(values)
    second.load_state_dict(state)
    walk(resumed, second, range(2, 4))
    assert equal(weights(module), weights(resumed))
    assert {name for s in second.state.values() for name in s} == {
        "momentum_buffer",
        "exp_avg",
        "exp_avg_sq",
        "step",
    }


def test_the_schedule_moves_both_parts():
    module = small()
    optimizer = built(module)
    schedule = warmup_stable_decay(optimizer, steps=10, warmup_share=0.5, decay_share=0.5)
    first = weights(module)
    walk(module, optimizer, range(1), schedule)
    assert {g["lr"] for g in optimizer.param_groups} == {2 * LR / 5}
    walk(module, optimizer, range(1, 10), schedule)
    assert {g["lr"] for g in optimizer.param_groups} == {0.0}
    last = weights(module)
    walk(module, optimizer, range(10, 11))
    assert equal(last, weights(module))  # a rate of 0 moves nothing, in neither part
    assert not any(torch.equal(a, b) for a, b in zip(first, last, strict=True))


def test_a_closure_is_called_once_with_gradients_on():
    module = small()
    calls: list[bool] = []

    def closure() -> float:
        calls.append(torch.is_grad_enabled())
        give_gradients(module, 0)
        return 3.0

    assert built(module).step(closure) == 3.0
    assert calls == [True]


def test_a_trunk_without_matrices_is_refused():
    with pytest.raises(ValueError, match="no linear map of at least 32 x 32"):
        optimizer_for(small(), OptimizerSettings("muon"), trunk=nn.Linear(8, 8))
