"""Drawing ids from logits: temperature, min-p and guidance, for words and for codes.

Shapes: N rows of logits, V ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# One generator for all that is drawn, or one for each block: what one future of a rollout draws
# must not depend on how many others there are.
Chance = torch.Generator | Sequence[torch.Generator] | None


def normal(shape: Sequence[int], *, dim: int, device: torch.device, generator: Chance) -> Tensor:
    """Standard normal noise; blocks stand along `dim`."""
    if not isinstance(generator, Sequence):
        return torch.randn(shape, generator=generator, device=device)
    of_one = (*shape[:dim], *shape[dim + 1 :])
    return torch.stack([torch.randn(of_one, generator=g, device=device) for g in generator], dim)


def guided(said: Tensor, null: Tensor, guidance: float) -> Tensor:
    """null + guidance (said - null): classifier-free guidance (Ho & Salimans 2022)."""
    return null + guidance * (said - null)


def shares(logits_NV: Tensor, *, temperature: float = 1.0, min_p: float = 0.0) -> Tensor:
    """(N, V) chances, not normalised: softmax at a temperature above 0, less all ids below `min_p`
    times the best one's (min-p sampling, Nguyen et al. 2024)."""
    share_NV = (logits_NV.float() / temperature).softmax(-1)
    if min_p > 0:
        least_N1 = min_p * share_NV.amax(-1, keepdim=True)
        share_NV = share_NV.masked_fill(share_NV < least_N1, 0.0)
    return share_NV


def pick(
    logits_NV: Tensor,
    *,
    temperature: float = 1.0,
    min_p: float = 0.0,
    generator: Chance = None,
) -> Tensor:
    """(N,) ids drawn from the logits; the most likely ones at temperature 0.

    The exponential race draws what `torch.multinomial` would, without its wait for the device.
    """
    if temperature == 0:
        return logits_NV.argmax(-1)
    share_NV = shares(logits_NV, temperature=temperature, min_p=min_p)
    if isinstance(generator, Sequence):
        parts = [torch.empty_like(share_NV[0]).exponential_(1, generator=g) for g in generator]
        wait_NV = torch.stack(parts)
    else:
        wait_NV = torch.empty_like(share_NV).exponential_(1, generator=generator)
    return (share_NV / wait_NV).argmax(-1)
