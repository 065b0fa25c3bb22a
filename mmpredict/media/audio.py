"""Decoded sound to a waveform whose sample index is its time, and back to frames for the encoder.

In: PyAV sound frames in order of time. Out: float32 at the asked rate and number of channels.

Shapes: C channels, S samples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from av import AudioFrame, AudioResampler
from numpy.typing import NDArray
from torch import Tensor

from mmpredict.media.clock import SampleTimeline, as_fraction, resampling_lattice, snap_to_lattice
from mmpredict.media.container import Source, head_frames
from mmpredict.media.limits import Limits, MediaError
from mmpredict.media.video import SeekMissed

AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_AAC_FRAME = 1024
_AAC_BITS_PER_CHANNEL = 96_000  # transparent for mono speech to music at these rates
_MAX_PADDING = 4096  # samples; the longest packet of a usual codec is 2048
_CHUNK = 1 << 16  # samples handed to the resampler at once
_HALF_POWER = math.sqrt(0.5)


def mixing_matrix(names: list[str], channels: int) -> NDArray[np.float32]:
    """Weights (channels, len(names)) that mix named speakers down to 1 or 2 without clipping.

    Front left and right count fully, centre and surround at half power, the subwoofer not at all;
    then all is scaled so that no sum of weights exceeds 1. One channel becomes two by repetition.
    """
    if len(names) == 1:
        return np.ones((channels, 1), np.float32)
    if any(name in ("NONE", "UNK", "") or name.startswith("USR") for name in names):
        names = {2: ["FL", "FR"], 6: ["FL", "FR", "FC", "LFE", "BL", "BR"]}.get(
            len(names), ["FC"] * len(names)
        )
    weights = np.zeros((2, len(names)), np.float32)
    for column, name in enumerate(names):
        front = 1.0 if name in ("FL", "FR", "DL", "DR") else _HALF_POWER
        if name.startswith("LFE"):
            continue
        weights[0, column] = 0.0 if name.endswith("R") else front
        weights[1, column] = 0.0 if name.endswith("L") else front
    if channels == 1:
        weights = weights.mean(axis=0, keepdims=True)
    return weights / max(1e-9, weights.sum(axis=1).max())


def float_samples(frame: AudioFrame) -> NDArray[np.float32]:
    """Samples of any PCM format as (C, S) float32, full scale at 1."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:  # packed: (1, S * C)
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128.0) / 128.0
    if np.issubdtype(samples.dtype, np.signedinteger):
        return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    return samples.astype(np.float32)


