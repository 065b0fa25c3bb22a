"""Frames through an image network of timm. In: blocks of square RGB patches. Out: one vector of
features per position of the block.

Each frame goes through the network alone: nothing of one frame reaches another, which is why norms
over the batch always use stored statistics here.

Shapes: M blocks (frames), P positions per block, W values per position, F features, C channels,
H W pixels.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from mmpredict.schema import StreamSpec, UserError

SHOWN = 4  # names in a message


@dataclass(frozen=True)
class FrameEncoderConfig:
    """An image network of timm, and where its weights come from: chance, a hub, or a file.

    Args:
        name: as timm names it, with or without a tag: `vit_tiny_patch16_224.augreg_in21k`.
        pretrained: take timm's weights for that name (its own download and its own cache).
        weights: file of weights in timm's form (.safetensors, .pth), in place of the download.
        frozen: the weights stay as they came.
        size: pixels (side, or [height, width]) to which frames are resized; None for the size that
            timm trained it with.
        layer: whose output is taken: block of a transformer, stage of a convolutional network;
            -1 is the last.
        args: further arguments of `timm.create_model`, such as {patch_size: 8}.
    """

    name: str
    pretrained: bool = False
    weights: str | None = None
    frozen: bool = False
    size: int | tuple[int, int] | None = None
    layer: int = -1
    args: dict[str, int | float | bool | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.pretrained and self.weights is not None:
            raise ValueError(
                f"encoder {self.name}: pretrained and weights={self.weights!r} both say where the "
                "weights come from; give one"
            )
        if self.size is not None and min(self.height_width) < 1:
            raise ValueError(f"encoder {self.name}: size={self.size} must be positive")

    @property
    def height_width(self) -> tuple[int, int] | None:
        if self.size is None:
            return None
        return (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)

    @property
    def brings_weights(self) -> bool:
        """Whether weights are to come from elsewhere."""
        return self.pretrained or self.weights is not None

    def follower(self) -> FrameEncoderConfig:
        """Of a copy whose weights are handed to it."""
        return replace(self, pretrained=False, weights=None, frozen=True)


class FrameEncoder(nn.Module):
    """The feature map of a timm network, averaged over the positions of the stream.

    Building it reads nothing: weights from elsewhere come by `read_weights` or with the state of a
    checkpoint, so that a checkpoint needs neither file nor network.

    Args:
        spec: a stream of RGB patches.
        config: which network.
    """

    def __init__(self, spec: StreamSpec, config: FrameEncoderConfig) -> None:
        super().__init__()
        self.spec, self.config = spec, config
        self.patch = _patch_side(spec)
        self.backbone, data = _network(config)
        self.size = config.height_width or tuple(data["input_size"][1:])
        self.layers = _keep_one_layer(self.backbone, config)
        self.register_buffer("mean", torch.tensor(data["mean"])[:, None, None])
        self.register_buffer("std", torch.tensor(data["std"])[:, None, None])
        self.lacks_weights = config.brings_weights
        self.register_load_state_dict_pre_hook(_weights_came)
        if config.frozen:
            self.requires_grad_(False)
        elif not config.brings_weights and any(map(_is_batch_norm, self.backbone.modules())):
            raise ValueError(
                f"encoder {config.name} has batch norms: from scratch they would have to look from "
                "one frame at others, also later ones; give weights, freeze it, or take a network "
                "without them (convnext_*, vit_*)"
            )
        self.train(self.training)
        self.width = self._measured_width()

    def train(self, mode: bool = True) -> FrameEncoder:
        """A frozen network stays in evaluation mode; so do all batch norms."""
        super().train(mode)
        for part in self.backbone.modules():
            if self.config.frozen or _is_batch_norm(part):
                part.training = False
        return self

    def forward(self, values_MPW: Tensor) -> Tensor:
        """(M, P, F) of blocks in the stream's own units; they need not be whole numbers."""
        if self.lacks_weights:
            raise RuntimeError(
                f"encoder {self.config.name}: its weights were not read; call read_weights() of "
                "the predictor, or load a checkpoint"
            )
        map_MFHW = self._feature_map(self.frames(values_MPW))
        return F.adaptive_avg_pool2d(map_MFHW, (self.spec.rows, self.spec.cols)).flatten(2).mT

    def frames(self, values_MPW: Tensor) -> Tensor:
        """(M, C, H, W) as the network wants them: its size, its mean and deviation."""
        rows, cols, patch = self.spec.rows, self.spec.cols, self.patch
        low, high = self.spec.value_range
        grid = values_MPW.float().reshape(-1, rows, cols, 3, patch, patch)
        frames = grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, rows * patch, cols * patch)
        if tuple(frames.shape[2:]) != self.size:
            frames = F.interpolate(frames, self.size, mode="bicubic", antialias=True)
        return ((frames - low) / (high - low) - self.mean) / self.std

    def read_weights(self) -> None:
        """Read the weights that the config names, unless they are here already."""
        if not self.lacks_weights:
            return
        if self.config.pretrained:
            full = _downloaded(self.config)
        else:
            full = _network(self.config)[0]
            _read_file(full, self.config)
        _keep_one_layer(full, self.config)
        self.backbone.load_state_dict(full.state_dict())
        self.lacks_weights = False

    def _feature_map(self, frames_MCHW: Tensor) -> Tensor:
        return self.backbone.forward_intermediates(
            frames_MCHW,
            indices=self.layers,
            norm=True,
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )[0]

    @torch.no_grad()
    def _measured_width(self) -> int:
        """F, by a look at an empty frame: timm does not say it for all layers of all networks."""
        training = self.training
        try:
            return self.eval()._feature_map(torch.zeros(1, 3, *self.size)).shape[1]
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"encoder {self.config.name} does not take frames of {self.size[0]}x{self.size[1]}:"
                f" {_first_line(error)}; set another size"
            ) from error
        finally:
            self.train(training)


