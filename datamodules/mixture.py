"""Several datamodules as one, by weight. In: their documents. Out: one stream of documents."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import inf
from typing import Literal

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from datamodules.base import ClipDataModule, Loading, Split
from datamodules.feed.documents import Documents, Skipped
from datamodules.feed.draws import Drawn, Joined
from mmpredict.schema import Layout
from mmpredict.tokens import Codecs, Vectors

MEASURED = 32  # documents of each part, for the mean of their tokens


class Mixture(ClipDataModule):
    """Draws every training document from one of several datamodules, by weight.

    The parts share one set of encoders: where two parts name the same stream, they must agree on
    it. A part may lack a stream. Which part and which of its documents stand at a place is a pure
    function of (seed, epoch, place); a part that runs out begins its next epoch, in another order.
    Validation and test take every part's held-out documents, one part after the other.

    Args:
        parts: datamodules; their own `loading` is not used.
        weights: share of each part; need not add up to 1.
        unit: what the weights share out: "documents", or "tokens" (positions).
        min_share: at least such a share of all tokens for a stream, by its name ({text: 0.05}); the
            part that is richest in it is drawn more often if need be.
        documents_per_epoch: training documents until the next shuffle.
        loading: how documents become batches.
        seed: of the draws and the order.
    """

    def __init__(  # noqa: PLR0913 - the knobs of a recipe
        self,
        parts: list[LightningDataModule],
        weights: list[float],
        *,
        unit: Literal["documents", "tokens"] = "documents",
        min_share: dict[str, float] | None = None,
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
        self._shares: list[float] | None = None
        self.weights, self.documents_per_epoch = list(weights), documents_per_epoch
        if unit not in ("documents", "tokens"):
            raise ValueError(f"data.unit={unit!r} must be documents or tokens")
        min_share = min_share or {}
        unknown = sorted(min_share.keys() - {spec.name for spec in self.layout.streams})
        if unknown or not all(0 <= share < 1 for share in min_share.values()):
            names = ", ".join(spec.name for spec in self.layout.streams)
            raise ValueError(
                f"data.min_share={min_share} must give shares from 0 to 1 for some of {names}"
            )
        self.unit, self.min_share = unit, min_share

    def _share(self, codecs: Codecs) -> None:
        """Give every part the encoders of the streams that it has, and how to load."""
        for part in self.parts:
            kept = {
                name: getattr(part.codecs, name) and getattr(codecs, name)
                for name in ("audio", "video", "text")
            }
            part.codecs = Codecs(**kept, series=part.codecs.series)
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
            self.skip_log.take_over(part.skip_log)
        self.skip_log.num_sources = sum(part.skip_log.num_sources for part in self.parts)

    def documents(self, split: Split) -> Documents:
        parts = [part.documents(split) for part in self.parts]
        if split != "train":
            return Joined(parts)
        return Drawn(
            parts,
            self.shares(parts),
            size=self.documents_per_epoch,
            seed=self.seed,
            spread=self.loading.shuffle_runs,
        )

    def shares(self, parts: list[Documents]) -> list[float]:
        """The share of the documents of each part that `unit` and `min_share` come to."""
        if self.unit == "documents" and not self.min_share:
            return self.weights
        if self._shares is None:
            tokens_PM = torch.stack([mean_tokens(part, self.layout) for part in parts])
            names = [spec.name for spec in self.layout.streams]
            self._shares = document_shares(
                self.weights,
                tokens_PM,
                by_tokens=self.unit == "tokens",
                least=[self.min_share.get(name, 0.0) for name in names],
                names=names,
            )
            told = " : ".join(f"{share:.3g}" for share in self._shares)
            print(f"mixture: shares of the documents {told}, so that the tokens are as asked")
        return self._shares

    def fingerprint(self) -> dict[str, str]:
        return {
            f"parts[{i}] {name}": digest
            for i, part in enumerate(self.parts)
            for name, digest in part.fingerprint().items()
        }

    def settings(self) -> dict[str, str]:
        own = {name: value for name, value in super().settings().items() if name != "parts"}
        for i, part in enumerate(self.parts):
            own |= {
                f"parts[{i}].{name}": value
                for name, value in part.settings().items()
                if not name.startswith("loading.")
            }
        return own

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
    series: dict[str, Vectors] = {}
    for part in parts:
        for name, codec in part.codecs.series.items():
            if series.setdefault(name, codec) != codec:
                raise ValueError(
                    f"the parts of the mixture disagree on series {name}: {series[name]} and "
                    f"{codec}; give them the same settings"
                )
    return Codecs(**agreed, series=series)


def mean_tokens(documents: Documents, layout: Layout) -> Tensor:
    """(streams,) mean positions of a document by stream, over some of them drawn evenly."""
    drawn = torch.randperm(len(documents), generator=torch.Generator().manual_seed(0))
    rows = [documents.document(0, index) for index in drawn[:MEASURED].tolist()]
    rows = [row for row in rows if not isinstance(row, Skipped)]
    counts = [
        [float((row.modality == spec.modality).sum()) for spec in layout.streams] for row in rows
    ]
    if not counts:
        raise ValueError(f"none of {min(MEASURED, len(documents))} documents of a part can be read")
    return torch.tensor(counts, dtype=torch.float64).mean(0)


def document_shares(
    weights: list[float],
    tokens_PM: Tensor,
    *,
    by_tokens: bool,
    least: list[float],
    names: list[str],
) -> list[float]:
    """Shares of documents such that tokens are shared out as asked.

    A stream that would have less than its least share is helped by the part that is richest in it:
    the smallest addition that reaches the share. Shapes: P parts, M streams.
    """
    shares_P = torch.tensor(weights, dtype=torch.float64)
    if by_tokens:
        shares_P = shares_P / tokens_PM.sum(1)
    shares_P = shares_P / shares_P.sum()
    for _ in range(100):  # what helps one stream takes from the others
        tokens_M = shares_P @ tokens_PM
        lacks = [
            m for m, share in enumerate(least) if tokens_M[m] < (share - 1e-9) * tokens_M.sum()
        ]
        if not lacks:
            return shares_P.tolist()
        m = lacks[0]
        richness_P = tokens_PM[:, m] / tokens_PM.sum(1)
        best = int(richness_P.argmax())
        gain = float(tokens_PM[best, m] - least[m] * tokens_PM[best].sum())
        if gain <= 0:
            break
        lack = float(least[m] * tokens_M.sum() - tokens_M[m])
        shares_P[best] += 1.0001 * lack / gain
        shares_P = shares_P / shares_P.sum()
    raise ValueError(
        f"data.min_share={dict(zip(names, least, strict=True))} cannot be reached: the parts' "
        f"documents have {tokens_PM.round().tolist()} tokens of {names} on average"
    )
