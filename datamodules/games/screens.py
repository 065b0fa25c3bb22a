"""Screens of a game to the model's pictures. In: native screens, maps, boxes. Out: the same at the
model's size, by area, and all of them in the same place.

Sums are of whole numbers, so that the result does not depend on the number of threads.

Shapes: T frames, H W native pixels, h w the model's pixels, K boxes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FITS = ("crop", "squeeze")
_PARTS = 4096  # a pixel's share in another, in whole parts: errors stay below 0.1 grey levels
_SAME_SHAPE = 1e-6  # of the side


@dataclass(frozen=True)
class Fit:
    """How a screen becomes the model's picture.

    Args:
        native: (height, width) of the screen.
        size: (height, width) of the picture; its pixels are square.
        pixel_aspect: width over height of the screen's pixels as they are shown.
        how: "crop" keeps the proportions and cuts off what sticks out at both sides; "squeeze"
            keeps the whole screen and distorts it to the picture's shape.
    """

    native: tuple[int, int]
    size: tuple[int, int]
    pixel_aspect: float = 1.0
    how: Literal["crop", "squeeze"] = "crop"

    def __post_init__(self) -> None:
        if self.how not in FITS:
            raise ValueError(f"data.fit={self.how!r} must be one of {', '.join(FITS)}")

    @cached_property
    def window(self) -> tuple[float, float, float, float]:
        """Top, left, bottom, right of what is seen, in native pixels."""
        height, width = self.native
        seen_height, seen_width = float(height), float(width)
        if self.how == "crop":
            wanted, shown = self.size[1] / self.size[0], width * self.pixel_aspect / height
            if wanted < shown * (1 - _SAME_SHAPE):
                seen_width = width * wanted / shown
            elif wanted > shown * (1 + _SAME_SHAPE):
                seen_height = height * shown / wanted
        top, left = (height - seen_height) / 2, (width - seen_width) / 2
        return top, left, top + seen_height, left + seen_width

    @cached_property
    def _parts(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        top, left, bottom, right = self.window
        rows_hH = _overlaps(self.size[0], self.native[0], top, bottom)
        return rows_hH, _overlaps(self.size[1], self.native[1], left, right)

    def frames(self, screens_THWC: NDArray[np.uint8]) -> Tensor:
        """(T, C, h, w) uint8: every pixel the mean of the area that it covers."""
        means_ThwC = np.floor(self._means(screens_THWC) + 0.5).astype(np.uint8)
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(means_ThwC, 3, 1)))

    def maps(self, maps_THW: NDArray[np.uint8]) -> Tensor:
        """(T, h, w) float32 means of 8-bit values, such as depth."""
        return torch.from_numpy(self._means(maps_THW[..., None])[..., 0].astype(np.float32))

    def boxes(self, boxes_K4: NDArray[np.float64]) -> Tensor:
        """(K, 4) float32 left, top, right, bottom in the model's pixels, cut at the picture's
        edge; of what lies outside, nothing is left: right = left or bottom = top."""
        top, left, bottom, right = self.window
        low, high = np.array([left, top] * 2), np.array([right, bottom] * 2)
        scale = np.array([self.size[1] / (right - left), self.size[0] / (bottom - top)] * 2)
        inside_K4 = np.clip(boxes_K4.reshape(-1, 4), low, high)
        return torch.from_numpy(((inside_K4 - low) * scale).astype(np.float32))

    def _means(self, images_THWC: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(T, h, w, C). All sums are of whole numbers that float64 holds exactly.

        By torch, which has one thread in a loader's process: NumPy's threads do not survive a fork,
        and a product would spin there for ever.
        """
        rows_hH, cols_wW = (torch.from_numpy(parts) for parts in self._parts)
        T, H, W, C = images_THWC.shape
        images_THX = torch.from_numpy(images_THWC.reshape(T, H, W * C).astype(np.float64))
        low_NWC = (rows_hH @ images_THX).reshape(T * len(rows_hH), W, C)
        sums_ThwC = (cols_wW @ low_NWC).reshape(T, len(rows_hH), len(cols_wW), C)
        return sums_ThwC.numpy() / _PARTS**2


def _overlaps(count: int, native: int, start: float, end: float) -> NDArray[np.float64]:
    """(count, native) how much of each native pixel lies in each of `count` equal parts of
    [start, end), in _PARTS of the part; every row sums to _PARTS exactly."""
    edges = np.linspace(start, end, count + 1)
    pixels = np.arange(native)
    shares = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    parts = np.rint(np.clip(shares, 0, None) * (_PARTS * count / (end - start)))
    largest = parts.argmax(1)
    parts[np.arange(count), largest] += _PARTS - parts.sum(1)
    return parts


def frame_steps(seconds: float, fps: float, step_hz: int) -> NDArray[np.int64]:
    """(T,) how many steps the game has done when each frame is shown: the last whole one."""
    return np.floor(np.arange(count_within(seconds, fps)) * (step_hz / fps) + 1e-6).astype(np.int64)


def action_steps(seconds: float, hz: float, step_hz: int) -> NDArray[np.int64]:
    """(T,) the step at which each action begins to work: the next one."""
    return np.ceil(np.arange(count_within(seconds, hz)) * (step_hz / hz) - 1e-6).astype(np.int64)


def count_within(seconds: float, hz: float) -> int:
    """How many times k / hz, from 0 on, lie before `seconds`."""
    return max(1, math.ceil(seconds * hz - 1e-6))
