"""Law: what a header gets wrong is noticed or refused; no time is wrong without a word."""

from __future__ import annotations

import io
import math
import re
import struct
import wave
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from mmpredict.media import MediaBytes, MediaError, probe, read_clip
from mmpredict.media.clock import SampleTimeline, sound_jitter

SMALL = {"length_s": 1.2, "flashes_s": (0.5,), "size": (32, 32), "rate": 16_000, "layout": "mono"}
DURATION = b"\x44\x89\x88"  # Matroska's element: 8 bytes follow, a float64 of milliseconds


def patched(data, mark, offset, layout, *values):
    """Every place after `mark` overwritten; values may differ from place to place."""
    data = bytearray(data)
    places = [found.start() for found in re.finditer(re.escape(mark), bytes(data))]
    assert places
    for number, place in enumerate(places):
        struct.pack_into(layout, data, place + len(mark) + offset, values[number % len(values)])
    return MediaBytes("clip.mkv" if mark == DURATION else "clip.mp4", bytes(data))


def lengths(clip):
    return clip.times_s[-1].item(), clip.waveform_CS.shape[1] / clip.sample_rate


@pytest.mark.parametrize("claim", [math.nan, math.inf, 1e300, -5000.0, 0.0])
def test_a_length_that_makes_no_sense_counts_as_none(claim, recording, tmp_path):
    path = recording(name="clip.mkv", **SMALL).write(tmp_path)
    source = patched(path.read_bytes(), DURATION, 0, ">d", claim)
    assert probe(source).duration_s == pytest.approx(1.2, abs=0.1)
    assert torch.equal(read_clip(source).frames_TCHW, read_clip(path).frames_TCHW)


def test_a_length_that_is_far_too_long_is_refused(recording, tmp_path):
    path = recording(name="clip.mkv", **SMALL).write(tmp_path)
    for look in (probe, read_clip):
        with pytest.raises(MediaError, match="1,000,000 seconds, over the limit"):
            look(patched(path.read_bytes(), DURATION, 0, ">d", 1e9))


def test_a_length_that_is_too_short_is_noticed(recording, tmp_path):
    path = recording(name="clip.mkv", **SMALL).write(tmp_path)
    clip = read_clip(patched(path.read_bytes(), DURATION, 0, ">d", 300.0))
    assert "claims 0.30 s, its streams go on to 1.2" in str(clip.notices)
    assert lengths(clip) == pytest.approx((1.167, 1.2), abs=0.03)
    path = recording(**SMALL).write(tmp_path)
    info = probe(patched(path.read_bytes(), b"mdhd", 16, ">I", 300))
    assert info.duration_s == pytest.approx(1.2, abs=0.07) and "its index" in str(info.notices)


@pytest.mark.parametrize("box", [b"mvhd", b"tkhd", b"mdhd"])
@pytest.mark.parametrize("claim", [0, 300, 5000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_lengths_in_the_boxes_of_an_mp4(box, claim, recording, tmp_path):
    path = recording(**SMALL).write(tmp_path)
    offset = 20 if box == b"tkhd" else 16
    source = patched(path.read_bytes(), box, offset, ">I", claim)
    # whatever is claimed, the frames and their times are those of the file
    clip, truth = read_clip(source), read_clip(path)
    assert torch.equal(clip.frames_TCHW, truth.frames_TCHW)
    assert torch.allclose(clip.times_s, truth.times_s)
    assert probe(source).duration_s == pytest.approx(1.2, abs=0.07)


def test_an_edit_list_cuts_the_start(recording, events, tmp_path):
    made = recording(video_options=(("bf", "3"), ("g", "15")), rate=48_000)
    path = made.write(tmp_path)
    cut_s = 0.4
    # media_time of the tracks, after version, count and duration; sound has 1024 of priming
    stamps = [
        struct.unpack_from(">i", path.read_bytes(), m.end() + 12)[0]
        for m in re.finditer(b"elst", path.read_bytes())
    ]
    units = [90_000, 48_000]
    values = [old + round(cut_s * unit) for old, unit in zip(stamps, units, strict=True)]
    clip = read_clip(patched(path.read_bytes(), b"elst", 12, ">i", *values))
    flashes, beeps = events(clip)
    truth = np.array(made.flashes_s) - cut_s
    assert np.abs(flashes - truth).max() < 0.04 and np.abs(beeps - truth).max() < 0.005
    window = read_clip(
        patched(path.read_bytes(), b"elst", 12, ">i", *values), start_s=2.05, duration_s=0.3
    )
    assert events(window)[1] == pytest.approx([0.05], abs=0.005)


def wav(samples, rate=8000):
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, rate, 0, "NONE", ""))
        sound.writeframes(np.asarray(samples, "<i2").tobytes())
    return bytearray(file.getvalue())


