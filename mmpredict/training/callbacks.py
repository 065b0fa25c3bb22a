"""What hangs on the Trainer of every run: progress, closing table, samples, report, and the rest.

Results must not be lost, so a failure to write them raises (the weights are safe by then); other
logs and pictures are a courtesy: what fails of them is said once, and the training goes on.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.trainer.states import TrainerFn

from mmpredict.schema import Batch
from mmpredict.training import samples
from mmpredict.training.data_report import DataReport, data_lines
from mmpredict.training.disk import DiskSpace
from mmpredict.training.meters import Meters
from mmpredict.training.predictions import Predictions, finite
from mmpredict.training.progress import Progress
from mmpredict.training.randomness import Randomness
from mmpredict.training.report import write_report
from mmpredict.training.report_table import print_table
from mmpredict.training.saving import SHARDED, Checkpoints
from mmpredict.training.signals import Signals
from mmpredict.training.watchdog import Watchdog


def run_callbacks(run_dir: Path) -> list[Callback]:
    """The callbacks of every run; they write to `run_dir`."""
    return [
        Randomness(),
        Signals(),
        Watchdog(),
        DiskSpace(),
        Progress(),
        Meters(),
        FinalTable(run_dir),
        Samples(run_dir),
        Report(run_dir),
        Predictions(run_dir),
        DataReport(run_dir),
        Checkpoints(run_dir / "ckpt"),
    ]


class FinalTable(Callback):
    """After training: scores the held-out test documents, writes results.json and prints the table.

    `validate` and `test` write and print what they measured.

    Args:
        run_dir: where results.json goes; None for the trainer's default_root_dir.
    """

    def __init__(self, run_dir: Path | None = None) -> None:
        self.run_dir = run_dir
        self.results: dict[str, Any] = {}
        self._seconds = 0.0  # of this training up to `_since`, earlier starts included
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Wall seconds of training so far."""
        return self._seconds + (0.0 if self._since is None else time.monotonic() - self._since)

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._seconds = state_dict["seconds"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Not on_train_start: measuring the data's statistics is a part of the price.
        self._since = time.monotonic() if stage == "fit" else None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seconds, self._since = self.seconds, None
        # Lightning asks checkpoint callbacks last; the weights must be safe before that.
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, Checkpoints):
                callback.save(trainer)
        if not hasattr(pl_module, "new_held_out") or not hasattr(trainer, "datamodule"):
            return
        results = score_test_documents(trainer, pl_module)
        if results is not None:
            self._finish(trainer, results, "held-out test documents")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING and getattr(pl_module, "results", None):
            self._finish(trainer, pl_module.results, "validation documents")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if getattr(pl_module, "results", None):
            self._finish(trainer, pl_module.results, "held-out test documents")

    def _finish(self, trainer: Trainer, results: Mapping[str, Any], title: str) -> None:
        seconds = round(self.seconds, 2) if self.seconds else None
        scenes = results["held_out_scenes"]
        streams = {k: v for k, v in results.items() if k != "held_out_scenes"}
        self.results = streams | {"seconds": seconds, "held_out_scenes": scenes}
        if trainer.is_global_zero:
            write_results(folder(trainer, self.run_dir) / "results.json", self.results)
            print_table(self.results, title)
            for line in data_lines(trainer):
                print(line)


def folder(trainer: Trainer, run_dir: Path | None) -> Path:
    """Where a callback writes."""
    return Path(trainer.default_root_dir if run_dir is None else run_dir)


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write the whole file or leave the old one; numbers that are not finite become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    text = json.dumps(finite(results), indent=2, allow_nan=False)
    part.write_text(f"{text}\n", encoding="utf-8")
    os.replace(part, path)


def score_test_documents(trainer: Trainer, module: LightningModule) -> dict[str, Any] | None:
    """`HeldOut.results()` of the test documents; every rank scores its own share."""
    most = 1 if trainer.fast_dev_run else trainer.limit_test_batches
    if trainer.datamodule is None or most == 0:
        return None
    trainer.datamodule.setup("test")
    batches = trainer.datamodule.test_dataloader()
    module.held_out = module.new_held_out()
    with evaluating(module):
        for index, batch in enumerate(islice(batches, most if isinstance(most, int) else None)):
            # Not through the module's transfer hooks: they count training text.
            batch = batch.to(module.device)
            with trainer.precision_plugin.forward_context():
                module.held_out.add(batch, seed=index)
    return module.reduced_results()


