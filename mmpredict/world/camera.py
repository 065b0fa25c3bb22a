"""Where things of the world stand in the picture. Pixels: (0, 0) is the upper left corner."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .stage import EYE_HEIGHT

_HORIZON = 0.27  # height of the eye in the picture, as a share of its height from the top


@dataclass(frozen=True)
class Camera:
    """A camera at x = 0, EYE_HEIGHT above the floor, that looks straight ahead.

    Args:
        height, width: of the picture, pixels. The shorter side shows 1 m per metre of distance.
    """

    height: int
    width: int

    @property
    def focal(self) -> int:
        return min(self.height, self.width)

    def scale(self, z: float) -> float:
        """Pixels per metre at this depth."""
        return self.focal / z

    def project(
        self, x: np.ndarray, y: np.ndarray, z: float | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Column and row, in pixels, of points in metres."""
        column = 0.5 * self.width + self.focal * x / z
        row = _HORIZON * self.height + self.focal * (EYE_HEIGHT - y) / z
        return column, row
