"""Many continuations of one reading. In: a row, and what may follow it, in branches: words, and
what goes on while they are said. Out: the trunk's view of every position, as if its branch alone
followed.

Attention sees a tree: a block looks at the row, at the branch that its own grew from, and at its
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
from mmpredict.sequence import pack, split_blocks

READ_AT_ONCE = 512  # positions of a row per pass into the cache
SPREAD_AT_ONCE = 16  # branches that have a cache at a time


@dataclass(frozen=True)
class Branch:
    """Blocks that follow the row, or another branch.

    Args:
        row: the blocks, as one document; None for none.
        seconds: where each position stands on the time axis.
        parent: number of the branch that it follows, an earlier one that follows the row; -1 where
            it follows the row itself.
    """

    row: Batch | None
    seconds: tuple[float, ...]
    parent: int = -1

    def __len__(self) -> int:
        """Positions."""
        return len(self.seconds)

    @property
    def positions_N3(self) -> Tensor:
        """(seconds, y, x) of each position; the row's own seconds begin anew."""
        if self.row is None:
            return torch.zeros(0, 3)
        return torch.cat([torch.tensor(self.seconds)[:, None], self.row.positions[0, :, 1:]], 1)

    def specs(self, predictor: Predictor) -> list[StreamSpec]:
        """The stream of each block."""
        return _specs(predictor, self.row) if len(self) else []


@dataclass(frozen=True)
class Views:
    """What the trunk makes of a row and its branches.

    Args:
        row_D: of the row's last position; None for an empty row.
        branches: (positions, D) of each branch.
    """

    row_D: Tensor | None
    branches: list[Tensor]


@torch.no_grad()
def read_branches(predictor: Predictor, row: Batch | None, branches: Sequence[Branch]) -> Views:
    """Read a row once, and all branches after it.

    Args:
        predictor: in evaluation mode.
        row: one document; None where the branches begin the row.
        branches: parents before their children.
    """
    device = predictor.trunk.norm.weight.device
    row = None if row is None else row.to(device)
    if predictor.config.fast_weights is None:
        return _as_tree(predictor, row, branches)
    return _spread(predictor, row, branches)


def _embedded(predictor: Predictor, branches: Sequence[Branch]) -> list[Tensor]:
    """(N, D) of each branch; all go through the encoders at once."""
    device, dim = predictor.trunk.norm.weight.device, predictor.config.dim
    rows = [branch.row for branch in branches if len(branch)]
    found = iter(())
    if rows:
        batch = pack([[row] for row in rows], max(row.modality.shape[1] for row in rows))
        x_BLD = predictor.embed(batch.to(device))
        found = iter(x_LD[: row.modality.shape[1]] for x_LD, row in zip(x_BLD, rows, strict=True))
    return [next(found) if len(b) else torch.zeros(0, dim, device=device) for b in branches]


def _streams_of(predictor: Predictor, row: Batch) -> list[int]:
    """The number of each position's stream, as the trunk counts them."""
    numbers = {s.modality: predictor.embed.index[s.name] for s in predictor.layout.streams}
    return [numbers[m] for m in row.modality[0].tolist()]


def _as_tree(predictor: Predictor, row: Batch | None, branches: Sequence[Branch]) -> Views:
    trunk, embed, device = predictor.trunk, predictor.embed, predictor.trunk.norm.weight.device
    L = 0 if row is None else row.modality.shape[1]
    parts = [] if row is None else [(embed(row)[0], row.positions[0], _streams_of(predictor, row))]
    parts += [
        (x_ND, branch.positions_N3.to(device), _streams_of(predictor, branch.row))
        for x_ND, branch in zip(_embedded(predictor, branches), branches, strict=True)
        if len(branch)
    ]
    if not parts:
        return Views(None, [torch.zeros(0, predictor.config.dim, device=device) for _ in branches])
    x_1ND = torch.cat([x for x, _, _ in parts])[None]
    positions_1N3 = torch.cat([p for _, p, _ in parts])[None]
    stream_L = torch.tensor([n for _, _, streams in parts for n in streams], device=device)
    config = trunk.config
    table = rotary_table(positions_1N3, config.attention_layer.head_dim, config.rotary)
    members = tuple((stream_L == n).nonzero()[:, 0] for n in range(len(embed.index)))
    sight = Sight.of(_tree_mask(row, branches, config.window).to(device))
    rows = Rows(sight, table, None, stream_L[None], members)
    for layer in trunk.layers:
        x_1ND = layer.forward(x_1ND, rows)
    hidden_ND = trunk.norm(x_1ND)[0]
    views = list(hidden_ND[L:].split([len(branch) for branch in branches])) if branches else []
    return Views(hidden_ND[L - 1] if L else None, views)


