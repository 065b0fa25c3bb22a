"""Low-rank adapters beside the linear maps of a predictor: LoRA (Hu et al. 2021, arXiv 2106.09685).

In: a predictor and patterns of its linear maps. Out: the same predictor, whose maps compute
W x + alpha / rank * B A x with W at rest; at first B = 0, so that it says exactly what it said.
A checkpoint of such a training holds A and B and what else was trained, and names the file that
holds W; `merged` puts the two together.

Shapes: I inputs, O outputs, R rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BASE, DOWN, UP = "base", "down_RI", "up_OR"


@dataclass(frozen=True)
class Lora:
    """Adapters.

    Args:
        rank: R; the adapters of a map have R (I + O) values.
        alpha: the adapters' product is scaled by alpha / rank.
        targets: patterns of linear maps by name, such as trunk.*_proj or trunk.layers.0; a name
            stands for all below it.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("trunk",)

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"lora: rank={self.rank} and alpha={self.alpha} must be above 0")
        if not self.targets:
            raise ValueError("lora.targets is empty; name linear maps, such as trunk.*_proj")
        object.__setattr__(self, "targets", tuple(self.targets))

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LoraLinear(nn.Linear):
    """A linear map at rest with a trained one of low rank beside it. Whoever reads `weight` gets
    their sum.

    Args:
        linear: the map; its own parameters go on to be used.
        lora: rank and scale.
    """

    def __init__(self, linear: nn.Linear, lora: Lora) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = lora.scale
        self.base = linear.weight
        self.bias = linear.bias
        like = {"device": self.base.device, "dtype": self.base.dtype}
        self.down_RI = nn.Parameter(torch.empty(lora.rank, self.in_features, **like))
        self.up_OR = nn.Parameter(torch.zeros(self.out_features, lora.rank, **like))
        nn.init.normal_(self.down_RI, std=self.in_features**-0.5)

    @property
    def weight(self) -> Tensor:
        """(O, I): what the map comes to."""
        return merged_weight(self.base, self.down_RI, self.up_OR, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.base, self.bias)
        return y + self.scale * F.linear(F.linear(x, self.down_RI), self.up_OR)


def merged_weight(base_OI: Tensor, down_RI: Tensor, up_OR: Tensor, scale: float) -> Tensor:
    """(O, I): W + scale B A."""
    return base_OI + scale * (up_OR @ down_RI)


def adapt(model: nn.Module, names: Iterable[str], lora: Lora) -> None:
    """Put adapters beside the linear maps of these names."""
    for name in names:
        owner, key = _owner(model, name)
        setattr(owner, key, LoraLinear(getattr(owner, key), lora))


@torch.no_grad()
def merge(model: nn.Module) -> list[str]:
    """Put plain linear maps in the place of those with adapters; their names."""
    names = [name for name, module in model.named_modules() if isinstance(module, LoraLinear)]
    for name in names:
        owner, key = _owner(model, name)
        old: LoraLinear = getattr(owner, key)
        new = nn.Linear(old.in_features, old.out_features, bias=old.bias is not None)
        new.weight = nn.Parameter(old.weight.detach().clone())
        if old.bias is not None:
            new.bias = old.bias
        setattr(owner, key, new)
    return names


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    parent, _, key = name.rpartition(".")
    return model.get_submodule(parent), key


def linear_maps(model: nn.Module) -> list[str]:
    """Names of all linear maps that adapters can stand beside."""
    plain = (nn.Linear, LoraLinear)
    return [name for name, module in model.named_modules() if type(module) in plain]


# -- checkpoints that hold adapters alone ------------------------------------------------------


def sha256(path: Path) -> str:
    """Of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(lora: Lora, names: Sequence[str], base: Mapping[str, str]) -> dict[str, Any]:
    """What a checkpoint says of its adapters, in plain types."""
    return {"rank": lora.rank, "alpha": lora.alpha, "names": list(names), "base": dict(base)}


def find_base(base: Mapping[str, str], beside: str | Path) -> Path:
    """The file that the adapters stand on: where it was, or beside their checkpoint.

    Raises:
        ValueError: there is none with the right hash.
    """
    folder = Path(beside).resolve().parent
    was = Path(base["path"])
    told = []
    for place in dict.fromkeys((was, folder / was.name, folder / "base.ckpt")):
        if not place.is_file():
            told.append(f"{place} is not there")
        elif sha256(place) != base["sha256"]:
            told.append(f"{place} is another file (its sha256 differs)")
        else:
            return place
    raise ValueError(
        f"checkpoint {beside} holds adapters alone, and the checkpoint that they stand on is gone: "
        f"{'; '.join(told)}. Put the file with sha256 {base['sha256'][:16]}... there, or beside "
        "the adapters as base.ckpt"
    )


def base_state(about: Mapping[str, Any], beside: str | Path) -> dict[str, Tensor]:
    """Weights of the predictor that the adapters of a checkpoint stand on."""
    from mmpredict.training.checkpoint import load_predictor  # it asks `merged` in turn

    return load_predictor(find_base(about["adapters"]["base"], beside))[0].state_dict()


def completed(
    state: Mapping[str, Tensor], about: Mapping[str, Any], beside: str | Path, names: Iterable[str]
) -> dict[str, Tensor]:
    """The state of a predictor with adapters, as it was trained: what the checkpoint left out is
    taken from its base.

    Args:
        state: of the checkpoint, without a prefix.
        about: its description.
        beside: its path.
        names: all that the predictor has.
    """
    adapted = set(about["adapters"]["names"])
    base = base_state(about, beside)
    found = dict(state)
    for name in names:
        module, _, key = name.rpartition(".")
        source = f"{module}.weight" if module in adapted and key == BASE else name
        if name not in found and source in base:
            found[name] = base[source]
    return found


def merged(
    state: Mapping[str, Tensor], about: Mapping[str, Any], beside: str | Path, names: Iterable[str]
) -> dict[str, Tensor]:
    """The state of a plain predictor: base and adapters in one.

    Args:
        state: of a checkpoint of adapters, without a prefix.
        about: its description.
        beside: its path; the base is looked for from there.
        names: all that the plain predictor has.
    """
    adapters, base = about["adapters"], base_state(about, beside)
    found = {n: state[n] if n in state else base[n] for n in names if n in state or n in base}
    scale = adapters["alpha"] / adapters["rank"]
    for name in adapters["names"]:
        base_OI = state.get(f"{name}.{BASE}", found.get(f"{name}.weight"))
        down_RI, up_OR = state[f"{name}.{DOWN}"], state[f"{name}.{UP}"]
        found[f"{name}.weight"] = merged_weight(base_OI, down_RI, up_OR, scale)
    return found
