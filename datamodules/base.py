"""What all datamodules share: their encoders, their loaders, and what a checkpoint keeps of them.

A datamodule says which documents a split has (`documents`); reading, order, packing and sharing
them out are the loader's (`datamodules.feed.loader`).
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.trainer.states import TrainerFn

from datamodules.feed import fingerprint
from datamodules.feed.documents import Documents, Skipped
from datamodules.feed.each import EachDocument
from datamodules.feed.loader import PackedLoader
from datamodules.feed.loading import Loading
from datamodules.feed.skips import SkipLog
from mmpredict.schema import Batch, Clip, Layout, Statistics, UserError
from mmpredict.sequence import interleave
from mmpredict.tokens import Codecs, MelChunks, Patches, TextTokens, Vectors

Split = str  # "train", "val" or "test"
SEARCH = 8  # times more documents are looked at for the statistics of a stream that is rare
# Settings that decide what the model sees at a step; the others may change in mid-run.
DECISIVE = ("context_length", "open_rows", "budget", "too_long", "shuffle_runs", "substitute")


class ClipDataModule(LightningDataModule, ABC):
    """Base of the datamodules; a subclass says which documents a split has.

    Args:
        audio, video, text: encoders; None leaves the stream out.
        loading: how documents become batches.
        seed: of the order of the training documents.
        series: encoders of further continuous streams, by name.
    """

    def __init__(
        self,
        *,
        audio: MelChunks | None,
        video: Patches | None,
        text: TextTokens | None,
        loading: Loading | None,
        seed: int,
        series: Mapping[str, Vectors] | None = None,
    ) -> None:
        super().__init__()
        self.codecs = Codecs(audio=audio, video=video, text=text, series=series or {})
        self.loading = loading or Loading()
        self.seed = seed
        self.skip_log = SkipLog(self.loading)
        self._statistics: Statistics | None = None
        self._train_loader: PackedLoader | None = None
        self._loaders: list[PackedLoader] = []
        self._resumed: dict[str, Any] | None = None

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

    def fingerprint(self) -> dict[str, str]:
        """A digest in hex of each source, by its name; quick to make. {} where the seed and the
        settings say it all."""
        return {}

    def settings(self) -> dict[str, str]:
        """What decides, besides the sources, which documents stand where: the arguments of the
        datamodule but for its paths, which may move."""
        plain = json.dumps(self.codecs.to_plain(), sort_keys=True, default=str)
        own = {
            name: repr(value)
            for name, value in vars(self).items()
            if not name.startswith("_") and name not in NOT_SETTINGS
        }
        loading = {f"loading.{name}": repr(getattr(self.loading, name)) for name in DECISIVE}
        codecs = hashlib.sha256(plain.encode()).hexdigest()[:16]
        return {"class": type(self).__name__, "encoders": codecs, **own, **loading}

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: what was consumed, and of which data."""
        if self._train_loader is None:
            return {}
        return {
            "position": self._train_loader.position(),
            "settings": self.settings(),
            "sources": self._sources_as_read,
        }

    @cached_property
    def _sources_as_read(self) -> dict[str, Any]:
        """The fingerprint for the checkpoints, taken once: a save must not read all files anew."""
        return fingerprint.packed(self.fingerprint())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on behind what was consumed; stop if the data are not the same any more."""
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return
        position = state_dict["position"]
        settings = fingerprint.setting_differences(state_dict["settings"], self.settings())
        sources = fingerprint.unpacked(state_dict["sources"])
        changes = fingerprint.differences(sources, self.fingerprint())
        if settings or changes:
            found = fingerprint.listed(changes + settings)
            if not self.loading.ignore_fingerprint:
                raise UserError(
                    f"the data are not those that the checkpoint was trained on:{found}\n"
                    "restore them, or go on with --data.loading.ignore_fingerprint true (the next "
                    "epoch then begins at once), or start anew without --ckpt_path"
                )
            print(f"note: the data have changed; a new epoch begins at once:{found}")
            fresh = {"place": 0, "packer": {"rows": [], "born": [], "documents": 0}, "ready": []}
            position = {**position, **fresh, "epoch": position["epoch"] + 1}
        self._resumed = position

    def __getstate__(self) -> dict[str, Any]:
        """A worker that is spawned, not forked, gets the data without the trainer and model."""
        return self.__dict__ | {"trainer": None, "_train_loader": None, "_loaders": []}

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
        before, self._train_loader = self._train_loader, self._loader("train", seed=self.seed)
        if self._resumed is not None:
            self._train_loader.resume(self._resumed)
            self._resumed = None  # what comes later goes on behind it
        elif before is not None:
            self._train_loader.take_over(before)
        return self._train_loader

    def val_dataloader(self) -> PackedLoader:
        return self._loader("val")

    def test_dataloader(self) -> PackedLoader:
        return self._loader("test")

    def predict_dataloader(self) -> Iterable[Batch]:
        """The test documents one by one, so that each can be named."""
        rank, world_size = self._place()
        documents = self.documents("test")
        return EachDocument(documents, self.skip_log, rank=rank, world_size=world_size)

    def _place(self) -> tuple[int, int]:
        """Rank and number of processes."""
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)

    def _loader(self, split: Split, seed: int | None = None) -> PackedLoader:
        rank, world_size = self._place()
        loader = PackedLoader(
            self.documents(split),
            self.loading,
            self.skip_log,
            seed=seed,
            rank=rank,
            world_size=world_size,
            layout=self.layout,
            consumed=self._consumed if seed is not None and self.trainer is not None else None,
        )
        self._loaders.append(loader)
        return loader

    def teardown(self, stage: str) -> None:
        """End the workers of all loaders."""
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()

    def _consumed(self) -> int:
        """Batches that were trained on; the trainer fetches one more ahead."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed

    def figures(self) -> dict[str, float]:
        """For the log: how full the rows are, of what, and what could not be read."""
        packing = self._train_loader.meter.figures() if self._train_loader else {}
        skipped = {f"skipped/{name}": count for name, count in self.skip_log.counts().items()}
        return {
            **packing,
            "skipped": float(len(self.skip_log.reasons)),
            "substituted": float(self.skip_log.substituted),
            "truncated": float(self.skip_log.truncated),
            **skipped,
        }


NOT_SETTINGS = {
    *vars(LightningDataModule()),
    *("codecs", "loading", "skip_log", "root", "trainer", "seed_everything"),
}


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
