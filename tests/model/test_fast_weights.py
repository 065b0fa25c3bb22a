"""Fast weights: chunks equal the step-by-step recurrence, whatever the decays and borders; the
documents of a row do not touch; the state carried from call to call is exact."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from mmpredict.model.fast_weights import (
    UNIT_DECAY,
    FastWeights,
    FastWeightsConfig,
    Steps,
    chunked,
    recurrence,
)

CONFIG = FastWeightsConfig(num_heads=3, key_dim=6, value_dim=5, chunk=8)
DIM = 16
GATES = ("none", "mild", "strong", "wild")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_steps(
    L: int, *, gates: str = "mild", borders: tuple[int, ...] = (), B: int = 2, seed: int = 0
) -> tuple[Steps, Tensor]:
    """Leaves of the graph, and a filled state; keys repeat, some strengths are 0, 1 or 2."""
    g = generator(seed)
    H, K, V = CONFIG.num_heads, CONFIG.key_dim, CONFIG.value_dim
    wide = {"dtype": torch.float64, "generator": g}
    q, k = (nn.functional.normalize(torch.randn(B, H, L, K, **wide), dim=-1) for _ in range(2))
    k[:, :, 1::3] = k[:, :, :1]
    v = torch.randn(B, H, L, V, **wide)
    strength = torch.rand(B, H, L, **wide)
    strength[..., 2::7], strength[..., 3::7], strength[..., 4::7] = 0.0, 1.0, 2.0
    log_decay = -torch.rand(B, H, L, **wide) * {"none": 0, "strong": 30}.get(gates, 0.3)
    if gates == "wild":
        log_decay[..., ::5] = -1e4
        log_decay[..., 3::5] = 0.0
    first = torch.zeros(B, L, dtype=torch.bool)
    for border in borders:
        first[0, border], first[-1, border // 2] = True, True
    leaves = [x.requires_grad_() for x in (q, k, v, strength, log_decay)]
    return Steps(*leaves, first), torch.randn(B, H, K, V, **wide).requires_grad_()


def results(outputs: tuple[Tensor, Tensor], steps: Steps, state: Tensor) -> list[Tensor]:
    """Outputs, and gradients of a random sum of them with respect to all inputs and the state."""
    g = generator(1)
    weighed = sum((o * torch.randn(o.shape, dtype=o.dtype, generator=g)).sum() for o in outputs)
    return [*outputs, *torch.autograd.grad(weighed, [*steps[:5], state])]


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize(
    ("L", "chunk", "borders"),
    [(1, 16, ()), (1, 1, (0,)), (7, 16, (3,)), (16, 16, ()), (33, 8, (0, 8, 20, 21)), (50, 16, ())],
)
def test_chunks_equal_the_recurrence(
    L: int, chunk: int, borders: tuple[int, ...], gates: str
) -> None:
    steps, state = random_steps(L, gates=gates, borders=borders)
    want = results(recurrence(steps, state), steps, state)
    got = results(chunked(steps, state, chunk), steps, state)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_small_decays_survive_large_ones_in_float32() -> None:
    """The difference of two running sums of -1e4 would lose them."""
    steps, state = random_steps(64, gates="wild", B=1)
    want = recurrence(steps, state)
    single = Steps(*(x.detach().float() for x in steps[:5]), steps.first_BL)
    got = chunked(single, state.detach().float(), 64)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["recurrence", "chunked"])
def test_a_write_replaces_what_its_key_held(form: str) -> None:
    """The delta rule on orthogonal keys: the last value of each is answered exactly (a sum of all
    values would not be), and a memory that has decayed to nothing answers nothing."""
    K, V = CONFIG.key_dim, CONFIG.value_dim
    told = torch.tensor([0, 1, 2, 0, 1, 0])
    asked = torch.tensor([0, 0, 0, 1, 2, 0])
    v = torch.randn(1, 1, 6, V, generator=generator(0))
    eye = torch.eye(K)
    first = torch.zeros(1, 6, dtype=torch.bool)
    steps = Steps(
        eye[asked][None, None],
        eye[told][None, None],
        v,
        torch.ones(1, 1, 6),
        torch.zeros(1, 1, 6),
        first,
    )
    state = torch.zeros(1, 1, K, V)
    run = recurrence if form == "recurrence" else lambda *args: chunked(*args, 4)
    answers, after = run(steps, state)
    latest = torch.tensor([0, 0, 0, 1, 2, 5])  # where what was asked for was last told
    torch.testing.assert_close(answers[0, 0], v[0, 0, latest])
    torch.testing.assert_close(after[0, 0, :3], v[0, 0, [5, 4, 2]])
    forgot = run(steps._replace(log_decay_BHL=torch.full((1, 1, 6), -torch.inf)), state)[1]
    torch.testing.assert_close(forgot[0, 0, :3], v[0, 0, [5]] * eye[:3, :1])


def block(config: FastWeightsConfig = CONFIG, *, dtype: torch.dtype = torch.float64) -> FastWeights:
    """With an output that is not 0."""
    torch.manual_seed(0)
    made = FastWeights(DIM, config)
    nn.init.normal_(made.o_proj.weight, std=0.3)
    return made.to(dtype)


def inputs(L: int, *, B: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Positions, and documents that begin with the row."""
    first = torch.zeros(B, L, dtype=torch.bool)
    first[:, 0] = True
    return torch.randn(B, L, DIM, dtype=torch.float64, generator=generator(seed)), first


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_documents_of_a_row_are_each_as_if_alone(dtype: torch.dtype, close: float) -> None:
    """Outputs and gradients; the last document starts at the end of a chunk."""
    model, (x, first) = block(dtype=dtype), inputs(37, B=1)
    ends = [0, 11, 12, 31, 37]
    first[0, ends[:-1]] = True
    x = x.to(dtype).requires_grad_()
    weigh = torch.randn(x.shape, dtype=dtype, generator=generator(3))
    together, last = model(x, first)
    (grad,) = torch.autograd.grad((together * weigh).sum(), x)
    for start, end in pairwise(ends):
        alone = x.detach()[:, start:end].requires_grad_()
        y, state = model(alone, first[:, start:end])
        (alone_grad,) = torch.autograd.grad((y * weigh[:, start:end]).sum(), alone)
        torch.testing.assert_close(together[:, start:end], y, rtol=close, atol=close)
        torch.testing.assert_close(grad[:, start:end], alone_grad, rtol=close, atol=5 * close)
    torch.testing.assert_close(last, state, rtol=close, atol=close)


