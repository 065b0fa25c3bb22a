"""The mean of the next block, which every head has, and the head that has nothing else.

Shapes: M blocks, P positions per block, D values per position, Z condition width, R draws.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmpredict.model.block_layer import BlockLayer
from mmpredict.model.heads.condition import refuse_guidance
from mmpredict.model.heads.config import HeadConfig
from mmpredict.model.heads.density import DEQUANTISATION, gaussian_nats, noised_alike
from mmpredict.model.heads.picking import Chance
from mmpredict.model.norm import RMSNorm
from mmpredict.model.running_error import RunningError
from mmpredict.schema import StreamSpec, ValuesPrediction


class BlockMean(nn.Module):
    """mean = skip * previous + W f(z, previous), with `mean_depth` layers f over the block.

    skip = 1 and W = 0 at first, so that training starts at the copy-last baseline and learns what
    changes. Only the mean's own error teaches it: heads that stand on it read it as given.
    """

    def __init__(self, spec: StreamSpec, z_dim: int, config: HeadConfig) -> None:
        super().__init__()
        self.dim = dim = min(z_dim, config.mean_dim)
        self.skip = nn.Parameter(torch.ones(spec.width))
        self.from_z = nn.Linear(z_dim, dim, bias=False) if z_dim > dim else nn.Identity()
        self.from_previous = nn.Linear(spec.width, dim, bias=False)
        self.layers = nn.ModuleList(
            BlockLayer(dim, spec.positions_per_block) for _ in range(config.mean_depth)
        )
        self.norm = RMSNorm(dim)
        self.to_mean = nn.Linear(dim, spec.width, bias=False)
        nn.init.zeros_(self.to_mean.weight)

    def forward(self, z_MPZ: Tensor, previous_MPD: Tensor) -> tuple[Tensor, Tensor]:
        """The mean (M, P, D), float32, and the features (M, P, dim) it was read from."""
        h_MPH = self.from_z(z_MPZ) + self.from_previous(previous_MPD)
        for layer in self.layers:
            h_MPH = layer(h_MPH)
        h_MPH = self.norm(h_MPH)
        return (self.skip * previous_MPD + self.to_mean(h_MPH)).float(), h_MPH


class RegressionHead(nn.Module):
    """Says one block: the mean. Its density is a Gaussian around it, whose variance is the running
    mean squared error of training, value by value of a position.

    Args:
        spec: the stream.
        z_dim: Z.
        config: its `mean_depth`.
    """

    def __init__(self, spec: StreamSpec, z_dim: int, config: HeadConfig) -> None:
        super().__init__()
        self.config, self.name = config, spec.name
        self.block_mean = BlockMean(spec, z_dim, config)
        self.error = RunningError(spec.width)

    def forward(
        self,
        z_MPZ: Tensor,
        previous_MPD: Tensor,
        targets_MPD: Tensor,
        generator: torch.Generator | None = None,
    ) -> ValuesPrediction:
        """Prediction of known blocks, for a loss."""
        mean_MPD, _ = self.block_mean(z_MPZ, previous_MPD)
        if self.training:
            self.error.add(mean_MPD, targets_MPD)
        return ValuesPrediction(mean_MPD, targets_MPD)

    def mean(self, z_MPZ: Tensor, previous_MPD: Tensor) -> Tensor:
        """(M, P, D)."""
        return self.block_mean(z_MPZ, previous_MPD)[0]

    @torch.no_grad()
    def sample(  # noqa: PLR0913 - one interface for all heads
        self,
        z_MPZ: Tensor,
        previous_MPD: Tensor,
        *,
        draws: int = 1,
        steps: int = 10,
        temperature: float = 1.0,
        min_p: float = 0.0,
        guidance: float = 1.0,
        generator: Chance = None,
    ) -> Tensor:
        """(R, M, P, D): the mean; the other settings have nothing to act on."""
        refuse_guidance(guidance, self.name, self.config.kind)
        mean_MPD = self.mean(z_MPZ, previous_MPD)
        return mean_MPD.expand(draws, *mean_MPD.shape).clone()

    @torch.no_grad()
    def surprise(
        self,
        z_MPZ: Tensor,
        previous_MPD: Tensor,
        targets_MPD: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(M,) mean squared error."""
        return (self.mean(z_MPZ, previous_MPD) - targets_MPD).square().mean((1, 2))

    @torch.no_grad()
    def nats(
        self,
        z_MPZ: Tensor,
        previous_MPD: Tensor,
        targets_MPD: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(M,) nats of the block with dequantisation noise, exact."""
        x_MPD = noised_alike(targets_MPD, generator)
        variance_D = self.error.value_D + DEQUANTISATION**2
        mean_MPD = self.mean(z_MPZ, previous_MPD)
        return gaussian_nats(x_MPD, mean_MPD, variance_D).sum((1, 2))
