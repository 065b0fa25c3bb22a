"""What the Trainer and our callbacks cost beside a loop written by hand.

1. A real step: the quickstart's model and batches, the same optimiser; a raw loop, a
   Trainer(barebones=True) and the Trainer of every run (callbacks, CSV, TensorBoard). Losses must
   be equal before anything is timed. `trainer_vs_raw`: CPU time, must be <= 1.01.
2. A model of one layer: CPU microseconds a step of the Trainer with all callbacks, less those of
   the raw loop. Must be <= 700, aim 450.

Each Trainer hands the processor over after every block of steps, so that the sides take turns in
one process. Run: python benchmarks/loop.py [--smoke] [--json FILE]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from harness import parse_arguments, print_table, write_result  # noqa: E402
from mixed import recipe, world  # noqa: E402

from datamodules.base import ClipDataModule  # noqa: E402
from mmpredict.lightning_cli import loggers, quiet  # noqa: E402
from mmpredict.model import HeadConfig, PredictorConfig  # noqa: E402
from mmpredict.schema import Batch  # noqa: E402
from mmpredict.training import Pretrain  # noqa: E402
from mmpredict.training.callbacks import run_callbacks  # noqa: E402

_EQUAL_STEPS = 5
_LOG_EVERY = 10  # as the recipes have it


class Baton:
    """Two threads of which one works at a time: the timer, and a side that is being timed."""

    def __init__(self) -> None:
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)

    def block(self) -> None:
        """Let the side do one block."""
        self.go.release()
        self.done.acquire()

    def wait(self) -> None:
        self.go.acquire()

    def hand_back(self) -> None:
        self.done.release()


class Blocks(pl.Callback):
    """Stands last in a Trainer: after every `block` steps, waits to be asked for more."""

    def __init__(self, baton: Baton, block: int) -> None:
        self.baton, self.block = baton, block

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step % self.block == 0:
            self.baton.hand_back()
            self.baton.wait()


class Feed(torch.utils.data.IterableDataset):
    """Batches from memory, round and round."""

    def __init__(self, batches: list[Batch], steps: int) -> None:
        self.batches, self.steps = batches, steps

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.steps):
            yield self.batches[step % len(self.batches)]


Losses = list[float]


def raw_loop(model: Pretrain, batches: list[Batch], steps: int, after: Callable[[], None]) -> None:
    """What a user would write: forward, backward, clip, step, schedule."""
    model._trainer = None
    optimizer = torch.optim.AdamW(_groups(model), lr=model.moved.lr, betas=(0.9, 0.95), fused=True)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 100))
    model.train()
    for batch in torch.utils.data.DataLoader(Feed(batches, steps), batch_size=None):
        for modality, counts in model.ngrams.items():
            if modality in batch.contents:
                counts.add(*_ids(batch, modality, counts.vocab_size))
        model.predictor.check(batch)
        loss = model.losses(model.predictor(batch)).total
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(_updated(optimizer), 1.0)
        optimizer.step()
        rate.step()
        model.last_loss = loss.detach()
        after()


def _ids(batch: Batch, modality: int, vocabulary: int) -> Any:
    from mmpredict.objectives import ids_and_previous

    return ids_and_previous(batch, modality, vocabulary)


def _groups(model: Pretrain) -> list[dict[str, Any]]:
    from mmpredict.training.optim import optimizer_for

    keys = ("params", "weight_decay")
    groups = optimizer_for(model.predictor, model.moved).param_groups
    return [{key: group[key] for key in keys} for group in groups]


def _updated(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """In the order in which Lightning clips them: another order changes the norm's last bit."""
    return [tensor for group in optimizer.param_groups for tensor in group["params"]]


class Told(Pretrain):
    """Keeps the loss of the last step, as the raw loop does."""

    last_loss: torch.Tensor

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.last_loss = loss.detach()
        return loss


class Barebones(Told):
    """Barebones forbids the log and the schedule's clipping hook, so the model does it."""

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.last_loss = (loss := self.losses(self.predictor(batch)).total).detach()
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        torch.nn.utils.clip_grad_norm_(_updated(optimizer), 1.0)


Build = Callable[[type[Told]], Told]


