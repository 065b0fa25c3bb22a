"""Every backend is the law written out in another form: same values, same gradients."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from mmpredict.model import sight as sight_module
from mmpredict.model.pieces import in_line
from mmpredict.model.sight import Sight, attend, cached_mask, dense_mask, look
from mmpredict.schema import Batch
from mmpredict.sequence import pack
from tests.builders import TEXT, document, generator, packed_rows

LONGEST = 6  # positions of a frame in the builders' layout
Ids = tuple[Tensor, Tensor]


def ids(batch: Batch) -> Ids:
    return batch.doc_id, batch.block_id


def of_text(length: int) -> Ids:
    return ids(document({TEXT}, blocks=(0, 0, length)))


# packed_rows: 40 positions, not a multiple of the 16 of a chunk (see conftest)
ROWS: dict[str, Ids] = {
    "packed": ids(packed_rows()),
    "one document": ids(document()),
    "text": of_text(37),
    "one position": of_text(1),
    "padding": (torch.zeros(2, 20).long(), torch.full((2, 20), -1)),
    "a row of padding": ids(pack([[document(seed=1)], []], 40)),
}
EACH_ROWS = pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
EACH_WINDOW = pytest.mark.parametrize("window", [0, 1, 7])
FORMS = ["auto", "chunked", "documents", "static", "static auto", "masked"]
EACH_FORM = pytest.mark.parametrize("form", FORMS)


def sights(rows: Ids, window: int, form: str) -> Sight:
    if form == "masked":
        return Sight.of(dense_mask(*rows, window))
    if form.startswith("static"):
        backend = "auto" if form.endswith("auto") else "chunked"
        return look(*rows, window=window, backend=backend, static=True, longest_block=LONGEST)
    return look(*rows, window=window, backend=form)


def inputs(rows: Ids, kv_heads: int = 4, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    g, (B, L) = generator(0), rows[0].shape
    return [
        torch.randn(B, heads, L, 16, generator=g).to(dtype).requires_grad_()
        for heads in (4, kv_heads, kv_heads)
    ]


def outcome(q_k_v: list[Tensor], sight: Sight | None) -> list[Tensor]:
    """The values and the gradients of q, k, v."""
    y = attend(*q_k_v, sight)
    weights = torch.randn(y.shape, generator=generator(1))
    return [y, *torch.autograd.grad((y.float() * weights).sum(), q_k_v)]


def assert_close(here: list[Tensor], there: list[Tensor], limit: float) -> None:
    for name, a, b in zip("yqkv", here, there, strict=True):
        torch.testing.assert_close(
            a.float(), b.float(), atol=limit, rtol=limit, msg=lambda m, n=name: f"{n}: {m}"
        )


def law(rows: Ids, window: int, row: int, i: int, j: int) -> bool:
    """Position by position, as the head of sight.py has it."""
    doc, block = rows[0][row].tolist(), rows[1][row].tolist()
    if doc[i] == 0:
        return i == j
    own = doc[i] == doc[j] and block[j] <= block[i]
    return own and (window == 0 or block[i] == block[j] or i - j < window)


@EACH_ROWS
@EACH_WINDOW
def test_the_dense_mask_is_the_law(rows: Ids, window: int):
    mask = dense_mask(*rows, window)[:, 0]
    B, L, _ = mask.shape
    expected = [
        [[law(rows, window, row, i, j) for j in range(L)] for i in range(L)] for row in range(B)
    ]
    assert mask.tolist() == expected and bool(mask.any(-1).all())  # no softmax is empty


@EACH_ROWS
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_the_reference_is_the_formula(rows: Ids, kv_heads: int):
    q, k, v = inputs(rows, kv_heads)
    mask = dense_mask(*rows)
    k_all, v_all = (x.expand(-1, 4, -1, -1) if kv_heads == 1 else x for x in (k, v))
    scores = torch.einsum("bhie,bhje->bhij", q, k_all) / 16**0.5
    weights = scores.exp() * mask
    expected = torch.einsum("bhij,bhje->bhie", weights / weights.sum(-1, keepdim=True), v_all)
    here = attend(q, k, v, look(*rows, backend="reference"))
    torch.testing.assert_close(here, expected, atol=1e-5, rtol=1e-5)


@EACH_ROWS
@EACH_WINDOW
@EACH_FORM
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_all_forms_equal_the_reference_gradients_too(
    rows: Ids, window: int, form: str, kv_heads: int
):
    q_k_v = inputs(rows, kv_heads)
    reference = outcome(q_k_v, look(*rows, window=window, backend="reference"))
    assert_close(outcome(q_k_v, sights(rows, window, form)), reference, 1e-5)


@EACH_FORM
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("window", [0, 7])
def test_all_forms_equal_the_reference_in_bfloat16(form: str, autocast: bool, window: int):
    rows = ROWS["packed"]
    wide = [x.detach().bfloat16().float().requires_grad_() for x in inputs(rows, 2)]
    reference = outcome(wide, look(*rows, window=window, backend="reference"))
    given = wide if autocast else inputs(rows, 2, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        here = outcome(given, sights(rows, window, form))
    assert here[0].dtype == torch.bfloat16
    for a, b in zip(here, reference, strict=True):
        assert farthest(a, b) < 1e-2


def farthest(a: Tensor, b: Tensor) -> float:
    """Greatest difference, as a share of the greatest value where that is more than 1."""
    a, b = a.detach().float(), b.detach().float()
    return float((a - b).abs().max()) / max(1.0, float(b.abs().max()))


def test_the_reference_is_in_float32_under_autocast():
    rows = ROWS["packed"]
    q_k_v, sight = inputs(rows), look(*ROWS["packed"], backend="reference")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attend(*q_k_v, sight), attend(*q_k_v, sight).float())
        inside = attend(*q_k_v, sight)
    assert torch.equal(inside, attend(*q_k_v, sight))


@pytest.mark.parametrize("form", [*FORMS, "reference"])
def test_what_is_hidden_has_no_gradient_at_all(form: str):
    rows = ROWS["packed"]
    q, k, v = inputs(rows)
    y = attend(q, k, v, sights(rows, 7, form))
    for i in (0, 9, 30):
        for gradient in torch.autograd.grad(y[0, :, i].sum(), (k, v), retain_graph=True):
            hidden = ~dense_mask(*rows, 7)[0, 0, i]
            assert not gradient[0][:, hidden].any() and not gradient[1].any()


def test_all_see_all_without_a_sight():
    for length in (5, 200):  # below and above what plain products are taken for
        rows = of_text(length)
        everything = Sight("reference", torch.ones(1, 1, 1, 1, dtype=torch.bool))
        q_k_v = inputs(rows, 2)
        assert_close(outcome(q_k_v, None), outcome(q_k_v, everything), 1e-5)


@EACH_WINDOW
def test_steps_of_a_rollout_see_what_the_whole_row_sees(window: int):
    doc, block = ROWS["one document"]
    index = torch.arange(doc.shape[1])[None]
    whole = dense_mask(doc, block, window)
    for start, stop in ((0, 5), (11, 17), (17, 18)):
        new = slice(start, stop)
        keys = torch.where(index < stop, block, 1 << 40)  # slots that are not in use
        step = cached_mask(block[:, new], index[:, new], keys, index, window=window)
        seen_later = whole[:, :, new].clone()
        seen_later[..., stop:] = False
        assert torch.equal(step, seen_later)


@EACH_ROWS
@EACH_WINDOW
@pytest.mark.parametrize("form", ["chunked", "documents", "static"])
def test_pieces_hold_every_query_once_and_all_keys_it_sees(rows: Ids, window: int, form: str):
    mask = dense_mask(*rows, window)
    rebuilt, times = torch.zeros_like(mask), torch.zeros_like(rows[0])
    for strip in sights(rows, window, form).strips:
        here = slice(strip.top, strip.bottom)
        for piece in strip.pieces:
            queries, keys = slice(piece.start, piece.stop), slice(piece.first, piece.last)
            times[here, queries] += 1
            bias = piece.bias_R1NK
            rebuilt[here, :, queries, keys] = True if bias is None else bias == 0
    assert torch.equal(rebuilt, mask) and bool((times == 1).all())


def test_documents_are_not_compared_with_each_other():
    """Chunks of one document's queries do not compute scores of another's keys."""
    doc = torch.arange(4).repeat_interleave(64)[None] + 1
    block = torch.arange(256)[None]
    pieces = look(doc, block, backend="documents").strips[0].pieces
    assert [(p.first, p.last) for p in pieces[3::4]] == [(0, 64), (64, 128), (128, 192), (192, 256)]
    near = look(torch.ones_like(doc), block, backend="documents", window=9).strips[0].pieces
    assert all(p.last - p.first <= 128 for p in near)


@dataclass(frozen=True)
class Told:
    """As the layers are told of a sight: inside another object."""

    sight: Sight


def borders(sight: Sight) -> list[tuple[int, ...]]:
    return [(s.top, p.start, p.first, p.last) for s in sight.strips for p in s.pieces]


@pytest.mark.parametrize("backend", ["chunked", "documents"])
def test_a_compiled_layer_serves_every_batch_with_the_same_graphs(backend: str):
    """The pieces that fit the documents stay outside, those of `static` are the same for all."""
    L = 80
    doc = torch.arange(L) // torch.tensor([10, 20, 33, 45, 60, 80])[:, None] + 1
    sights = [
        look(d.expand(2, -1), torch.arange(L).expand(2, -1), backend=backend, static=True)
        for d in doc
    ]
    plans = {str(borders(sight)) for sight in sights}
    assert len(plans) == (1 if backend == "chunked" else len(sights))
    torch._dynamo.reset()
    counter = CompileCounter()

    def layer(q: Tensor, k: Tensor, v: Tensor, told: Told) -> Tensor:
        return attend(q.sin(), k, v, told.sight).cos()

    compiled = torch.compile(layer, backend=counter, dynamic=False)
    q_k_v = inputs((doc[:2], doc[:2]))
    counts = []
    for sight in sights:
        here, plain = compiled(*q_k_v, Told(sight)), layer(*q_k_v, Told(sight))
        torch.testing.assert_close(here, plain, atol=1e-5, rtol=1e-5)
        counts.append(counter.frame_count)
    assert len(set(counts)) == 1 and (counts[0] == 1) == (backend == "chunked")
    torch._dynamo.reset()


def test_auto_takes_one_strip_for_short_rows_and_several_for_many_documents():
    short = torch.ones(4, 16).long()
    assert len(look(short, torch.arange(16).expand(4, -1)).strips) == 1
    doc = torch.stack([torch.arange(512) // 16, torch.arange(512) // 500]) + 1
    assert len(look(doc, torch.arange(512).expand(2, -1)).strips) >= 1
    # Rows whose documents lie elsewhere: in one strip each would pay for the other's keys.
    far = torch.ones(2, 4096).long()
    far[0] = torch.arange(4096) // 64 + 1
    assert len(look(far, torch.arange(4096).expand(2, -1)).strips) == 2


@pytest.mark.parametrize("rows", [ROWS["packed"], of_text(1)], ids=["packed", "one position"])
@pytest.mark.parametrize("window", [0, 7])
def test_flex_sees_the_same(rows: Ids, window: int):
    """Forward only: it has no gradients on a CPU."""
    q_k_v = [x.detach() for x in inputs(rows, 2)]
    expected = attend(*q_k_v, look(*rows, window=window, backend="reference"))
    here = attend(*q_k_v, look(*rows, window=window, backend="flex"))
    torch.testing.assert_close(here, expected, atol=1e-5, rtol=1e-5)


@EACH_ROWS
@EACH_WINDOW
def test_tiles_of_flex_hold_the_law(rows: Ids, window: int, monkeypatch: pytest.MonkeyPatch):
    """No tile is left out that a query looks into; what is called whole is whole."""
    monkeypatch.setattr(sight_module, "TILE", 8)
    tiles = look(*rows, window=window, backend="flex").tiles
    mask = dense_mask(*rows, window)
    some, whole = torch.zeros_like(mask), torch.zeros_like(mask)
    for counts, order, seen in (
        (tiles.kv_num_blocks, tiles.kv_indices, some),
        (tiles.full_kv_num_blocks, tiles.full_kv_indices, whole),
    ):
        B, _, T = counts.shape
        for b in range(B):
            for t in range(T):
                for key in order[b, 0, t, : counts[b, 0, t]].tolist():
                    seen[b, 0, 8 * t : 8 * t + 8, 8 * key : 8 * key + 8] = True
    assert not (some & whole).any()
    assert not (mask & ~(some | whole)).any() and not (whole & ~mask).any()


def test_long_text_has_whole_tiles():
    tiles = look(*of_text(512), backend="flex").tiles
    assert tiles.full_kv_num_blocks[0, 0].tolist() == [0, 1, 2, 3]
    assert tiles.kv_num_blocks[0, 0].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ([(1, 6, 4, 8), (1, 4, 4, 8), (1, 4, 4, 8)], "6 query heads .* 4 key/value heads"),
        ([(1, 4, 4, 8), (1, 4, 4, 8), (1, 2, 4, 8)], "do not fit"),
        ([(1, 4, 4, 8), (1, 4, 4, 16), (1, 4, 4, 16)], "do not fit"),
        ([(2, 4, 4, 8), (1, 4, 4, 8), (1, 4, 4, 8)], "do not fit"),
    ],
)
def test_shapes_that_do_not_fit_are_named(shapes: list[tuple[int, ...]], says: str):
    with pytest.raises(ValueError, match=says):
        attend(*map(torch.zeros, shapes), None)


def test_rows_that_pieces_cannot_take_are_named():
    doc, block = of_text(6)
    with pytest.raises(ValueError, match="window=-1"):
        look(doc, block, window=-1)
    with pytest.raises(ValueError, match="row 0: .* fall after position 4"):
        look(doc, torch.tensor([[0, 1, 2, 3, 4, 1]]))
    with pytest.raises(ValueError, match="block at position 2 is longer than longest_block=2"):
        look(
            doc,
            torch.tensor([[0, 1, 2, 2, 2, 3]]),
            backend="chunked",
            static=True,
            longest_block=2,
        )


def test_flex_with_gradients_is_refused_on_a_cpu():
    rows = ROWS["text"]
    with pytest.raises(ValueError, match="no gradients on cpu"):
        attend(*inputs(rows), look(*rows, backend="flex"))


def test_gradients_agree_with_finite_differences():
    rows = tuple(x[:1, :20] for x in ROWS["packed"])
    q_k_v = [x.detach()[:, :2, :, :4].double().requires_grad_() for x in inputs(rows)]
    sight = look(*rows, window=5, backend="documents")
    assert torch.autograd.gradcheck(lambda *x: attend(*x, sight), q_k_v)


def test_in_line_and_by_hand_are_the_same():
    rows = ROWS["packed"]
    q_k_v = inputs(rows, 2)
    sight = sights(rows, 0, "static")
    by_hand = Sight("pieces", strips=sight.strips)
    assert sight.form == "in_line"
    torch.testing.assert_close(in_line(*q_k_v, sight.strips[0]), attend(*q_k_v, by_hand))


@pytest.mark.gpu
@EACH_WINDOW
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-3), (torch.bfloat16, 1e-2)])
def test_flex_equals_the_reference_on_a_gpu_gradients_too(
    window: int, dtype: torch.dtype, limit: float
):
    """300 positions: more than two tiles, and no multiple of one."""
    batch = pack([[document(seed=s, blocks=(20, 8, 40)) for s in (1, 2)]] * 2, 300).to("cuda")
    rows = ids(batch)
    q_k_v = [x.detach().to("cuda").requires_grad_() for x in inputs(rows_on_cpu(rows), 2, dtype)]
    reference = outcome_on(q_k_v, look(*rows, window=window, backend="reference"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        sight = look(*rows, window=window)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sight.form == "flex"
    for a, b in zip(outcome_on(q_k_v, sight), reference, strict=True):
        assert farthest(a, b) < limit


def rows_on_cpu(rows: Ids) -> Ids:
    return rows[0].cpu(), rows[1].cpu()


def outcome_on(q_k_v: list[Tensor], sight: Sight) -> list[Tensor]:
    y = attend(*q_k_v, sight)
    weights = torch.randn(y.shape, generator=generator(1)).to(y.device)
    return [y.float(), *torch.autograd.grad((y.float() * weights).sum(), q_k_v)]
