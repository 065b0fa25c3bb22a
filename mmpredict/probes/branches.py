"""Many continuations of one reading. In: a row, and words that may follow it, in branches. Out: the
trunk's view of every word, as if its branch alone followed.

Attention sees a tree: a word looks at the row, at the branch that its own grew from, and at its
own, so that row and branches are one pass of the trunk. Memories of fast weights have no such
picture: there, the row is read into a cache, and the cache is spread to all branches.

Shapes: L positions of the row, N of all branches, B branches, D model width, E values per head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmpredict.model import Predictor
from mmpredict.model.cache import Cache
from mmpredict.model.layers import Rows
from mmpredict.model.rotary import rotary_table
from mmpredict.model.sight import Sight, cached_mask
from mmpredict.schema import Batch, StreamSpec
from mmpredict.sequence import split_blocks

READ_AT_ONCE = 512  # positions of a row per pass into the cache
SPREAD_AT_ONCE = 16  # branches that have a cache at a time


@dataclass(frozen=True)
class Branch:
    """Words that follow the row, or another branch.

    Args:
        ids: at least one.
        seconds: where each stands on the time axis.
        parent: number of the branch that it follows, an earlier one that follows the row; -1 where
            it follows the row itself.
    """

    ids: tuple[int, ...]
    seconds: tuple[float, ...]
    parent: int = -1


@dataclass(frozen=True)
class Views:
    """What the trunk makes of a row and its branches.

    Args:
        row_D: of the row's last position; None for an empty row.
        branches: (words, D) of each branch.
    """

    row_D: Tensor | None
    branches: list[Tensor]


@torch.no_grad()
def read_branches(
    predictor: Predictor, row: Batch | None, branches: Sequence[Branch], spec: StreamSpec
) -> Views:
    """Read a row once, and all branches after it.

    Args:
        predictor: in evaluation mode.
        row: one document; None where the branches begin the row.
        branches: parents before their children.
        spec: the branches' stream, of ids.
    """
    device = predictor.trunk.norm.weight.device
    row = None if row is None else row.to(device)
    if predictor.config.fast_weights is None:
        return _as_tree(predictor, row, branches, spec)
    return _spread(predictor, row, branches, spec)


def _vectors(predictor: Predictor, spec: StreamSpec, ids: Sequence[int]) -> Tensor:
    ids_N = torch.tensor(ids, dtype=torch.int64, device=predictor.trunk.norm.weight.device)
    return predictor.embed.vectors(spec, ids_N)


def _as_tree(
    predictor: Predictor, row: Batch | None, branches: Sequence[Branch], spec: StreamSpec
) -> Views:
    trunk, embed = predictor.trunk, predictor.embed
    L = 0 if row is None else row.modality.shape[1]
    flat = [i for branch in branches for i in branch.ids]
    x_1ND = _vectors(predictor, spec, flat)[None] if flat else None
    positions_1N3 = torch.zeros(1, len(flat), 3, device=trunk.norm.weight.device)
    positions_1N3[..., 0] = positions_1N3.new_tensor([s for b in branches for s in b.seconds])
    stream_L = torch.full((len(flat),), embed.index[spec.name], device=positions_1N3.device)
    if row is not None:
        x_1LD = embed(row)
        x_1ND = x_1LD if x_1ND is None else torch.cat([x_1LD, x_1ND], 1)
        positions_1N3 = torch.cat([row.positions, positions_1N3], 1)
        numbers = {s.modality: embed.index[s.name] for s in predictor.layout.streams}
        mine_L = torch.tensor([numbers[m] for m in row.modality[0].tolist()])
        stream_L = torch.cat([mine_L.to(stream_L.device), stream_L])
    config = trunk.config
    table = rotary_table(positions_1N3, config.attention_layer.head_dim, config.rotary)
    members = tuple((stream_L == n).nonzero()[:, 0] for n in range(len(embed.index)))
    sight = Sight.of(_tree_mask(row, branches, config.window).to(stream_L.device))
    rows = Rows(sight, table, None, stream_L[None], members)
    for layer in trunk.layers:
        x_1ND = layer.forward(x_1ND, rows)
    hidden_ND = trunk.norm(x_1ND)[0]
    views = list(hidden_ND[L:].split([len(branch.ids) for branch in branches])) if branches else []
    return Views(hidden_ND[L - 1] if L else None, views)


def _tree_mask(row: Batch | None, branches: Sequence[Branch], window: int) -> Tensor:
    """(1, 1, L + N, L + N) bool: the law of the trunk, along each branch as if it were the row."""
    block = [] if row is None else row.block_id[0].tolist()
    index, first = list(range(len(block))), (block[-1] + 1 if block else 0)
    L, lengths = len(block), [len(branch.ids) for branch in branches]
    for branch in branches:
        before = lengths[branch.parent] if branch.parent >= 0 else 0
        block += range(first + before, first + before + len(branch.ids))
        index += range(L + before, L + before + len(branch.ids))
    numbers = torch.arange(len(branches))
    parents = torch.tensor([branch.parent for branch in branches], dtype=torch.int64)
    repeats = torch.tensor(lengths, dtype=torch.int64)
    # A branch that follows the row has no parent: -2 is nobody's number, -1 the row's.
    own_L = torch.cat([torch.full((L,), -1), numbers.repeat_interleave(repeats)])
    above = torch.where(parents < 0, -2, parents)
    above_L = torch.cat([torch.full((L,), -2), above.repeat_interleave(repeats)])
    of_key_1L, of_query_L1 = own_L[None], own_L[:, None]
    kin_LL = (of_key_1L == -1) | (of_key_1L == of_query_L1) | (of_key_1L == above_L[:, None])
    block_1L, index_1L = torch.tensor(block)[None], torch.tensor(index)[None]
    return cached_mask(block_1L, index_1L, block_1L, index_1L, window=window) & kin_LL


def _spread(
    predictor: Predictor, row: Batch | None, branches: Sequence[Branch], spec: StreamSpec
) -> Views:
    """Every branch with its parent is a row of its own; what pads short ones comes after them."""
    paths = [
        ((*branches[b.parent].ids, *b.ids), (*branches[b.parent].seconds, *b.seconds))
        if b.parent >= 0
        else (b.ids, b.seconds)
        for b in branches
    ]
    L = 0 if row is None else row.modality.shape[1]
    longest = max((len(ids) for ids, _ in paths), default=0)
    cache = predictor.trunk.new_cache(1, L + max(longest, predictor.trunk.longest_block))
    row_D = None if row is None else _read_row(predictor, row, cache)
    views: list[Tensor] = []
    for start in range(0, len(paths), SPREAD_AT_ONCE):
        here = paths[start : start + SPREAD_AT_ONCE]
        N = max(len(ids) for ids, _ in here)
        ids = [i for ids, _ in here for i in (*ids, *[0] * (N - len(ids)))]
        x_BND = _vectors(predictor, spec, ids).view(len(here), N, -1)
        positions_BN3 = torch.zeros(len(here), N, 3, device=x_BND.device)
        for number, (_, seconds) in enumerate(here):
            positions_BN3[number, : len(seconds), 0] = torch.tensor(seconds)
        hidden_BND = predictor.trunk.extend(
            x_BND,
            positions_BN3,
            cache.spread(len(here)),
            blocks=[1] * N,
            streams=[predictor.embed.index[spec.name]] * N,
        )
        for number, (ids, _) in enumerate(here):
            own = len(branches[start + number].ids)
            views.append(hidden_BND[number, len(ids) - own : len(ids)])
    return Views(row_D, views)


def _read_row(predictor: Predictor, row: Batch, cache: Cache) -> Tensor:
    """Read a row into an empty cache; the trunk's view of its last position."""
    x_1LD, start = predictor.embed(row), 0
    hidden_1ND = x_1LD
    for piece in split_blocks(row, max(READ_AT_ONCE, predictor.trunk.longest_block)):
        stop = start + piece.modality.shape[1]
        begins_N = piece.block_id[0].diff(prepend=torch.tensor([-1], device=x_1LD.device)) != 0
        specs = [predictor.layout[m] for m in piece.modality[0][begins_N].tolist()]
        hidden_1ND = predictor.trunk.extend(
            x_1LD[:, start:stop],
            row.positions[:, start:stop],
            cache,
            blocks=[s.positions_per_block for s in specs],
            streams=[predictor.embed.index[s.name] for s in specs],
        )
        start = stop
    return hidden_1ND[0, -1]