class Side:
    """One of those that are compared, running in its own thread, block by block."""

    def __init__(self, name: str, build: Build, batches: list[Batch], block: int) -> None:
        self.name, self.block, self.baton = name, block, Baton()
        torch.manual_seed(0)
        self.model = build(Barebones if name == "barebones" else Told)
        self.model.statistics_taken = True
        self.losses: Losses = []
        self.steps = 10**6
        self.folder = tempfile.TemporaryDirectory()
        self.thread = threading.Thread(target=self._run, args=(batches,), daemon=True)
        self.thread.start()
        self.failure: BaseException | None = None

    def _run(self, batches: list[Batch]) -> None:
        self.baton.wait()
        torch.set_num_threads(1)  # counts per thread
        try:
            if self.name == "raw":
                raw_loop(self.model, batches, self.steps, self._counted())
            else:
                self._fit(batches)
        except BaseException as error:  # told by the thread that times
            self.failure = error
            self.baton.hand_back()

    def _counted(self) -> Callable[[], None]:
        done = 0

        def after() -> None:
            nonlocal done
            done += 1
            if done % self.block == 0:
                self.baton.hand_back()
                self.baton.wait()

        return after

    def _fit(self, batches: list[Batch]) -> None:
        stop = Blocks(self.baton, self.block)
        folder = Path(self.folder.name)
        if self.name == "barebones":
            settings: dict[str, Any] = {"barebones": True, "callbacks": [stop]}
        else:
            settings = {
                "callbacks": [*run_callbacks(folder), stop],
                "logger": loggers(folder, None),
                "log_every_n_steps": _LOG_EVERY,
                "gradient_clip_val": 1.0,
                "enable_model_summary": False,
            }
        trainer = pl.Trainer(
            default_root_dir=folder,
            accelerator="cpu",
            precision="32-true",
            max_steps=-1,
            max_epochs=1,
            **settings,
        )
        feed = torch.utils.data.DataLoader(Feed(batches, self.steps), batch_size=None)
        trainer.fit(self.model, train_dataloaders=feed)

    def run_block(self) -> None:
        torch.manual_seed(len(self.losses))  # the flow head's noise: equal on all sides
        self.baton.block()
        if self.failure is not None:
            raise self.failure
        self.losses.append(float(self.model.last_loss))


def compare(build: Build, batches: list[Batch], *, block: int, rounds: int) -> dict[str, float]:
    """CPU seconds a step of each side; equal losses first."""
    names = ("raw", "barebones", "trainer")
    equal = {name: Side(name, build, batches, 1) for name in names}
    for side in equal.values():
        for _ in range(_EQUAL_STEPS):
            side.run_block()
    expected = equal["raw"].losses
    for name, side in equal.items():
        if side.losses != expected:
            raise SystemExit(f"losses differ: raw {expected}, {name} {side.losses}")
    print(f"losses of the first {_EQUAL_STEPS} steps are equal: {[round(x, 5) for x in expected]}")
    sides = {name: Side(name, build, batches, block) for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 2):
        for name in names if turn % 2 == 0 else reversed(names):
            start = time.process_time()
            sides[name].run_block()
            if turn >= 2:
                cpu[name].append((time.process_time() - start) / block)
    ratios = [t / r for t, r in zip(cpu["trainer"], cpu["raw"], strict=True)]
    middle = {name: statistics.median(values) for name, values in cpu.items()}
    return middle | {"ratio": statistics.median(ratios)}


def builder(data: ClipDataModule, config: PredictorConfig, lr: float) -> Build:
    def build(kind: type[Told]) -> Told:
        model = kind(data.layout, config, lr=lr)
        model.predictor.embed.set_statistics(data.statistics())
        return model

    return build


def one_layer(data: ClipDataModule) -> Build:
    heads = {s.name: HeadConfig(dim=32, depth=1) for s in data.layout.streams if not s.is_discrete}
    return builder(data, PredictorConfig(dim=32, depth=1, num_heads=2, heads=heads), 1e-3)


def quickstart(data: ClipDataModule) -> Build:
    settings = recipe("quickstart")["model"]["init_args"]
    return builder(data, PredictorConfig(**settings["predictor"]), settings["lr"])


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")
    quiet()
    warnings.filterwarnings("ignore")
    rounds = 3 if arguments.smoke else 15
    tiny_data = world(rows=1, statistics_documents=8)
    real_data = world(**({"rows": 2, "statistics_documents": 8} if arguments.smoke else {}))
    tiny_batches = [batch for batch, _ in zip(tiny_data.train_dataloader(), range(4), strict=False)]
    batches = [batch for batch, _ in zip(real_data.train_dataloader(), range(4), strict=False)]
    tiny = compare(one_layer(tiny_data), tiny_batches, block=20, rounds=rounds)
    real = compare(quickstart(real_data), batches, block=2, rounds=rounds)
    overhead = {name: 1e6 * (tiny[name] - tiny["raw"]) for name in ("barebones", "trainer")}
    print_table(
        ["", "quickstart ms/step", "one layer us/step", "more than raw us"],
        [
            [n, f"{1e3 * real[n]:.1f}", f"{1e6 * tiny[n]:.0f}", f"{overhead.get(n, 0):.0f}"]
            for n in ("raw", "barebones", "trainer")
        ],
    )
    print(f"trainer_vs_raw {real['ratio']:.4f} (must be <= 1.01); overhead must be <= 700 us")
    write_result(
        arguments.json,
        "loop",
        ratios={"trainer_vs_raw": real["ratio"]},
        figures={
            "overhead_us": overhead["trainer"],
            "barebones_overhead_us": overhead["barebones"],
            **{f"quickstart_{n}_cpu_s": real[n] for n in ("raw", "barebones", "trainer")},
            **{f"one_layer_{n}_cpu_s": tiny[n] for n in ("raw", "barebones", "trainer")},
        },
    )


if __name__ == "__main__":
    main()
