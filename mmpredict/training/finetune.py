"""Training that goes on from a checkpoint's weights, with parts of the model at rest.

In: a recipe with patterns of names, and weights that `warm_start` put in. Out: a Pretrain whose
trainable parameters, adapters and learning rates are those of the recipe, after a resume too.

A pattern is a shell pattern over names without the leading `predictor.`; the name of a module
stands for all below it: `trunk`, `trunk.layers.[0-2]`, `*norm*`, `heads.video`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from pytorch_lightning.trainer.states import TrainerFn

from mmpredict.model import Predictor, PredictorConfig
from mmpredict.schema import Layout
from mmpredict.training import lora as adapters
from mmpredict.training.checkpoint import PREFIX
from mmpredict.training.lora import Lora
from mmpredict.training.pretrain import Pretrain
from mmpredict.training.warm_start import Begun

LISTED = 5  # names in a message


class Finetune(Pretrain):
    """Trains what a checkpoint knows on other data: `mmpredict fit --init_from CKPT`.

    Args:
        layout: the streams; comes from the data.
        predictor: sizes; those of the checkpoint where they are left out.
        freeze: patterns of parameters that stay as they are.
        train: patterns of parameters that are trained although `freeze` or `lora` would not.
        lora: adapters; all that came from the checkpoint is at rest then, and the new checkpoint
            holds the adapters and what is new.
        lr_scale: pattern -> factor on the learning rate; where several match, their product.
        layer_decay: the rate of each layer as a share of the rate of the layer above it (ELECTRA,
            Clark et al. 2020; BEiT, Bao et al. 2021); 1 for the same rate in all.
        pretrain: the other settings of Pretrain.
    """

    def __init__(  # noqa: PLR0913 - the knobs of a recipe
        self,
        layout: Layout,
        predictor: PredictorConfig = PredictorConfig(),
        *,
        freeze: tuple[str, ...] = (),
        train: tuple[str, ...] = (),
        lora: Lora | None = None,
        lr_scale: dict[str, float] | None = None,
        layer_decay: float = 1.0,
        **pretrain: Any,
    ) -> None:
        super().__init__(layout, predictor, **pretrain)
        self.freeze, self.train_too, self.lora = tuple(freeze), tuple(train), lora
        self.lr_scale, self.layer_decay = dict(lr_scale or {}), layer_decay
        if not 0 < layer_decay <= 1:
            raise ValueError(f"model.layer_decay={layer_decay} must be above 0, and 1 at most")
        wrong = {name: factor for name, factor in self.lr_scale.items() if not factor > 0}
        if wrong:
            raise ValueError(f"model.lr_scale={wrong} must be above 0; to keep parts, freeze them")
        if lora is not None and self.moved.kind == "muon":
            raise ValueError("model.optimizer muon moves whole matrices; with lora take adamw")
        names = _names(self.predictor)
        self.adapted: tuple[str, ...] = ()
        if lora is not None:
            maps = adapters.linear_maps(self.predictor)
            self.adapted = tuple(matched(maps, lora.targets, "model.lora.targets", "linear map"))
        matched(names, self.lr_scale, "model.lr_scale")
        resting = set(matched(names, freeze, "model.freeze"))
        resting -= set(matched(names, train, "model.train"))
        if len(resting) == len(names) and lora is None:
            raise ValueError(
                f"model.freeze={list(freeze)} freezes all {len(names)} parameters; nothing would "
                "be trained: freeze less, or name what is trained under model.train"
            )
        self.begun: Begun | None = None  # told by the warm start, before `setup`
        self._is_prepared = False

    @property
    def tuning(self) -> dict[str, Any]:
        """What decides which parameters are trained, and how; plain types."""
        return {
            "freeze": list(self.freeze),
            "train": list(self.train_too),
            "lora": None
            if self.lora is None
            else [self.lora.rank, self.lora.alpha, *self.lora.targets],
            "lr_scale": dict(self.lr_scale),
            "layer_decay": self.layer_decay,
        }

    def setup(self, stage: str) -> None:
        """Put the adapters in, and parts to rest, once the checkpoint's weights are there."""
        if not self._is_prepared:
            if stage == "fit" and self.begun is None:
                raise ValueError(
                    "mmpredict.training.Finetune goes on from a checkpoint; give --init_from CKPT, "
                    "or take mmpredict.training.Pretrain to begin from scratch"
                )
            if self.lora is not None:
                adapters.adapt(self.predictor, self.adapted, self.lora)
            if stage == "fit":
                self._put_to_rest()
            self._is_prepared = True
        super().setup(stage)

    def _put_to_rest(self) -> None:
        """What is trained is said by the recipe alone."""
        named = {
            _trained_name(name): parameter
            for name, parameter in self.predictor.named_parameters(remove_duplicate=False)
            if name.rpartition(".")[2] not in (adapters.DOWN, adapters.UP)
        }
        resting = set(matched(list(named), self.freeze, "model.freeze"))
        if self.lora is not None:
            resting |= named.keys() - set(self.begun.anew)
        for name in resting - set(matched(list(named), self.train_too, "model.train")):
            named[name].requires_grad_(False)
        trained = sum(p.numel() for p in self.predictor.parameters() if p.requires_grad)
        whole = sum(p.numel() for p in self.predictor.parameters())
        if self.trainer.is_global_zero:
            print(f"tuned  {trained:,} of {whole:,} parameters ({trained / whole:.2%}) are trained")

    def rate_scales(self) -> dict[int, float]:
        """By id of a parameter, the factor on its learning rate, where it is not 1."""
        scales: dict[int, float] = {}
        depth = len(self.predictor.trunk.layers)
        for name, parameter in self.predictor.named_parameters():
            factor = self.layer_decay ** (depth - _height(name, depth))
            for pattern, scale in self.lr_scale.items():
                factor *= scale if _matches(_trained_name(name), pattern) else 1.0
            if factor != 1.0:
                scales[id(parameter)] = factor
        return scales

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        about = checkpoint["mmpredict"]
        about["tuning"] = self.tuning
        if self.lora is None or self.begun is None:
            return
        base = {"path": self.begun.path, "sha256": self.begun.sha256}
        about["adapters"] = adapters.describe(self.lora, self.adapted, base)
        anew = set(self.begun.anew)
        left_out = {
            f"{PREFIX}{name}"
            for name, p in self.predictor.named_parameters(remove_duplicate=False)
            if not p.requires_grad and _trained_name(name) not in anew
        }
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {n: x for n, x in state.items() if n not in left_out}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        about = checkpoint["mmpredict"]
        if self.trainer.state.fn == TrainerFn.FITTING:
            _check_same(about.get("tuning"), self.tuning)
        if "adapters" in about:
            if self.lora is None:
                raise ValueError(
                    "the checkpoint holds adapters and the recipe has no model.lora; take the "
                    "recipe that it was trained by"
                )
            own = [n for n in checkpoint["state_dict"] if n.startswith(PREFIX)]
            state = {n.removeprefix(PREFIX): checkpoint["state_dict"][n] for n in own}
            beside = self.trainer.ckpt_path or ""
            whole = adapters.completed(state, about, beside, self.predictor.state_dict())
            checkpoint["state_dict"] |= {f"{PREFIX}{n}": tensor for n, tensor in whole.items()}
        elif self.lora is not None:
            raise ValueError("the checkpoint holds no adapters and the recipe has model.lora")
        super().on_load_checkpoint(checkpoint)