@contextmanager
def evaluating(module: LightningModule) -> Iterator[None]:
    """Evaluation mode without gradients, with the weights that scores are taken of; every part's
    own mode comes back."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    scored_weights = getattr(module, "scored_weights", nullcontext)
    try:
        with torch.no_grad(), scored_weights():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


class _Drawing(Callback):
    """Says why something could not be drawn, once, and goes on."""

    def __init__(self, run_dir: Path | None = None) -> None:
        self.run_dir = run_dir
        self._warned: set[str] = set()

    @contextmanager
    def courtesy(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, it must not cost the training
            if what not in self._warned:
                self._warned.add(what)
                reason = str(error).strip().splitlines() or [""]
                message = f"{what} left out: {type(error).__name__}: {reason[0]}"
                warnings.warn(message, stacklevel=3)


class Samples(_Drawing):
    """Draws forecasts of the first validation documents, into samples/ and TensorBoard.

    Args:
        run_dir: samples/ is made in it; None for the trainer's default_root_dir.
    """

    def __init__(self, run_dir: Path | None = None) -> None:
        super().__init__(run_dir)
        self.documents: list[Batch] = []
        self._drawn_step = -1

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0 and self._can_draw(trainer, pl_module) and isinstance(batch, Batch):
            with self.courtesy("samples"):
                self.documents = samples.first_documents(batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._drawn_step:
            self._draw(trainer, pl_module)
        if not self.documents or not self._can_draw(trainer, pl_module):
            return
        subject, stem = self._subject(trainer, pl_module), self._stem(trainer)
        length = trainer.datamodule.loading.context_length
        with evaluating(pl_module):
            with self.courtesy("written text"):
                samples.add_written_text(stem, subject, self.documents)
            with self.courtesy("rollout"):
                pictures = samples.roll_on(stem, subject, self.documents, context_length=length)
                show(trainer, pictures)

    def _subject(self, trainer: Trainer, module: LightningModule) -> samples.Subject:
        return samples.Subject(
            module.predictor,
            trainer.datamodule.codecs,
            device=module.device,
            precision=trainer.precision_plugin.forward_context,
        )

    def _can_draw(self, trainer: Trainer, module: LightningModule) -> bool:
        return (
            trainer.is_global_zero
            and not trainer.sanity_checking
            and type(trainer.strategy).__name__ not in SHARDED
            and hasattr(module, "predictor")
            and hasattr(getattr(trainer, "datamodule", None), "codecs")
        )

    def _stem(self, trainer: Trainer) -> Path:
        where = folder(trainer, self.run_dir) / "samples"
        where.mkdir(parents=True, exist_ok=True)
        return where / f"step-{trainer.global_step:06d}"

    def _draw(self, trainer: Trainer, module: LightningModule) -> None:
        if not self.documents or not self._can_draw(trainer, module):
            return
        self._drawn_step = trainer.global_step
        with self.courtesy("samples"), evaluating(module):
            subject = self._subject(trainer, module)
            pictures = samples.draw(self._stem(trainer), subject, self.documents)
            show(trainer, pictures)


def show(trainer: Trainer, pictures: list[samples.Picture]) -> None:
    """Hand pictures and sounds to TensorBoard, where it is on."""
    boards = [x.experiment for x in trainer.loggers if isinstance(x, TensorBoardLogger)]
    for picture in pictures:
        for board in boards:
            picture.log(board, trainer.global_step)


class Report(_Drawing):
    """Writes report.html after every validation and at the end.

    Args:
        run_dir: where report.html goes; None for the trainer's default_root_dir.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._write(trainer, getattr(pl_module, "results", {}), "validation documents, so far")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        final = next((c.results for c in trainer.callbacks if isinstance(c, FinalTable)), {})
        results = final or getattr(pl_module, "results", {})
        path = self._write(trainer, results, "held-out test documents")
        if path is not None:
            print(f"report: {path}")
            sys.stdout.flush()

    def _write(self, trainer: Trainer, results: Mapping[str, Any], scored: str) -> Path | None:
        if not trainer.is_global_zero:
            return None
        run_dir = folder(trainer, self.run_dir)
        with self.courtesy("report.html"):
            metrics = run_dir / "metrics.csv"
            for logger in trainer.loggers:
                if isinstance(logger, CSVLogger):
                    logger.save()
                    metrics = Path(logger.experiment.metrics_file_path)
            skips = data_lines(trainer, most=200)
            return write_report(
                run_dir,
                metrics=metrics,
                results=results,
                scored=scored,
                step=trainer.global_step,
                skips=skips,
            )
        return None
