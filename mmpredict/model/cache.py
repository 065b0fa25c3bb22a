"""What the trunk keeps of rows that it has read, so that it can read on: keys, values, memories.

All is allocated once and written in place. A row's positions stand side by side from slot 0; with a
window, what no later position can see is overwritten in good time, so that a row may go on for
ever.

Shapes: B rows, C slots of a row, N new positions, K slots that are looked at, G key/value heads,
E values per head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmpredict.model.sight import cached_mask

if TYPE_CHECKING:
    from mmpredict.model.stepping import SteppedTrunk


@dataclass(frozen=True)
class Step:
    """Where the new positions of one call go, and what they see. Built once, used by every layer.

    Args:
        start: slot of the first new position, where it is the same in all rows.
        slots_BN: slot of each new position, where rows differ; else None.
        first, stop: the slots that are looked at.
        shared: so many of them, the first ones, hold the same in all rows.
        bias_B1NK: 0 where a new position sees a slot, else -inf; None where all see all.
        live_BN: False in rows that wait; None where none does.
    """

    start: int
    slots_BN: Tensor | None
    first: int
    stop: int
    shared: int
    bias_B1NK: Tensor | None
    live_BN: Tensor | None


@dataclass
class LayerCache:
    """Of one layer.

    Args:
        both: (2, B, G, C, E): keys, and values.
        state: (B, heads, key, value) of the fast weights; None for a layer without.
    """

    both: Tensor
    state: Tensor | None = None

    @property
    def keys(self) -> Tensor:
        return self.both[0]

    @property
    def values(self) -> Tensor:
        return self.both[1]

    def append(self, kv_BNYE: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Write new keys and, behind them (Y = 2 G), values; return (B, G, K, E) of those that are
        looked at."""
        B, N, _, E = kv_BNYE.shape
        kv_2BGNE = kv_BNYE.view(B, N, 2, -1, E).permute(2, 0, 3, 1, 4)
        if step.slots_BN is None:
            self.both[:, :, :, step.start : step.start + N] = kv_2BGNE
        else:
            row_B1 = torch.arange(B, device=kv_BNYE.device)[:, None]
            self.both[:, row_B1, :, step.slots_BN] = kv_2BGNE.permute(1, 3, 0, 2, 4)
        keys, values = self.both[:, :, :, step.first : step.stop].unbind()
        return keys, values

    def row(self, index: int) -> LayerCache:
        """One row; it shares the memory of this."""
        state = None if self.state is None else self.state[index : index + 1]
        return LayerCache(self.both[:, index : index + 1], state)

    def spread(self, count: int, used: int) -> LayerCache:
        """New buffers for `count` rows, all with the first `used` positions of the only row."""
        new = self.both.new_zeros(2, count, *self.both.shape[2:])
        new[:, :, :, :used] = self.both[:, :, :, :used]
        state = None if self.state is None else self.state.repeat(count, 1, 1, 1)
        return LayerCache(new, state)


