"""A layer as a rollout walks through it: new positions only, its weights side by side.

The same function as `Layer.forward` (tests/model/test_cache.py), for steps of one or a few
positions, where not the products take the time but their number: queries, keys and values are one
product, gate and up are one, each weight lies as the products read it, a norm's gains are
multiplied into the weights behind it, and a sum goes into the product before it.

Shapes: B rows, N new positions, R = B N of all rows, D model width, H query heads, G key/value
heads, X = H + 2 G, E values per head, K positions that are looked at, F inner width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmpredict.model.cache import LayerCache, Step
from mmpredict.model.layers import Layer, Rows
from mmpredict.model.rotary import RotaryConfig, axes, frequencies, in_ticks


class Turns(NamedTuple):
    """Cosines and signed sines of the new positions, (B, N, 1, E)."""

    cos: Tensor
    sin: Tensor

    def turn_(self, x_BNXE: Tensor) -> None:
        """In place what `rotary.rotate` does: (a, b) becomes (a cos - b sin, b cos + a sin)."""
        other_BNXE = x_BNXE.roll(x_BNXE.shape[-1] // 2, -1)
        torch.addcmul(x_BNXE * self.cos, other_BNXE, self.sin, out=x_BNXE)


class Turner:
    """Makes the `Turns` of new positions; what is the same at every step is made once.

    Args:
        head_dim: E.
        config: of the rotary positions.
        dtype: of queries and keys.
        device: of the positions.
    """

    def __init__(
        self, head_dim: int, config: RotaryConfig, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.config, self.dtype = config, dtype
        self.axis_E = axes(head_dim, device).repeat(2)
        frequency = frequencies(head_dim, config, device)
        self.frequency_E = torch.cat([-frequency, frequency])  # a sine takes over the sign

    def __call__(self, positions_BN3: Tensor) -> Turns:
        ticks_BNE = in_ticks(positions_BN3, self.config).index_select(-1, self.axis_E)
        angle_BN1E = (ticks_BNE * self.frequency_E)[:, :, None]
        return Turns(angle_BN1E.cos().to(self.dtype), angle_BN1E.sin().to(self.dtype))


class Unit:
    """An RMS norm up to a factor for each value, `gain`, which the weights behind it can take over.

    With l the length of x and D its values, x / sqrt(l^2 / D + eps) is sqrt(D) x / hypot(l, sqrt(D
    eps)).
    """

    def __init__(self, norm: torch.nn.RMSNorm) -> None:
        D, wide = norm.weight.numel(), torch.promote_types(norm.weight.dtype, torch.float32)
        self.gain = D**0.5 * norm.weight.detach()
        self.least = self.gain.new_full((), (D * norm.eps) ** 0.5, dtype=wide)

    def __call__(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=self.least.dtype)
        return x / torch.hypot(length, self.least)


class SteppedLayer:
    """One layer for steps. It holds copies of the weights as they are when it is made.

    Args:
        layer: of the trunk.
        dtype: of products, keys and values.
    """

    def __init__(self, layer: Layer, dtype: torch.dtype) -> None:
        self.layer, self.experts, self.dtype = layer, layer.experts, dtype
        attention = layer.attention
        self.head_dim = attention.head_dim
        self.num_groups = attention.k_proj.out_features // self.head_dim
        self.num_heads = attention.q_proj.out_features // self.head_dim
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.attention_unit = None if self.experts else Unit(layer.attention_norm)
        self.qkv_DX = _side_by_side(parts, dtype, self.attention_unit)
        biases = [p.bias for p in parts]
        self.bias_X = None if biases[0] is None else torch.cat(biases).detach().to(dtype)
        self.out_XD = _side_by_side([attention.o_proj], dtype)
        self.head_unit = None
        if isinstance(attention.q_norm, torch.nn.RMSNorm):
            self.head_unit, keys = Unit(attention.q_norm), Unit(attention.k_norm)
            gains = [self.head_unit.gain] * self.num_heads + [keys.gain] * self.num_groups
            self.gain_XE = torch.stack(gains).to(dtype)
        if not self.experts:
            inner = layer.feed_forward
            self.inner_unit = Unit(layer.feed_forward_norm)
            parts = (inner.gate_proj, inner.up_proj)
            self.gate_up_DF = _side_by_side(parts, dtype, self.inner_unit)
            self.down_FD = _side_by_side([inner.down_proj], dtype)

    def extend(
        self, x_RD: Tensor, rows: Rows, turns: Turns, kept: LayerCache, step: Step
    ) -> Tensor:
        """What `Layer.forward` says of new positions that follow those in the cache."""
        B, layer = kept.both.shape[1], self.layer
        if self.experts:
            normed_RD = layer.attention_norm(x_RD.unflatten(0, (B, -1)), rows).flatten(0, 1)
        else:
            normed_RD = self.attention_unit(x_RD)
        y_RX = self._attended(normed_RD.to(self.dtype), turns, kept, step)
        x_RD = _plus_product(x_RD, y_RX, self.out_XD)
        if layer.memory is not None:
            x_RD = x_RD + self._remembered(x_RD.unflatten(0, (B, -1)), rows, kept, step)
        if self.experts:
            return x_RD + layer.fed_forward(x_RD.unflatten(0, (B, -1)), rows).flatten(0, 1)
        normed_RD = self.inner_unit(x_RD).to(self.dtype)
        gate_RF, up_RF = (normed_RD @ self.gate_up_DF).chunk(2, -1)
        return _plus_product(x_RD, F.silu(gate_RF).mul_(up_RF), self.down_FD)

    def _attended(self, normed_RD: Tensor, turns: Turns, kept: LayerCache, step: Step) -> Tensor:
        """(R, H E): the heads' answers."""
        B, H, G, E = kept.both.shape[1], self.num_heads, self.num_groups, self.head_dim
        if self.bias_X is None:
            y_RX = normed_RD @ self.qkv_DX
        else:
            y_RX = torch.addmm(self.bias_X, normed_RD, self.qkv_DX)
        y_BNXE = y_RX.view(B, -1, H + 2 * G, E)
        qk_BNXE = y_BNXE[:, :, : H + G]
        if self.head_unit is not None:
            torch.mul(self.head_unit(qk_BNXE), self.gain_XE, out=qk_BNXE)
        turns.turn_(qk_BNXE)
        keys, values = kept.append(y_BNXE[:, :, H:], step)
        bias = step.bias_B1NK
        if bias is not None and H > G:
            bias = bias.repeat(1, 1, H // G, 1)
        # Heads that share their keys stand behind each other, as if they were positions.
        q_BGQE = y_BNXE[:, :, :H].transpose(1, 2).reshape(B, G, -1, E)
        if step.shared:
            y_BGQE = _attend_shared(q_BGQE, keys, values, step.shared, bias)
        else:
            y_BGQE = F.scaled_dot_product_attention(q_BGQE, keys, values, bias)
        return y_BGQE.reshape(B, H, -1, E).transpose(1, 2).reshape(-1, H * E)

    def _remembered(self, x_BND: Tensor, rows: Rows, kept: LayerCache, step: Step) -> Tensor:
        """(R, D): the answers of the fast weights."""
        layer = self.layer
        normed_BND = layer.memory_norm(x_BND, rows) if self.experts else layer.memory_norm(x_BND)
        y_BND, state = layer.memory(normed_BND, rows.first_BL, kept.state, live_BL=step.live_BN)
        kept.state.copy_(state)
        return y_BND.flatten(0, 1)


class SteppedTrunk(NamedTuple):
    """What makes the steps of a trunk; shared by all caches that come from one."""

    layers: Sequence[SteppedLayer]
    turner: Turner


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


def _side_by_side(
    parts: Sequence[torch.nn.Linear], dtype: torch.dtype, behind: Unit | None = None
) -> Tensor:
    """(in, out) of weights (out, in): a single position is multiplied faster so. They take over the
    gains of the norm that they stand behind."""
    weight = torch.cat([part.weight.detach() for part in parts])
    if behind is not None:
        weight *= behind.gain
    return weight.to(dtype).T.contiguous()


def _plus_product(x_RD: Tensor, y_RX: Tensor, weight_XD: Tensor) -> Tensor:
    if x_RD.dtype == weight_XD.dtype:
        return torch.addmm(x_RD, y_RX, weight_XD)
    return x_RD + y_RX @ weight_XD  # the sum is kept in a wider type than the products
