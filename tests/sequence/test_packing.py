"""Laws of packing: every document once, in whole, and nothing of it changes on the way."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mmpredict.schema import UserError
from mmpredict.sequence import BestFit, pack, unpack
from tests.builders import SUBSETS, document, packed_rows, same_batch


def random_documents(count: int, seed: int) -> list:
    draw = random.Random(seed)
    return [
        document(
            draw.choice(SUBSETS),
            seed=100 * seed + i,
            blocks=(draw.randint(1, 9), draw.randint(1, 4), draw.randint(1, 9)),
        )
        for i in range(count)
    ]


def lengths_only(lengths: list[int]) -> list[SimpleNamespace]:
    """Stand-ins for documents: packing is decided from lengths alone."""
    return [
        SimpleNamespace(modality=torch.empty(1, n, dtype=torch.int8), name=i)
        for i, n in enumerate(lengths)
    ]


def mixed_load(count: int, seed: int) -> list[int]:
    """Half short texts, a third clips, the rest long recordings, for rows of 1024."""
    draw = random.Random(seed)
    kinds = [(8, 160)] * 3 + [(150, 450)] * 2 + [(500, 1000)]
    return [draw.randint(*draw.choice(kinds)) for _ in range(count)]


def put(packer: BestFit, document) -> list[list]:
    return packer.add(document, document.modality.shape[1])


def best_fit(documents: list, context_length: int, open_rows: int = 16) -> list[list]:
    packer = BestFit(context_length, open_rows)
    rows = [row for document in documents for row in put(packer, document)]
    return rows + packer.flush()


@pytest.mark.parametrize("seed", range(4))
def test_unpack_undoes_pack(seed: int):
    rows = best_fit(random_documents(12, seed), context_length=60, open_rows=3)
    again = unpack(pack(rows, context_length=60))
    assert [len(row) for row in again] == [len(row) for row in rows]
    for row, other in zip(rows, again, strict=True):
        for a, b in zip(row, other, strict=True):
            assert same_batch(a, b)


def test_unpack_keeps_what_does_not_count():
    doc = document()
    muted = replace(doc, loss_mask=doc.block_id > 2)
    assert same_batch(unpack(pack([[doc, muted]], 80))[0][1], muted)


def test_a_packed_row_is_numbered_and_padded():
    batch = packed_rows()
    padding = batch.doc_id == 0
    assert padding.any() and bool((batch.modality[padding] == -1).all())
    assert not batch.loss_mask[padding].any() and bool((batch.prev_any[padding] == -1).all())
    for b in range(batch.num_rows):
        real = batch.doc_id[b] > 0
        assert bool((batch.block_id[b][real].diff() >= 0).all())
        assert batch.block_id[b][real].unique().tolist() == list(
            range(int(batch.block_id[b].max()) + 1)
        )
        assert batch.doc_id[b][real].unique().tolist() == list(
            range(1, int(batch.doc_id[b].max()) + 1)
        )
    for modality, contents in batch.contents.items():
        assert len(contents) == int((batch.modality == modality).sum())


def test_indices_never_leave_their_document():
    batch = packed_rows()
    for index in (batch.prev_same, batch.prev_any):
        row, column = (index >= 0).nonzero(as_tuple=True)
        target = index[row, column]
        assert torch.equal(batch.doc_id[row, column], batch.doc_id[row, target])
        assert bool((batch.block_id[row, target] < batch.block_id[row, column]).all())
    slots = (batch.prev_same >= 0).nonzero(as_tuple=True)
    same = batch.prev_same[slots]
    assert torch.equal(batch.modality[slots], batch.modality[slots[0], same])
    assert torch.equal(batch.positions[slots][:, 1:], batch.positions[slots[0], same][:, 1:])


def test_a_block_id_is_never_shared_by_two_documents():
    batch = packed_rows()
    for b in range(batch.num_rows):
        pairs = torch.stack([batch.doc_id[b], batch.block_id[b]]).unique(dim=1)
        assert len(pairs[1].unique()) == pairs.shape[1]


@pytest.mark.parametrize("seed", range(3))
def test_best_fit_places_every_document_once_and_overfills_no_row(seed: int):
    documents = lengths_only(mixed_load(400, seed))
    rows = best_fit(documents, 1024)
    assert sorted(doc.name for row in rows for doc in row) == list(range(400))
    assert all(row and sum(doc.modality.shape[1] for doc in row) <= 1024 for row in rows)


def test_best_fit_is_decided_by_lengths_alone():
    lengths = mixed_load(300, seed=5)
    names = [
        [[doc.name for doc in row] for row in best_fit(lengths_only(lengths), 1024)]
        for _ in range(2)
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize("open_rows", [1, 4])
def test_no_more_rows_wait_than_allowed(open_rows: int):
    packer = BestFit(1024, open_rows)
    placed = ready = 0
    for doc in lengths_only([700] * 7 + mixed_load(60, seed=2)):
        placed += 1
        ready += sum(len(row) for row in put(packer, doc))
        rows = copy.deepcopy(packer).flush()
        assert len(rows) <= open_rows and ready + sum(map(len, rows)) == placed


def test_no_row_waits_for_ever():
    """Documents that fill nothing up must not leave an old row behind until the epoch ends."""
    packer = BestFit(1024, open_rows=2)
    (first,) = lengths_only([900])
    assert put(packer, first) == []
    rows = [row for doc in lengths_only([1010] * 200) for row in put(packer, doc)]
    assert any(row[0] is first for row in rows)


@pytest.mark.parametrize("seed", range(3))
def test_a_mixed_load_fills_97_percent(seed: int):
    lengths = mixed_load(3000, seed)
    rows = best_fit(lengths_only(lengths), 1024)
    assert sum(lengths) / (1024 * len(rows)) >= 0.97


def test_the_best_row_is_taken_and_a_full_one_leaves_at_once():
    packer = BestFit(100, open_rows=4)
    a, b, c, d, e = lengths_only([60, 70, 30, 25, 14])
    assert put(packer, a) == [] and put(packer, b) == []
    assert put(packer, c) == [[b, c]]  # 70 + 30 is full
    assert put(packer, d) == []
    assert put(packer, e) == [[a, d, e]]  # 99: nothing is worth waiting for
    assert packer.flush() == []


def test_too_long_is_refused_with_both_numbers():
    length = document().modality.shape[1]
    with pytest.raises(ValueError, match=f"has {length} positions, data.context_length is 20"):
        put(BestFit(20), document())
    with pytest.raises(
        ValueError, match=f"row 0 needs {2 * length} positions, it has {length + 3}"
    ):
        pack([[document(), document()]], length + 3)


def test_a_packer_goes_on_from_its_state():
    lengths = mixed_load(120, seed=3)
    straight, first, second = (BestFit(1024, 5) for _ in range(3))
    expected = [row for n, length in enumerate(lengths) for row in straight.add(n, length)]
    found = [row for n, length in enumerate(lengths[:70]) for row in first.add(n, length)]
    second.restore(first.state(), {n: (length, {}) for n, length in enumerate(lengths)})
    found += [row for n in range(70, 120) for row in second.add(n, lengths[n])]
    assert found == expected and second.flush() == straight.flush()


def test_a_budget_keeps_a_stream_from_filling_a_row():
    packer: BestFit[int] = BestFit(100, 4, budget={1: 50})
    rows = [row for n in range(40) for row in packer.add(n, 25, {1: 25 * (n % 2)})]
    rows += packer.flush()
    assert sorted(n for row in rows for n in row) == list(range(40))
    assert all(sum(n % 2 for n in row) <= 2 and len(row) <= 4 for row in rows)
    with pytest.raises(UserError, match="60 positions of stream 1, the budget of a row is 50"):
        packer.add(40, 70, {1: 60})
