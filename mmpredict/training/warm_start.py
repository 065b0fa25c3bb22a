"""A run that begins with the weights of a checkpoint: `mmpredict fit --init_from CKPT`.

In: the checkpoint, and what the recipe says. Out: the run's sizes, its vocabulary, its first
weights, a report of what was taken in init.json. A run that is resumed takes all this from its own
checkpoint, and the first one is not read again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor

from mmpredict.model import PredictorConfig
from mmpredict.schema import Layout
from mmpredict.tokens import Codecs, TextTokens
from mmpredict.training.before_after import BeforeAfter
from mmpredict.training.callbacks import FinalTable
from mmpredict.training.carried import Carried, Plan
from mmpredict.training.checkpoint import (
    candidates,
    is_sharded,
    load_predictor,
    locate,
    newest,
    read,
)
from mmpredict.training.lora import sha256

LEAST = 0.9  # of the values that a checkpoint could give
WEIGHTS = "model.safetensors"  # in the folder of an export
SIZES = (
    *("dim", "depth", "num_heads", "num_kv_heads", "head_dim", "hidden", "qk_norm", "qkv_bias"),
    *("norm_eps", "experts", "norm_text", "tie_text"),
)
OF_ROTARY = ("base", "axes")  # the others stretch the range, which is a reason to go on training
OF_MACHINE = ("attention", "checkpoint_activations")  # no part of what a model is
BY_STREAM = ("heads", "encoders", "latent")
OF_LIGHTNING = ("best", "hpc")  # names that it resolves itself
SHOWN = 4  # names in a line of the report


@dataclass(frozen=True)
class Begun:
    """What a run that began with a checkpoint keeps of it.

    Args:
        path, sha256: of the file.
        anew: names of parameters that are not, or not wholly, those of the checkpoint.
        scores: its last validation scores, as in results.json.
    """

    path: str
    sha256: str
    anew: tuple[str, ...] = ()
    scores: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A checkpoint whose sizes and encoders a run takes over.

    Args:
        path: as the user gave it.
        config, codecs: of its predictor.
        state: its weights; None where they come by `--ckpt_path`.
        begun: what is kept of it; of a resumed run, what that run kept.
    """

    path: str
    config: PredictorConfig
    codecs: Codecs
    state: Mapping[str, Tensor] | None
    begun: Begun


def open_source(path: str | Path) -> Source:
    """A checkpoint, a run folder or an export, to begin with; adapters are merged."""
    place = locate(path) if not (Path(path) / WEIGHTS).is_file() else Path(path)
    predictor, codecs, about = load_predictor(place)
    state = predictor.state_dict()
    broken = [n for n, x in state.items() if x.is_floating_point() and not x.isfinite().all()]
    if broken:
        raise ValueError(
            f"checkpoint {place}: {_few(broken)} hold values that are not finite; its training had "
            "failed, take an earlier one"
        )
    file = place / WEIGHTS if place.is_dir() else place
    begun = Begun(str(file.resolve()), sha256(file), scores=about.get("scores") or {})
    return Source(str(path), predictor.config, codecs, state, begun)


def resumed(path: str | Path, init_from: str | None) -> Source | None:
    """What a checkpoint that is resumed says of the one it began with; None if it began with none.

    Raises:
        ValueError: both `--ckpt_path` and `--init_from` are given, of runs that are not the same.
    """
    place: Path | None = Path(path)
    if place.is_dir() and not is_sharded(place):
        place, _ = newest(place)  # those passed over are named when the trainer opens it
    if place is None or str(path) in OF_LIGHTNING:
        return None
    checkpoint = read(place, mmap=True, verify=False)
    kept = checkpoint.get("callbacks", {}).get(WarmStart.__qualname__)
    about = checkpoint.get("mmpredict")
    if kept is None or about is None:
        if init_from is not None:
            raise ValueError(
                f"--ckpt_path goes on with a run exactly, --init_from begins a new one with "
                f"weights; {path} is of a run that began without --init_from: give one of the two"
            )
        return None
    config = PredictorConfig.from_plain(about["predictor"])
    begun = Begun(**{**kept, "anew": tuple(kept["anew"])})
    return Source(str(path), config, Codecs.from_plain(about["codecs"]), None, begun)


def _is_empty(place: Path) -> bool:
    if not place.exists():
        return True
    return place.is_dir() and not is_sharded(place) and not candidates(place)