@pytest.mark.parametrize("claim", [0, 0xFFFFFFFF])
def test_a_streamed_wav_is_read_whole(claim):
    data = wav(np.arange(8001))
    struct.pack_into("<I", data, 4, claim)
    struct.pack_into("<I", data, 40, claim)
    clip = read_clip(MediaBytes("a.wav", bytes(data)))
    assert (clip.waveform_CS[0] * 32768).tolist() == list(range(8001)) and clip.notices == ()


def test_a_wav_that_is_cut_off_is_noticed():
    data = bytes(wav(np.arange(8000)))[: 44 + 2 * 5000 + 1]
    clip = read_clip(MediaBytes("a.wav", data))
    assert (clip.waveform_CS[0] * 32768).tolist() == list(range(5000))
    assert "cut off: the header promises 16,044 bytes, the file has 10,045" in clip.notices
    assert probe(MediaBytes("a.wav", data)).notices == clip.notices


@pytest.mark.parametrize("bits", ["pcm_u8", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le"])
def test_wavs_of_every_depth(bits, recording, tmp_path):
    path, tone = tmp_path / "a.wav", 0.5 * np.sin(np.arange(4000) * 0.1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(bits, rate=16_000)
        stream.layout = "mono"
        resampler = av.AudioResampler(stream.codec_context.format.name, "mono", 16_000)
        frame = av.AudioFrame.from_ndarray(tone[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
        for ready in resampler.resample(frame):
            container.mux(stream.encode(ready))
        container.mux(stream.encode(None))
    found = read_clip(path).waveform_CS[0].numpy()
    assert np.abs(found - tone).max() < (0.01 if bits == "pcm_u8" else 1e-4)


FLIPS = {"across": (-1, 0, 0, 1), "down": (1, 0, 0, -1), "diagonal": (0, 1, 1, 0)}


@pytest.mark.parametrize("flip", FLIPS)
def test_mirrors_in_a_header_are_undone(flip, recording, tmp_path):
    path = recording(length_s=0.2, flashes_s=()).write(tmp_path)
    data, (a, b, c, d) = bytearray(path.read_bytes()), FLIPS[flip]
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    at = data.find(b"tkhd") + 4 + 40
    data[at : at + 36] = matrix
    source = MediaBytes("clip.mp4", bytes(data))
    plain, shown = read_clip(path).frames_TCHW, read_clip(source).frames_TCHW
    wanted = {"across": plain.flip(3), "down": plain.flip(2), "diagonal": plain.transpose(2, 3)}
    assert torch.equal(shown, wanted[flip])
    info = probe(source)
    assert info.mirrored and (info.height, info.width) == tuple(shown.shape[2:])
    assert not probe(path).mirrored


def picture(codec="png", pixel_format="rgb24"):
    context = av.CodecContext.create(codec, "w")
    context.width = context.height = 16
    context.pix_fmt, context.time_base = pixel_format, Fraction(1, 25)
    frame = av.VideoFrame(16, 16, pixel_format)
    return b"".join(bytes(p) for p in [*context.encode(frame), *context.encode(None)])


def tone_file(path, codec, cover=b""):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=44_100)
        stream.layout = "stereo"
        time_s = np.arange(44_100) / 44_100
        tone = 0.5 * np.sin(2 * np.pi * 440 * time_s) * (time_s > 0.5)
        for at in range(0, 44_100, 1152):
            part = np.ascontiguousarray(np.repeat(tone[None, at : at + 1152], 2, 0), np.float32)
            frame = av.AudioFrame.from_ndarray(part, "fltp", "stereo")
            frame.sample_rate, frame.pts, frame.time_base = 44_100, at, Fraction(1, 44_100)
            resampler = av.AudioResampler(stream.codec_context.format.name, "stereo", 44_100)
            for ready in resampler.resample(frame):
                container.mux(stream.encode(ready))
        container.mux(stream.encode(None))
    return path.read_bytes()


def test_a_cover_is_no_video(tmp_path):
    data = tone_file(tmp_path / "a.mp3", "libmp3lame")
    content = b"\0image/png\0\3\0" + picture()
    frame = b"APIC" + struct.pack(">IH", len(content), 0) + content
    size = len(frame)
    head = b"ID3\3\0\0" + bytes([size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127])
    source = MediaBytes("a.mp3", head + frame + data[data.find(b"\xff\xfb") :])
    info = probe(source)
    assert (info.has_video, info.has_audio, info.notices) == (False, True, ())
    clip = read_clip(source, fps=10.0)
    assert clip.frames_TCHW is None and clip.waveform_CS.shape[1] == pytest.approx(44_100, abs=1200)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp3", "libmp3lame"),
        ("a.flac", "flac"),
        ("a.ogg", "libopus"),
        ("a.opus", "libopus"),
        ("a.m4a", "aac"),
        ("a.oga", "flac"),
        ("a.wav", "pcm_s16le"),
        ("a.aiff", "pcm_s16be"),
    ],
)
def test_sound_alone_starts_with_its_first_sample(name, codec, tmp_path):
    rate = 48_000 if codec == "libopus" else 44_100  # Opus knows no 44.1 kHz
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "mono"
        time_s = np.arange(rate) / rate
        tone = (0.5 * np.sin(2 * np.pi * 1000 * time_s) * (time_s >= 0.5)).astype(np.float32)
        resampler = av.AudioResampler(stream.codec_context.format.name, "mono", rate)
        for at in range(0, rate, 960):
            part = np.ascontiguousarray(tone[None, at : at + 960])
            frame = av.AudioFrame.from_ndarray(part, "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
            for ready in resampler.resample(frame):
                container.mux(stream.encode(ready))
        container.mux(stream.encode(None))
    info, clip = probe(path), read_clip(path)
    assert info.duration_s == pytest.approx(1.0, abs=0.05)
    assert clip.waveform_CS.shape[1] / rate == pytest.approx(1.0, abs=0.03)
    onset = np.flatnonzero(clip.waveform_CS[0].abs().numpy() > 0.2)[0] / rate
    assert onset == pytest.approx(0.5, abs=0.003)


def test_a_dummy_after_a_packed_b_frame_changes_no_order(tmp_path):
    """Old avis pack a P and a B frame into one packet and put an empty one after it."""
    path, packets = tmp_path / "plain.avi", []
    with av.open(str(path), "w") as container:
        options = {"bf": "1", "g": "99", "sc_threshold": "1000000000", "b_strategy": "0"}
        stream = container.add_stream("mpeg4", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(17):
            level = np.full((32, 32, 3), 15 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(level, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        container.mux(packets)
        packer = b"\0\0\1\xb2DivX503b1393p"  # the name of an encoder that packs
        old = rb"\x00\x00\x01\xb2Lavc[\d.]+"
        template = [re.sub(old, lambda _: packer, bytes(packet)) for packet in packets]
    assert len(template) == 17
    dummy = b"\0\0\1\xb6\x59\xc3"
    merged = [template[0]]  # I, P + B, dummy, P + B, dummy ...
    for forward, between in zip(template[1::2], template[2::2], strict=True):
        merged += [forward + between, dummy]
    packed = tmp_path / "packed.avi"
    with av.open(str(path)) as source, av.open(str(packed), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, payload in enumerate(merged):
            packet = av.Packet(payload)
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = number
            target.mux(packet)
    for file in (path, packed):
        clip = read_clip(file)
        levels = clip.frames_TCHW.float().mean((1, 2, 3))
        assert (levels.diff() > 5).all(), file  # in the order in which they were filmed
        assert clip.times_s.tolist() == pytest.approx([k / 25 for k in range(len(levels))])
        assert len(levels) == 17 and "out of order" not in str(clip.notices)


def test_vorbis_marks_blocks_wrong_for_a_moment():
    # Stamps as FFmpeg gives them at a change from long to short blocks (44.1 kHz).
    stamps = [(0, 576), (576, 1024), (2048, 576), (2176, 128), (2304, 128)]
    line = SampleTimeline(44_100, sound_jitter(44_100, "vorbis"))
    assert [line.place(*stamp) for stamp in stamps] == [
        (0, 0),
        (576, 0),
        (1600, 0),
        (2176, 0),
        (2304, 0),
    ]
    assert (line.hole_samples, line.cut_samples) == (0, 0)
    assert line.place(50_000, 128) == (50_000, 0)  # a real gap


def test_what_was_changed_in_the_sound_is_said(recording, tmp_path):
    path = recording(layout="stereo", rate=48_000, length_s=0.5, flashes_s=()).write(tmp_path)
    assert read_clip(path, sample_rate=48_000, channels=2).notices == ()
    assert read_clip(path, sample_rate=16_000, channels=1).notices == (
        "sound resampled from 48000 to 16000 Hz",
        "2 channels mixed down to 1",
    )
