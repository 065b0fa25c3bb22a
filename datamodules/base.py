"""What all datamodules share: clips in, packed batches out, in an order that is a pure function of the seed.

1. order:    (seed, epoch) -> the indices of the epoch, cut evenly between ranks
2. document: index -> Clip -> Tokens -> one-document row, in worker processes; what cannot be read -> Skipped
3. pack:     one-document rows -> rows of fixed length -> Batch, in the main process, in the order of step 1

Steps 1 and 3 do not depend on the number of workers, so neither does what the model sees.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from mmpredict.schema import Batch, Clip, Layout, Statistics
from mmpredict.sequence import BestFit, first_blocks, interleave, pack
from mmpredict.tokens import Codecs, MelChunks, Patches, TextTokens

Split = str  # "train", "val" or "test"


@dataclass(frozen=True)
class Loading:
    """How documents become batches.

    Args:
        context_length: positions of a row.
        rows: rows per batch (on every device).
        workers: processes that read and encode; 0 does it in the main process.
        open_rows: rows kept waiting for a document that fills them.
        max_skipped_share: stop when more of the files than this cannot be read, and at least
            `min_skipped`.
        min_skipped: see `max_skipped_share`; more than half of the files always stops.
        statistics_documents: training documents from which mean and deviation are measured.
        timeout_s: stop when a worker is silent for so long.
    """

    context_length: int = 1024
    rows: int = 8
    workers: int = 1
    open_rows: int = 16
    max_skipped_share: float = 0.05
    min_skipped: int = 10
    statistics_documents: int = 64
    timeout_s: float = 300.0

    def __post_init__(self) -> None:
        for name in ("context_length", "rows", "open_rows", "statistics_documents"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.loading.{name}={getattr(self, name)} must be at least 1")


@dataclass(frozen=True)
class Skipped:
    """A document that could not be read; `source` is the file, of which there may be many documents."""

    source: str
    reason: str


class Documents(Protocol):
    """Numbered documents of one split."""

    def __len__(self) -> int: ...

    def document(self, epoch: int, index: int) -> Batch | Skipped:
        """The one-document row of an index; `epoch` lets endless sources give something new."""
        ...


class SkipLog:
    """Counts what could not be read, and says when it is too much."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self.num_sources = 0
        self.reasons: dict[str, str] = {}
        self.truncated = 0

    def add(self, skipped: Skipped) -> None:
        self.reasons.setdefault(skipped.source, skipped.reason)
        self.check()

    def check(self) -> None:
        """Raise with the list when the limits of `Loading` are passed."""
        bad, total = len(self.reasons), max(self.num_sources, len(self.reasons), 1)
        many = bad > self.loading.max_skipped_share * total and bad >= self.loading.min_skipped
        if bad and (many or bad > total / 2):
            shown = [f"  {source}: {reason}" for source, reason in list(self.reasons.items())[:20]]
            more = [f"  ... and {bad - 20} more"] if bad > 20 else []
            raise ValueError(
                "\n".join(
                    [
                        f"{bad} of {total} files cannot be used (limits: "
                        f"data.loading.max_skipped_share={self.loading.max_skipped_share:g} from "
                        f"min_skipped={self.loading.min_skipped} on, and half of all):",
                        *shown,
                        *more,
                    ]
                )
            )


class _Items(Dataset):
    """Step 2, as the map-style dataset that torch's workers want; keys are (epoch, index)."""

    def __init__(self, documents: Documents) -> None:
        self.documents = documents

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, key: tuple[int, int]) -> Batch | Skipped:
        return self.documents.document(*key)


