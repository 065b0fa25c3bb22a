"""The way out: what is said of the next block of a stream, from the condition z of each of its
positions. One file per kind of head, one interface for all heads for blocks of values:

    forward(z, previous, targets, generator) -> ValuesPrediction, for a loss
    mean(z, previous) -> (M, P, D), the regression
    sample(z, previous, *, draws, steps, temperature, min_p, guidance, generator) -> (R, M, P, D)
    surprise(z, previous, targets, generator) -> (M,), for comparing pairs of clips
    nats(z, previous, targets, generator) -> (M,), -log density of the block, or a bound from above

Shapes: M blocks, P positions per block, D values per position, Z condition width, R random draws.
"""

from __future__ import annotations

from torch import nn

from mmpredict.model.heads.codes import CodeHead
from mmpredict.model.heads.config import HeadConfig
from mmpredict.model.heads.flow import FlowHead
from mmpredict.model.heads.mixture import MixtureHead
from mmpredict.model.heads.picking import pick
from mmpredict.model.heads.regression import RegressionHead
from mmpredict.model.heads.words import SoftmaxHead
from mmpredict.schema import StreamSpec

__all__ = [
    "CodeHead",
    "FlowHead",
    "HeadConfig",
    "MixtureHead",
    "RegressionHead",
    "SoftmaxHead",
    "ids_head",
    "pick",
    "values_head",
]


def values_head(spec: StreamSpec, z_dim: int, config: HeadConfig | None = None) -> nn.Module:
    """The head of a continuous stream."""
    config = config or HeadConfig()
    if config.kind == "softmax":
        raise ValueError(f"predictor.heads.{spec.name}: kind softmax is for ids; use flow")
    kinds = {
        "flow": FlowHead,
        "regression": RegressionHead,
        "gmm": MixtureHead,
        "fsq": CodeHead,
    }
    return kinds[config.kind](spec, z_dim, config)


def ids_head(
    spec: StreamSpec,
    table: nn.Embedding,
    config: HeadConfig | None = None,
    *,
    tied: bool = True,
    scaled: bool = True,
) -> SoftmaxHead:
    """The head of a stream of ids; `tied` and `scaled` as in SoftmaxHead."""
    config = config or HeadConfig(kind="softmax")
    if config.kind != "softmax":
        raise ValueError(
            f"predictor.heads.{spec.name}: kind {config.kind} is for blocks of values; streams of "
            "ids have kind softmax"
        )
    return SoftmaxHead(
        table, tied=tied, scaled=scaled, drop_condition=config.drop_condition, name=spec.name
    )
