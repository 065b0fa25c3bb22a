"""Readers of the words alone: what can be had from question and choices without any evidence.

In: items. Out: their scores, each by a reader that never saw the item's scene (k folds of scenes).
Two readers, as in "test-set stress-test" (TsT, arXiv 2511.04655): a logistic one on words and pairs
of words, and a small network on embedded words and pairs of neighbours. If one of them is above
chance, the wording gives answers away.

Shapes: N rows (one per item and choice), F features of a row, I items.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .grading import grade
from .items import Item

_BUCKETS = 1 << 14
READERS = ("words", "network")


@dataclass(frozen=True)
class _Rows:
    """All choices of all items, one row each.

    Args:
        words, bounds: hashed features, row after row, and where each row starts.
        item_N: whose choice a row is.
        right_N: whether it is the right one.
    """

    words: list[Tensor]
    item_N: Tensor
    right_N: Tensor

    @property
    def num_features(self) -> int:
        return int(torch.cat(self.words).max()) + 1

    def of(self, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features, their starts, items and right ones of some items."""
        rows = torch.isin(self.item_N, chosen).nonzero()[:, 0].tolist()
        parts = [self.words[k] for k in rows]
        starts = torch.tensor([0] + [len(p) for p in parts[:-1]]).cumsum(0)
        return torch.cat(parts), starts, self.item_N[rows], self.right_N[rows]


def _bucket(feature: str) -> int:
    return int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=4).digest()) % _BUCKETS


def _features(question: str, choice: str, reader: str) -> Tensor:
    asked, said = question.replace("?", "").split(), choice.split()
    found = [f"c {w}" for w in said] + [f"c {choice}", f"q {question} c {choice}"]
    if reader == "words":
        found += [f"q {q} c {c}" for q in set(asked) for c in said]
    else:
        found += [f"q {q}" for q in asked]
    pairs = list(zip(asked, asked[1:], strict=False))
    found += [f"q {a} {b} c {choice}" for a, b in pairs]
    found += [f"at {k} {choice in ' '.join(asked[k:])}" for k in range(0, len(asked), 3)]
    return torch.tensor([_bucket(f) for f in found])


class _Words(nn.Module):
    """One weight per feature."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(num_features, 1, mode="sum")
        nn.init.zeros_(self.table.weight)

    def forward(self, features: Tensor, starts: Tensor) -> Tensor:
        return self.table(features, starts)[:, 0]


class _Network(nn.Module):
    """The mean of embedded features through one hidden layer."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(num_features, 32, mode="mean")
        self.head = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 1))

    def forward(self, features: Tensor, starts: Tensor) -> Tensor:
        return self.head(self.table(features, starts))[:, 0]


def blind_scores(
    items: Sequence[Item], reader: str, *, folds: int = 5, steps: int = 60, seed: int = 0
) -> list[float]:
    """What a reader of question and choices alone gets of each item of one family.

    Args:
        items: with choices to choose from.
        reader: "words" or "network".
        folds: parts of the scenes; each is judged by what was learnt on the others.
        steps: of the optimiser, on all rows at once.
        seed: of the weights and the folds.
    """
    if reader not in READERS:
        raise ValueError(f"reader={reader!r} is not one of {', '.join(READERS)}")
    rows = _rows(items, reader)
    clusters = sorted({item.cluster for item in items})
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(clusters), generator=generator).tolist()
    fold_of = {clusters[k]: place % folds for place, k in enumerate(order)}
    fold_I = torch.tensor([fold_of[item.cluster] for item in items])
    scores = [item.chance for item in items]
    for fold in range(folds):
        learn, judge = (fold_I != fold).nonzero()[:, 0], (fold_I == fold).nonzero()[:, 0]
        if not len(learn) or not len(judge):
            continue
        model = _fitted(rows.of(learn), rows.num_features, reader, steps=steps, seed=seed)
        features, starts, item_N, _ = rows.of(judge)
        with torch.no_grad():
            numbers_N = model(features, starts)
        for k in judge.tolist():
            scores[k] = grade(items[k], numbers_N[item_N == k].tolist()).score
    return scores


def _rows(items: Sequence[Item], reader: str) -> _Rows:
    words, owners, right = [], [], []
    for k, item in enumerate(items):
        for number, choice in enumerate(item.choices):
            words.append(_features(item.question, choice, reader))
            owners.append(k)
            right.append(number == item.answer)
    _, compact = torch.cat(words).unique(return_inverse=True)  # a small table learns faster
    words = list(compact.split([len(w) for w in words]))
    return _Rows(words, torch.tensor(owners), torch.tensor(right))


def _fitted(
    rows: tuple[Tensor, Tensor, Tensor, Tensor],
    num_features: int,
    reader: str,
    *,
    steps: int,
    seed: int,
) -> nn.Module:
    features, starts, item_N, right_N = rows
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = (_Words if reader == "words" else _Network)(num_features)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05 if reader == "words" else 0.01)
    _, place_N = item_N.unique(return_inverse=True)
    for _ in range(steps):
        numbers_N = model(features, starts)
        top = torch.zeros(int(place_N.max()) + 1).scatter_reduce(
            0, place_N, numbers_N.detach(), "amax", include_self=False
        )
        total = torch.zeros(len(top)).index_add(0, place_N, (numbers_N - top[place_N]).exp())
        loss = -(numbers_N - top[place_N] - total.log()[place_N])[right_N].mean()
        if reader == "words":
            loss = loss + 1e-3 * functional.mse_loss(
                model.table.weight, torch.zeros_like(model.table.weight), reduction="sum"
            )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()
