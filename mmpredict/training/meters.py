"""How well a run uses its machine. In: the batches of a training, counted on the host. Out: one
line before the first step (work, memory, speed of the machine), and metrics "perf/..." at the steps
that are logged; between them the device is asked for nothing.

perf/tokens_per_s   useful positions; padding does not count
perf/tflops_per_s   by the formula of `flops.py`
perf/mfu            of a GPU's dense bfloat16 peak where it is known, else of the measured product
perf/gemm_share     of the trunk's largest matrix product, measured when the run began
perf/data_wait      share of the time in which the host waited for a batch
perf/memory_gb      most memory in use so far: of a GPU's tensors, or of the whole process
train/grad_norm     before clipping, where gradients are clipped
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from mmpredict.schema import Batch
from mmpredict.training.flops import (
    Work,
    head_work,
    known_peak,
    matmul_speed,
    positions,
    visible_pairs,
    work_of,
)
from mmpredict.training.memory import GB, Memory, available, memory_of, used

MEASURE_S = 0.1
MOST_ROWS = 4096  # of the measured product on a CPU
LOW_BITS = ("bf16-mixed", "bf16-true", "16-mixed", "16-true")


@dataclass
class Window:
    """What was done since the last logged step; host numbers only."""

    start_s: float
    counts: Counter[int]
    batches: int = 0
    waited_s: float = 0.0
    paused_s: float = 0.0


class Meters(Callback):
    """Logs throughput, FLOP/s, their share of the machine, waiting and memory.

    All ranks are held to be equal.

    Args:
        measure_s: seconds in which the machine's matrix product is measured; 0 leaves it out.
    """

    def __init__(self, measure_s: float = MEASURE_S) -> None:
        self.measure_s = measure_s
        self.work: Work | None = None
        self.memory: Memory | None = None
        self.matmul: float | None = None  # FLOP/s measured
        self.peak: float | None = None  # FLOP/s that perf/mfu is a share of
        self.mfu: float | None = None  # of the last window
        self._window: Window | None = None
        self._ended_s = 0.0
        self._uncounted = True  # what happens before the next batch is no waiting for data

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.work = self.memory = self._window = self.mfu = None
        self._uncounted = True

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if self._window is None:
            if isinstance(batch, Batch) and hasattr(pl_module, "predictor"):
                self._open(trainer, pl_module, batch)
            self._window = Window(time.monotonic(), Counter())
        elif self._uncounted:
            self._window.paused_s += now - self._ended_s
        else:
            self._window.waited_s += now - self._ended_s
        self._uncounted = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._ended_s = time.monotonic()
        if self.work is None or self._window is None:
            return
        self._window.batches += 1
        self._window.counts.update(positions(batch))
        step = trainer.global_step
        stepped = trainer.fit_loop.epoch_loop.batch_progress.current.ready  # batches of this epoch
        every = trainer.accumulate_grad_batches
        if step % trainer.log_every_n_steps == 0 and stepped % every == 0:
            values = self.measured(trainer, batch)
            norm = getattr(pl_module, "grad_norm", None)
            if norm is not None:
                values["train/grad_norm"] = float(norm)
            # Not through `log_dict`: its bookkeeping costs 0.3 ms a metric.
            for logger in trainer.loggers:
                logger.log_metrics(values, step=step - 1)
            self._window = Window(time.monotonic(), Counter())
            self._uncounted = True  # the loggers write now

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._uncounted = True

    def measured(self, trainer: Trainer, batch: Batch) -> dict[str, float]:
        """The metrics of the window that ends now; `batch` stands for the pairs of the others."""
        window, predictor = self._window, trainer.lightning_module.predictor
        assert window is not None and self.work is not None
        if missing := set(window.counts) - set(self.work.heads):
            found = head_work(predictor, batch)  # a stream that the first batch did not have
            heads = {**dict.fromkeys(missing, 0.0), **found, **self.work.heads}
            self.work = Work(self.work.token, self.work.pair, heads)
        elapsed_s = max(1e-9, self._ended_s - window.start_s - window.paused_s)
        pairs = window.batches * float(visible_pairs(batch, predictor.config.window))
        flops = sum(self.work.parts(window.counts, pairs).values()) / elapsed_s
        values = {
            "perf/tokens_per_s": trainer.world_size * sum(window.counts.values()) / elapsed_s,
            "perf/tflops_per_s": trainer.world_size * flops / 1e12,
            "perf/data_wait": min(1.0, window.waited_s / elapsed_s),
        }
        if self.peak:
            self.mfu = values["perf/mfu"] = flops / self.peak
        if self.matmul and self.matmul != self.peak:
            values["perf/gemm_share"] = flops / self.matmul
        most = used(trainer.lightning_module.device)
        return values if most is None else values | {"perf/memory_gb": most / GB}

    def _open(self, trainer: Trainer, module: LightningModule, batch: Batch) -> None:
        """Work out what a step costs, say it, and warn where memory will not do."""
        predictor, device = module.predictor, module.device
        half = trainer.precision in LOW_BITS
        self.work = work_of(predictor, batch)
        muon = sum(
            p.numel()
            for group in trainer.optimizers[0].param_groups
            if group.get("name") == "hidden"
            for p in group["params"]
        )
        average = getattr(module, "average", None) is not None
        self.memory = memory_of(predictor, batch, half=half, average=average, muon=muon)
        if self.measure_s:
            rows = sum(positions(batch).values())
            self.matmul = matmul_speed(
                rows if device.type == "cuda" else min(rows, MOST_ROWS),
                predictor.config.dim,
                predictor.config.hidden_width,
                device=device,
                dtype=torch.bfloat16 if half else torch.float32,
                seconds=self.measure_s,
            )
        self.peak = known_peak(device) or self.matmul
        room = available(device)
        if (bar := trainer.progress_bar_callback) is not None and trainer.is_global_zero:
            bar.print(self.line(batch, predictor.config.window, room))
        if room is not None and self.memory.total > room:
            warnings.warn(
                f"a step needs about {self.memory.total / GB:.3g} GB by the formula, and {device} "
                f"has {room / GB:.3g} GB left: lower data.loading.rows or context_length, or set "
                "model.predictor.checkpoint_activations: true",
                stacklevel=2,
            )

    def line(self, batch: Batch, window: int, room: float | None) -> str:
        """What a step costs, in one line."""
        assert self.work is not None and self.memory is not None
        counts = positions(batch)
        tokens = max(1, sum(counts.values()))
        parts = self.work.parts(counts, float(visible_pairs(batch, window)))
        each = {name: value / tokens / 1e6 for name, value in parts.items()}
        memory = self.memory
        said = (
            f"cost   {sum(each.values()):.3g} MFLOP a token: 6 N {each['trunk']:.3g}, "
            f"12 L H E x pairs {each['attention']:.3g}, 3 x heads {each['heads']:.3g}; memory "
            f"{memory.total / GB:.3g} GB: weights {memory.weights / GB:.3g} "
            f"({memory.weights / max(1, memory.parameters):.3g} B each), "
            f"layers {memory.trunk / GB:.3g}, heads {memory.heads / GB:.3g}"
        )
        if room is not None:
            said += f", free {room / GB:.3g}"
        return said if not self.matmul else f"{said}; GEMM {self.matmul / 1e9:.4g} GFLOP/s"
