"""The past does not see the future: gradients of what is said of block b are 0 from block b on.

Exactly 0: with respect to the trunk's input at every position, for every block, every kind of
statement (condition, mean, denoised block, logits, next stream), every mix of streams, packed rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mmpredict.model import Predictor
from mmpredict.model.fast_weights import FastWeightsConfig
from mmpredict.model.rotary import RotaryConfig
from mmpredict.schema import Batch, IdsPrediction, Prediction
from tests.builders import (
    AUDIO,
    SUBSET_IDS,
    SUBSETS,
    TEXT,
    VIDEO,
    blocks_of,
    document,
    generator,
    packed_rows,
    predictor,
)
from tests.model.with_series import ACTION, SERIES_MODEL, packed_series, series_document

MODEL = predictor()
VARIANTS = {
    "experts": predictor(experts="ffn"),
    "fast weights": predictor(fast_weights=FastWeightsConfig(every=1, num_heads=2, chunk=4)),
    "far horizons": predictor(horizons=(1, 2, 4)),
    "diagonal positions": predictor(rotary=RotaryConfig(axes="diagonal")),
    "plain text": predictor(norm_text=False),
    "bias, few keys": predictor(qkv_bias=True, num_kv_heads=1, head_dim=24, qk_norm=False),
}
CASES = [(MODEL, document(s, timed="mixed")) for s in SUBSETS]
CASES += [
    (MODEL, packed_rows()),
    (SERIES_MODEL, series_document()),
    (SERIES_MODEL, series_document(subset=(ACTION,))),
    (SERIES_MODEL, packed_series()),
]
CASES += [(model, packed_rows()) for model in VARIANTS.values()]
IDS = [*SUBSET_IDS, "packed", "with series", "action", "packed with series", *VARIANTS]
EACH_CASE = pytest.mark.parametrize(("model", "batch"), CASES, ids=IDS)


def with_inputs(model: Predictor, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The trunk's input as a leaf; from now on `model` reads it instead of the batch."""
    x_BLD = model.embed(batch).detach().requires_grad_()
    monkeypatch.setattr(model.embed, "forward", lambda *_: x_BLD)
    return x_BLD


def prediction(model: Predictor, batch: Batch) -> Prediction:
    """What is said; of further horizons the part of the next block alone (the others stand behind
    it)."""
    said = model(batch, generator(0))
    count = {m: len(blocks_of(batch, m)[0]) for m in said.streams}
    ahead = len(model.config.horizons)
    for modality, stream in said.streams.items():
        if not isinstance(stream, IdsPrediction):
            found = len(stream.targets_MPD)
            assert found == count[modality] if ahead == 1 else found >= count[modality]
    return said


def statements(model: Predictor, batch: Batch) -> Iterator[tuple[str, int, int, Tensor]]:
    """(what, row, first block that it must not see, tensor) for every block of every stream."""
    hidden = model.hidden(batch)
    said = prediction(model, batch)
    for modality, stream in said.streams.items():
        z = model.condition(batch, hidden, modality)
        for i, (row, block) in enumerate(
            zip(*map(Tensor.tolist, blocks_of(batch, modality)), strict=True)
        ):
            name = model.layout[modality].name
            yield f"{name} z", row, block, z[i]
            if isinstance(stream, IdsPrediction):
                yield f"{name} logits", row, block, stream.logits_MV[i]
            else:
                yield f"{name} mean", row, block, stream.mean_MPD[i]
                yield f"{name} denoised", row, block, stream.denoised_RMPD[:, i]
    if said.next_stream is not None:
        same_doc = batch.doc_id[:, 1:] == batch.doc_id[:, :-1]
        new_block = batch.block_id[:, 1:] != batch.block_id[:, :-1]
        rows, before = (same_doc & new_block & (batch.doc_id[:, 1:] > 0)).nonzero(as_tuple=True)
        for i, (row, at) in enumerate(zip(rows.tolist(), before.tolist(), strict=True)):
            yield (
                "next stream",
                row,
                int(batch.block_id[row, at + 1]),
                said.next_stream.logits_MV[i],
            )


def allowed(batch: Batch, row: int, block: int) -> Tensor:
    """(B, L) True at the positions of earlier blocks of the document of `block`."""
    doc = batch.doc_id[row][batch.block_id[row] == block][0]
    mask = torch.zeros_like(batch.loss_mask)
    mask[row] = (batch.doc_id[row] == doc) & (batch.block_id[row] < block)
    return mask


