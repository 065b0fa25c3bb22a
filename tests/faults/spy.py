"""A callback for runs that are tested from outside: writes what every step was trained on."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class Spy(Callback):
    """Appends a line of JSON for every batch: [batch, step, documents, loss].

    Batches are counted over all starts of a run. Documents are told by their contents: one sum for
    each stream. The loss is written in hex, so that it can be compared bit by bit.

    Args:
        log: file; further ranks write to `<log>.<rank>`.
        slow: seconds to sleep after each step, for tests that must hit a step from outside.
    """

    def __init__(self, log: str, slow: float = 0.0) -> None:
        self.file, self.slow = Path(log), slow

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        sums = [round(float(values.double().sum()), 3) for values in batch.contents.values()]
        rank = trainer.global_rank
        batch_number = trainer.fit_loop.epoch_loop.batch_progress.total.processed
        line = [batch_number, trainer.global_step, sums, float(outputs["loss"]).hex()]
        path = self.file.with_name(f"{self.file.name}.{rank}") if rank else self.file
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self.slow:
            time.sleep(self.slow)
