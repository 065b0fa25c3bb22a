"""Two recordings to one that shows now the one, now the other: lawful parts, an unlawful whole.

At each swap the world is exchanged for another one: a thing is gone, elsewhere or another. Where
nothing of the difference is in sight at that moment (it is behind a screen), pictures of both parts
are those of lawful clips, bit for bit. So IntPhys makes its quadruplets (Riochet et al. 2018).

Shapes: T frames, S samples, N objects of the one, M of the other, U of both together.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .scene import Recording
from .stage import NONE
from .truth import Event, Truth

NOWHERE = (60.0, 60.0)  # m: x and y, far outside, of what is not there


def splice(one: Recording, two: Recording, swaps_s: tuple[float, ...]) -> Recording:
    """The first recording up to the first swap, then the second up to the next one, and so on.

    Args:
        one, two: filmed alike.
        swaps_s: rising; what shows the very moment of a swap belongs to the time before it.

    Returns:
        A recording without questions. Its truth names the objects of both; one that is not there
        stands far outside, with visibility 0.
    """
    clip, other = one.clip, two.clip
    from_two_T = _from_two(one.truth.times_s.numpy(), swaps_s)
    frames, sound = clip.frames_TCHW, clip.waveform_CS
    if frames is not None:
        frames = torch.where(from_two_T[:, None, None, None], other.frames_TCHW, frames)
    if sound is not None:
        from_two_S = _from_two(np.arange(sound.shape[1]) / clip.sample_rate, swaps_s)
        sound = torch.where(from_two_S, other.waveform_CS, sound)
    clip = replace(clip, frames_TCHW=frames, waveform_CS=sound, texts=())
    return Recording(clip, _join(one.truth, two.truth, from_two_T, swaps_s), ())


def _from_two(times: np.ndarray, swaps_s: tuple[float, ...]) -> Tensor:
    """Which of these times belong to the second recording."""
    return torch.from_numpy(np.searchsorted(np.array(swaps_s), times, side="left") % 2 == 1)


def _join(one: Truth, two: Truth, from_two_T: Tensor, swaps_s: tuple[float, ...]) -> Truth:
    names = (*one.names, *(name for name in two.names if name not in one.names))
    place_M = torch.tensor([names.index(name) for name in two.names])
    new_M = place_M >= len(one.names)

    def fixed(field: str) -> Tensor:
        mine, other = getattr(one, field), getattr(two, field)
        return torch.cat([mine, other[new_M]])

    def moving(field: str, absent: float) -> Tensor:
        """Values by frame; `absent` for what is not there."""
        mine, other = getattr(one, field), getattr(two, field)
        if field in ("support_TN", "container_TN"):
            other = _renumber(other, place_M)
        first = torch.full((mine.shape[0], len(names), *mine.shape[2:]), absent, dtype=mine.dtype)
        second = first.clone()
        first[:, : mine.shape[1]] = mine
        second[:, place_M] = other
        return torch.where(
            from_two_T.reshape(-1, *[1] * (first.ndim - 1)), second, first
        ).contiguous()

    hangs_U = torch.cat([one.hangs_from_N, _renumber(two.hangs_from_N, place_M)[new_M]])
    return Truth(
        times_s=one.times_s,
        names=names,
        colour_N=fixed("colour_N"),
        shape_N=fixed("shape_N"),
        material_N=fixed("material_N"),
        size_N2=fixed("size_N2"),
        lane_N=fixed("lane_N"),
        hangs_from_N=hangs_U,
        position_TN3=moving("position_TN3", NOWHERE[0]),
        velocity_TN3=moving("velocity_TN3", 0.0),
        angle_TN=moving("angle_TN", 0.0),
        visible_TN=moving("visible_TN", 0.0),
        support_TN=moving("support_TN", NONE),
        container_TN=moving("container_TN", NONE),
        held_TN=moving("held_TN", False),
        events=_join_events(one.events, two.events, place_M, swaps_s),
    )


def _renumber(value: Tensor, place_M: Tensor) -> Tensor:
    """Objects of the second by their place among all; codes below 0 stay."""
    return torch.where(value >= 0, place_M[value.clamp(min=0)], value)


def _join_events(
    one: tuple[Event, ...], two: tuple[Event, ...], place_M: Tensor, swaps_s: tuple[float, ...]
) -> tuple[Event, ...]:
    """What happened in the parts that are shown."""

    def place(n: int) -> int:
        return int(place_M[n]) if n >= 0 else n

    renumbered = [replace(e, a=place(e.a), b=place(e.b)) for e in two]
    shown = []
    for events, second in ((one, False), (renumbered, True)):
        times = np.array([event.time_s for event in events])
        kept = (_from_two(times, swaps_s) == second).tolist()
        shown += [event for event, keep in zip(events, kept, strict=True) if keep]
    return tuple(sorted(shown, key=lambda e: (e.time_s, e.kind, e.a, e.b)))
