"""Who may look at whom in packed rows, and the attention that obeys it.

In: document and block of every position; queries, keys, values. Out: softmax(q k / sqrt(E)) v
(Vaswani et al. 2017) over what is in sight.
The law: a position sees those of its own document whose block is not after its own; with a window
w > 0, of earlier blocks only those less than w positions before it. A position of padding is a
document of its own: it sees itself, so that no softmax is empty. Documents and blocks lie in one
piece each, their numbers rise along the row.

Shapes: B rows, L positions, H query heads, G key/value heads, E values per head, N queries, K keys,
T tiles.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from mmpredict.model.pieces import (
    InPieces,
    Plan,
    Sees,
    Strip,
    fixed_strips,
    in_line,
    largest,
    strips,
    with_bias,
    work,
)

Backend = Literal["auto", "reference", "chunked", "documents", "flex"]
SMALL = 128  # queries up to which a CPU is faster with plain products than with the fused kernel
LONG = 1200  # positions from which compiled layers, too, take pieces that fit the documents
PER_PIECE = 8_000  # scores of one head that take as long as the calls of a piece
CACHED = 1 << 20  # bytes of one head's scores up to which a piece stays in the cache
TILE = 128  # of FlexAttention


@dataclass(eq=False)
class Sight:
    """Who sees whom in one batch, in the form that one way of computing takes. Built once, for all
    layers; not to be changed.

    Not a frozen dataclass: a compiler opens those, and would compile anew for every plan of pieces.

    Args:
        form: "reference", "masked" (a mask), "pieces", "in_line" (pieces that are cut alike for all
            batches, and compile along with a layer) or "flex".
        mask_B1NK: True where a query sees a key.
        strips: pieces.
        tiles: of FlexAttention.
    """

    form: str
    mask_B1NK: Tensor | None = None
    strips: tuple[Strip, ...] = ()
    tiles: BlockMask | None = None

    @staticmethod
    def of(mask_B1NK: Tensor) -> Sight:
        """Any mask, True where a query sees a key; for the steps of a cached rollout."""
        return Sight("masked", mask_B1NK)


def dense_mask(doc_id_BL: Tensor, block_id_BL: Tensor, window: int = 0) -> Tensor:
    """(B, 1, L, L) bool: the law written out."""
    L = doc_id_BL.shape[1]
    whole = slice(0, L)
    sees = _law(_alone_in_padding(doc_id_BL), block_id_BL, window)
    return sees(slice(None), whole, whole)[:, None]


def cached_mask(
    block_BN: Tensor, index_BN: Tensor, block_BK: Tensor, index_BK: Tensor, *, window: int = 0
) -> Tensor:
    """(B, 1, N, K) bool: the law within one document, for queries that are not all of a row.

    Args:
        block_BN, index_BN: block and place in the row of each query.
        block_BK, index_BK: of each key. An unused slot has a block after all others.
    """
    query, key = block_BN[:, :, None], block_BK[:, None, :]
    sees = key <= query
    if window:
        near = index_BN[:, :, None] - index_BK[:, None, :] < window
        sees = sees & (near | (key == query))
    return sees[:, None]


def look(  # noqa: PLR0913 - the rows, the law, and how the work is done
    doc_id_BL: Tensor,
    block_id_BL: Tensor,
    *,
    window: int = 0,
    backend: Backend = "auto",
    static: bool = False,
    longest_block: int = 1,
) -> Sight:
    """The law for a batch.

    Args:
        doc_id_BL, block_id_BL: as in `Batch`.
        window: positions that are seen of earlier blocks; 0 for all.
        backend: `auto` takes what is measured to be fastest for the device and the rows.
        static: the layers are compiled. "chunked" then has shapes that depend on L, window and
            longest_block alone, so that one graph serves every batch.
        longest_block: positions of the longest block; needed for `static`.
    """
    B, L = doc_id_BL.shape
    if window < 0:
        raise ValueError(f"window={window}; give positions to look back, or 0 for all")
    on_cpu = doc_id_BL.device.type == "cpu"
    if backend == "flex" or (backend == "auto" and doc_id_BL.is_cuda):
        return Sight("flex", tiles=_tiles(doc_id_BL, block_id_BL, window))
    if backend == "reference" or (backend == "auto" and not on_cpu):
        mask_B1LL = dense_mask(doc_id_BL, block_id_BL, window)
        return Sight("reference" if backend == "reference" else "masked", mask_B1LL)
    if not on_cpu:
        raise ValueError(
            f"attention={backend!r} is for a CPU, the rows are on {doc_id_BL.device}; take 'auto'"
        )
    doc_id_BL = _alone_in_padding(doc_id_BL)
    _check_order(doc_id_BL, block_id_BL)
    sees = _law(doc_id_BL, block_id_BL, window)
    if static and (backend == "chunked" or (backend == "auto" and L < LONG)):
        _check_blocks(doc_id_BL, block_id_BL, longest_block)
        behind = max(window, longest_block) - 1 if window else -1
        plan = fixed_strips(B, L, behind, longest_block - 1)
        return Sight("in_line", strips=_biased(plan, sees, all_biased=True))
    seen_2BL = _seen(doc_id_BL, block_id_BL, window)
    if backend == "auto":
        plan = _fastest([strips(seen_2BL, rows) for rows in _halves(B)])
    else:
        plan = strips(seen_2BL, B if backend == "chunked" else 1)
    return Sight("pieces", strips=_biased(plan, sees, all_biased=False))


def attend(q_BHLE: Tensor, k_BGLE: Tensor, v_BGLE: Tensor, sight: Sight | None) -> Tensor:
    """softmax(q k / sqrt(E)) v over what is in sight: (B, H, L, E), in the values' precision.

    Args:
        q_BHLE: queries; H is a multiple of G (grouped queries, Ainslie et al. 2023).
        k_BGLE, v_BGLE: keys and values.
        sight: None when all see all.
    """
    _check_shapes(q_BHLE, k_BGLE, v_BGLE)
    kind = q_BHLE.device.type
    if sight is not None and sight.form == "reference":
        return _reference(q_BHLE, k_BGLE, v_BGLE, sight.mask_B1NK)
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else v_BGLE.dtype
    q_BHLE, k_BGLE, v_BGLE = (x.to(dtype) for x in (q_BHLE, k_BGLE, v_BGLE))
    if sight is None or sight.form == "masked":
        return _masked(q_BHLE, k_BGLE, v_BGLE, None if sight is None else sight.mask_B1NK)
    if sight.form == "flex":
        return _flex(q_BHLE, k_BGLE, v_BGLE, sight.tiles)
    if sight.form == "in_line":
        with torch.autocast(kind, enabled=False):
            return in_line(q_BHLE, k_BGLE, v_BGLE, sight.strips[0])
    return _in_pieces(q_BHLE, k_BGLE, v_BGLE, sight)


@torch.compiler.disable
def _in_pieces(q_BHLE: Tensor, k_BGLE: Tensor, v_BGLE: Tensor, sight: Sight) -> Tensor:
    """A compiled layer steps out of its graph for this, with the sight unopened: other pieces in
    another batch are no reason to compile anew."""
    return InPieces.apply(q_BHLE, k_BGLE, v_BGLE, sight.strips)


def _law(doc_id_BL: Tensor, block_id_BL: Tensor, window: int) -> Sees:
    """(rows, queries, keys) to (R, N, K) bool, True where a query sees a key."""
    index_1L = torch.arange(doc_id_BL.shape[1], device=doc_id_BL.device)[None]

    def sees(rows: slice, queries: slice, keys: slice) -> Tensor:
        doc_RL, block_RL = doc_id_BL[rows], block_id_BL[rows]
        same_doc = doc_RL[:, queries, None] == doc_RL[:, None, keys]
        near = cached_mask(
            block_RL[:, queries],
            index_1L[:, queries],
            block_RL[:, keys],
            index_1L[:, keys],
            window=window,
        )
        return same_doc & near[:, 0]

    return sees


def _alone_in_padding(doc_id_BL: Tensor) -> Tensor:
    """Documents numbered so that every position of padding is one of its own, after all others."""
    index = torch.arange(doc_id_BL.shape[1], device=doc_id_BL.device)
    return torch.where(doc_id_BL == 0, index + (1 << 40), doc_id_BL)


def _run_starts(number_BL: Tensor) -> Tensor:
    """(B, L): where the run of equal numbers begins that each position is in."""
    index_L = torch.arange(number_BL.shape[1], device=number_BL.device)
    begins = torch.ones_like(number_BL, dtype=torch.bool)
    begins[:, 1:] = number_BL[:, 1:] != number_BL[:, :-1]
    return torch.where(begins, index_L, 0).cummax(1).values


def _run_stops(number_BL: Tensor) -> Tensor:
    """(B, L): where that run ends."""
    return number_BL.shape[1] - _run_starts(number_BL.flip(1)).flip(1)


def _seen(doc_id_BL: Tensor, block_id_BL: Tensor, window: int) -> Tensor:
    """(2, B, L): the first key that each query sees, and the first after the last."""
    first_BL, last_BL = _run_starts(doc_id_BL), _run_stops(doc_id_BL)
    last_BL = torch.minimum(_run_stops(block_id_BL), last_BL)
    if window:
        index_L = torch.arange(doc_id_BL.shape[1], device=doc_id_BL.device)
        near_BL = torch.minimum(index_L - window + 1, _run_starts(block_id_BL))
        first_BL = torch.maximum(first_BL, near_BL)
    return torch.stack([first_BL, last_BL])


def _biased(plan: Plan, sees: Sees, *, all_biased: bool) -> tuple[Strip, ...]:
    return tuple(with_bias(plan, sees, all_biased=all_biased))


def _fastest(plans: list[Plan]) -> Plan:
    """More rows in a strip: fewer calls, but more keys that only some of the rows see, and at last
    pieces that no cache holds (measured: docs/decisions/009)."""
    bytes_per_score = 2 if torch.is_autocast_enabled("cpu") else 4
    fitting = [plan for plan in plans[:-1] if largest(plan) * bytes_per_score <= CACHED]
    return min([*fitting, plans[-1]], key=lambda plan: work(plan, per_piece=PER_PIECE))


def _halves(count: int) -> list[int]:
    """All rows, half of them, a quarter, down to single ones."""
    return [count] if count == 1 else [count, *_halves(-(-count // 2))]


def _check_shapes(q_BHLE: Tensor, k_BGLE: Tensor, v_BGLE: Tensor) -> None:
    if k_BGLE.shape != v_BGLE.shape or q_BHLE.shape[::3] != k_BGLE.shape[::3]:
        raise ValueError(
            f"queries {tuple(q_BHLE.shape)}, keys {tuple(k_BGLE.shape)} and values "
            f"{tuple(v_BGLE.shape)} do not fit: rows and values per head must be equal in all, "
            "keys and values alike"
        )
    if q_BHLE.shape[1] % k_BGLE.shape[1]:
        raise ValueError(
            f"{q_BHLE.shape[1]} query heads are not a multiple of {k_BGLE.shape[1]} key/value "
            "heads; change num_heads or num_kv_heads"
        )


def _check_order(doc_id_BL: Tensor, block_id_BL: Tensor) -> None:
    """Pieces need what the packing promises: documents and blocks in one piece, in order."""
    doc, after = doc_id_BL[:, :-1], doc_id_BL[:, 1:]
    falls = (after < doc) | ((after == doc) & (block_id_BL[:, 1:] < block_id_BL[:, :-1]))
    if bool(falls.any()):
        row, index = (int(x[0]) for x in falls.nonzero(as_tuple=True))
        raise ValueError(
            f"row {row}: document or block numbers fall after position {index}; pieces need rows "
            "as `pack` makes them (attention='reference' takes any)"
        )


def _check_blocks(doc_id_BL: Tensor, block_id_BL: Tensor, longest_block: int) -> None:
    """No block may reach out of the borders that are the same for all batches."""
    too_long = (doc_id_BL[:, longest_block:] == doc_id_BL[:, :-longest_block]) & (
        block_id_BL[:, longest_block:] == block_id_BL[:, :-longest_block]
    )
    if bool(too_long.any()):
        row, index = (int(x[0]) for x in too_long.nonzero(as_tuple=True))
        raise ValueError(
            f"row {row}: the block at position {index} is longer than longest_block="
            f"{longest_block} positions"
        )


def _reference(q_BHLE: Tensor, k_BGLE: Tensor, v_BGLE: Tensor, mask_B1NK: Tensor) -> Tensor:
    """The formula, in float32 whatever comes in (float64 stays)."""
    repeats = q_BHLE.shape[1] // k_BGLE.shape[1]
    with torch.autocast(q_BHLE.device.type, enabled=False):
        wide = torch.promote_types(q_BHLE.dtype, torch.float32)
        q, k, v = (x.to(wide) for x in (q_BHLE, k_BGLE, v_BGLE))
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask_B1NK, -torch.inf)
        return (scores.softmax(-1) @ v).to(v_BGLE.dtype)


def _masked(q_BHLE: Tensor, k_BGLE: Tensor, v_BGLE: Tensor, mask_B1NK: Tensor | None) -> Tensor:
    """Few queries on a CPU: plain products, whose keys are not repeated. Else the fused kernel."""
    B, H, N, E = q_BHLE.shape
    G, K = k_BGLE.shape[1:3]
    if q_BHLE.device.type != "cpu" or N > SMALL:
        return F.scaled_dot_product_attention(
            q_BHLE, k_BGLE, v_BGLE, attn_mask=mask_B1NK, enable_gqa=H != G
        )
    with torch.autocast("cpu", enabled=False):
        q_BGNE = (q_BHLE * E**-0.5).reshape(B, G, -1, E)
        scores = q_BGNE @ k_BGLE.transpose(-1, -2)
        if mask_B1NK is not None:
            scores = scores.view(B, H, N, K).masked_fill(~mask_B1NK, -torch.inf)
        return (scores.softmax(-1).view(B, G, -1, K) @ v_BGLE).view(B, H, N, E)


def _tiles(doc_id_BL: Tensor, block_id_BL: Tensor, window: int) -> BlockMask:
    """The law for FlexAttention (Dong et al. 2024), built on the device without waiting for it.

    Numbers rise along a row, so the least and greatest of a tile say which tiles may see each
    other at all, and which see each other whole.
    """
    doc_id_BL = _alone_in_padding(doc_id_BL)
    L = doc_id_BL.shape[1]

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        query, key = block_id_BL[b, i], block_id_BL[b, j]
        seen = (doc_id_BL[b, i] == doc_id_BL[b, j]) & (key <= query)
        return seen & ((i - j < window) | (key == query)) if window else seen

    doc, block = _Bounds.of(doc_id_BL), _Bounds.of(block_id_BL)
    index = _Bounds.of(torch.arange(L, device=doc_id_BL.device)[None])
    some = (doc.low_q <= doc.high_k) & (doc.low_k <= doc.high_q) & (block.low_k <= block.high_q)
    whole = (doc.low_q == doc.high_q) & (doc.low_k == doc.high_k) & (doc.low_q == doc.low_k)
    whole = whole & (block.high_k <= block.low_q) & (index.low_q + TILE <= L)
    whole = whole & (index.low_k + TILE <= L)
    if window:
        some = some & ((index.low_q - index.high_k < window) | (block.high_k >= block.low_q))
        whole = whole & (index.high_q - index.low_k < window)
    part = _ordered(some & ~whole)
    return BlockMask.from_kv_blocks(
        *part, *_ordered(whole), BLOCK_SIZE=TILE, mask_mod=sees, seq_lengths=(L, L)
    )


class _Bounds(NamedTuple):
    """The least and greatest number in each tile, along queries (B, T, 1) and keys (B, 1, T)."""

    low_q: Tensor
    high_q: Tensor
    low_k: Tensor
    high_k: Tensor

    @classmethod
    def of(cls, number_BL: Tensor) -> _Bounds:
        rest = number_BL[:, -1:].expand(-1, -number_BL.shape[1] % TILE)
        tiles_BTI = torch.cat([number_BL, rest], 1).unflatten(1, (-1, TILE))
        low, high = tiles_BTI.amin(-1), tiles_BTI.amax(-1)
        return cls(low[:, :, None], high[:, :, None], low[:, None], high[:, None])


def _ordered(some_BTT: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 1, T) how many tiles of keys are True, (B, 1, T, T) which, those first."""
    order = some_BTT.int().argsort(dim=-1, descending=True, stable=True)
    return some_BTT.sum(-1).int()[:, None], order.int()[:, None]


def _flex(q_BHLE: Tensor, k_BGLE: Tensor, v_BGLE: Tensor, tiles: BlockMask) -> Tensor:
    grouped = q_BHLE.shape[1] != k_BGLE.shape[1]
    if q_BHLE.is_cuda:
        if q_BHLE.shape[-1] < 16:
            raise ValueError(
                f"flex attention needs 16 values per head or more, not {q_BHLE.shape[-1]}; take "
                "fewer heads, or attention='reference'"
            )
        # Inside a compiled layer the plain function is compiled along with it.
        attention = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
        return attention(q_BHLE, k_BGLE, v_BGLE, block_mask=tiles, enable_gqa=grouped)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q_BHLE, k_BGLE, v_BGLE)):
        raise ValueError(
            f"flex attention has no gradients on {q_BHLE.device.type}; take attention='auto'"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        q, k, v = q_BHLE.detach(), k_BGLE.detach(), v_BGLE.detach()
        return flex_attention(q, k, v, block_mask=tiles, enable_gqa=grouped)


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=False)
