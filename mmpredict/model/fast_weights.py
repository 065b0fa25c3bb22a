"""Fast weights: a memory that is written while the sequence is read (the gated delta rule).

In: the trunk's positions, and where documents begin. Out: what the memory answers at every
position, and the memory itself, to be handed to the next call.

Per head a matrix S of key by value, and per position a query q, a key k, a value v, a strength b
and a decay a (Yang, Kautz & Hatamizadeh 2024, arXiv 2412.06464, eq. 10, transposed here):

    S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T        o_t = S_t^T q_t

What is stored under k_t is replaced by v_t to the share b_t; all else fades by a_t. `recurrence`
says just that, step by step; `chunked` computes the same for whole chunks at a time.

Shapes: B rows, L positions, H heads, K values of a key, V of a value, D model width, N chunks of
    C positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHORTEST_HALF_LIFE, LONGEST_HALF_LIFE = 8.0, 4096.0  # positions, of the heads at initialisation
UNIT_DECAY = math.log(math.e - 1)  # softplus of it is 1
NORM_EPS = 1e-6


@dataclass(frozen=True)
class FastWeightsConfig:
    """Size of the memory, and in which layers it stands.

    Args:
        every: in every so many-th layer, from the `every`-th on; 0 for none.
        num_heads: memories side by side in a layer.
        key_dim: values of a key; about so many pairs fit into one memory.
        value_dim: values of a value.
        chunk: positions that are computed at a time; changes the speed, not the result.
        negative_eigenvalues: strengths up to 2 in place of 1, so that a write can also turn the
            sign of what is stored (Grazzi et al. 2024, arXiv 2411.12537).
    """

    every: int = 2
    num_heads: int = 4
    key_dim: int = 32
    value_dim: int = 32
    chunk: int = 64
    negative_eigenvalues: bool = False

    def __post_init__(self) -> None:
        for name in ("num_heads", "key_dim", "value_dim", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"predictor.fast_weights.{name}={getattr(self, name)} must be at least 1"
                )
        if self.every < 0:
            raise ValueError(f"predictor.fast_weights.every={self.every} must be 0 (none) or more")

    def in_layer(self, layer: int) -> bool:
        """Whether this layer (from 0) has a memory."""
        return self.every > 0 and (layer + 1) % self.every == 0


class Steps(NamedTuple):
    """What is done at each position.

    Args:
        q_BHLK, k_BHLK: queries and keys, of length 1 or less.
        v_BHLV: values.
        strength_BHL: share of what is stored under the key that is replaced.
        log_decay_BHL: logarithm of the share of the memory that is kept, at most 0.
        first_BL: True empties the memory before the position is read.
    """

    q_BHLK: Tensor
    k_BHLK: Tensor
    v_BHLV: Tensor
    strength_BHL: Tensor
    log_decay_BHL: Tensor
    first_BL: Tensor


def recurrence(steps: Steps, state_BHKV: Tensor) -> tuple[Tensor, Tensor]:
    """Answers (B, H, L, V) and the state after the last position; one position after the other."""
    keep_BHL = steps.log_decay_BHL.exp() * ~steps.first_BL[:, None]
    answers = []
    for t in range(steps.first_BL.shape[1]):
        q_BHK, k_BHK, v_BHV = (x[:, :, t] for x in steps[:3])
        state_BHKV = keep_BHL[:, :, t, None, None] * state_BHKV
        stored_BHV = torch.einsum("bhk,bhkv->bhv", k_BHK, state_BHKV)
        change_BHV = steps.strength_BHL[:, :, t, None] * (v_BHV - stored_BHV)
        state_BHKV = state_BHKV + k_BHK[..., None] * change_BHV[..., None, :]
        answers.append(torch.einsum("bhk,bhkv->bhv", q_BHK, state_BHKV))
    return torch.stack(answers, dim=2), state_BHKV


def chunked(steps: Steps, state_BHKV: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """What `recurrence` returns, by matrix products over chunks of positions.

    Within a chunk that begins with the state S, the changes u_i = b_i (v_i - a_i S_{i-1}^T k_i)
    solve (I + A) U = b (V - c K S), where A_ij = b_i d_ij k_i.k_j for j < i, d_ij is the product of
    the decays from j + 1 to i and c_i that from the chunk's start to i (the WY form; Yang et al.
    2024, arXiv 2406.06484, with the decays of arXiv 2412.06464). So U = U0 - W S with U0 and W of
    all chunks at once, and the state moves from chunk to chunk by one linear map, S <- M S + E.

    A document's border sets d_ij and c_i that reach across it to exactly 0, so that nothing leaks,
    whatever the decays. d_ij is exp of a sum of at most C decays that is formed for each i and j:
    the difference of two running sums would lose the small decays behind a large one.
    """
    L = steps.first_BL.shape[1]
    q, k, v, strength, log_decay, first = _cut(steps, min(chunk, L))
    document_BNC = first.cumsum(-1)[:, None]  # 0: that which the state came from
    decay_CC, decay_C = _decays(log_decay, document_BNC)
    solved = torch.linalg.solve_triangular(
        strength[..., None] * decay_CC * (k @ k.mT),
        strength[..., None] * torch.cat([v, decay_C[..., None] * k], dim=-1),
        upper=False,
        unitriangular=True,  # reads below the diagonal only, and takes 1 for it
    )
    u0, w = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    k_to_end = (decay_CC[..., -1, :, None] * k).mT
    kept = torch.diag_embed(decay_C[..., -1:].expand(*decay_C.shape[:-1], k.shape[-1]))
    moves, enters = kept - k_to_end @ w, k_to_end @ u0
    states = [state_BHKV]
    for move_BHKK, enter_BHKV in zip(moves.unbind(2), enters.unbind(2), strict=True):
        states.append(enter_BHKV + move_BHKK @ states[-1])
    before = torch.stack(states[:-1], dim=2)
    answers = (decay_C[..., None] * q) @ before + (decay_CC * (q @ k.mT)) @ (u0 - w @ before)
    return answers.flatten(2, 3)[:, :, :L], states[-1]


def _cut(steps: Steps, chunk: int) -> list[Tensor]:
    """Each of the steps as (B, [H,] N, C, ...); what fills up the last chunk changes nothing."""
    missing = -steps.first_BL.shape[1] % chunk
    wide = [F.pad(x, (0, 0, 0, missing)).unflatten(2, (-1, chunk)) for x in steps[:3]]
    return wide + [F.pad(x, (0, missing)).unflatten(-1, (-1, chunk)) for x in steps[3:]]


def _decays(log_decay_BHNC: Tensor, document_BNC: Tensor) -> tuple[Tensor, Tensor]:
    """(..., C, C): what is left at i of what was written at j; (..., C): of the chunk's start."""
    C = log_decay_BHNC.shape[-1]
    after = torch.ones(C, C, dtype=torch.bool, device=log_decay_BHNC.device).tril(-1)
    sums = log_decay_BHNC[..., None].expand(*log_decay_BHNC.shape, C)
    sums = sums.masked_fill(~after, 0.0).cumsum(-2)
    seen = (document_BNC[..., :, None] == document_BNC[..., None, :]).tril()
    since_start = log_decay_BHNC.cumsum(-1).masked_fill(document_BNC > 0, -torch.inf)
    return sums.masked_fill(~seen, -torch.inf).exp(), since_start.exp()