def resample(waveform_CS: NDArray[np.float32], rate: int, target_rate: int) -> NDArray[np.float32]:
    """Change the sample rate; sample 0 stays at the same time. Ends within a few samples of exact
    length."""
    if rate == target_rate:
        return waveform_CS
    rows = []
    for row_S in waveform_CS:  # row by row: any number of channels, no layout to name
        resampler = AudioResampler(format="fltp", layout="mono", rate=target_rate)
        pieces = []
        for start in range(0, len(row_S), _CHUNK):
            part = np.ascontiguousarray(row_S[None, start : start + _CHUNK])
            frame = AudioFrame.from_ndarray(part, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            pieces += [out.to_ndarray()[0] for out in resampler.resample(frame)]
        pieces += [out.to_ndarray()[0] for out in resampler.resample(None)]
        rows.append(np.concatenate(pieces) if pieces else np.zeros(0, np.float32))
    return np.stack(rows)


class SoundCollector:
    """Keeps the sound of a span, every sample at its time.

    Args:
        source: the open file.
        span_s: (start, end) on the file's clock; end may be inf. The start counts as the nearest
            sample.
        sample_rate: Hz to deliver, or None for the file's own.
        channels: 1 or 2 to deliver, or None for the file's own.
        limits: held against what is decoded.
        sought: True after a seek: the first sample must then lie at or before the span's start.
    """

    def __init__(
        self,
        source: Source,
        span_s: tuple[float, float],
        *,
        sample_rate: int | None,
        channels: int | None,
        limits: Limits,
        sought: bool,
    ) -> None:
        self.source, self.stream, self.limits, self.sought = source, source.audio, limits, sought
        self.start_s, self.length_s = span_s[0], span_s[1] - span_s[0]
        self.asked_rate, self.asked_channels = sample_rate, channels
        self.rate = (
            0  # of the decoded sound; known with the first frame (headers of HE-AAC halve it)
        )
        self.matrix: NDArray[np.float32] | None = None
        self.layout: list[str] = []
        self.lattice: tuple[int, int] | None = None  # (anchor, step), see find_lattice
        self.chunks: list[tuple[int, NDArray[np.float32]]] = []
        self.bytes = 0
        self.done = False

    @property
    def target_rate(self) -> int:
        return self.asked_rate or self.rate

    @property
    def end_s(self) -> float:
        """End of the decoded sound, from the start of the span."""
        if not self.rate or self.timeline.next_index is None:
            return 0.0
        end = self.timeline.next_index
        if self.stream.duration is not None and self.stream.start_time is not None:
            stamp = self.stream.start_time + self.stream.duration
            claimed = round(self.source.seconds(stamp, self.stream) * self.rate)
            if 0 < end - claimed <= _MAX_PADDING:
                end = claimed  # what the encoder added to fill its last packet
        return end / self.rate - self.start_s

    def find_lattice(self) -> None:
        """Before a seek: learn from the file's first packets where later ones lie, to the
        sample."""
        if (1 / as_fraction(self.stream.time_base)) % self.stream.codec_context.sample_rate == 0:
            return  # stamps are exact already
        frames = head_frames(self.source, self.stream, 3)
        if (
            len(frames) == 3
            and frames[0].pts is not None
            and frames[1].samples == frames[2].samples
        ):
            first = self._near_zero(
                self._stamp_index(frames[0], frames[0].sample_rate), frames[0].sample_rate
            )
            self.lattice = (first + frames[0].samples, frames[1].samples)

    def add(self, frame: AudioFrame) -> None:
        names = [channel.name for channel in frame.layout.channels]
        if not self.rate:
            self._begin(frame.sample_rate, names)
        at_s = self.end_s + self.start_s
        if frame.sample_rate != self.rate or names != self.layout:
            raise MediaError(
                self.source.path,
                f"sound changes from {len(self.layout)} channels at "
                f"{self.rate} Hz to {len(names)} at {frame.sample_rate} at {at_s:.2f} s",
            )
        if frame.is_corrupt:
            raise MediaError(self.source.path, f"sound is damaged at {at_s:.2f} s")
        waveform_CS = float_samples(frame)
        index = self._index(frame)
        if not self.sought or self.timeline.next_index is not None:
            before_s = (self.timeline.next_index or 0) / self.rate
            self.source.check_jump("sound", before_s, index / self.rate)
        first, drop = self.timeline.place(index, waveform_CS.shape[1])
        reason = self.limits.refusal(duration_s=first / self.rate, bytes_=self.bytes)
        if reason:
            raise MediaError(self.source.path, reason)
        self._keep(first, waveform_CS[:, drop:])
        self.done = self.timeline.next_index >= self.keep_to

    def waveform(self, length_s: float) -> Tensor | None:
        """(C, round(length_s * rate)) float32 in [-1, 1], silence wherever the file has no sound.

        None if nothing was decoded and the header does not even give a rate.
        """
        if not self.rate:
            context = self.stream.codec_context
            if not context.sample_rate:
                return None
            self._begin(context.sample_rate, ["FC"] * max(1, context.channels))
        wanted = round(length_s * self.target_rate)
        needed = math.ceil((self.lead + wanted) * self.rate / self.target_rate) + self.margin
        channels = len(self.layout) if self.matrix is None else len(self.matrix)
        reason = self.limits.refusal(bytes_=4 * channels * (needed + wanted))
        if reason:
            raise MediaError(self.source.path, reason)
        laid_CS = np.zeros((channels, needed), np.float32)
        for first, chunk_CS in self.chunks:
            at = first - self.keep_from
            part = chunk_CS[:, max(0, -at) : max(0, needed - at)]
            laid_CS[:, max(0, at) : max(0, at) + part.shape[1]] = part
        if not np.isfinite(laid_CS).all():
            raise MediaError(self.source.path, "sound has samples that are not numbers")
        resampled_CS = resample(laid_CS, self.rate, self.target_rate)
        kept_CS = np.zeros((channels, wanted), np.float32)
        part = resampled_CS[:, self.lead : self.lead + wanted]
        kept_CS[:, : part.shape[1]] = part
        return torch.from_numpy(kept_CS).clamp_(-1.0, 1.0)

    def notices(self) -> list[str]:
        """What had to be changed, in words."""
        found = []
        if self.matrix is not None and len(self.layout) > len(self.matrix):
            found.append(f"{len(self.layout)} channels mixed down to {len(self.matrix)}")
        if self.rate and self.timeline.hole_samples:
            found.append(
                f"{self.timeline.hole_samples / self.rate:.3f} s of missing sound set to silence"
            )
        if self.rate and self.timeline.cut_samples:
            found.append(f"{self.timeline.cut_samples / self.rate:.3f} s of overlapping sound cut")
        return found

    def _begin(self, rate: int, names: list[str]) -> None:
        """Decide, at the decoded rate, which samples the span needs."""
        self.rate, self.layout = rate, names
        self.timeline = SampleTimeline(rate)
        if self.asked_channels is not None and self.asked_channels != len(names):
            self.matrix = mixing_matrix(names, self.asked_channels)
        start = round(self.start_s * self.target_rate)  # in delivered samples
        if rate == self.target_rate:
            self.margin = self.lead = 0
            self.keep_from = start
        else:
            # Resampling starts where both rates have a sample at the same time, so a window gets
            # the same filter phases as the whole, and early enough for the filter to have run in.
            source_step, target_step = resampling_lattice(rate, self.target_rate)
            self.margin = math.ceil(64 * max(1.0, rate / self.target_rate))
            steps = math.floor((self.start_s * rate - self.margin) / source_step)
            self.keep_from = steps * source_step
            self.lead = start - steps * target_step
        end = self.start_s + self.length_s
        self.keep_to = math.inf if math.isinf(end) else math.ceil(end * rate) + self.margin

    def _keep(self, first: int, waveform_CS: NDArray[np.float32]) -> None:
        if first + waveform_CS.shape[1] <= self.keep_from or first >= self.keep_to:
            return
        if self.matrix is not None:
            waveform_CS = self.matrix @ waveform_CS
        self.bytes += waveform_CS.nbytes
        self.chunks.append((first, waveform_CS))

    def _index(self, frame: AudioFrame) -> int:
        """Where a frame says its first sample lies; without a stamp it follows the one before
        it."""
        if frame.pts is None:
            return self.timeline.next_index or 0
        index = self._stamp_index(frame, self.rate)
        if self.timeline.next_index is None:
            if self.lattice is not None:
                tick = float(as_fraction(self.stream.time_base)) * self.rate
                index = snap_to_lattice(index, *self.lattice, tick)
            elif not self.sought:
                index = self._near_zero(index, self.rate)
            if self.sought and index > max(0, self.keep_from):
                raise SeekMissed
        return index

    def _stamp_index(self, frame: AudioFrame, rate: int) -> int:
        return round(self.source.seconds(frame.pts, self.stream) * rate)

    def _near_zero(self, index: int, rate: int) -> int:
        """A start within one unit of the container's time base of t = 0 is t = 0, rounded."""
        return 0 if abs(index) <= float(as_fraction(self.stream.time_base)) * rate else index


def add_sound_stream(container: Any, rate: int, channels: int) -> Any:
    """An AAC stream, mono or stereo."""
    stream = container.add_stream("aac", rate=rate)
    stream.layout = "mono" if channels == 1 else "stereo"
    stream.bit_rate = _AAC_BITS_PER_CHANNEL * channels
    return stream


def encoder_chunks(waveform_CS: NDArray[np.float32], rate: int, start: int) -> Iterator[AudioFrame]:
    """A waveform for an AAC encoder, chunk by chunk; `start` is the index of its first sample."""
    layout = "mono" if len(waveform_CS) == 1 else "stereo"
    for at in range(0, waveform_CS.shape[1], _AAC_FRAME):
        part = np.ascontiguousarray(waveform_CS[:, at : at + _AAC_FRAME])
        frame = AudioFrame.from_ndarray(part, format="fltp", layout=layout)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), start + at
        yield frame
