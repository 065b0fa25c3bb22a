"""The way out: what is said of the next block of a stream, from the condition z of each of its
positions.

Shapes: M blocks, P positions per block, D values per position, Z condition width, R random draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mmpredict.model.attention import Block, SwiGLU
from mmpredict.schema import IdsPrediction, StreamSpec, ValuesPrediction

FIRST_LOG_SIGMA = math.log(0.5)  # in units of the data's deviation
LOG_SIGMA_RANGE = (-5.0, 1.5)
HEAD_DIM = 32  # values per attention head inside a head for blocks
LEVEL_OCTAVES = 8  # frequencies in which the head sees the noise level


@dataclass(frozen=True)
class HeadConfig:
    """A head for blocks of values.

    Args:
        kind: `flow` samples sharp blocks and regresses their mean; `regression` has the mean alone.
        dim: width of the flow head.
        depth: layers of the flow head.
        draws: noise levels drawn per block and training step.
        mean_depth: layers between z and the mean; 0 for a linear map.
    """

    kind: Literal["flow", "regression"] = "flow"
    dim: int = 128
    depth: int = 2
    draws: int = 1
    mean_depth: int = 1

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"head.{name}={getattr(self, name)} must be at least 1")


@dataclass(frozen=True)
class Outlook:
    """What the past says of a block: mean and log deviation of each value, (M, P, D) each."""

    mean_MPD: Tensor
    log_sigma_MPD: Tensor | None


class SoftmaxHead(nn.Module):
    """Logits over a vocabulary, tied to its embedding table."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.weight = table.weight
        self.scale = table.weight.shape[1] ** -0.5

    def forward(self, z_MZ: Tensor, targets_M: Tensor) -> IdsPrediction:
        return IdsPrediction(self.logits(z_MZ), targets_M)

    def logits(self, z_MZ: Tensor) -> Tensor:
        return (z_MZ @ self.weight.T.to(z_MZ.dtype) * self.scale).float()


