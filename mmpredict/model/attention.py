"""The attention layer: projections, positions, and the way back. Who looks at whom is decided in
`sight.py`, where positions become angles in `rotary.py`.

Shapes: B rows, L positions, D model width, H query heads, G key/value heads, E values per head.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from mmpredict.model.norm import RMSNorm
from mmpredict.model.rotary import rotate
from mmpredict.model.sight import Sight, attend


@dataclass(frozen=True)
class AttentionConfig:
    """One attention layer.

    Args:
        num_heads: query heads.
        num_kv_heads: key/value heads (grouped queries, Ainslie et al. 2023); 0 for as many.
        head_dim: values per head; 0 for dim / num_heads.
        qk_norm: normalise queries and keys per head.
        bias: of the projections to queries, keys and values.
        norm_eps: of those norms.
    """

    num_heads: int
    num_kv_heads: int = 0
    head_dim: int = 0
    qk_norm: bool = True
    bias: bool = False
    norm_eps: float = 1e-6


class Attention(nn.Module):
    """Multi-head attention with grouped queries and RMS-normed queries and keys.

    Args:
        dim: model width.
        config: heads.
    """

    def __init__(self, dim: int, config: AttentionConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim or dim // config.num_heads
        q_dim = config.num_heads * self.head_dim
        kv_dim = (config.num_kv_heads or config.num_heads) * self.head_dim
        self.q_proj = nn.Linear(dim, q_dim, bias=config.bias)
        self.k_proj = nn.Linear(dim, kv_dim, bias=config.bias)
        self.v_proj = nn.Linear(dim, kv_dim, bias=config.bias)
        self.o_proj = nn.Linear(q_dim, dim, bias=False)
        normed = config.qk_norm
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps) if normed else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps) if normed else nn.Identity()

    def queries_keys_values(
        self, x_BLD: Tensor, table: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, H, L, E), (B, G, L, E), (B, G, L, E); queries and keys normed and turned."""

        def heads(y: Tensor) -> Tensor:
            return y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

        q, k, v = heads(self.q_proj(x_BLD)), heads(self.k_proj(x_BLD)), heads(self.v_proj(x_BLD))
        q, k = self.q_norm(q), self.k_norm(k)
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        return q, k, v.to(q.dtype)

    def forward(
        self,
        x_BLD: Tensor,
        sight: Sight | None = None,
        table: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        q, k, v = self.queries_keys_values(x_BLD, table)
        return self.project(attend(q, k, v, sight))

    def project(self, y_BHLE: Tensor) -> Tensor:
        """The heads' answers back to the model's width."""
        return self.o_proj(y_BHLE.transpose(1, 2).flatten(2))
