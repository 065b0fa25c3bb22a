"""The way in: every position of every stream becomes a vector of one space.

Shapes: B rows, L positions, N positions of one stream, D model width (in suffixes of vectors).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmpredict.schema import Batch, Layout, Statistics

STD_FLOOR = 0.1  # of the stream's mean deviation
STILL = 1e-5  # of its size: a value with a unit of its own that moves less is taken to stand still


class Standardise(nn.Module):
    """Raw values (uint8 patches, log-mels) to zero mean and unit deviation, and back.

    The data's statistics are buffers, so they live in the checkpoint.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def forward(self, values: Tensor) -> Tensor:
        return (values.float() - self.mean) / self.std

    def inverse(self, standardised: Tensor) -> Tensor:
        return standardised * self.std + self.mean


class Embed(nn.Module):
    """Contents plus a vector for the stream they belong to; time and place come in as rotations
    later.

    Args:
        layout: the streams.
        dim: model width.
    """

    def __init__(self, layout: Layout, dim: int) -> None:
        super().__init__()
        self.layout = layout
        self.dim = dim
        self.tables = nn.ModuleDict()
        self.standardise = nn.ModuleDict()
        self.linear = nn.ModuleDict()
        self.norm = nn.ModuleDict()
        for spec in layout.streams:
            if spec.is_discrete:
                self.tables[spec.name] = nn.Embedding(spec.vocab_size, dim)
            else:
                self.standardise[spec.name] = Standardise(spec.width)
                self.linear[spec.name] = nn.Linear(spec.width, dim, bias=False)
            self.norm[spec.name] = nn.RMSNorm(dim)
        self.stream = nn.Embedding(len(layout.streams), dim)

    def set_statistics(self, statistics: Statistics) -> None:
        """Take over mean and deviation of the continuous streams."""
        for spec in self.layout.streams:
            if not spec.is_discrete:
                scale = self.standardise[spec.name]
                mean, std = statistics.mean[spec.modality], statistics.std[spec.modality]
                scale.mean.copy_(mean)
                # Values that happened not to move where they were measured must not explode later.
                if (
                    spec.own_units
                ):  # radians beside millimetres: none says what is little of another
                    scale.std.copy_(torch.where(std > STILL * mean.abs(), std, 1.0))
                else:
                    floor = STD_FLOOR * std.mean() if std.any() else 1.0
                    scale.std.copy_(std.clamp(min=floor))

    def values(self, batch: Batch, modality: int) -> Tensor:
        """(M, P, width) standardised blocks of a continuous stream."""
        spec = self.layout[modality]
        values = self.standardise[spec.name](batch.contents[modality])
        return values.unflatten(0, (-1, spec.positions_per_block))

    def forward(self, batch: Batch) -> Tensor:
        """(B, L, D); padding is 0."""
        x_BLD = self.stream.weight.new_zeros(*batch.modality.shape, self.dim)
        for index, spec in enumerate(self.layout.streams):
            if spec.modality not in batch.contents:
                continue
            contents = batch.contents[spec.modality]
            if spec.is_discrete:
                x_ND = self.tables[spec.name](contents)
            else:
                x_ND = self.linear[spec.name](self.standardise[spec.name](contents))
            x_ND = self.norm[spec.name](x_ND) + self.stream.weight[index]
            x_BLD = x_BLD.masked_scatter(
                (batch.modality == spec.modality)[..., None], x_ND.to(x_BLD.dtype)
            )
        return x_BLD