class ValuesHead(nn.Module):
    """Regresses the block's mean, and (kind `flow`) denoises the whole block together around it.

    The mean starts from the previous block of the stream: mean = skip * previous + W f(z, previous)
    with `mean_depth` layers f over the block, and skip = 1, W = 0 at first, so that training starts
    at the copy-last baseline and learns what changes.

    The flow head follows x-prediction flow matching (Lipman et al. 2023; x-prediction as in Li &
    He 2025). With X_t = t X + (1 - t) noise it predicts X as the exact posterior mean for a
    Gaussian of deviation `sigma` around the regressed mean, plus a learned correction in units of
    that posterior's deviation (the preconditioning of Karras et al. 2022, written for this
    interpolation). Wide blocks need no wide head, because the signal passes beside it. Sigma is
    read from the past, value by value: where nothing moves, samples must not be noisy.
    """

    def __init__(self, spec: StreamSpec, z_dim: int, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.skip = nn.Parameter(torch.ones(spec.width))
        self.from_previous = nn.Linear(spec.width, z_dim, bias=False)
        self.mean_layers = nn.ModuleList(_layer(spec, z_dim) for _ in range(config.mean_depth))
        self.mean_norm = nn.RMSNorm(z_dim)
        self.to_mean = nn.Linear(z_dim, spec.width, bias=False)
        nn.init.zeros_(self.to_mean.weight)
        if config.kind == "regression":
            return
        dim = config.dim
        self.to_log_sigma = nn.Linear(z_dim, spec.width)
        nn.init.zeros_(self.to_log_sigma.weight)
        nn.init.constant_(self.to_log_sigma.bias, FIRST_LOG_SIGMA)
        self.from_noised = nn.Linear(spec.width, dim, bias=False)
        self.from_mean = nn.Linear(spec.width, dim, bias=False)
        self.from_z = nn.Linear(z_dim, dim, bias=False)
        self.from_level = nn.Sequential(
            nn.Linear(2 * LEVEL_OCTAVES, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.layers = nn.ModuleList(_layer(spec, dim) for _ in range(config.depth))
        self.norm = nn.RMSNorm(dim)
        self.to_correction = nn.Linear(dim, spec.width, bias=False)
        nn.init.zeros_(self.to_correction.weight)

    def outlook(self, z_MPZ: Tensor, previous_MPD: Tensor) -> Outlook:
        """Mean and deviation of the block. The mean is taught by its own error alone."""
        h = z_MPZ + self.from_previous(previous_MPD)
        for layer in self.mean_layers:
            h = layer(h)
        h = self.mean_norm(h)
        mean_MPD = (self.skip * previous_MPD + self.to_mean(h)).float()
        if self.config.kind == "regression":
            return Outlook(mean_MPD, None)
        log_sigma_MPD = self.to_log_sigma(h.detach()).float().clamp(*LOG_SIGMA_RANGE)
        return Outlook(mean_MPD, log_sigma_MPD)

    def mean(self, z_MPZ: Tensor, previous_MPD: Tensor) -> Tensor:
        """(M, P, D): the regression."""
        return self.outlook(z_MPZ, previous_MPD).mean_MPD

    def forward(
        self,
        z_MPZ: Tensor,
        previous_MPD: Tensor,
        targets_MPD: Tensor,
        generator: torch.Generator | None = None,
    ) -> ValuesPrediction:
        """Prediction of known blocks, for a loss; noise and levels are drawn from `generator`."""
        outlook = self.outlook(z_MPZ, previous_MPD)
        if self.config.kind == "regression":
            return ValuesPrediction(outlook.mean_MPD, targets_MPD)
        shape, device = (self.config.draws, *targets_MPD.shape), targets_MPD.device
        noise = torch.randn(shape, generator=generator, device=device)
        level_RM = torch.randn(shape[:2], generator=generator, device=device).sigmoid()
        noised = level_RM[..., None, None] * targets_MPD + (1 - level_RM[..., None, None]) * noise
        denoised = self.denoise(noised, level_RM, z_MPZ, outlook)
        return ValuesPrediction(outlook.mean_MPD, targets_MPD, denoised, level_RM)

    def denoise(
        self, noised_RMPD: Tensor, level_RM: Tensor, z_MPZ: Tensor, outlook: Outlook
    ) -> Tensor:
        """(R, M, P, D): the expected clean block, given the noised one, z and the outlook."""
        mean_MPD = outlook.mean_MPD.detach()
        t = level_RM[..., None, None].float()
        variance = (2 * outlook.log_sigma_MPD).exp()
        total = t.square() * variance + (1 - t).square()
        surprise = noised_RMPD - t * mean_MPD
        condition = self.from_z(z_MPZ) + self.from_mean(mean_MPD)
        h = self.from_noised(surprise / total.sqrt())
        h = h + condition + self.from_level(_level_features(level_RM))[..., None, :].to(h.dtype)
        h = h.flatten(0, 1)
        for layer in self.layers:
            h = layer(h)
        correction = self.to_correction(self.norm(h)).float().view_as(noised_RMPD)
        posterior = mean_MPD + t * variance / total * surprise
        return posterior + (variance / total).sqrt() * (1 - t) * correction

    @torch.no_grad()
    def sample(
        self,
        z_MPZ: Tensor,
        previous_MPD: Tensor,
        *,
        draws: int = 1,
        steps: int = 10,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(R, M, P, D) samples, by Euler steps from noise of scale `temperature` (0: the mean).

        Ten steps narrow sharp blocks; on the world this costs nothing in energy score against 20
        steps or Heun's method at twice the price (docs/LOG.md).
        """
        outlook = self.outlook(z_MPZ, previous_MPD)
        shape = (draws, *outlook.mean_MPD.shape)
        if self.config.kind == "regression" or temperature == 0:
            return outlook.mean_MPD.expand(shape).clone()
        x = torch.randn(shape, generator=generator, device=z_MPZ.device) * temperature
        levels = torch.linspace(0, 1, steps + 1).tolist()
        for level, following in zip(levels[:-1], levels[1:], strict=True):
            level_RM = torch.full(shape[:2], level, device=x.device)
            clean = self.denoise(x, level_RM, z_MPZ, outlook)
            x = x + (following - level) * (clean - x) / (1 - level)  # level < 1: ends on `clean`
        return x


def _layer(spec: StreamSpec, dim: int) -> nn.Module:
    """One layer over the positions of a block."""
    hidden = 64 * round(dim * 8 / 3 / 64) or 64
    heads = max(n for n in range(1, max(1, dim // HEAD_DIM) + 1) if dim % n == 0)
    if spec.positions_per_block == 1:
        return _FeedForward(dim, hidden)
    return Block(dim, heads, heads, hidden, qk_norm=True)


class _FeedForward(nn.Module):
    """A block of one position has nobody to attend to."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim)
        self.feed_forward = SwiGLU(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.feed_forward(self.norm(x))


def _level_features(level: Tensor) -> Tensor:
    """(..., 2 * LEVEL_OCTAVES) sines and cosines of a level in [0, 1]."""
    octaves = 2.0 ** torch.arange(LEVEL_OCTAVES, device=level.device) * (math.pi / 4)
    angle = level[..., None].float() * octaves
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
