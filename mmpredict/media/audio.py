"""Decoded sound to a waveform whose sample index is its time, and back to frames for the encoder.

In: PyAV sound frames in order of time. Out: float32 at the asked rate and number of channels.

Shapes: C channels, S samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from av import AudioFrame, AudioResampler
from numpy.typing import NDArray
from torch import Tensor

from mmpredict.media.clock import (
    SampleTimeline,
    as_fraction,
    resampling_lattice,
    snap_to_lattice,
    sound_jitter,
)
from mmpredict.media.container import Source, head_frames
from mmpredict.media.limits import DamagedError, Limits, MediaError
from mmpredict.media.video import SeekMissed, stamp_reader

AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_AAC_FRAME = 1024
_AAC_BITS_PER_CHANNEL = 96_000  # transparent for mono speech to music at these rates
_MAX_PADDING = 4096  # samples; the longest packet of a usual codec is 2048
_CHUNK = 1 << 16  # samples handed to the resampler at once
# Decoders of sound mix in what came before: MP3 up to 0.25 s, Opus 0.08.
SWING_IN_S = 0.4
_STAND_ALONE = ("flac", "alac", "tta", "wavpack", "pcm_")  # but in these packets stand alone
_AAC_PACKETS = 3  # and AAC mixes in one, or two where it makes high notes out of low ones
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
    if frame.format.name == "fltp":  # what most decoders give, and no need for the long way
        return np.array([np.frombuffer(p, np.float32, frame.samples) for p in frame.planes])
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
        # Of the decoded sound; known with the first frame (headers of HE-AAC halve the rate).
        self.rate = 0
        self.layout = ""
        self.matrix: NDArray[np.float32] | None = None
        self.num_channels = self.num_source_channels = 0
        self.lattice: tuple[int, int] | None = None  # (anchor, step), see find_lattice
        self.chunks: list[tuple[int, NDArray[np.float32]]] = []
        self.bytes = 0
        self.done = False
        self.holes: list[tuple[int, int]] = []  # where sound was missing: (first sample, count)
        self.cuts: list[tuple[int, int]] = []  # where it overlapped
        self.lost: DamagedError | None = None  # damage before the span
        self.samples = 0  # of the last frame
        self._seconds = stamp_reader(source, source.audio)
        self._tick_s = float(as_fraction(source.audio.time_base))
        self._delivered: tuple[int, NDArray[np.float32]] | None = None

    @property
    def target_rate(self) -> int:
        return self.asked_rate or self.rate

    @property
    def end_s(self) -> float:
        """End of the decoded sound, from the start of the span."""
        return self.end_from(self.start_s)

    def end_from(self, start_s: float, reached: int | None = None) -> float:
        """End of the decoded sound, or of its samples before `reached`, from some start on the
        file's clock."""
        if not self.rate or self.timeline.next_index is None:
            return 0.0
        end = self.timeline.next_index if reached is None else reached
        if self.stream.duration is not None and self.stream.start_time is not None:
            stamp = self.stream.start_time + self.stream.duration
            claimed = round(self._seconds(stamp) * self.rate)
            if 0 < end - claimed <= _MAX_PADDING:
                end = claimed  # what the encoder added to fill its last packet
        return end / self.rate - start_s

    def find_lattice(self) -> None:
        """Before a seek: learn from the file's first packets where later ones lie, to the
        sample."""
        if not self.stamps_are_exact():
            self.lattice = self.lattice_of(head_frames(self.source, self.stream, 3))

    def stamps_are_exact(self) -> bool:
        """Whether the container can say at which sample a packet starts."""
        base = as_fraction(self.stream.time_base)
        return (1 / base) % self.stream.codec_context.sample_rate == 0

    def lattice_of(self, frames: Sequence[AudioFrame]) -> tuple[int, int] | None:
        """(anchor, step) from the first three frames of a file, if they are of equal size."""
        if len(frames) < 3 or frames[0].pts is None or frames[1].samples != frames[2].samples:
            return None
        rate = frames[0].sample_rate
        first = self._near_zero(self._stamp_index(frames[0], rate), rate)
        return first + frames[0].samples, frames[1].samples

    def add(self, frame: AudioFrame) -> tuple[int, int]:
        """Take a frame; returns where its first sample lies, and how many of its first were cut."""
        layout = frame.layout.name
        if not self.rate:
            self._begin(frame.sample_rate, layout, [c.name for c in frame.layout.channels])
        if frame.sample_rate != self.rate or layout != self.layout:
            raise MediaError(
                self.source.path,
                f"sound changes from {self.num_source_channels} channels at {self.rate} Hz to "
                f"{frame.layout.nb_channels} at {frame.sample_rate} at {self._at_s():.2f} s",
            )
        if frame.is_corrupt:
            raise DamagedError(self.source.path, f"sound is damaged at {self._at_s():.2f} s")
        waveform_CS = float_samples(frame)
        index = self._index(frame)
        next_index = self.timeline.next_index
        if not self.sought or next_index is not None:
            self.source.check_jump("sound", (next_index or 0) / self.rate, index / self.rate)
        self.samples = frame.samples
        first, drop = self.timeline.place(index, waveform_CS.shape[1])
        is_hole = next_index is not None and first > next_index
        if self.source.kind == "flac" and (drop or is_hole):  # its parser drops what is damaged
            raise DamagedError(self.source.path, f"sound is damaged at {self._at_s():.2f} s")
        if drop:
            self.cuts.append((first, drop))
        if is_hole:
            self.holes.append((next_index, first - next_index))
        if first / self.rate > self.limits.max_duration_s or self.bytes > self.limits.max_bytes:
            reason = self.limits.refusal(duration_s=first / self.rate, bytes_=self.bytes)
            raise MediaError(self.source.path, reason or "over a limit", kind="limits")
        self._keep(first, waveform_CS[:, drop:] if drop else waveform_CS)
        self.done = self.timeline.next_index >= self.keep_to
        return first, drop

    def lose(self, error: DamagedError, at_s: float) -> None:
        """Start anew with the next packet after damage at `at_s`, which must not be too late for
        the span.

        Raises:
            DamagedError: it is, or it is the first thing after a seek or of the file: then nobody
                can say at which sample a later packet starts.
        """
        reached = self.timeline.next_index if self.rate else None
        if at_s >= self.start_s or (reached is None and self.lost is None):
            raise error
        if self.lattice is None and reached is not None and not self.stamps_are_exact():
            self.lattice = reached, self.samples
        if self.rate:
            self.timeline = SampleTimeline(self.rate, self.timeline.jitter)
        self.lost, self.sought = error, True
        self.chunks, self.holes, self.cuts, self.bytes = [], [], [], 0

    def window(self, start_s: float, length_s: float) -> Tensor | None:
        """(C, round(length_s * rate)) float32 in [-1, 1], silence wherever the file has no sound.

        Call it once all sound is added; any part of the span, as often as wanted.

        None if nothing was decoded and the header does not even give a rate.
        """
        if not self.rate:
            context = self.stream.codec_context
            if not context.sample_rate:
                return None
            count = max(1, context.channels)
            self._begin(context.sample_rate, "", ["FC"] * count)
        wanted = round(length_s * self.target_rate)
        self.limits.check(self.source.path, bytes_=self.bytes_of(length_s))
        start, delivered_CS = self._deliver()
        kept_CS = np.zeros((self.num_channels, wanted), np.float32)
        at = round(start_s * self.target_rate) - start
        part = delivered_CS[:, at : at + wanted]
        kept_CS[:, : part.shape[1]] = part
        if kept_CS.size:
            least, most = kept_CS.min(), kept_CS.max()
            if not (np.isfinite(least) and np.isfinite(most)):
                raise MediaError(self.source.path, "sound has samples that are not numbers")
            if least < -1.0 or most > 1.0:
                kept_CS.clip(-1.0, 1.0, out=kept_CS)
        return torch.from_numpy(kept_CS)

    def bytes_of(self, length_s: float) -> int:
        """Memory that a window takes, before and after resampling."""
        if not self.rate:
            return 0
        decoded = math.ceil(length_s * self.rate) + 2 * self.margin
        return 4 * self.num_channels * (decoded + round(length_s * self.target_rate))

    def _deliver(self) -> tuple[int, NDArray[np.float32]]:
        """All that was kept, laid end to end and resampled once; and the index of its first sample
        at the target rate."""
        if self._delivered is None:
            ends = [first + chunk_CS.shape[1] for first, chunk_CS in self.chunks]
            # Behind the end the resampler mirrors what it has: that must be silence.
            end = min(max(ends, default=self.keep_from), self.keep_to) + self.margin
            laid_CS = np.zeros((self.num_channels, max(0, end - self.keep_from)), np.float32)
            length = laid_CS.shape[1]
            for first, chunk_CS in self.chunks:
                at = first - self.keep_from
                if at < 0 or at + chunk_CS.shape[1] > length:  # sticks out
                    chunk_CS = chunk_CS[:, max(0, -at) : max(0, length - at)]
                    at = max(0, at)
                laid_CS[:, at : at + chunk_CS.shape[1]] = chunk_CS
            self._delivered = self.lead_from, resample(laid_CS, self.rate, self.target_rate)
        return self._delivered

    def notices(self, start_s: float, length_s: float) -> list[str]:
        """What had to be changed in a window, in words."""
        found = []
        if self.rate and self.rate != self.target_rate:
            found.append(f"sound resampled from {self.rate} to {self.target_rate} Hz")
        if self.num_source_channels > self.num_channels:
            found.append(f"{self.num_source_channels} channels mixed down to {self.num_channels}")
        words = ((self.holes, "missing sound set to silence"), (self.cuts, "overlapping sound cut"))
        for places, what in words:
            start, end = start_s * self.rate, (start_s + length_s) * self.rate
            inside = [min(first + n, end) - max(first, start) for first, n in places]
            total = sum(max(0.0, count) for count in inside)
            if self.rate and total > 0:
                found.append(f"{total / self.rate:.3f} s of {what}")
        return found

    def _at_s(self) -> float:
        return self.end_s + self.start_s

    def _begin(self, rate: int, layout: str, names: list[str]) -> None:
        """Decide, at the decoded rate, which samples the span needs."""
        self.rate, self.layout, self.num_source_channels = rate, layout, len(names)
        jitter = sound_jitter(rate, self.stream.codec_context.name)
        self.timeline = SampleTimeline(rate, jitter)
        self.num_channels = len(names)
        if self.asked_channels is not None and self.asked_channels != len(names):
            self.matrix = mixing_matrix(names, self.asked_channels)
            self.num_channels = self.asked_channels
        start = round(self.start_s * self.target_rate)  # in delivered samples
        if rate == self.target_rate:
            self.margin = 0
            self.keep_from = self.lead_from = start
        else:
            # Resampling starts where both rates have a sample at the same time, so a window gets
            # the same filter phases as the whole, and early enough for the filter to have run in.
            source_step, target_step = resampling_lattice(rate, self.target_rate)
            self.margin = math.ceil(64 * max(1.0, rate / self.target_rate))
            steps = math.floor((self.start_s * rate - self.margin) / source_step)
            self.keep_from, self.lead_from = steps * source_step, steps * target_step
        end_s = self.start_s + self.length_s
        self.keep_to = math.inf if math.isinf(end_s) else self.needed_until(end_s)

    def needed_until(self, end_s: float) -> int:
        """The sample up to which a window that ends at `end_s` depends on the decoded sound."""
        return math.ceil(end_s * self.rate) + 1 + self.margin  # 1: start and length are rounded

    def _keep(self, first: int, waveform_CS: NDArray[np.float32]) -> None:
        if first + waveform_CS.shape[1] <= self.keep_from or first >= self.keep_to:
            return
        if self.matrix is not None:
            # Not by BLAS: its threads do not survive the fork of a loader's process.
            waveform_CS = np.einsum("oc,cs->os", self.matrix, waveform_CS)
        self.bytes += waveform_CS.nbytes
        self.chunks.append((first, waveform_CS))

    def _index(self, frame: AudioFrame) -> int:
        """Where a frame says its first sample lies; without a stamp it follows the one before
        it."""
        if frame.pts is None:
            return self.timeline.next_index or 0
        if self.timeline.next_index is not None:
            return self._stamp_index(frame, self.rate)
        if not self.sought:
            return self._near_zero(self._stamp_index(frame, self.rate), self.rate)
        index = self.place_after_seek(frame, self.lattice)
        if self.lost is not None:
            if index > self.keep_from - self._swing_in(frame):
                raise self.lost
        elif index > max(0, self.keep_from):
            raise SeekMissed
        return index

    def _swing_in(self, frame: AudioFrame) -> float:
        """So many samples after damage a decoder gives what it would have given without it."""
        name = self.stream.codec_context.name
        if name.startswith(_STAND_ALONE):
            return 0.0
        return _AAC_PACKETS * frame.samples if name == "aac" else SWING_IN_S * self.rate

    def place_after_seek(self, frame: AudioFrame, lattice: tuple[int, int] | None) -> int:
        """Where a stamped frame's first sample lies for a reader that starts with it."""
        index = self._stamp_index(frame, self.rate)
        if lattice is None:
            return index
        return snap_to_lattice(index, *lattice, self._tick_s * self.rate)

    def _stamp_index(self, frame: AudioFrame, rate: int) -> int:
        return round(self._seconds(frame.pts) * rate)

    def _near_zero(self, index: int, rate: int) -> int:
        """A start within one unit of the container's time base of t = 0 is t = 0, rounded."""
        return 0 if abs(index) <= self._tick_s * rate else index


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
