"""Order and resume: one global sequence of documents, whatever the ranks, workers and kills."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator

import pytest
import torch

from datamodules import PackedLoader
from datamodules.feed.order import order_of, systematic
from mmpredict.schema import Batch
from mmpredict.sequence import unpack
from tests.datamodules.small import TEXT, Numbered, loader, numbers, same

SETTINGS = [(1, 0), (1, 2), (2, 0), (2, 2)]  # ranks, workers


def documents(kind: str) -> Numbered:
    return Numbered(61, run=6 if kind == "runs" else 0, known=kind == "known")


class Run:
    """Ranks that train in step, each with a loader of its own that may be fetched from ahead."""

    def __init__(self, kind: str, ranks: int, workers: int, rows: int, position=None) -> None:
        self.done = position["batches"] if position else 0
        self.loaders = [
            loader(
                documents(kind),
                seed=5,
                rank=rank,
                world_size=ranks,
                rows=rows // ranks,
                workers=workers,
                timeout_s=60.0,
                consumed=lambda: self.done,
            )
            for rank in range(ranks)
        ]
        for one in self.loaders:
            if position:
                one.resume(position)
        self.iterators = [fetched_ahead(one) for one in self.loaders]

    def step(self) -> list[list[int]]:
        """The documents of every row of the next global batch."""
        batches = [next(iterator) for iterator in self.iterators]
        self.done += 1
        return [[int(d.contents[TEXT][0]) for d in row] for b in batches for row in unpack(b)]

    def position(self) -> dict:
        """As it comes back from a checkpoint: the same on every rank."""
        positions = [json.dumps(one.position()) for one in self.loaders]
        assert len(set(positions)) == 1
        return json.loads(positions[0])

    def close(self) -> None:
        for one in self.loaders:
            one.close()


def fetched_ahead(one: PackedLoader) -> Iterator[Batch]:
    """Epoch after epoch, one batch ahead of what is used, as a trainer does."""
    while True:
        batches = iter(one)
        ahead = next(batches)
        for batch in batches:
            yield ahead
            ahead = batch
        yield ahead


def straight(kind: str, steps: int) -> list[list[list[int]]]:
    run = Run(kind, 1, 0, rows=4)
    return [run.step() for _ in range(steps)]


@pytest.mark.parametrize("kind", ["read", "known", "runs"])
@pytest.mark.parametrize(("ranks", "workers"), SETTINGS)
def test_the_global_order_knows_nothing_of_ranks_and_workers(kind, ranks, workers):
    run = Run(kind, ranks, workers, rows=4)
    assert [run.step() for _ in range(12)] == straight(kind, 12)
    run.close()


@pytest.mark.parametrize("kind", ["read", "known", "runs"])
def test_300_steps_with_kills_give_every_document_once(kind):
    """Stopped at random steps and gone on with other ranks and workers: the same rows."""
    draw = random.Random(kind)
    expected = straight(kind, 300)
    seen: list[list[list[int]]] = []
    position = None
    while len(seen) < 300:
        ranks, workers = draw.choice(SETTINGS)
        run = Run(kind, ranks, workers if draw.random() < 0.25 else 0, rows=4, position=position)
        for _ in range(min(draw.randint(1, 40), 300 - len(seen))):
            seen.append(run.step())
        position = run.position()
        run.close()
    assert seen == expected
    flat = [n for rows in seen for row in rows for n in row]
    assert len(flat) == len(set(flat))
    epochs = max(flat) // 1000
    assert epochs > 20
    for epoch in range(epochs - 2):  # the last ones still have documents in open rows
        assert {1000 * epoch + n for n in range(61)} <= set(flat)


def test_other_rows_go_on_with_the_same_sequence_of_rows():
    run = Run("read", 1, 0, rows=4)
    rows = [row for _ in range(5) for row in run.step()]
    other = Run("read", 1, 0, rows=2, position=run.position())
    rows += [row for _ in range(10) for row in other.step()]
    assert rows == [row for step in straight("read", 10) for row in step]


@pytest.mark.parametrize("kind", ["read", "known", "runs"])
def test_contents_after_a_resume_are_equal_bit_by_bit(kind):
    first = loader(documents(kind), seed=5, rows=2)
    batches = iter(first)
    for _ in range(3):
        next(batches)
    second = loader(documents(kind), seed=5, rows=2)
    second.resume(first.position())
    again = iter(second)
    assert all(same(next(batches), next(again)) for _ in range(3))


def test_a_resume_reads_only_what_it_needs():
    """Not the whole epoch before it: only what stands in open rows, and what comes."""
    first = loader(Numbered(500), seed=5, rows=2)
    batches = iter(first)
    for _ in range(60):
        next(batches)
    second = loader(data := Numbered(500), seed=5, rows=2)
    second.resume(first.position())
    next(iter(second))
    assert 0 < len(data.read_numbers) < 40


def test_each_rank_reads_only_its_own_where_lengths_are_known():
    counts = []
    for rank in range(2):
        batches = loader(data := Numbered(400, known=True), seed=5, rank=rank, world_size=2)
        list(batches)
        counts.append(len(data.read_numbers))
    assert 380 <= sum(counts) <= 400 and min(counts) > 150


def test_a_run_is_read_in_one_go_and_scattered():
    data = Numbered(300, run=10)
    order = order_of(300, torch.Generator().manual_seed(0), runs=data.runs(), spread=4)
    assert sorted(order.tolist()) == list(range(300))
    runs = (order // 10).tolist()
    neighbours = sum(a == b for a, b in zip(runs, runs[1:], strict=False))
    assert neighbours < 90  # of 299; unscattered they were 270
    for run in range(30):  # and yet no run is open for long
        places = [place for place, r in enumerate(runs) if r == run]
        assert places[-1] - places[0] < 80
    batches = loader(data, seed=0, shuffle_runs=4)
    list(batches)
    groups = [data.read_numbers[i : i + 10] for i in range(0, 300, 10)]
    assert all(len({n // 10 for n in group}) == 1 for group in groups)


def test_weights_are_kept_to_within_one():
    weights = torch.tensor([0.0, 0.5, 1.0, 2.25, 3.0])
    totals = torch.zeros(5)
    for seed in range(200):
        found = systematic(weights, 7, torch.Generator().manual_seed(seed))
        counts = torch.bincount(found, minlength=5)
        assert ((counts - weights * 7 / 6.75).abs() < 1).all() and counts[0] == 0
        totals += counts
    assert torch.allclose(totals / 200, weights * 7 / 6.75, atol=0.1)


def test_a_weighted_epoch_has_as_many_places_as_the_weights_say():
    data = Numbered(5)
    data.weights = lambda: torch.tensor([0.0, 1.0, 1.0, 2.0, 4.0])
    order = data.order(3, 0, 16)
    assert torch.bincount(order, minlength=5).tolist() == [0, 1, 1, 2, 4]
    assert not torch.equal(order, data.order(3, 1, 16))


def test_a_loader_left_without_a_trainer_goes_on_behind_what_it_gave():
    batches = loader(Numbered(60), seed=1)
    first = next(iter(batches))
    rest = numbers(batches)
    assert not set(numbers([first])) & set(rest)


def test_a_forked_copy_leaves_the_workers_alone():
    """A process that was forked has the loader too; when it goes there, nobody may die here."""
    batches = loader(Numbered(60), seed=1, workers=1, timeout_s=60.0)
    iterator = iter(batches)
    next(iterator)
    if (child := os.fork()) == 0:
        batches.__del__()
        os._exit(0)
    os.waitpid(child, 0)
    time.sleep(0.1)
    assert all(worker.is_alive() for worker in batches._items._iterator._workers)
    next(iterator)
    batches.close()


def test_runs_are_read_whole_after_a_resume_too():
    """What a decoder makes of a window may hang on what it decoded before."""
    first = loader(Numbered(60, run=6), seed=5, rows=2, shuffle_runs=3)
    batches = iter(first)
    for _ in range(7):
        next(batches)
    second = loader(data := Numbered(60, run=6), seed=5, rows=2, shuffle_runs=3)
    second.resume(first.position())
    next(iter(second))
    groups = [data.read_numbers[i : i + 6] for i in range(0, len(data.read_numbers), 6)]
    assert all(sorted(group)[0] % 6 == 0 for group in groups)
    assert all(len({n // 6 for n in group}) == 1 for group in groups)
    assert len(data.read_numbers) < 60
