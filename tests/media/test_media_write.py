"""Law: what is written is what is read, within what the codecs allow, at the same times."""

from __future__ import annotations

import wave

import av
import numpy as np
import pytest
import torch

from mmpredict.media import read_clip, write_clip, write_wav
from mmpredict.media.writer import separate_cues, written_whole
from mmpredict.schema import Clip, TextPiece


def smooth_frames(count, height=16, width=24):
    noise = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    big = torch.nn.functional.interpolate(noise, size=(height, width), mode="bilinear")
    return (big * 255).round().to(torch.uint8)


def chirp(rate, length_s=2.0, channels=2):
    time_s = torch.arange(round(rate * length_s)) / rate
    rows = [
        0.5 * torch.sin(2 * torch.pi * (200 * (c + 1) + 300 * time_s) * time_s)
        for c in range(channels)
    ]
    return torch.stack(rows)


def a_clip(rate=16_000, channels=2, **changes):
    frames = smooth_frames(40)
    parts = {
        "frames_TCHW": frames,
        "times_s": torch.arange(40, dtype=torch.float64) / 20,
        "waveform_CS": chirp(rate, channels=channels),
        "sample_rate": rate,
        "name": "made",
    }
    return Clip(**parts | changes)


def similarity(found, wanted):
    """(signal to noise in dB at zero lag, lag of the best match in samples)."""
    n = min(len(found), len(wanted))
    found, wanted = found[:n].double(), wanted[:n].double()
    ratio = 10 * torch.log10(wanted.square().sum() / (found - wanted).square().sum())
    size = 2 * n
    product = torch.fft.rfft(found, size) * torch.fft.rfft(wanted, size).conj()
    lag = int(torch.fft.irfft(product, size).argmax())
    return float(ratio), lag if lag < n else lag - size


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (24_000, 2), (44_100, 2), (30_720, 1)])
def test_mp4_round_trip(rate, channels, tmp_path):
    clip = a_clip(rate, channels)
    write_clip(tmp_path / "a.mp4", clip, scale=4)
    back = read_clip(tmp_path / "a.mp4", size=(16, 24), sample_rate=rate)
    assert torch.allclose(back.times_s, clip.times_s, atol=1e-4)
    error = back.frames_TCHW.float() - clip.frames_TCHW.float()
    assert error.abs().mean() < 3 and error.mean().abs() < 0.5  # no shift of colours either
    assert back.waveform_CS.shape == clip.waveform_CS.shape
    for found, wanted in zip(back.waveform_CS, clip.waveform_CS, strict=True):
        ratio, lag = similarity(found, wanted)
        assert lag == 0 and ratio > 20
    assert not [notice for notice in back.notices if "resampled" not in notice]


def test_the_same_clip_gives_the_same_bytes(tmp_path):
    """Also where memory holds something else every time, of which x264 must read nothing."""
    clip = a_clip(frames_TCHW=smooth_frames(40, 64, 96))
    written = set()
    for number in range(4):
        rubbish = [bytes([number * 50]) * size for size in range(10_000, 400_000, 30_000)]
        write_clip(tmp_path / "a.mp4", clip)
        del rubbish
        written.add((tmp_path / "a.mp4").read_bytes())
    assert len(written) == 1
    assert b"mbtree=0" in written.pop()


def test_irregular_times_and_late_sound_stay(tmp_path):
    times = torch.tensor([0.0, 0.1, 0.15, 0.5, 0.52, 1.0], dtype=torch.float64)
    clip = Clip(smooth_frames(6), times, chirp(16_000, 0.5), 16_000, waveform_start_s=0.4)
    write_clip(tmp_path / "a.mp4", clip, scale=2)
    back = read_clip(tmp_path / "a.mp4", size=(16, 24))
    assert torch.allclose(back.times_s, times, atol=1e-4)
    start = round(0.4 * 16_000)
    assert back.waveform_CS[:, : start - 1100].abs().max() < 1e-3  # codec spreads over a packet
    ratio, lag = similarity(back.waveform_CS[0, start:], clip.waveform_CS[0])
    assert lag == 0 and ratio > 20


def test_fps_overrules_times_and_grey_and_odd_frames_are_shown(tmp_path):
    grey = smooth_frames(5, 7, 9)[:, :1]
    clip = Clip(grey, torch.tensor([0.0, 0.5, 0.6, 3.0, 9.0], dtype=torch.float64))
    write_clip(tmp_path / "a.mp4", clip, fps=10, crf=12)
    back = read_clip(tmp_path / "a.mp4")
    assert torch.allclose(back.times_s, torch.arange(5, dtype=torch.float64) / 10, atol=1e-4)
    assert back.frames_TCHW.shape == (5, 3, 8, 10) and back.waveform_CS is None
    error = back.frames_TCHW[:, :, :7, :9].float() - grey.float()
    assert error.abs().mean() < 3


