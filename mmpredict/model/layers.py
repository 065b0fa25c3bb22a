"""What a layer is made of. In and out: (..., D) vectors, one per position.

Shapes: B rows, L positions, D model width, S streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmpredict.model.attention import Attention, AttentionConfig
from mmpredict.model.fast_weights import FastWeights, FastWeightsConfig
from mmpredict.model.norm import RMSNorm
from mmpredict.model.sight import Sight


class SwiGLU(nn.Module):
    """Gated feed-forward without biases (Shazeer 2020), `hidden` wide inside."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def hidden_width(dim: int) -> int:
    """8/3 of the width, in whole 64s: as many parameters as a plain feed-forward of 4 times."""
    return 64 * max(1, round(dim * 8 / 3 / 64))


@dataclass(frozen=True)
class LayerConfig:
    """One layer of the trunk.

    Args:
        dim: model width.
        hidden: inner width of the feed-forward.
        attention: of the layer.
        fast_weights: None for a layer without.
        experts: names of the streams with a feed-forward and norms of their own; () shares them.
        norm_eps: of the norms.
    """

    dim: int
    hidden: int
    attention: AttentionConfig
    fast_weights: FastWeightsConfig | None = None
    experts: tuple[str, ...] = ()
    norm_eps: float = 1e-6


@dataclass(frozen=True)
class Rows:
    """What the layers are told of a batch beside its vectors. Built once, used by every layer.

    Args:
        sight: who looks at whom.
        table: cosines and sines of the positions.
        first_BL: True where a document begins (for fast weights).
        stream_BL: index of each position's stream (for experts), -1 in padding.
        members: flat positions of each stream (for experts).
    """

    sight: Sight | None
    table: tuple[Tensor, Tensor] | None
    first_BL: Tensor | None = None
    stream_BL: Tensor | None = None
    members: Sequence[Tensor] = ()


class StreamNorm(nn.Module):
    """A norm with gains of its own for each stream."""

    def __init__(self, num_streams: int, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_streams, dim))
        self.eps = eps

    def forward(self, x_BLD: Tensor, rows: Rows) -> Tensor:
        gain_BLD = self.weight.to(x_BLD.dtype)[rows.stream_BL.clamp(min=0)]
        return F.rms_norm(x_BLD, x_BLD.shape[-1:], eps=self.eps) * gain_BLD


class Experts(nn.Module):
    """A feed-forward for each stream, chosen by the stream and not by a router (Liang et al.
    2024, Mixture-of-Transformers)."""

    def __init__(self, names: Sequence[str], dim: int, hidden: int) -> None:
        super().__init__()
        self.streams = nn.ModuleDict({name: SwiGLU(dim, hidden) for name in names})

    def forward(self, x_BLD: Tensor, rows: Rows) -> Tensor:
        x_ND = x_BLD.flatten(0, 1)
        parts = [
            expert(x_ND[members_M])
            for expert, members_M in zip(self.streams.values(), rows.members, strict=True)
        ]
        y_ND = torch.zeros_like(x_ND, dtype=parts[0].dtype)
        return y_ND.index_copy(0, torch.cat(list(rows.members)), torch.cat(parts)).view_as(x_BLD)


class Layer(nn.Module):
    """One pre-norm layer: x += attention(norm x); x += fast weights(norm x), where the layer has
    them; x += feed-forward(norm x)."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        dim, names, eps = config.dim, config.experts, config.norm_eps

        def norm() -> nn.Module:
            return StreamNorm(len(names), dim, eps) if names else RMSNorm(dim, eps)

        self.attention_norm = norm()
        self.attention = Attention(dim, config.attention)
        self.memory_norm = self.memory = None
        if config.fast_weights is not None:
            self.memory_norm = norm()
            self.memory = FastWeights(dim, config.fast_weights)
        self.feed_forward_norm = norm()
        self.feed_forward = (
            Experts(names, dim, config.hidden) if names else SwiGLU(dim, config.hidden)
        )
        self.experts = bool(names)

    def forward(self, x_BLD: Tensor, rows: Rows) -> Tensor:
        x_BLD = x_BLD + self.attention(self._norm("attention", x_BLD, rows), rows.sight, rows.table)
        if self.memory is not None:
            y_BLD, _ = self.memory(self._norm("memory", x_BLD, rows), rows.first_BL)
            x_BLD = x_BLD + y_BLD
        return x_BLD + self.fed_forward(x_BLD, rows)

    def fed_forward(self, x_BLD: Tensor, rows: Rows) -> Tensor:
        x_BLD = self._norm("feed_forward", x_BLD, rows)
        return self.feed_forward(x_BLD, rows) if self.experts else self.feed_forward(x_BLD)

    def _norm(self, of: str, x_BLD: Tensor, rows: Rows) -> Tensor:
        norm = getattr(self, f"{of}_norm")
        return norm(x_BLD, rows) if self.experts else norm(x_BLD)