def matched(
    names: Sequence[str], patterns: Iterable[str], key: str, what: str = "parameter"
) -> list[str]:
    """The names that any pattern matches.

    Raises:
        ValueError: a pattern matches nothing.
    """
    found: set[str] = set()
    for pattern in patterns:
        mine = {name for name in names if _matches(name, pattern)}
        if not mine:
            near = difflib.get_close_matches(pattern, _with_modules(names), n=3, cutoff=0.4)
            hint = f"did you mean {', '.join(near)}?" if near else f"there are {_few(names)}"
            raise ValueError(f"{key}: {pattern!r} matches no {what}; {hint}")
        found |= mine
    return [name for name in names if name in found]


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _with_modules(names: Sequence[str]) -> list[str]:
    """The names, and those of all that they lie in."""
    parts = (name.split(".") for name in names)
    return sorted({".".join(words[:n]) for words in parts for n in range(1, len(words) + 1)})


def _few(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _names(predictor: Predictor) -> list[str]:
    return [name for name, _ in predictor.named_parameters(remove_duplicate=False)]


def _trained_name(name: str) -> str:
    """The name by which a recipe and the checkpoint know a parameter: a map with adapters keeps
    that of its weight."""
    return f"{name.removesuffix(adapters.BASE)}weight" if name.endswith(".base") else name


def _height(name: str, depth: int) -> int:
    """How many layers up: -1 what comes before the trunk, its number in the trunk, `depth` after
    it."""
    if name.startswith("embed."):
        return -1
    words = name.split(".")
    return int(words[2]) if words[:2] == ["trunk", "layers"] else depth


def _check_same(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """What is trained must not change in mid-run: the optimiser's state is of the old choice."""
    if before is None:
        raise ValueError(
            "the checkpoint is not of a fine-tuning; begin one with its weights: --init_from CKPT "
            "in the place of --ckpt_path"
        )
    changed = [key for key in now if before.get(key) != now[key]]
    if changed:
        lines = [f"model.{key}: {before.get(key)} -> {now[key]}" for key in changed]
        raise ValueError(
            "the recipe trains other parameters than the checkpoint's run did:\n"
            + "\n".join(lines)
            + "\nrestore that, or begin a new run with its weights: --init_from CKPT"
        )