class PackedLoader:
    """Iterates one split as Batches, epoch after epoch.

    Args:
        documents: what to read.
        loading: how.
        skip_log: where unreadable documents are counted.
        seed: of the order; None keeps the order of the documents (validation).
        rank, world_size: this process takes every world_size-th document, from `rank` on.
    """

    def __init__(
        self,
        documents: Documents,
        loading: Loading,
        skip_log: SkipLog,
        *,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not len(documents):
            raise ValueError("there is not a single document to read; check the data's folder and split")
        self.documents, self.loading, self.skip_log = documents, loading, skip_log
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = 0
        self._order: list[tuple[int, int]] = []
        self._items = DataLoader(
            _Items(documents),
            batch_size=None,
            sampler=self._order,  # refilled for every epoch
            num_workers=loading.workers,
            persistent_workers=loading.workers > 0,
            timeout=loading.timeout_s if loading.workers else 0,
            prefetch_factor=4 * loading.rows if loading.workers else None,
            collate_fn=_as_it_is,
        )

    def order(self, epoch: int) -> list[tuple[int, int]]:
        """The (epoch, index) keys of this rank in an epoch."""
        size = len(self.documents)
        if self.seed is None:
            indices = torch.arange(size)
        else:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            indices = torch.randperm(size, generator=generator)
        return [(epoch, index) for index in indices[self.rank :: self.world_size].tolist()]

    def __iter__(self) -> Iterator[Batch]:
        self._order[:] = self.order(self.epoch)
        if self.seed is not None:
            self.epoch += 1
        packer = BestFit(self.loading.context_length, self.loading.open_rows)
        ready: list[list[Batch]] = []
        for item in self._items:
            if isinstance(item, Skipped):
                self.skip_log.add(item)
                continue
            document = first_blocks(item, self.loading.context_length)
            self.skip_log.truncated += document is not item
            ready += packer.add(document)
            while len(ready) >= self.loading.rows:
                yield pack(ready[: self.loading.rows], self.loading.context_length)
                ready = ready[self.loading.rows :]
        ready += packer.flush()
        for first in range(0, len(ready), self.loading.rows):
            yield pack(ready[first : first + self.loading.rows], self.loading.context_length)


def _as_it_is(item: Batch | Skipped) -> Batch | Skipped:
    return item


class ClipDataModule(LightningDataModule, ABC):
    """Base of the datamodules; a subclass says which documents a split has.

    Args:
        audio, video, text: encoders; None leaves the stream out.
        loading: how documents become batches.
        seed: of the order of the training documents.
    """

    def __init__(
        self,
        *,
        audio: MelChunks | None,
        video: Patches | None,
        text: TextTokens | None,
        loading: Loading | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.codecs = Codecs(audio=audio, video=video, text=text)
        self.loading = loading or Loading()
        self.seed = seed
        self.skip_log = SkipLog(self.loading)
        self._statistics: Statistics | None = None

    @property
    def layout(self) -> Layout:
        """What the model is built for."""
        return self.codecs.layout

    @abstractmethod
    def documents(self, split: Split) -> Documents:
        """The documents of "train", "val" or "test"; called after `setup`."""

    @abstractmethod
    def corpus(self) -> Iterable[str]:
        """Training text, for a vocabulary that is yet to be trained."""

    def setup(self, stage: str | None = None) -> None:
        """Train the vocabulary if it needs to be; subclasses look at their files first."""
        text = self.codecs.text
        if text is not None and not text.is_fitted:
            self.codecs = replace(self.codecs, text=text.fit(self.corpus()))

    def encode(self, clip: Clip) -> Batch | None:
        """One-document row of a clip; None if it has none of the run's streams."""
        streams = self.codecs.encode(clip)
        return interleave(streams, self.layout) if streams else None

    def statistics(self) -> Statistics:
        """Mean and deviation of the continuous streams over the first training documents."""
        if self._statistics is None:
            self._statistics = measure(self.documents("train"), self.codecs, self.loading)
        return self._statistics

    def train_dataloader(self) -> PackedLoader:
        return self._loader("train", seed=self.seed)

    def val_dataloader(self) -> PackedLoader:
        return self._loader("val")

    def test_dataloader(self) -> PackedLoader:
        return self._loader("test")

    def predict_dataloader(self) -> PackedLoader:
        return self._loader("test")

    def _loader(self, split: Split, seed: int | None = None) -> PackedLoader:
        rank = self.trainer.global_rank if self.trainer else 0
        world_size = self.trainer.world_size if self.trainer else 1
        return PackedLoader(
            self.documents(split),
            self.loading,
            self.skip_log,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )


def measure(documents: Documents, codecs: Codecs, loading: Loading) -> Statistics:
    """Mean and deviation per group of values (colour channel, mel bin) over leading documents.

    A stream that these documents lack gets mean 0 and deviation 1.
    """
    mean: dict[int, torch.Tensor] = {}
    std: dict[int, torch.Tensor] = {}
    seen: dict[int, list[torch.Tensor]] = {}
    for index in range(min(loading.statistics_documents, len(documents))):
        row = documents.document(0, index)
        if isinstance(row, Skipped):
            continue
        for modality, values in row.contents.items():
            if values.ndim == 2:
                x = values.double()
                sums = torch.stack([torch.full_like(x[0], len(x)), x.sum(0), x.square().sum(0)])
                seen.setdefault(modality, []).append(sums)
    for modality, codec in codecs.by_modality.items():
        if codec.spec.is_discrete:
            continue
        groups = codec.groups_D
        if modality not in seen:
            mean[modality], std[modality] = torch.zeros(len(groups)), torch.ones(len(groups))
            continue
        totals = torch.stack(seen[modality]).sum(0)
        pooled = torch.zeros(3, int(groups.max()) + 1, dtype=torch.float64)
        count, first, second = pooled.index_add_(1, groups, totals)
        centre = first / count
        spread = (second / count - centre.square()).clamp(min=0).sqrt()
        mean[modality], std[modality] = centre[groups].float(), spread[groups].float()
    return Statistics(mean=mean, std=std)
