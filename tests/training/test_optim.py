"""Laws of the schedule and of what decays."""

from __future__ import annotations

import torch
from torch import nn

from mmpredict.training.optim import adamw, warmup_stable_decay


def rates(steps: int, shown: int) -> list[float]:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=1.0)
    schedule = warmup_stable_decay(optimizer, steps=steps, warmup_share=0.1, decay_share=0.3)
    seen = []
    for _ in range(shown):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_rises_stays_and_falls_to_zero():
    seen = rates(100, 101)
    assert seen[0] == 0.1 and seen[9] == 1.0
    assert seen[9:70] == [1.0] * 61
    assert all(a > b for a, b in zip(seen[70:100], seen[71:101], strict=True))
    assert seen[99] > 0 and seen[100] == 0


def test_without_an_end_the_rate_stays():
    seen = rates(-1, 300)
    assert seen[0] == 0.01 and seen[150:] == [1.0] * 150


def test_only_matrices_decay_and_tables_do_not():
    module = nn.ModuleDict(
        {"table": nn.Embedding(5, 4), "linear": nn.Linear(4, 4), "norm": nn.RMSNorm(4)}
    )
    module["frozen"] = nn.Linear(4, 4).requires_grad_(False)
    optimizer = adamw(module, lr=1.0, weight_decay=0.5, betas=(0.9, 0.95))
    decayed, plain = optimizer.param_groups
    assert [p is module["linear"].weight for p in decayed["params"]] == [True]
    assert decayed["weight_decay"] == 0.5 and plain["weight_decay"] == 0.0
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in module.parameters() if p.requires_grad}