@pytest.mark.parametrize("border", [1, 7, 8, 13, 19])
def test_nothing_leaks_over_a_border_nor_back_in_time(border: int) -> None:
    """Gradients are exactly 0: of each position with respect to all later ones and to all before
    the border, the state that was handed over included."""
    model, (x, first) = block(), inputs(20, B=1)
    first[0, 0], first[0, border] = False, True
    x.requires_grad_()
    old = torch.randn(1, 3, 6, 5, dtype=torch.float64, generator=generator(2)).requires_grad_()
    y, state = model(x, first, old)
    for i in range(20):
        to_x, to_old = torch.autograd.grad(y[0, i].sum(), (x, old), retain_graph=True)
        since = border if i >= border else 0
        reached = to_x[0].abs().sum(-1) > 0
        assert reached.nonzero()[:, 0].tolist() == list(range(since, i + 1))
        assert bool(to_old.any()) == (i < border)
    to_x, to_old = torch.autograd.grad(state.sum(), (x, old))
    assert not to_x[0, :border].any() and to_x[0, border:].any() and not to_old.any()


@pytest.mark.parametrize("cuts", [(1, 2, 3), (8, 16), (5, 6, 22, 30), tuple(range(1, 33))])
def test_one_call_equals_several_with_the_state_carried(cuts: tuple[int, ...]) -> None:
    """Gradients through the state, too; at length 1 the other form is used; the state never
    grows."""
    model, (x, first) = block(), inputs(33)
    first[0, 14] = True
    x.requires_grad_()
    whole, last = model(x, first)
    parts, state = [], None
    for start, end in pairwise((0, *cuts, 33)):
        y, state = model(x[:, start:end], first[:, start:end], state)
        assert state.shape == (2, 3, 6, 5)
        parts.append(y)
    weigh = torch.randn(x.shape, dtype=x.dtype, generator=generator(3))
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, last, rtol=1e-10, atol=1e-10)
    grads = [torch.autograd.grad((y * weigh).sum(), x)[0] for y in (whole, torch.cat(parts, 1))]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


