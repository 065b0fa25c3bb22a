"""Steps that would do harm are not taken.

In: the norm of every step's gradient. Out: whether the step is skipped; a line for each that was,
in bad_steps.jsonl and on the console, with the names of its documents; `Stop` with code 70, and the
batch in a file, after too many in a row.

A skipped step leaves no trace in the weights, in what the optimiser and the averages remember, in
the counts of words, nor in the statistics that later steps are judged by (a rule that lets them in
is blind afterwards, and with a NaN among them judges nothing). It counts as a step: schedule, data
and randomness go on.

On a CPU a skipped step loses its gradients, and so every optimiser passes it over. On CUDA the
verdict stays on the device and goes into the fused kernel (`found_inf`); the host reads verdicts
some steps late, so that no step waits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning import Trainer
from torch import Tensor
from torch.optim import AdamW, Optimizer

from mmpredict.schema import Batch, Stop
from mmpredict.training.disk import append_line, give_up
from mmpredict.training.muon import MuonAdamW
from mmpredict.training.signals import exit_code

CODE = 70  # EX_SOFTWARE of sysexits.h
RENEWED = 8  # steps between two looks at the statistics
NORMAL = 1.4826  # deviation of a normal distribution over its median absolute deviation
FEWEST = 4  # steps from which a deviation can be said
SHOWN = 5  # documents on the console


@dataclass(frozen=True)
class BadSteps:
    """Which steps are skipped.

    A step is bad if its loss or gradient is not finite, or if it is wild: log |gradient| lies
    further above the median of the last good steps than `sigmas` deviations (1.4826 times the
    median absolute deviation) and |gradient| above `least_ratio` times that median. The idea is
    OLMo's (6 deviations of 128 steps; OLMo 2, arXiv 2501.00656); medians keep few bad steps from
    moving the bound.

    Args:
        skip: whether bad steps are skipped at all.
        sigmas: see above; 0 for steps that are not finite only.
        least_ratio: see above.
        window: good steps that are remembered.
        warm_up: good steps before a step can be wild.
        most_in_a_row: stop after so many bad steps one after the other.
    """

    skip: bool = True
    sigmas: float = 6.0
    least_ratio: float = 4.0
    window: int = 128
    warm_up: int = 32
    most_in_a_row: int = 20

    def __post_init__(self) -> None:
        if self.sigmas < 0 or self.least_ratio < 1:
            raise ValueError(
                f"bad_steps.sigmas={self.sigmas} must be 0 or more, "
                f"least_ratio={self.least_ratio} at least 1"
            )
        if self.warm_up < FEWEST or self.window < self.warm_up or self.most_in_a_row < 1:
            raise ValueError(
                f"bad_steps.warm_up={self.warm_up} must be at least {FEWEST}, "
                f"window={self.window} no less than warm_up, "
                f"most_in_a_row={self.most_in_a_row} at least 1"
            )


class Verdicts:
    """The rule, on the device of the gradients; it never asks the device for a number.

    Args:
        settings: of the rule.
        device: of the gradients.
    """

    def __init__(self, settings: BadSteps, device: torch.device) -> None:
        self.settings = settings
        self.logs_W = torch.full((settings.window,), math.inf, device=device)  # of good steps
        self.good = torch.zeros((), dtype=torch.int64, device=device)
        self.bound = torch.full((), math.inf, device=device)  # of log |gradient|
        self._places_W = torch.arange(settings.window, device=device)

    @torch.no_grad()
    def judge(self, norm: Tensor, step: int) -> Tensor:
        """0-d bool: whether the step with this gradient is bad. A good one is remembered."""
        if self.settings.sigmas and step % RENEWED == 0:  # by the step's number: a resumed run too
            self._renew()
        log = norm.detach().log()
        bad = ~norm.isfinite() | (log > self.bound)
        here_W = (self._places_W == self.good % self.settings.window) & ~bad & log.isfinite()
        self.logs_W = torch.where(here_W, log, self.logs_W)
        self.good = self.good + here_W.sum()
        return bad

    def _renew(self) -> None:
        known = self.good.clamp(max=self.settings.window)
        middle = ((known - 1).clamp(min=0) // 2).view(1)
        median = self.logs_W.sort().values.gather(0, middle)
        away = (self.logs_W - median).abs().sort().values.gather(0, middle)
        room = (self.settings.sigmas * NORMAL * away).clamp(min=math.log(self.settings.least_ratio))
        warm = known >= self.settings.warm_up
        self.bound = torch.where(warm, (median + room)[0], math.inf)

    def state_dict(self) -> dict[str, Tensor]:
        return {"logs": self.logs_W, "good": self.good, "bound": self.bound}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from saved statistics; those of another window are begun anew."""
        if len(state["logs"]) == len(self.logs_W):
            device = self.logs_W.device
            self.logs_W, self.good = state["logs"].to(device), state["good"].to(device)
            self.bound = state["bound"].to(device)


