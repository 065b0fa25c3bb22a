"""Does the loader hide behind the step, and does a worker's memory stay flat?

1. A training step of the quickstart's model fed by the real loader (one worker, documents from raw
   shards that `prepare` wrote from the embedded world) beside the same step on the same batches
   kept in memory, in turn, block by block; training and worker have one core each.
2. The same with the world drawn on the fly.
3. Memory of a worker after 2,000 and after 20,000 samples.
Run: python benchmarks/loader.py [--smoke] [--json FILE]
Targets: <= 1.02 times the cached step; < 5 % growth.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from harness import parse_arguments, print_table, write_result  # noqa: E402
from mixed import RECIPES, quickstart_model, recipe, world  # noqa: E402

from datamodules import Loading  # noqa: E402
from datamodules.base import ClipDataModule  # noqa: E402
from datamodules.shards import Shards  # noqa: E402
from mmpredict import cli  # noqa: E402
from mmpredict.model import Predictor  # noqa: E402
from mmpredict.objectives import LossWeights, next_loss  # noqa: E402
from mmpredict.schema import Batch  # noqa: E402
from mmpredict.tokens import MelChunks, Patches, TextTokens  # noqa: E402

_TOLERANCE = 1e-6
_BLOCK = 8  # steps


class Trainer:
    """One optimiser step on a batch; says its loss and its wall seconds."""

    def __init__(self, model: Predictor) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

    def step(self, batch: Batch) -> float:
        torch.manual_seed(0)  # the flow head's noise: equal on both sides
        loss = next_loss(self.model(batch), self.model.layout, LossWeights()).total
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def endless(data: ClipDataModule) -> Iterator[Batch]:
    loader = data.train_dataloader()
    while True:
        yield from loader


def fed_and_cached(data: ClipDataModule, blocks: int, warm_up: int) -> dict[str, float]:
    """Medians over blocks of the seconds of a step with its batch fetched, and from memory.

    A block of steps is fed by the loader, then the same batches are trained on from memory, block
    by block in turn: both sides do the same work, and within a fed block the loader has one step's
    time for each batch, as in a training. (What it read ahead during the block before is bounded
    by its queue, a few batches.)
    """
    trainer = Trainer(quickstart_model(data.layout, data.statistics()))
    batches = endless(data)
    for _ in range(warm_up):
        trainer.step(next(batches))
    fed: list[float] = []
    kept: list[float] = []
    for _ in range(blocks):
        start = time.perf_counter()
        block, losses = [], []
        for _ in range(_BLOCK):
            block.append(next(batches))
            losses.append(trainer.step(block[-1]))
        between = time.perf_counter()
        again = [trainer.step(batch) for batch in block]
        end = time.perf_counter()
        if any(
            abs(a - b) > _TOLERANCE * max(1.0, abs(a)) for a, b in zip(losses, again, strict=True)
        ):
            raise SystemExit(f"the losses of the same batches differ: {losses} and {again}")
        fed.append((between - start) / _BLOCK)
        kept.append((end - between) / _BLOCK)
    data.teardown("fit")
    return {
        "fed_step_s": statistics.median(fed),
        "cached_step_s": statistics.median(kept),
        "ratio": statistics.median(a / b for a, b in zip(fed, kept, strict=True)),
        "ratio_of_sums": sum(fed) / sum(kept),
        "steps": blocks * _BLOCK,
    }


def shards(folder: Path, scenes: int, loading: Loading) -> Shards:
    """Raw shards of the quickstart's scenes, written by the command that users have."""
    words = ["prepare", "--config", str(RECIPES / "quickstart.yaml"), "--out", str(folder)]
    words += ["--set", f"data.train_scenes={scenes}", "--set", "data.val_scenes=4"]
    words += ["--set", "data.test_scenes=4"]
    if not (folder / "index.jsonl").exists() and cli.main(words) != 0:
        raise SystemExit("prepare failed")
    settings = recipe("quickstart")["data"]["init_args"]
    data = Shards(
        str(folder),
        audio=MelChunks(**settings["audio"]),
        video=Patches(**settings["video"]),
        text=TextTokens(**settings["text"]),
        loading=loading,
    )
    data.setup()
    return data


def worker_memory(data: ClipDataModule, samples: list[int]) -> list[float]:
    """MiB that belong to the one worker alone after so many samples."""
    loader = data.train_dataloader()
    found, seen = [], 0
    while len(found) < len(samples):
        for batch in loader:
            seen += int(batch.doc_id.max(dim=1).values.sum())
            if len(found) < len(samples) and seen >= samples[len(found)]:
                (worker,) = loader._items._iterator._workers
                found.append(private_mib(worker.pid))
    data.teardown("fit")
    return found


def private_mib(pid: int) -> float:
    """Memory that a forked process does not share with its parent (Linux)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(x.split()[1]) for x in lines if x.startswith("Private_")) / 1024


def main() -> None:
    """Steps fed and cached from shards and from the world, then the worker's memory."""
    arguments = parse_arguments(__doc__)
    torch.set_num_threads(1)  # the worker has the other core
    torch.set_float32_matmul_precision("medium")
    blocks, scenes, samples = (1, 40, [100, 200]) if arguments.smoke else (5, 1000, [2000, 20000])
    settings = recipe("quickstart")["data"]["init_args"]["loading"]
    loading = Loading(**settings | {"workers": 1})
    with tempfile.TemporaryDirectory() as place:
        stored = shards(Path(place), scenes, loading)
        memory = worker_memory(stored, samples)  # first: the worker starts as small as it can be
        figures = {"raw_shards": fed_and_cached(stored, blocks, warm_up=4)}
        figures["world_drawn"] = fed_and_cached(world(workers=1), blocks, warm_up=4)
    growth = memory[1] / memory[0] - 1
    print_table(
        ["source", "step, fetched (s)", "step, cached (s)", "ratio of medians", "of sums"],
        [
            [
                name,
                f"{f['fed_step_s']:.4f}",
                f"{f['cached_step_s']:.4f}",
                f"{f['ratio']:.4f}",
                f"{f['ratio_of_sums']:.4f}",
            ]
            for name, f in figures.items()
        ],
    )
    print(
        f"worker after {samples[0]:,} samples {memory[0]:.1f} MiB, after {samples[1]:,} samples "
        f"{memory[1]:.1f} MiB: {100 * growth:+.2f} % (goal: < 5 %)"
    )
    write_result(
        arguments.json,
        "loader",
        ratios={
            "real_loader_vs_cached": figures["raw_shards"]["ratio"],
            "world_loader_vs_cached": figures["world_drawn"]["ratio"],
            "worker_memory_growth": growth,
        },
        figures={**figures, "worker_mib": dict(zip(map(str, samples), memory, strict=True))},
    )


if __name__ == "__main__":
    main()
