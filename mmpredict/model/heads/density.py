"""How many nats a head's density gives a block, made comparable between heads.

Values of 8 bits have no density: a head that copies still pixels could win any number of bits. So
all heads are asked for the density of the block plus Gaussian noise of deviation DEQUANTISATION (in
deviations of the data), which bounds what exactness can earn: never below log(DEQUANTISATION *
sqrt(2 pi e)) = -2.49 nats per value.

Shapes: M blocks, P positions, D values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

DEQUANTISATION = 0.02  # about one grey level of 256
LOG_TWO_PI = math.log(2 * math.pi)


def noised_alike(x_MPD: Tensor, generator: torch.Generator | None) -> Tensor:
    """The blocks plus dequantisation noise, the same noise for all blocks, so that scores of blocks
    can be compared and do not depend on what else is in the batch."""
    noise_PD = torch.randn(x_MPD.shape[1:], generator=generator, device=x_MPD.device)
    return x_MPD.float() + DEQUANTISATION * noise_PD


def noised_apart(x_MPD: Tensor, generator: torch.Generator | None) -> Tensor:
    """The blocks plus dequantisation noise of each one's own, for training."""
    noise = torch.randn(x_MPD.shape, generator=generator, device=x_MPD.device)
    return x_MPD.float() + DEQUANTISATION * noise


def gaussian_nats(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """-log N(x; mean, variance), value by value."""
    return 0.5 * (LOG_TWO_PI + variance.log() + (x - mean).square() / variance)
