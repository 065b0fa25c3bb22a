"""Law: whatever a file is, reading it gives a Clip or a MediaError that names it; nothing else
happens."""

from __future__ import annotations

import errno
import os
import pickle
import random
import socket
import struct
from pathlib import Path

import av
import numpy as np
import pytest

from mmpredict.media import (
    BehindTheEndError,
    Limits,
    MediaBytes,
    MediaError,
    MediaInfo,
    probe,
    read_clip,
)
from mmpredict.media.container import describe
from mmpredict.media.limits import DamagedError

SMALL = {"length_s": 1.0, "flashes_s": (0.5,), "size": (32, 32), "rate": 16_000, "layout": "mono"}


def outcome(path, **options):
    """'clip' or the reason; anything but a MediaError is a failure of the test."""
    try:
        return "clip", read_clip(path, **options)
    except MediaError as error:
        name = path.name if isinstance(path, MediaBytes) else path
        assert str(error).startswith(f"{Path(name)}: ") and len(str(error).splitlines()) == 1
        return error.reason, None


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_a_file_cut_in_half(name, recording, tmp_path):
    path = recording(name=name, **SMALL).write(tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    reason, clip = outcome(path)
    if name == "clip.mp4":  # its index stood at the end
        assert reason != "clip"
        with pytest.raises(MediaError):
            probe(path)
    elif clip is not None:
        assert "the header claims" in str(clip.notices)


def test_a_streamable_file_cut_in_half_is_shown_short_or_refused(recording, tmp_path):
    whole = recording(**SMALL | {"length_s": 3.0}).write(tmp_path)
    path = tmp_path / "front.mp4"
    with av.open(str(whole)) as source:
        with av.open(str(path), "w", options={"movflags": "+faststart"}) as target:
            streams = {s.index: target.add_stream_from_template(s) for s in source.streams}
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = streams[packet.stream.index]
                    target.mux(packet)
    assert outcome(path)[0] == "clip"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    reason, clip = outcome(path)
    if clip is not None:
        assert "the header claims" in str(clip.notices)
    else:
        assert " s" in reason  # says when


OLD = {"video_codec": "mpeg4", "audio_codec": "libmp3lame", "video_options": ()}
FLIPPED = {
    "clip.mp4": {"video_options": (("bf", "2"),)},
    "clip.mkv": {},
    "clip.avi": OLD,
    "clip.mpg": OLD | {"video_codec": "mpeg1video", "audio_codec": "mp2", "rate": 32_000},
    "clip.webm": {
        "video_codec": "libvpx",
        "audio_codec": "libopus",
        "video_options": (("deadline", "realtime"), ("cpu-used", "8")),
    },
}


def flipped(good, seed):
    """20 random bits of a file turned over; every fifth file loses its end as well."""
    chance = random.Random(seed)
    data = bytearray(good)
    if seed % 5 == 4:
        del data[chance.randrange(1, len(data)) :]
    for _ in range(20):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


@pytest.mark.parametrize("name", FLIPPED)
def test_bit_flips_never_crash(name, recording, tmp_path):
    good = recording(name=name, **SMALL | FLIPPED[name]).write(tmp_path).read_bytes()
    reasons = set()
    for seed in range(50):
        source = MediaBytes(name, flipped(good, seed))
        reasons.add(outcome(source, fps=10.0, size=(16, 16), sample_rate=8000, channels=1)[0])
        outcome(source, start_s=0.4, duration_s=0.2)
        assert isinstance(reason_or_info(source), str | MediaInfo)
    assert len(reasons) > 1  # the test did damage


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg", "a.png", "a.jpg", "a.gif"])
def test_bit_flips_never_crash_sound_or_pictures(name, tmp_path):
    good = small_file(tmp_path / name).read_bytes()
    assert outcome(MediaBytes(name, good))[0] == "clip"
    for seed in range(50):
        source = MediaBytes(name, flipped(good, seed))
        outcome(source)
        assert isinstance(reason_or_info(source), str | MediaInfo)
        assert outcome(source, size=(8, 8), sample_rate=4000, channels=1)[0]


def reason_or_info(source):
    try:
        return probe(source)
    except MediaError as error:
        return error.reason


def small_file(path):
    """A short sound, or a small picture."""
    codecs = {".wav": "pcm_s16le", ".flac": "flac", ".mp3": "libmp3lame", ".ogg": "libopus"}
    pictures = {".png": ("png", "rgb24"), ".jpg": ("mjpeg", "yuvj420p"), ".gif": ("gif", "rgb8")}
    if path.suffix in pictures:
        codec, pixel_format = pictures[path.suffix]
        options = {"format": "gif"} if codec == "gif" else {"format": "image2pipe"}
        with av.open(str(path), "w", **options) as container:
            stream = container.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt = 48, 32, pixel_format
            for number in range(5 if codec == "gif" else 1):
                noise = np.random.default_rng(number).integers(0, 256, (32, 48, 3), dtype=np.uint8)
                frame = av.VideoFrame.from_ndarray(noise, format="rgb24")
                container.mux(stream.encode(frame.reformat(format=pixel_format)))
            container.mux(stream.encode(None))
        return path
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codecs[path.suffix], rate=48_000)
        stream.layout = "mono"
        resampler = av.AudioResampler(stream.codec_context.format.name, "mono", 48_000)
        for at in range(0, 24_000, 960):
            tone = 0.5 * np.sin(0.05 * np.arange(at, at + 960, dtype=np.float32))
            frame = av.AudioFrame.from_ndarray(tone[None], "fltp", "mono")
            frame.sample_rate, frame.pts = 48_000, at
            for ready in resampler.resample(frame):
                container.mux(stream.encode(ready))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 5000, b"just a text, renamed\n" * 200, b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom"],
)
def test_what_is_no_media_is_refused(content, tmp_path):
    path = tmp_path / "fake.mp4"
    path.write_bytes(content)
    assert outcome(path)[0] != "clip"


