"""Reads a block position after position: what stands at position p sees the whole past, and the
positions of its own block before p.

Shapes: N blocks, P positions per block, D values, Z condition width, W width of the head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmpredict.model.block_layer import BlockLayer, Cache
from mmpredict.model.norm import RMSNorm
from mmpredict.schema import StreamSpec


class CausalBlock(nn.Module):
    """A small causal transformer over the positions of a block.

    The regressed mean comes in beside z, because it has seen z of all positions.

    Args:
        spec: the stream.
        z_dim: Z.
        dim: W.
        depth: layers.
    """

    def __init__(self, spec: StreamSpec, z_dim: int, dim: int, depth: int) -> None:
        super().__init__()
        P = spec.positions_per_block
        self.from_z = nn.Linear(z_dim, dim, bias=False)
        self.from_mean = nn.Linear(spec.width, dim, bias=False)
        self.place_PW = nn.Parameter(0.02 * torch.randn(P, dim))
        self.start_W = nn.Parameter(torch.zeros(dim))
        self.layers = nn.ModuleList(BlockLayer(dim, P, causal=True) for _ in range(depth))
        self.norm = RMSNorm(dim)

    def condition(self, z_NPZ: Tensor, mean_NPD: Tensor) -> Tensor:
        """(N, P, W): what each position is told before its block begins."""
        return self.from_z(z_NPZ) + self.from_mean(mean_NPD.detach()) + self.place_PW

    def forward(self, condition_NPW: Tensor, block_NPW: Tensor) -> Tensor:
        """(N, P, W), read from the condition and from the block moved on by one position."""
        start_N1W = self.start_W.to(block_NPW.dtype).expand(len(block_NPW), 1, -1)
        h_NPW = condition_NPW + torch.cat([start_N1W, block_NPW[:, :-1]], dim=1)
        for layer in self.layers:
            h_NPW = layer(h_NPW)
        return self.norm(h_NPW)

    def extend(
        self,
        condition_NPW: Tensor,
        before_NW: Tensor | None,
        caches: list[Cache | None],
        place: int,
    ) -> Tensor:
        """(N, W) of position `place`; as `forward`, given what stands at the position before it
        (None at the first)."""
        before = self.start_W.expand(len(condition_NPW), -1) if before_NW is None else before_NW
        h_N1W = (condition_NPW[:, place] + before)[:, None]
        for layer, cache in zip(self.layers, caches, strict=True):
            h_N1W = layer.extend(h_N1W, cache)
        return self.norm(h_N1W)[:, 0]

    def new_caches(self, blocks: int) -> list[Cache | None]:
        """One for each layer, for `extend`."""
        return [layer.new_cache(blocks, len(self.place_PW)) for layer in self.layers]
