"""Attention over packed rows: who may look at whom, rotary positions on three axes, and the layer.

Shapes: B rows, L positions, H query heads, G key/value heads, E values per head, 3 axes (seconds,
    row, column).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmpredict.schema import TICK_S, Batch

ROTARY_BASE = 10_000.0
QUERY_CHUNK = 96  # queries per step on a CPU
# Half of the frequencies turn with time, a quarter each with row and column.
AXIS_OF_PAIR = (0, 1, 0, 2)


def attention_mask(batch: Batch) -> Tensor:
    """(B, 1, L, L) bool, True where query i sees key j: same document, and j's block not after i's.

    Full within a block, causal across blocks. Padding sees padding, so that no softmax is empty.
    """
    same_doc = batch.doc_id[:, :, None] == batch.doc_id[:, None, :]
    not_later = batch.block_id[:, None, :] <= batch.block_id[:, :, None]
    return (same_doc & not_later)[:, None]


@dataclass(frozen=True)
class Span:
    """Queries `queries` of every row see at most keys `keys`; `bias` (B, 1, Q, K) is 0 or -inf."""

    queries: slice
    keys: slice
    bias: Tensor


def attention_spans(mask_B1LL: Tensor) -> list[Span]:
    """The mask cut into chunks of queries, each with only the keys that some row's query sees.

    On a CPU this beats the fused kernel, whose backward does not skip what the mask hides:
        measured 26
    against 61 CPU-ms forward and backward at B=16, L=351, 4 heads of 32, bf16 (docs/LOG.md).
    """
    L = mask_B1LL.shape[-1]
    spans = []
    for start in range(0, L, QUERY_CHUNK):
        queries = slice(start, min(start + QUERY_CHUNK, L))
        seen = mask_B1LL[:, 0, queries].any(dim=1).any(dim=0).nonzero()
        keys = slice(int(seen[0]), int(seen[-1]) + 1)
        visible = mask_B1LL[:, :, queries, keys]
        bias = torch.zeros(visible.shape).masked_fill_(~visible, -torch.inf)
        spans.append(Span(queries, keys, bias))
    return spans


Mask = Tensor | list[Span] | None


def attend(q_BHLE: Tensor, k_BGLE: Tensor, v_BGLE: Tensor, mask: Mask) -> Tensor:
    """softmax(q k / sqrt(E)) v over what the mask shows: (B, H, L, E).

    Args:
        q_BHLE: queries; H is a multiple of G.
        k_BGLE, v_BGLE: keys and values.
        mask: None (all see all), a bool mask (True = takes part), or spans for the CPU.
    """
    grouped = q_BHLE.shape[1] != k_BGLE.shape[1]
    small = mask is None and q_BHLE.device.type == "cpu" and q_BHLE.shape[2] <= QUERY_CHUNK
    if not small and not isinstance(mask, list):
        return F.scaled_dot_product_attention(
            q_BHLE, k_BGLE, v_BGLE, attn_mask=mask, enable_gqa=grouped
        )
    if grouped:
        k_BGLE, v_BGLE = (
            x.repeat_interleave(q_BHLE.shape[1] // x.shape[1], 1) for x in (k_BGLE, v_BGLE)
        )
    q_BHLE = q_BHLE * q_BHLE.shape[-1] ** -0.5
    if small:
        return (q_BHLE @ k_BGLE.transpose(-1, -2)).softmax(-1) @ v_BGLE
    parts = []
    for span in mask:
        scores = q_BHLE[:, :, span.queries] @ k_BGLE[:, :, span.keys].transpose(-1, -2)
        weights = (scores + span.bias.to(scores.dtype)).softmax(-1)
        parts.append(weights @ v_BGLE[:, :, span.keys])
    return torch.cat(parts, dim=2)


def rotary_table(positions_BL3: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, 1, L, E/2) for `rotate`.

    Seconds become ticks; the three axes are interleaved over the frequencies, so that each of them
    has fast and slow ones (the layout that Qwen-VL models call interleaved M-RoPE).
    """
    pairs = torch.arange(head_dim // 2, device=positions_BL3.device)
    frequency = ROTARY_BASE ** (-pairs.float() / (head_dim // 2))
    axis = torch.tensor(AXIS_OF_PAIR, device=pairs.device)[pairs % len(AXIS_OF_PAIR)]
    ticks_BL3 = positions_BL3.float() / positions_BL3.new_tensor([TICK_S, 1.0, 1.0])
    angle = ticks_BL3[..., axis] * frequency
    return angle.cos()[:, None], angle.sin()[:, None]


def rotate(x_BHLE: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (first half, second half) by its position's angle (Su et al. 2021)."""
    cos, sin = (t.to(x_BHLE.dtype) for t in table)
    a, b = x_BHLE.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Attention(nn.Module):
    """Multi-head attention without biases, with grouped queries and RMS-normed queries and keys.

    Args:
        dim: model width.
        num_heads: query heads; divides `dim`.
        num_kv_heads: key/value heads; divides `num_heads`.
        qk_norm: normalise queries and keys per head.
    """

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int, qk_norm: bool = True) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        kv_dim = num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, kv_dim, bias=False)
        self.v_proj = nn.Linear(dim, kv_dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)
        self.q_norm = nn.RMSNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(self.head_dim) if qk_norm else nn.Identity()

    def forward(
        self, x_BLD: Tensor, mask: Mask = None, table: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            return y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H or G, L, E)

        q, k, v = heads(self.q_proj(x_BLD)), heads(self.k_proj(x_BLD)), heads(self.v_proj(x_BLD))
        q, k = self.q_norm(q), self.k_norm(k)
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        y = attend(q, k, v.to(q.dtype), mask)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """Gated feed-forward without biases (Shazeer 2020), `hidden` wide inside."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One pre-norm layer: x += attention(norm x); x += feed-forward(norm x)."""

    def __init__(
        self, dim: int, num_heads: int, num_kv_heads: int, hidden: int, qk_norm: bool
    ) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(dim)
        self.attention = Attention(dim, num_heads, num_kv_heads, qk_norm)
        self.feed_forward_norm = nn.RMSNorm(dim)
        self.feed_forward = SwiGLU(dim, hidden)

    def forward(
        self, x_BLD: Tensor, mask: Mask = None, table: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), mask, table)
        return x_BLD + self.feed_forward(self.feed_forward_norm(x_BLD))
