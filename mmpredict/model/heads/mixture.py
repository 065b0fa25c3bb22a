"""The mixture head: an exact density, K Gaussians per position, position after position.

Shapes: M blocks, P positions per block, D values per position, Z condition width, R random draws,
K components, N = R M blocks that are being drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmpredict.model.heads.causal_block import CausalBlock
from mmpredict.model.heads.condition import refuse_guidance
from mmpredict.model.heads.config import HeadConfig
from mmpredict.model.heads.density import (
    DEQUANTISATION,
    LOG_TWO_PI,
    noised_alike,
    noised_apart,
)
from mmpredict.model.heads.picking import Chance, normal, pick
from mmpredict.model.heads.regression import BlockMean
from mmpredict.schema import StreamSpec, ValuesPrediction

FIRST_LOG_SIGMA = math.log(0.5)  # in units of the data's deviation
LOG_SIGMA_RANGE = (-5.0, 1.5)
FIRST_SPREAD = 0.02  # of the last map's weights: equal components would stay equal


@dataclass(frozen=True)
class Mixture:
    """Gaussians with diagonal covariance.

    Args:
        logits_K: (..., K) of the components' chances.
        mean_KD, log_sigma_KD: (..., K, D).
    """

    logits_K: Tensor
    mean_KD: Tensor
    log_sigma_KD: Tensor

    def nats(self, x_D: Tensor) -> Tensor:
        """(...) -log density of x (..., D) plus dequantisation noise, whose variance is added."""
        variance = (2 * self.log_sigma_KD).exp() + DEQUANTISATION**2
        away = (x_D[..., None, :] - self.mean_KD).square() / variance
        of_each_K = 0.5 * (LOG_TWO_PI + variance.log() + away).sum(-1)
        return -(self.logits_K.log_softmax(-1) - of_each_K).logsumexp(-1)


class MixtureHead(nn.Module):
    """A mixture at each position, given the past and the positions before it in the block (GIVT,
    Tschannen et al. 2023): positions agree because each has seen the others.

    Args:
        spec: the stream.
        z_dim: Z.
        config: sizes.
    """

    def __init__(self, spec: StreamSpec, z_dim: int, config: HeadConfig) -> None:
        super().__init__()
        self.config, self.name = config, spec.name
        K, D = config.components, spec.width
        self.sizes = (K, K * D, K * D)
        self.block_mean = BlockMean(spec, z_dim, config)
        self.reader = CausalBlock(spec, z_dim, config.dim, config.depth)
        self.from_value = nn.Linear(D, config.dim, bias=False)
        self.to_mixture = nn.Linear(config.dim, sum(self.sizes))
        nn.init.normal_(self.to_mixture.weight, std=FIRST_SPREAD)
        nn.init.zeros_(self.to_mixture.bias)

    def mean(self, z_MPZ: Tensor, previous_MPD: Tensor) -> Tensor:
        """(M, P, D): the regression, not the mixture's own mean."""
        return self.block_mean(z_MPZ, previous_MPD)[0]

    def forward(
        self,
        z_MPZ: Tensor,
        previous_MPD: Tensor,
        targets_MPD: Tensor,
        generator: torch.Generator | None = None,
    ) -> ValuesPrediction:
        """Prediction of known blocks, for a loss: nats per value at each position."""
        mean_MPD = self.mean(z_MPZ, previous_MPD)
        x_MPD = noised_apart(targets_MPD, generator)
        nats_MP = self.mixture(z_MPZ, mean_MPD, x_MPD).nats(x_MPD) / x_MPD.shape[-1]
        return ValuesPrediction(mean_MPD, targets_MPD, nats_MP=nats_MP)

    def mixture(self, z_MPZ: Tensor, mean_MPD: Tensor, x_MPD: Tensor) -> Mixture:
        """What is said at each position, when the positions before it hold `x`."""
        mean_MPD = mean_MPD.detach()
        condition = self.reader.condition(z_MPZ, mean_MPD)
        h_MPW = self.reader(condition, self.from_value(x_MPD - mean_MPD))
        return self._said(h_MPW, mean_MPD)

    def _said(self, h_W: Tensor, mean_D: Tensor) -> Mixture:
        """The mixture's means are told as what is added to the regressed mean."""
        logits, away, log_sigma = self.to_mixture(h_W).float().split(self.sizes, dim=-1)
        shape = (self.config.components, mean_D.shape[-1])
        means = mean_D[..., None, :] + away.unflatten(-1, shape)
        log_sigma = (log_sigma.unflatten(-1, shape) + FIRST_LOG_SIGMA).clamp(*LOG_SIGMA_RANGE)
        return Mixture(logits, means, log_sigma)

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
        """(R, M, P, D) samples, position after position (`steps` has nothing to act on).

        Args:
            temperature: of the choice among components and of their deviations; 0 takes the middle
                of the likeliest.
            min_p: components less likely than this share of the likeliest are left out.
        """
        refuse_guidance(guidance, self.name, self.config.kind)
        mean_MPD = self.mean(z_MPZ, previous_MPD)
        shape = (draws, *mean_MPD.shape)
        mean_NPD = mean_MPD.expand(shape).flatten(0, 1)
        condition_NPW = self.reader.condition(z_MPZ, mean_MPD)
        condition_NPW = condition_NPW.expand(draws, *condition_NPW.shape).flatten(0, 1)
        caches = self.reader.new_caches(len(mean_NPD))
        values: list[Tensor] = []
        before_NW = None
        for place in range(mean_NPD.shape[1]):
            h_NW = self.reader.extend(condition_NPW, before_NW, caches, place)
            said = self._said(h_NW, mean_NPD[:, place])
            chosen_N = pick(
                said.logits_K, temperature=temperature, min_p=min_p, generator=generator
            )
            chosen_N1D = chosen_N[:, None, None].expand(-1, 1, mean_NPD.shape[-1])
            value_ND = said.mean_KD.gather(1, chosen_N1D)[:, 0]
            if temperature > 0:
                device = value_ND.device
                noise = normal(value_ND.shape, dim=0, device=device, generator=generator)
                sigma_ND = said.log_sigma_KD.gather(1, chosen_N1D)[:, 0].exp()
                value_ND = value_ND + temperature * sigma_ND * noise
            before_NW = self.from_value(value_ND - mean_NPD[:, place])
            values.append(value_ND)
        return torch.stack(values, dim=1).view(shape)

    @torch.no_grad()
    def surprise(
        self,
        z_MPZ: Tensor,
        previous_MPD: Tensor,
        targets_MPD: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(M,) nats per value."""
        return self.nats(z_MPZ, previous_MPD, targets_MPD, generator) / targets_MPD[0].numel()

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
        mean_MPD = self.mean(z_MPZ, previous_MPD)
        return self.mixture(z_MPZ, mean_MPD, x_MPD).nats(x_MPD).sum(1)
