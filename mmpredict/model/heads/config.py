"""What a recipe says of a head, and a checkpoint keeps of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from mmpredict.model.fsq import FsqConfig

# The settings that each kind reads; the others must be left alone.
READS = {
    "flow": {"dim", "depth", "draws", "mean_depth", "mean_dim", "drop_condition"},
    "regression": {"mean_depth", "mean_dim"},
    "gmm": {"dim", "depth", "mean_depth", "mean_dim", "components"},
    "fsq": {"dim", "depth", "mean_depth", "mean_dim", "drop_condition", "tokenizer", "codes"},
    "softmax": {"drop_condition"},
}


@dataclass(frozen=True)
class HeadConfig:
    """A head: how the next block of a stream is said.

    Args:
        kind: `flow` samples sharp blocks and regresses their mean; `regression` has the mean alone;
            `gmm` says a mixture of Gaussians, position after position; `fsq` says the codes of a
            tokenizer that was trained before; `softmax` says ids (text has no other).
        dim: width of the head.
        depth: layers of the head.
        draws: noise levels drawn per block and training step (flow).
        mean_depth: layers between z and the mean; 0 for a linear map.
        mean_dim: width of those layers, at most the trunk's.
        components: Gaussians per position (gmm).
        drop_condition: share of the blocks whose past is withheld while training, so that samples
            can be guided away from what would come without it (flow, fsq, softmax).
        tokenizer: checkpoint of `FsqTokenizers` (fsq); read once, when training begins.
        codes: sizes of that tokenizer. Not for recipes: it is filled in, so that a checkpoint of
            the predictor needs no other file.
    """

    kind: Literal["flow", "regression", "gmm", "fsq", "softmax"] = "flow"
    dim: int = 128
    depth: int = 2
    draws: int = 1
    mean_depth: int = 1
    mean_dim: int = 128
    components: int = 8
    drop_condition: float = 0.0
    tokenizer: str = ""
    codes: FsqConfig | None = None

    def __post_init__(self) -> None:
        if self.kind not in READS:
            raise ValueError(f"head.kind={self.kind!r} is none of {', '.join(READS)}")
        for name in ("dim", "depth", "draws", "mean_dim", "components"):
            if getattr(self, name) < 1:
                raise ValueError(f"head.{name}={getattr(self, name)} must be at least 1")
        if self.mean_depth < 0:
            raise ValueError(f"head.mean_depth={self.mean_depth} must be 0 or more")
        if not 0 <= self.drop_condition < 1:
            raise ValueError(f"head.drop_condition={self.drop_condition} must be in [0, 1)")
        ignored = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if f.name not in READS[self.kind] | {"kind"} and getattr(self, f.name) != f.default
        ]
        if ignored:
            raise ValueError(
                f"a head of kind {self.kind} does not read {', '.join(ignored)}; it reads "
                f"{', '.join(sorted(READS[self.kind] - {'codes'}))}"
            )
        if self.kind == "fsq" and not self.tokenizer and self.codes is None:
            raise ValueError(
                "a head of kind fsq needs tokenizer: the checkpoint of a run of "
                "recipes/fsq_tokenizer.yaml on the same data"
            )