@dataclass(frozen=True)
class Start:
    """How a run begins.

    Args:
        source: with the sizes and encoders of this checkpoint; None from scratch.
        written: dotted names of the settings that recipe or command line give.
        least: refuse to begin with less than this share of what the checkpoint could give.
    """

    source: Source | None = None
    written: frozenset[str] = frozenset()
    least: float = LEAST

    @classmethod
    def of(
        cls,
        init_from: str | None,
        ckpt_path: str | Path | None,
        *,
        least: float | None = None,
        written: Collection[str] = (),
    ) -> Start:
        """Read what the run begins with, if it is told to.

        Args:
            ckpt_path: of the run that is resumed; a folder without a checkpoint resumes nothing.
        """
        least = LEAST if least is None else least
        if not 0 <= least <= 1:
            raise ValueError(f"init_least={least} is a share, from 0 to 1")
        source = None
        if ckpt_path is not None and not _is_empty(Path(ckpt_path)):
            source = resumed(ckpt_path, init_from)
        elif init_from is not None:
            source = open_source(init_from)
        return cls(source, frozenset(written), least)

    def data(self, data: LightningDataModule) -> LightningDataModule:
        """The datamodule, with the checkpoint's vocabulary unless the recipe asks for another."""
        codecs = getattr(data, "codecs", None)
        if self.source is None or codecs is None or codecs.text is None:
            return data
        old = self.source.codecs.text
        if old is not None and self._takes_vocabulary(codecs.text, old):
            data.codecs = replace(codecs, text=old)
        return data

    def _takes_vocabulary(self, new: TextTokens, old: TextTokens) -> bool:
        if new.path is not None or new.vocabulary is not None:
            return False
        asked = [name for name in self.written if name.startswith("data.") and ".text" in name]
        if not asked:
            return True
        sized = any(name.endswith(".text.vocab_size") for name in asked)
        return (
            new.kind == "bpe"
            and old.kind == "bpe"
            and (not sized or new.vocab_size == old.spec.vocab_size)
        )

    def model_settings(self, settings: dict[str, Any], layout: Layout) -> dict[str, Any]:
        """Arguments of the model's class, with the checkpoint's sizes."""
        if self.source is None:
            return settings
        if settings.get("init_trunk_from"):
            raise ValueError("init_from and model.init_trunk_from both give the trunk; keep one")
        asked = settings.get("predictor", PredictorConfig())
        start = "model.init_args.predictor."
        written = {n.removeprefix(start) for n in self.written if n.startswith(start)}
        return {**settings, "predictor": sizes(asked, self.source, written, layout)}

    def callbacks(self, callbacks: Sequence[Callback], run_dir: Path) -> list[Callback]:
        """Those of a run, with what a run that begins with a checkpoint needs beside them."""
        found = list(callbacks)
        if self.source is None:
            return found
        if not any(isinstance(c, BeforeAfter) for c in found):
            place = [i for i, c in enumerate(found) if isinstance(c, FinalTable)]
            found.insert(place[0] + 1 if place else 0, BeforeAfter(run_dir=run_dir))
        return [WarmStart(self.source, least=self.least, run_dir=run_dir), *found]


def sizes(
    asked: PredictorConfig, source: Source, written: Collection[str], layout: Layout
) -> PredictorConfig:
    """The checkpoint's settings, with those that the recipe writes where both can stand.

    Raises:
        ValueError: a size is written that is not the checkpoint's.
    """
    old = source.config
    tops = {name.partition(".")[0] for name in written}
    wrong = [n for n in SIZES if n in tops and _effective(asked, n) != _effective(old, n)]
    rotary = {n for n in (f.name for f in fields(asked.rotary)) if f"rotary.{n}" in written}
    wrong += [
        f"rotary.{n}" for n in OF_ROTARY if n in rotary and _value(asked, n) != _value(old, n)
    ]
    if wrong:
        rows = [f"{n}: {_shown(old, n)} in the checkpoint, {_shown(asked, n)} here" for n in wrong]
        raise ValueError(
            f"{source.path} is a model of other sizes than model.predictor gives:\n"
            + "\n".join(rows)
            + "\nleave these out, and they are the checkpoint's"
        )
    free = {f.name for f in fields(asked)} - set(SIZES) - set(BY_STREAM) - {"rotary"}
    taken = {n: getattr(asked, n) for n in free if n in tops or n in OF_MACHINE}
    names = {spec.name for spec in layout.streams}
    for key in BY_STREAM:
        known = {n: c for n, c in getattr(old, key).items() if n in names}
        taken[key] = {**known, **getattr(asked, key)}
    stretched = {n: getattr(asked.rotary, n) for n in rotary}
    return replace(old, rotary=replace(old.rotary, **stretched), **taken)


def _effective(config: PredictorConfig, name: str) -> Any:
    """A size with what 0 stands for."""
    derived = {
        "num_kv_heads": config.attention_layer.num_kv_heads,
        "head_dim": config.attention_layer.head_dim,
        "hidden": config.hidden_width,
    }
    return derived.get(name, getattr(config, name))


def _value(config: PredictorConfig, name: str) -> Any:
    return getattr(config.rotary, name)


def _shown(config: PredictorConfig, name: str) -> Any:
    if name.startswith("rotary."):
        return _value(config, name.removeprefix("rotary."))
    return _effective(config, name)


