"""The trivial forecasts that every reported number stands beside.

Continuous streams: copy the last block, or say the mean. Text: unigram and bigram models, counted
on the very tokens that the model was trained on.

Shapes: N tokens, V vocabulary, Q distinct pairs, M blocks, P positions, D values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmpredict.schema import Batch

BIGRAM_PRIORS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


def copy_last(previous_MPD: Tensor) -> Tensor:
    """The forecast that nothing changes."""
    return previous_MPD


def mean_block(previous_MPD: Tensor) -> Tensor:
    """The forecast of the training mean: 0 in standardised units."""
    return torch.zeros_like(previous_MPD)


def ids_and_previous(batch: Batch, modality: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    """(N,) ids of a discrete stream and the id before each in its document; `vocab_size` for
    "first".
    """
    ids = batch.contents[modality]
    first = batch.prev_same[batch.modality == modality] < 0
    return ids, torch.where(first, vocab_size, torch.roll(ids, 1))


class NgramCounts:
    """Unigram and bigram counts of a discrete stream.

    Args:
        vocab_size: V.
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._keys = torch.zeros(0, dtype=torch.int64)  # previous * V + id, sorted
        self._counts = torch.zeros(0, dtype=torch.int64)
        self._waiting: list[Tensor] = []

    def add(self, ids: Tensor, previous: Tensor) -> None:
        """Count tokens (on the host: a device would have to be waited for)."""
        self._waiting.append(previous.cpu() * self.vocab_size + ids.cpu())
        if len(self._waiting) >= 64:
            self._merge()

    def _merge(self) -> None:
        if not self._waiting:
            return
        new_keys, new_counts = torch.cat(self._waiting).unique(return_counts=True)
        keys = torch.cat([self._keys, new_keys])
        counts = torch.cat([self._counts, new_counts])
        self._keys, where = keys.unique(return_inverse=True)
        self._counts = torch.zeros_like(self._keys).index_add_(0, where, counts)
        self._waiting = []

    def state_dict(self) -> dict[str, Tensor]:
        self._merge()
        return {"keys": self._keys, "counts": self._counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._keys, self._counts, self._waiting = state["keys"], state["counts"], []

    def nats(self, ids: Tensor, previous: Tensor) -> dict[str, float]:
        """Nats per token on held-out tokens: {"unigram", "bigram"}; NaN before anything was
        counted.

        p(b | a) = (count(a b) + prior p(b)) / (count(a) + prior), p(b) with one added to every
        count. The prior is chosen on the held-out tokens themselves, in the baseline's favour.
        """
        self._merge()
        if not len(self._keys):
            return {"unigram": float("nan"), "bigram": float("nan")}
        ids, previous, V = ids.cpu(), previous.cpu(), self.vocab_size
        unigram_V = torch.zeros(V).index_add_(0, self._keys % V, self._counts.float())
        before_V = torch.zeros(V + 1).index_add_(0, self._keys // V, self._counts.float())
        chance_N = (unigram_V[ids] + 1) / (unigram_V.sum() + V)
        key = previous * V + ids
        found = torch.searchsorted(self._keys, key).clamp(max=len(self._keys) - 1)
        pair_N = torch.where(self._keys[found] == key, self._counts[found], 0).float()
        bigram = min(
            float(-((pair_N + k * chance_N) / (before_V[previous] + k)).log().mean())
            for k in BIGRAM_PRIORS
        )
        return {"unigram": float(-chance_N.log().mean()), "bigram": bigram}
