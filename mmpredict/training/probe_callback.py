"""Probes while training: a few questions about scenes of the world, asked again and again. In: the
module's predictor. Out: `probe/<family>/accuracy` in every logger.

The training does not notice: modes, random states and gradients are as before
(tests/training/test_probe_callback.py).
"""

from __future__ import annotations

import copy
import random
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn

from mmpredict.probes.evidence import possible_variants
from mmpredict.probes.items import VARIANTS, Item, Suite
from mmpredict.probes.run import ModelScorer, run_suite
from mmpredict.probes.suites import build_suite
from mmpredict.tokens import Codecs
from mmpredict.training.callbacks import SHARDED, evaluating


class ProbeSmoke(Callback):
    """Scores a cheap part of the smoke suite on development scenes, never on test scenes.

    Every item is asked in the richest form that the model has streams for. Accuracies of so few
    items show that something is being learned; they do not compare models.

    Args:
        every_n_steps: ask also after every so many steps; 0 for after each validation alone.
        families: of the suite; none for all.
        scenes: how many.
        items: at most so many of a family.
        seed: of the scenes.
    """

    def __init__(
        self,
        every_n_steps: int = 0,
        families: Sequence[str] = (),
        *,
        scenes: int = 8,
        items: int = 16,
        seed: int = 0,
    ) -> None:
        if every_n_steps < 0 or scenes < 1 or items < 1:
            raise ValueError(
                f"every_n_steps={every_n_steps} must be 0 or more, scenes={scenes} and "
                f"items={items} at least 1"
            )
        self.every, self.families = every_n_steps, tuple(families)
        self.scenes, self.items, self.seed = scenes, items, seed
        self.accuracies: dict[str, float] = {}
        self._asked_step = -1
        self._suite: Suite | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if self.every and trainer.global_step % self.every == 0:
            self.ask(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self.ask(trainer, pl_module)

    def ask(self, trainer: Trainer, module: LightningModule) -> None:
        """Score and log, once per step; on the first rank alone."""
        if trainer.global_step == self._asked_step or not self._can_ask(trainer, module):
            return
        self._asked_step = trainer.global_step
        with undisturbed(module), evaluating(module):
            predictor = module.predictor
            if next(predictor.parameters()).dtype != torch.float32:
                predictor = copy.deepcopy(predictor).float()
            self.accuracies = self._score(predictor, trainer.datamodule.codecs)
        named = {f"probe/{name}/accuracy": value for name, value in self.accuracies.items()}
        for logger in trainer.loggers if named else ():
            logger.log_metrics(named, step=trainer.global_step)

    def _can_ask(self, trainer: Trainer, module: LightningModule) -> bool:
        return (
            trainer.is_global_zero
            and type(trainer.strategy).__name__ not in SHARDED  # one rank holds no whole model
            and hasattr(module, "predictor")
            and hasattr(getattr(trainer, "datamodule", None), "codecs")
        )

    def _score(self, predictor: torch.nn.Module, codecs: Codecs) -> dict[str, float]:
        """Mean score of each family."""
        found: dict[str, list[float]] = defaultdict(list)
        suite = self._chosen(codecs)
        for variant in VARIANTS:
            mine = tuple(item for item in suite.items if item.variants == (variant,))
            if not mine:
                continue
            scorer = ModelScorer(predictor, codecs, suite.sources, variants=[variant])
            part = Suite(suite.name, mine, suite.sources)
            for row in run_suite(scorer, part, [variant], curves_per_family=0).rows:
                if row["score"] is not None:
                    found[row["family"]].append(row["score"])
        return {family: sum(scores) / len(scores) for family, scores in sorted(found.items())}

    def _chosen(self, codecs: Codecs) -> Suite:
        """Built once: some items of each family, each with the one variant in which it is asked."""
        if self._suite is None:
            whole = build_suite("smoke", split="dev", scenes=self.scenes, seed=self.seed)
            unknown = [name for name in self.families if name not in whole.families]
            if unknown:
                raise ValueError(
                    f"families={unknown} are not in the smoke suite; it has "
                    f"{', '.join(whole.families)}"
                )
            kept = _some(whole.items, self.families or whole.families, self.items, codecs)
            if not kept:
                warnings.warn("no probe fits the streams of this model", stacklevel=2)
            used = {e.source for item in kept for e in item.evidence}
            sources = {name: s for name, s in whole.sources.items() if name in used}
            self._suite = Suite(whole.name, kept, sources)
        return self._suite


def _some(
    items: Sequence[Item], families: Sequence[str], most: int, codecs: Codecs
) -> tuple[Item, ...]:
    """The first items of each family that the model has streams for, in their richest form."""
    kept: list[Item] = []
    counts: dict[str, int] = defaultdict(int)
    for item in items:
        able = possible_variants(codecs, [item])
        if item.family in families and able and counts[item.family] < most:
            counts[item.family] += 1
            kept.append(replace(item, variants=(able[-1],)))
    return tuple(kept)


@contextmanager
def undisturbed(module: LightningModule) -> Iterator[None]:
    """All random states come back as they were."""
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global one
    devices = [module.device] if module.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002
