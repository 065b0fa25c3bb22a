"""Attention on a CPU: rows cut into pieces, each of a few queries and the keys that they may see.

In: queries, keys, values, and pieces. Out: softmax(q k / sqrt(E)) v. Plain matrix products: the
fused kernel of a CPU does not skip what a mask hides, and is slow backwards (docs/decisions/009).
The borders of all pieces lie on a fixed grid, for a CPU's matrix library builds code for every new
shape: documents of their own lengths would cost more than they save.

Shapes: B rows, R rows of a strip, L positions, H query heads, G key/value heads, E values per head,
N queries, K keys, C chunks of queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

QUERY_CHUNK = 128  # queries of a piece
KEY_GRID = 64  # keys of a piece begin and end at multiples of this

# (rows, queries, keys) to (R, N, K) bool: who sees whom
Sees = Callable[[slice, slice, slice], Tensor]


@dataclass(frozen=True)
class Piece:
    """Queries start:stop see at most keys first:last; `bias_R1NK` is 0 or -inf, None where all see
    all."""

    start: int
    stop: int
    first: int
    last: int
    bias_R1NK: Tensor | None


@dataclass(frozen=True)
class Strip:
    """Rows top:bottom, whose pieces have the same borders; together they hold each query once."""

    top: int
    bottom: int
    pieces: tuple[Piece, ...]


# rows of each strip; start, stop, first, last of each of its pieces
Plan = list[tuple[slice, list[tuple[int, int, int, int]]]]


def strips(seen_2BL: Tensor, rows_per_strip: int) -> Plan:
    """Pieces as large as the rows need, each with the keys that any row of its strip sees.

    Args:
        seen_2BL: the first key that each query sees, and the first after the last.
    """
    _, B, L = seen_2BL.shape
    edges = list(pairwise([*range(0, L, QUERY_CHUNK), L]))
    first_BC, last_BC = _keys_of_chunks(seen_2BL)
    plan = []
    for top in range(0, B, rows_per_strip):
        rows = slice(top, min(top + rows_per_strip, B))
        reach = zip(first_BC[rows].amin(0).tolist(), last_BC[rows].amax(0).tolist(), strict=True)
        plan.append((rows, [(*edge, *keys) for edge, keys in zip(edges, reach, strict=True)]))
    return plan


def fixed_strips(num_rows: int, length: int, behind: int, ahead: int) -> Plan:
    """One strip of all rows whose borders do not depend on what is in the rows.

    Args:
        behind: how many positions before its own a query may see; -1 for all.
        ahead: how many after.
    """
    borders = []
    for start in range(0, length, QUERY_CHUNK):
        stop = min(start + QUERY_CHUNK, length)
        first = max(0, start - behind) if behind >= 0 else 0
        borders.append((start, stop, first, min(stop + ahead, length)))
    return [(slice(0, num_rows), borders)]


def with_bias(plan: Plan, sees: Sees, *, all_biased: bool) -> list[Strip]:
    """The plan with what is hidden inside the pieces.

    Args:
        all_biased: a bias also where all see all, so that the form is the same for all batches.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    made = []
    for rows, borders in plan:
        pieces = []
        for start, stop, first, last in borders:
            seen_RNK = sees(rows, slice(start, stop), slice(first, last))
            bias = None
            if all_biased or not bool(seen_RNK.all()):
                hidden = seen_RNK.new_zeros(seen_RNK.shape, dtype=dtype or torch.float32)
                bias = hidden.masked_fill_(~seen_RNK, -torch.inf)[:, None]
            pieces.append(Piece(start, stop, first, last, bias))
        made.append(Strip(rows.start, rows.stop, tuple(pieces)))
    return made


def work(plan: Plan, *, per_piece: int) -> int:
    """Scores that a plan computes per head, plus `per_piece` for the calls of each piece."""
    return sum(
        per_piece + (rows.stop - rows.start) * (stop - start) * (last - first)
        for rows, borders in plan
        for start, stop, first, last in borders
    )


def largest(plan: Plan) -> int:
    """Scores per head of the largest piece."""
    return max(
        (rows.stop - rows.start) * (stop - start) * (last - first)
        for rows, borders in plan
        for start, stop, first, last in borders
    )


def in_line(q_BHLE: Tensor, k_BGLE: Tensor, v_BGLE: Tensor, strip: Strip) -> Tensor:
    """Attention of one strip of all rows in operations that a compiler fuses."""
    B, H, _, E = q_BHLE.shape
    G = k_BGLE.shape[1]
    q_BHLE = q_BHLE * E**-0.5
    parts = []
    for piece in strip.pieces:
        N, K = piece.stop - piece.start, piece.last - piece.first
        keys = slice(piece.first, piece.last)
        q_BGNE = q_BHLE[:, :, piece.start : piece.stop].reshape(B, G, -1, E)
        scores = (q_BGNE @ k_BGLE[:, :, keys].transpose(-1, -2)).view(B, H, N, K)
        weights = (scores + piece.bias_R1NK.to(scores.dtype)).softmax(-1)
        y_BGNE = weights.view(B, G, -1, K) @ v_BGLE[:, :, keys]
        parts.append(y_BGNE.view(B, H, N, E))
    return torch.cat(parts, dim=2)


