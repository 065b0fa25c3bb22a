"""The trivial forecasts, held against their definitions written out slowly."""

from __future__ import annotations

import io
import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from mmpredict.objectives import NgramCounts, copy_last, ids_and_previous, mean_block
from mmpredict.objectives.baselines import BIGRAM_PRIORS
from mmpredict.sequence import pack, unpack
from tests.builders import TEXT, VIDEO, document, generator

V = 11


def text_of(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random ids, and before each a random id or `V` for "first"."""
    g = generator(seed)
    return torch.randint(V, (count,), generator=g), torch.randint(V + 1, (count,), generator=g)


def slow_nats(training: list[tuple[Tensor, Tensor]], ids: Tensor, previous: Tensor) -> dict:
    single, pairs, before = Counter(), Counter(), Counter()
    for some_ids, some_previous in training:
        for a, b in zip(some_previous.tolist(), some_ids.tolist(), strict=True):
            single[b] += 1
            pairs[a, b] += 1
            before[a] += 1
    total = sum(single.values())

    def chance(b: int) -> float:
        return (single[b] + 1) / (total + V)

    held_out = list(zip(previous.tolist(), ids.tolist(), strict=True))

    def bigram(k: float) -> float:
        logs = [math.log((pairs[a, b] + k * chance(b)) / (before[a] + k)) for a, b in held_out]
        return -sum(logs) / len(logs)

    unigram = -sum(math.log(chance(b)) for _, b in held_out) / len(held_out)
    return {"unigram": unigram, "bigram": min(map(bigram, BIGRAM_PRIORS))}


@pytest.mark.parametrize("parts", [1, 3, 200])
def test_counts_agree_with_a_dictionary(parts: int):
    training = [text_of(7, seed) for seed in range(parts)]
    counts = NgramCounts(V)
    for ids, previous in training:
        counts.add(ids, previous)
    ids, previous = text_of(300, seed=999)  # unseen pairs and first tokens among them
    assert counts.nats(ids, previous) == pytest.approx(slow_nats(training, ids, previous), rel=1e-4)


def test_neither_the_order_nor_a_look_in_between_matters():
    training = [text_of(9, seed) for seed in range(130)]
    forward, backward = NgramCounts(V), NgramCounts(V)
    for i, (ids, previous) in enumerate(training):
        forward.add(ids, previous)
        if i % 10 == 0:
            forward.nats(ids, previous)
    for ids, previous in reversed(training):
        backward.add(ids, previous)
    for name, tensor in forward.state_dict().items():
        assert torch.equal(tensor, backward.state_dict()[name])
    assert int(forward.state_dict()["counts"].sum()) == 130 * 9


def test_state_goes_through_a_checkpoint():
    counts = NgramCounts(V)
    counts.add(*text_of(50, 0))
    file = io.BytesIO()
    torch.save(counts.state_dict(), file)
    file.seek(0)
    again = NgramCounts(V)
    again.add(*text_of(5, 1))  # forgotten when the state comes
    again.load_state_dict(torch.load(file, weights_only=True))
    held_out = text_of(40, 2)
    assert again.nats(*held_out) == counts.nats(*held_out)
    for more in (counts, again):
        more.add(*text_of(20, 3))
    assert again.nats(*held_out) == counts.nats(*held_out)


def test_nothing_counted_nothing_known():
    counts = NgramCounts(V)
    assert all(map(math.isnan, counts.nats(*text_of(5, 0)).values()))
    counts.add(*text_of(0, 0))
    assert all(map(math.isnan, counts.nats(*text_of(5, 0)).values()))
    fresh = NgramCounts(V)
    fresh.load_state_dict(counts.state_dict())
    fresh.add(*text_of(5, 0))
    assert all(value > 0 for value in fresh.nats(*text_of(5, 0)).values())


def test_bigrams_win_where_the_past_matters_and_only_there():
    g = generator(4)
    follows = torch.randperm(V, generator=g)
    chain = [0]
    for _ in range(4000):
        stray = float(torch.rand((), generator=g)) < 0.2
        chain.append(int(torch.randint(V, (), generator=g)) if stray else int(follows[chain[-1]]))
    ids = torch.tensor(chain[1:])
    previous = torch.tensor(chain[:-1])
    counts = NgramCounts(V)
    counts.add(ids[:3000], previous[:3000])
    nats = counts.nats(ids[3000:], previous[3000:])
    of_chain = -(0.8 + 0.2 / V) * math.log(0.8 + 0.2 / V) - 0.2 * (1 - 1 / V) * math.log(0.2 / V)
    assert nats["bigram"] == pytest.approx(of_chain, abs=0.15) and nats["unigram"] > 2
    shuffled = NgramCounts(V)
    mixed = previous[torch.randperm(len(previous), generator=g)]
    shuffled.add(ids[:3000], mixed[:3000])
    nats = shuffled.nats(ids[3000:], mixed[3000:])
    assert nats["bigram"] > nats["unigram"] - 0.02


def test_the_word_before_is_that_of_the_own_document():
    batch = pack(
        [[document(seed=1), document({TEXT}, seed=2)], [document({VIDEO, TEXT}, seed=3)]], 80
    )
    expected: list[int] = []
    for row in unpack(batch):
        for doc in row:
            words = doc.contents[TEXT].tolist()
            expected += [V, *words[:-1]]
    ids, previous = ids_and_previous(batch, TEXT, V)
    assert torch.equal(ids, batch.contents[TEXT]) and previous.tolist() == expected


def test_copy_and_mean_are_what_they_say():
    previous = torch.randn(3, 6, 4, generator=generator(0))
    assert torch.equal(copy_last(previous), previous)
    assert torch.equal(mean_block(previous), torch.zeros(3, 6, 4))
