"""A take that was played up to its question: what the families read the answers from.

In: a take. Out: places, relations and events at the moment of the last picture, and who is seen
there. Nothing is painted in colour.

Shapes: K entries of the physics log, N objects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from mmpredict.world import Condition, Take, is_held_out_place
from mmpredict.world.families import Casting, DoesNotFit
from mmpredict.world.physics import STEP_HZ, Motion
from mmpredict.world.render import render
from mmpredict.world.scene import Play
from mmpredict.world.stage import Stage, random_for
from mmpredict.world.truth import History

FPS = 8.0  # the moments that must show what is asked; other rates show more or about the same
_SHOT_PX = 64
_ATTEMPTS = 20_000

Built = TypeVar("Built")


@dataclass(frozen=True)
class Shot:
    """A take up to `until_s`.

    Args:
        source: name of the take in the suite.
        take: what is filmed.
        until_s: what comes later is not shown.
        cluster: the scene: a take and its partners share it.
        roles: what the families must know of the stage: number of an object by its role.
        facts: further marks of the stage, for tables.
    """

    source: str
    take: Take
    until_s: float
    cluster: str
    roles: dict[str, int] = field(default_factory=dict)
    facts: dict[str, str | float | int | bool] = field(default_factory=dict)

    @cached_property
    def _play(self) -> Play:
        return self.take.play()

    @property
    def stage(self) -> Stage:
        """As it is seen: mirrored, if the take is."""
        return self._play.stage

    @property
    def motion(self) -> Motion:
        return self._play.motion

    @property
    def history(self) -> History:
        return self._play.history

    @property
    def last_s(self) -> float:
        """When the last picture is taken."""
        return (np.ceil(self.until_s * FPS) - 1) / FPS

    def entry(self, time_s: float) -> int:
        return min(round(time_s * STEP_HZ), len(self.motion.state_KN6) - 1)

    @property
    def last(self) -> int:
        """The entry of the log that the last picture shows."""
        return self.entry(self.last_s)

    @cached_property
    def xy_N2(self) -> np.ndarray:
        return self.motion.state_KN6[self.last, :, :2]

    @cached_property
    def z_N(self) -> np.ndarray:
        return np.array([spec.z for spec in self.stage.objects])

    @property
    def names(self) -> list[str]:
        """ "the red ball" and so on."""
        return [f"the {spec.name}" for spec in self.stage.objects]

    def name(self, role: str) -> str:
        return self.names[self.roles[role]]

    @cached_property
    def seen_N(self) -> np.ndarray:
        """Share of every object that the last picture shows."""
        return self.seen_at(self.last_s)

    def seen_at(self, time_s: float) -> np.ndarray:
        """(N,) share of every object that a picture at this time shows."""
        size = (_SHOT_PX, _SHOT_PX)
        times_T = np.array([time_s])
        return render(self.stage, self.motion, times_T, size, self.take.key, paints=False)[1][0]

    def is_left(self, a: int, b: int, margin: float = 0.35) -> bool | None:
        """Whether a is left of b in the world and in the picture, and stays so to the end; None
        where they are too close."""
        gaps = []
        for entry in (self.last, self.entry(self.until_s)):
            x_N = self.motion.state_KN6[entry, :, 0]
            gaps += [x_N[b] - x_N[a], x_N[b] / self.z_N[b] * 3.2 - x_N[a] / self.z_N[a] * 3.2]
        if min(map(abs, gaps)) < margin or len(set(np.sign(gaps))) > 1:
            return None
        return bool(gaps[0] > 0)

    def is_above(self, a: int, b: int, margin: float = 0.4) -> bool | None:
        """Whether a is higher than b, in the world and in the picture."""
        y_N = self.xy_N2[:, 1]
        gap, drop = y_N[a] - y_N[b], (1.5 - y_N) / self.z_N  # eye height 1.5: rows go down with it
        seen = (drop[b] - drop[a]) * 3.2
        if abs(gap) < margin or abs(seen) < margin / 2 or gap * seen < 0:
            return None
        return bool(gap > 0)


def cast_until(build: Callable[[Casting], Built | None], key: str, split: str) -> Built:
    """Draw until a draw fits: a pure function of its arguments.

    Args:
        build: makes what is wanted, or None (or DoesNotFit) where this draw has no room.
        key: what the draws depend on.
        split: of the world; decides colours, speeds, numbers and places.
    """
    rng = random_for("probes", key, split)
    for _ in range(_ATTEMPTS):
        try:
            built = build(Casting(rng, Condition(), split))
        except DoesNotFit:
            continue
        if built is not None:
            return built
    raise ValueError(f"no draw of {_ATTEMPTS} fits {key!r} of the split {split!r}")


def suits_layout(stage: Stage, split: str, *, mirrored: bool) -> bool:
    """Whether the first places are those of the split; of both sides where the take is mirrored
    too. A mirrored take of test_layout leaves the region, as it must."""
    sides = (1, -1) if mirrored and split != "test_layout" else (1,)
    inside = any(is_held_out_place(o.lane, side * o.x) for o in stage.objects for side in sides)
    return inside == (split == "test_layout")


def exchange(stage: Stage, a: int, b: int) -> Stage:
    """The same stage with colour and material of two objects exchanged: they swap their roles."""
    objects = list(stage.objects)
    one, two = objects[a], objects[b]
    objects[a] = replace(one, colour=two.colour, material=two.material)
    objects[b] = replace(two, colour=one.colour, material=one.material)
    return replace(stage, objects=tuple(objects))