def test_sound_alone_and_early_sound(tmp_path):
    early = Clip(waveform_CS=chirp(16_000, 1.0), sample_rate=16_000, waveform_start_s=-0.25)
    write_clip(tmp_path / "a.mp4", early)
    back = read_clip(tmp_path / "a.mp4")
    assert back.frames_TCHW is None and back.waveform_CS.shape == (2, 12_000)
    assert similarity(back.waveform_CS[0], early.waveform_CS[0, 4000:])[1] == 0


def subtitles_of(path):
    with av.open(str(path)) as container:
        stream = container.streams.subtitles[0]
        assert stream.codec_context.name == "mov_text"
        rows = []
        for packet in container.demux(stream):
            if packet.size > 2:  # two bytes of length; empty ones fill the gaps
                start_s = packet.pts * float(packet.time_base)
                length_s = packet.duration * float(packet.time_base)
                rows.append((bytes(packet)[2:].decode(), start_s, start_s + length_s))
        return rows


def test_subtitles_round_trip(tmp_path):
    texts = (
        TextPiece("the red ball {rises}", 0.2, 0.6),
        TextPiece("und f\u00e4llt", 0.6, 1.0),
        TextPiece("late", 1.5, 1.8),
        TextPiece("no time"),
        TextPiece("  ", 0.0, 0.1),
    )
    write_clip(tmp_path / "a.mp4", a_clip(texts=texts), scale=2)
    rows = subtitles_of(tmp_path / "a.mp4")
    assert [row[0] for row in rows] == ["the red ball {rises}", "und f\u00e4llt", "late"]
    assert np.allclose([row[1:] for row in rows], [(0.2, 0.6), (0.6, 1.0), (1.5, 1.8)], atol=0.002)
    write_clip(tmp_path / "b.mp4", a_clip(texts=texts), subtitles=False)
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert not container.streams.subtitles


def test_overlapping_subtitles_stand_together():
    cues = separate_cues(
        (TextPiece("a", 0.0, 2.0), TextPiece("b", 1.0, 3.0), TextPiece("c", -1.0, 0.5))
    )
    assert [(c.text, c.start_s, c.end_s) for c in cues] == [
        ("a\nc", 0.0, 0.5),
        ("a", 0.5, 1.0),
        ("a\nb", 1.0, 2.0),
        ("b", 2.0, 3.0),
    ]


def test_nothing_half_written_is_left(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"the one before")
    broken = a_clip(times_s=torch.zeros(40, dtype=torch.float64))
    with pytest.raises(ValueError, match="must rise"):
        write_clip(tmp_path / "a.mp4", broken)
    with pytest.raises(RuntimeError), written_whole(tmp_path / "a.mp4") as file:
        file.write(b"half")
        raise RuntimeError
    assert (tmp_path / "a.mp4").read_bytes() == b"the one before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_clips_that_cannot_be_an_mp4_say_why(tmp_path):
    for clip, reason in (
        (Clip(texts=(TextPiece("a", 0.0, 1.0),)), "needs frames or sound"),
        (a_clip(waveform_CS=torch.zeros(4, 100)), "4 channels"),
        (Clip(smooth_frames(1)[:0], torch.zeros(0)), "0 of them"),
        (Clip(torch.zeros(1, 2, 4, 4, dtype=torch.uint8), torch.zeros(1)), "2 channels"),
    ):
        with pytest.raises(ValueError, match=reason):
            write_clip(tmp_path / "a.mp4", clip)


def test_wav_round_trip(tmp_path):
    waveform_CS = chirp(8000, 0.5) * 3  # too loud: clipped
    write_wav(tmp_path / "a.wav", waveform_CS, 8000)
    with wave.open(str(tmp_path / "a.wav")) as sound:
        assert (sound.getnchannels(), sound.getframerate(), sound.getnframes()) == (2, 8000, 4000)
    back = read_clip(tmp_path / "a.wav")
    assert torch.allclose(back.waveform_CS, waveform_CS.clamp(-1, 1), atol=1e-4)


def test_resize_is_an_area_mean_of_full_colour(tmp_path):
    """Against an exact box filter of the full frame; half chroma resolution would be 4 to 6 levels
    off."""
    rng = np.random.default_rng(0)
    picture = np.zeros((128, 128, 3))
    for _ in range(60):
        top, left = rng.integers(0, 112, 2)
        picture[top : top + 32, left : left + 32] = rng.integers(0, 255, 3)
    frames = torch.from_numpy(picture.astype(np.uint8)).permute(2, 0, 1)[None].repeat(3, 1, 1, 1)
    write_clip(tmp_path / "a.mp4", Clip(frames, torch.arange(3) / 10), crf=4)
    for side in (64, 32, 16):
        small = read_clip(tmp_path / "a.mp4", size=(side, side)).frames_TCHW.float()
        box = torch.nn.functional.avg_pool2d(frames.float(), 128 // side)
        assert (small - box).abs().mean() < 3
    wide = read_clip(tmp_path / "a.mp4", size=(16, 32)).frames_TCHW.float()  # crops top and bottom
    box = torch.nn.functional.avg_pool2d(frames.float(), 4)[:, :, 8:24]
    assert (wide - box).abs().mean() < 3