@dataclass
class Judged:
    """A step whose verdict the host has not read yet."""

    step: int
    batches: tuple[int, int]  # first and last number of its batches
    figures: Tensor  # (4,): bad, |gradient|, bound of its log, loss
    if_good: list[Callable[[], None]] = field(default_factory=list)


class StepGuard:
    """Judges the steps of a training, and tells of the bad ones.

    Args:
        settings: of the rule.
    """

    def __init__(self, settings: BadSteps) -> None:
        self.settings = settings
        self.verdicts: Verdicts | None = None
        self.bad: Tensor | None = None  # of the last step, on the device; None if it was good
        self.on_device = False  # whether the verdict is acted on without the host
        self.total = self.in_a_row = 0
        self._loaded: dict[str, Any] = {}
        self._waiting: list[Judged] = []
        self._if_good: list[Callable[[], None]] = []  # of the step under way
        self._batches: list[Batch] = []  # of the step under way, or the last
        self._first = self._last = 0  # their numbers
        self._loss: Tensor | None = None  # their sum
        self._is_judged = True

    # -- during a step -------------------------------------------------------------------------

    def take(self, batch: Batch, number: int) -> None:
        """A batch of the step under way; `number` counts all batches of the training."""
        if self._is_judged:
            self._batches, self._loss, self._first, self._is_judged = [], None, number, False
        self._batches.append(batch)
        self._last = number

    def if_good(self, act: Callable[[], None]) -> None:
        """Have something done once the step under way is known to be good."""
        self._if_good.append(act)

    def loss(self, total: Tensor) -> Tensor:
        """The same loss; one that is not finite has a gradient that is not finite either, which
        the sum over all ranks carries to each of them."""
        self._loss = total.detach() if self._loss is None else self._loss + total.detach()
        return total * torch.where(total.detach().isfinite(), 1.0, math.nan).to(total.dtype)

    def judge(self, norm: Tensor, optimizer: Optimizer, step: int, *, on_device: bool) -> None:
        """Before the optimiser moves: see to it that a bad step moves nothing."""
        self.on_device = on_device
        if not self.settings.skip:
            self.bad = None
            self._queue(step, norm, torch.zeros((), dtype=torch.bool, device=norm.device))
            return
        if self.verdicts is None or self.verdicts.logs_W.device != norm.device:
            self.verdicts = Verdicts(self.settings, norm.device)
            if self._loaded:
                self.verdicts.load_state_dict(self._loaded)
                self._loaded = {}
        bad = self.verdicts.judge(norm, step)
        self._queue(step, norm, bad)
        if on_device:
            self.bad = optimizer.found_inf = bad.float()
            return
        self.bad = bad if bool(bad) else None
        if self.bad is not None:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def _queue(self, step: int, norm: Tensor, bad: Tensor) -> None:
        bound = torch.full_like(norm, math.inf) if self.verdicts is None else self.verdicts.bound
        loss = torch.zeros_like(norm) if self._loss is None else self._loss
        figures = torch.stack([x.float() for x in (bad, norm.detach(), bound, loss)])
        self._waiting.append(Judged(step, (self._first, self._last), figures, self._if_good))
        self._if_good, self._is_judged = [], True

    # -- behind a step -------------------------------------------------------------------------

    def behind(self, trainer: Trainer, *, wait: bool) -> None:
        """Read the verdicts when it is time to, or told to; stops after too many in a row."""
        most = min(trainer.log_every_n_steps, self.settings.most_in_a_row)
        if self._waiting and (wait or not self.on_device or len(self._waiting) >= most):
            self.settle(trainer)
        if self.in_a_row >= self.settings.most_in_a_row:  # a save may have read it before
            self._stop(trainer)

    def settle(self, trainer: Trainer) -> None:
        """Read all verdicts; one wait for the device."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        for judged, figures in zip(
            waiting, torch.stack([j.figures for j in waiting]).tolist(), strict=True
        ):
            if figures[0]:
                self.total += 1
                self.in_a_row += 1
                self._tell(trainer, judged, figures[1:])
            else:
                self.in_a_row = 0
                for act in judged.if_good:
                    act()

    def _tell(self, trainer: Trainer, judged: Judged, figures: Sequence[float]) -> None:
        norm, bound, loss = figures
        if not math.isfinite(loss):
            why = f"loss {loss:g}"
        elif not math.isfinite(norm):
            why = f"gradient {norm:g}"
        else:
            why = f"|gradient| {norm:.4g} above {math.exp(bound):.4g}"
        documents = gathered(trainer, documents_of(trainer, *judged.batches))
        if not trainer.is_global_zero:
            return
        line = {
            "step": judged.step + 1,  # as the progress bar counts
            "reason": why,
            "batches": list(judged.batches),
            "norm": norm if math.isfinite(norm) else None,
            "bound": math.exp(bound) if math.isfinite(bound) else None,
            "loss": loss if math.isfinite(loss) else None,
            "in_a_row": self.in_a_row,
            "documents": documents,
        }
        append_line(Path(trainer.default_root_dir) / "bad_steps.jsonl", json.dumps(line))
        named = [name for rank in documents for name in rank]
        more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
        say = f"step {judged.step + 1} skipped: {why}; documents {', '.join(named[:SHOWN])}{more}"
        bar = trainer.progress_bar_callback
        (bar.print if bar is not None else print)(say)

    def _stop(self, trainer: Trainer) -> None:
        rank = f"-rank{trainer.global_rank}" if trainer.global_rank else ""
        path = Path(trainer.default_root_dir) / f"bad_batch{rank}.pt"
        numbers = (self._first, self._last)
        plain = {
            "step": trainer.global_step,
            "documents": documents_of(trainer, *numbers),
            "batches": [as_plain(batch) for batch in self._batches],
        }
        with give_up(f"{path.name} not written"):
            torch.save(plain, path)
        message = (
            f"{self.in_a_row} bad steps in a row (limit: model.bad_steps.most_in_a_row="
            f"{self.settings.most_in_a_row}); bad_steps.jsonl has their documents, {path} the last "
            "batch. The weights are those before them: look at the documents, lower model.lr, or "
            "set model.bad_steps.sigmas 0 if such gradients are right, and go on with --ckpt_path"
        )
        code = exit_code(trainer, CODE)
        raise Stop(code, message if trainer.is_global_zero else "")

    # -- between starts ------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers; after `settle`."""
        statistics = self.verdicts.state_dict() if self.verdicts else self._loaded
        plain = {name: tensor.cpu() for name, tensor in statistics.items()}
        return {"total": self.total, "in_a_row": self.in_a_row, "statistics": plain}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """A run that was stopped by too many in a row begins to count anew."""
        row = state["in_a_row"]
        self.total, self.in_a_row = state["total"], row % self.settings.most_in_a_row
        self._loaded, self.verdicts = dict(state["statistics"]), None


