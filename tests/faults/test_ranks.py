"""A rank whose rows lack a stream, or everything, holds nobody up and counts for what it has."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from datamodules import World
from mmpredict.objectives import next_loss
from mmpredict.schema import Batch
from mmpredict.sequence import pack
from mmpredict.training import Pretrain
from mmpredict.training.ranks import reached
from tests.faults import runs
from tests.training import test_pretrain as tiny

LENGTH = 320
STEPS = 2


def rows(what: str) -> list[Batch]:
    """Batches of two rows with all streams, with words alone, or with nothing."""
    data = tiny.world(**({"audio": None, "video": None} if what == "words" else {}))
    loader, found = data.train_dataloader(), []
    while len(found) < STEPS:  # words are short: an epoch is one batch
        found += list(loader)
    return found[:STEPS] if what != "nothing" else [pack([[], []], LENGTH)] * STEPS


def joined(one: Batch, other: Batch) -> Batch:
    """The rows of both in one batch."""
    apart = ("contents", "places")
    names = [f.name for f in fields(Batch) if f.name not in apart]
    tensors = {n: torch.cat([getattr(one, n), getattr(other, n)]) for n in names}
    contents = {
        m: torch.cat([b.contents[m] for b in (one, other) if m in b.contents])
        for m in sorted(one.contents.keys() | other.contents.keys())
    }
    return replace(one, contents=contents, places=None, **tensors)


class Loader:
    """Gives batches one after the other; a bare list would be taken for a list of loaders."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


class Given(World):
    """The tiny world's statistics, and batches that are given."""

    batches: list[Batch]

    def train_dataloader(self) -> Any:
        return Loader(self.batches)

    def state_dict(self) -> dict[str, Any]:
        return {}


def given(batches: list[Batch]) -> Given:
    settings = {"audio": tiny.AUDIO, "video": tiny.VIDEO, "text": tiny.TextTokens()}
    loading = tiny.Loading(context_length=LENGTH, rows=2, workers=0, statistics_documents=4)
    data = Given(**settings, train_scenes=12, val_scenes=3, test_scenes=3, loading=loading)
    data.batches = batches
    return data


def model_of(data: World) -> Pretrain:
    pl.seed_everything(0)
    weights = tiny.LossWeights(balance="uncertainty")
    return tiny.pretrain(data, head=tiny.NOISELESS, weights=weights)


def fit(folder: Path, batches: list[Batch], **settings: Any) -> dict[str, torch.Tensor]:
    data = given(batches)
    model = model_of(data)
    tiny.trainer(folder, STEPS, **settings).fit(model, datamodule=data)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def as_rank(folder: Path, rank: int, other: str, strategy: str) -> None:
    """One of two processes; the first has all streams, the second what `other` says."""
    plan: Any = strategy
    if strategy == "fsdp2":
        from pytorch_lightning.strategies import ModelParallelStrategy

        plan = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    found = fit(folder, rows("all" if rank == 0 else other), devices=2, strategy=plan)
    whole = {n: p.full_tensor() if hasattr(p, "full_tensor") else p for n, p in found.items()}
    torch.save(whole, folder / f"rank{rank}.pt")


def start(folder: Path, other: str, strategy: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    code = "import sys; from pathlib import Path; from tests.faults import test_ranks as t; "
    started = []
    for rank in range(2):
        call = f"t.as_rank(Path({str(folder)!r}), {rank}, {other!r}, {strategy!r})"
        places = {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_PORT": port}
        env = runs.environment(MASTER_ADDR="127.0.0.1", WORLD_SIZE="2", **places)
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code + call],
                env={**os.environ, **env},
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "strategy"),
    [("words", "ddp"), ("all", "ddp"), ("nothing", "ddp"), ("words", "fsdp2")],
)
def test_two_ranks_learn_as_one_that_has_all_rows(tmp_path: Path, other: str, strategy: str):
    ended = [runs.finish(process, 150) for process in start(tmp_path, other, strategy)]
    assert [code for code, _, _ in ended] == [0, 0], ended[1][2][-1500:] + ended[0][2][-1500:]
    one, two = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    pairs = zip(rows("all"), rows(other), strict=True)
    whole = fit(tmp_path, [joined(*pair) for pair in pairs])
    begin = dict(model_of(given([])).named_parameters())
    for name, tensor in whole.items():
        moved = (tensor - begin[name]).abs().max()
        torch.testing.assert_close(one[name], tensor, rtol=0, atol=0.03 * float(moved) + 1e-7)


def test_factors_make_a_mean_of_parts_the_mean_of_the_whole():
    """The law itself: of two parts, by hand."""
    data = given([])
    model = model_of(data)
    parts = [rows("all")[0], rows("words")[0]]
    said = [model.predictor(batch) for batch in parts]
    whole = next_loss(model.predictor(joined(*parts)), data.layout, tiny.LossWeights())
    counts = []
    for p in said:
        values = {m: n for m, n in ((0, "audio"), (1, "video")) if m in p.streams}
        counts.append({n: len(p.streams[m].targets_MPD) for m, n in values.items()})
        counts[-1]["text"] = len(p.streams[2].targets_M)
        counts[-1]["next_stream"] = len(p.next_stream.targets_M)
    totals = {n: sum(c.get(n, 0) for c in counts) for n in counts[0]}
    factors = [{n: 2 * c.get(n, 0) / totals[n] for n in totals} for c in counts]
    shares = [
        next_loss(p, data.layout, tiny.LossWeights(), factors=f).total
        for p, f in zip(said, factors, strict=True)
    ]
    torch.testing.assert_close(sum(shares) / 2, whole.total)


def test_a_loss_reaches_what_its_batch_holds():
    data = given([])
    model = model_of(data)
    names = {id(p): name for name, p in model.named_parameters()}
    total = next_loss(model.predictor(rows("words")[0]), data.layout, tiny.LossWeights()).total
    found = {names[number] for number in reached(total)}
    total.backward()
    assert found == {name for name, p in model.named_parameters() if p.grad is not None}
    assert "predictor.embed.tables.text.weight" in found
    assert not any("video" in name or "audio" in name for name in found)
