"""A stream that the package does not have: `touch`, the contact forces of the embedded world.

Nothing here is part of mmpredict; this file is all that a new modality takes. It begins with a
checkpoint that has never felt anything:

    mmpredict fit --config finetune/touch --init_from CKPT --allow-import examples.touch

Shapes: E contacts, T moments.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from datamodules import World
from mmpredict.schema import Clip, Series
from mmpredict.tokens import Vectors
from mmpredict.world import FLOOR, Scene
from mmpredict.world.physics import STEP_HZ, simulate

HZ = 25.0  # vectors per second, as many as chunks of sound


class Touch(World):
    """The embedded world with a hand's sense: how hard things press on the floor, and on each
    other and the walls.

    Args:
        world: the settings of `datamodules.World`.
    """

    def __init__(self, **world: Any) -> None:
        super().__init__(**world)
        self.codecs = replace(self.codecs, series={"touch": Vectors(width=2, hz=HZ)})

    def clip(self, scene: Scene) -> Clip:
        """A scene as the run's streams see it, and feel it."""
        return replace(super().clip(scene), series={"touch": forces(scene)})


def forces(scene: Scene) -> Series:
    """log(1 + N) of the mean force in each period: on the floor, and on all else."""
    contacts = simulate(scene.stage()).contacts
    count = round(scene.condition.seconds * HZ)
    moment_E = np.minimum((contacts.step_E + 1) / STEP_HZ * HZ, count - 1).astype(int)
    values_T2 = np.zeros((count, 2))
    for column, mine_E in enumerate((contacts.b_E == FLOOR, contacts.b_E != FLOOR)):
        newtons_E = contacts.impulse_E[mine_E] * HZ
        np.add.at(values_T2[:, column], moment_E[mine_E], newtons_E)
    times_s = torch.arange(1, count + 1).double() / HZ  # each vector is felt when its period ends
    return Series(torch.from_numpy(np.log1p(values_T2)).float(), times_s)
