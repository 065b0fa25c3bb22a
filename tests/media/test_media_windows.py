"""Law: windows read together are, each, what `read_clip` gives for it alone; one that it refuses is
its MediaError and spoils no other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from mmpredict.media import Limits, MediaError, read_clip, read_windows, windows
from mmpredict.schema import Clip
from tests.media.test_media_sync import CASES as SYNC_CASES

GRID = {"fps": 10.0, "size": (16, 16), "sample_rate": 16_000, "channels": 1}
B_FRAMES = {"bf": "3", "b_strategy": "0", "g": "250", "sc_threshold": "0"}
SHORT_GOP = B_FRAMES | {"g": "30"}
STAMP = Fraction(1, 90_000)


@dataclass(frozen=True)
class Film:
    """A file in which no two frames, and no two moments of sound, are alike.

    Args:
        video_s, sound_s: (start, end) of the streams; None leaves one out.
        pause_s: (from, to): no frame is stamped in between.
    """

    name: str = "film.mp4"
    fps: int = 30
    video_codec: str = "libx264"
    video_options: dict[str, str] = field(default_factory=lambda: B_FRAMES)
    audio_codec: str = "aac"
    substitute_noise: bool = False  # in AAC; its decoders draw that noise anew in each place
    rate: int = 44_100
    video_s: tuple[float, float] | None = (0.0, 6.0)
    sound_s: tuple[float, float] | None = (0.0, 6.0)
    jitter: bool = False
    pause_s: tuple[float, float] = (0.0, 0.0)
    noise: float = 0.0

    def write(self, folder: Path) -> Path:
        path = folder / self.name
        with av.open(str(path), "w") as container:
            video = audio = None
            if self.video_s:
                video = self._video(container)
            if self.sound_s:
                options = {"aac_pns": str(int(self.substitute_noise))}
                audio = container.add_stream(
                    self.audio_codec,
                    rate=self.rate,
                    options=options if self.audio_codec == "aac" else {},
                )
                audio.layout = "mono"
            # In order of time, as players need it.
            steps = [(t, 0, t) for t in self._times()] if video else []
            if audio:
                steps += [(first / self.rate, 1, first) for first in self._firsts()]
            for _, kind, what in sorted(steps):
                stream = (video, audio)[kind]
                container.mux(
                    stream.encode(self._picture(video, what) if kind == 0 else self._sound(what))
                )
            for stream in (video, audio):
                if stream is not None:
                    container.mux(stream.encode(None))
        return path

    def _video(self, container):
        video = container.add_stream(self.video_codec, rate=self.fps, options=self.video_options)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.time_base = (
            Fraction(1, self.fps) if self.name.endswith("avi") else STAMP
        )
        return video

    def _times(self) -> list[float]:
        start, end = self.video_s
        times = [k / self.fps for k in range(round(start * self.fps), round(end * self.fps))]
        if self.jitter:
            times = [
                t + 0.3 / self.fps * (k * 7 % 5) / 5 for k, t in enumerate(times) if k % 3 != 2
            ]
        return [t for t in times if not self.pause_s[0] < t < self.pause_s[1]]

    def _picture(self, video, time_s: float) -> av.VideoFrame:
        y, x = np.mgrid[:48, :64]
        waves = [128 + 100 * np.sin(x / (5 + k) + y / 9 + 7 * time_s * (k + 1)) for k in range(3)]
        frame = av.VideoFrame.from_ndarray(np.stack(waves, -1).astype(np.uint8), format="rgb24")
        base = Fraction(video.codec_context.time_base)
        frame.pts, frame.time_base = round(time_s / base), base
        return frame

    def _firsts(self) -> range:
        start, end = self.sound_s
        return range(round(start * self.rate), round(end * self.rate), 960)

    def _sound(self, first: int) -> av.AudioFrame:
        t = np.arange(first, min(first + 960, round(self.sound_s[1] * self.rate))) / self.rate
        wave = 0.4 * np.sin(2 * np.pi * (300 + 40 * t) * t)
        wave += self.noise * np.random.default_rng(first).normal(size=len(t))
        packed = self.audio_codec.startswith("pcm")
        samples = (wave * 32767).astype(np.int16) if packed else wave.astype(np.float32)
        kind = "s16" if packed else ("fltp" if self.audio_codec != "libopus" else "flt")
        frame = av.AudioFrame.from_ndarray(samples[None], format=kind, layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = self.rate, Fraction(1, self.rate), first
        return frame


MP3 = {"audio_codec": "libmp3lame"}
CASES = {
    "gop_250": {},
    "short_gop": {"video_options": SHORT_GOP},
    "variable": {"jitter": True},
    "pause": {"pause_s": (1.9, 4.7)},
    "late_video": {"video_s": (0.63, 6.0)},
    "late_sound": {"sound_s": (1.21, 6.0)},
    "both_late": {"video_s": (0.5, 6.0), "sound_s": (0.3, 6.0)},
    "short_video": {"video_s": (0.0, 2.9), "sound_s": (0.0, 15.0), "rate": 16_000},
    "short_sound": {"video_s": (0.0, 15.0), "sound_s": (0.0, 2.7), "fps": 12, "rate": 16_000},
    "mkv": {"name": "film.mkv"},
    "mkv_mp3": {"name": "film.mkv", "video_options": SHORT_GOP} | MP3,
    "mkv_pcm": {"name": "film.mkv", "audio_codec": "pcm_s16le"},
    "ts": {"name": "film.ts", "video_options": SHORT_GOP},
    "avi": {"name": "film.avi", "video_codec": "mpeg4", "video_options": {}} | MP3,
    "mov": {"name": "film.mov", "audio_codec": "pcm_s16le", "rate": 22_050},
    "flv": {"name": "film.flv", "video_options": SHORT_GOP},
    "silent": {"sound_s": None},
    "m4a": {"name": "film.m4a", "video_s": None},
    "mp3": {"name": "film.mp3", "video_s": None} | MP3,
    "wav": {"name": "film.wav", "video_s": None, "audio_codec": "pcm_s16le"},
}
# start, length, count: on the grid, off the grid, from a seek, over the end, shorter than a frame
SPLITS = [
    (0.0, 0.7, 11, GRID),
    (0.4, 0.533, 12, {"fps": 7.3, "sample_rate": 22_050}),
    (2.3, 0.61, 8, {"size": (40, 40)}),
    (3.1, 0.011, 5, GRID | {"fps": 30.0}),
]


def alone(path: Path, start_s: float, length_s: float, **options) -> Clip | MediaError:
    try:
        return read_clip(path, start_s=start_s, duration_s=length_s, **options)
    except MediaError as error:
        return error


def assert_same(found: Clip | MediaError, wanted: Clip | MediaError) -> None:
    assert type(found) is type(wanted), (found, wanted)
    if isinstance(wanted, MediaError):
        assert (found.path, found.reason) == (wanted.path, wanted.reason)
        return
    for name in ("frames_TCHW", "times_s", "waveform_CS"):
        ours, theirs = getattr(found, name), getattr(wanted, name)
        assert (ours is None) == (theirs is None), name
        assert ours is None or torch.equal(ours, theirs), name
    for name in ("sample_rate", "waveform_start_s", "name", "notices"):
        assert getattr(found, name) == getattr(wanted, name)


def check(path: Path, start_s: float, length_s: float, count: int, **options) -> Sequence:
    together = read_windows(path, start_s, length_s, count, **options)
    assert len(together) == count
    for k, window in enumerate(together):
        assert_same(window, alone(path, start_s + k * length_s, length_s, **options))
    return together


@pytest.mark.parametrize("case", CASES)
def test_windows_are_what_read_clip_gives(case, tmp_path):
    path = Film(**CASES[case]).write(tmp_path)
    for start_s, length_s, count, options in SPLITS:
        check(path, start_s, length_s, count, **options)
    for only in ({"sound": False}, {"frames": False}):
        check(path, 2.3, 0.7, 3, **GRID, **only)


@pytest.mark.parametrize("case", ["gop_250", "mkv", "short_sound", "variable", "wav"])
def test_a_healthy_file_is_opened_once(case, tmp_path, monkeypatch):
    path = Film(**CASES[case]).write(tmp_path)
    opened = []
    real = windows.open_source
    monkeypatch.setattr(windows, "open_source", lambda *a: opened.append(a) or real(*a))
    monkeypatch.setattr(windows, "read_clip", None)  # a call would fail
    for start_s in (0.0, 2.2):
        opened.clear()
        found = read_windows(path, start_s, 0.5, 6, **GRID)
        assert len(opened) == 1 and not [x for x in found if isinstance(x, MediaError)]


def test_a_file_that_has_no_index_is_read_by_one_pass_as_well(recording, tmp_path, monkeypatch):
    path = recording(**SYNC_CASES["mpg2"] | {"length_s": 5.2}).write(tmp_path)
    wanted = [alone(path, 2.2 + k * 0.5, 0.5, fps=10.0, sound=False) for k in range(5)]
    monkeypatch.setattr(windows, "read_clip", None)  # a call would fail
    found = read_windows(path, 2.2, 0.5, 5, fps=10.0, sound=False)
    for window, one in zip(found, wanted, strict=True):
        assert_same(window, one)


def test_the_last_window_is_short_and_then_there_is_nothing(tmp_path):
    found = check(Film().write(tmp_path), 4.6, 0.8, 5, **GRID)
    assert found[0].waveform_CS.shape[1] == 12_800
    assert 0 < found[1].waveform_CS.shape[1] < 12_800 and len(found[1].frames_TCHW) < 8
    assert all("nothing to read" in error.reason for error in found[2:])


@pytest.mark.parametrize("stream", ["video", "audio"])
def test_damage_in_the_middle_stays_there(stream, tmp_path):
    path = Film(video_s=(0.0, 9.0), sound_s=(0.0, 9.0), video_options=SHORT_GOP).write(tmp_path)
    healthy = read_windows(path, 0.0, 0.5, 18, **GRID)
    with av.open(str(path)) as container:
        chosen = [s for s in container.streams if s.type == stream]
        packets = [p for p in container.demux(chosen) if p.pts is not None]
        places = [(p.pos, p.size) for p in packets if 4.1 < float(p.pts * p.time_base) < 4.3]
    data = bytearray(path.read_bytes())
    for position, size in places:
        data[position + 4 : position + size] = b"\xff" * (size - 4)
    path.write_bytes(data)
    found = check(path, 0.0, 0.5, 18, **GRID)
    bad = [k for k, window in enumerate(found) if isinstance(window, MediaError)]
    assert bad and min(bad) >= 7 and max(bad) < 14
    for k in (*range(min(bad) - 1), 16, 17):
        assert_same(found[k], healthy[k])


@pytest.mark.parametrize("name", ["film.mkv", "film.ts", "film.avi"])
def test_a_file_shorter_than_promised(name, tmp_path):
    codec = {"video_codec": "mpeg4", "video_options": {}} if name.endswith("avi") else {}
    path = Film(name=name, **codec, **MP3).write(tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    found = check(path, 0.0, 0.5, 12, **GRID)
    assert isinstance(found[0], Clip) and isinstance(found[-1], MediaError)


def test_opus_agrees_to_the_last_bits_of_a_float(tmp_path):
    """Its filters are recursive: what was decoded before never dies away entirely."""
    path = Film(name="film.webm", video_codec="libvpx", audio_codec="libopus", rate=48_000)
    path = Film(**{**path.__dict__, "video_options": {"deadline": "realtime"}}).write(tmp_path)
    for rate in (None, 16_000):
        for k, window in enumerate(read_windows(path, 2.1, 0.5, 7, sample_rate=rate)):
            wanted = read_clip(path, start_s=2.1 + k * 0.5, duration_s=0.5, sample_rate=rate)
            assert torch.equal(window.frames_TCHW, wanted.frames_TCHW)
            torch.testing.assert_close(window.waveform_CS, wanted.waveform_CS, rtol=0, atol=1e-6)


@pytest.mark.parametrize("substituted", [True, False])
def test_only_drawn_noise_depends_on_where_decoding_starts(substituted, tmp_path):
    film = Film(noise=0.1, substitute_noise=substituted, video_options=SHORT_GOP)
    path = film.write(tmp_path)
    for k, window in enumerate(read_windows(path, 2.5, 0.5, 6)):
        wanted = read_clip(path, start_s=2.5 + k * 0.5, duration_s=0.5)
        assert torch.equal(window.frames_TCHW, wanted.frames_TCHW)
        if not substituted:
            assert torch.equal(window.waveform_CS, wanted.waveform_CS)
            continue
        assert window.waveform_CS.shape == wanted.waveform_CS.shape
        ours, theirs = (x.waveform_CS.square().mean().item() ** 0.5 for x in (window, wanted))
        assert ours == pytest.approx(theirs, rel=0.02)


def test_limits_hold_for_each_window_by_itself(tmp_path):
    path = Film(rate=16_000).write(tmp_path)
    tight = Limits(max_bytes=100_000)  # 0.5 s of frames are 72,000; the file is smaller
    found = check(path, 0.0, 0.5, 12, fps=30.0, size=(40, 40), sample_rate=8000, limits=tight)
    assert all(isinstance(window, Clip) for window in found)
    found = check(path, 0.0, 3.0, 2, fps=30.0, size=(16, 16), limits=tight)
    assert any("max_bytes" in str(window) for window in found)
    found = check(path, 0.0, 0.5, 3, fps=30.0, size=(40, 40), limits=Limits(max_frames=14))
    assert all("max_frames" in error.reason for error in found)
    found = check(path, 0.0, 1.5, 4, **GRID, limits=Limits(max_duration_s=3.0))
    assert all(isinstance(window, MediaError) for window in found)


def test_what_cannot_be_read_is_refused_in_every_place(tmp_path):
    path = tmp_path / "fake.mp4"
    path.write_bytes(b"\0" * 5000)
    assert len(check(path, 0.0, 1.0, 3)) == 3
    assert [error.reason for error in check(tmp_path / "missing.mp4", 3.0, 1.0, 2)] == [
        "no such file"
    ] * 2
    silent = Film(sound_s=None).write(tmp_path)
    assert all(isinstance(x, MediaError) for x in check(silent, 0.0, 1.0, 2, frames=False))


@pytest.mark.parametrize(
    "arguments", [(0.0, 0.0, 3), (-1.0, 1.0, 3), (0.0, None, 3), (0.0, float("inf"), 1)]
)
def test_senseless_windows_are_a_users_mistake(arguments, tmp_path):
    with pytest.raises(ValueError):
        read_windows(tmp_path / "any.mp4", *arguments)


def test_no_windows_are_no_work(tmp_path):
    assert read_windows(tmp_path / "missing.mp4", 0.0, 1.0, 0) == []
    with pytest.raises(ValueError, match="count"):
        read_windows(tmp_path / "missing.mp4", 0.0, 1.0, -1)
