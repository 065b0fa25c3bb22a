"""Where a position stands in time and space, as angles by which queries and keys are turned.

In: positions (seconds, patch row, patch column). Out: cosines and sines for `rotate`.

Shapes: B rows, L positions, H heads, E values per head, 3 axes (seconds, row, column).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmpredict.schema import TICK_S

STEPS_PER_TICK = 256  # float32 seconds are rounded to this, so that whole ticks are whole numbers


@dataclass(frozen=True)
class Llama3Scaling:
    """Slower frequencies for longer rows, as Llama 3.1 has them (`rope_type: llama3`)."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_ticks: int = 8192


@dataclass(frozen=True)
class RotaryConfig:
    """Rotary positions (Su et al. 2021) on three axes.

    Args:
        base: the slowest pair turns once in 2 pi base ticks.
        axes: `separate`: each pair of values turns with one of time, row, column. `diagonal`: the
            pairs of row and column turn with time plus row or column (M-RoPE of Qwen2-VL), so that
            text alone is turned as in a language model.
        max_ticks: positions beyond are refused; 0 for one turn of the slowest pair.
        scaling: of the frequencies.
    """

    base: float = 10_000.0
    axes: Literal["separate", "diagonal"] = "separate"
    max_ticks: int = 0
    scaling: Llama3Scaling | None = None

    @property
    def range_ticks(self) -> int:
        """How many ticks of 40 ms (or untimed tokens) a document may span."""
        return self.max_ticks or math.floor(2 * math.pi * self.base)


def frequencies(head_dim: int, config: RotaryConfig, device: torch.device | str = "cpu") -> Tensor:
    """(E/2,) radians per tick, float32."""
    pairs = torch.arange(head_dim // 2, dtype=torch.float32, device=device)
    # Not base ** -x: that is off in the last bit, which at position 4000 is 1e-4 of an angle.
    frequency = 1.0 / config.base ** (pairs / (head_dim // 2))
    if config.scaling is None:
        return frequency
    scaling = config.scaling
    turns = scaling.original_ticks * frequency / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)  # 1: as it is; 0: slowed by the factor
    return kept * frequency + (1 - kept) * frequency / scaling.factor


def rotary_table(
    positions_BL3: Tensor, head_dim: int, config: RotaryConfig = RotaryConfig()
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, 1, L, E/2) for `rotate`, float32.

    Seconds become ticks; the three axes are interleaved over the frequencies, so that each of them
    has fast and slow ones (the layout that Qwen-VL models call interleaved M-RoPE).
    """
    device = positions_BL3.device
    ticks_BL3 = in_ticks(positions_BL3, config)
    angle = ticks_BL3[..., axes(head_dim, device)] * frequencies(head_dim, config, device)
    return angle.cos()[:, None], angle.sin()[:, None]


def axes(head_dim: int, device: torch.device | str = "cpu") -> Tensor:
    """(E/2,) the axis with which each pair of values turns."""
    # Made on the device from its own numbers: constants from the host would make it wait.
    pairs = torch.arange(head_dim // 2, device=device)
    return (pairs % 2) * (pairs % 4 // 2 + 1)  # 0 1 0 2: half with time, a quarter each in space


def in_ticks(positions_BL3: Tensor, config: RotaryConfig) -> Tensor:
    """(B, L, 3) how far each position is along the axes, in ticks and patches."""
    ticks_BL3 = positions_BL3.to(torch.float32, copy=True)
    time_BL1 = ticks_BL3[..., :1]
    time_BL1.mul_(STEPS_PER_TICK / TICK_S).round_().div_(STEPS_PER_TICK)
    if config.axes == "diagonal":
        ticks_BL3[..., 1:] += time_BL1
    return ticks_BL3


def rotate(x_BHLE: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (first half, second half) by its position's angle (Su et al. 2021)."""
    cos, sin = (t.to(x_BHLE.dtype) for t in table)
    a, b = x_BHLE.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
