"""Law: the text inside a media file comes out as it stands there, on the file's clock."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from mmpredict.media import MediaBytes, probe, read_clip, read_text, write_clip
from mmpredict.schema import Clip, TextPiece

FPS = 25


def film(path, texts=(), first_s=0.0):
    times_s = first_s + torch.arange(50, dtype=torch.float64) / FPS
    frames = torch.zeros(50, 3, 32, 32, dtype=torch.uint8)
    write_clip(path, Clip(frames, times_s, torch.zeros(1, 32_000), 16_000, texts=tuple(texts)))
    return path


def with_track(folder, name, codec, cues, shift_s=0.0):
    """A film of 2 s with a subtitle track; cues are (start in ms, length in ms, bytes)."""
    path = folder / name
    with av.open(str(path), "w") as target:
        video = target.add_stream("mjpeg", rate=FPS)
        video.width = video.height = 32
        video.pix_fmt = "yuvj420p"
        sound = target.add_stream("pcm_s16le", rate=16_000)
        sound.layout = "mono"
        track = target.add_mux_stream(codec)
        for number in range(50):
            frame = av.VideoFrame(32, 32, "yuvj420p")
            frame.pts, frame.time_base = number + round(shift_s * FPS), Fraction(1, FPS)
            target.mux(video.encode(frame))
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 640), np.int16), "s16", "mono")
            frame.sample_rate, frame.time_base = 16_000, Fraction(1, 16_000)
            frame.pts = 640 * number + round(shift_s * 16_000)
            target.mux(sound.encode(frame))
        for start, length, payload in cues:
            packet = av.Packet(payload)
            packet.stream, packet.time_base = track, Fraction(1, 1000)
            packet.pts = packet.dts = start + round(shift_s * 1000)
            packet.duration = length
            target.mux(packet)
    return path


def test_an_mp4_gives_back_its_cues(tmp_path):
    texts = [
        TextPiece("Hi {there} <3 & <i>x</i>", 0.2, 0.7),
        TextPiece("two\nlines \u00e9 \u4e00", 1.0, 1.5),
    ]
    path = film(tmp_path / "a.mp4", texts)
    for source in (path, MediaBytes("a.mp4", path.read_bytes())):
        found = read_text(source)
        assert [piece.text for piece in found] == [piece.text for piece in texts]
        for piece, truth in zip(found, texts, strict=True):
            assert (piece.start_s, piece.end_s) == pytest.approx((truth.start_s, truth.end_s))


def test_times_count_from_the_start_of_the_file(tmp_path):
    # The frames of this film start at 0.4 s, its sound at 0: t = 0 is the sound's.
    path = film(tmp_path / "a.mp4", [TextPiece("now", 0.6, 1.0)], first_s=0.4)
    assert read_text(path)[0].start_s == pytest.approx(0.6)
    assert read_clip(path).times_s[0] == pytest.approx(0.4)
    late = with_track(tmp_path, "a.mkv", "subrip", [(600, 400, b"now")], shift_s=5.0)
    assert read_text(late)[0].start_s == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("codec", "payload", "text"),
    [
        ("subrip", b"<i>caf\xc3\xa9</i> &amp; you\r\n- two", "caf\u00e9 & you\n- two"),
        ("webvtt", b"<v Anna>hi <00:01.500><c>you</c>", "hi you"),
        ("ass", b"0,0,Default,,0,0,0,,{\\b1}Hi\\Nthere, you", "Hi\nthere, you"),
    ],
)
def test_an_mkv_gives_back_its_cues(codec, payload, text, tmp_path):
    cues = [(200, 500, payload), (1000, 0, payload), (1500, 250, payload)]
    found = read_text(with_track(tmp_path, "a.mkv", codec, cues))
    assert found == (
        TextPiece(text, 0.2, 0.7),
        TextPiece(text, 1.0, 1.5),  # no length: until the next
        TextPiece(text, 1.5, 1.75),
    )


def test_a_file_without_a_track_has_no_text(tmp_path):
    assert read_text(film(tmp_path / "a.mp4")) == ()
    assert read_text(with_track(tmp_path, "a.mkv", "subrip", [])) == ()


def test_a_track_is_no_part_of_sound_and_picture(tmp_path):
    path = with_track(tmp_path, "a.mkv", "subrip", [(200, 60_000, b"long")])
    clip, info = read_clip(path), probe(path)
    assert len(clip.frames_TCHW) == 50 and clip.waveform_CS.shape[1] == 32_000
    assert info.duration_s == pytest.approx(2.0, abs=0.01) and clip.notices == ()
    assert info.text_codec == "subrip"
    long = film(tmp_path / "a.mp4", [TextPiece("long", 0.2, 60.0)])
    assert probe(long).duration_s == pytest.approx(2.0, abs=0.01) and read_clip(long).notices == ()
    assert probe(long).text_codec == "mov_text"
    assert probe(film(tmp_path / "b.mp4")).text_codec == ""