class Cache:
    """Of all layers and rows.

    Args:
        layers: the buffers, layer by layer.
        trunk: what writes into them; shared by all caches that come from one.
        window: of the attention; 0 for none.
    """

    def __init__(self, layers: Sequence[LayerCache], trunk: SteppedTrunk, window: int = 0) -> None:
        self.layers, self.trunk, self.window = list(layers), trunk, window
        _, rows, _, self.capacity, _ = self.layers[0].both.shape
        self.dtype, self.device = self.layers[0].both.dtype, self.layers[0].both.device
        self.lengths = [0] * rows  # slots in use, per row
        self.shared = 0  # slots that hold the same in all rows, from the first on

    @property
    def num_rows(self) -> int:
        return len(self.lengths)

    @property
    def num_bytes(self) -> int:
        """Of all buffers."""
        buffers = [x for layer in self.layers for x in (layer.both, layer.state)]
        return sum(x.nbytes for x in buffers if x is not None)

    def row(self, index: int) -> Cache:
        """One row, as a cache that writes into this one; its `lengths` alone are its own."""
        part = Cache([layer.row(index) for layer in self.layers], self.trunk, self.window)
        part.lengths = [self.lengths[index]]
        self.shared = 0  # what is written through the part is that row's alone
        return part

    def spread(self, count: int) -> Cache:
        """A new cache of `count` rows that all begin as this one's only row."""
        assert self.num_rows == 1
        layers = [layer.spread(count, self.lengths[0]) for layer in self.layers]
        spread = Cache(layers, self.trunk, self.window)
        spread.lengths = self.lengths * count
        spread.shared = self.lengths[0] if count > 1 else 0
        return spread

    def empty(self, index: int) -> None:
        """Forget the keys and values of a row; memories stay."""
        self.lengths[index] = self.shared = 0

    def step(self, blocks: Sequence[int], live: Sequence[bool] | None = None) -> Step:
        """Make room for new blocks of these lengths, in all rows.

        Args:
            blocks: positions of each new block.
            live: False for rows that wait. They are computed along, but keep nothing.
        """
        N, device = sum(blocks), self.device
        for index, length in enumerate(self.lengths):
            if length + N > self.capacity:
                self._slide(index, N)
        least, most = min(self.lengths), max(self.lengths)
        first = max(0, least - self.window + 1) if self.window else 0
        stop = most + N
        ragged = least < most
        start_B = torch.tensor(self.lengths, device=device) if ragged else None
        bias = None
        narrow = self.window and N > 1 and stop - first > self.window
        if ragged or len(blocks) > 1 or narrow:
            starts_B = torch.tensor([least], device=device) if start_B is None else start_B
            bias = self._bias(starts_B, blocks, (first, stop))
        slots_BN = None
        if ragged:
            slots_BN = start_B[:, None] + torch.arange(N, device=device)
        live_BN = None
        if live is not None and not all(live):
            live_BN = torch.tensor(live, device=device)[:, None].expand(-1, N)
        shared = max(0, self.shared - first)
        return Step(least, slots_BN, first, stop, shared, bias, live_BN)

    def advance(self, count: int, live: Sequence[bool] | None = None) -> None:
        """`count` positions more are in use, in rows that do not wait."""
        live = [True] * self.num_rows if live is None else live
        self.lengths = [n + count * on for n, on in zip(self.lengths, live, strict=True)]

    def _bias(self, start_B: Tensor, blocks: Sequence[int], looked_at: tuple[int, int]) -> Tensor:
        N, device = sum(blocks), start_B.device
        number_N = torch.arange(len(blocks), device=device)
        number_N = number_N.repeat_interleave(torch.tensor(blocks, device=device))
        slot_BK = torch.arange(*looked_at, device=device).expand(len(start_B), -1)
        new_BK = slot_BK - start_B[:, None]
        # Blocks that were read before stand before all new ones, unused slots behind them.
        block_BK = torch.where(new_BK < 0, -1, number_N[new_BK.clamp(0, N - 1)])
        block_BK = torch.where(new_BK < N, block_BK, len(blocks))
        slot_BN = start_B[:, None] + torch.arange(N, device=device)
        block_BN = number_N.expand(len(start_B), -1)
        sees_B1NK = cached_mask(block_BN, slot_BN, block_BK, slot_BK, window=self.window)
        bias_B1NK = torch.zeros(sees_B1NK.shape, device=device, dtype=self.dtype)
        return bias_B1NK.masked_fill_(~sees_B1NK, -torch.inf)

    def _slide(self, index: int, count: int) -> None:
        """Move what is still in sight of a row to its first slots."""
        length = self.lengths[index]
        kept = min(length, self.window - 1) if self.window else length
        if kept + count > self.capacity:
            raise ValueError(
                f"the cache has room for {self.capacity} positions; row {index} holds {kept} that "
                f"are in sight, {count} more do not fit"
            )
        for layer in self.layers:
            buffer = layer.both[:, index]
            buffer[:, :, :kept] = buffer[:, :, length - kept : length].clone()
        self.lengths[index], self.shared = kept, 0
