"""A take: all that decides a clip, as plain data that can be written into a file and filmed again.

In: a stage, and what is changed against the laws while it plays. Out: a Recording.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from .condition import Condition
from .physics import simulate
from .scene import Film, Recording, Scene
from .stage import HandSpec, Move, ObjectSpec, ScreenSpec, Stage, StringSpec
from .truth import read_history


@dataclass(frozen=True)
class Take:
    """What is filmed.

    Args:
        stage: what stands there.
        key: what the choices of painting and noise depend on; takes of one set share it.
        family: for the clip's name.
    """

    stage: Stage
    key: str
    family: str = "roll_and_bounce"

    def record(self, film: Film) -> Recording:
        """Play and film it; a pure function of the take and the film."""
        scene = Scene(0, self.family, Condition(seconds=self.stage.seconds, speech="none"))
        motion = simulate(self.stage)
        return scene.film(self.stage, motion, read_history(self.stage, motion), film)

    def mirrored(self) -> Take:
        """Left and right exchanged."""
        stage = self.stage
        objects = tuple(replace(o, x=-o.x, vx=-o.vx) for o in stage.objects)
        screen = stage.screen and replace(
            stage.screen, x=-stage.screen.x, leave_dx=-stage.screen.leave_dx
        )
        hand = stage.hand and replace(
            stage.hand,
            side=-stage.hand.side,
            moves=tuple(replace(m, dx=-m.dx) for m in stage.hand.moves),
        )
        return replace(self, stage=replace(stage, objects=objects, screen=screen, hand=hand))

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Take:
        stage = dict(plain["stage"])
        stage["objects"] = tuple(ObjectSpec(**o) for o in stage["objects"])
        stage["strings"] = tuple(StringSpec(**s) for s in stage["strings"])
        if stage["screen"]:
            stage["screen"] = ScreenSpec(**stage["screen"])
        if stage["hand"]:
            moves = tuple(Move(**m) for m in stage["hand"]["moves"])
            stage["hand"] = HandSpec(**{**stage["hand"], "moves": moves})
        return cls(**{**plain, "stage": Stage(**stage)})
