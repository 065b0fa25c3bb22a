"""Leaves when it is told to: SIGTERM, SIGUSR1 and SIGINT end a training with its state saved.

In: signals of the system. Out: `Stop` behind the step under way, 143 for SIGTERM and SIGUSR1, 130
for SIGINT; a second signal leaves at once. Before the first step, and once the weights are safe,
there is nothing to finish: one line, and it leaves at once.

Lightning's own SIGTERM handler talks to the other ranks from inside the handler, where a rank may
be in the middle of a sum over all ranks, and ends with status 0; ours takes its place. Under SLURM
with automatic requeueing, the signal for that is left to Lightning.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.trainer.states import TrainerFn

from mmpredict.schema import Stop
from mmpredict.training.saving import Checkpoints

CODES = {signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGINT: 130}


class Signals(Callback):
    """Turns the system's signals into an orderly end of `fit`.

    All ranks stop behind the same step, whichever of them was told: behind every step each says
    whether it was, and reads one step later what all said, so that nobody waits for the answer.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self.stepping = False  # whether there is a step to finish
        self._trainer: Trainer | None = None  # None: signals are somebody else's matter
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}  # handlers that were there
        self._group: dist.ProcessGroup | None = None
        self._said: tuple[dist.Work, torch.Tensor] | None = None
        self._begin = self._step = 0

    # -- from the system ---------------------------------------------------------------------

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler: note the signal, or leave at once."""
        told = signal.Signals(number)
        if os.getpid() != self._process:  # a loader's worker, which its parent ends
            if told == signal.SIGTERM:
                os._exit(CODES[told])
        elif self._trainer is None:
            self._pass_on(told, frame)
        elif self.stepping and self.asked is None:
            self.asked = told
            self._say(f"{told.name}: stopping behind this step; once more leaves at once")
        else:
            self._leave(told)

    def _pass_on(self, told: signal.Signals, frame: FrameType | None) -> None:
        before = self._before.get(told, signal.SIG_DFL)
        if callable(before):
            before(told, frame)
        else:
            signal.signal(told, before)
            signal.raise_signal(told)

    def _leave(self, told: signal.Signals) -> None:
        """End this process and those that it started, as they are."""
        trainer = self._trainer
        self._say(f"{told.name}: left at once; {self._kept(trainer)}")
        end_children(trainer)
        os._exit(exit_code(trainer, CODES[told]))

    def _say(self, line: str) -> None:
        if self._trainer.is_global_zero:
            print(line, file=sys.stderr, flush=True)

    def _kept(self, trainer: Trainer) -> str:
        """What there is to go on from."""
        paths = [c.last_model_path for c in checkpoints(trainer) if c.last_model_path]
        if trainer.state.fn != TrainerFn.FITTING or trainer.global_step == self._begin:
            return "nothing to save"
        if not paths:
            return "nothing was saved"
        return f"saved; go on with --ckpt_path {os.path.relpath(paths[0])}"

    # -- from the trainer ----------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.asked, self.stepping, self._said, self._group = None, False, None, None
        self._trainer, self._process = trainer, os.getpid()
        if not any(requeues(trainer, number) for number in signal.valid_signals()):
            trainer._signal_connector.register_signal_handlers = _nothing
        self._take_over(trainer)
        others = [c for c in trainer.callbacks if not isinstance(c, _Behind)]
        last = [c for c in others if isinstance(c, Checkpoint)]
        trainer.callbacks = [*(c for c in others if c not in last), _Behind(self), *last]
        if trainer.world_size > 1 and stage == "fit" and dist.is_initialized():
            self._group = dist.new_group(backend="gloo")  # of the hosts: no device is waited for

    def _take_over(self, trainer: Trainer) -> None:
        """Become the handler of our signals; under SLURM once more, after Lightning put its own."""
        if threading.current_thread() is not threading.main_thread():
            return  # no signal arrives here
        for number in CODES:
            if not requeues(trainer, number):
                before = signal.signal(number, self.receive)
                self._before.setdefault(number, before)
            elif number not in self._before:  # Lightning puts its handler only where none is
                self._before[number] = signal.signal(number, signal.SIG_DFL)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin = trainer.global_step
        self._take_over(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin = self._step = trainer.global_step
        self._take_over(trainer)
        self.stepping = True

    def behind_batch(self, trainer: Trainer) -> None:
        """Between two steps, when every other callback has had its turn: stop here if told to."""
        if trainer.global_step != self._step:  # else a step's gradients are still being gathered
            self._step = trainer.global_step
            self._stop_if_told(trainer)

    def behind_validation_batch(self, trainer: Trainer) -> None:
        """Also between two steps; what was measured so far will be measured again."""
        if self.stepping:
            self._stop_if_told(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All is learned, and what follows are tables and pictures: save, then end at any time."""
        save(trainer)
        self.stepping = False
        if self.asked is not None and trainer.world_size == 1:
            self._leave(self.asked)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._give_back()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._give_back()

    def _give_back(self) -> None:
        """Signals are what they were. (Lightning puts back later what it has found: `receive`.)"""
        self._trainer = None
        if threading.current_thread() is threading.main_thread():
            for number, before in self._before.items():
                signal.signal(number, before)

    # -- all ranks together ----------------------------------------------------------------------

    def _stop_if_told(self, trainer: Trainer) -> None:
        told = self.asked if self._group is None else self._told_to_any()
        if told is not None:
            save(trainer)
            message = f"{told.name} behind step {trainer.global_step}; {self._kept(trainer)}"
            raise Stop(exit_code(trainer, CODES[told]), message if trainer.is_global_zero else "")

    def _told_to_any(self) -> signal.Signals | None:
        """What any rank had been told when this was last asked."""
        told = None
        if self._said is not None:
            work, number = self._said
            work.wait()
            told = signal.Signals(int(number)) if int(number) else None
        own = torch.tensor([int(self.asked or 0)])
        self._said = (dist.all_reduce(own, dist.ReduceOp.MAX, self._group, async_op=True), own)
        return told


def _nothing() -> None:
    """In the place of Lightning's own handlers."""


class _Behind(Callback):
    """Stands behind all other callbacks but those that save."""

    def __init__(self, signals: Signals) -> None:
        self.signals = signals

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.signals.behind_batch(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.signals.behind_validation_batch(trainer)


def checkpoints(trainer: Trainer) -> list[Checkpoints]:
    """The callbacks that save a run."""
    return [c for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoints)]


def save(trainer: Trainer) -> None:
    """Have the state saved now, unless it is."""
    for callback in checkpoints(trainer):
        callback.save(trainer)


def requeues(trainer: Trainer, number: signal.Signals) -> bool:
    """Whether Lightning takes this signal for SLURM's: save, and have the job queued again."""
    cluster = trainer._accelerator_connector.cluster_environment
    if not isinstance(cluster, SLURMEnvironment) or not cluster.auto_requeue:
        return False
    return number == (cluster.requeue_signal or signal.SIGUSR1)


def end_children(trainer: Trainer | None) -> None:
    """End the loaders' workers, and the ranks that this process has started."""
    for worker in multiprocessing.active_children():
        worker.kill()
    launcher = trainer.strategy.launcher if trainer is not None else None
    if hasattr(launcher, "procs"):
        launcher.kill(signal.SIGKILL)


def exit_code(trainer: Trainer | None, code: int) -> int:
    """The code of this rank: a rank that rank 0 has started ends with 0, or its parent would be
    killed before it has saved."""
    launched = getattr(trainer, "global_rank", 0) > 0 and "TORCHELASTIC_RUN_ID" not in os.environ
    return 0 if launched else code