def test_padding_leaves_everything_else_as_it_is() -> None:
    """Zeros behind a row that count as a document of their own; and rows of different lengths,
    padded, whose states are to be carried on."""
    model, (x, first) = block(), inputs(20)
    y, state = model(x, first)
    padded = torch.cat([x, torch.zeros(2, 13, DIM, dtype=x.dtype)], 1).requires_grad_()
    border = torch.cat([first, torch.zeros(2, 13, dtype=torch.bool)], 1)
    border[:, 20] = True
    longer, _ = model(padded, border)
    torch.testing.assert_close(longer[:, :20], y, rtol=1e-10, atol=1e-10)
    (grad,) = torch.autograd.grad(longer.square().sum(), padded)
    assert grad.isfinite().all()

    live = torch.arange(33) < torch.tensor([[9], [33]])
    ragged, carried = model(padded, border & live, live_BL=live)
    alone, alone_state = model(x[:1, :9], first[:1, :9])
    torch.testing.assert_close(ragged[:1, :9], alone, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(carried[:1], alone_state, rtol=1e-10, atol=1e-10)
    dead = torch.zeros(2, 4, dtype=torch.bool)
    _, same = model(x[:, :4], ~dead, state, live_BL=dead)
    assert torch.equal(same, state)


def test_a_fresh_block_changes_nothing_but_can_learn() -> None:
    model = FastWeights(DIM, CONFIG).double()
    x, first = inputs(12)
    y, state = model(x, first)
    assert not y.any() and state.any()
    y.sum().backward()
    assert model.o_proj.weight.grad.any()


def test_half_lives_are_spread_from_8_to_4096_positions() -> None:
    model = FastWeights(DIM, replace(CONFIG, num_heads=4)).double()
    x, first = inputs(1)
    log_decay = model.steps(torch.zeros_like(x), first).log_decay_BHL[0, :, 0]
    assert math.isclose(math.log1p(math.exp(UNIT_DECAY)), 1.0)
    torch.testing.assert_close(
        math.log(0.5) / log_decay,
        torch.tensor([8.0, 64.0, 512.0, 4096.0]).double(),
        rtol=1e-5,
        atol=0,
    )


@pytest.mark.parametrize(("negative", "most"), [(False, 1.0), (True, 2.0)])
def test_what_is_done_at_a_position_lies_in_its_range(negative: bool, most: float) -> None:
    model = block(replace(CONFIG, negative_eigenvalues=negative))
    x, first = inputs(64)
    steps = model.steps(5 * x, first)
    assert steps.strength_BHL.max() <= most and steps.strength_BHL.max() > most - 0.1
    assert steps.log_decay_BHL.max() <= 0
    for unit in (steps.q_BHLK, steps.k_BHLK):
        torch.testing.assert_close(unit.norm(dim=-1).max().item(), 1.0, rtol=1e-3, atol=0)


def test_autocast_leaves_the_memory_in_float32() -> None:
    model, (x, first) = block(dtype=torch.float32), inputs(40)
    want, want_state = model(x.float(), first)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = model(x.float(), first)
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32
    for got, wanted in ((y, want), (state, want_state)):
        assert (got.float() - wanted).norm() < 2e-2 * wanted.norm()
    y16, state16 = block(dtype=torch.bfloat16)(x.bfloat16(), first)
    assert y16.dtype == torch.bfloat16 and state16.dtype == torch.float32


@pytest.mark.slow
def test_compiles_into_one_graph_for_any_documents() -> None:
    model, (x, first) = block(dtype=torch.float32), inputs(24)
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    x = x.float().requires_grad_()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for border in (3, 17):
            first[0, border] = True
            sums = [(y.square().sum() + s.sum()) for y, s in (model(x, first), compiled(x, first))]
            grads = [torch.autograd.grad(total, x)[0] for total in sums]
            torch.testing.assert_close(sums[1], sums[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_says_the_same() -> None:
    steps, state = random_steps(100, gates="wild", borders=(3, 40))
    want = results(chunked(steps, state, 32), steps, state)
    there = Steps(*(x.detach().cuda() for x in steps))
    there = Steps(*(x.requires_grad_() for x in there[:5]), there.first_BL)
    moved = state.detach().cuda().requires_grad_()
    outputs = chunked(there, moved, 32)
    g = generator(1)
    weighed = sum(
        (o * torch.randn(o.shape, dtype=o.dtype, generator=g).cuda()).sum() for o in outputs
    )
    got = [*outputs, *torch.autograd.grad(weighed, [*there[:5], moved])]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("every", "layers"), [(0, []), (1, [0, 1, 2, 3, 4]), (2, [1, 3]), (3, [2]), (9, [])]
)
def test_which_layers_have_a_memory(every: int, layers: list[int]) -> None:
    config = FastWeightsConfig(every=every)
    assert [layer for layer in range(5) if config.in_layer(layer)] == layers


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"fast_weights.every=-1 must be 0"):
        FastWeightsConfig(every=-1)
    with pytest.raises(ValueError, match=r"fast_weights.chunk=0 must be at least 1"):
        FastWeightsConfig(chunk=0)
    model, (x, first) = block(), inputs(4)
    with pytest.raises(ValueError, match=r"state is \(1, 3, 6, 5\), .* \(2, 3, 6, 5\)"):
        model(x, first, torch.zeros(1, 3, 6, 5, dtype=torch.float64))
