"""Decoded frames to clip frames.

In: PyAV frames in order of time. Out: uint8 RGB with the time of each, sampled on a grid if asked,
and resized in the same swscale call that converts the colours.

Shapes: T frames, C channels, H W pixels."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from av import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray
from torch import Tensor

from mmpredict.media.clock import STAMP_SLACK_S, FrameGrid, as_fraction
from mmpredict.media.container import Source
from mmpredict.media.limits import DamagedError, Limits, MediaError
from mmpredict.media.turning import turned, turning

# Without FULL_CHR_H_INT swscale works at half the chroma resolution: 6 grey levels off a box
# filter.
RESIZE = Interpolation.AREA | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
_COARSE = ("rgb4", "bgr4", "rgb5", "bgr5", "rgb8", "bgr8", "mono")  # fewer than 8 bits a channel
_FIRST_ROOM = 64 * 1024**2  # bytes; more only once frames have come
_ROUNDING = 1e-6  # frames
DEFAULT_FPS = 25.0  # only to give a lone frame without any rate a length


class SeekMissed(Exception):
    """A seek landed behind the span it was for; go further back and try again."""


def stamp_reader(source: Source, stream: Any) -> Callable[[int], float]:
    """`source.seconds` for the stamps of one stream, at a tenth of its cost and to the same bit."""
    base = stream.time_base
    numerator, denominator = base.numerator, base.denominator
    origin_s = source.stream_origin_s(stream)
    return lambda stamp: stamp * numerator / denominator - origin_s


@dataclass(frozen=True)
class _Plan:
    """Size and pixel format to convert a stored picture to, and what is kept of it unless it is
    turned."""

    height: int
    width: int
    target: str
    rows: slice
    columns: slice


class PictureShaper:
    """Turns decoded frames into RGB arrays of one size, with one scaler for the whole stream.

    Args:
        size: (H, W) in pixels, or None to keep the stored pixels. The picture is turned and
            mirrored as its file says, scaled until it covers (H, W) without distortion and cropped
            around its centre.
        pixel_aspect: width over height of a stored pixel; taken into account when `size` is given.
    """

    def __init__(self, size: tuple[int, int] | None, pixel_aspect: float) -> None:
        self.size = size
        self.pixel_aspect = pixel_aspect
        self.reformatter = VideoReformatter()
        self._planned: tuple[object, _Plan | None] = None, None

    def shape(self, frame: VideoFrame, room: Callable[[int, int], NDArray[np.uint8]]) -> None:
        """Write one frame as (3, H, W) RGB to the memory that `room` gives for its (H, W)."""
        mirrored, turns = turning(frame)
        plan = self._plan(frame, turns)
        # threads=1: swscale's own threads waste a quarter of the time at these sizes.
        rgb = self.reformatter.reformat(
            frame, plan.width, plan.height, plan.target, interpolation=RESIZE, threads=1
        )
        if mirrored or turns:
            whole_CHW = np.empty((3, plan.height, plan.width), np.uint8)
            _write_pixels(rgb, slice(0, plan.height), slice(0, plan.width), whole_CHW)
            shown_HWC = turned(whole_CHW.transpose(1, 2, 0), mirrored, turns)
            rows, columns = self._middle(*shown_HWC.shape[:2])
            kept_CHW = shown_HWC[rows, columns].transpose(2, 0, 1)
            room(*kept_CHW.shape[1:])[...] = kept_CHW
        else:
            height, width = plan.rows.stop - plan.rows.start, plan.columns.stop - plan.columns.start
            _write_pixels(rgb, plan.rows, plan.columns, room(height, width))

    def _plan(self, frame: VideoFrame, turns: int) -> _Plan:
        """How to convert; the same for nearly all frames of a file."""
        key = frame.height, frame.width, frame.format.name, turns
        if self._planned[0] == key:
            assert self._planned[1] is not None
            return self._planned[1]
        height, width = self._cover(frame.height, frame.width, turns)
        plan = _Plan(height, width, _target(frame, height, width), *self._middle(height, width))
        self._planned = key, plan
        return plan

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

    def _middle(self, height: int, width: int) -> tuple[slice, slice]:
        """The rows and columns of a picture that are kept."""
        if self.size is None:
            return slice(0, height), slice(0, width)
        top, left = (height - self.size[0]) // 2, (width - self.size[1]) // 2
        return slice(top, top + self.size[0]), slice(left, left + self.size[1])


def _target(frame: VideoFrame, height: int, width: int) -> str:
    """The pixel format to convert to: planes cost a third less and need no transposing.

    They have the bits of packed pixels where the picture keeps its size or shrinks to half or less.
    In between they differ by one level in 1 of 400 values, and where the source has fewer than 8
    bits a channel by more; both stay packed.
    """
    kept = height == frame.height and width == frame.width
    halved = 2 * height <= frame.height and 2 * width <= frame.width
    if (kept or halved) and not frame.format.name.startswith(_COARSE):
        return "gbrp"
    return "rgb24"


def _write_pixels(rgb: VideoFrame, rows: slice, columns: slice, out_CHW: NDArray[np.uint8]) -> None:
    """Copy a converted frame, or a part of it."""
    if rgb.format.name != "gbrp":
        out_CHW[...] = rgb.to_ndarray()[rows, columns].transpose(2, 0, 1)
        return
    # Stored as green, blue, red, each line with room behind it.
    green, blue, red = [np.frombuffer(plane, np.uint8) for plane in rgb.planes]
    if red.size * 3 == out_CHW.size:  # no room and nothing cut: cheaper at one go
        np.concatenate((red, green, blue), out=out_CHW.reshape(-1))
        return
    for channel, plane in zip(out_CHW, (red, green, blue), strict=True):
        channel[...] = plane.reshape(rgb.height, -1)[rows, columns]


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
        aspect = source.video.codec_context.sample_aspect_ratio
        pixel_aspect = float(aspect) if aspect else 1.0
        self.shaper = PictureShaper(size, pixel_aspect)
        self.fps, self.sought = fps, sought
        self.sparse_until_s = -math.inf  # frames before this may have been left out on the way
        rate = source.video.average_rate or source.video.guessed_rate
        self.usual_step_s = 1.0 / float(rate or DEFAULT_FPS)
        self._seconds = stamp_reader(source, source.video)
        # The frame that is on show, whose end is known once the next one comes, and the one before.
        self.held: tuple[VideoFrame, float] | None = None
        self.before: tuple[VideoFrame, float] | None = None
        self.lost: DamagedError | None = None  # damage before the span
        self.waits_for_key = False
        self._start(span_s)

    def _start(self, span_s: tuple[float, float]) -> None:
        self.start_s, self.length_s = span_s[0], span_s[1] - span_s[0]
        self.grid = None if self.fps is None else FrameGrid(self.fps, self.length_s)
        # Room for frames, of which as many are filled as there are times. Written to once, where
        # they stay: fresh memory costs as much as the conversion of the colours.
        self.stored_TCHW: NDArray[np.uint8] | None = None
        self.times: list[float] = []
        self.end_s = 0.0  # end of the last frame, from the start of the span
        self.disordered = 0
        self.done = False

    def following(self, span_s: tuple[float, float]) -> FrameCollector:
        """The collector of a span that starts where this one ends; this one has to be done, or
        closed because nothing more is to come."""
        after = copy.copy(self)
        after._start(span_s)
        after.held = after.before = None
        for held in (self.before, self.held):
            if held is not None:
                after._hold(*held)
        return after

    def add(self, frame: VideoFrame) -> None:
        at_s = self._time(frame)
        time_s = at_s - self.start_s
        if self.waits_for_key:
            if time_s > STAMP_SLACK_S:
                raise self._missed()
            if frame.is_corrupt or not frame.key_frame:
                return
            self.waits_for_key = False
        # What follows a damaged frame is made from it, shown or not. Only what is shown before the
        # key frame that a seek found may lack its references.
        is_leading = self.sought and self.held is None and not frame.key_frame
        if frame.is_corrupt and time_s < self.length_s - STAMP_SLACK_S and not is_leading:
            raise DamagedError(self.source.path, f"video is damaged at {at_s:.2f} s")
        if frame.is_corrupt and is_leading and time_s <= STAMP_SLACK_S:
            return
        self._hold(frame, at_s)

    def lose(self, error: DamagedError, at_s: float) -> None:
        """Start anew with the next key frame after damage at `at_s`, which must not be too late for
        the span.

        Raises:
            DamagedError: it is, or it is the first thing after a seek, which may have led into the
                middle of a packet (mpg): then stamps are wrong, too.
        """
        is_first = self.sought and self.held is None and self.lost is None
        if at_s >= self.start_s or is_first:
            raise error
        self.lost, self.sought, self.waits_for_key = error, True, True
        self.held = self.before = None

    def _missed(self) -> Exception:
        """Why there is no frame for the start of the span."""
        return SeekMissed() if self.lost is None else self.lost

    def _hold(self, frame: VideoFrame, at_s: float) -> None:
        time_s = at_s - self.start_s
        if self.held is None:
            if self.sought and time_s > STAMP_SLACK_S:
                raise self._missed()
        else:
            if at_s <= self.held[1]:
                self.disordered += 1
                return
            if self.held[1] < self.sparse_until_s < at_s and time_s > 0:
                raise SeekMissed
            self.source.check_jump("video", self.held[1], at_s)
            self._keep(*self.held, until_s=time_s)
        pixels = frame.width * frame.height
        if pixels > self.limits.max_pixels or at_s > self.limits.max_duration_s:
            raise self._refused(pixels=pixels, duration_s=at_s)
        self.before, self.held = self.held, (frame, at_s)
        self.done = time_s >= self.length_s - STAMP_SLACK_S

    def close(self) -> None:
        """No more frames: the last one stays on show for its own duration."""
        if self.held is None:
            if self.sought:  # it landed behind the key frame (ts has no index)
                raise self._missed()
            return
        frame, at_s = self.held
        if at_s < self.sparse_until_s:
            raise SeekMissed
        length_s = float((frame.duration or 0) * as_fraction(self.stream.time_base))
        self.end_s = at_s - self.start_s + (length_s or self.usual_step_s)
        self._keep(frame, at_s, until_s=self.end_s)

    def frames(self) -> tuple[Tensor | None, Tensor | None]:
        """(T, 3, H, W) uint8 and (T,) float64 seconds from the span's start; None, None without
        frames. Call it once, at the end."""
        if self.stored_TCHW is None:
            return None, None
        if len(self.times) < len(self.stored_TCHW):
            # Nothing else refers to it yet.
            self.stored_TCHW.resize((len(self.times), *self.stored_TCHW.shape[1:]), refcheck=False)
        frames_TCHW = torch.from_numpy(self.stored_TCHW)
        return frames_TCHW, torch.tensor(self.times, dtype=torch.float64)

    def _time(self, frame: VideoFrame) -> float:
        """On the file's clock; some containers stamp only some frames."""
        no_stamp = frame.pts is None or self.source.counts_frames
        stamp = frame.dts if no_stamp else frame.pts
        if stamp is not None:
            return self._seconds(stamp)
        return self.held[1] + self.usual_step_s if self.held else 0.0

    def _keep(self, frame: VideoFrame, at_s: float, until_s: float) -> None:
        """Store a frame as often as it is shown; `until_s` counts from the span's start."""
        time_s = at_s - self.start_s
        if self.grid is None:
            inside = -STAMP_SLACK_S <= time_s < self.length_s - STAMP_SLACK_S
            times = [max(0.0, time_s)] if inside else []
        else:
            times = [step / self.grid.fps for step in self.grid.show(time_s, until_s)]
        if not times:
            return
        if frame.is_corrupt:
            raise DamagedError(self.source.path, f"video is damaged at {at_s:.2f} s")
        self._at_s, self._copies = at_s, len(times)
        self.shaper.shape(frame, self._room)
        first, after = len(self.times), len(self.times) + len(times)
        assert self.stored_TCHW is not None
        for copy_CHW in self.stored_TCHW[first + 1 : after]:
            copy_CHW[...] = self.stored_TCHW[first]
        self.times += times

    def _room(self, height: int, width: int) -> NDArray[np.uint8]:
        """Memory for the next frame; more than one if it is shown more than once."""
        frames = len(self.times) + self._copies
        shape = (3, height, width)
        stored = self.stored_TCHW
        if stored is not None and stored.shape[1:] != shape:
            raise MediaError(
                self.source.path,
                f"the picture changes from {stored.shape[2:]} to {shape[1:]} at "
                f"{self._at_s:.2f} s; ask for a size",
            )
        bytes_ = 3 * height * width * frames
        if bytes_ > self.limits.max_bytes or frames > self.limits.max_frames:
            raise self._refused(frames=frames, bytes_=bytes_)
        if stored is None:
            most = _FIRST_ROOM // (3 * height * width)
            stored = np.empty((max(frames, min(self._expected(), most)), *shape), np.uint8)
        elif frames > len(stored):
            stored = np.empty((2 * frames, *shape), np.uint8)
            stored[: len(self.times)] = self.stored_TCHW[: len(self.times)]
        self.stored_TCHW = stored
        return stored[len(self.times)]

    def _expected(self) -> int:
        """How many frames the span is likely to have."""
        length_s = min(self.length_s, max(0.0, (self.source.claimed_s or 0.0) - self.start_s))
        fps = 1.0 / self.usual_step_s if self.fps is None else self.fps
        return math.ceil(length_s * fps - _ROUNDING) if self.fps else round(length_s * fps) + 1

    def _refused(self, **amounts: float) -> MediaError:
        reason = self.limits.refusal(**amounts) or "over a limit"
        return MediaError(self.source.path, reason, kind="limits")
