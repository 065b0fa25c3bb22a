"""Which parameters decay, and how the learning rate runs."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR


def adamw(
    module: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]
) -> AdamW:
    """AdamW; matrices decay, vectors (norms, gains, start vectors) and id tables do not."""
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    parameters = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim >= 2 and id(p) not in tables]
    chosen = {id(p) for p in decayed}
    plain = [p for p in parameters if id(p) not in chosen]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=lr, betas=betas, fused=True)


def warmup_stable_decay(
    optimizer: AdamW, *, steps: int, warmup_share: float, decay_share: float
) -> LambdaLR:
    """Linear warm-up, constant, then linear to 0 over the last `decay_share` of `steps`.

    With steps = -1 (no end known) the rate stays constant after a warm-up of 100 steps.
    """
    if steps < 1:
        return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 100))
    warmup = max(1, math.ceil(warmup_share * steps))
    decay = max(1, math.ceil(decay_share * steps))

    def factor(step: int) -> float:
        return min((step + 1) / warmup, 1.0, max(0.0, (steps - step) / decay))

    return LambdaLR(optimizer, factor)
