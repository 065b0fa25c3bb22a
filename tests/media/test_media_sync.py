"""Law: what happens at one moment is read back at that moment, in every container and by any
window."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from mmpredict.media import probe, read_clip, read_windows

NTSC = Fraction(30_000, 1001)
B_FRAMES = (("bf", "3"), ("b_strategy", "0"), ("g", "20"))
TWO_B = (("bf", "2"), ("g", "12"))
SHORT_GOP = (("bf", "0"), ("g", "10"))
CASES = {
    "30": {},
    "29.97": {"fps": NTSC, "video_options": SHORT_GOP},
    "25_b_frames": {"fps": Fraction(25), "video_options": B_FRAMES},
    "variable": {"jitter": True},
    "variable_b_frames": {"jitter": True, "video_options": B_FRAMES},
    "late_sound": {"audio_start_s": 0.3},
    "late_video": {"video_start_s": 0.3, "video_options": B_FRAMES},
    "both_late": {"video_start_s": 0.4, "audio_start_s": 0.2},
    "mono_44k": {"layout": "mono", "rate": 44_100},
    "surround": {"layout": "5.1"},
    "mkv": {"name": "clip.mkv", "fps": NTSC, "video_options": B_FRAMES},
    "mkv_late_sound": {"name": "clip.mkv", "audio_start_s": 0.3, "rate": 44_100},
    "webm": {
        "name": "clip.webm",
        "video_codec": "libvpx",
        "audio_codec": "libopus",
        "video_options": (("deadline", "realtime"), ("cpu-used", "8")),
    },
    "avi": {
        "name": "clip.avi",
        "video_codec": "mpeg4",
        "audio_codec": "libmp3lame",
        "video_options": (),
    },
    "mpegts": {"name": "clip.ts", "video_options": B_FRAMES},
    "mov_pcm": {"name": "clip.mov", "audio_codec": "pcm_s16le", "rate": 22_050},
    "sound_first": {"sound_first": True, "video_options": B_FRAMES},
    "mov_alac": {"name": "clip.mov", "audio_codec": "alac"},
    "mp4_mpeg4_mp3": {
        "video_codec": "mpeg4",
        "audio_codec": "libmp3lame",
        "video_options": TWO_B,
        "rate": 44_100,
    },
    "mkv_flac": {"name": "clip.mkv", "audio_codec": "flac"},
    "mkv_vorbis": {"name": "clip.mkv", "audio_codec": "vorbis"},
    "mkv_opus": {"name": "clip.mkv", "audio_codec": "libopus", "video_options": B_FRAMES},
    "mkv_mpeg2_ac3": {
        "name": "clip.mkv",
        "video_codec": "mpeg2video",
        "audio_codec": "ac3",
        "video_options": TWO_B,
    },
    "webm_vp9": {
        "name": "clip.webm",
        "video_codec": "libvpx-vp9",
        "audio_codec": "libopus",
        "video_options": (("deadline", "realtime"), ("cpu-used", "8"), ("g", "20")),
    },
    "avi_mjpeg_pcm": {
        "name": "clip.avi",
        "video_codec": "mjpeg",
        "audio_codec": "pcm_s16le",
        "video_options": (),
    },
    "avi_b_frames": {
        "name": "clip.avi",
        "video_codec": "mpeg4",
        "audio_codec": "pcm_s16le",
        "video_options": TWO_B,
    },
    "avi_h264": {"name": "clip.avi", "audio_codec": "pcm_s16le", "video_options": SHORT_GOP},
    "avi_h264_b_frames": {
        "name": "clip.avi",
        "audio_codec": "pcm_s16le",
        "video_options": B_FRAMES,
    },
    "mpg1": {
        "name": "clip.mpg",
        "video_codec": "mpeg1video",
        "audio_codec": "mp2",
        "video_options": TWO_B,
    },
    "mpg2": {
        "name": "clip.mpg",
        "video_codec": "mpeg2video",
        "audio_codec": "mp2",
        "video_options": TWO_B,
        "fps": Fraction(25),
    },
    "flv": {"name": "clip.flv", "video_options": B_FRAMES, "rate": 44_100},
}
# Where no stream starts at 0, t = 0 is a header's start, which may count an encoder's priming.
SHIFTED = ("both_late", "mpegts", "mpg1", "mpg2", "flv")


@pytest.mark.parametrize("case", CASES)
def test_flash_and_beep_agree_within_one_frame(case, recording, events, tmp_path):
    made = recording(**CASES[case])
    step_s = (1.6 if made.jitter else 1.0) / float(made.fps)
    path = made.write(tmp_path)
    truth = np.array(made.flashes_s) - made.origin_s
    for options in ({}, {"fps": 30.0, "size": (16, 16), "sample_rate": 16_000, "channels": 1}):
        clip = read_clip(path, **options)
        flashes, beeps = events(clip)
        assert len(flashes) == len(beeps) == len(truth)
        origin = beeps[0] - truth[0] if case in SHIFTED else 0.0
        assert abs(origin) < 0.05
        beeps, flashes = beeps - origin, flashes - origin
        # An avi cannot say that its mp3 starts with 23 ms of priming.
        assert np.abs(beeps - truth).max() < (0.025 if case == "avi" else 0.005)
        # a flash starts with the first frame inside it
        tolerance = step_s + (1 / 30 if options else 0.0) + 0.002
        assert (flashes - truth).min() > -0.003 and (flashes - truth).max() < tolerance
        assert np.abs(flashes - beeps).max() < tolerance
        assert clip.waveform_start_s == 0.0
        if not options:  # none is lost, none comes twice
            assert len(clip.frames_TCHW) == len(made.frame_times())
            first = [min(t for t in made.frame_times() if t >= f - 1e-6) for f in made.flashes_s]
            # An avi shifts all by the priming of its mp3, its frames by whole steps.
            assert np.abs(flashes - (np.array(first) - made.origin_s)).max() < (
                0.034 if case == "avi" else 0.002
            )
        length_s = clip.waveform_CS.shape[1] / clip.sample_rate
        assert length_s == pytest.approx(made.length_s - made.origin_s, abs=0.08)


@pytest.mark.parametrize("case", CASES)
def test_windows_equal_slices_of_the_whole(case, recording, tmp_path):
    path = recording(
        **CASES[case] | {"length_s": 5.2, "flashes_s": (0.5, 1.5, 2.5, 3.5, 4.3)}
    ).write(tmp_path)
    common = {"fps": 10.0, "size": (16, 16), "sample_rate": 16_000}
    whole = read_clip(path, **common)
    grid = (whole.times_s * 10).round().int().tolist()
    for start in (0.7, 2.4, 3.3, 4.1):  # later than 2 s: by a seek
        window = read_clip(path, start_s=start, duration_s=0.6, **common)
        first = round(start * 10)
        wanted = [grid.index(k) for k in range(first, first + 6)]
        assert torch.equal(window.frames_TCHW, whole.frames_TCHW[wanted])
        assert torch.allclose(window.times_s, torch.arange(6, dtype=torch.float64) / 10)
        sound = whole.waveform_CS[:, round(start * 16_000) :][:, :9600]
        assert window.waveform_CS.shape == sound.shape
        # decoders that draw noise differ by a little; a lag of one sample would be far above
        assert (window.waveform_CS - sound).abs().max() < 0.02


@pytest.mark.parametrize(
    "case", ["30", "variable_b_frames", "mkv", "avi_b_frames", "avi_h264_b_frames", "mpg2"]
)
def test_windows_tile_in_native_rate_too(case, recording, tmp_path):
    path = recording(**CASES[case] | {"length_s": 5.2, "flashes_s": (2.5, 3.7)}).write(tmp_path)
    whole = read_clip(path)
    edges = [0.0, 1.13, 2.51, 3.77, 10.0]
    parts = [
        read_clip(path, start_s=a, duration_s=b - a) for a, b in zip(edges, edges[1:], strict=False)
    ]
    assert torch.equal(torch.cat([part.frames_TCHW for part in parts]), whole.frames_TCHW)
    times = [part.times_s + edge for part, edge in zip(parts, edges, strict=False)]
    assert torch.allclose(torch.cat(times), whole.times_s, atol=1e-3)
    sound = torch.cat([part.waveform_CS for part in parts], 1)
    assert abs(sound.shape[1] - whole.waveform_CS.shape[1]) <= 1
    n = min(sound.shape[1], whole.waveform_CS.shape[1])
    assert (sound[:, :n] - whole.waveform_CS[:, :n]).abs().max() < 0.02


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_by_metadata_is_undone(degrees, recording, tmp_path):
    path = recording(rotation=degrees, length_s=0.5, flashes_s=()).write(tmp_path)
    info = probe(path)
    height, width = (64, 48) if degrees % 180 else (48, 64)
    assert (info.height, info.width, info.rotation) == (height, width, degrees)
    clip = read_clip(path)
    assert clip.frames_TCHW.shape[2:] == (height, width)
    upright = torch.rot90(clip.frames_TCHW[0], -degrees // 90, (1, 2))
    mark = upright[:, :10, :14].float().mean()
    assert mark > 110 and upright[:, 20:, 20:].float().mean() < 40
    small = read_clip(path, size=(height // 4, width // 4)).frames_TCHW
    assert small.shape[2:] == (height // 4, width // 4)


def test_probe_tells_the_starts(recording, tmp_path):
    info = probe(recording(audio_start_s=0.3, fps=NTSC, layout="mono").write(tmp_path))
    assert info.has_video and info.has_audio
    assert (info.height, info.width, info.channels, info.sample_rate) == (48, 64, 1, 48_000)
    assert info.video_start_s == 0.0
    assert info.audio_start_s == pytest.approx(0.3, abs=0.03)
    assert info.fps == pytest.approx(29.97, abs=0.05)
    assert info.duration_s == pytest.approx(3.2, abs=0.05)


def test_late_sound_is_silence_first(recording, tmp_path):
    clip = read_clip(recording(audio_start_s=1.0, flashes_s=(1.0, 1.2)).write(tmp_path))
    start = int(0.95 * clip.sample_rate)
    assert clip.waveform_start_s == 0.0
    assert not clip.waveform_CS[:, :start].any()
    assert clip.waveform_CS[:, start:].abs().max() > 0.3


def test_before_a_late_video_there_is_no_frame(recording, tmp_path):
    path = recording(video_start_s=0.5).write(tmp_path)
    assert read_clip(path, fps=10.0).times_s[0] == pytest.approx(0.5)
    only_sound = read_clip(path, fps=10.0, duration_s=0.3)
    assert only_sound.frames_TCHW is None and "no frame in this span" in only_sound.notices


@pytest.mark.parametrize("sound_first", [False, True])
def test_streams_can_be_left_out(sound_first, recording, tmp_path):
    path = recording(sound_first=sound_first, video_options=B_FRAMES).write(tmp_path)
    both = read_clip(path)
    silent, unseen = read_clip(path, sound=False), read_clip(path, frames=False)
    assert silent.waveform_CS is None and torch.equal(silent.frames_TCHW, both.frames_TCHW)
    assert unseen.frames_TCHW is None and torch.equal(unseen.waveform_CS, both.waveform_CS)
    assert "6 channels" not in str(both.notices)


@pytest.mark.parametrize("sound_first", [False, True])
def test_the_last_frames_come_out_of_every_window(sound_first, recording, tmp_path):
    path = recording(sound_first=sound_first, video_options=B_FRAMES).write(tmp_path)
    whole = read_clip(path, fps=10.0)
    assert len(whole.frames_TCHW) == 32
    windows = read_windows(path, 0.0, 0.8, 4, fps=10.0)
    assert torch.equal(torch.cat([clip.frames_TCHW for clip in windows]), whole.frames_TCHW)


def test_surround_is_mixed_with_a_notice(recording, tmp_path):
    path = recording(layout="5.1").write(tmp_path)
    assert read_clip(path, frames=False).waveform_CS.shape[0] == 6
    mixed = read_clip(path, frames=False, channels=2)
    assert "6 channels mixed down to 2" in mixed.notices
    assert 0.5 < mixed.waveform_CS.abs().max() < 0.7  # the same tone everywhere keeps its level
    mono = recording(name="m.mp4", layout="mono").write(tmp_path)
    doubled = read_clip(mono, frames=False, channels=2).waveform_CS
    assert torch.equal(doubled[0], doubled[1]) and doubled.abs().max() > 0.5


@pytest.mark.parametrize("case", CASES)
def test_frames_alone_are_those_of_the_whole_after_a_seek(case, recording, tmp_path):
    flashes = tuple(0.3 + 0.7 * k for k in range(7))
    path = recording(**CASES[case] | {"length_s": 5.2, "flashes_s": flashes}).write(tmp_path)
    common = {"fps": 10.0, "size": (16, 16), "sound": False}
    whole = read_clip(path, **common)
    grid = (whole.times_s * 10).round().int().tolist()
    for start in (2.1, 2.4, 3.3, 4.1):
        window = read_clip(path, start_s=start, duration_s=0.6, **common)
        wanted = [grid.index(k) for k in range(round(start * 10), round(start * 10) + 6)]
        assert torch.equal(window.frames_TCHW, whole.frames_TCHW[wanted])
