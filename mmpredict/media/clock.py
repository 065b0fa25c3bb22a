"""One clock for all streams of a file: pure arithmetic, no media library.

In: time stamps as containers carry them. Out: seconds and sample indices on the file's own clock.

The clock of a file: t = 0 is the earliest start among its video and sound streams, each by its own
time base; a start before zero counts as zero, for what lies there is codec priming that players do
not show.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

# Containers round stamps to milliseconds (mkv, flv): a frame due within one counts as shown.
STAMP_SLACK_S = 0.001
# Sound stamps jitter; only a larger step is a real gap or overlap. Below the 1/30 s of a frame.
SOUND_JITTER_S = 0.010
# FFmpeg marks Vorbis blocks at a change from long to short by up to a quarter of a block wrong, and
# the next one right again. Blocks have up to 8192 samples.
_VORBIS_JITTER = 2048
_ROUNDING = 1e-6  # seconds; far above float error, far below any stamp


def as_fraction(rational: object) -> Fraction:
    """Any object with numerator and denominator (PyAV changed its class between versions)."""
    return Fraction(rational.numerator, rational.denominator)  # type: ignore[attr-defined]


def file_origin_s(starts_s: Iterable[float | None]) -> float:
    """Where t = 0 of the file lies on its container's clock; None marks a start that is unknown."""
    known = [start for start in starts_s if start is not None]
    return max(0.0, min(known)) if known else 0.0


def sound_jitter(rate: int, codec: str) -> int:
    """Steps of sound stamps up to this many samples are no gap."""
    jitter = int(SOUND_JITTER_S * rate)
    return max(jitter, _VORBIS_JITTER) if codec == "vorbis" else jitter


class FrameGrid:
    """Which grid times k / fps show which frame. Feed frames in order of time.

    The frame on show at t is the last one with a stamp <= t. Before the first frame of a stream
    there is nothing on show, except that a first frame less than half a step late stands in.

    Args:
        fps: grid steps a second.
        end_s: grid times reach up to, not including, this; inf for no end.
    """

    def __init__(self, fps: float, end_s: float) -> None:
        self.fps = fps
        self.end = math.inf if math.isinf(end_s) else self._first_step_from(end_s)
        self.next_step: int | None = None  # None until the first frame

    def _first_step_from(self, time_s: float) -> int:
        return max(0, math.ceil((time_s - STAMP_SLACK_S) * self.fps - _ROUNDING))

    def show(self, shown_s: float, until_s: float) -> range:
        """Steps k at which a frame shown from `shown_s` until `until_s` is the one on show."""
        if self.next_step is None:
            self.next_step = self._first_step_from(shown_s - 0.5 / self.fps)
        stop = max(self.next_step, min(self._first_step_from(until_s), self.end))
        steps = range(self.next_step, int(stop))
        self.next_step = int(stop)
        return steps


@dataclass
class SampleTimeline:
    """Lays decoded sound end to end and corrects by stamps: a gap becomes a hole, an overlap is
    cut.

    Args:
        rate: Hz of the samples laid.
        jitter: a step of up to so many samples is none; None for 10 ms.
    """

    rate: int
    jitter: int | None = None
    next_index: int | None = None
    hole_samples: int = 0  # filled with silence so far
    cut_samples: int = 0  # dropped so far

    def place(self, stamp_index: int, count: int) -> tuple[int, int]:
        """Where `count` samples stamped `stamp_index` go.

        Returns:
            (index of the first one kept, how many to drop from their front).
        """
        if self.next_index is None:
            self.next_index = stamp_index
        step = stamp_index - self.next_index
        if abs(step) <= (SOUND_JITTER_S * self.rate if self.jitter is None else self.jitter):
            step = 0
        drop = min(count, max(0, -step))
        self.hole_samples += max(0, step)
        self.cut_samples += drop
        first = self.next_index + max(0, step)
        self.next_index = first + count - drop
        return first, drop


def snap_to_lattice(index: int, anchor: int, step: int, tick: float) -> int:
    """Undo a container's rounding of sound stamps after a seek.

    Sound packets of constant size lie on a lattice anchor + n * step. If `index` is within `tick`
    samples (what one unit of the container's time base is worth) of a lattice point, that point is
    the truth.
    """
    nearest = anchor + round((index - anchor) / step) * step
    return nearest if abs(nearest - index) <= tick + 1 else index


def resampling_lattice(source_rate: int, target_rate: int) -> tuple[int, int]:
    """Smallest counts of source and target samples that last exactly as long as each other."""
    divisor = math.gcd(source_rate, target_rate)
    return source_rate // divisor, target_rate // divisor
