"""A document says the same alone, packed, batched and padded; and only what counts, counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmpredict.model import HeadConfig, Predictor
from mmpredict.objectives import LossWeights, next_loss
from mmpredict.schema import Batch, IdsPrediction, Layout, Prediction
from mmpredict.sequence import pack, unpack
from tests.builders import (
    AUDIO,
    LAYOUT,
    SUBSET_IDS,
    SUBSETS,
    TEXT,
    VIDEO,
    document,
    generator,
    packed_rows,
    predictor,
)
from tests.model.with_series import SERIES_LAYOUT, SERIES_MODEL, packed_series, series_document

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def without_noise(said: Prediction) -> dict[str, Tensor]:
    """What is said, but for the flow heads' random draws."""
    tensors = {}
    for modality, stream in said.streams.items():
        named = (
            "logits_MV targets_M" if isinstance(stream, IdsPrediction) else "mean_MPD targets_MPD"
        )
        for name in named.split():
            tensors[f"{modality} {name}"] = getattr(stream, name)
    if said.next_stream is not None:
        tensors["next stream"] = said.next_stream.logits_MV
        tensors["next stream targets"] = said.next_stream.targets_M
    return tensors


def joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    names = sorted({name for part in parts for name in part})
    return {name: torch.cat([part[name] for part in parts if name in part]) for name in names}


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], **CLOSE, msg=lambda m, name=name: f"{name}: {m}"
        )


def summed_loss(said: Prediction) -> Tensor:
    """The loss without its means, so that it adds up over documents."""
    total = torch.zeros(())
    for stream in [*said.streams.values(), said.next_stream]:
        if isinstance(stream, IdsPrediction):
            total = total + torch.nn.functional.cross_entropy(
                stream.logits_MV, stream.targets_M, reduction="sum"
            )
        elif stream is not None:
            total = total + (stream.mean_MPD - stream.targets_MPD).square().sum()
    return total


def gradients(model: Predictor, loss: Tensor) -> list[Tensor]:
    parameters = list(model.parameters())
    return torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize(
    ("layout", "batch"),
    [(LAYOUT, packed_rows()), (SERIES_LAYOUT, packed_series())],
    ids=["three streams", "with series"],
)
def test_a_packed_row_is_its_documents_alone_losses_and_gradients_too(layout: Layout, batch: Batch):
    model = predictor(layout, kind="regression")
    documents = [doc for row in unpack(batch) for doc in row]
    together, alone = model(batch), [model(doc) for doc in documents]
    assert_close(without_noise(together), joined([without_noise(said) for said in alone]))
    loss, sum_of_losses = summed_loss(together), sum(summed_loss(said) for said in alone)
    torch.testing.assert_close(loss, sum_of_losses, **CLOSE)
    both = zip(gradients(model, loss), gradients(model, sum_of_losses), strict=True)
    for (name, _), (packed, single) in zip(model.named_parameters(), both, strict=True):
        scale = float(single.abs().max()) + 1e-6
        torch.testing.assert_close(packed / scale, single / scale, **CLOSE, msg=name)


def test_a_row_says_the_same_alone_and_in_a_batch():
    model = predictor()
    rows = unpack(packed_rows())
    with torch.no_grad():
        together = without_noise(model(pack(rows, 40)))
        alone = joined([without_noise(model(pack([row], 40))) for row in rows])
        swapped = joined([without_noise(model(pack(rows[::-1], 40)))])
    assert_close(together, alone)
    for name in together:  # the same rows in another order
        torch.testing.assert_close(together[name].sum(), swapped[name].sum(), atol=1e-3, rtol=1e-4)


def test_padding_has_no_influence():
    model = predictor()
    rows = unpack(packed_rows())
    short, long = pack(rows, 40), pack(rows, 64)
    padding = long.doc_id == 0
    positions = torch.where(padding[..., None], 50 * torch.rand(*padding.shape, 3), long.positions)
    rubbish = replace(long, positions=positions)
    with torch.no_grad():
        assert_close(without_noise(model(short)), without_noise(model(long)))
        assert_close(without_noise(model(short)), without_noise(model(rubbish)))
        assert model.hidden(rubbish).isfinite().all()


def test_a_row_of_padding_alone_is_harmless():
    model = predictor()
    doc = document()
    with torch.no_grad():
        said = model(pack([[doc], []], 40), generator(0))
    assert_close(without_noise(said), without_noise(model(doc)))
    assert all(
        p.isfinite().all()
        for p in gradients(model, next_loss(model(doc), LAYOUT, LossWeights()).total)
    )


def test_same_seed_same_prediction():
    batch = packed_rows()
    said = [predictor()(batch, generator(seed)) for seed in (3, 3, 4)]
    for modality in (AUDIO, VIDEO):
        first, again, other = (s.streams[modality] for s in said)
        assert torch.equal(first.denoised_RMPD, again.denoised_RMPD)
        assert torch.equal(first.level_RM, again.level_RM)
        assert not torch.equal(first.level_RM, other.level_RM)
    losses = [next_loss(s, LAYOUT, LossWeights()) for s in said]
    assert torch.equal(losses[0].total, losses[1].total) and losses[0].total != losses[2].total


