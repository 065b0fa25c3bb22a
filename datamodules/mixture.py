"""Several datamodules as one, by weight. In: their documents. Out: one stream of documents."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from pytorch_lightning import LightningDataModule

from datamodules.base import ClipDataModule, Documents, Loading, Skipped, Split
from mmpredict.schema import Batch
from mmpredict.tokens import Codecs


class Mixture(ClipDataModule):
    """Draws every training document from one of several datamodules, by weight.

    The parts share one set of encoders: where two parts name the same stream, they must agree on it. A
    part may lack a stream. Which part and which of its documents stand at a place is a pure function of
    (seed, epoch, place); a part that runs out begins its next epoch. Validation and test take every
    part's held-out documents, one part after the other.

    Args:
        parts: datamodules; their own `loading` is not used.
        weights: share of the training documents of each part; need not add up to 1.
        documents_per_epoch: training documents until the next shuffle.
        loading: how documents become batches.
        seed: of the draws and the order.
    """

    def __init__(
        self,
        parts: list[LightningDataModule],
        weights: list[float],
        *,
        documents_per_epoch: int = 2000,
        loading: Loading | None = None,
        seed: int = 0,
    ) -> None:
        foreign = [type(part).__name__ for part in parts if not isinstance(part, ClipDataModule)]
        if foreign:
            raise ValueError(f"data.parts holds {foreign}; take subclasses of datamodules.ClipDataModule")
        if len(parts) != len(weights) or not parts or min(weights) <= 0:
            raise ValueError(
                f"data.parts has {len(parts)} entries and data.weights is {weights}; give one positive "
                "weight per part"
            )
        codecs = _agreed([part.codecs for part in parts])
        super().__init__(**vars(codecs), loading=loading, seed=seed)
        self.parts: list[ClipDataModule] = parts
        self.weights, self.documents_per_epoch = list(weights), documents_per_epoch
        for part in parts:
            part.loading = self.loading
        self._share_codecs()

    def _share_codecs(self) -> None:
        for part in self.parts:
            part.codecs = self.codecs

    def setup(self, stage: str | None = None) -> None:
        """Set the parts up with one vocabulary, trained on the text of all of them."""
        text = self.codecs.text
        if text is not None and not text.is_fitted:
            # Parts look at their files first, without training a vocabulary of their own.
            for part in self.parts:
                part.codecs = replace(part.codecs, text=replace(text, kind="bytes"))
                part.setup(stage)
        super().setup(stage)
        self._share_codecs()
        for part in self.parts:
            part.setup(stage)
        for part in self.parts:
            self.skip_log.num_sources += part.skip_log.num_sources
            self.skip_log.reasons |= part.skip_log.reasons

    def documents(self, split: Split) -> Documents:
        parts = [part.documents(split) for part in self.parts]
        if split == "train":
            return _Drawn(parts, self.weights, self.documents_per_epoch, self.seed)
        return _Joined(parts)

    def corpus(self) -> Iterable[str]:
        for part in self.parts:
            yield from part.corpus()


def _agreed(all_codecs: list[Codecs]) -> Codecs:
    """The union of the parts' encoders."""
    agreed: dict[str, object] = {}
    for name in ("audio", "video", "text"):
        found = {getattr(codecs, name) for codecs in all_codecs} - {None}
        if len(found) > 1:
            raise ValueError(
                f"the parts of the mixture disagree on {name}: "
                + " against ".join(sorted(map(str, found)))
                + f"; give them the same {name} settings"
            )
        agreed[name] = found.pop() if found else None
    return Codecs(**agreed)


class _Drawn:
    """A weighted draw; `index` is a place in the epoch."""

    def __init__(
        self, parts: list[Documents], weights: list[float], size: int, seed: int
    ) -> None:
        empty = [i for i, part in enumerate(parts) if not len(part)]
        if empty:
            raise ValueError(f"part {empty[0]} of the mixture has no training document")
        self.parts, self.size, self.seed = parts, size, seed
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self._plans: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __len__(self) -> int:
        return self.size

    def plan(self, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """For each place of an epoch its part, and how many of that part came before it in the epoch."""
        if epoch not in self._plans:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            part = torch.multinomial(self.weights, self.size, replacement=True, generator=generator)
            hits = torch.nn.functional.one_hot(part, len(self.parts))
            rank = (hits.cumsum(0) - hits).gather(1, part[:, None])[:, 0]
            self._plans = {epoch: (part, rank)}
        return self._plans[epoch]

    def document(self, epoch: int, index: int) -> Batch | Skipped:
        part, rank = (x[index].item() for x in self.plan(epoch))
        documents = self.parts[part]
        # Every epoch starts where a steady draw would stand by now, so that no document is favoured.
        share = (self.weights[part] / self.weights.sum()).item()
        number = int(epoch * self.size * share) + rank
        return documents.document(number // len(documents), number % len(documents))


class _Joined:
    """All documents of all parts, one part after the other."""

    def __init__(self, parts: list[Documents]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def document(self, epoch: int, index: int) -> Batch | Skipped:
        for part in self.parts:
            if index < len(part):
                return part.document(epoch, index)
            index -= len(part)
        raise IndexError(index)
