"""Documents to packed batches, in an order that is the seed's alone, from any place on.

1. order:   (seed, epoch) -> the documents' numbers, place by place
2. read:    place -> one-document row, in worker processes; a broken one is replaced by another
3. pack:    rows of fixed length, decided from lengths alone, the same on every rank
4. share:   every global batch of rows * ranks rows is cut evenly between the ranks

None of it depends on the number of workers; steps 1 to 3 know nothing of ranks. So the global
sequence of rows is one for all settings, and few numbers say what was consumed: the place that
comes next, and the documents that wait in open rows (`PackedLoader.position`).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from datamodules.feed.documents import Documents
from datamodules.feed.loading import Loading, workable
from datamodules.feed.meter import PackingMeter
from datamodules.feed.plan import (
    TOGETHER,
    EpochPlan,
    Key,
    Position,
    Rows,
    Size,
    Spot,
    TaskQueue,
    beginning,
    global_batches,
    keys_of,
)
from datamodules.feed.reading import DocumentError, Read, Reader, Task, busy_with, step_back
from datamodules.feed.skips import SkipLog
from mmpredict.schema import Batch, Layout, UserError
from mmpredict.sequence import BestFit, first_blocks, pack, split_blocks

AHEAD = 64  # batches that may be given out before they are consumed
Batches = Generator[tuple[Rows, Position], None, Position]


class PackedLoader:
    """Iterates one split as Batches, epoch after epoch.

    Training (with a seed): what does not fill a batch at the end of an epoch opens the next one;
    every iteration goes on behind the last batch that was consumed, to the end of the epoch, and
    gives at least one batch. Without a seed every iteration gives all documents once, in order.

    Args:
        documents: what to read.
        loading: how.
        skip_log: where unreadable documents are counted.
        seed: of the order; None keeps the order of the documents (validation).
        rank, world_size: this process takes its share of every global batch.
        layout: the streams, for the names in `loading.budget` and in the log.
        consumed: says how many batches were trained on, where a trainer fetches ahead of that.
    """

    def __init__(  # noqa: PLR0913 - made in one place
        self,
        documents: Documents,
        loading: Loading,
        skip_log: SkipLog,
        *,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        layout: Layout | None = None,
        consumed: Callable[[], int] | None = None,
    ) -> None:
        if not len(documents):
            raise ValueError("there is no document to read; check the data's folder and split")
        loading = workable(loading)
        self.documents, self.loading, self.skip_log = documents, loading, skip_log
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.consumed = consumed
        self.budget = numbered(loading.budget, layout)
        self.meter = PackingMeter(layout)
        if seed is not None and self.plans_by_length:
            skip_log.ranks = world_size  # each sees its own documents only
        self._given = 0  # batches of this split so far, those of earlier starts included
        self._positions: dict[int, Position] = {}  # behind so many batches
        self._keys: dict[int, list[Key]] = {}  # of this rank's documents, by a batch's number
        self._plans: dict[int, EpochPlan] = {}
        self._rows: dict[Key, Batch] = {}  # read, and not yet given
        self._pieces: dict[Spot, list[Key]] = {}  # what a place became: one key, none, or several
        self._tasks = TaskQueue()
        self._owner = os.getpid()
        self._busy = torch.zeros(max(1, loading.workers), 3, dtype=torch.int64)
        if loading.workers:
            self._busy.share_memory_()
        self._items = DataLoader(
            Reader(documents, self._busy, substitute=seed is not None and loading.substitute),
            batch_size=None,
            sampler=self._tasks,
            num_workers=loading.workers,
            persistent_workers=loading.workers > 0,
            timeout=loading.timeout_s if loading.workers else 0,
            prefetch_factor=self._prefetch() if loading.workers else None,
            collate_fn=_as_it_is,
            worker_init_fn=step_back,
            generator=torch.Generator(),  # its own: an epoch must not shift the model's noise
        )

    def _prefetch(self) -> int:
        """Tasks that wait at each worker: whole runs are long, single documents short."""
        alone = max(2, 4 * self.loading.rows // TOGETHER)
        return alone if self.documents.runs() is None else 2

    @property
    def plans_by_length(self) -> bool:
        """Whether rows can be planned, and shared out, before anything is read."""
        known = self.documents.length(0, 0) is not None
        return known and not self.budget and self.loading.too_long == "cut"

    def plan(self, epoch: int) -> EpochPlan:
        """Which document stands at which place of an epoch."""
        if epoch not in self._plans:
            kept = {e: p for e, p in self._plans.items() if e == epoch - 1}  # its rows may be open
            spread = self.loading.shuffle_runs
            self._plans = {**kept, epoch: EpochPlan(self.documents, self.seed, epoch, spread)}
        return self._plans[epoch]

    # -- how far it is -----------------------------------------------------------------------

    def position(self) -> Position:
        """Plain types from which `resume` goes on behind the last batch that was consumed."""
        done = self._done()
        if done and self._positions and done not in self._positions:
            raise RuntimeError(f"{done} batches were consumed, {self._given} given out")
        return {"batches": done, **self._positions.get(done, beginning())}

    def titles(self, number: int) -> list[str]:
        """The documents of one of the last batches, counted from 1 over all starts of a training:
        of this rank. One that was replaced has its own title, not its substitute's."""
        plans = ((self.plan(epoch), place) for epoch, place, _ in self._keys.get(number, ()))
        told = [(plan.epoch, plan.number(place)) for plan, place in plans]
        return [f"{self.documents.title(epoch, n)} (epoch {epoch})" for epoch, n in told]

    def take_over(self, other: PackedLoader) -> None:
        """Know what another loader of this split has given."""
        self._positions = {**other._positions, **self._positions}
        self._keys = {**other._keys, **self._keys}

    def resume(self, position: Mapping[str, Any]) -> None:
        """Go on from a `position`: of this loader or of one with other workers, ranks or rows."""
        self._given = position["batches"]
        rest = {name: value for name, value in position.items() if name != "batches"}
        self._positions = {self._given: rest}

    def _done(self) -> int:
        return self._given if self.consumed is None else self.consumed()

    def close(self) -> None:
        """End the workers."""
        iterator, self._items._iterator = self._items._iterator, None
        if iterator is not None and self.loading.workers:
            iterator._shutdown_workers()

    def __del__(self) -> None:
        # Collected in a circle with its workers' queues, a DataLoader waits five seconds for each
        # worker, because the queue that would tell it to go is closed already. (A forked process
        # has copies of loaders that are not its own: it must leave their workers alone.)
        iterator = getattr(getattr(self, "_items", None), "_iterator", None)
        if iterator is not None and os.getpid() == self._owner:
            for worker in getattr(iterator, "_workers", ()):
                worker.terminate()
            self.close()

    # -- one iteration -----------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        if self.seed is None:
            yield from self._epoch(beginning())
            return
        before = self._given = self._done()
        position = self._positions.setdefault(before, beginning())
        while self._given == before:
            position = yield from self._epoch(position)

    def _epoch(self, position: Position) -> Generator[Batch, None, Position]:
        """From a position to the end of its epoch, which it returns."""
        self._forget_all_but(keys_of(position))
        batches = (self._planned if self.plans_by_length else self._as_read)(position)
        while True:
            try:
                rows, behind = next(batches)
            except StopIteration as stop:
                end = stop.value
                break
            batch = self._packed(rows)
            self._given += 1
            self._positions[self._given] = behind
            self._keys[self._given] = [key for row in self._own(rows) for key in row]
            self._keys.pop(self._given - AHEAD, None)
            oldest = self._done() if self.consumed else self._given - AHEAD
            self._positions = {n: p for n, p in self._positions.items() if n >= oldest}
            self.meter.add(batch)
            yield batch
        placed = end["packer"]["documents"] - position["packer"]["documents"]
        if not placed and not position["place"]:  # a trainer would go round for ever
            size = len(self.plan(position["epoch"]))
            reasons = [f"\n  {s}: {r}" for s, r in list(self.skip_log.reasons.items())[:5]]
            raise UserError(
                f"none of {size} documents can be used"
                + ("".join(reasons) or ": none holds a stream of the recipe")
            )
        return end

    def _own(self, rows: Rows) -> Rows:
        """This rank's share of the rows of a global batch; as even as can be."""
        first, last = (len(rows) * r // self.world_size for r in (self.rank, self.rank + 1))
        return rows[first:last]

    def _packed(self, rows: Rows) -> Batch:
        """This rank's share as a Batch; what all ranks have now is forgotten."""
        shared = self._own(rows) or [[]]  # every rank gives as many batches: models talk in each
        own = [[self._rows[key] for key in row if key in self._rows] for row in shared]
        for key in (key for row in rows for key in row):
            self._rows.pop(key, None)
            self._pieces.pop(key[:2], None)
        return pack(own, self.loading.context_length)

    def _forget_all_but(self, kept: set[Key]) -> None:
        """Drop what was read for places that this pass does not begin with."""
        partly = {key[:2] for key in kept if key not in self._rows}  # to be read again
        self._rows = {
            key: row for key, row in self._rows.items() if key in kept and key[:2] not in partly
        }
        self._pieces = {}
        for key in sorted(self._rows):  # of one that was split, only what is not given yet
            self._pieces.setdefault(key[:2], []).append(key)

    # -- rows before documents, or documents before rows ---------------------------------------

    def _planned(self, position: Position) -> Batches:
        """Lengths are known: rows are planned ahead, and only this rank's documents are read."""
        planned: deque[tuple[Rows, Position]] = deque()
        end: list[Position] = []

        def size_of(spot: Spot) -> dict[Key, Size]:
            known = self.documents.length(spot[0], self.plan(spot[0]).number(spot[1]))
            return {(*spot, 0): (min(known, self.loading.context_length), {})}

        def tasks() -> Iterator[Task]:
            batches = self._global_batches(position, size_of)
            while True:
                try:
                    planned.append(next(batches))
                except StopIteration as stop:
                    end.append(stop.value)
                    return
                spots = [key[:2] for row in self._own(planned[-1][0]) for key in row]
                rooms = {spot: size_of(spot)[(*spot, 0)][0] for spot in spots}
                yield from self._tasks_for(spots, rooms)

        results = self._results(tasks())
        while True:
            while planned and self._has_all(self._own(planned[0][0])):
                yield planned.popleft()
            if not self._take(results):
                yield from planned  # of which this rank has no document
                return end[0]

    def _has_all(self, rows: Rows) -> bool:
        return all(key[:2] in self._pieces for row in rows for key in row)

    def _as_read(self, position: Position) -> Batches:
        """Only reading tells lengths: every rank reads every document, and packs as they come."""
        plan = self.plan(position["epoch"])

        def tasks() -> Iterator[Task]:
            waiting = sorted({key[:2] for key in keys_of(position)} - self._pieces.keys())
            yield from self._tasks_for([spot for spot in waiting if spot[0] != plan.epoch])
            open_here = [place for epoch, place in waiting if epoch == plan.epoch]
            yield from plan.tasks([*open_here, *range(position["place"], len(plan))])

        results = self._results(tasks())

        def sizes_of(spot: Spot) -> dict[Key, Size]:
            while spot not in self._pieces:
                assert self._take(results), f"no task held {spot}"
            if not self._pieces[spot]:  # a hole is met once
                return dict.fromkeys(self._pieces.pop(spot))
            return {key: self._size(self._rows[key]) for key in self._pieces[spot]}

        return (yield from self._global_batches(position, sizes_of))

    def _size(self, row: Batch) -> Size:
        counts = {m: int((row.modality == m).sum()) for m in self.budget}
        return row.modality.shape[1], counts

    def _tasks_for(
        self, spots: list[Spot], rooms: Mapping[Spot, int] | None = None
    ) -> Iterator[Task]:
        """Tasks for places of any epochs that have not been read."""
        missing = dict.fromkeys(spot for spot in spots if spot not in self._pieces)
        for epoch in sorted({epoch for epoch, _ in missing}):
            places = [place for e, place in missing if e == epoch]
            yield from self.plan(epoch).tasks(places, rooms)

    def _global_batches(
        self, position: Position, sizes_of: Callable[[Spot], Mapping[Key, Size]]
    ) -> Batches:
        loading = self.loading
        return global_batches(
            position,
            size=loading.rows * self.world_size,
            places=len(self.plan(position["epoch"])),
            packer=BestFit(loading.context_length, loading.open_rows, self.budget),
            sizes_of=sizes_of,
            title=lambda spot: self.documents.title(spot[0], self.plan(spot[0]).number(spot[1])),
            flush=self.seed is None,
        )

    # -- what comes from the workers -----------------------------------------------------------

    def _results(self, tasks: Iterator[Task]) -> Iterator[tuple[Task, list[Read]] | UserError]:
        self._tasks.refill(tasks)
        return iter(self._items)

    def _take(self, results: Iterator[tuple[Task, list[Read]] | UserError]) -> bool:
        """Receive one task's documents; False when there are no more."""
        try:
            result = next(results)
        except StopIteration:
            return False
        except RuntimeError as error:
            raise self._lost_worker(error) from None
        if isinstance(result, UserError):
            raise result
        task, reads = result
        for read in reads:
            self._keep(task.epoch, read)
        return True

    def _lost_worker(self, error: RuntimeError) -> RuntimeError | UserError:
        """A message that names the document, if a worker died or hung over one."""
        if isinstance(error, DocumentError):  # it names its document; others were read beside it
            return error
        text = str(error)
        died = "exited unexpectedly" in text or "killed by signal" in text
        hung = "timed out" in text
        names = busy_with(self.documents, self._busy) if died or hung else []
        if not names:
            return error
        how = "died" if died else f"was silent for {self.loading.timeout_s:g} s"
        return UserError(
            f"a process of the loader {how} while it read {' or '.join(names)}; remove that file, "
            "or give more memory, or a longer data.loading.timeout_s"
        )

    def _keep(self, epoch: int, read: Read) -> None:
        """Store what was read for a place, cut or split to rows, and log what was not."""
        for skipped in read.skipped:
            self.skip_log.add(skipped)
        pieces: list[Batch] = []
        if read.row is not None:
            row = read.row.map(torch.from_numpy)
            if self.loading.too_long == "split":
                pieces = split_blocks(row, self.loading.context_length)
            else:
                pieces = [first_blocks(row, self.loading.context_length)]
                self.skip_log.truncated += pieces[0] is not row
            self.skip_log.substituted += bool(read.skipped)
        if self.seed is not None:
            lost = next(iter(read.skipped), None)
            self.skip_log.took(lost, lambda: self.documents.title(epoch, read.number))
        keys = [(epoch, read.place, piece) for piece in range(len(pieces))]
        self._pieces[epoch, read.place] = keys
        self._rows.update(zip(keys, pieces, strict=True))


def numbered(budget: Mapping[str, int], layout: Layout | None) -> dict[int, int]:
    """A budget by the numbers of the streams that it names."""
    numbers = {spec.name: spec.modality for spec in layout.streams} if layout else {}
    unknown = sorted(budget.keys() - numbers.keys())
    if unknown:
        raise ValueError(
            f"data.loading.budget names {', '.join(unknown)}; the streams of this run are "
            f"{', '.join(numbers)}"
        )
    return {numbers[name]: most for name, most in budget.items()}


def _as_it_is(result: Any) -> Any:
    """torch would turn arrays into tensors, each of which takes an open file on its way."""
    return result
