"""Several datamodules as one, by weight. In: their documents. Out: one stream of documents."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import inf

import torch
from pytorch_lightning import LightningDataModule

from datamodules.base import ClipDataModule, Loading, Split
from datamodules.documents import Documents, Skipped
from mmpredict.schema import Batch
from mmpredict.tokens import Codecs


class Mixture(ClipDataModule):
    """Draws every training document from one of several datamodules, by weight.

    The parts share one set of encoders: where two parts name the same stream, they must agree on
    it. A part may lack a stream. Which part and which of its documents stand at a place is a pure
    function of (seed, epoch, place); a part that runs out begins its next epoch, in another order.
    Validation and test take every part's held-out documents, one part after the other.

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
            raise ValueError(
                f"data.parts holds {foreign}; take subclasses of datamodules.ClipDataModule"
            )
        if len(parts) != len(weights) or not parts or not all(0 < w < inf for w in weights):
            raise ValueError(
                f"data.parts has {len(parts)} entries and data.weights is {weights}; give one "
                "positive weight per part"
            )
        codecs = _agreed(parts)
        super().__init__(**vars(codecs), loading=loading, seed=seed)
        self.parts: list[ClipDataModule] = parts
        self.weights, self.documents_per_epoch = list(weights), documents_per_epoch

    def _share(self, codecs: Codecs) -> None:
        """Give every part the encoders of the streams that it has, and how to load."""
        for part in self.parts:
            kept = {
                name: codec and getattr(codecs, name) for name, codec in vars(part.codecs).items()
            }
            part.codecs = Codecs(**kept)
            part.loading = part.skip_log.loading = self.loading

    def setup(self, stage: str | None = None) -> None:
        """Set the parts up with one vocabulary, trained on the text of all of them."""
        text = self.codecs.text
        if text is not None and not text.is_fitted:
            # Parts look at their files first, without training a vocabulary of their own.
            self._share(replace(self.codecs, text=replace(text, kind="bytes")))
            for part in self.parts:
                part.setup(stage)
        super().setup(stage)
        self._share(self.codecs)
        for part in self.parts:
            part.setup(stage)
            self.skip_log.reasons |= part.skip_log.reasons
        self.skip_log.num_sources = sum(part.skip_log.num_sources for part in self.parts)

    def documents(self, split: Split) -> Documents:
        parts = [part.documents(split) for part in self.parts]
        if split == "train":
            return _Drawn(parts, self.weights, self.documents_per_epoch, self.seed)
        return _Joined(parts)

    def corpus(self) -> Iterable[str]:
        for part in self.parts:
            if part.codecs.text is not None:
                yield from part.corpus()


def _agreed(parts: list[ClipDataModule]) -> Codecs:
    """The union of the parts' encoders."""
    agreed: dict[str, object] = {}
    for name in ("audio", "video", "text"):
        having = [part for part in parts if getattr(part.codecs, name) is not None]
        found = [getattr(part.codecs, name) for part in having]
        if any(codec != found[0] for codec in found):
            different = [
                key
                for key in vars(found[0])
                if any(getattr(codec, key, None) != getattr(found[0], key) for codec in found)
                and key not in ("vocabulary", "_tokenizer")  # long; `path` says it
            ]
            settings = [
                f"{type(part).__name__} has "
                + ", ".join(f"{key}={getattr(codec, key)!r}" for key in different)
                for part, codec in zip(having, found, strict=True)
            ]
            raise ValueError(
                f"the parts of the mixture disagree on {name}: {'; '.join(settings)}; "
                f"give them the same {name} settings"
            )
        agreed[name] = found[0] if found else None
    return Codecs(**agreed)


class _Drawn(Documents):
    """A weighted draw; `index` is a place in the epoch."""

    def __init__(self, parts: list[Documents], weights: list[float], size: int, seed: int) -> None:
        empty = [i for i, part in enumerate(parts) if not len(part)]
        if empty:
            raise ValueError(f"part {empty[0]} of the mixture has no training document")
        self.parts, self.size, self.seed = parts, size, seed
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self._plans: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._orders: dict[int, tuple[int, torch.Tensor]] = {}

    def __len__(self) -> int:
        return self.size

    def plan(self, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """For each place of an epoch its part, and how many places before it are of that part."""
        if epoch not in self._plans:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            part = torch.multinomial(self.weights, self.size, replacement=True, generator=generator)
            hits = torch.nn.functional.one_hot(part, len(self.parts))
            rank = (hits.cumsum(0) - hits).gather(1, part[:, None])[:, 0]
            self._plans = {epoch: (part, rank)}
        return self._plans[epoch]

    def name(self, index: int) -> str:
        return f"draw {index}"  # which document it is changes with the epoch

    def document(self, epoch: int, index: int) -> Batch | Skipped:
        part, rank = (x[index].item() for x in self.plan(epoch))
        # Every epoch starts where a steady draw would stand by now: no document is favoured.
        share = (self.weights[part] / self.weights.sum()).item()
        number = int(epoch * self.size * share) + rank
        part_epoch, place = divmod(number, len(self.parts[part]))
        return self.parts[part].document(part_epoch, self._order(part, part_epoch)[place].item())

    def _order(self, part: int, part_epoch: int) -> torch.Tensor:
        """The documents of a part, shuffled anew for each of its epochs."""
        if self._orders.get(part, (-1,))[0] != part_epoch:
            seed = (self.seed * 1_000_003 + part_epoch) * 1_009 + part + 1
            generator = torch.Generator().manual_seed(seed)
            order = torch.randperm(len(self.parts[part]), generator=generator)
            self._orders[part] = part_epoch, order
        return self._orders[part][1]


class _Joined(Documents):
    """All documents of all parts, one part after the other."""

    def __init__(self, parts: list[Documents]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def _find(self, index: int) -> tuple[Documents, int]:
        for part in self.parts:
            if index < len(part):
                return part, index
            index -= len(part)
        raise IndexError(index)

    def name(self, index: int) -> str:
        part, own = self._find(index)
        return part.name(own)

    def document(self, epoch: int, index: int) -> Batch | Skipped:
        part, own = self._find(index)
        return part.document(epoch, own)
