"""Law: what `examine` says of a file is what the file was made with."""

from __future__ import annotations

import math
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from mmpredict.media import MediaBytes, MediaError, write_clip, write_wav
from mmpredict.media.examine import examine
from mmpredict.schema import Clip, TextPiece

MODULE = "mmpredict.media.examine"


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.mov"])
def test_constant_frame_rate_and_spans(name, recording, tmp_path):
    path = recording(name=name, fps=Fraction(25)).write(tmp_path)
    facts = examine(path)
    assert facts.bytes == path.stat().st_size and facts.whole and not facts.damage
    assert facts.video.packets == 80 and facts.video.steps_off == 0
    assert facts.video.fps == pytest.approx(25, rel=1e-3)
    assert (facts.video.width, facts.video.height) == (64, 48)
    assert facts.video.end_s == pytest.approx(3.2, abs=0.002)
    assert facts.header_s == pytest.approx(3.2, abs=0.1)
    assert (facts.audio.sample_rate, facts.audio.channels, facts.audio.layout) == (
        48_000,
        2,
        "stereo",
    )
    assert abs(facts.sync_s) < 0.0005
    assert facts.video.decoded_frames is None
    assert examine(path, decode=True).video.decoded_frames == 80


@pytest.mark.parametrize(("name", "codec"), [("clip.mov", "pcm_s16le"), ("clip.mkv", "flac")])
@pytest.mark.parametrize(("late", "sign"), [("audio_start_s", 1), ("video_start_s", -1)])
def test_a_start_120_ms_late(name, codec, late, sign, recording, tmp_path):
    made = recording(name=name, audio_codec=codec, fps=Fraction(25), **{late: 0.12})
    assert examine(made.write(tmp_path)).sync_s == pytest.approx(sign * 0.12, abs=0.0011)


def test_a_late_start_of_aac_is_that_of_its_first_packet(recording, tmp_path):
    """The encoder puts one packet of its own before the sound."""
    facts = examine(recording(audio_start_s=0.12).write(tmp_path))
    assert facts.sync_s == pytest.approx(0.12 - 1024 / 48_000, abs=0.0011)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_variable_frame_rate_is_counted_step_by_step(name, recording, tmp_path):
    made = recording(name=name, jitter=True)
    times = made.frame_times()
    video = examine(made.write(tmp_path)).video
    steps = np.diff(times)
    usual = np.median(steps)
    off = (np.abs(steps - usual) > max(0.002, 0.1 * usual)).sum()
    assert off > 10
    assert video.steps_off == off
    assert video.fps == pytest.approx((len(times) - 1) / (times[-1] - times[0]), rel=2e-3)
    assert video.step_s == pytest.approx((steps.min(), usual, steps.max()), abs=0.0011)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_turns_the_size(degrees, recording, tmp_path):
    video = examine(recording(rotation=degrees).write(tmp_path)).video
    assert video.rotation == degrees and not video.mirrored
    assert (video.width, video.height) == ((48, 64) if degrees % 180 else (64, 48))


def test_six_channels(recording, tmp_path):
    audio = examine(recording(layout="5.1").write(tmp_path)).audio
    assert (audio.channels, audio.layout) == (6, "5.1")


@pytest.mark.parametrize("gop", [1, 10, 32])
def test_distance_of_key_frames(gop, recording, tmp_path):
    options = (("g", str(gop)), ("keyint_min", str(gop)), ("sc_threshold", "0"), ("bf", "2"))
    video = examine(recording(video_options=options).write(tmp_path)).video
    assert video.packets == 96 and video.key_frames == math.ceil(96 / gop)
    assert video.gop == (gop, gop) and video.gop_s == pytest.approx(gop / 30, rel=1e-3)


@pytest.mark.parametrize("silent", [0, 6, 10])
def test_silence_is_counted_in_chunks_of_40_ms(silent, tmp_path):
    chunk, rate = 640, 16_000
    loud = torch.sin(torch.arange(10 * chunk) * 0.3) * 0.5
    loud[: silent * chunk] = 0
    path = tmp_path / "tone.wav"
    write_wav(path, loud[None], rate)
    audio = examine(path).audio
    assert audio.silent_share == pytest.approx(silent / 10)
    assert audio.heard_s == pytest.approx(0.4)
    if silent == 10:
        assert audio.peak_db == -math.inf
    else:
        assert audio.peak_db == pytest.approx(20 * math.log10(0.5), abs=0.01)