class WarmStart(Callback):
    """Puts a checkpoint's weights into the model before the first step, and says what it took.

    Args:
        source: the checkpoint.
        least: share of what it could give, below which it is refused.
        run_dir: where init.json goes; None for the trainer's default_root_dir.
    """

    def __init__(
        self, source: Source, *, least: float = LEAST, run_dir: Path | None = None
    ) -> None:
        self.source, self.least, self.run_dir = source, least, run_dir
        self.begun = source.begun
        self.plan: Plan | None = None

    def state_dict(self) -> dict[str, Any]:
        return {**asdict(self.begun), "anew": list(self.begun.anew)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.begun = Begun(**{**state_dict, "anew": tuple(state_dict["anew"])})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """After the data are set up and before the model is."""
        if stage != "fit":
            return
        if not hasattr(pl_module, "predictor") or not hasattr(trainer.datamodule, "codecs"):
            kinds = f"{type(pl_module).__name__} on {type(trainer.datamodule).__name__}"
            raise ValueError(f"init_from fills a Pretrain on a ClipDataModule, this is {kinds}")
        if self.source.state is not None and self.plan is None:
            self._begin(trainer, pl_module)
        if hasattr(pl_module, "begun"):
            pl_module.begun = self.begun

    def _begin(self, trainer: Trainer, module: LightningModule) -> None:
        codecs = trainer.datamodule.codecs
        plan = Carried(self.source.state, self.source.codecs).plan(module.predictor, codecs)
        lines = report(plan, self.source, codecs)
        if plan.share < self.least:
            said = "\n".join(lines[1:])
            raise ValueError(
                f"{self.source.path} gives {plan.share:.1%} of the weights that it could, "
                f"init_least is {self.least:.0%}:\n{said}\nis it of the same kind of model? To "
                f"begin the rest anew: --init_least {int(plan.share * 100) / 100:g}"
            )
        if plan.new_statistics:
            module.predictor.set_statistics(trainer.datamodule.statistics())
        module.predictor.load_state_dict(plan.tensors, strict=False)
        module.statistics_taken = True
        self.begun = replace(self.begun, anew=plan.not_whole)
        self.plan = plan
        if trainer.is_global_zero:
            print("\n".join(lines), flush=True)
            folder = Path(self.run_dir or trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / "init.json", self.source, plan)


def report(plan: Plan, source: Source, codecs: Codecs) -> list[str]:
    """What is taken and what is not, in a few lines."""
    count = sum(tensor.numel() for tensor in plan.tensors.values())
    lines = [
        f"init   {source.path}: {len(plan.tensors)} tensors, {count:,} values, {plan.share:.1%} of "
        "what it could give"
    ]
    if plan.anew:
        lines.append(f"  begun anew: {_few(_grouped(plan.anew))}")
    lines += [f"  {name}: {said}" for name, said in list(plan.partly.items())[:SHOWN]]
    if plan.reshaped:
        shapes = [f"{n} {a} -> {b}" for n, (a, b) in plan.reshaped.items()]
        lines.append(f"  of another shape, begun anew: {_few(shapes)}")
    if plan.left:
        lines.append(f"  left behind: {_few(_grouped(plan.left))}")
    changed = differences(source.codecs, codecs)
    return lines + ([f"  encoders differ: {'; '.join(changed)}"] if changed else [])


def differences(old: Codecs, new: Codecs) -> list[str]:
    """Settings of the encoders that both have, where they are not the same."""
    found = []
    pairs = {name: (getattr(old, name), getattr(new, name)) for name in ("audio", "video", "text")}
    pairs |= {n: (old.series[n], new.series[n]) for n in old.series.keys() & new.series.keys()}
    for name, (before, after) in pairs.items():
        if before is None or after is None:
            continue
        for f in fields(before):
            values = getattr(before, f.name), getattr(after, f.name)
            if values[0] != values[1] and f.name != "path":
                told = f"{values[0]} -> {values[1]}" if f.name != "vocabulary" else "another"
                found.append(f"{name}.{f.name} {told}")
    return found


def _grouped(names: Sequence[str]) -> list[str]:
    """heads.touch.norm.weight, heads.touch.skip, ... as heads.touch (2)."""
    groups: dict[str, int] = {}
    for name in names:
        words = name.split(".")
        key = ".".join(words[:3] if words[0] in ("embed", "trunk") else words[:2])
        groups[key] = groups.get(key, 0) + 1
    return [f"{key} ({count})" if count > 1 else key for key, count in groups.items()]


def _few(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _write(path: Path, source: Source, plan: Plan) -> None:
    plain = {
        "checkpoint": source.begun.path,
        "sha256": source.begun.sha256,
        "share": plan.share,
        "taken": list(plan.taken),
        "partly": dict(plan.partly),
        "anew": list(plan.anew),
        "reshaped": {name: list(shapes) for name, shapes in plan.reshaped.items()},
        "left_behind": list(plan.left),
        "new_statistics": list(plan.new_statistics),
    }
    path.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
