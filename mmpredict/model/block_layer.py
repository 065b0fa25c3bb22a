"""A layer over the positions of a block: all see all, or each sees itself and those before it.

In and out: (N, P, D). Blocks are short and many, which is why this is not the trunk's attention.

Shapes: N blocks (draws included), P positions per block, D width, H heads, E values per head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmpredict.model.layers import SwiGLU, hidden_width
from mmpredict.model.norm import RMSNorm

HEAD_DIM = 32  # values per attention head
SMALL = 96  # positions up to which a CPU is faster with plain products (docs/LOG.md)


@dataclass
class Cache:
    """Keys and values (N, H, P, E) of the first `length` positions of a block that is being
    drawn."""

    keys: Tensor
    values: Tensor
    length: int = 0


class SmallAttention(torch.autograd.Function):
    """softmax(q k^T) v by plain products, for many short blocks; q comes in scaled.

    Autograd would give the gradient of k transposed, and all that reads it would run across its
    rows. Here every gradient lies as its tensor does. Shapes: X = N H blocks and heads.
    """

    @staticmethod
    def forward(ctx: Any, q_XPE: Tensor, k_XPE: Tensor, v_XPE: Tensor, causal: bool) -> Tensor:
        scores_XPP = torch.bmm(q_XPE, k_XPE.mT)
        if causal:
            later = torch.ones_like(scores_XPP[0], dtype=torch.bool).triu(1)
            scores_XPP = scores_XPP.masked_fill(later, -torch.inf)
        share_XPP = scores_XPP.softmax(-1).to(v_XPE.dtype)
        ctx.save_for_backward(q_XPE, k_XPE, v_XPE, share_XPP)
        return torch.bmm(share_XPP, v_XPE)

    @staticmethod
    def backward(ctx: Any, grad_XPE: Tensor) -> tuple[Tensor | None, ...]:
        q_XPE, k_XPE, v_XPE, share_XPP = ctx.saved_tensors
        grad_XPE = grad_XPE.to(v_XPE.dtype)
        exact = torch.promote_types(v_XPE.dtype, torch.float32)
        shares, away = share_XPP.to(exact), torch.bmm(grad_XPE, v_XPE.mT).to(exact)
        away = (shares * (away - (shares * away).sum(-1, keepdim=True))).to(q_XPE.dtype)
        of_q, of_k = torch.bmm(away, k_XPE), torch.bmm(away.mT, q_XPE)
        return of_q, of_k, torch.bmm(share_XPP.mT, grad_XPE), None


class BlockAttention(nn.Module):
    """Multi-head attention inside a block, with normed queries and keys and no positions of its
    own: the vectors that come in know their place.

    Args:
        dim: width.
        causal: position p sees positions up to p only.
    """

    def __init__(self, dim: int, *, causal: bool = False) -> None:
        super().__init__()
        heads = max(n for n in range(1, max(1, dim // HEAD_DIM) + 1) if dim % n == 0)
        self.head_dim, self.causal = dim // heads, causal
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)
        self.q_norm = RMSNorm(self.head_dim)
        self.k_norm = RMSNorm(self.head_dim)

    def _queries_keys_values(self, x_NPD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def heads(y: Tensor) -> Tensor:
            return y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

        q, k, v = heads(self.q_proj(x_NPD)), heads(self.k_proj(x_NPD)), heads(self.v_proj(x_NPD))
        q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v.to(q.dtype)

    def forward(self, x_NPD: Tensor) -> Tensor:
        q, k, v = self._queries_keys_values(x_NPD)
        P = x_NPD.shape[1]
        if q.device.type == "cpu" and P <= SMALL:
            q, k, v = (x.flatten(0, 1) for x in (q * self.head_dim**-0.5, k, v))
            y = SmallAttention.apply(q, k, v, self.causal).unflatten(0, (len(x_NPD), -1))
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.o_proj(y.transpose(1, 2).flatten(2))

    def extend(self, x_N1D: Tensor, cache: Cache) -> Tensor:
        """One position more: as `forward`, but the earlier ones come from the cache."""
        q, k, v = self._queries_keys_values(x_N1D)
        now = cache.length
        cache.keys[:, :, now], cache.values[:, :, now] = k[:, :, 0], v[:, :, 0]
        cache.length = now + 1
        keys, values = cache.keys[:, :, : now + 1], cache.values[:, :, : now + 1]
        scores = (q * self.head_dim**-0.5) @ keys.to(q.dtype).transpose(-1, -2)
        y = scores.softmax(-1).to(v.dtype) @ values.to(v.dtype)
        return self.o_proj(y.transpose(1, 2).flatten(2))

    def new_cache(self, blocks: int, positions: int) -> Cache:
        """Room for `positions` of `blocks`."""
        weight = self.k_proj.weight
        shape = (blocks, weight.shape[0] // self.head_dim, positions, self.head_dim)
        return Cache(*(torch.zeros(shape, device=weight.device) for _ in range(2)))


class BlockLayer(nn.Module):
    """x += attention(norm x); x += feed-forward(norm x). A block of one position has nobody to
    attend to.

    Args:
        dim: width.
        positions: of a block.
        causal: position p sees positions up to p only.
    """

    def __init__(self, dim: int, positions: int, *, causal: bool = False) -> None:
        super().__init__()
        self.attention = None
        if positions > 1:
            self.attention_norm = RMSNorm(dim)
            self.attention = BlockAttention(dim, causal=causal)
        self.feed_forward_norm = RMSNorm(dim)
        self.feed_forward = SwiGLU(dim, hidden_width(dim))

    def forward(self, x_NPD: Tensor) -> Tensor:
        if self.attention is not None:
            x_NPD = x_NPD + self.attention(self.attention_norm(x_NPD))
        return x_NPD + self.feed_forward(self.feed_forward_norm(x_NPD))

    def extend(self, x_N1D: Tensor, cache: Cache | None) -> Tensor:
        """One position more; `cache` comes from `new_cache`."""
        if self.attention is not None:
            x_N1D = x_N1D + self.attention.extend(self.attention_norm(x_N1D), cache)
        return x_N1D + self.feed_forward(self.feed_forward_norm(x_N1D))

    def new_cache(self, blocks: int, positions: int) -> Cache | None:
        return None if self.attention is None else self.attention.new_cache(blocks, positions)