@EACH_CASE
def test_nothing_said_of_a_block_depends_on_it_or_on_what_follows(
    model: Predictor, batch: Batch, monkeypatch: pytest.MonkeyPatch
):
    x_BLD = with_inputs(model, batch, monkeypatch)
    seen = set()
    for what, row, block, tensor in statements(model, batch):
        weights = torch.randn(tensor.shape, generator=generator(block))
        (gradient,) = torch.autograd.grad((tensor * weights).sum(), x_BLD, retain_graph=True)
        past = allowed(batch, row, block)
        assert torch.equal(gradient[~past], torch.zeros_like(gradient[~past])), (what, row, block)
        # Everything that may be seen is seen: all earlier blocks of the document.
        assert bool((gradient[past] != 0).any(-1).all()), (what, row, block)
        seen.add(what)
    said = [2 if model.layout[m].is_discrete else 3 for m in batch.contents]
    assert len(seen) == sum(said) + 1


@EACH_CASE
def test_means_do_not_depend_on_later_values(model: Predictor, batch: Batch):
    """As above, for the contents: the mean starts from the previous block beside the trunk."""
    contents = {
        m: x.float().requires_grad_() if x.ndim == 2 else x for m, x in batch.contents.items()
    }
    leaves = {m: x for m, x in contents.items() if x.ndim == 2}
    values = Batch(**{**vars(batch), "contents": contents})
    for what, row, block, tensor in statements(model, values):
        if not leaves or "denoised" in what:  # the denoiser sees its own noised target, by design
            continue
        gradients = torch.autograd.grad(
            tensor.square().sum(), list(leaves.values()), retain_graph=True, allow_unused=True
        )
        past = allowed(batch, row, block)
        for modality, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                future = gradient[~past[batch.modality == modality]]
                assert torch.equal(future, torch.zeros_like(future)), (what, row, block)


def test_attention_is_full_within_a_block(monkeypatch: pytest.MonkeyPatch):
    batch = document()
    x_BLD = with_inputs(MODEL, batch, monkeypatch)
    hidden = MODEL.hidden(batch)
    for start in (batch.modality[0] == VIDEO).nonzero()[::6, 0].tolist():
        for here in (start, start + 2, start + 5):
            (gradient,) = torch.autograd.grad(hidden[0, here].sum(), x_BLD, retain_graph=True)
            reached = gradient[0].abs().sum(-1) > 0
            assert bool(reached[: start + 6].all()) and not reached[start + 6 :].any()


def test_the_denoiser_keeps_blocks_apart():
    """A noised block is seen by itself alone, in all its positions."""
    batch = document()
    head = MODEL.heads["video"]
    with torch.no_grad():
        z = MODEL.condition(batch, MODEL.hidden(batch), VIDEO)
        outlook = head.outlook(z, torch.randn(3, 6, 4, generator=generator(1)))
    noised = torch.randn(2, 3, 6, 4, generator=generator(2), requires_grad=True)
    level = torch.rand(2, 3, generator=generator(3))
    clean = head.denoise(noised, level, outlook)
    for draw, block in ((0, 0), (1, 2)):
        (gradient,) = torch.autograd.grad(clean[draw, block, 0].sum(), noised, retain_graph=True)
        reached = gradient.abs().sum(-1) > 0
        assert bool(reached[draw, block].all()) and int(reached.sum()) == 6


def test_the_last_thing_of_a_row_changes_nothing_before_it():
    """The same law seen from outside: other last words, same statements, to the last bit."""
    batch = document({AUDIO, TEXT}, timed="none", blocks=(5, 0, 6))
    row, position = 0, batch.modality.shape[1] - 1
    assert int(batch.modality[row, position]) in (AUDIO, TEXT)
    changed = {m: x.clone() for m, x in batch.contents.items()}
    last = int(batch.modality[row, position])
    changed[last][-1] = (changed[last][-1] + 1) % 11
    other = Batch(**{**vars(batch), "contents": changed})
    with torch.no_grad():
        assert torch.equal(MODEL.hidden(batch)[:, :-1], MODEL.hidden(other)[:, :-1])
        for modality in (AUDIO, TEXT):
            z = [MODEL.condition(b, MODEL.hidden(b), modality) for b in (batch, other)]
            assert torch.equal(*z)
