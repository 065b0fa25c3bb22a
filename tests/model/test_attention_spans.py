"""Every way to attend is the dense mask in another form: same values, same gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmpredict.model.attention import Span, attend, attention_mask, attention_spans
from tests.builders import document, generator, packed_rows

EACH_BATCH = pytest.mark.parametrize("batch", [packed_rows(), document()], ids=["packed", "one"])


def inputs(batch, kv_heads: int) -> list[Tensor]:
    g, (B, L) = generator(0), batch.modality.shape
    return [
        torch.randn(B, heads, L, 8, generator=g, requires_grad=True)
        for heads in (4, kv_heads, kv_heads)
    ]


def written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = (q @ k.mT / 8**0.5).masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v


@EACH_BATCH
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("form", ["dense", "spans", "none"])
def test_all_forms_agree_with_the_formula_and_its_gradients(batch, kv_heads: int, form: str):
    q_k_v = inputs(batch, kv_heads)
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool) if form == "none" else attention_mask(batch)
    given = {"dense": mask, "spans": attention_spans(attention_mask(batch)), "none": None}[form]
    here, reference = attend(*q_k_v, given), written_out(*q_k_v, mask)
    torch.testing.assert_close(here, reference, atol=1e-5, rtol=1e-5)
    weights = torch.randn(here.shape, generator=generator(1))
    for a, b in zip(
        torch.autograd.grad((here * weights).sum(), q_k_v),
        torch.autograd.grad((reference * weights).sum(), q_k_v),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@EACH_BATCH
def test_spans_hold_every_query_once_and_every_key_it_sees(batch):
    mask = attention_mask(batch)
    spans: list[Span] = attention_spans(mask)
    assert len(spans) > 1  # the fixture makes the chunks small
    rebuilt = torch.zeros_like(mask)
    covered: list[int] = []
    for span in spans:
        covered += range(span.queries.start, span.queries.stop)
        rebuilt[:, :, span.queries, span.keys] = span.bias == 0
        assert bool(((span.bias == 0) | (span.bias == -torch.inf)).all())
    assert covered == list(range(mask.shape[-1])) and torch.equal(rebuilt, mask)


def test_what_is_hidden_has_no_gradient_at_all():
    batch = packed_rows()
    q, k, v = inputs(batch, 4)
    for mask in (attention_mask(batch), attention_spans(attention_mask(batch))):
        y = attend(q, k, v, mask)
        for i in (0, 9, 30):
            for gradient in torch.autograd.grad(y[0, :, i].sum(), (k, v), retain_graph=True):
                hidden = ~attention_mask(batch)[0, 0, i]
                assert not gradient[0][:, hidden].any() and not gradient[1].any()