def test_one_loud_channel_is_no_silence(tmp_path):
    sound_CS = torch.zeros(2, 16_000)
    sound_CS[1] = 0.01
    write_wav(tmp_path / "a.wav", sound_CS, 16_000)
    assert examine(tmp_path / "a.wav").audio.silent_share == 0
    write_wav(tmp_path / "b.wav", sound_CS / 20, 16_000)  # 0.0005: below -60 dB
    assert examine(tmp_path / "b.wav").audio.silent_share == 1


def _streamable(source, target) -> None:
    with (
        av.open(str(source)) as old,
        av.open(str(target), "w", options={"movflags": "+faststart"}) as new,
    ):
        streams = {s.index: new.add_stream_from_template(s) for s in old.streams}
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                new.mux(packet)


def test_a_header_that_lies_is_found_out(recording, tmp_path):
    path = tmp_path / "front.mp4"
    _streamable(recording(video_options=(("g", "10"),)).write(tmp_path), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    facts = examine(path, decode=True)
    assert facts.header_s == pytest.approx(3.2, abs=0.05)
    assert 0.5 < facts.end_s < 2.8
    assert facts.video.decoded_frames < facts.video.header_frames == 96


def test_damage_is_named_with_its_time_and_does_not_stop_the_rest(recording, tmp_path):
    made = recording(name="clip.mkv", audio_codec="flac", layout="mono", rate=16_000)
    good = made.write(tmp_path)
    assert examine(good, decode=True).damage == ()
    data = bytearray(good.read_bytes())
    with av.open(str(good)) as container:
        packets = [p for p in container.demux(audio=0) if p.size]
        hit = packets[len(packets) // 2]
        at_s, content = float(hit.pts * hit.time_base), bytes(hit)
    place = data.find(content)
    data[place : place + len(content)] = bytes(len(content))
    (tmp_path / "bad.mkv").write_bytes(data)
    facts = examine(tmp_path / "bad.mkv", decode=True)
    assert {damage.kind for damage in facts.damage} == {"audio"}
    assert facts.damage[0].at_s == pytest.approx(at_s, abs=0.2)
    assert facts.video.decoded_frames == 96  # and it went on
    assert facts.audio.decoded_end_s == pytest.approx(3.2, abs=0.3)


def test_a_large_file_is_judged_by_its_ends(recording, tmp_path, monkeypatch):
    options = (("g", "10"), ("sc_threshold", "0"), ("bf", "0"))
    path = recording(length_s=6.0, audio_start_s=0.1, video_options=options).write(tmp_path)
    whole = examine(path)
    for name, value in {"WHOLE_BYTES": 0, "HEAD_S": 1.5, "TAIL_S": 0.5, "LISTEN_S": 1.0}.items():
        monkeypatch.setattr(f"{MODULE}.{name}", value)
    ends = examine(path)
    assert whole.whole and not ends.whole
    assert 50 < ends.video.packets < 120 < whole.video.packets
    for name in ("start_s", "end_s", "fps", "steps_off", "step_s", "gop"):
        assert getattr(ends.video, name) == pytest.approx(getattr(whole.video, name)), name
    assert ends.sync_s == whole.sync_s and ends.audio.end_s == whole.audio.end_s
    assert 0.9 < ends.audio.heard_s < 1.2
    assert examine(path, decode=True).whole


def test_streams_that_are_not_read_are_said(tmp_path):
    clip = Clip(
        frames_TCHW=torch.zeros(5, 3, 32, 32, dtype=torch.uint8),
        times_s=torch.arange(5).double() / 5,
        texts=(TextPiece("hello", 0.0, 0.5),),
    )
    write_clip(tmp_path / "a.mp4", clip)
    facts = examine(tmp_path / "a.mp4")
    assert facts.audio is None and facts.sync_s is None
    assert len(facts.others) == 1 and "subtitle" in facts.others[0]


def test_bytes_in_memory_and_stills(recording, tmp_path):
    path = recording(length_s=1.0).write(tmp_path)
    assert examine(MediaBytes("a.mp4", path.read_bytes())).video == examine(path).video
    frame = av.VideoFrame.from_ndarray(np.full((20, 30, 3), 90, np.uint8), format="rgb24")
    frame.to_image().save(tmp_path / "a.png")
    facts = examine(tmp_path / "a.png")
    assert (facts.video.width, facts.video.height, facts.video.packets) == (30, 20, 1)


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"a text" * 99])
def test_what_is_no_media_is_refused(content, tmp_path):
    path = tmp_path / "fake.mp4"
    path.write_bytes(content)
    with pytest.raises(MediaError):
        examine(path)