@pytest.mark.parametrize("modality", [AUDIO, VIDEO, TEXT])
def test_what_does_not_count_is_not_scored(modality: int):
    model = predictor(kind="regression")
    batch = document()
    half = replace(batch, loss_mask=(batch.modality != modality) | (batch.block_id > 6))
    all_said, half_said = model(batch), model(half)
    counted = model.counted(half, modality)
    assert 0 < int(counted.sum()) < len(counted)
    for name, tensor in without_noise(half_said).items():
        if name.startswith(f"{modality} "):
            torch.testing.assert_close(tensor, without_noise(all_said)[name][counted], **CLOSE)
    none_said = model(replace(batch, loss_mask=batch.modality != modality))
    assert modality not in none_said.streams


@pytest.mark.parametrize("modality", [AUDIO, VIDEO, TEXT])
def test_the_last_block_has_no_influence_when_it_does_not_count(modality: int):
    """No loss is left that it could be a target of, and nothing comes after it."""
    model = predictor()
    streams = {modality, AUDIO if modality == TEXT else TEXT}
    batch = document(streams, timed="none", blocks=(4, 3, 4))
    last = batch.block_id == batch.block_id.max()
    other_modality = int(batch.modality[last][0])
    batch = replace(batch, loss_mask=~last)
    per_block = LAYOUT[other_modality].positions_per_block
    changed = {m: x.clone() for m, x in batch.contents.items()}
    changed[other_modality][-per_block:] = (changed[other_modality][-per_block:] + 1) % 11
    without = replace(batch, contents=changed)
    a, b = (next_loss(model(x, generator(0)), LAYOUT, LossWeights()) for x in (batch, without))
    assert torch.equal(a.total, b.total)
    count = sum(len(getattr(s, "targets_M", ())) for s in [model(batch).next_stream])
    assert count == int(batch.block_id.max()) - 1  # whose turn it is, is not asked of it either


@pytest.mark.parametrize("subset", SUBSETS, ids=SUBSET_IDS)
@pytest.mark.parametrize("kind", ["flow", "regression"])
def test_any_streams_may_be_missing_and_every_parameter_of_the_others_learns(
    subset: set[int], kind: str
):
    model = predictor(kind=kind)
    batch = pack([[document(subset, seed=1), document(subset, seed=2)]], 90)
    losses = next_loss(model(batch, generator(0)), LAYOUT, LossWeights())
    assert losses.total.isfinite()
    losses.total.backward()
    absent = [s.name for s in LAYOUT.streams if s.modality not in subset]
    for name, parameter in model.named_parameters():
        of_absent = any(part in absent for part in name.split("."))
        learns = parameter.grad is not None and bool((parameter.grad != 0).any())
        assert learns == (not of_absent and not unused(name, subset)), name


def test_series_learn_as_the_other_streams_do():
    model = predictor(SERIES_LAYOUT)
    losses = next_loss(
        model(packed_series(), generator(0)), SERIES_LAYOUT, LossWeights(streams={"action": 2.0})
    )
    assert {"state", "state_flow", "state_mean", "action"} <= losses.parts.keys()
    once = next_loss(model(packed_series(), generator(0)), SERIES_LAYOUT, LossWeights())
    torch.testing.assert_close(losses.total, once.total + losses.parts["action"])
    losses.total.backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert idle == []


def test_a_document_with_series_says_the_same_in_any_row():
    alone = without_noise(SERIES_MODEL(series_document(1)))
    beside = pack([[series_document(9, (4,)), series_document(1)], [series_document(7)]], 120)
    first = pack([[series_document(1)], [series_document(9)]], 64)
    with torch.no_grad():
        last, begin = SERIES_MODEL(beside), SERIES_MODEL(first)
    before = len(series_document(9, (4,)).contents[4])
    for name, tensor in alone.items():
        if name.startswith("4 "):
            here = slice(before, before + len(tensor))
            torch.testing.assert_close(without_noise(last)[name][here], tensor, **CLOSE)
            torch.testing.assert_close(without_noise(begin)[name][: len(tensor)], tensor, **CLOSE)


def unused(name: str, subset: set[int]) -> bool:
    """What words do not use: text is read from `prev_any` alone."""
    return subset == {TEXT} and name.startswith("from_any")


def test_statements_have_the_shapes_of_the_contract():
    batch: Batch = packed_rows()
    said = predictor()(batch, generator(0))
    M = {m: len(x) // LAYOUT[m].positions_per_block for m, x in batch.contents.items()}
    assert said.streams[TEXT].logits_MV.shape == (M[TEXT], 11)
    for modality in (AUDIO, VIDEO):
        stream, spec = said.streams[modality], LAYOUT[modality]
        shape = (M[modality], spec.positions_per_block, spec.width)
        assert stream.mean_MPD.shape == stream.targets_MPD.shape == shape
        R = HeadConfig().draws
        assert stream.denoised_RMPD.shape == (R, *shape)
        assert stream.level_RM.shape == (R, M[modality])
        assert bool(((stream.level_RM > 0) & (stream.level_RM < 1)).all())
    documents = sum(int(doc.max()) for doc in batch.doc_id)
    assert said.next_stream.logits_MV.shape == (sum(M.values()) - documents, 3)
