"""Does a generated frame still show its objects? A template test against the world's own renderer.

Everything but the places and turns of the objects is known: wall, floor, light, shapes, colours,
materials, depths. So the frame is explained as well as it can be: each object is looked for over
the whole picture, then moved by half pixels and turned, all together, shadows included. What that
leaves unexplained, in units of what the object contributes to the picture, is the misfit; the
worst object counts, and so does what stands where no object is. 0 is perfect, 1 says that an object
might as well not be there. A ghost at half strength, a blur or a missing object are misfits; a
wrong place is not (that is `place_error`).

Shapes: F frames, H W pixels, N objects, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mmpredict.world import Scene
from mmpredict.world.camera import Camera
from mmpredict.world.physics import STEP_HZ, Contacts, Motion, wall_x
from mmpredict.world.render import render

FORGIVEN = 10.0  # grey levels of error per value that count as none: noise, rounding
VISIBLE = 12.0  # grey levels from which a pixel belongs to an object or its shadow
NOWHERE = 60.0  # m, outside the picture
_HEIGHTS = 10  # places above the floor at which an object is looked for
_HALF_PX = 0.5


@dataclass(frozen=True)
class Fit:
    """How a frame is best explained: misfit, and where each object is (x, y in metres)."""

    misfit_F: np.ndarray
    place_FN2: np.ndarray


class Template:
    """The scene of a frame, ready to be compared.

    Args:
        scene: whose objects are looked for.
        size: pixels of the (square) frame.
    """

    def __init__(self, scene: Scene, size: int) -> None:
        self.stage, self.key, self.size = scene.stage(), scene.key, size
        self.count = len(self.stage.objects)

    def paint(self, state_KN3: np.ndarray) -> np.ndarray:
        """(K, H, W, 3) float32 pictures of the objects at x, y, turn."""
        K = len(state_KN3)
        state_KN6 = np.zeros((K + 1, self.count, 6))
        state_KN6[:K, :, :3] = state_KN3
        state_KN6[K] = state_KN6[K - 1]
        none = np.zeros(0, np.int64)
        contacts = Contacts(none, none, none, none, none > 0, none[:, None], none[:, None])
        motion = Motion(state_KN6, contacts, np.zeros(K + 1, bool), np.ones(self.count))
        times_K = np.arange(K) / STEP_HZ
        stage = replace(self.stage, hand=None, screen=None)
        pictures = render(stage, motion, times_K, (self.size, self.size), self.key)[0]
        return pictures.astype(np.float32)

    def absent(self, num: int) -> np.ndarray:
        """(K, N, 3) a state in which nothing is in the picture."""
        state_KN3 = np.zeros((num, self.count, 3))
        state_KN3[..., :2] = NOWHERE
        return state_KN3

    @cached_property
    def background(self) -> np.ndarray:
        return self.paint(self.absent(1))[0]

    @cached_property
    def candidates(self) -> list[tuple[np.ndarray, Tensor, Tensor]]:
        """Per object: states (K, 3) all over the picture, the pictures less the background
        (K, H * W * 3), and half their squared size (K,)."""
        found = []
        for n, spec in enumerate(self.stage.objects):
            edge = wall_x(spec.z)
            xs = np.linspace(-edge, edge, self.size + 1)
            ys = spec.foot + np.linspace(0, 1.9 - spec.height, _HEIGHTS)
            grid = np.stack(np.meshgrid(xs, ys, [0.0], indexing="ij"), -1).reshape(-1, 3)
            state = self.absent(len(grid))
            state[:, n] = grid
            change = torch.from_numpy(self.paint(state) - self.background).flatten(1)
            found.append((grid, change.half(), change.square().sum(1) / 2))
        return found

    def fit(self, frames_FHWC: np.ndarray) -> Fit:
        """Explain frames, uint8 or float, 0 to 255."""
        frames = frames_FHWC.astype(np.float32)
        state_FN3 = self._first_guess(frames)
        pixel_N = [1 / Camera(self.size, self.size).scale(s.z) for s in self.stage.objects]
        for reach, turns in ((2, _turns(np.pi, 9)), (1, _turns(np.pi / 8, 5))):
            for n in range(self.count):
                state_FN3 = self._improve(frames, state_FN3, n, _shifts(reach, pixel_N[n]))
                state_FN3 = self._improve(frames, state_FN3, n, turns)
        return Fit(self._misfit(frames, state_FN3), state_FN3[..., :2])

    def _first_guess(self, frames: np.ndarray) -> np.ndarray:
        """Each object where it explains most of what the others leave unexplained, twice over."""
        state_FN3 = self.absent(len(frames))
        for n in (*range(self.count), *range(self.count)):
            state_FN3[:, n, :2] = NOWHERE
            surplus = torch.from_numpy(frames - self.paint(state_FN3)).flatten(1)
            grid, change, half = self.candidates[n]
            gain_FK = surplus @ change.float().T - half  # of |frame|^2 - |frame - candidate|^2
            state_FN3[:, n] = grid[gain_FK.argmax(1).numpy()]
        return state_FN3

    def _improve(
        self, frames: np.ndarray, state_FN3: np.ndarray, n: int, moves_K3: np.ndarray
    ) -> np.ndarray:
        """The best of some small moves of one object, the others as they are."""
        F, K = len(frames), len(moves_K3)
        tried = np.repeat(state_FN3[:, None], K, 1)
        tried[:, :, n] += moves_K3
        pictures = self.paint(tried.reshape(F * K, self.count, 3))
        error = (pictures.reshape(F, K, -1) - frames.reshape(F, 1, -1)) ** 2
        best_F = error.sum(-1).argmin(1)
        return tried[np.arange(F), best_F]

    def _misfit(self, frames: np.ndarray, state_FN3: np.ndarray) -> np.ndarray:
        F = len(frames)
        fitted = self.paint(state_FN3)
        error = np.maximum(np.abs(frames - fitted) - FORGIVEN, 0) ** 2
        elsewhere = np.ones(error.shape[:3], bool)
        worst_F, least_F = np.zeros(F), np.full(F, np.inf)
        for n in range(self.count):
            without = state_FN3.copy()
            without[:, n, :2] = NOWHERE
            share = fitted - self.paint(without)
            mine = np.abs(share).max(-1) > VISIBLE
            elsewhere &= ~mine
            weight_F = (share**2 * mine[..., None]).sum((1, 2, 3)) + 1.0
            error_F = (error * mine[..., None]).sum((1, 2, 3))
            worst_F = np.maximum(worst_F, error_F / weight_F)
            least_F = np.minimum(least_F, weight_F)
        return np.maximum(worst_F, (error * elsewhere[..., None]).sum((1, 2, 3)) / least_F)


def _shifts(reach: int, pixel_m: float) -> np.ndarray:
    steps = np.arange(-reach, reach + 1) * _HALF_PX * pixel_m
    x, y = np.meshgrid(steps, steps)
    return np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], 1)


def _turns(reach: float, count: int) -> np.ndarray:
    turn = np.linspace(-reach, reach, count)
    return np.stack([0 * turn, 0 * turn, turn], 1)


def blurred(frames_THWC: np.ndarray, radius: float) -> np.ndarray:
    """Frames through a Gaussian of this deviation, pixels."""
    reach = int(3 * radius)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / radius).square())
    kernel = kernel / kernel.sum()
    x = torch.from_numpy(frames_THWC.astype(np.float32)).permute(0, 3, 1, 2).flatten(0, 1)[:, None]
    for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
        pad = (0, 0, reach, reach) if shape[2] == -1 else (reach, reach, 0, 0)
        x = torch.conv2d(torch.nn.functional.pad(x, pad, "replicate"), kernel.view(shape))
    return x[:, 0].unflatten(0, (-1, 3)).permute(0, 2, 3, 1).numpy()
