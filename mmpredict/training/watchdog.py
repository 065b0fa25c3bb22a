"""Ends a run in which nothing moves any more.

In: the beats of a training, one for each batch. Out: nothing, or after a long silence the stacks of
all threads on stderr, and exit code 75 (EX_TEMPFAIL of sysexits.h: start it again).
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from mmpredict.training.signals import end_children

CODE = 75
LOOKS = 20  # of the thread in the time that is allowed
GRACE_S = 60.0  # for the thread, before the interpreter itself is taken to hang


class Watchdog(Callback):
    """Watches from the first batch to the last, validations included; what comes before and after
    (statistics, closing scores) may take its time.

    A process that was halted as a whole, or a clock that jumps, counts as no silence: the thread
    counts its own looks. Where foreign code holds the interpreter, so that the thread cannot run
    either, the stacks come a minute later, with exit code 1.

    Args:
        timeout_s: longest silence; it must cover compiling, one batch of a validation, and what is
            drawn and saved behind it. 0 turns the watchdog off.
    """

    def __init__(self, timeout_s: float = 1800.0) -> None:
        if timeout_s < 0:
            raise ValueError(f"Watchdog.timeout_s={timeout_s} must be 0 (off) or more")
        self.timeout_s = timeout_s
        self._looks = 0  # without a beat
        self._where = ""
        self._over: threading.Event | None = None
        self._trainer: Trainer | None = None

    def beat(self, where: str) -> None:
        """Something moves."""
        self._looks, self._where = 0, where

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.timeout_s:
            return
        self._end()
        self._trainer, self._over = trainer, threading.Event()
        self.beat("before the first batch")
        threading.Thread(
            target=self._watch, args=(self._over,), name="watchdog", daemon=True
        ).start()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.beat(f"in step {trainer.global_step + 1}")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.beat(f"behind step {trainer.global_step}, waiting for data or another callback")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self.beat(f"in batch {batch_idx + 1} of the validation behind step {trainer.global_step}")

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.beat(f"in the validation behind step {trainer.global_step}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.beat(f"drawing or saving behind step {trainer.global_step}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self._over is not None:
            self._over.set()
            self._over = None
            faulthandler.cancel_dump_traceback_later()

    def _watch(self, over: threading.Event) -> None:
        """The thread: looks some times as often as it may wait."""
        while not over.wait(self.timeout_s / LOOKS):
            try:
                faulthandler.dump_traceback_later(self.timeout_s + GRACE_S, exit=True)
            except (OSError, ValueError, RuntimeError):  # stderr is no file
                pass
            self._looks += 1
            if self._looks > LOOKS:
                self._bark()

    def _bark(self) -> None:
        print(
            f"stopped: nothing moved for {self.timeout_s:g} s, {self._where} (Watchdog.timeout_s); "
            "the stacks of all threads:",
            file=sys.stderr,
            flush=True,
        )
        try:
            faulthandler.dump_traceback(all_threads=True)
        finally:
            end_children(self._trainer)
            os._exit(CODE)