class FastWeights(nn.Module):
    """The memory as a block of the trunk: x + FastWeights(norm x).

    A position sees itself and earlier positions of its document, never a later one. Inside a block
    of several positions (a frame) a patch so sees the patches before it only, though attention
    shows it all of them: stricter than causal by blocks, so what comes next still cannot be seen.

    The output projection begins at 0: put into a trained model, the block changes nothing at first.
    The state is float32 whatever the autocast, and of constant size. Between segments of a long
    document hand it on; `detach` it there to cut the gradient.

    Args:
        dim: model width.
        config: sizes.
    """

    def __init__(self, dim: int, config: FastWeightsConfig) -> None:
        super().__init__()
        self.config = config
        H, key, value = config.num_heads, config.key_dim, config.value_dim
        self.q_proj = nn.Linear(dim, H * key, bias=False)
        self.k_proj = nn.Linear(dim, H * key, bias=False)
        self.v_proj = nn.Linear(dim, H * value, bias=False)
        self.gate_proj = nn.Linear(dim, H * value, bias=False)
        self.strength_proj = nn.Linear(dim, H, bias=False)
        self.decay_proj = nn.Linear(dim, H, bias=False)
        self.log_rate = nn.Parameter(torch.empty(H))
        self.o_norm = nn.RMSNorm(value, eps=NORM_EPS)
        self.o_proj = nn.Linear(H * value, dim, bias=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Projections N(0, 1/sqrt(fan in)), the output 0, half-lives spread over the heads."""
        for module in self.children():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        nn.init.zeros_(self.o_proj.weight)
        ends = (math.log(SHORTEST_HALF_LIFE), math.log(LONGEST_HALF_LIFE))
        half_life = torch.linspace(*ends, self.config.num_heads).exp()
        self.log_rate.copy_((math.log(2) / half_life).log())

    def new_state(self, num_rows: int, device: torch.device | str | None = None) -> Tensor:
        """(B, H, K, V) float32: the empty memory."""
        c = self.config
        return torch.zeros(num_rows, c.num_heads, c.key_dim, c.value_dim, device=device)

    def forward(
        self,
        x_BLD: Tensor,
        first_BL: Tensor,
        state: Tensor | None = None,
        *,
        live_BL: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What the memory says, and the memory after the last position.

        Args:
            x_BLD: normalised positions.
            first_BL: bool, True at the first position of each document: the memory is emptied.
            state: (B, H, K, V) from an earlier call; None for an empty memory.
            live_BL: bool; where False (padding), the memory is left as it is.
        """
        steps = self.steps(x_BLD, first_BL, live_BL)
        empty = self.new_state(len(x_BLD), x_BLD.device).to(steps.q_BHLK.dtype)
        state = empty if state is None else state
        if state.shape != empty.shape:
            want, got = tuple(empty.shape), tuple(state.shape)
            raise ValueError(f"the fast-weight state is {got}, rows and config ask for {want}")
        with torch.autocast(x_BLD.device.type, enabled=False):
            if x_BLD.shape[1] == 1:  # a step of a rollout
                o_BHLV, state = recurrence(steps, state)
            else:
                o_BHLV, state = chunked(steps, state, self.config.chunk)
            o_BLHV = self.o_norm(o_BHLV.transpose(1, 2).to(self.o_norm.weight.dtype))
        gate = F.silu(self.gate_proj(x_BLD))
        return self.o_proj(o_BLHV.flatten(2).to(gate.dtype) * gate), state

    def steps(self, x_BLD: Tensor, first_BL: Tensor, live_BL: Tensor | None = None) -> Steps:
        """What is read and written at each position, in float32 (float64 for float64)."""
        wide = torch.promote_types(x_BLD.dtype, torch.float32)

        def heads(y_BLX: Tensor) -> Tensor:
            return y_BLX.to(wide).unflatten(-1, (self.config.num_heads, -1)).transpose(1, 2)

        q, k = (_unit(F.silu(heads(p(x_BLD)))) for p in (self.q_proj, self.k_proj))
        v = F.silu(heads(self.v_proj(x_BLD)))
        strength = heads(self.strength_proj(x_BLD))[..., 0].sigmoid()
        if self.config.negative_eigenvalues:
            strength = 2 * strength
        faster = F.softplus(heads(self.decay_proj(x_BLD))[..., 0] + UNIT_DECAY)
        log_decay = -self.log_rate.to(wide).exp()[:, None] * faster
        if live_BL is not None:
            strength, log_decay = (x * live_BL[:, None] for x in (strength, log_decay))
            first_BL = first_BL & live_BL
        return Steps(q, k, v, strength, log_decay, first_BL)


def _unit(x: Tensor) -> Tensor:
    """Of length 1; 0 stays 0."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + NORM_EPS)
