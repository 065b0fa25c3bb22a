"""What a predictor has read of rows that grow side by side, and what it says from there.

In: blocks, in the order of a row. Out: z and the previous block for whoever is next, and whose turn
it is. Every position passes the trunk once: its keys and values are kept, and of each stream the
trunk's view of the last block. Equal to `Predictor.hidden`, `condition` and `previous` on the whole
row (tests/generate/test_cached.py).

Shapes: B rows, L positions of a prompt, N new positions, P positions of a block, D model width,
W values per position, S streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from mmpredict.model import Predictor
from mmpredict.model.cache import Cache
from mmpredict.model.embed import Seen
from mmpredict.schema import Batch, StreamSpec

READ_AT_ONCE = 512  # positions of a prompt per pass of the trunk


class Fed(NamedTuple):
    """A block as the trunk is shown it, in row `row` of the tensors."""

    spec: StreamSpec
    x_BPD: Tensor
    positions_BP3: Tensor
    values_BPW: Tensor | None  # standardised; None for ids
    end_s: float
    row: int


@dataclass(frozen=True)
class Tail:
    """The last block of a stream, in each row.

    Args:
        hidden_BPD: the trunk's view of it.
        values_BPW: the block, standardised.
        end_s: when it ended; None where the row has none in sight.
    """

    hidden_BPD: Tensor
    values_BPW: Tensor
    end_s: tuple[float | None, ...]


def slides(predictor: Predictor, context_length: int) -> bool:
    """Whether a window of the attention limits what is in sight, and not the context's length."""
    return 0 < predictor.config.window < context_length


