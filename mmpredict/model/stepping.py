"""A layer as a rollout walks through it: new positions only, its weights side by side.

The same function as `Layer.forward` (tests/model/test_cache.py), for steps of one or a few
positions, where not the products take the time but their number: queries, keys and values are one
product, gate and up are one, each weight lies as the products read it, and a sum goes into the
product before it.

Shapes: B rows, N new positions, R = B N of all rows, D model width, H query heads, G key/value
heads, E values per head, K positions that are looked at, F inner width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmpredict.model.cache import LayerCache, Step
from mmpredict.model.layers import Layer, Rows


@dataclass(frozen=True)
class Turns:
    """Cosines and signed sines of the new positions, (B, 1, N, E), for `turned`."""

    cos: Tensor
    sin: Tensor

    @staticmethod
    def of(table: tuple[Tensor, Tensor], dtype: torch.dtype) -> Turns:
        """From the table of `rotary_table`."""
        cos, sin = table
        return Turns(torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype))

    def turned(self, x_BHNE: Tensor) -> Tensor:
        """As `rotary.rotate`: (a, b) becomes (a cos - b sin, b cos + a sin)."""
        return torch.addcmul(x_BHNE * self.cos, x_BHNE.roll(x_BHNE.shape[-1] // 2, -1), self.sin)


class SteppedLayer:
    """One layer for steps. It holds copies of the weights as they are when it is made.

    Args:
        layer: of the trunk.
        dtype: of products, keys and values.
    """

    def __init__(self, layer: Layer, dtype: torch.dtype) -> None:
        self.layer, self.experts = layer, layer.experts
        attention = layer.attention
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.head_dim = attention.head_dim
        self.num_groups = attention.k_proj.out_features // self.head_dim
        self.num_heads = attention.q_proj.out_features // self.head_dim
        self.qkv_DX = _side_by_side([p.weight for p in parts], dtype)
        biases = [p.bias for p in parts]
        self.bias_X = None if biases[0] is None else torch.cat(biases).detach().to(dtype)
        self.out_XD = _side_by_side([attention.o_proj.weight], dtype)
        self.gain_H1E = self.gain_eps = None
        if isinstance(attention.q_norm, torch.nn.RMSNorm):
            gains = [attention.q_norm.weight] * self.num_heads
            gains += [attention.k_norm.weight] * self.num_groups
            self.gain_H1E = torch.stack(gains)[:, None].detach().to(dtype)
            self.gain_eps = attention.q_norm.eps
        if not self.experts:
            inner = layer.feed_forward
            self.gate_up_DF = _side_by_side([inner.gate_proj.weight, inner.up_proj.weight], dtype)
            self.down_FD = _side_by_side([inner.down_proj.weight], dtype)

    def extend(
        self, x_BND: Tensor, rows: Rows, turns: Turns, kept: LayerCache, step: Step
    ) -> Tensor:
        """What `Layer.forward` says of new positions that follow those in the cache."""
        layer, shape = self.layer, x_BND.shape
        normed_BND = self._norm(layer.attention_norm, x_BND, rows)
        y_RX = self._attended(normed_BND, turns, kept, step)
        x_RD = _plus_product(x_BND.flatten(0, 1), y_RX, self.out_XD)
        if layer.memory is not None:
            x_BND = x_RD.view(shape)
            normed_BND = self._norm(layer.memory_norm, x_BND, rows)
            y_BND, state = layer.memory(normed_BND, rows.first_BL, kept.state, live_BL=step.live_BN)
            kept.state.copy_(state)
            x_RD = (x_BND + y_BND).flatten(0, 1)
        if self.experts:
            x_BND = x_RD.view(shape)
            return x_BND + layer.fed_forward(x_BND, rows)
        normed_RD = self._norm(layer.feed_forward_norm, x_RD, rows)
        gate_RF, up_RF = (normed_RD.to(self.down_FD.dtype) @ self.gate_up_DF).chunk(2, -1)
        return _plus_product(x_RD, F.silu(gate_RF).mul_(up_RF), self.down_FD).view(shape)

    def _attended(self, normed_BND: Tensor, turns: Turns, kept: LayerCache, step: Step) -> Tensor:
        """(R, H E): the heads' answers."""
        B, N, _ = normed_BND.shape
        H, G, E = self.num_heads, self.num_groups, self.head_dim
        normed_RD = normed_BND.flatten(0, 1).to(self.qkv_DX.dtype)
        if self.bias_X is None:
            y_RX = normed_RD @ self.qkv_DX
        else:
            y_RX = torch.addmm(self.bias_X, normed_RD, self.qkv_DX)
        y_BXNE = y_RX.view(B, N, -1, E).transpose(1, 2)
        qk_BXNE, v_BGNE = y_BXNE[:, : H + G], y_BXNE[:, H + G :]
        if self.gain_H1E is not None:
            qk_BXNE = F.rms_norm(qk_BXNE, (E,), None, self.gain_eps) * self.gain_H1E
        qk_BXNE = turns.turned(qk_BXNE)
        keys, values = kept.append(qk_BXNE[:, H:], v_BGNE, step)
        bias = step.bias_B1NK
        if bias is not None and H > G:
            bias = bias.repeat(1, 1, H // G, 1)
        # Heads that share their keys stand behind each other, as if they were positions.
        q_BGQE = qk_BXNE[:, :H].reshape(B, G, -1, E)
        if step.shared:
            y_BGQE = _attend_shared(q_BGQE, keys, values, step.shared, bias)
        else:
            y_BGQE = F.scaled_dot_product_attention(q_BGQE, keys, values, bias)
        return y_BGQE.reshape(B, H, N, E).transpose(1, 2).reshape(B * N, H * E)

    def _norm(self, norm: torch.nn.Module, x: Tensor, rows: Rows) -> Tensor:
        if self.experts:
            return norm(x, rows)
        return F.rms_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.eps)


def _attend_shared(
    q_BGQE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, shared: int, bias: Tensor | None
) -> Tensor:
    """Attention of rows whose first `shared` keys and values are the same: those are read once, by
    the queries of all rows together (Juravsky et al. 2024, Hydragen)."""
    B, G, Q, E = q_BGQE.shape
    q_BGQE = q_BGQE * E**-0.5
    together = q_BGQE.transpose(0, 1).reshape(G, B * Q, E) @ k_BGKE[0, :, :shared].mT
    scores = together.view(G, B, Q, shared).transpose(0, 1)
    scores = torch.cat([scores, q_BGQE @ k_BGKE[:, :, shared:].mT], -1)
    if bias is not None:
        scores = scores + bias
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(-1, dtype=wide).to(v_BGKE.dtype)
    together = weights[..., :shared].transpose(0, 1).reshape(G, B * Q, shared)
    y_BGQE = (together @ v_BGKE[0, :, :shared]).view(G, B, Q, E).transpose(0, 1)
    return y_BGQE + weights[..., shared:] @ v_BGKE[:, :, shared:]


def _side_by_side(weights: list[Tensor], dtype: torch.dtype) -> Tensor:
    """(in, out) of weights (out, in): a single position is multiplied faster so."""
    return torch.cat([w.detach().to(dtype) for w in weights]).T.contiguous()


def _plus_product(x_RD: Tensor, y_RX: Tensor, weight_XD: Tensor) -> Tensor:
    if x_RD.dtype == weight_XD.dtype:
        return torch.addmm(x_RD, y_RX, weight_XD)
    return x_RD + y_RX @ weight_XD  # the sum is kept in a wider type than the products
