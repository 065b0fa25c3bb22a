"""Blocks of values as codes, and back: finite scalar quantisation in a small autoencoder.

In: standardised blocks (M, P, D). Out: codes (M, P, G), and blocks again. It is trained on its own
(training.FsqTokenizers) and then frozen inside the head that predicts its codes.

Shapes: M blocks, P positions per block, D values per position, G groups per position, C channels of
a group, V codes of a group, W width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmpredict.model.block_layer import BlockLayer
from mmpredict.model.norm import RMSNorm
from mmpredict.model.running_error import RunningError
from mmpredict.schema import StreamSpec

CHECKPOINT_ENTRY = "fsq_tokenizers"  # of a checkpoint of training.FsqTokenizers
STATE_PREFIX = "tokenizers."
FORMAT = 1
MOST_CODES = 65536
EDGE = 1e-3  # the outermost levels are reached before tanh is flat
UNITS_APART = 0.05  # in deviations: statistics are measured on samples


@dataclass(frozen=True)
class FsqConfig:
    """Sizes of a tokenizer.

    Args:
        levels: of the channels of a group; their product is the number of codes.
        codes_per_position: groups.
        dim: width.
        depth: layers on the way in, and as many on the way back.
        width, rows, cols: of the stream's blocks; filled in from the data.
    """

    levels: tuple[int, ...] = (8, 5, 5, 5)
    codes_per_position: int = 2
    dim: int = 128
    depth: int = 2
    width: int = 0
    rows: int = 0
    cols: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        if not self.levels or min(self.levels) < 2 or math.prod(self.levels) > MOST_CODES:
            raise ValueError(
                f"levels={list(self.levels)} must be 2 or more each, with a product of at most "
                f"{MOST_CODES} (it is {math.prod(self.levels)})"
            )
        for name in ("codes_per_position", "dim", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    def of(self, spec: StreamSpec) -> FsqConfig:
        """The same for the blocks of a stream; ValueError if it was made for others."""
        mine = (self.width, self.rows, self.cols)
        theirs = (spec.width, spec.rows, spec.cols)
        if mine not in ((0, 0, 0), theirs):
            raise ValueError(
                f"the tokenizer of {spec.name} was made for blocks of {mine[1]} x {mine[2]} "
                f"positions of {mine[0]} values; this run has {theirs[1]} x {theirs[2]} of "
                f"{theirs[0]}: train a tokenizer on these data"
            )
        return replace(self, width=spec.width, rows=spec.rows, cols=spec.cols)


class Quantiser(nn.Module):
    """Finite scalar quantisation (Mentzer et al. 2023): every channel is squeezed between its
    outermost levels and rounded; the code is the number that the levels spell. Nothing is learned,
    so no code can die out.

    Args:
        levels: of each channel.
    """

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.num_codes = math.prod(levels)
        steps = torch.tensor(levels)
        basis = torch.tensor([math.prod(levels[:c]) for c in range(len(levels))])
        half = (steps - 1) * (1 + EDGE) / 2
        offset = torch.where(steps % 2 == 0, 0.5, 0.0)  # an even number has no level at 0
        for name, value in {
            "steps_C": steps, "basis_C": basis, "half_C": half, "offset_C": offset,
            "shift_C": (offset / half).atanh(),
        }.items():  # fmt: skip
            self.register_buffer(name, value, persistent=False)

    def forward(self, x_C: Tensor) -> Tensor:
        """(..., C) levels between -1 and 1; the gradient is that of the squeezing alone."""
        squeezed = (x_C.float() + self.shift_C).tanh() * self.half_C - self.offset_C
        rounded = squeezed + (squeezed.round() - squeezed).detach()
        return rounded / (self.steps_C // 2)

    def codes(self, levels_C: Tensor) -> Tensor:
        """(...) codes of levels (..., C)."""
        half_C = self.steps_C // 2
        return ((levels_C * half_C + half_C).round().long() * self.basis_C).sum(-1)

    def levels(self, codes: Tensor) -> Tensor:
        """(..., C) levels of codes (...): undoes `codes` exactly."""
        half_C = self.steps_C // 2
        return (codes[..., None] // self.basis_C % self.steps_C - half_C) / half_C


class BlockTokenizer(nn.Module):
    """An autoencoder over the positions of a block, with a quantiser in its waist.

    Position by position it is linear, and begins so; networks over the whole block add to that on
    both sides. (Through the networks alone a norm would hide how bright a patch is.)

    Args:
        spec: the stream.
        config: sizes.
    """

    def __init__(self, spec: StreamSpec, config: FsqConfig) -> None:
        super().__init__()
        self.config = config.of(spec)
        P, D, dim = spec.positions_per_block, spec.width, config.dim
        self.quantiser = Quantiser(config.levels)
        self.num_codes = self.quantiser.num_codes
        channels = config.codes_per_position * len(config.levels)
        self.from_values = nn.Linear(D, dim, bias=False)
        self.place_in = nn.Parameter(0.02 * torch.randn(P, dim))
        self.layers_in = nn.ModuleList(BlockLayer(dim, P) for _ in range(config.depth))
        self.norm_in = RMSNorm(dim)
        self.to_channels = nn.Linear(dim, channels)
        self.straight_in = nn.Linear(D, channels, bias=False)
        self.from_channels = nn.Linear(channels, dim, bias=False)
        self.place_out = nn.Parameter(0.02 * torch.randn(P, dim))
        self.layers_out = nn.ModuleList(BlockLayer(dim, P) for _ in range(config.depth))
        self.norm_out = RMSNorm(dim)
        self.to_values = nn.Linear(dim, D)
        self.straight_out = nn.Linear(channels, D, bias=False)
        nn.init.zeros_(self.to_channels.weight)
        nn.init.zeros_(self.to_values.weight)
        self.error = RunningError(D)
        # The units that it was trained in; deviations of 0 before that.
        self.register_buffer("mean_D", torch.zeros(D))
        self.register_buffer("std_D", torch.zeros(D))

    def forward(self, values_MPD: Tensor) -> tuple[Tensor, Tensor]:
        """The blocks after the waist (M, P, D), and their levels (M, P, G, C)."""
        levels = self.waist(values_MPD)
        return self.after_waist(levels), levels

    def waist(self, values_MPD: Tensor) -> Tensor:
        """(M, P, G, C) levels."""
        h = self.from_values(values_MPD) + self.place_in
        for layer in self.layers_in:
            h = layer(h)
        channels = self.straight_in(values_MPD) + self.to_channels(self.norm_in(h))
        return self.quantiser(channels.unflatten(-1, (-1, len(self.config.levels))))

    def after_waist(self, levels_MPGC: Tensor) -> Tensor:
        """(M, P, D) float32."""
        levels = levels_MPGC.flatten(-2)
        h = self.from_channels(levels) + self.place_out
        for layer in self.layers_out:
            h = layer(h)
        return (self.straight_out(levels) + self.to_values(self.norm_out(h))).float()

    @torch.no_grad()
    def encode(self, values_MPD: Tensor) -> Tensor:
        """(M, P, G) codes."""
        return self.quantiser.codes(self.waist(values_MPD))

    @torch.no_grad()
    def decode(self, codes_MPG: Tensor) -> Tensor:
        """(M, P, D) values."""
        return self.after_waist(self.quantiser.levels(codes_MPG))

    def check_statistics(self, mean_D: Tensor, std_D: Tensor, name: str) -> None:
        """Raise ValueError unless the data are measured in the units it was trained in."""
        if not self.std_D.any():
            raise ValueError(
                f"the tokenizer of {name} has no trained weights; name its checkpoint with "
                f"predictor.heads.{name}.tokenizer"
            )
        shift = float(((mean_D - self.mean_D) / self.std_D).abs().max())
        ratio = float((std_D / self.std_D).log().abs().max())
        if max(shift, ratio) > UNITS_APART:
            raise ValueError(
                f"the tokenizer of {name} was trained on data with other statistics: means differ "
                f"by up to {shift:.2g} deviations, deviations by a factor of up to "
                f"{math.exp(ratio):.2f}; train a tokenizer on these data"
            )


def read_tokenizer(path: str | Path, spec: StreamSpec) -> tuple[FsqConfig, dict[str, Tensor]]:
    """Sizes and weights of a stream's tokenizer, from a checkpoint of training.FsqTokenizers.

    Only tensors and plain types are read (`weights_only=True`).
    """
    if not Path(path).is_file():
        raise ValueError(
            f"predictor.heads.{spec.name}.tokenizer: {path} does not exist; train one with "
            "mmpredict fit --config recipes/fsq_tokenizer.yaml and name its ckpt/last.ckpt"
        )
    try:
        checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"tokenizer {path} cannot be read: {reason}") from error
    about = checkpoint.get(CHECKPOINT_ENTRY) if isinstance(checkpoint, Mapping) else None
    if about is None:
        raise ValueError(f"{path} is not a checkpoint of FsqTokenizers; it holds no tokenizers")
    if about["format"] > FORMAT:
        raise ValueError(
            f"tokenizer {path} has format {about['format']}, this version reads up to {FORMAT}; "
            "install a newer mmpredict"
        )
    streams = about["streams"]
    if spec.name not in streams:
        raise ValueError(
            f"{path} has no tokenizer of {spec.name}; it has those of {', '.join(sorted(streams))}"
        )
    config = FsqConfig(**streams[spec.name]).of(spec)
    prefix = f"{STATE_PREFIX}{spec.name}."
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(prefix)
    }
    return config, state
