"""What a person sees while a run goes on: three lines before the first step (`Meters` adds one on
its cost), then one that moves.

The device is asked for numbers once a second at most: every question makes it wait.
"""

from __future__ import annotations

import time
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.trainer.states import TrainerFn

from mmpredict.schema import Batch
from mmpredict.training.flops import positions
from mmpredict.training.meters import Meters

QUIET_TENTHS = 10  # lines of a whole training where there is no terminal
QUIET_S = 60.0  # between lines where the number of steps is not known
LOSS = "train/loss/"
PARTS = ("_mean", "_flow", "_nats", "_latent")  # of a stream's loss: it stands for them


class Progress(ProgressBar):
    """A bar with step, tokens per second, time left and the loss of each stream.

    Where there is no terminal: a plain line after every tenth of the steps.

    Args:
        refresh_s: seconds between two updates.
    """

    def __init__(self, refresh_s: float = 1.0) -> None:
        super().__init__()
        self.refresh_s = refresh_s
        self._enabled = True
        self._bar: Any = None
        self._total: int | None = None
        self._tokens = 0  # since `_window_s`
        self._window_s = self._start_s = self._shown_s = 0.0
        self._start_step = self._last_tenth = 0
        self._tokens_per_s = 0.0
        self._paused = False

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.console.print(*args, **kwargs, markup=False, highlight=False)
        elif self._enabled:
            print(*args, **kwargs)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._enabled:
            return
        self._total = total_steps(trainer)
        for line in opening_lines(trainer, pl_module, self._total):
            print(line, flush=True)
        self._start_s = 0.0  # the clock starts after the first step, which may compile
        self._last_tenth = QUIET_TENTHS * trainer.global_step // self._total if self._total else 0
        self._open_bar(trainer.global_step)

    def _open_bar(self, step: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        console = Console()
        if not console.is_terminal:
            return
        columns = (BarColumn(bar_width=12), TextColumn("{task.description}", markup=False))
        self._bar = Bar(*columns, console=console, auto_refresh=False)
        self._task = self._bar.add_task("first step ...", total=self._total, completed=step)
        self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._enabled:
            return
        now = time.monotonic()
        if self._start_s == 0.0:
            self._start_s = self._window_s = self._shown_s = now
            self._start_step = trainer.global_step
            self._tokens = 0
            return
        if isinstance(batch, Batch):
            self._tokens += sum(positions(batch).values())
        if now - self._shown_s >= self.refresh_s:
            self._measure(trainer)
            self._show(trainer)

    def _measure(self, trainer: Trainer) -> None:
        """Tokens per second since the last look, smoothed; all ranks are held to be equal."""
        tokens, now = self._tokens * trainer.world_size, time.monotonic()
        if tokens and now > self._window_s:
            rate = tokens / (now - self._window_s)
            old = self._tokens_per_s or rate
            self._tokens_per_s = 0.7 * old + 0.3 * rate
        self._tokens, self._window_s, self._shown_s = 0, now, now

    def _show(self, trainer: Trainer, *, at_end: bool = False) -> None:
        step = trainer.global_step
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=self._line(trainer))
            self._bar.refresh()
            return
        if self._total:
            tenth = QUIET_TENTHS * step // self._total
            due, self._last_tenth = tenth > self._last_tenth, tenth
        else:
            due = time.monotonic() - self._start_s >= QUIET_S * (self._last_tenth + 1)
            self._last_tenth += due
        if due or at_end:
            print(f"step {self._line(trainer)}", flush=True)

    def _line(self, trainer: Trainer) -> str:
        step = trainer.global_step
        parts = [f"{step}/{self._total}" if self._total else f"{step}"]
        if self._tokens_per_s:
            parts.append(f"{short(self._tokens_per_s)} tok/s")
        if (share := machine_share(trainer)) is not None:
            parts.append(f"{share:.0%} MFU")
        done = step - self._start_step
        if self._total and done > 0 and step < self._total:
            left_s = (time.monotonic() - self._start_s) / done * (self._total - step)
            parts.append(f"{clock(left_s)} left")
        parts += [f"{name} {value:.3g}" for name, value in losses(trainer).items()]
        return "  ".join(parts)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._paused = True
        if self._bar is not None:
            self._bar.update(self._task, description=f"{self._line(trainer)}  validating")
            self._bar.refresh()
        elif self._enabled and trainer.state.fn == TrainerFn.VALIDATING:
            print("scoring the validation documents ...", flush=True)

    def on_train_batch_start(self, *_: Any) -> None:
        if self._paused:  # validating, drawing and saving are not training speed
            self._paused, self._tokens, self._window_s = False, 0, time.monotonic()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._enabled:
            print("scoring the held-out test documents ...", flush=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._enabled:
            return
        if self._start_s:
            self._measure(trainer)
            self._show(trainer, at_end=self._last_tenth < QUIET_TENTHS)
        self._close_bar()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._close_bar()

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def total_steps(trainer: Trainer) -> int | None:
    """Optimizer steps of the whole training; None where nothing says so.

    `trainer.estimated_stepping_batches` would build the loaders anew, which breaks an exact resume.
    """
    if trainer.max_steps is not None and trainer.max_steps > 0:
        return trainer.max_steps
    batches, epochs = trainer.num_training_batches, trainer.max_epochs or -1
    if epochs < 1 or batches == float("inf"):
        return None
    return max(1, int(batches) // trainer.accumulate_grad_batches) * epochs


def machine_share(trainer: Trainer) -> float | None:
    """The share of the machine's speed that the last logged steps used, if it is metered."""
    meters = (c for c in trainer.callbacks if isinstance(c, Meters))
    return next((m.mfu for m in meters), None)


def losses(trainer: Trainer) -> dict[str, float]:
    """The latest logged loss of each stream."""
    logged = {
        name.removeprefix(LOSS): float(value)
        for name, value in trainer.logged_metrics.items()
        if name.startswith(LOSS) and name != f"{LOSS}next_stream"
    }
    parts = {f"{name}{ending}" for name in logged for ending in PARTS}
    return {name: value for name, value in logged.items() if name not in parts}


def opening_lines(trainer: Trainer, module: LightningModule, total: int | None) -> list[str]:
    """One line each of the data, the model and the steps; what is not known is left out."""
    data = [_documents(trainer), _rows(trainer), _streams(module)]
    count = sum(p.numel() for p in module.parameters())
    size = [f"{short(count)} parameters", *_parts(module)]
    lines = {"data": data, "model": size, "steps": _steps(trainer, module, total)}
    return [f"{name:<6} " + "; ".join(filter(None, parts)) for name, parts in lines.items()]


def _steps(trainer: Trainer, module: LightningModule, total: int | None) -> list[str]:
    steps = f"{total:,}" if total else "no end set"
    if trainer.global_step:
        steps = f"{trainer.global_step:,} done of {steps}"
    device = str(module.device)
    ranks = f"{trainer.world_size} x {device}" if trainer.world_size > 1 else device
    every = trainer.val_check_batch
    validates = trainer.enable_validation and isinstance(every, int)
    checks = f"validation every {every:,}" if validates else ""
    return [steps, checks, f"{ranks}, {trainer.precision}"]


def _documents(trainer: Trainer) -> str:
    documents = getattr(trainer.train_dataloader, "documents", None)
    return f"{len(documents):,} documents an epoch" if documents is not None else ""


def _rows(trainer: Trainer) -> str:
    loading = getattr(getattr(trainer, "datamodule", None), "loading", None)
    if loading is None:
        return ""
    return f"{loading.rows} rows of {loading.context_length:,} tokens a step"


def _streams(module: LightningModule) -> str:
    layout = getattr(getattr(module, "predictor", None), "layout", None)
    if layout is None:
        return ""
    said = []
    for spec in layout.streams:
        if spec.is_discrete:
            said.append(f"{spec.name} ({spec.vocab_size} ids)")
        else:
            rate = f", {1 / spec.period_s:g}/s" if spec.period_s else ""
            size = f"{spec.rows}x{spec.cols} tokens" if spec.positions_per_block > 1 else "1 token"
            said.append(f"{spec.name} ({size}{rate})")
    return ", ".join(said)


def _parts(module: LightningModule) -> list[str]:
    """Parameters of the predictor's parts; shared tables are counted once, with the embedding."""
    predictor = getattr(module, "predictor", None)
    config = getattr(predictor, "config", None)
    if config is None:
        return []
    seen: set[int] = set()
    counts: dict[str, int] = {}
    for name in ("embed", "trunk", "heads"):
        own = {id(p): p.numel() for p in getattr(predictor, name).parameters() if id(p) not in seen}
        seen |= set(own)
        counts[name] = sum(own.values())
    shares = ", ".join(f"{name} {short(count)}" for name, count in counts.items())
    return [shares, f"width {config.dim}, depth {config.depth}"]


def short(count: float) -> str:
    """1,234,567 as 1.23M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.0f}"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"
