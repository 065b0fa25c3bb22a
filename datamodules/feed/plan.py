"""Who stands where: places of an epoch, rows of a batch, and how far a run has come.

In: the documents' order and their lengths. Out: tasks for the workers, rows for the ranks, and the
position behind each batch, from which everything after it follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from datamodules.feed.documents import Documents
from datamodules.feed.reading import Task
from mmpredict.schema import UserError
from mmpredict.sequence import BestFit

Spot = tuple[int, int]  # epoch, place in its order
Key = tuple[int, int, int]  # epoch, place, piece of the document there (one may be split)
Size = tuple[int, Mapping[int, int]]  # positions, and how many of them by stream
Rows = list[list[Key]]
Position = dict[str, Any]  # plain types, for the checkpoint
TOGETHER = 4  # documents that stand alone are asked of a worker by so many


class EpochPlan:
    """The order of one epoch, and which of its places are read together."""

    def __init__(self, documents: Documents, seed: int | None, epoch: int, spread: int) -> None:
        self.epoch = epoch
        self.numbers = documents.order(seed, epoch, spread)
        runs = documents.run_numbers(epoch, self.numbers)
        by_run = torch.argsort(runs, stable=True)
        ends = (runs[by_run].diff() != 0).nonzero()[:, 0] + 1
        self._run_of = torch.empty_like(by_run)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends])
        lengths = torch.cat([ends, torch.tensor([len(by_run)])]) - starts
        self._run_of[by_run] = torch.repeat_interleave(torch.arange(len(starts)), lengths)
        self._by_run, self._starts, self._lengths = by_run, starts, lengths

    def __len__(self) -> int:
        return len(self.numbers)

    def number(self, place: int) -> int:
        """The document at a place."""
        return int(self.numbers[place])

    def tasks(
        self, places: Iterable[int], rooms: Mapping[Spot, int] | None = None
    ) -> Iterator[Task]:
        """What to ask of the workers so that they read these places, in about this order.

        Without rooms a run is always read whole, though only some of it may be wanted: decoders
        that fill in noise (AAC, AC-3) draw it by what they decoded before.
        """
        places = list(places)
        wanted, taken = set(places), set[int]()
        alone: list[int] = []
        for place in places:
            if place in taken:
                taken.remove(place)  # it comes once
                continue
            run = self._places_with(place)
            together = [p for p in run if p in wanted and p not in taken]
            if len(run) > 1:
                taken.update(p for p in together if p != place)
                read = run if rooms is None else together
                yield replace(self._task(read, rooms), is_run=True, wanted=tuple(together))
                continue
            alone.append(place)
            if len(alone) == TOGETHER:
                yield self._task(alone, rooms)
                alone = []
        if alone:
            yield self._task(alone, rooms)

    def _places_with(self, place: int) -> list[int]:
        """All places of the run that a place belongs to, rising."""
        run = int(self._run_of[place])
        start, length = int(self._starts[run]), int(self._lengths[run])
        return self._by_run[start : start + length].tolist()

    def _task(self, places: list[int], rooms: Mapping[Spot, int] | None) -> Task:
        room = tuple(rooms[self.epoch, p] for p in places) if rooms else None
        numbers = tuple(self.number(p) for p in places)
        return Task(self.epoch, tuple(places), numbers, room)


class TaskQueue:
    """The sampler of a DataLoader that lives longer than its tasks."""

    def __init__(self) -> None:
        self._tasks: Iterator[Task] = iter(())

    def refill(self, tasks: Iterator[Task]) -> None:
        self._tasks = tasks

    def __iter__(self) -> Iterator[Task]:
        return self._tasks


def beginning() -> Position:
    """The position before the first batch."""
    packer = {"rows": [], "born": [], "documents": 0}
    return {"epoch": 0, "place": 0, "packer": packer, "ready": []}


def keys_of(position: Position) -> set[Key]:
    """The documents that wait in rows at a position."""
    rows = [*position["packer"]["rows"], *position["ready"]]
    return {tuple(key) for row in rows for key in row}


def global_batches(  # noqa: PLR0913 - called in one place
    position: Position,
    *,
    size: int,
    places: int,
    packer: BestFit[Key],
    sizes_of: Callable[[Spot], Mapping[Key, Size]],
    title: Callable[[Spot], str],
    flush: bool,
) -> Iterator[tuple[Rows, Position]]:
    """The rows of all ranks, batch by batch, each with the position behind it.

    Returns (as a generator does) the position at the end of the epoch.

    Args:
        position: where to begin; up to the end of its epoch.
        size: rows of a global batch.
        places: of the epoch.
        packer: a fresh one.
        sizes_of: what stands at a place; empty if nothing.
        title: what a person calls the document at a place.
        flush: give the rows that are not full, too, and batches that are not.
    """
    epoch, place = position["epoch"], position["place"]
    state = {**position["packer"], "rows": _as_keys(position["packer"]["rows"])}
    ready = _as_keys(position["ready"])
    waiting = {key[:2]: None for row in [*state["rows"], *ready] for key in row}
    known = {key: size for spot in waiting for key, size in sizes_of(spot).items()}
    for key in (key for row in [*state["rows"], *ready] for key in row):
        if key not in known:
            raise UserError(f"{title(key[:2])} could be read before the stop, and cannot be now")
    packer.restore(state, known)
    while place < places or len(ready) >= size:
        if len(ready) >= size:
            rows, ready = ready[:size], ready[size:]
            yield rows, _at(epoch, place, packer, ready)
            continue
        for key, (length, counts) in sizes_of((epoch, place)).items():
            try:
                ready += packer.add(key, length, counts)
            except UserError as error:
                raise UserError(f"{title(key[:2])}: {error}") from None
        place += 1
    if flush:
        ready += packer.flush()
        while ready:
            rows, ready = ready[:size], ready[size:]
            yield rows, _at(epoch, place, packer, ready)
    return _at(epoch + 1, 0, packer, ready)


def _as_keys(rows: Iterable[Iterable[Iterable[int]]]) -> Rows:
    return [[tuple(key) for key in row] for row in rows]


def _at(epoch: int, place: int, packer: BestFit[Key], ready: Rows) -> Position:
    state = packer.state()
    return {"epoch": epoch, "place": place, "packer": state, "ready": [list(row) for row in ready]}
