"""What a loader's worker does: reads the documents of a task, and another for one that is broken.

In: Task (an epoch, places, numbers of documents). Out: Read, place by place.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from datamodules.feed.documents import Documents, Skipped
from mmpredict.schema import Batch, UserError

TRIES = 8  # substitutes that are looked at


@dataclass(frozen=True)
class Task:
    """Documents that one worker reads at one go.

    Args:
        epoch: of all of them.
        places: where they stand in the epoch's order.
        numbers: which they are.
        rooms: positions that a substitute may take, where rows are planned already; else None.
        is_run: they are neighbours that `Documents.read` gives at one go.
        wanted: the places that are to be sent back; None for all.
    """

    epoch: int
    places: tuple[int, ...]
    numbers: tuple[int, ...]
    rooms: tuple[int, ...] | None = None
    is_run: bool = False
    wanted: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Read:
    """One place of a task.

    Args:
        place: in the epoch's order.
        number: of the document that stands there.
        row: the document there, or its substitute, as arrays; None for neither.
        skipped: what could not be read on the way.
    """

    place: int
    number: int
    row: Batch | None
    skipped: tuple[Skipped, ...] = ()


class DocumentError(RuntimeError):
    """A document at which the reading code itself failed; the message names it."""


class Reader(Dataset):
    """The map-style dataset that torch's workers want; its keys are Tasks.

    Args:
        documents: what to read.
        busy_WI: (workers, 3) int64 in shared memory: epoch, number and 1 while a worker reads; so
            the main process can name what a worker died of.
        substitute: whether broken documents are replaced.
    """

    def __init__(self, documents: Documents, busy_WI: Tensor, *, substitute: bool) -> None:
        self.documents, self.busy_WI, self.substitute = documents, busy_WI, substitute
        self._weights = documents.weights()

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, task: Task) -> tuple[Task, list[Read]] | UserError:
        try:
            groups = [task.numbers] if task.is_run else [(number,) for number in task.numbers]
            found = [one for group in groups for one in self._read(task.epoch, group)]
            rooms = task.rooms or (None,) * len(task.places)
            return task, [
                self._checked(task.epoch, *one)
                for one in zip(task.places, task.numbers, rooms, found, strict=True)
                if task.wanted is None or one[0] in task.wanted
            ]
        except UserError as error:
            return error  # raised where it is received: a worker would wrap it in its traceback

    def _read(self, epoch: int, numbers: Sequence[int]) -> list[Batch | Skipped]:
        """`documents.read`, with a note of what is being read and its name on what it raises."""
        worker = get_worker_info()
        slot = self.busy_WI[worker.id if worker else 0]
        slot[0], slot[1], slot[2] = epoch, numbers[0], 1
        try:
            return self.documents.read(epoch, numbers)
        except (UserError, KeyboardInterrupt):
            raise
        except Exception as error:
            title = self.documents.title(epoch, numbers[0])
            raise DocumentError(f"{title}: {type(error).__name__}: {error}") from error
        finally:
            slot[2] = 0

    def _checked(
        self, epoch: int, place: int, number: int, room: int | None, found: Batch | Skipped
    ) -> Read:
        if not isinstance(found, Skipped):
            return Read(place, number, _as_arrays(found))
        if found.harmless or not self.substitute:
            return Read(place, number, None, (found,))
        skipped = [found]
        for other in substitutes(epoch, number, len(self.documents)):
            if self._weights is not None and not self._weights[other]:
                continue  # it is not wanted
            if room is not None and (self.documents.length(epoch, other) or room + 1) > room:
                continue
            (row,) = self._read(epoch, (other,))
            if not isinstance(row, Skipped):
                return Read(place, number, _as_arrays(row), tuple(skipped))
            skipped.append(row)
        return Read(place, number, None, tuple(skipped))


def substitutes(epoch: int, number: int, size: int) -> list[int]:
    """Other documents to take the place of a broken one, decided by its number."""
    digest = hashlib.blake2b(b"%d:%d" % (epoch, number), digest_size=8).digest()
    step = 1 + int.from_bytes(digest, "big") % max(1, size - 1)
    found = [(number + step * k) % size for k in range(1, TRIES + 1)]
    return [n for n in dict.fromkeys(found) if n != number]


def busy_with(documents: Documents, busy_WI: Tensor) -> list[str]:
    """What the workers are reading at this moment, by name."""
    return [documents.title(epoch, number) for epoch, number, busy in busy_WI.tolist() if busy]


def step_back(worker: int) -> None:
    """Let the training go first where cores are few: its threads wait for each other."""
    if hasattr(os, "nice"):
        os.nice(5)


def _as_arrays(row: Batch) -> Batch:
    """A tensor would keep a file open in both processes until it is packed, so that the usual limit
    of 1024 open files is soon passed; arrays go through the pipe."""
    return row.map(Tensor.numpy)
