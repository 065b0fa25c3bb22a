"""A video that can be checked for sync: white frames and a tone that start together, at known
times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from mmpredict.schema import Clip

FLASHES_S = (0.5, 1.5, 2.5)
FLASH_S = 0.2
LENGTH_S = 3.2
STAMP = Fraction(1, 90_000)
_STEPPED_CODECS = ("mpeg1video", "mpeg2video", "mpeg4", "mjpeg", "wmv2")


@dataclass(frozen=True)
class Recording:
    """How a flash-and-beep file is made. Times in seconds on the container's clock."""

    name: str = "clip.mp4"
    fps: Fraction = Fraction(30)
    jitter: bool = False  # variable frame rate: every third frame missing, others off the grid
    video_codec: str = "libx264"
    video_options: tuple[tuple[str, str], ...] = (("bf", "0"),)
    audio_codec: str = "aac"
    rate: int = 48_000
    layout: str = "stereo"
    video_start_s: float = 0.0
    audio_start_s: float = 0.0
    rotation: int = 0
    size: tuple[int, int] = (48, 64)
    length_s: float = LENGTH_S
    flashes_s: tuple[float, ...] = FLASHES_S
    sound_first: bool = False  # in the list of streams

    @property
    def origin_s(self) -> float:
        """Where the reader must put t = 0."""
        return min(self.video_start_s, self.audio_start_s)

    def frame_times(self) -> list[float]:
        times, step = [], 1 / self.fps
        for k in range(int(self.length_s * self.fps)):
            time_s = float(k * step)
            if self.jitter:
                if k % 3 == 2:
                    continue
                time_s += 0.3 * float(step) * ((k * 7) % 5) / 5 if k else 0.0
            if time_s >= self.video_start_s:
                times.append(time_s)
        return times

    def is_on(self, time_s: np.ndarray | float) -> np.ndarray:
        """Whether flash and tone are on at these times."""
        time_s = np.asarray(time_s)
        # 1e-6: frame times are rounded to the stamps of the container
        on = [(time_s >= t - 1e-6) & (time_s < t + FLASH_S - 1e-6) for t in self.flashes_s]
        return np.any(on, axis=0)

    def waveform(self, channels: int) -> np.ndarray:
        """(channels, S) from audio_start_s to the end."""
        first, last = round(self.audio_start_s * self.rate), round(self.length_s * self.rate)
        time_s = np.arange(first, last) / self.rate
        tone = 0.6 * np.sin(2 * np.pi * 1000 * time_s) * self.is_on(time_s)
        return np.repeat(tone[None].astype(np.float32), channels, axis=0)

    def write(self, folder: Path) -> Path:
        path = folder / self.name
        with av.open(str(path), "w") as container:
            video = None if self.sound_first else self._video(container)
            # FFmpeg's own Vorbis encoder calls itself experimental; it does for a tone.
            strict = {"strict": "-2"} if self.audio_codec == "vorbis" else {}
            audio = container.add_stream(self.audio_codec, rate=self.rate, options=strict)
            audio.layout = self.layout
            video = video or self._video(container)
            self._encode(container, video, audio)
        return path

    def _video(self, container):
        video = container.add_stream(
            self.video_codec, rate=self.fps, options=dict(self.video_options)
        )
        full_range = self.video_codec == "mjpeg"
        video.height, video.width = self.size
        video.pix_fmt = "yuvj420p" if full_range else "yuv420p"
        # An avi counts frames and has no stamps; the older codecs have one step for all frames.
        if self.name.endswith(".avi") or self.video_codec in _STEPPED_CODECS:
            video.codec_context.time_base = 1 / self.fps
        else:
            video.codec_context.time_base = STAMP
        if self.rotation:
            video.set_display_rotation(self.rotation)
        return video

    def _encode(self, container, video, audio) -> None:
        base = video.codec_context.time_base
        base = Fraction(base.numerator, base.denominator)
        for time_s in self.frame_times():
            level = 235 if self.is_on(round(time_s, 5)) else 16
            picture = np.full((*self.size, 3), level, np.uint8)
            picture[: self.size[0] // 4, : self.size[1] // 4] = 128  # marks the top left
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time_s / base), base
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        layout = av.AudioLayout(self.layout)
        waveform = self.waveform(layout.nb_channels)
        context_format = audio.codec_context.format.name
        resampler = av.AudioResampler(format=context_format, layout=self.layout, rate=self.rate)
        first, step = round(self.audio_start_s * self.rate), 960
        for at in range(0, waveform.shape[1], step):
            part = np.ascontiguousarray(waveform[:, at : at + step])
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=self.layout)
            frame.sample_rate, frame.time_base = self.rate, Fraction(1, self.rate)
            frame.pts = first + at
            for ready in resampler.resample(frame):
                container.mux(audio.encode(ready))
        container.mux(audio.encode(None))


@pytest.fixture
def recording() -> type[Recording]:
    return Recording


def _onsets(on: np.ndarray, times: np.ndarray) -> np.ndarray:
    rises = np.flatnonzero(on[1:] & ~on[:-1]) + 1
    return times[rises]


@pytest.fixture
def events() -> Callable[[Clip], tuple[np.ndarray, np.ndarray]]:
    """Times at which the picture turns white, and at which the tone starts."""

    def find(clip: Clip) -> tuple[np.ndarray, np.ndarray]:
        bright = (clip.frames_TCHW.float().mean((1, 2, 3)) > 128).numpy()
        flashes = _onsets(bright, clip.times_s.numpy())
        loud = clip.waveform_CS.abs().amax(0)
        # a tone of 1 kHz crosses zero: hold its peaks for 2 ms
        hold = int(0.002 * clip.sample_rate)
        envelope = torch.nn.functional.max_pool1d(loud[None], 2 * hold + 1, 1, hold)[0] > 0.15
        times = clip.waveform_start_s + np.arange(len(loud)) / clip.sample_rate
        return flashes, _onsets(envelope.numpy(), times) + hold / clip.sample_rate

    return find
