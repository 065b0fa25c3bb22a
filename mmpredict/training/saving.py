"""Saves the state of a training: when, under which names, and what happens when it cannot.

In: a Trainer whose plugin is VerifiedCheckpointIO (or Lightning's own). Out: in the run's ckpt/,
`last.ckpt`, `previous.ckpt`, and a hash beside each.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch.distributed.checkpoint.api import CheckpointException

from mmpredict.training import checkpoint_io
from mmpredict.training.checkpoint import (
    LAST,
    NEXT,
    PREVIOUS,
    DamagedCheckpoint,
    candidates,
    check_hash,
    hashes_path,
    locate,
)
from mmpredict.training.checkpoint_io import PART

SHARDED = ("FSDPStrategy", "ModelParallelStrategy")  # they write folders, past the plugin


class Checkpoints(ModelCheckpoint):
    """Keeps `last.ckpt`, of each validation, of the end or a crash, and the one before.

    It saves between two optimiser steps only, when nothing is half done: what falls into the middle
    of an accumulation waits for its step, what falls before a validation for its end. A new file
    is verified under the name `next.ckpt` before the older ones move on: last to previous, next to
    last. When it cannot be written, the older ones stay, a warning says so once, and the training
    goes on.

    Args:
        dirpath: folder of the files; None for ckpt/ in the trainer's default_root_dir.
        every_n_train_steps: save also every so many steps; 0 for validations only.
    """

    def __init__(self, dirpath: Path | None = None, every_n_train_steps: int = 0) -> None:
        super().__init__(dirpath=dirpath, save_top_k=0, save_last=True, save_on_exception=True)
        self.every = every_n_train_steps
        self.saved_step = -1
        self.failed = False  # the last attempt; a series of failures is said once
        self._due = False  # as soon as the step under way is done
        self._stepping = False  # the optimiser is, or was, at work on this batch
        self._last_is_whole = False  # known, or to be seen before it takes the other's place

    # -- when --------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.dirpath is None:
            self.dirpath = os.path.join(trainer.default_root_dir, "ckpt")
        self.dirpath = str(trainer.strategy.broadcast(self.dirpath))
        self.saved_step, self.failed, self._due = -1, False, False
        self._stepping = self._last_is_whole = False
        if stage == "fit" and trainer.is_global_zero:
            for name in checkpoint_io.sweep(Path(self.dirpath)):
                print(f"note: removed {name}: an earlier start was stopped while saving it")

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a checkpoint that was moved must not speak of its old folder."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing, whatever an older checkpoint says."""

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        mend_progress(checkpoint)

    def on_train_batch_start(self, *_: Any) -> None:
        self._stepping = False

    def on_before_optimizer_step(self, *_: Any) -> None:
        self._stepping = True

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        step = trainer.global_step
        regular = self.every and step and step % self.every == 0
        if (regular or self._due) and not _validates_now(trainer):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: an epoch may be one batch."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save what was reached. Not with several ranks: those that do not fail would not come."""
        if trainer.global_step > 0 and trainer.world_size == 1:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)
        if self.failed and trainer.is_global_zero:
            print(f"note: the weights of step {trainer.global_step} are not saved", file=sys.stderr)

    # -- how ---------------------------------------------------------------------------------

    def save(self, trainer: Trainer) -> None:
        """Write `last.ckpt`, unless this step is in it already. All ranks call this together."""
        step = trainer.global_step
        if (
            trainer.fast_dev_run
            or trainer.sanity_checking
            or trainer.state.fn != TrainerFn.FITTING
            or step == self.saved_step
        ):
            return
        if not between_steps(trainer, stepping=self._stepping):
            self._due = True
            return
        self._due = False
        failure = self._written(trainer)
        if trainer.strategy.broadcast(failure is None):
            self.saved_step, self.failed = step, False
            self.last_model_path = self.best_model_path = str(Path(self.dirpath) / LAST)
        elif not self.failed:
            self.failed = True
            there = (Path(self.dirpath) / LAST).exists()
            kept = f"{LAST} stays as it was" if there else "there is none yet"
            rank_zero_warn(
                f"the checkpoint of step {step} could not be written to {self.dirpath}: {failure}; "
                f"{kept}, training goes on, and saving is tried again"
            )

    def _written(self, trainer: Trainer) -> BaseException | None:
        """Write a new checkpoint and move the older ones on; what stood in the way, if anything."""
        new = Path(self.dirpath) / NEXT
        sharded = type(trainer.strategy).__name__ in SHARDED
        path = new.with_name(new.name + PART) if sharded else new
        try:
            trainer.save_checkpoint(path)
        except (OSError, CheckpointException) as error:
            trainer.strategy.barrier()  # the other ranks wait in save_checkpoint
            return error
        failure = None
        if trainer.is_global_zero:
            try:
                if sharded:
                    checkpoint_io.settle(path, new)
                self._move_on(Path(self.dirpath))
            except OSError as error:
                failure = error
        trainer.strategy.barrier()
        return failure

    def _move_on(self, folder: Path) -> None:
        """last -> previous, next -> last; there is a whole checkpoint at every moment."""
        last = folder / LAST
        if last.exists() and not self._last_is_whole:  # of an earlier start
            try:
                check_hash(last)
            except DamagedCheckpoint as error:
                aside = last.with_name(f"{LAST}.damaged")
                checkpoint_io.remove(aside)
                os.replace(last, aside)
                hashes_path(last).unlink(missing_ok=True)
                print(f"note: {error}; it is {aside.name} now")
        if last.exists():
            checkpoint_io.keep_as(last, folder / PREVIOUS)
        checkpoint_io.shift(folder / NEXT, last)
        self._last_is_whole = True


