"""Documents of several sources as one: drawn by weight, or one source after the other.

In: the documents of each part. Out: Documents whose numbers are places of an epoch (drawn) or
count through the parts (joined).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, groupby

import torch
from torch import Tensor

from datamodules.feed.documents import Documents, Skipped
from datamodules.feed.order import generator_of
from mmpredict.schema import Batch, Clip


class Drawn(Documents):
    """A weighted draw for training. Every epoch has the same number of documents of each part, its
    weight's share to within one; each part is gone through epoch by epoch, every document once in
    each, across the borders of the mixture's own epochs.

    Args:
        parts: documents of each part.
        weights: share of the documents of each part.
        size: places of an epoch.
        seed: of the draws and of the parts' orders.
        spread: as `Loading.shuffle_runs`, for the parts' orders.
    """

    def __init__(
        self,
        parts: Sequence[Documents],
        weights: Sequence[float],
        *,
        size: int,
        seed: int,
        spread: int,
    ) -> None:
        for number, part in enumerate(parts):
            if not len(part):
                raise ValueError(f"part {number} of the mixture has no training document")
        self.parts, self.size, self.seed, self.spread = list(parts), size, seed, spread
        shares = torch.tensor(weights, dtype=torch.float64)
        edges = shares.cumsum(0) / shares.sum()
        ticks = (torch.arange(size, dtype=torch.float64) + 0.5) / size
        self._part_of_tick = torch.searchsorted(edges, ticks).clamp(max=len(parts) - 1)
        self.counts = torch.bincount(self._part_of_tick, minlength=len(parts)).tolist()
        for number, count in enumerate(self.counts):
            if not count:
                raise ValueError(
                    f"part {number} of the mixture has weight {weights[number]:g} of "
                    f"{sum(weights):g}, less than one of {size} documents; raise its weight or "
                    "data.documents_per_epoch"
                )
        self._known = all(part.length(0, 0) is not None for part in self.parts)
        self._drawn: dict[int, tuple[Tensor, Tensor]] = {}
        self._orders: dict[tuple[int, int], Tensor] = {}

    def __len__(self) -> int:
        return self.size

    def order(self, seed: int | None, epoch: int, spread: int) -> Tensor:
        """As drawn: the draw is random already, and keeps the runs of its parts together."""
        return torch.arange(self.size)

    def draw(self, epoch: int) -> tuple[Tensor, Tensor]:
        """(size,) the part at each place, and the document of the part by its running number, which
        counts on from epoch to epoch."""
        if epoch not in self._drawn:
            shuffle = torch.randperm(self.size, generator=generator_of(self.seed, epoch))
            part = self._part_of_tick[shuffle]
            number = torch.empty_like(part)
            for p, count in enumerate(self.counts):
                number[part == p] = epoch * count + torch.arange(count)
            kept = {e: d for e, d in self._drawn.items() if e == epoch - 1}
            self._drawn = {**kept, epoch: (part, number)}
        return self._drawn[epoch]

    def find(self, epoch: int, index: int) -> tuple[int, int, int]:
        """Part, the part's epoch, and the number of the document in the part."""
        parts, numbers = self.draw(epoch)
        part = int(parts[index])
        part_epoch, place = divmod(int(numbers[index]), self.parts[part].places())
        return part, part_epoch, int(self._order(part, part_epoch)[place])

    def _order(self, part: int, epoch: int) -> Tensor:
        """The documents of a part in one of its epochs."""
        if (part, epoch) not in self._orders:
            kept = {k: o for k, o in self._orders.items() if k[0] != part or k[1] == epoch - 1}
            seed = self.seed * 1_009 + part + 1
            order = self.parts[part].order(seed, epoch, self.spread)
            self._orders = {**kept, (part, epoch): order}
        return self._orders[part, epoch]

    def run_numbers(self, epoch: int, numbers: Tensor) -> Tensor:
        parts, counted = (x[numbers] for x in self.draw(epoch))
        runs = torch.empty_like(numbers)
        first = 0  # numbers are given out part by part, epoch by epoch
        for p, documents in enumerate(self.parts):
            size = documents.places()
            mine = (parts == p).nonzero()[:, 0]
            mine = mine[torch.argsort(counted[mine], stable=True)]
            part_epochs, counts = (counted[mine] // size).unique_consecutive(return_counts=True)
            for part_epoch, chosen in zip(
                part_epochs.tolist(), mine.split(counts.tolist()), strict=True
            ):
                own = self._order(p, part_epoch)[counted[chosen] % size]
                found = documents.run_numbers(part_epoch, own)
                runs[chosen] = first + found
                first += int(found.max()) + 1
        return runs

    def runs(self) -> Sequence[range] | None:
        """None unless a part has some; which places belong together changes with the epoch."""
        return None if all(part.runs() is None for part in self.parts) else ()

    def name(self, index: int) -> str:
        return f"draw {index}"

    def title(self, epoch: int, index: int) -> str:
        part, part_epoch, own = self.find(epoch, index)
        return self.parts[part].title(part_epoch, own)

    def length(self, epoch: int, index: int) -> int | None:
        if not self._known:
            return None
        part, part_epoch, own = self.find(epoch, index)
        return self.parts[part].length(part_epoch, own)

    def document(self, epoch: int, index: int) -> Batch | Skipped:
        part, part_epoch, own = self.find(epoch, index)
        return self.parts[part].document(part_epoch, own)

    def clip(self, epoch: int, index: int) -> Clip | Skipped:
        part, part_epoch, own = self.find(epoch, index)
        return self.parts[part].clip(part_epoch, own)

    def read(self, epoch: int, indices: Sequence[int]) -> list[Batch | Skipped]:
        found = [self.find(epoch, index) for index in indices]
        return _read_by_part(found, lambda part: self.parts[part])


class Joined(Documents):
    """All documents of all parts, one part after the other, for validation and test."""

    def __init__(self, parts: Sequence[Documents]) -> None:
        self.parts = list(parts)
        self._starts = [0, *accumulate(map(len, self.parts))]
        self._known = all(part.length(0, 0) is not None for part in self.parts if len(part))

    def __len__(self) -> int:
        return self._starts[-1]

    def find(self, index: int) -> tuple[int, int]:
        """Part, and the number of the document in it."""
        for part, (first, end) in enumerate(zip(self._starts, self._starts[1:], strict=False)):
            if index < end:
                return part, index - first
        raise IndexError(index)

    def runs(self) -> Sequence[range] | None:
        if all(part.runs() is None for part in self.parts):
            return None
        return [
            range(run.start + first, run.stop + first)
            for part, first in zip(self.parts, self._starts, strict=False)
            for run in (part.runs() or [range(n, n + 1) for n in range(len(part))])
        ]

    def name(self, index: int) -> str:
        part, own = self.find(index)
        return self.parts[part].name(own)

    def length(self, epoch: int, index: int) -> int | None:
        if not self._known:
            return None
        part, own = self.find(index)
        return self.parts[part].length(epoch, own)

    def document(self, epoch: int, index: int) -> Batch | Skipped:
        part, own = self.find(index)
        return self.parts[part].document(epoch, own)

    def clip(self, epoch: int, index: int) -> Clip | Skipped:
        part, own = self.find(index)
        return self.parts[part].clip(epoch, own)

    def read(self, epoch: int, indices: Sequence[int]) -> list[Batch | Skipped]:
        found = [(part, epoch, own) for part, own in map(self.find, indices)]
        return _read_by_part(found, lambda part: self.parts[part])


def _read_by_part(
    found: Sequence[tuple[int, int, int]], part_of: Callable[[int], Documents]
) -> list[Batch | Skipped]:
    """Neighbours of one part and epoch at one go."""
    rows: list[Batch | Skipped] = []
    for (part, epoch), group in groupby(found, key=lambda one: one[:2]):
        rows += part_of(part).read(epoch, [own for _, _, own in group])
    return rows
