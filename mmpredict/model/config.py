"""The predictor's sizes and switches, as a recipe gives them and a checkpoint keeps them."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from mmpredict.model.attention import AttentionConfig
from mmpredict.model.fast_weights import FastWeightsConfig
from mmpredict.model.frame_encoder import FrameEncoderConfig
from mmpredict.model.heads import HeadConfig
from mmpredict.model.latent import LatentConfig
from mmpredict.model.layers import hidden_width
from mmpredict.model.rotary import RotaryConfig
from mmpredict.model.sight import Backend
from mmpredict.schema import Layout


@dataclass(frozen=True)
class ContextNoise:
    """Noise on what the trunk sees of frames and sounds, while training, with its level told.

    A model that has seen blurred pasts is not thrown off by its own (GameNGen, Valevski et al.
    2024). Targets stay clean.

    Args:
        share: of the blocks that get noise; 0 for none.
        sigma: deviation of the noise is drawn from 0 to this, in deviations of the data.
        levels: buckets in which the trunk is told the deviation.
    """

    share: float = 0.0
    sigma: float = 0.3
    levels: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.sigma <= 0 or self.levels < 1:
            raise ValueError(
                f"context_noise: share={self.share} must be in 0..1, sigma={self.sigma} above 0, "
                f"levels={self.levels} at least 1"
            )


@dataclass(frozen=True)
class PredictorConfig:
    """Size and shape of the predictor.

    Args:
        dim: width of the trunk.
        depth: layers.
        num_heads: query heads.
        num_kv_heads: key/value heads; 0 for as many as query heads.
        head_dim: values per head, a multiple of 8; 0 for dim / num_heads.
        hidden: inner width of the feed-forward; 0 for 8/3 dim, rounded to 64.
        qk_norm: normalise queries and keys (stable; costs a little).
        qkv_bias: biases where Qwen2 has them.
        norm_eps: of all norms of the trunk.
        window: positions that attention looks back, the own block aside; 0 for all.
        attention: backend; `auto` chooses by device, length and packing.
        rotary: positions.
        experts: `ffn`: each stream has feed-forwards and norms of its own.
        fast_weights: a second memory in every so many layers; None for none.
        norm_text: norm and mark text embeddings like those of other streams; False leaves the
            table's rows as they are (language models).
        tie_text: one table for reading and for writing text.
        horizons: how many blocks ahead each continuous stream is predicted.
        context_noise: on the past, while training.
        checkpoint_activations: compute the layers twice rather than keep what is inside.
        heads: per stream name a HeadConfig; others take the default.
        encoders: per stream of frames, the timm network that embeds it; others have a linear map.
        latent: per stream of frames, features that are said of the next one beside its pixels.
    """

    dim: int = 128
    depth: int = 6
    num_heads: int = 4
    num_kv_heads: int = 0
    head_dim: int = 0
    hidden: int = 0
    qk_norm: bool = True
    qkv_bias: bool = False
    norm_eps: float = 1e-6
    window: int = 0
    attention: Backend = "auto"
    rotary: RotaryConfig = RotaryConfig()
    experts: Literal["none", "ffn"] = "none"
    fast_weights: FastWeightsConfig | None = None
    norm_text: bool = True
    tie_text: bool = True
    horizons: tuple[int, ...] = (1,)
    context_noise: ContextNoise = ContextNoise()
    checkpoint_activations: bool = False
    heads: dict[str, HeadConfig] = field(default_factory=dict)
    encoders: dict[str, FrameEncoderConfig] = field(default_factory=dict)
    latent: dict[str, LatentConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_heads()
        ahead = sorted(set(self.horizons))
        if not ahead or ahead[0] != 1 or len(ahead) != len(self.horizons):
            raise ValueError(
                f"predictor.horizons={list(self.horizons)} must hold 1 (the next block) and "
                "further numbers above it, each once"
            )
        if self.window < 0:
            raise ValueError(f"predictor.window={self.window} must be 0 (all) or more")

    def _check_heads(self) -> None:
        if self.num_heads < 1 or (not self.head_dim and self.dim % (8 * self.num_heads)):
            raise ValueError(
                f"predictor.dim={self.dim} is not a multiple of 8 * num_heads={8 * self.num_heads} "
                "(rotary pairs are shared out in fours); change dim or num_heads, or set head_dim"
            )
        if self.head_dim % 8:
            raise ValueError(f"predictor.head_dim={self.head_dim} is not a multiple of 8")
        if self.num_kv_heads and self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"predictor.num_heads={self.num_heads} is not a multiple of "
                f"num_kv_heads={self.num_kv_heads}"
            )

    @property
    def hidden_width(self) -> int:
        return self.hidden or hidden_width(self.dim)

    @property
    def attention_layer(self) -> AttentionConfig:
        return AttentionConfig(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads or self.num_heads,
            head_dim=self.head_dim or self.dim // self.num_heads,
            qk_norm=self.qk_norm,
            bias=self.qkv_bias,
            norm_eps=self.norm_eps,
        )

    def has_memory(self, layer: int) -> bool:
        """Whether this layer (from 0) has fast weights."""
        return self.fast_weights is not None and self.fast_weights.in_layer(layer)

    def check_streams(self, layout: Layout) -> None:
        """Raise ValueError where a setting names a stream that the run does not have."""
        names = [s.name for s in layout.streams]
        unknown = sorted(set(self.heads) - set(names))
        if unknown:
            raise ValueError(f"predictor.heads names {unknown}; this run has the streams {names}")
        for setting in ("encoders", "latent"):
            unknown = sorted(set(getattr(self, setting)) - set(names))
            if unknown:
                raise ValueError(
                    f"predictor.{setting} names {unknown}; this run has the streams {names}"
                )
        for name, latent in self.latent.items():
            own = self.encoders.get(name)
            if latent.target == "ema" and (own is None or own.frozen):
                raise ValueError(
                    f"predictor.latent.{name}: target ema follows a trained encoder, and "
                    f"predictor.encoders.{name} is {'frozen' if own else 'missing'}; train one "
                    "there, or give target: frozen with an encoder"
                )

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> PredictorConfig:
        """Undo `dataclasses.asdict`."""
        return _built(cls, plain)


def _built(kind: Any, plain: Any) -> Any:
    """A value of type `kind` from plain types, with dataclasses and tuples inside."""
    if plain is None:
        return None
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _built(next(k for k in inside if k is not types.NoneType), plain)
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        unknown = sorted(set(plain) - {f.name for f in fields(kind)})
        if unknown:
            raise ValueError(f"{kind.__name__} has no {', '.join(unknown)} in this version")
        return kind(**{key: _built(hints[key], value) for key, value in plain.items()})
    if origin is dict:
        return {key: _built(inside[1], value) for key, value in plain.items()}
    return tuple(plain) if origin is tuple else plain