def path_of(asked: str | None, trainer: Trainer, *, starts: bool) -> str | None:
    """`--ckpt_path` as a path: `last` is the newest whole checkpoint of this run, a folder its own.

    Args:
        starts: a run without a checkpoint may begin: one command starts and restarts it.
    """
    if asked in (None, "best", "hpc"):  # Lightning's own
        return asked
    if asked != "last":
        return str(locate(asked))
    ours = (c.dirpath for c in trainer.callbacks if isinstance(c, Checkpoints) and c.dirpath)
    folder = Path(next(ours, trainer.default_root_dir))
    if starts and not candidates(folder):
        print(f"note: no checkpoint in {folder} yet; the run begins at step 0")
        return None
    return str(locate(folder))


def mend_progress(checkpoint: dict[str, Any]) -> None:
    """Set right what Lightning 2.6 would count wrongly when it goes on from a checkpoint.

    A batch that failed is not a batch: it would shift all validations by one. And the batches of a
    new epoch are counted from 0, which Lightning does only for loaders that have a length; with the
    others it would gather gradients over other batches than the unbroken run.
    """
    progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress")
    if progress is None:
        return
    for counts in (progress["total"], progress["current"]):
        counts["ready"] = counts["started"] = counts["processed"]
    if progress["is_last_batch"]:
        done = progress["current"]["processed"]
        progress["current"] = {n: count - done for n, count in progress["current"].items()}


def between_steps(trainer: Trainer, *, stepping: bool) -> bool:
    """Whether nothing is half done: no update of the weights, no gathering of gradients.

    Args:
        stepping: the optimiser was at work on the batch that is under way.
    """
    loop = trainer.fit_loop.epoch_loop
    progress = loop.batch_progress
    under_way = progress.current.ready > progress.current.processed
    if under_way and stepping:
        return False
    if progress.current.processed % trainer.accumulate_grad_batches == 0:
        return True
    return not under_way and loop._num_ready_batches_reached()


def _validates_now(trainer: Trainer) -> bool:
    """Whether a validation follows this batch at once; a save is then made behind it."""
    loop = trainer.fit_loop
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
