"""Vectors in time (actions, joint angles, forces) to blocks and back. In: a Clip with series. Out:
one block of one position per vector.

    codecs = Codecs(video=Patches(), series={"action": Vectors(width=7, hz=10)})
    Vectors(width, hz, modality=3, name="")   # Codecs fills in the name from the key

A vector holds at an instant, as a frame is shown at one. Blocks that end together stand in the
order of their streams' numbers: frame, text, then series by `modality`. So a state (3) comes before
the action (4) that was chosen in it, and an action before the frame that shows what it did.

Shapes: T vectors of the clip, K blocks, D values of a vector.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmpredict.schema import Clip, Modality, Series, StreamSpec, Tokens

FIRST_NUMBER = max(Modality) + 1  # the numbers below are those of sound, frames and text
ON_GRID = 0.01  # of a period: times closer than this to the grid stand on it
TAKEN = {"audio", "video", "text", "next_stream"}


@dataclass(frozen=True)
class Vectors:
    """Raw vectors, float32: nothing is lost.

    A series whose times lie 1/hz apart is taken as it is. Any other is resampled to the times k/hz
    of the clip's clock, at which the last value holds.

    Args:
        width: values of a vector.
        hz: vectors per second that the model sees.
        modality: number of the stream, 3 or more, a different one for each series; of blocks that
            end at the same time, the lower number comes first.
        name: of the series in the clip and of the stream in metrics; may be left out in a mapping
            of series by name.
    """

    width: int
    hz: float
    modality: int = FIRST_NUMBER
    name: str = ""

    def __post_init__(self) -> None:
        where = f"series.{self.name or '<name>'}"
        if self.width < 1 or not 0 < self.hz < float("inf"):
            raise ValueError(f"{where}: width={self.width} and hz={self.hz} must be positive")
        if self.modality < FIRST_NUMBER:
            raise ValueError(
                f"{where}: modality={self.modality} is taken; numbers from {FIRST_NUMBER} up are "
                "free"
            )
        if self.name:
            _check_name(self.name)

    @property
    def spec(self) -> StreamSpec:
        if not self.name:
            raise ValueError("this series has no name; give Vectors(..., name='action')")
        return StreamSpec(
            modality=self.modality,
            name=self.name,
            width=self.width,
            period_s=1 / self.hz,
            own_units=True,
        )

    @property
    def groups_D(self) -> Tensor:
        """Values that share mean and standard deviation: each has its own."""
        return torch.arange(self.width)

    def encode(self, clip: Clip) -> Tokens | None:
        """A block per vector, (K, 1, D) float32, ending when it holds; None without the series."""
        series = clip.series.get(self.name)
        if series is None or not len(series.times_s):
            return None
        values_TD, times_s = series.values_TD.float(), series.times_s.double()
        where = f"{clip.name or 'clip'}: series {self.name}"
        if values_TD.shape[1] != self.width:
            got = f"{values_TD.shape[1]} values per vector"
            raise ValueError(f"{where} has {got}, the model takes {self.width}")
        if not bool(values_TD.isfinite().all()):
            at_s = float(times_s[~values_TD.isfinite().all(dim=1)][0])
            raise ValueError(f"{where} has a value at {at_s:.3f} s that is not a finite number")
        if not bool(times_s.isfinite().all()) or bool((times_s.diff() <= 0).any()):
            raise ValueError(f"{where} has times that do not rise")
        if not self._is_on_grid(times_s):
            values_TD, times_s = self._resampled(values_TD, times_s)
        if not len(times_s):
            return None
        return Tokens(self.modality, values_TD[:, None], times_s)

    def _is_on_grid(self, times_s: Tensor) -> bool:
        """Whether neighbours are a period apart, without drift; the first may stand anywhere."""
        periods = (times_s - times_s[0]) * self.hz
        return bool((periods - torch.arange(len(times_s))).abs().max() < ON_GRID)

    def _resampled(self, values_TD: Tensor, times_s: Tensor) -> tuple[Tensor, Tensor]:
        """The values that hold at k/hz. The last one holds as long as one does in the middle."""
        holds_s = float(times_s.diff().median()) if len(times_s) > 1 else 1 / self.hz
        first = math.ceil(float(times_s[0]) * self.hz - ON_GRID)
        after = math.ceil((float(times_s[-1]) + holds_s) * self.hz - ON_GRID)
        grid_s = torch.arange(first, after).double() / self.hz
        found = torch.searchsorted(times_s, grid_s + ON_GRID / self.hz, right=True) - 1
        return values_TD[found], grid_s

    def decode(self, tokens: Tokens) -> Clip:
        """A clip with the series alone."""
        values_TD = tokens.contents[:, 0].float()
        return Clip(series={self.name: Series(values_TD, tokens.end_s.double())})


def _check_name(name: str) -> None:
    """A name becomes part of metrics, file names and the model's own names."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise ValueError(f"series name {name!r}: take letters, digits and _, a letter first")
    of_torch = hasattr(nn.ModuleDict, name) or hasattr(nn.ParameterDict, name)
    if name in TAKEN or of_torch or name.endswith(("_mean", "_flow", "_nats", "_latent")):
        raise ValueError(f"series name {name!r} has a meaning of its own here; take another")