class InPieces(torch.autograd.Function):
    """Attention of any strips, written by hand: a graph of many small operations costs as much
    again as the operations do."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, strips: tuple[Strip, ...]
    ) -> Tensor:
        B, H, L, E = q.shape
        y = q.new_empty(B, L, H, E).transpose(1, 2)  # as the next product wants it
        kept = []
        with _plain():
            for rows, piece, queries, keys in _walk(strips):
                q_SNE, k_SKE, v_SKE = _flat(q[queries], k), _flat(k[keys], k), _flat(v[keys], k)
                p_SNK = _weights(q_SNE, k_SKE, piece, rows)
                y[queries] = torch.bmm(p_SNK, v_SKE).view(y[queries].shape)
                if any(ctx.needs_input_grad):
                    kept.append(p_SNK)
        ctx.strips = strips
        ctx.save_for_backward(q, k, v, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        scale = q.shape[-1] ** -0.5
        wide = torch.promote_types(k.dtype, torch.float32)  # for sums over many pieces
        weights = iter(kept)
        with _plain():
            for strip in ctx.strips:
                rows = slice(strip.top, strip.bottom)
                dk_RGLE = torch.zeros(k[rows].shape, dtype=wide)
                dv_RGLE = torch.zeros(v[rows].shape, dtype=wide)
                for _, piece, queries, keys in _walk((strip,)):
                    here = slice(None), slice(None), slice(piece.first, piece.last)
                    p_SNK = next(weights)
                    q_SNE, dy_SNE = _flat(q[queries], k), _flat(dy[queries], k)
                    dv_RGLE[here] += torch.bmm(p_SNK.mT, dy_SNE).view(dv_RGLE[here].shape)
                    dp_SNK = torch.bmm(dy_SNE, _flat(v[keys], k).mT)
                    ds_SNK = torch._softmax_backward_data(dp_SNK, p_SNK, -1, p_SNK.dtype)
                    dq[queries] = torch.bmm(ds_SNK, _flat(k[keys], k)).view(dq[queries].shape)
                    dk_RGLE[here] += torch.bmm(ds_SNK.mT, q_SNE).view(dk_RGLE[here].shape)
                dk[rows], dv[rows] = dk_RGLE.mul_(scale), dv_RGLE
        return dq.mul_(scale), dk, dv, None


def _weights(q_SNE: Tensor, k_SKE: Tensor, piece: Piece, rows: int) -> Tensor:
    """(S, N, K): softmax of the scores."""
    scale = q_SNE.shape[-1] ** -0.5
    scores = torch.bmm(q_SNE, k_SKE.mT)
    if piece.bias_R1NK is None:
        scores.mul_(scale)
    else:
        N, K = piece.bias_R1NK.shape[-2:]
        as_heads = scores.view(rows, -1, N, K)
        bias = piece.bias_R1NK.to(scores.dtype)
        torch.add(bias, as_heads, alpha=scale, out=as_heads)
    return scores.softmax(-1)


def _walk(
    strips: tuple[Strip, ...],
) -> Iterator[tuple[int, Piece, tuple[slice, ...], tuple[slice, ...]]]:
    """Rows of the strip, piece, and where in (B, heads, L, E) its queries and its keys are."""
    for strip in strips:
        rows = slice(strip.top, strip.bottom)
        for piece in strip.pieces:
            queries = rows, slice(None), slice(piece.start, piece.stop)
            keys = rows, slice(None), slice(piece.first, piece.last)
            yield strip.bottom - strip.top, piece, queries, keys


def _flat(x_RHNE: Tensor, k_BGLE: Tensor) -> Tensor:
    """(R * G, H/G * N, E): the queries of a group stand below each other, so that its keys are
    never repeated."""
    R, _, _, E = x_RHNE.shape
    return x_RHNE.reshape(R * k_BGLE.shape[1], -1, E)


def _plain() -> AbstractContextManager[None]:
    return torch.autocast("cpu", enabled=False)


def _keys_of_chunks(seen_2BL: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C) each: first key that a chunk's queries see and the end of the last, on the grid."""
    L = seen_2BL.shape[-1]
    short = -L % QUERY_CHUNK
    last_value = seen_2BL[..., -1:].expand(-1, -1, short)
    chunks_2BCN = torch.cat([seen_2BL, last_value], -1).unflatten(-1, (-1, QUERY_CHUNK))
    first_BC = chunks_2BCN[0].amin(-1) // KEY_GRID * KEY_GRID
    last_BC = -(-chunks_2BCN[1].amax(-1) // KEY_GRID) * KEY_GRID
    return first_BC, last_BC.clamp(max=L)