class Past:
    """Rows that have been read up to where the next block is asked for.

    Args:
        predictor: in evaluation mode.
        context_length: positions per row. Where the attention's window is shorter, only the window
            is kept, and rows may be of any length; otherwise `trim` must make room in time.
    """

    def __init__(self, predictor: Predictor, context_length: int) -> None:
        self.predictor, self.slides = predictor, slides(predictor, context_length)
        trunk = predictor.trunk
        capacity = context_length + trunk.longest_block  # rows that wait are computed along
        if self.slides:
            capacity = predictor.config.window - 1 + max(READ_AT_ONCE, trunk.longest_block)
        self.cache = trunk.new_cache(1, capacity)
        self.device = trunk.norm.weight.device
        self._last_BD: Tensor | None = None  # the trunk's view of the last position
        self._tails: dict[int, Tail] = {}
        self._fed: list[list[Fed]] = [[]]  # in sight, per row; the last of them are unread
        self._unread = [0]
        # Of memories, where the sight begins; None for empty ones.
        self._states: list[list[Tensor] | None] = [None]
        self._grids = {spec.modality: _grid(spec, self.device) for spec in predictor.layout.streams}

    @property
    def num_rows(self) -> int:
        return len(self._fed)

    def read(self, piece: Batch) -> None:
        """The same blocks follow in every row: a part of a prompt, one row without padding."""
        piece, embed = piece.to(self.device), self.predictor.embed
        x_1LD = embed(piece)
        values = {
            spec.modality: iter(embed.values(piece, spec.modality)[:, None])
            for spec in self.predictor.layout.streams
            if spec.modality in piece.contents and not spec.is_discrete
        }
        end_L, modality_L = piece.end_s[0].tolist(), piece.modality[0].tolist()
        specs, ends_s, start = [], [], 0
        while start < len(modality_L):
            specs.append(self.predictor.layout[modality_L[start]])
            ends_s.append(end_L[start])
            start += specs[-1].positions_per_block
        sizes = [spec.positions_per_block for spec in specs]
        x_L, positions_L = x_1LD.split(sizes, 1), piece.positions.split(sizes, 1)
        blocks = [
            Fed(spec, x, at, None if spec.is_discrete else next(values[spec.modality]), end_s, 0)
            for spec, x, at, end_s in zip(specs, x_L, positions_L, ends_s, strict=True)
        ]
        for row in range(self.num_rows):
            self._fed[row] += blocks
            self._unread[row] += len(blocks)

    def trim(self, row: int, count: int) -> None:
        """Put the oldest blocks of a row out of sight; the others are read anew.

        Fast weights keep what they saw: they go on from where they stood after the oldest blocks.
        """
        gone, self._fed[row] = self._fed[row][:count], self._fed[row][count:]
        part = self.cache.row(row)
        memories = [layer.state for layer in part.layers if layer.state is not None]
        if memories:
            self._begin(row, part)
            self._feed(part, [row], [gone])
            self._states[row] = [state.clone() for state in memories]
        self._begin(row, part)
        in_sight = {block.spec.modality for block in self._fed[row]}
        for modality, tail in self._tails.items():
            if modality not in in_sight:
                end_s = (*tail.end_s[:row], None, *tail.end_s[row + 1 :])
                self._tails[modality] = replace(tail, end_s=end_s)

    def _begin(self, row: int, part: Cache) -> None:
        """Forget what was read of a row, so that all in sight is unread."""
        part.empty(0)
        self.cache.empty(row)
        self._unread[row] = len(self._fed[row])
        memories = [layer.state for layer in part.layers if layer.state is not None]
        for index, memory in enumerate(memories):
            states = self._states[row]
            memory.zero_() if states is None else memory.copy_(states[index])

    def flush(self) -> None:
        """Read what has not been read."""
        if not any(self._unread):
            return
        new = [fed[len(fed) - count :] for fed, count in zip(self._fed, self._unread, strict=True)]
        kinds = [[block.spec.modality for block in blocks] for blocks in new]
        if all(kind == kinds[0] for kind in kinds):
            self._feed(self.cache, list(range(self.num_rows)), new)
        else:
            for row, blocks in enumerate(new):
                part = self.cache.row(row)
                self._feed(part, [row], [blocks])
                self.cache.lengths[row] = part.lengths[0]
        self._unread = [0] * self.num_rows
        if self.slides:  # nothing is ever read anew
            self._fed = [[] for _ in self._fed]

    def _feed(self, cache: Cache, rows: list[int], blocks: list[list[Fed]]) -> None:
        """Let the trunk read blocks of some rows, of the same kinds in all of them."""
        specs = [block.spec for block in blocks[0]]
        index = self.predictor.embed.index
        start = 0
        while start < len(specs):
            stop = start + _how_many(specs[start:], READ_AT_ONCE)
            here = [fed[start:stop] for fed in blocks]
            hidden_BND = self.predictor.trunk.extend(
                torch.stack([torch.cat([b.x_BPD[b.row] for b in fed]) for fed in here]),
                torch.stack([torch.cat([b.positions_BP3[b.row] for b in fed]) for fed in here]),
                cache,
                blocks=[spec.positions_per_block for spec in specs[start:stop]],
                streams=[index[spec.name] for spec in specs[start:stop]],
            )
            self._last_BD = self._replaced(self._last_BD, rows, hidden_BND[:, -1])
            self._renew_tails(rows, here, hidden_BND)
            start = stop

    def _renew_tails(self, rows: list[int], blocks: list[list[Fed]], hidden_BND: Tensor) -> None:
        stop, seen = hidden_BND.shape[1], set()
        for place in reversed(range(len(blocks[0]))):
            spec = blocks[0][place].spec
            start = stop - spec.positions_per_block
            if spec.modality not in seen and not spec.is_discrete:
                old = self._tails.get(spec.modality)
                ends = [None] * self.num_rows if old is None else list(old.end_s)
                for row, fed in zip(rows, blocks, strict=True):
                    ends[row] = fed[place].end_s
                values = torch.stack([f[place].values_BPW[f[place].row] for f in blocks])
                hidden = hidden_BND[:, start:stop]
                self._tails[spec.modality] = Tail(
                    self._replaced(None if old is None else old.hidden_BPD, rows, hidden),
                    self._replaced(None if old is None else old.values_BPW, rows, values),
                    tuple(ends),
                )
            seen.add(spec.modality)
            stop = start

    def _replaced(self, old: Tensor | None, rows: list[int], new: Tensor) -> Tensor:
        """`old` with some rows new."""
        if len(rows) == self.num_rows:
            return new
        old = new.new_zeros(self.num_rows, *new.shape[1:]) if old is None else old
        return old.index_copy(0, torch.tensor(rows, device=self.device), new)

    def spread(self, count: int) -> None:
        """Go on in `count` rows that all begin as the only one."""
        assert self.num_rows == 1 and not self._unread[0]
        self.cache = self.cache.spread(count)
        self._fed = [list(self._fed[0]) for _ in range(count)]
        self._unread, self._states = [0] * count, self._states * count
        if self._last_BD is not None:
            self._last_BD = self._last_BD.expand(count, -1)
        for modality, tail in self._tails.items():
            hidden, values = (x.expand(count, -1, -1) for x in (tail.hidden_BPD, tail.values_BPW))
            self._tails[modality] = Tail(hidden, values, tail.end_s * count)

    def add(
        self,
        spec: StreamSpec,
        contents: Tensor,
        ends_s: Sequence[float],
        *,
        seconds: Sequence[float],
        live: Sequence[bool] | None = None,
    ) -> None:
        """A block of one stream follows, in every row a different one.

        Args:
            contents: (B,) ids or (B, P, W) values as the encoder makes them.
            ends_s: when it ends, per row.
            seconds: where it stands on the time axis, per row.
            live: False for rows to which nothing is added; None where there are none.
        """
        model, P = self.predictor, spec.positions_per_block
        values_BPW = None
        if not spec.is_discrete:
            values_BPW = model.embed.standardise[spec.name](contents)
        seen = contents if values_BPW is None else Seen(values_BPW, values_BPW)
        x_BPD = model.embed.vectors(spec, seen).unflatten(0, (-1, P))
        positions_BP3 = self._positions(spec, seconds)
        streams = (model.embed.index[spec.name],)
        hidden_BPD = model.trunk.extend(
            x_BPD, positions_BP3, self.cache, streams=streams, live=live
        )
        rows = [row for row, on in enumerate(live or [True] * self.num_rows) if on]
        if not self.slides:
            for row in rows:
                block = Fed(spec, x_BPD, positions_BP3, values_BPW, ends_s[row], row)
                self._fed[row].append(block)
        if len(rows) < self.num_rows:
            self._last_BD = self._replaced(self._last_BD, rows, hidden_BPD[rows, -1])
            assert spec.is_discrete, "blocks of values come by the clock, for all rows"
            return
        self._last_BD = hidden_BPD[:, -1]
        if values_BPW is not None:
            self._tails[spec.modality] = Tail(hidden_BPD, values_BPW, tuple(ends_s))

    def _positions(self, spec: StreamSpec, seconds: Sequence[float]) -> Tensor:
        """(B, P, 3) of blocks that stand at these times."""
        positions_BP3 = self._grids[spec.modality].expand(len(seconds), -1, -1).clone()
        seconds_B1 = torch.tensor(seconds, dtype=torch.float32, device=self.device)[:, None]
        positions_BP3[..., 0] = seconds_B1
        return positions_BP3

    def turns(self) -> Tensor | None:
        """(B, S) logits over the streams: whose block is next. None before the first block."""
        if self._last_BD is None:
            return None
        return self.predictor.next_stream(self._last_BD).float()

    def condition(self, spec: StreamSpec, end_s: float) -> Tensor:
        """(B, P, Z): all that the head of a stream sees of the past, for a block that ends then."""
        model, B, P = self.predictor, self.num_rows, spec.positions_per_block
        start_2Z = model.starts[spec.name]
        last_BD = start_2Z[1].expand(B, -1) if self._last_BD is None else self._last_BD
        z_any = last_BD[:, None]
        if spec.is_discrete:
            return z_any
        tail = self._tails.get(spec.modality)
        ends_s = (None,) * B if tail is None else tail.end_s
        known = [end is not None for end in ends_s]
        z_same = start_2Z[0].expand(B, P, -1)
        if any(known):
            known_B11 = torch.tensor(known, device=self.device)[:, None, None]
            z_same = torch.where(known_B11, tail.hidden_BPD, z_same.to(tail.hidden_BPD.dtype))
        delays = [0.0 if end is None else end_s - end for end in ends_s]
        delay_B1 = torch.tensor(delays, dtype=torch.float32, device=self.device)[:, None]
        return model.join(spec, z_same, z_any.expand(-1, P, -1), delay_B1.expand(-1, P))

    def previous(self, spec: StreamSpec) -> Tensor:
        """(B, P, W): the last block of a stream, standardised; 0 where a row has none in sight."""
        tail = self._tails.get(spec.modality)
        if tail is None:
            shape = (self.num_rows, spec.positions_per_block, spec.width)
            return torch.zeros(shape, device=self.device)
        known = [end is not None for end in tail.end_s]
        if all(known):
            return tail.values_BPW
        known_B11 = torch.tensor(known, device=self.device)[:, None, None]
        return torch.where(known_B11, tail.values_BPW, 0.0)


def _how_many(specs: Sequence[StreamSpec], most: int) -> int:
    """How many of these blocks fit into a pass of the trunk; at least one."""
    total = 0
    for count, spec in enumerate(specs):
        total += spec.positions_per_block
        if total > most and count:
            return count
    return len(specs)


def _grid(spec: StreamSpec, device: torch.device) -> Tensor:
    """(1, P, 3) positions of a block at 0 s."""
    slot_P = torch.arange(spec.positions_per_block, device=device)
    row_P = slot_P // spec.cols - (spec.rows - 1) / 2
    col_P = slot_P % spec.cols - (spec.cols - 1) / 2
    return torch.stack([torch.zeros_like(row_P), row_P, col_P], dim=-1)[None].float()
