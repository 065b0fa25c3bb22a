"""What all datamodules share: clips in, packed batches out, in an order that is the seed's alone.

1. order:    (seed, epoch) -> the indices of the epoch, cut evenly between ranks
2. document: index -> Clip -> Tokens -> one-document row, in worker processes; or Skipped
3. pack:     one-document rows -> rows of fixed length -> Batch, in the main process, in that order

Steps 1 and 3 do not depend on the number of workers, so neither does what the model sees.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.documents import Documents, Skipped
from mmpredict.schema import Batch, Clip, Layout, Statistics, UserError
from mmpredict.sequence import BestFit, first_blocks, interleave, pack
from mmpredict.tokens import Codecs, MelChunks, Patches, TextTokens

Split = str  # "train", "val" or "test"
SEARCH = 8  # times more documents are looked at for the statistics of a stream that is rare


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

    context_length: int = 2048
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


class SkipLog:
    """Counts what could not be read, and says when it is too much."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self.num_sources = 0
        self.reasons: dict[str, str] = {}
        self.truncated = 0

    def note(self, skipped: Skipped) -> None:
        if not skipped.harmless:
            self.reasons.setdefault(skipped.source, skipped.reason)

    def add(self, skipped: Skipped) -> None:
        """Note it, and stop if it is one too many."""
        self.note(skipped)
        self.check()

    def check(self) -> None:
        """Raise with the list when the limits of `Loading` are passed."""
        bad, total = len(self.reasons), max(self.num_sources, len(self.reasons), 1)
        many = bad > self.loading.max_skipped_share * total and bad >= self.loading.min_skipped
        if bad and (many or bad > total / 2):
            shown = [f"  {source}: {reason}" for source, reason in list(self.reasons.items())[:20]]
            more = [f"  ... and {bad - 20} more"] if bad > 20 else []
            raise UserError(
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
            raise ValueError("there is no document to read; check the data's folder and split")
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
            collate_fn=_as_arrays,
            worker_init_fn=_step_back,
            generator=torch.Generator(),  # its own: an epoch must not shift the model's noise
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
        nothing = bool(self._order)
        for item in self._items:
            if isinstance(item, Skipped):
                self.skip_log.add(item)
                continue
            nothing = False
            whole = item.map(torch.from_numpy)
            document = first_blocks(whole, self.loading.context_length)
            self.skip_log.truncated += document is not whole
            ready += packer.add(document)
            while len(ready) >= self.loading.rows:
                yield pack(ready[: self.loading.rows], self.loading.context_length)
                ready = ready[self.loading.rows :]
        if nothing:  # or a trainer that counts steps would go round and round
            raise UserError(f"none of {len(self._order)} documents holds a stream of the recipe")
        ready += packer.flush()
        for first in range(0, len(ready), self.loading.rows):
            yield pack(ready[first : first + self.loading.rows], self.loading.context_length)


def _as_arrays(item: Batch | Skipped) -> Batch | Skipped:
    """What a worker sends. A tensor would keep a file open in both processes until it is packed, so
    that the usual limit of 1024 open files is soon passed; arrays go through the pipe."""
    return item if isinstance(item, Skipped) else item.map(Tensor.numpy)


def _step_back(worker: int) -> None:
    """Let the training go first where cores are few: its threads wait for each other."""
    if hasattr(os, "nice"):
        os.nice(5)


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

    def __getstate__(self) -> dict[str, Any]:
        """A worker that is spawned, not forked, gets the data without the trainer and model."""
        return self.__dict__ | {"trainer": None}

    def check_context(self, seconds: float) -> None:
        """Refuse clips whose frames and sound alone are longer than a row."""
        positions = sum(
            math.ceil(seconds / spec.period_s - 1e-6) * spec.positions_per_block
            for spec in self.layout.streams
            if spec.period_s
        )
        if positions > self.loading.context_length:
            raise ValueError(
                f"{seconds:g} s of frames and sound are {positions} positions, "
                f"data.loading.context_length is {self.loading.context_length}; raise it, take "
                "shorter clips, lower video.fps or video.size, or take larger patches"
            )

    def encode(self, clip: Clip) -> Batch | None:
        """One-document row of a clip; None if it has none of the run's streams."""
        streams = self.codecs.encode(clip)
        return interleave(streams, self.layout) if streams else None

    def statistics(self) -> Statistics:
        """Mean and deviation of the continuous streams over some of the training documents."""
        if self._statistics is None:
            self._statistics = measure(self.documents("train"), self.codecs, self.loading)
        return self._statistics

    def train_dataloader(self) -> PackedLoader:
        return self._loader("train", seed=self.seed)

    def val_dataloader(self) -> PackedLoader:
        return self._loader("val")

    def test_dataloader(self) -> PackedLoader:
        return self._loader("test")

    def predict_dataloader(self) -> Iterable[Batch]:
        """The test documents one by one, so that each can be named."""
        from datamodules.each import EachDocument  # which is built on this file

        rank, world_size = self._place()
        documents = self.documents("test")
        return EachDocument(documents, self.skip_log, rank=rank, world_size=world_size)

    def _place(self) -> tuple[int, int]:
        """Rank and number of processes."""
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)

    def _loader(self, split: Split, seed: int | None = None) -> PackedLoader:
        rank, world_size = self._place()
        return PackedLoader(
            self.documents(split),
            self.loading,
            self.skip_log,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )


def measure(documents: Documents, codecs: Codecs, loading: Loading) -> Statistics:
    """Mean and deviation per group of values (colour channel, mel bin).

    Measured over `loading.statistics_documents` documents, drawn evenly, because neighbours are
    alike; while they lack a stream, over up to SEARCH times as many. A stream that is still missing
    gets mean 0 and deviation 1.
    """
    mean: dict[int, torch.Tensor] = {}
    std: dict[int, torch.Tensor] = {}
    seen: dict[int, list[torch.Tensor]] = {}
    streams = {m for m, codec in codecs.by_modality.items() if not codec.spec.is_discrete}
    drawn = torch.randperm(len(documents), generator=torch.Generator().manual_seed(0)).tolist()
    for place, index in enumerate(drawn[: SEARCH * loading.statistics_documents]):
        if place >= loading.statistics_documents and streams <= seen.keys():
            break
        row = documents.document(0, index)
        if isinstance(row, Skipped):
            continue
        for modality, values in row.contents.items():
            if values.ndim == 2:
                x = values.double()
                sums = torch.stack([torch.full_like(x[0], len(x)), x.sum(0), x.square().sum(0)])
                seen.setdefault(modality, []).append(sums)
    for modality in sorted(streams):
        groups = codecs.by_modality[modality].groups_D
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


def split_by_hash(hashes: Sequence[str], share: float) -> list[Split]:
    """The split of each content by its hash in hex digits.

    Below `share` of the range it is "test", below twice that "val", else "train". Needs three
    different contents: the largest hash trains and the two smallest are held out in any case, so
    that no split is empty. Equal contents share a split. When contents are added, none that trained
    is ever held out (unless all were below the threshold), while one that was held out only because
    there had to be one may come to train.
    """
    order = sorted(set(hashes))
    place = [int(h[:16], 16) / 16 ** len(h[:16]) for h in order]
    names = ["test" if x < share else "val" if x < 2 * share else "train" for x in place]
    names[-1] = "train"
    if "test" not in names:
        names[0] = "test"
    if "val" not in names:
        names[max(1, names.count("test") - 1)] = "val"
    split = dict(zip(order, names, strict=True))
    return [split[h] for h in hashes]


def mended(text: str) -> str:
    """`text` with lone surrogates, which JSON can hold and no vocabulary can spell, as U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