def stays_on_device(optimizer: Optimizer, norm: Tensor, *, scaled: bool) -> bool:
    """Whether a verdict can be acted on without reading it on the host."""
    adamw = optimizer._adamw if isinstance(optimizer, MuonAdamW) else optimizer
    fused = isinstance(adamw, AdamW) and bool(adamw.defaults.get("fused"))
    return norm.device.type == "cuda" and fused and not scaled


def norm_of(optimizer: Optimizer) -> Tensor:
    """|gradient| of all that an optimiser moves; of parts that are spread over ranks, of all."""
    grads = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    return whole(torch.nn.utils.get_total_norm(grads))


def whole(norm: Tensor) -> Tensor:
    """A norm of spread gradients as one number on every rank."""
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def documents_of(trainer: Trainer, first: int, last: int) -> list[str]:
    """Names of the documents in batches of the training, where the loader can tell."""
    loader = trainer.train_dataloader
    if not hasattr(loader, "titles"):
        return []
    return [title for number in range(first, last + 1) for title in loader.titles(number)]


def gathered(trainer: Trainer, own: list[str]) -> list[list[str]]:
    """What every rank names; all ranks call this together."""
    if trainer.world_size == 1 or not dist.is_initialized():
        return [own]
    found: list[list[str]] = [[] for _ in range(trainer.world_size)]
    dist.all_gather_object(found, own)
    return found


def as_plain(batch: Batch) -> dict[str, Any]:
    """A batch as tensors and plain types, which `torch.load(..., weights_only=True)` reads."""
    host = batch.to("cpu")
    names = ("modality", "block_id", "doc_id", "positions", "end_s", "prev_same", "prev_any")
    plain = {name: getattr(host, name) for name in (*names, "loss_mask")}
    return plain | {"contents": {int(m): values for m, values in host.contents.items()}}
