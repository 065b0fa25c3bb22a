"""Which parameters are moved how, and how the learning rate runs.

In: a predictor and the settings of a recipe. Out: one torch optimiser and one schedule, so that
Lightning clips, accumulates, saves and resumes them like any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mmpredict.training.muon import MuonAdamW

FUSED = ("cpu", "cuda", "xpu", "mps")  # devices whose AdamW is one kernel
BALANCE_LR = 10.0  # of the learning rate: the weights of the losses follow the losses quickly
LEAST_SIDE = 32  # of a matrix for Muon: gates with one row per head are no maps between spaces


@dataclass(frozen=True)
class OptimizerSettings:
    """How parameters are moved.

    Args:
        kind: `adamw` for all (Loshchilov & Hutter 2019), or `muon` for the trunk's matrices (Jordan
            et al. 2024) and AdamW for the rest.
        lr: peak learning rate; Muon's updates are scaled to AdamW's size, so both share it.
        weight_decay: of matrices, in units of the learning rate.
        betas: of AdamW.
        momentum: of Muon.
        fused: AdamW in one kernel where the device has it.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = 0.95
    fused: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ("adamw", "muon"):
            raise ValueError(f"optimizer {self.kind!r} is neither 'adamw' nor 'muon'")
        if self.lr < 0 or self.weight_decay < 0:
            raise ValueError(f"lr={self.lr} and weight_decay={self.weight_decay} must be 0 or more")


def optimizer_for(
    module: nn.Module,
    settings: OptimizerSettings,
    *,
    trunk: nn.Module | None = None,
    balance: Iterable[nn.Parameter] = (),
    scales: Mapping[int, float] | None = None,
) -> Optimizer:
    """The optimiser of a predictor.

    Matrices decay; vectors (norms, gains, start vectors) and id tables do not.

    Args:
        module: its parameters that require gradients are moved.
        settings: how.
        trunk: the part of `module` whose matrices Muon takes.
        balance: weights of the losses; 10 times the learning rate, no decay.
        scales: factors on the learning rate, by id of a parameter; 1 for those not named.
    """
    hidden = _hidden_matrices(trunk) if settings.kind == "muon" and trunk is not None else []
    taken = {id(p) for p in hidden}
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    rest = [p for p in module.parameters() if p.requires_grad and id(p) not in taken]
    decayed = [p for p in rest if p.ndim >= 2 and id(p) not in tables]
    chosen = {id(p) for p in decayed}
    plain = [p for p in rest if id(p) not in chosen]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay, "name": "matrices"},
        {"params": plain, "weight_decay": 0.0, "name": "vectors"},
    ]
    groups = _scaled(groups, settings.lr, scales or {})
    if balance := list(balance):
        rate = BALANCE_LR * settings.lr
        groups.append({"params": balance, "weight_decay": 0.0, "lr": rate, "name": "balance"})
    rest = [*rest, *balance]
    fused = settings.fused and bool(rest) and all(p.device.type in FUSED for p in rest)
    adamw = AdamW(groups, lr=settings.lr, betas=settings.betas, fused=fused)
    if settings.kind == "adamw":
        return adamw
    if not hidden:
        raise ValueError(
            f"optimizer 'muon' has no matrix to move: the trunk has no linear map of at least "
            f"{LEAST_SIDE} x {LEAST_SIDE}; take 'adamw'"
        )
    moved = [{"params": hidden, "weight_decay": settings.weight_decay, "name": "hidden"}]
    return MuonAdamW(
        _scaled(moved, settings.lr, scales or {}),
        adamw,
        lr=settings.lr,
        momentum=settings.momentum,
    )


def _scaled(
    groups: list[dict[str, Any]], lr: float, scales: Mapping[int, float]
) -> list[dict[str, Any]]:
    """Each group, split by the factors on the rates of its parameters, the largest first."""
    found = []
    for group in groups:
        parts: dict[float, list[Tensor]] = {}
        for parameter in group["params"]:
            parts.setdefault(scales.get(id(parameter), 1.0), []).append(parameter)
        if parts.keys() <= {1.0}:
            found.append(group)
            continue
        for factor in sorted(parts, reverse=True):
            name = group["name"] if factor == 1.0 else f"{group['name']} x {factor:.4g}"
            found.append({**group, "params": parts[factor], "lr": lr * factor, "name": name})
    return found


def _hidden_matrices(trunk: nn.Module) -> list[Tensor]:
    return [
        m.weight
        for m in trunk.modules()
        if isinstance(m, nn.Linear) and m.weight.requires_grad and min(m.weight.shape) >= LEAST_SIDE
    ]


def warmup_stable_decay(
    optimizer: Optimizer,
    *,
    steps: int,
    warmup_share: float,
    decay_share: float,
    shape: Literal["linear", "sqrt"] = "linear",
) -> LambdaLR:
    """Linear warm-up, constant, then down to 0 over the last `decay_share` of `steps`.

    With steps = -1 (no end known) the rate stays constant after a warm-up of 100 steps. A
    checkpoint of the constant phase can go on towards any later end: the rate depends on the step
    and on the settings of the run that goes on, not on those of the run that was.

    Args:
        shape: of the decay: linear, or 1 - sqrt(progress) (Haegele et al. 2024, arXiv 2405.18392).
    """
    for name, share in (("warmup_share", warmup_share), ("decay_share", decay_share)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name}={share} must be in 0..1, a share of the steps")
    if shape not in ("linear", "sqrt"):
        raise ValueError(f"decay_shape {shape!r} is neither 'linear' nor 'sqrt'")
    if steps < 1:
        return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 100))
    warmup = max(1, math.ceil(warmup_share * steps))
    decay = max(1, math.ceil(decay_share * steps))

    def factor(step: int) -> float:
        left = min(1.0, max(0.0, (steps - step) / decay))
        falling = left if shape == "linear" else 1.0 - math.sqrt(1.0 - left)
        return min((step + 1) / warmup, falling)

    return LambdaLR(optimizer, factor)


def settings_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """All that a group of parameters is moved by, without the parameters."""
    return [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]


def restate(
    optimizer: Optimizer, schedule: LambdaLR, settings: list[dict[str, Any]]
) -> dict[str, tuple[Any, Any]]:
    """Give a resumed optimiser this run's settings: a checkpoint brings those of the run it is of,
    and torch would silently keep them.

    Args:
        settings: `settings_of` the optimiser before it was loaded.

    Returns:
        What differed in the first group: name to (of the checkpoint, of this run).
    """
    changed = {
        name: (group.get(name), wanted[name])
        for group, wanted in zip(optimizer.param_groups, settings, strict=True)
        for name in ("initial_lr", "weight_decay", "betas", "momentum")
        if name in wanted and _plain(group.get(name)) != _plain(wanted[name])
    }
    for group, wanted in zip(optimizer.param_groups, settings, strict=True):
        group.update({k: v for k, v in wanted.items() if k not in ("lr", "fused", "foreach")})
    schedule.base_lrs = [wanted["initial_lr"] for wanted in settings]
    for group, base, factor in zip(
        optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group["lr"] = base * factor(schedule.last_epoch)
    schedule._last_lr = [group["lr"] for group in optimizer.param_groups]
    return changed


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