def _weights_came(encoder: FrameEncoder, state: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    """A state that is about to be loaded brings the weights."""
    if any(name.startswith(f"{prefix}backbone.") for name in state):
        encoder.lacks_weights = False


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _patch_side(spec: StreamSpec) -> int:
    """Side of the stream's square RGB patches in pixels."""
    side = round((spec.width / 3) ** 0.5)
    if spec.is_discrete or 3 * side**2 != spec.width or spec.value_range is None:
        raise ValueError(
            f"an image encoder takes frames of square RGB patches with a range of values; stream "
            f"{spec.name} has {spec.width} values per position, range {spec.value_range}"
        )
    return side


def _network(config: FrameEncoderConfig) -> tuple[nn.Module, dict[str, Any]]:
    """The whole network, by chance initialised, and how timm prepares its pictures."""
    import timm
    from timm.data import resolve_model_data_config

    if not timm.is_model(config.name):
        base = config.name.split(".")[0]
        near = difflib.get_close_matches(base, timm.list_models(), n=SHOWN)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"timm {timm.__version__} has no network {config.name!r}{hint}")
    made = _created(config, pretrained=False)
    if not hasattr(made, "forward_intermediates"):
        raise ValueError(f"timm's {config.name} does not give the output of its layers")
    return made, resolve_model_data_config(made)


def _created(config: FrameEncoderConfig, *, pretrained: bool) -> nn.Module:
    import timm

    arguments: dict[str, Any] = dict(config.args)
    try:
        if config.size is not None and timm.get_pretrained_cfg(config.name).fixed_input_size:
            arguments["img_size"] = config.height_width
        return timm.create_model(config.name, pretrained=pretrained, num_classes=0, **arguments)
    except (TypeError, AssertionError, RuntimeError) as error:
        if pretrained:
            raise
        raise ValueError(
            f"timm cannot build {config.name} with {arguments or 'no arguments'}: "
            f"{_first_line(error)}"
        ) from error


def _downloaded(config: FrameEncoderConfig) -> nn.Module:
    try:
        return _created(config, pretrained=True)
    except Exception as error:  # hub, connection, cache and timm each have errors of their own
        raise UserError(
            f"timm could not bring the weights of {config.name} "
            f"({type(error).__name__}: {_first_line(error)}); without a network, get the file "
            "elsewhere and give it as weights: FILE in the place of pretrained: true"
        ) from error


def _read_file(network: nn.Module, config: FrameEncoderConfig) -> None:
    """Fill the network from a file. Every tensor must have its place and the other way round; of a
    classifier alone the file may hold more."""
    from timm.models import load_checkpoint

    path, name = Path(config.weights), config.name
    if not path.is_file():
        raise UserError(f"encoder {name}: weights {path} does not exist")
    try:
        missing, unexpected = load_checkpoint(
            network, str(path), strict=False, filter_fn=_file_filter(network)
        )
    except Exception as error:  # a file can be broken in as many ways as there are readers
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"encoder {name}: weights {path} cannot be read: {reason}") from error
    classifiers = network.pretrained_cfg.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    extra = [n for n in unexpected if not n.startswith(tuple(f"{c}." for c in classifiers))]
    if missing or extra:
        lacks = [f"lacks {_some(missing)}"] if missing else []
        holds = [f"also holds {_some(extra)}"] if extra else []
        raise UserError(
            f"encoder {name}: weights {path} are not of this network: the file "
            f"{' and '.join(lacks + holds)}; check name and args"
        )


def _file_filter(network: nn.Module) -> Callable[..., Mapping[str, Tensor]] | None:
    """timm's own translation of foreign files and other sizes, which stands beside the network."""
    import inspect
    import sys

    translate = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if translate is None or "model" in inspect.signature(translate).parameters:
        return translate
    return lambda state, _: translate(state)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def _keep_one_layer(network: nn.Module, config: FrameEncoderConfig) -> list[int]:
    """Cut off what lies behind the layer that is taken; its number from the front."""
    try:
        return list(network.prune_intermediate_layers([config.layer], prune_head=True))
    except (AssertionError, IndexError) as error:
        raise ValueError(
            f"encoder {config.name} has no layer {config.layer}: {_first_line(error)}"
        ) from error