def test_what_is_no_file_is_refused(tmp_path):
    assert outcome(tmp_path / "missing.mp4")[0] == "no such file"
    assert outcome(tmp_path)[0] == "not a regular file"
    os.mkfifo(tmp_path / "pipe.mp4")
    assert outcome(tmp_path / "pipe.mp4")[0] == "not a regular file"  # and does not wait for it


@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".ffconcat", ".mkv", ".gif", ".png"])
def test_playlists_and_addresses_touch_nothing(suffix, recording, tmp_path):
    good = recording(**SMALL).write(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.mp4"
        for target in (f"file://{good}", str(good), good.name, address, "pipe:0", f"file:{good}"):
            m3u8 = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{target}\n#EXT-X-ENDLIST\n"
            dash = f'<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{target}</BaseURL></MPD>'
            for content in (m3u8, f"ffconcat version 1.0\nfile '{target}'\n", dash):
                path = tmp_path / f"list{suffix}"
                path.write_text(content)
                for source in (path, MediaBytes(path.name, content.encode())):
                    assert outcome(source)[0] != "clip"
                    with pytest.raises(MediaError):
                        probe(source)
            for odd in (f"concat:{target}|{target}", f"subfile,,start,0,end,9,,:{target}"):
                assert outcome(odd)[0] == "no such file"
        with pytest.raises(MediaError):
            read_clip(address)
        with pytest.raises(TimeoutError):
            server.accept()  # nobody came


def test_a_name_is_a_name_and_nothing_else(recording, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = recording(**SMALL).write(tmp_path)
    small_file(tmp_path / "001.png")
    for name in ("%03d.png", "*.png", "pipe:0", "pipe:", "-", "data:video/mp4;base64,AAAA", "fd:0"):
        assert outcome(name)[0] == "no such file"
    for name in ("pipe:0", "http:a.mp4", "%03d.mp4"):  # such a file may be there all the same
        os.rename(good, name)
        assert outcome(name)[0] == "clip"
        good = name
    (tmp_path / "link.mp4").symlink_to("/dev/zero")
    assert outcome(tmp_path / "link.mp4")[0] == "not a regular file"
    assert "null byte" in outcome("a\0b.mp4")[0]


def test_limits_refuse_from_the_header(recording, tmp_path, monkeypatch):
    path = recording(**SMALL).write(tmp_path)

    def never(*args):
        raise AssertionError("decoded what the header had ruled out")

    monkeypatch.setattr("mmpredict.media.reader._decode", never)
    for name, limit in (
        ("max_pixels", 500),
        ("max_duration_s", 0.5),
        ("max_frames", 3),
        ("max_bytes", 1000),
    ):
        reason, _ = outcome(path, limits=Limits(**{name: limit}))
        assert f"Limits.{name}" in reason
        with pytest.raises(MediaError, match=name):
            probe(path, Limits(**{name: limit}))


def test_limits_hold_while_decoding(recording, tmp_path):
    path = recording(**SMALL | {"name": "clip.ts"}).write(tmp_path)  # its header counts no frames
    size = path.stat().st_size
    assert "Limits.max_frames" in outcome(path, limits=Limits(max_frames=10))[0]
    assert "Limits.max_bytes" in outcome(path, limits=Limits(max_bytes=size + 10))[0]
    assert outcome(path, fps=5.0, sound=False, limits=Limits(max_frames=10))[0] == "clip"


def _claim(path, duration_s):
    """Overwrite the duration in the header of a Matroska file."""
    data = bytearray(path.read_bytes())
    at = data.find(b"\x44\x89\x88")  # element Duration, 8 bytes: a float64 of milliseconds
    assert at > 0
    struct.pack_into(">d", data, at + 3, duration_s * 1000)
    path.write_bytes(data)


def test_a_header_that_lies_about_its_length(recording, tmp_path):
    path = recording(name="clip.mkv", **SMALL).write(tmp_path)
    _claim(path, 5.0)
    assert probe(path).duration_s == pytest.approx(5.0, abs=0.2)
    clip = read_clip(path)
    assert clip.waveform_CS.shape[1] / clip.sample_rate == pytest.approx(1.0, abs=0.1)
    assert "the header claims 5" in str(clip.notices)
    reason, _ = outcome(path, start_s=3.0, duration_s=1.0)
    assert "nothing to read from 3 s on" in reason and "ends at 1.0" in reason


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_a_stamp_that_leaps_out_of_the_file_is_refused(kind, recording, tmp_path):
    whole = recording(name="clip.ts", **SMALL).write(tmp_path)
    path = tmp_path / "leap.mkv"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(getattr(source.streams, kind)[0])
        for number, packet in enumerate(source.demux(**{kind: 0})):
            if packet.dts is not None:
                packet.stream = stream
                if number > 8:
                    packet.pts += 90_000 * 3000
                    packet.dts += 90_000 * 3000
                target.mux(packet)
    _claim(path, 1.0)
    assert "leaps from" in outcome(path, fps=10.0)[0]


def test_a_span_behind_the_end_is_refused(recording, tmp_path):
    path = recording(**SMALL).write(tmp_path)
    assert "ends at 1.0" in outcome(path, start_s=30.0, duration_s=2.0)[0]
    short = read_clip(path, start_s=0.8, duration_s=2.0)
    assert short.waveform_CS.shape[1] / short.sample_rate == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("keep", ["video", "audio", "none"])
def test_files_with_one_stream_or_none(keep, recording, tmp_path):
    whole = recording(**SMALL).write(tmp_path)
    path = tmp_path / "part.mkv"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        if keep == "none":
            stream = target.add_mux_stream("subrip")
            packet = av.Packet(b"only words")
            packet.stream, packet.pts, packet.dts, packet.duration = stream, 0, 0, 500
            target.mux(packet)
        else:
            stream = target.add_stream_from_template(getattr(source.streams, keep)[0])
            for packet in source.demux(**{keep: 0}):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
    reason, clip = outcome(path)
    if keep == "none":
        assert reason == "no video or sound stream"
        return
    assert (clip.frames_TCHW is None) == (keep == "audio")
    assert (clip.waveform_CS is None) == (keep == "video")
    refused = outcome(path, frames=keep == "audio", sound=keep == "video")[0]
    assert refused == f"no {'sound' if keep == 'video' else 'video'} stream that can be decoded"


def test_one_frame_is_a_video(recording, tmp_path):
    path = recording(**SMALL | {"length_s": 0.04}).write(tmp_path)
    assert len(read_clip(path, fps=25.0).frames_TCHW) == 1


def test_wrong_requests_are_the_callers_fault(tmp_path):
    for wrong in (
        {"fps": 0},
        {"duration_s": -1},
        {"start_s": -1},
        {"channels": 6},
        {"size": (0, 4)},
        {"frames": False, "sound": False},
        {"sample_rate": 0},
    ):
        with pytest.raises(ValueError) as caught:
            read_clip(tmp_path / "any.mp4", **wrong)
        assert not isinstance(caught.value, MediaError)


@pytest.mark.parametrize(
    "error",
    [
        MediaError("a.mp4", "broken"),
        MediaError("a.mp4", "too large", kind="limits"),
        DamagedError("a.mp4", "video is damaged at 1 s"),
        BehindTheEndError("a.mp4", 3.0, 1.5),
    ],
)
def test_the_error_travels_between_processes(error):
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error) and str(found) == f"a.mp4: {error.reason}"
    assert vars(found) == vars(error)


def test_every_error_says_of_which_kind_it_is(recording, tmp_path):
    good = recording(**SMALL).write(tmp_path)
    (tmp_path / "nothing.mp4").touch()
    (tmp_path / "text.mp4").write_text("no film\n" * 100)
    for path, options, kind in (
        (good, {"limits": Limits(max_pixels=10)}, "limits"),
        (good, {"limits": Limits(max_frames=10)}, "limits"),
        (good, {"limits": Limits(max_bytes=10)}, "limits"),
        (good, {"sample_rate": 400_000, "limits": Limits(max_bytes=200_000)}, "limits"),
        (good, {"start_s": 30.0}, "empty"),
        (tmp_path / "nothing.mp4", {}, "empty"),
        (tmp_path / "missing.mp4", {}, "missing"),
        (tmp_path / "text.mp4", {}, "unreadable"),
        (tmp_path, {}, "unreadable"),
    ):
        with pytest.raises(MediaError) as caught:
            read_clip(path, **options)
        assert caught.value.kind == kind, caught.value


def test_a_decoder_without_a_reason_does_not_speak_of_permissions():
    assert describe(av.error.PermissionError(errno.EPERM, "Operation not permitted")) == (
        "the decoder gives no reason (FFmpegError)"
    )
    assert "Permission denied" in describe(PermissionError(errno.EACCES, "Permission denied"))
