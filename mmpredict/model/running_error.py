"""The mean squared error of a training so far: the variance of a density around what was said.

Shapes: D values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

FORGET = 0.01  # share of the newest batch, once a hundred have been seen


class RunningError(nn.Module):
    """A running mean of squared errors, value by value; 1 before the first.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("value_D", torch.ones(width))
        self.register_buffer("batches", torch.zeros(()))

    @torch.no_grad()
    def add(self, said_MPD: Tensor, truth_MPD: Tensor) -> None:
        """Count a batch."""
        error_D = (said_MPD.float() - truth_MPD.float()).square().mean((0, 1))
        self.batches += 1
        self.value_D.lerp_(error_D, (1 / self.batches).clamp(min=FORGET))
