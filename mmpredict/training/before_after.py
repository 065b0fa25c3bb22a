"""What a fine-tuning does to the old skills. In: a run that began with a checkpoint. Out: losses
and probe answers before its first step and after its last, side by side: a table,
before_after.json, a section of report.html.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer

from mmpredict.tokens import Codecs
from mmpredict.training.callbacks import SHARDED, evaluating, folder, write_results
from mmpredict.training.probe_callback import ProbeSmoke, undisturbed
from mmpredict.training.report_before_after import FILE, MEASURES, print_table, rows
from mmpredict.training.report_table import number

FAR = 1.5  # times the checkpoint's own score: more than other documents of the same kind explain


class BeforeAfter(Callback):
    """Scores the validation documents of a run, of each part of a mixture by itself, and of `old`,
    before and after; and asks a part of the smoke suite.

    Args:
        old: data that the checkpoint knows, which this run is not trained on.
        scenes: of the probes, 5 or more; 0 asks none.
        items: of each family of probes.
        run_dir: where before_after.json goes; None for the trainer's default_root_dir.
    """

    def __init__(
        self,
        old: LightningDataModule | None = None,
        *,
        scenes: int = 5,
        items: int = 8,
        run_dir: Path | None = None,
    ) -> None:
        self.old, self.run_dir = old, run_dir
        self.probes = ProbeSmoke(scenes=scenes, items=items) if scenes else None
        self.before: dict[str, Any] = {}
        self._is_ready = False

    def state_dict(self) -> dict[str, Any]:
        return {"before": self.before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before = state_dict["before"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0 and self._can_score(trainer, pl_module):
            self.before = self._look(trainer, pl_module)
            kept = next((c.begun.scores for c in trainer.callbacks if hasattr(c, "begun")), {})
            if trainer.is_global_zero:
                print("\n".join(first_scores(self.before, kept)), flush=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.before or not self._can_score(trainer, pl_module):
            return
        for callback in trainer.checkpoint_callbacks:  # the weights must be safe before this
            if hasattr(callback, "save"):
                callback.save(trainer)
        after = self._look(trainer, pl_module)
        if trainer.is_global_zero:
            found = {"before": self.before, "after": after}
            write_results(folder(trainer, self.run_dir) / FILE, found)
            print_table(rows(found))

    def _can_score(self, trainer: Trainer, module: LightningModule) -> bool:
        return (
            hasattr(module, "new_held_out")
            and type(trainer.strategy).__name__ not in SHARDED  # one rank holds no whole model
            and bool(trainer.limit_val_batches)
        )

    def _look(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        """Scores by data, and accuracies of the probes."""
        found = {name: score(trainer, module, data) for name, data in self._data(trainer)}
        accuracies: dict[str, float] = {}
        if self.probes is not None and not trainer.fast_dev_run:
            self.probes.ask(trainer, module)
            accuracies = dict(self.probes.accuracies)
        return {"scores": found, "probes": accuracies}

    def _data(self, trainer: Trainer) -> Iterator[tuple[str, LightningDataModule]]:
        own = trainer.datamodule
        parts = getattr(own, "parts", None)
        if parts is None:
            yield "new data", own
        else:
            yield from ((f"part {n} ({type(p).__name__})", p) for n, p in enumerate(parts))
        if self.old is not None:
            if not self._is_ready:
                _share(self.old, own)
                self.old.setup("fit")
                self._is_ready = True
            yield "old data", self.old


def _share(old: Any, own: Any) -> None:
    """The encoders and the loading of the run, for the streams that `old` has."""
    kept = {n: getattr(old.codecs, n) and getattr(own.codecs, n) for n in ("audio", "video")}
    text = old.codecs.text and own.codecs.text
    series = {n: c for n, c in own.codecs.series.items() if n in old.codecs.series}
    old.codecs = Codecs(**kept, text=text, series=series)
    old.loading = old.skip_log.loading = replace(own.loading, workers=0)


def score(trainer: Trainer, module: LightningModule, data: Any) -> dict[str, Any]:
    """`HeldOut.results()` of as many validation batches as the run validates on."""
    most = trainer.limit_val_batches
    module.held_out = module.new_held_out()
    with undisturbed(module), evaluating(module):
        batches = islice(data.val_dataloader(), most if isinstance(most, int) else None)
        for index, batch in enumerate(batches):
            with trainer.precision_plugin.forward_context():
                module.held_out.add(batch.to(module.device), seed=index)
    return module.reduced_results()


def first_scores(before: Mapping[str, Any], kept: Mapping[str, Any]) -> list[str]:
    """How the first scores stand to those that the checkpoint had at its own end."""
    if not kept:
        return ["first  the checkpoint keeps no validation scores; nothing to compare with"]
    lines = []
    for data, scores in before["scores"].items():
        told, far = [], []
        for stream, mine in scores.items():
            theirs = kept.get(stream)
            if not isinstance(theirs, Mapping) or not isinstance(mine, Mapping):
                continue
            measure = next((m for m in MEASURES if m in mine and theirs.get(m)), None)
            if measure is not None:
                told.append(f"{stream} {number(mine[measure])} ({number(theirs[measure])})")
                far += [stream] if mine[measure] > FAR * theirs[measure] else []
        lines.append(f"first  {data}, in brackets the checkpoint's own: {', '.join(told)}")
        if far:
            lines.append(
                f"  far from its own: {', '.join(far)}; the data or the encoders differ from those "
                "that it was trained on. If they should not: mmpredict show says what is set"
            )
    return lines
