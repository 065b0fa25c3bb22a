"""The way in: every position of every stream becomes a vector of one space.

Shapes: B rows, L positions, N positions of one stream, D model width (in suffixes of vectors),
    M blocks, P positions per block, W values per position.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmpredict.model.compiled import for_any_number
from mmpredict.model.config import ContextNoise, PredictorConfig
from mmpredict.model.frame_encoder import FrameEncoder
from mmpredict.model.norm import RMSNorm
from mmpredict.schema import Batch, Layout, Statistics, StreamSpec

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

    def take(self, mean: Tensor, std: Tensor, *, own_units: bool) -> None:
        """Take over the data's statistics; values that happened not to move where they were
        measured must not explode later.

        Args:
            mean, std: of each value.
            own_units: radians beside millimetres: none says what is little of another.
        """
        if own_units:
            units = torch.where(std > STILL * mean.abs(), std, 1.0)
        else:
            units = std.clamp(min=STD_FLOOR * std.mean() if std.any() else 1.0)
        self.mean.copy_(mean)
        self.std.copy_(units)

    def forward(self, values: Tensor) -> Tensor:
        return (values.float() - self.mean).div_(self.std)

    def inverse(self, standardised: Tensor) -> Tensor:
        return standardised * self.std + self.mean


@dataclass(frozen=True)
class Seen:
    """A continuous stream of a batch as the predictor sees it, in standardised units.

    Args:
        clean_MPW: the blocks.
        seen_MPW: what the trunk is shown of them: the same, or with noise.
        level_M: bucket of each block's noise, 0 for none; None without noise.
    """

    clean_MPW: Tensor
    seen_MPW: Tensor
    level_M: Tensor | None = None


def with_noise(clean_MPW: Tensor, noise: ContextNoise, generator: torch.Generator | None) -> Seen:
    """Blocks chosen by chance, with noise of a deviation drawn by chance, block by block."""
    device, M = clean_MPW.device, len(clean_MPW)
    chosen_M = torch.rand(M, generator=generator, device=device) < noise.share
    sigma_M = torch.rand(M, generator=generator, device=device) * noise.sigma * chosen_M
    draw_MPW = torch.randn(clean_MPW.shape, generator=generator, device=device)
    bucket_M = 1 + (sigma_M / noise.sigma * noise.levels).long().clamp(max=noise.levels - 1)
    seen_MPW = clean_MPW + sigma_M[:, None, None] * draw_MPW
    return Seen(clean_MPW, seen_MPW, torch.where(chosen_M, bucket_M, 0))


class Embed(nn.Module):
    """Contents plus a vector for the stream they belong to; time and place come in as rotations
    later.

    Args:
        layout: the streams.
        config: of the predictor.
    """

    def __init__(self, layout: Layout, config: PredictorConfig) -> None:
        super().__init__()
        self.layout, self.config = layout, config
        dim = config.dim
        self.tables = nn.ModuleDict()
        self.standardise = nn.ModuleDict()
        self.encoders = nn.ModuleDict()
        self.linear = nn.ModuleDict()
        self.norm = nn.ModuleDict()
        for spec in layout.streams:
            if spec.is_discrete:
                self.tables[spec.name] = nn.Embedding(spec.vocab_size, dim)
            else:
                self.standardise[spec.name] = Standardise(spec.width)
                width = spec.width
                if spec.name in config.encoders:
                    encoder = FrameEncoder(spec, config.encoders[spec.name])
                    self.encoders[spec.name], width = encoder, encoder.width
                self.linear[spec.name] = nn.Linear(width, dim, bias=False)
            if not spec.is_discrete or config.norm_text:
                self.norm[spec.name] = RMSNorm(dim, config.norm_eps)
        self.stream = nn.Embedding(len(layout.streams), dim)
        self.index = {spec.name: index for index, spec in enumerate(layout.streams)}
        if config.context_noise.share:
            self.level = nn.Embedding(config.context_noise.levels + 1, dim)
            nn.init.zeros_(self.level.weight)
        self.run_way_in = way_in

    def compile_layers(self) -> None:
        """Compile the way in of blocks of values, for any number of them."""
        self.run_way_in = for_any_number(way_in, {3: 0, 4: 0})

    def set_statistics(self, statistics: Statistics) -> None:
        """Take over mean and deviation of the continuous streams."""
        for spec in self.layout.streams:
            if not spec.is_discrete:
                mean, std = statistics.mean[spec.modality], statistics.std[spec.modality]
                self.standardise[spec.name].take(mean, std, own_units=spec.own_units)

    def values(self, batch: Batch, modality: int) -> Tensor:
        """(M, P, W) standardised blocks of a continuous stream."""
        spec = self.layout[modality]
        values = self.standardise[spec.name](batch.contents[modality])
        return values.unflatten(0, (-1, spec.positions_per_block))

    def see(self, batch: Batch, generator: torch.Generator | None = None) -> dict[int, Seen]:
        """The continuous streams of a batch, with context noise while training."""
        seen = {}
        for spec in self.layout.streams:
            if spec.is_discrete or spec.modality not in batch.contents:
                continue
            clean_MPW = self.values(batch, spec.modality)
            if self.training and self.config.context_noise.share:
                seen[spec.modality] = with_noise(clean_MPW, self.config.context_noise, generator)
            else:
                seen[spec.modality] = Seen(clean_MPW, clean_MPW)
        return seen

    def forward(self, batch: Batch, seen: Mapping[int, Seen] | None = None) -> Tensor:
        """(B, L, D); padding is 0."""
        seen = self.see(batch) if seen is None else seen
        places = batch.placed().places
        specs = [spec for spec in self.layout.streams if spec.modality in batch.contents]
        if not specs:  # rows of padding: one of several ranks was given nothing
            return self.stream.weight.new_zeros(*batch.modality.shape, self.config.dim)
        vectors = [
            self.vectors(
                spec,
                batch.contents[spec.modality] if spec.is_discrete else seen[spec.modality],
            )
            for spec in specs
        ]
        where = torch.cat([places.positions[spec.modality] for spec in specs])
        x_ND = self.stream.weight.new_zeros(batch.modality.numel(), self.config.dim)
        x_ND = x_ND.index_copy(0, where, torch.cat(vectors).to(x_ND.dtype))
        return x_ND.view(*batch.modality.shape, -1)

    def vectors(self, spec: StreamSpec, contents: Tensor | Seen) -> Tensor:
        """(N, D): the positions of one stream, from its ids or its blocks of values."""
        if isinstance(contents, Seen):
            return self._values(spec.name, contents)
        x_ND = self.tables[spec.name](contents)
        if spec.name not in self.norm:
            return x_ND
        return self.norm[spec.name](x_ND) + self.stream.weight[self.index[spec.name]]

    def _values(self, name: str, seen: Seen) -> Tensor:
        x_MPW, level_MD = seen.seen_MPW, None
        if name in self.encoders:  # it knows values of 0..255, noise and all
            x_MPW = self.encoders[name](self.standardise[name].inverse(x_MPW))
        if seen.level_M is not None:
            level_MD = self.level(seen.level_M)
        elif self.config.context_noise.share:  # a block without noise, as in training
            level_MD = self.level.weight[:1].expand(len(x_MPW), -1)
        stream_D = self.stream.weight[self.index[name]]
        x_MPD = self.run_way_in(self.linear[name], self.norm[name], stream_D, x_MPW, level_MD)
        return x_MPD.flatten(0, 1)


def way_in(
    linear: nn.Linear, norm: RMSNorm, stream_D: Tensor, x_MPW: Tensor, level_MD: Tensor | None
) -> Tensor:
    """(M, P, D) from blocks of values, with a vector for the noise on each, if there is any."""
    x_MPD = linear(x_MPW)
    if level_MD is not None:
        x_MPD = x_MPD + level_MD[:, None]
    return norm(x_MPD) + stream_D