def _tree_mask(row: Batch | None, branches: Sequence[Branch], window: int) -> Tensor:
    """(1, 1, L + N, L + N) bool: the law of the trunk, along each branch as if it were the row."""
    block = [] if row is None else row.block_id[0].tolist()
    index, first = list(range(len(block))), (block[-1] + 1 if block else 0)
    L, lengths = len(block), [len(branch) for branch in branches]
    own = [branch.row.block_id[0].tolist() if len(branch) else [] for branch in branches]
    for branch, blocks in zip(branches, own, strict=True):
        above = own[branch.parent] if branch.parent >= 0 else []
        behind = first + (above[-1] + 1 if above else 0)
        block += [behind + number for number in blocks]
        index += range(L + len(above), L + len(above) + len(blocks))
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


def _spread(predictor: Predictor, row: Batch | None, branches: Sequence[Branch]) -> Views:
    """Every branch with its parent is a row of its own; those that are built alike go together."""
    device, dim = predictor.trunk.norm.weight.device, predictor.config.dim
    x_of = _embedded(predictor, branches)
    paths = [[*([b.parent] if b.parent >= 0 else []), n] for n, b in enumerate(branches)]
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, path in enumerate(paths):
        if len(branches[number]):
            specs = [s for n in path for s in branches[n].specs(predictor)]
            alike.setdefault(tuple(s.modality for s in specs), []).append(number)
    longest = max((sum(len(branches[n]) for n in path) for path in paths), default=0)
    L = 0 if row is None else row.modality.shape[1]
    cache = predictor.trunk.new_cache(1, L + max(longest, predictor.trunk.longest_block))
    row_D = None if row is None else _read_row(predictor, row, cache)
    views = [torch.zeros(0, dim, device=device) for _ in branches]
    for blocks, numbers in alike.items():
        specs = [predictor.layout[m] for m in blocks]
        for start in range(0, len(numbers), SPREAD_AT_ONCE):
            here = numbers[start : start + SPREAD_AT_ONCE]
            x_BND = torch.stack([torch.cat([x_of[n] for n in paths[i]]) for i in here])
            places = [torch.cat([branches[n].positions_N3 for n in paths[i]]) for i in here]
            hidden_BND = predictor.trunk.extend(
                x_BND,
                torch.stack(places).to(device),
                cache.spread(len(here)),
                blocks=[s.positions_per_block for s in specs],
                streams=[predictor.embed.index[s.name] for s in specs],
            )
            for i, hidden_ND in zip(here, hidden_BND, strict=True):
                views[i] = hidden_ND[-len(branches[i]) :]
    return Views(row_D, views)


def _specs(predictor: Predictor, row: Batch) -> list[StreamSpec]:
    """The stream of each block of a row."""
    begins_N = row.block_id[0].diff(prepend=row.block_id.new_tensor([-1])) != 0
    return [predictor.layout[m] for m in row.modality[0][begins_N].tolist()]


def _read_row(predictor: Predictor, row: Batch, cache: Cache) -> Tensor:
    """Read a row into an empty cache; the trunk's view of its last position."""
    x_1LD, start = predictor.embed(row), 0
    hidden_1ND = x_1LD
    for piece in split_blocks(row, max(READ_AT_ONCE, predictor.trunk.longest_block)):
        stop = start + piece.modality.shape[1]
        specs = _specs(predictor, piece)
        hidden_1ND = predictor.trunk.extend(
            x_1LD[:, start:stop],
            row.positions[:, start:stop],
            cache,
            blocks=[s.positions_per_block for s in specs],
            streams=[predictor.embed.index[s.name] for s in specs],
        )
        start = stop
    return hidden_1ND[0, -1]
