"""The flow head: samples the whole block together, sharp, around a regressed mean.

Shapes: M blocks, P positions per block, D values per position, Z condition width, R random draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmpredict.model.block_layer import BlockLayer
from mmpredict.model.compiled import for_any_number
from mmpredict.model.heads.condition import check_guidance, no_past
from mmpredict.model.heads.config import HeadConfig
from mmpredict.model.heads.density import DEQUANTISATION, gaussian_nats, noised_alike
from mmpredict.model.heads.picking import Chance, guided, normal
from mmpredict.model.heads.regression import BlockMean
from mmpredict.model.norm import RMSNorm
from mmpredict.schema import StreamSpec, ValuesPrediction

FIRST_LOG_SIGMA = math.log(0.5)  # in units of the data's deviation
LOG_SIGMA_RANGE = (-5.0, 1.5)
LEVEL_OCTAVES = 8  # frequencies in which the head sees the noise level
SURPRISE_LEVELS = (0.15, 0.3, 0.45, 0.6)
SURPRISE_NOISES = 4
LOG_SNR_RANGE = (-6.0, 12.0)  # where the learned correction is counted in `nats`
LOG_SNR_POINTS = 24


@dataclass(frozen=True)
class Outlook:
    """What the past says of a block.

    Args:
        z_MPZ: the condition.
        mean_MPD, log_sigma_MPD: mean and log deviation of each value.
    """

    z_MPZ: Tensor
    mean_MPD: Tensor
    log_sigma_MPD: Tensor


class FlowHead(nn.Module):
    """Regresses the block's mean, and denoises the whole block together around it.

    X-prediction flow matching (Lipman et al. 2023; x-prediction as in Li & He 2025). With X_t = t X
    + (1 - t) noise it predicts X as the exact posterior mean for a Gaussian of deviation `sigma`
    around the regressed mean, plus a learned correction in units of that posterior's deviation (the
    preconditioning of Karras et al. 2022, written for this interpolation). Wide blocks need no wide
    head, because the signal passes beside it. Sigma is read from the past, value by value: where
    nothing moves, samples must not be noisy.

    Args:
        spec: the stream.
        z_dim: Z.
        config: sizes.
    """

    def __init__(self, spec: StreamSpec, z_dim: int, config: HeadConfig) -> None:
        super().__init__()
        self.config, self.name, dim = config, spec.name, config.dim
        self.block_mean = BlockMean(spec, z_dim, config)
        self.no_past = no_past(spec, z_dim, config.drop_condition)
        self.to_log_sigma = nn.Linear(self.block_mean.dim, spec.width)
        nn.init.zeros_(self.to_log_sigma.weight)
        nn.init.constant_(self.to_log_sigma.bias, FIRST_LOG_SIGMA)
        self.from_noised = nn.Linear(spec.width, dim, bias=False)
        self.from_mean = nn.Linear(spec.width, dim, bias=False)
        self.from_z = nn.Linear(z_dim, dim, bias=False)
        self.from_level = nn.Sequential(
            nn.Linear(2 * LEVEL_OCTAVES, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.layers = nn.ModuleList(
            BlockLayer(dim, spec.positions_per_block) for _ in range(config.depth)
        )
        self.norm = RMSNorm(dim)
        self.to_correction = nn.Linear(dim, spec.width, bias=False)
        nn.init.zeros_(self.to_correction.weight)
        self.run = FlowHead.said  # unbound: a copy of the head computes with its own weights

    def compile_layers(self) -> None:
        """Compile what a training step computes, as one graph for any number of blocks."""
        self.run = for_any_number(FlowHead.said, {1: 0, 2: 0, 3: 0, 4: 1, 5: 1})

    def outlook(self, z_MPZ: Tensor, previous_MPD: Tensor) -> Outlook:
        """Mean and deviation of the block. The mean is taught by its own error alone."""
        mean_MPD, h_MPH = self.block_mean(z_MPZ, previous_MPD)
        log_sigma_MPD = self.to_log_sigma(h_MPH.detach()).float().clamp(*LOG_SIGMA_RANGE)
        return Outlook(z_MPZ, mean_MPD, log_sigma_MPD)

    def mean(self, z_MPZ: Tensor, previous_MPD: Tensor) -> Tensor:
        """(M, P, D): the regression."""
        return self.block_mean(z_MPZ, previous_MPD)[0]

    def forward(
        self,
        z_MPZ: Tensor,
        previous_MPD: Tensor,
        targets_MPD: Tensor,
        generator: torch.Generator | None = None,
    ) -> ValuesPrediction:
        """Prediction of known blocks, for a loss; noise and levels are drawn from `generator`."""
        if self.no_past is not None and self.training:
            z_MPZ, previous_MPD = self.no_past.withhold(z_MPZ, previous_MPD, generator)
        shape, device = (self.config.draws, *targets_MPD.shape), targets_MPD.device
        noise = torch.randn(shape, generator=generator, device=device)
        level_RM = torch.randn(shape[:2], generator=generator, device=device).sigmoid()
        mean_MPD, denoised = self.run(self, z_MPZ, previous_MPD, targets_MPD, noise, level_RM)
        return ValuesPrediction(mean_MPD, targets_MPD, denoised, level_RM)

    def said(
        self,
        z_MPZ: Tensor,
        previous_MPD: Tensor,
        targets_MPD: Tensor,
        noise_RMPD: Tensor,
        level_RM: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(M, P, D) mean, and (R, M, P, D) what is made of the targets under that noise."""
        outlook = self.outlook(z_MPZ, previous_MPD)
        t = level_RM[..., None, None]
        noised = t * targets_MPD + (1 - t) * noise_RMPD
        return outlook.mean_MPD, self.denoise(noised, level_RM, outlook)

    def denoise(self, noised_RMPD: Tensor, level_RM: Tensor, outlook: Outlook) -> Tensor:
        """(R, M, P, D): the expected clean block, given the noised one and the outlook."""
        mean_MPD = outlook.mean_MPD.detach()
        t = level_RM[..., None, None].float()
        sigma = outlook.log_sigma_MPD.exp()
        # One root and no quotient, of which a gradient would make many: both are dear on a CPU.
        inverse = ((t * sigma).square() + (1 - t).square()).rsqrt()
        gain = sigma * inverse
        surprise = (noised_RMPD - t * mean_MPD) * inverse  # in units of its own deviation
        condition = self.from_z(outlook.z_MPZ) + self.from_mean(mean_MPD)
        h = self.from_noised(surprise)
        h = h + condition + self.from_level(_level_features(level_RM))[..., None, :].to(h.dtype)
        h = h.flatten(0, 1)
        for layer in self.layers:
            h = layer(h)
        correction = self.to_correction(self.norm(h)).float().view_as(noised_RMPD)
        # The posterior mean, and its deviation times the correction.
        return mean_MPD + gain * (t * sigma * surprise + (1 - t) * correction)

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
        """(R, M, P, D) samples, by Euler steps from noise of scale `temperature` (0: the mean).

        Ten steps narrow sharp blocks; on the world this costs nothing in energy score against 20
        steps or Heun's method at twice the price (docs/LOG.md). `min_p` has nothing to act on.
        """
        check_guidance(guidance, self.name, learned=self.no_past is not None)
        outlook, without = self.outlook(z_MPZ, previous_MPD), None
        mean_MPD = outlook.mean_MPD
        if guidance != 1:
            without = self.outlook(*self.no_past(z_MPZ, previous_MPD))
            mean_MPD = guided(mean_MPD, without.mean_MPD, guidance)
        shape = (draws, *mean_MPD.shape)
        if temperature == 0:
            return mean_MPD.expand(shape).clone()
        x = normal(shape, dim=1, device=z_MPZ.device, generator=generator) * temperature
        levels = torch.linspace(0, 1, steps + 1).tolist()
        for level, following in zip(levels[:-1], levels[1:], strict=True):
            level_RM = torch.full(shape[:2], level, device=x.device)
            clean = self.denoise(x, level_RM, outlook)
            if without is not None:
                clean = guided(clean, self.denoise(x, level_RM, without), guidance)
            x = x + (following - level) * (clean - x) / (1 - level)  # level < 1: ends on `clean`
        return x

    @torch.no_grad()
    def surprise(
        self,
        z_MPZ: Tensor,
        previous_MPD: Tensor,
        targets_MPD: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(M,) mean squared error of denoising at levels where the noise hides details but not
        things, with the same noises for all blocks: pairs of clips are compared by it."""
        outlook = self.outlook(z_MPZ, previous_MPD)
        M, P, D = targets_MPD.shape
        error_M = targets_MPD.new_zeros(M, dtype=torch.float32)
        for level in SURPRISE_LEVELS:
            shape = (SURPRISE_NOISES, 1, P, D)
            noise = torch.randn(shape, generator=generator, device=targets_MPD.device)
            level_RM = torch.full((SURPRISE_NOISES, M), level, device=targets_MPD.device)
            clean = self.denoise(level * targets_MPD + (1 - level) * noise, level_RM, outlook)
            error_M += (clean - targets_MPD).square().mean((0, 2, 3))
        return error_M / len(SURPRISE_LEVELS)

    @torch.no_grad()
    def nats(
        self,
        z_MPZ: Tensor,
        previous_MPD: Tensor,
        targets_MPD: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(M,) nats of the block with dequantisation noise: a bound from above, in the mean.

        -log p(x) = -log q(x) - 1/2 int (E|x - x_q|^2 - E|x - x_p|^2) d snr, where x_q and x_p
        denoise x + noise / sqrt(snr): q is the Gaussian of the outlook, whose part is exact, and p
        what the head has learned (Kong et al. 2023, with q in the place of their unit Gaussian).
        Where the integral is not taken the bound holds with x_q. Both see the same noise.
        """
        outlook = self.outlook(z_MPZ, previous_MPD)
        x = noised_alike(targets_MPD, generator)
        mean, blur = outlook.mean_MPD, DEQUANTISATION**2
        variance = (2 * outlook.log_sigma_MPD).exp() + blur
        nats_M = gaussian_nats(x, mean, variance).sum((1, 2))
        low, high = LOG_SNR_RANGE
        width = (high - low) / LOG_SNR_POINTS
        for point in range(LOG_SNR_POINTS):
            snr = math.exp(low + (point + 0.5) * width)
            noise_PD = torch.randn(x.shape[1:], generator=generator, device=x.device)
            seen = x + noise_PD * snr**-0.5
            x_q = mean + variance / (variance + 1 / snr) * (seen - mean)
            # The head knows clean blocks: to it, dequantisation is a part of the noise.
            noise_variance = 1 / snr + blur
            level = 1 / (1 + noise_variance**0.5)
            level_RM = torch.full((1, len(x)), level, device=x.device)
            clean = self.denoise(level * seen[None], level_RM, outlook)[0]
            x_p = clean + blur / noise_variance * (seen - clean)
            gain_M = ((x - x_q).square() - (x - x_p).square()).sum((1, 2))
            nats_M -= 0.5 * snr * width * gain_M
        return nats_M


def _level_features(level: Tensor) -> Tensor:
    """(..., 2 * LEVEL_OCTAVES) sines and cosines of a level in [0, 1]."""
    octaves = 2.0 ** torch.arange(LEVEL_OCTAVES, device=level.device) * (math.pi / 4)
    angle = level[..., None].float() * octaves
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
