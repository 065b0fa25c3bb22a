"""Frames to patches and back. In: a Clip with frames. Out: one block per frame, one position per
patch.

Shapes: T frames, C channels (3), H W pixels, P patches per frame, D values per patch = C * patch *
patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmpredict.schema import Clip, Modality, StreamSpec, Tokens


def patchify(frames_TCHW: Tensor, patch: int) -> Tensor:
    """Cut every frame into square patches, row by row.

    Args:
        frames_TCHW: any dtype; H and W are multiples of `patch`.
        patch: patch side in pixels.

    Returns:
        (T, P, D) with P = H/patch * W/patch and D = C*patch*patch. `unpatchify` undoes it exactly.
    """
    T, C, H, W = frames_TCHW.shape
    if H % patch or W % patch:
        raise ValueError(
            f"frames are {H}x{W}, not a multiple of patch={patch}; resize or crop first"
        )
    grid = frames_TCHW.reshape(T, C, H // patch, patch, W // patch, patch)
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatchify(patches_TPD: Tensor, patch: int, size: tuple[int, int]) -> Tensor:
    """Put patches back into frames (T, C, H, W) of `size` (H, W)."""
    T, (H, W) = len(patches_TPD), size
    grid = patches_TPD.reshape(T, H // patch, W // patch, -1, patch, patch)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(T, -1, H, W)


@dataclass(frozen=True)
class Patches:
    """Raw pixel patches: no encoder to download, nothing lost.

    Args:
        size: side of the frame in pixels, or [height, width]; multiples of `patch`.
        patch: patch side in pixels.
        fps: frames per second that the model sees.
    """

    size: int | tuple[int, int] = 32
    patch: int = 4
    fps: float = 8.0

    def __post_init__(self) -> None:
        if self.patch < 1 or self.fps <= 0:
            raise ValueError(f"video.patch={self.patch} and video.fps={self.fps} must be positive")
        for side in self.height_width:
            if side < self.patch or side % self.patch:
                near = max(1, round(side / self.patch)) * self.patch
                raise ValueError(
                    f"video.size={side} is not a multiple of video.patch={self.patch}; "
                    f"take size {near} or another patch"
                )

    @property
    def height_width(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)

    @property
    def spec(self) -> StreamSpec:
        height, width = self.height_width
        return StreamSpec(
            modality=Modality.VIDEO,
            name="video",
            width=3 * self.patch**2,
            rows=height // self.patch,
            cols=width // self.patch,
            period_s=1 / self.fps,
            dtype=torch.uint8,
            value_range=(0.0, 255.0),
        )

    @property
    def groups_D(self) -> Tensor:
        """Values that share mean and standard deviation: those of one colour channel."""
        return torch.arange(3 * self.patch**2) // self.patch**2

    def encode(self, clip: Clip) -> Tokens | None:
        """Patches of every frame, uint8, ending when the frame is shown; None without frames."""
        if clip.frames_TCHW is None or not len(clip.frames_TCHW):
            return None
        if tuple(clip.frames_TCHW.shape[1:]) != (3, *self.height_width):
            raise ValueError(
                f"{clip.name}: frames are {tuple(clip.frames_TCHW.shape[1:])}, the model takes "
                f"{(3, *self.height_width)}; read the clip at video.size"
            )
        return Tokens(
            modality=Modality.VIDEO,
            contents=patchify(clip.frames_TCHW, self.patch),
            end_s=clip.times_s.to(torch.float64),
        )

    def decode(self, tokens: Tokens) -> Clip:
        """Frames and their times; values are rounded and clipped to 0..255."""
        patches = tokens.contents
        if patches.is_floating_point():
            patches = patches.round().clamp(0, 255).to(torch.uint8)
        frames = unpatchify(patches, self.patch, self.height_width)
        return Clip(frames_TCHW=frames, times_s=tokens.end_s)
