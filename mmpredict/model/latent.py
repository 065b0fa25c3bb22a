"""What an image encoder would see in the next frame, said from the past: an auxiliary to the
prediction of pixels.

Features leave out what cannot be known (noise, texture): saying them ahead asks what a frame
means rather than how it looks (V-JEPA, Bardes et al. 2024; data2vec, Baevski et al. 2022).

Shapes: M blocks, P positions per block, W values per position, Z condition width, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmpredict.model.frame_encoder import FrameEncoder, FrameEncoderConfig
from mmpredict.model.norm import RMSNorm
from mmpredict.schema import LatentPrediction, StreamSpec


@dataclass(frozen=True)
class LatentConfig:
    """Where the features come from that are to be said of the next frame.

    Args:
        target: `frozen`: an encoder of its own that does not change; `ema`: a copy of the stream's
            trained encoder (predictor.encoders) that follows it slowly.
        encoder: of target frozen.
        decay: share of the copy that is kept at a step, of target ema (V-JEPA: 0.998 to 1).
        depth: layers between z and what is said; 0 for a linear map.
    """

    target: Literal["frozen", "ema"] = "frozen"
    encoder: FrameEncoderConfig | None = None
    decay: float = 0.998
    depth: int = 1

    def __post_init__(self) -> None:
        if self.target not in ("frozen", "ema"):
            raise ValueError(f"latent.target={self.target!r} is neither 'frozen' nor 'ema'")
        if self.target == "frozen" and self.encoder is None:
            raise ValueError("latent.target=frozen needs latent.encoder: the network to listen to")
        if self.target == "frozen" and not self.encoder.frozen:
            raise ValueError(
                f"latent.encoder {self.encoder.name} is a target: it cannot be trained with what "
                "is to reach it (all features equal would be the best answer); set frozen: true, "
                "or use target: ema"
            )
        if self.target == "ema" and self.encoder is not None:
            raise ValueError(
                "latent.target=ema follows the encoder under predictor.encoders; leave "
                "latent.encoder out"
            )
        if not 0 <= self.decay < 1 or self.depth < 0:
            raise ValueError(
                f"latent.decay={self.decay} must be in [0, 1), latent.depth={self.depth} 0 or more"
            )


class Latent(nn.Module):
    """Says the target encoder's features of a block from z.

    Args:
        spec: the stream.
        z_dim: Z.
        config: which features.
        own: the stream's own encoder, which target ema follows.
    """

    def __init__(
        self, spec: StreamSpec, z_dim: int, config: LatentConfig, own: FrameEncoder | None
    ) -> None:
        super().__init__()
        self.config = config
        if config.target == "frozen":
            self.target = FrameEncoder(spec, config.encoder)
        else:
            self.target = FrameEncoder(spec, own.config.follower())
            self.begin_at(own)
        layers: list[nn.Module] = [RMSNorm(z_dim)]
        for _ in range(config.depth):
            layers += [nn.Linear(z_dim, z_dim), nn.GELU()]
        self.say = nn.Sequential(*layers, nn.Linear(z_dim, self.target.width))

    @torch.no_grad()
    def targets(self, values_MPW: Tensor) -> Tensor:
        """(M, P, F) what the target encoder makes of blocks in the stream's own units, normed
        position by position, so that no feature weighs more for being large."""
        features_MPF = self.target(values_MPW).float()
        return F.layer_norm(features_MPF, features_MPF.shape[-1:])

    def forward(self, z_MPZ: Tensor, targets_MPF: Tensor) -> LatentPrediction:
        """What is said of the blocks that `z_MPZ` asks for, beside their features."""
        return LatentPrediction(self.say(z_MPZ).float(), targets_MPF)

    @torch.no_grad()
    def begin_at(self, own: FrameEncoder) -> None:
        """The copy of target ema becomes equal to the encoder that it follows."""
        if self.config.target == "ema":
            self.target.backbone.load_state_dict(own.backbone.state_dict())

    @torch.no_grad()
    def follow(self, own: FrameEncoder, bad: Tensor | None = None) -> None:
        """copy <- decay * copy + (1 - decay) * encoder, after every optimiser step, but where `bad`
        (0-d) is 1."""
        if self.config.target == "ema":
            copies = list(self.target.backbone.parameters())
            share = 1 - self.config.decay
            shares = share if bad is None else [share * (1 - bad)] * len(copies)
            torch._foreach_lerp_(copies, list(own.backbone.parameters()), shares)
