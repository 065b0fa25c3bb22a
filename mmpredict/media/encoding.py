"""Clip frames to frames for an H.264 encoder, and its settings.

Shapes: T frames, C channels, H W pixels."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from av import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from torch import Tensor

from mmpredict.media.video import DEFAULT_FPS, RESIZE

STAMPS_PER_S = 90_000  # holds 24, 25, 30, 29.97 and 60 fps exactly
_BT709 = 1  # the number of BT.709 in the matrix, primaries and transfer fields of a stream
_LIMITED_RANGE = 1


def encoder_frame(frame_CHW: Tensor, scale: int, time_s: float, length_s: float) -> VideoFrame:
    """A clip frame for an H.264 encoder: enlarged by whole pixels, made even, in tagged BT.709.

    Args:
        frame_CHW: uint8; 1 channel is grey, 3 are RGB.
        scale: every pixel becomes a square of this side.
        time_s, length_s: when it is shown and for how long.
    """
    rgb_HWC = np.ascontiguousarray(frame_CHW.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy())
    rgb_HWC = rgb_HWC.repeat(scale, axis=0).repeat(scale, axis=1)
    height, width = rgb_HWC.shape[:2]
    if height % 2 or width % 2:  # 4:2:0 needs pairs; the border repeats
        rgb_HWC = np.pad(rgb_HWC, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(rgb_HWC), format="rgb24").reformat(
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=RESIZE,
        threads=1,
    )
    frame.time_base = Fraction(1, STAMPS_PER_S)
    frame.pts = round(time_s * STAMPS_PER_S)
    frame.duration = max(1, round(length_s * STAMPS_PER_S))
    return frame


def add_video_stream(container: Any, size: tuple[int, int], fps: float, crf: int) -> Any:
    """An H.264 stream that browsers play: yuv420p, colours tagged, exact stamps, one thread. The
    same frames give the same bytes."""
    stream = container.add_stream(
        "libx264",
        rate=Fraction(fps).limit_denominator(1001),
        # x264's macroblock tree reads memory that nobody wrote: other bytes on every other run.
        options={
            "crf": str(crf),
            "preset": "medium",
            "threads": "1",
            "x264-params": "mbtree=0",
        },
    )
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.time_base = Fraction(1, STAMPS_PER_S)
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED_RANGE
    return stream


def show_lengths(times_s: list[float]) -> list[float]:
    """How long each frame is shown: until the next; the last as long as the one before it."""
    if len(times_s) < 2:
        return [1.0 / DEFAULT_FPS] * len(times_s)
    gaps = [after - before for before, after in zip(times_s, times_s[1:], strict=False)]
    if min(gaps) <= 0 or not all(map(math.isfinite, times_s)):
        raise ValueError("times_s of the frames must rise")
    return gaps + gaps[-1:]
