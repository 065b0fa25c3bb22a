"""Decoded frames to clip frames, and back to frames for the encoder.

In: PyAV frames in order of time. Out: uint8 RGB with the time of each, sampled on a grid if asked,
    and
resized in the same swscale call that converts the colours.

Shapes: T frames, C channels, H W pixels."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from av import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray
from torch import Tensor

from mmpredict.media.clock import STAMP_SLACK_S, FrameGrid, as_fraction
from mmpredict.media.container import Source
from mmpredict.media.limits import Limits, MediaError

# Without FULL_CHR_H_INT swscale works at half the chroma resolution: 6 grey levels off a box
# filter.
_RESIZE = Interpolation.AREA | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
_BT709 = 1  # the number of BT.709 in the matrix, primaries and transfer fields of a stream
_LIMITED_RANGE = 1
_DEFAULT_FPS = 25.0  # only to give a lone frame without any rate a length
STAMPS_PER_S = 90_000  # holds 24, 25, 30, 29.97 and 60 fps exactly


class SeekMissed(Exception):
    """A seek landed behind the span it was for; go further back and try again."""


class PictureShaper:
    """Turns decoded frames into RGB arrays of one size, with one scaler for the whole stream.

    Args:
        size: (H, W) in pixels, or None to keep the stored pixels. The picture is rotated as its
            file says, scaled until it covers (H, W) without distortion and cropped around its
            centre.
        pixel_aspect: width over height of a stored pixel; taken into account when `size` is given.
    """

    def __init__(self, size: tuple[int, int] | None, pixel_aspect: float) -> None:
        self.size = size
        self.pixel_aspect = pixel_aspect
        self.reformatter = VideoReformatter()

    def shape(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """One frame as (H, W, 3) RGB."""
        turns = round(frame.rotation / 90) % 4
        height, width = self._cover(frame.height, frame.width, turns)
        # threads=1: swscale's own threads waste a quarter of the time at these sizes.
        rgb = self.reformatter.reformat(
            frame, width, height, "rgb24", interpolation=_RESIZE, threads=1
        ).to_ndarray()
        if turns:
            rgb = np.rot90(rgb, turns)  # counter-clockwise, as `rotation` counts
        if self.size is not None:
            top = (rgb.shape[0] - self.size[0]) // 2
            left = (rgb.shape[1] - self.size[1]) // 2
            rgb = rgb[top : top + self.size[0], left : left + self.size[1]]
        return rgb

    def _cover(self, height: int, width: int, turns: int) -> tuple[int, int]:
        """Size of the stored picture at which, once turned, it just covers `size`."""
        if self.size is None:
            return height, width
        want_height, want_width = self.size if turns % 2 == 0 else self.size[::-1]
        shown_width = width * self.pixel_aspect
        scale = max(want_height / height, want_width / shown_width)
        return (
            max(want_height, round(height * scale)),
            max(want_width, round(shown_width * scale)),
        )


class FrameCollector:
    """Keeps the frames of a span.

    Args:
        source: the open file.
        span_s: (start, end) on the file's clock; end may be inf.
        fps: rate of the grid, or None to keep every frame with its own time.
        size: (H, W) or None, as in PictureShaper.
        limits: held against what is decoded.
        sought: True after a seek: the first frame must then lie at or before the span's start.
    """

    def __init__(
        self,
        source: Source,
        span_s: tuple[float, float],
        *,
        fps: float | None,
        size: tuple[int, int] | None,
        limits: Limits,
        sought: bool,
    ) -> None:
        self.source, self.stream, self.limits = source, source.video, limits
        self.start_s, self.length_s = span_s[0], span_s[1] - span_s[0]
        aspect = source.video.codec_context.sample_aspect_ratio
        pixel_aspect = float(aspect) if aspect else 1.0
        self.shaper = PictureShaper(size, pixel_aspect)
        self.grid = None if fps is None else FrameGrid(fps, self.length_s)
        self.sought = sought
        self.arrays: list[NDArray[np.uint8]] = []
        self.times: list[float] = []
        self.held: tuple[VideoFrame, float] | None = (
            None  # its end is known once the next one comes
        )
        self.end_s = 0.0  # end of the last frame, from the start of the span
        self.bytes = 0
        self.disordered = 0
        self.done = False
        rate = source.video.average_rate or source.video.guessed_rate
        self.usual_step_s = 1.0 / float(rate or _DEFAULT_FPS)

    def add(self, frame: VideoFrame) -> None:
        time_s = self._time(frame)
        if self.sought and self.held is None and time_s > STAMP_SLACK_S:
            raise SeekMissed
        if self.held is not None:
            if time_s <= self.held[1]:
                self.disordered += 1
                return
            held_s = self.held[1] + self.start_s
            self.source.check_jump("video", held_s, time_s + self.start_s)
            self._keep(*self.held, until_s=time_s)
        reason = self.limits.refusal(
            pixels=frame.width * frame.height, duration_s=time_s + self.start_s
        )
        if reason:
            raise MediaError(self.source.path, reason)
        self.held = (frame, time_s)
        self.done = time_s >= self.length_s - STAMP_SLACK_S

    def close(self) -> None:
        """No more frames: the last one stays on show for its own duration."""
        if self.held is None:
            return
        frame, time_s = self.held
        length_s = float((frame.duration or 0) * as_fraction(self.stream.time_base))
        self.end_s = time_s + (length_s or self.usual_step_s)
        self._keep(frame, time_s, until_s=self.end_s)

    def frames(self) -> tuple[Tensor | None, Tensor | None]:
        """(T, 3, H, W) uint8 and (T,) float64 seconds from the span's start; None, None without
        frames."""
        if not self.arrays:
            return None, None
        frames_TCHW = np.empty((len(self.arrays), 3, *self.arrays[0].shape[:2]), np.uint8)
        for index, rgb_HWC in enumerate(self.arrays):
            frames_TCHW[index] = rgb_HWC.transpose(2, 0, 1)
        return torch.from_numpy(frames_TCHW), torch.tensor(self.times, dtype=torch.float64)

    def _time(self, frame: VideoFrame) -> float:
        """Seconds from the span's start; some containers (avi) stamp only some frames."""
        stamp = frame.pts if frame.pts is not None else frame.dts
        if stamp is not None:
            return self.source.seconds(stamp, self.stream) - self.start_s
        return self.held[1] + self.usual_step_s if self.held else -self.start_s

    def _keep(self, frame: VideoFrame, time_s: float, until_s: float) -> None:
        if self.grid is None:
            inside = -STAMP_SLACK_S <= time_s < self.length_s - STAMP_SLACK_S
            times = [max(0.0, time_s)] if inside else []
        else:
            times = [step / self.grid.fps for step in self.grid.show(time_s, until_s)]
        if not times:
            return
        at_s = time_s + self.start_s
        if frame.is_corrupt:
            raise MediaError(self.source.path, f"video is damaged at {at_s:.2f} s")
        rgb = self.shaper.shape(frame)
        if self.arrays and rgb.shape != self.arrays[0].shape:
            raise MediaError(
                self.source.path,
                f"the picture changes from {self.arrays[0].shape[:2]} "
                f"to {rgb.shape[:2]} at {at_s:.2f} s; ask for a size",
            )
        self.bytes += rgb.size * len(times)
        reason = self.limits.refusal(frames=len(self.times) + len(times), bytes_=self.bytes)
        if reason:
            raise MediaError(self.source.path, reason)
        self.arrays += [rgb] * len(times)
        self.times += times


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
        interpolation=_RESIZE,
        threads=1,
    )
    frame.time_base = Fraction(1, STAMPS_PER_S)
    frame.pts = round(time_s * STAMPS_PER_S)
    frame.duration = max(1, round(length_s * STAMPS_PER_S))
    return frame


def add_video_stream(container: Any, size: tuple[int, int], fps: float, crf: int) -> Any:
    """An H.264 stream that browsers play: yuv420p, colours tagged, exact stamps, one thread."""
    stream = container.add_stream(
        "libx264",
        rate=Fraction(fps).limit_denominator(1001),
        options={"crf": str(crf), "preset": "medium", "threads": "1"},
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
        return [1.0 / _DEFAULT_FPS] * len(times_s)
    gaps = [after - before for before, after in zip(times_s, times_s[1:], strict=False)]
    if min(gaps) <= 0 or not all(map(math.isfinite, times_s)):
        raise ValueError("times_s of the frames must rise")
    return gaps + gaps[-1:]
