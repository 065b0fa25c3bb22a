"""What a datamodule gives the loader: numbered documents, or why one could not be read.

In: an index (and an epoch, for endless sources). Out: a one-document row, or Skipped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from datamodules.feed.order import generator_of, order_of, places_of, run_numbers
from mmpredict.schema import Batch, Clip


@dataclass(frozen=True)
class Skipped:
    """A document that could not be read.

    Args:
        source: the file, of which there may be many documents.
        reason: why.
        harmless: only this stretch of the file is empty; the file is not counted as broken.
        kind: of the reason, in one word, for counting: "unreadable", "limits", "hash", "missing",
            "empty".
        share: of the source that is lost with it.
    """

    source: str
    reason: str
    harmless: bool = False
    kind: str = "unreadable"
    share: float = 1.0


class Documents(ABC):
    """Numbered documents of one split. `document` alone has to be written; the rest tells the
    loader what it may know or do at less cost."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """What a person calls the document."""

    @abstractmethod
    def document(self, epoch: int, index: int) -> Batch | Skipped:
        """The one-document row of an index; `epoch` lets endless sources give something new. A pure
        function of its arguments: all randomness comes from (seed, epoch, index)."""

    def read(self, epoch: int, indices: Sequence[int]) -> list[Batch | Skipped]:
        """Several documents of one run at one go; as many results as indices."""
        return [self.document(epoch, index) for index in indices]

    def runs(self) -> Sequence[range] | None:
        """Neighbours that `read` gives at far less cost together than one by one, as ranges that
        tile all indices in order; None where each stands alone."""
        return None

    def length(self, epoch: int, index: int) -> int | None:
        """Positions of the document, exactly, where that is known without reading it."""
        return None

    def weights(self) -> Tensor | None:
        """(N,) times that each document is to be seen in an epoch, on average; None for once."""
        return None

    def title(self, epoch: int, index: int) -> str:
        """`name`, where what stands behind an index changes with the epoch."""
        return self.name(index)

    def order(self, seed: int | None, epoch: int, spread: int) -> Tensor:
        """(places,) the numbers of an epoch's documents in the order in which they are seen; see
        `datamodules.feed.order.order_of`. Without a seed, each once as they are numbered."""
        if seed is None:
            return torch.arange(len(self))
        generator = generator_of(seed, epoch)
        runs, weights = self.runs(), self.weights()
        return order_of(len(self), generator, runs=runs, weights=weights, spread=spread)

    def run_numbers(self, epoch: int, numbers: Tensor) -> Tensor:
        """A number for each document, shared by those that `read` gives at one go."""
        return run_numbers(self.runs(), numbers)

    def places(self) -> int:
        """How many places an epoch's `order` has."""
        weights = self.weights()
        return len(self) if weights is None else places_of(weights)

    def clip(self, epoch: int, index: int) -> Clip | Skipped:
        """The document before it is encoded, with whatever streams it has: what `mmpredict prepare`
        writes."""
        raise TypeError(f"{type(self).__name__} has no clips that could be written to shards")


class Encoder(Protocol):
    """The one thing that ClipDocuments wants of a datamodule."""

    def encode(self, clip: Clip) -> Batch | None: ...


class ClipDocuments(Documents):
    """Documents that are clips, encoded as the run wants them: write `clip`, `name`, `__len__`."""

    def __init__(self, module: Encoder) -> None:
        self.module = module

    def document(self, epoch: int, index: int) -> Batch | Skipped:
        clip = self.clip(epoch, index)
        if isinstance(clip, Skipped):
            return clip
        row = self.module.encode(clip)
        if row is None:
            return Skipped(self.name(index), "has no stream that the recipe uses", kind="empty")
        return row
