"""What is known of a growing row without a look at its contents: times, places, what is in sight.

All on the host, so that no step waits for the device.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, replace

from mmpredict.schema import TICK_S, Batch, Layout, Modality, StreamSpec, Tokens

SLACK_S = 1e-6  # times closer than this are the same, as in sequence.interleave


@dataclass
class Ruler:
    """Where blocks stand on the time axis, block after block, as `sequence.interleave` places them.

    Args:
        latest_s: the latest end of a block so far.
        untimed: blocks without a time so far.
        latest_id_s: per discrete stream, where its last block stands.
    """

    latest_s: float = 0.0
    untimed: int = 0
    latest_id_s: dict[int, float] = field(default_factory=dict)

    def place(self, spec: StreamSpec, end_s: float) -> float:
        """Seconds of the next block, which ends then (NaN: untimed)."""
        if math.isnan(end_s):
            seconds = self.latest_s + TICK_S * self.untimed
            self.untimed += 1
        else:
            seconds = end_s + TICK_S * self.untimed
            self.latest_s = max(self.latest_s, end_s)
        if spec.is_discrete:
            least = self.latest_id_s.get(spec.modality, -math.inf) + TICK_S
            seconds = self.latest_id_s[spec.modality] = max(seconds, least)
        return seconds


class Row:
    """One future: its clock, its ruler, and which of its blocks are in sight.

    Args:
        layout: the streams.
        prompt: encoded streams by modality.
        limit: positions that may be in sight; None without a limit.
    """

    def __init__(self, layout: Layout, prompt: dict[int, Tokens], limit: int | None) -> None:
        self.layout, self.limit = layout, limit
        self.ruler = Ruler()
        self.full_at_s: float | None = None  # when the oldest blocks were first out of sight
        self._in_sight: list[StreamSpec] = []
        self._positions = 0
        times = {
            m: float(t.end_s.nan_to_num(-math.inf).max()) for m, t in prompt.items() if len(t.end_s)
        }
        latest = max(times.values(), default=-math.inf)
        self.now_s = None if latest == -math.inf else latest  # when the latest block ends
        self._behind_s = max((s for m, s in times.items() if m > Modality.TEXT), default=-math.inf)

    @property
    def text_end_s(self) -> float:
        """When text ends that stands at the end of the row; NaN if the row has no times.

        Blocks of series stand behind text of the same time: text that comes after one is later.
        """
        if self.now_s is None:
            return math.nan
        late = self._behind_s > self.now_s - SLACK_S
        return self.now_s + 2 * SLACK_S if late else self.now_s

    def wait_until(self, time_s: float) -> None:
        """Text that comes next has at least this time, if the row has times at all."""
        if self.now_s is not None:
            self.now_s = max(self.now_s, time_s)

    def read(self, piece: Batch) -> list[int]:
        """Blocks of the prompt follow.

        Returns:
            how many of the oldest blocks go out of sight, as often as that happens meanwhile.
        """
        end_L, modality_L = piece.end_s[0].tolist(), piece.modality[0].tolist()
        gone, start = [], 0
        while start < len(modality_L):
            spec = self.layout[modality_L[start]]
            gone.append(self.make_room(spec, end_L[start]))
            self._enter(spec)
            self.ruler.place(spec, end_L[start])
            start += spec.positions_per_block
        return [count for count in gone if count]

    def add(self, spec: StreamSpec, end_s: float) -> float:
        """A new block follows; returns its place on the time axis, in seconds."""
        self._enter(spec)
        if not math.isnan(end_s):
            self.now_s = end_s if self.now_s is None else max(self.now_s, end_s)
            if spec.modality > Modality.TEXT:
                self._behind_s = max(self._behind_s, end_s)
        return self.ruler.place(spec, end_s)

    def make_room(self, spec: StreamSpec, end_s: float) -> int:
        """How many of the oldest blocks go out of sight, that a block of `spec` may follow.

        Where it does not fit, so many go that what is in sight fills half of the limit at most; but
        the last block of each continuous stream stays if that leaves room.
        """
        need = spec.positions_per_block
        if self.limit is None or self._positions + need <= self.limit:
            return 0
        left, count = self._positions, 0
        while left > self.limit // 2:
            left -= self._in_sight[count].positions_per_block
            count += 1
        last = {s.modality: i for i, s in enumerate(self._in_sight) if not s.is_discrete}
        kept = min([count, *last.values()])
        with_last = sum(s.positions_per_block for s in self._in_sight[kept:])
        if with_last + need <= self.limit:
            left, count = with_last, kept
        self._in_sight, self._positions = self._in_sight[count:], left
        if self.full_at_s is None:
            self.full_at_s = end_s
        return count

    def copy(self) -> Row:
        """A row that goes its own way from here."""
        other = copy.copy(self)
        other.ruler = replace(self.ruler, latest_id_s=dict(self.ruler.latest_id_s))
        other._in_sight = list(self._in_sight)
        return other

    def _enter(self, spec: StreamSpec) -> None:
        if self.limit is not None:
            self._in_sight.append(spec)
            self._positions += spec.positions_per_block
