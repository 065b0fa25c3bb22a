"""Law: a file that is small on disk and huge when opened is refused before it costs anything."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import wave
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest

from mmpredict.media import Limits, MediaBytes, MediaError, probe, read_clip

# Every look runs in a fork of a process that has everything imported: the growth of its peak is
# what the look cost.
MEASURE = """
import json, os, resource, sys, time
from mmpredict.media import MediaError, probe, read_clip

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

for path in sys.argv[1:]:
    for look in (probe, read_clip):
        if os.fork():
            os.wait()
            continue
        before, start = peak(), time.process_time()
        try:
            look(path)
            reason = ""
        except MediaError as error:
            reason = error.reason
        spent_s = time.process_time() - start
        megabytes = (peak() - before) / 1024
        line = json.dumps([path, look.__name__, reason, spent_s, megabytes])
        os.write(1, (line + "\\n").encode())
        os._exit(0)
"""


def huge_picture(path):
    """One black picture of 8192 x 8192: 64 million pixels in a few kilobytes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width = stream.height = 8192
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame(8192, 8192, "yuv420p")
        for plane in frame.planes:
            np.frombuffer(plane, np.uint8)[:] = 128
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def repacked(path):
    """The same in another container."""
    with av.open(str(path.with_suffix(".mp4"))) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)


def huge_png(path):
    def chunk(kind, content):
        sum_ = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", sum_)

    rows = zlib.compress(bytes(1 << 20))
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def huge_jpg(path):
    segment = struct.pack(">BHHB", 8, 65_000, 65_000, 1) + b"\x01\x11\0"
    head = b"\xff\xd8\xff\xc0" + struct.pack(">H", len(segment) + 2) + segment
    scan = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0"
    path.write_bytes(head + scan + bytes(100) + b"\xff\xd9")


def endless_gif(path):
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    frame = b"\x21\xf9\x04\0\x02\0\0\0" + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0)
    frame += b"\x02\x02\x44\x01\0"
    path.write_bytes(head + frame * 400_000 + b"\x3b")


def large_gif(path):
    path.write_bytes(b"GIF89a" + struct.pack("<HHBBB", 60_000, 60_000, 0, 0, 0) + b"\x3b")


def silent_mp3(path):
    """Ten hours of one silent frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libmp3lame", rate=8000, options={"b": "8000"})
        stream.layout = "mono"
        stream.bit_rate = 8000
        packets = []
        for number in range(30):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 576), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 8000, 576 * number
            packets += [bytes(packet) for packet in stream.encode(frame)]
        container.mux(stream.encode(None))
    path.write_bytes(packets[10] * int(36_000 / 0.072))


def silent_wav(path):
    with path.open("wb") as file:
        with wave.open(file, "wb") as sound:
            sound.setparams((1, 1, 8000, 36_000 * 8000, "NONE", ""))
            sound.writeframes(bytes(8000))
    with path.open("rb+") as file:  # a hole in the file: no disk is used
        size = 36_000 * 8000
        file.seek(4)
        file.write(struct.pack("<I", size + 36))
        file.seek(40)
        file.write(struct.pack("<I", size))
        file.truncate(size + 44)


def silent_flac(path):
    """A header that claims ten hours."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=8000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), "s16", "mono")
        frame.sample_rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    data[22:26] = struct.pack(">I", 36_000 * 8000)  # the low 32 bits of the count of samples
    path.write_bytes(data)


BOMBS = {
    "picture.mp4": (huge_picture, "max_pixels"),
    "picture.mkv": (repacked, "max_pixels"),
    "picture.ts": (repacked, "max_pixels"),
    "picture.png": (huge_png, "max_pixels"),
    "picture.jpg": (huge_jpg, "max_pixels"),
    "large.gif": (large_gif, "max_pixels"),
    "endless.gif": (endless_gif, "max_duration_s"),
    "silent.mp3": (silent_mp3, "max_duration_s"),
    "silent.wav": (silent_wav, "max_duration_s"),
    "silent.flac": (silent_flac, "max_duration_s"),
}


@pytest.mark.slow
def test_bombs_are_refused_at_once(tmp_path):
    for name, (make, _) in BOMBS.items():
        make(tmp_path / name)
    paths = [str(tmp_path / name) for name in BOMBS]
    command = [sys.executable, "-c", MEASURE, *paths]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    looks = [json.loads(line) for line in finished.stdout.splitlines()]
    assert len(looks) == 2 * len(BOMBS)
    for path, look, reason, spent_s, megabytes in looks:
        limit = BOMBS[path.rsplit("/", 1)[1]][1]
        assert f"Limits.{limit}" in reason, (path, look, reason)
        assert spent_s < 2.0 and megabytes < 200, (path, look, spent_s, megabytes)


def test_a_length_that_no_header_tells_is_held_to_the_limit(tmp_path):
    path = tmp_path / "long.flac"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=8000)
        stream.layout = "mono"
        for at in range(0, 24_000, 4000):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.int16), "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 8000, at, Fraction(1, 8000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)  # "unknown"
    source = MediaBytes("long.flac", bytes(data))
    assert probe(source).duration_s == pytest.approx(3.0, abs=0.01)
    assert read_clip(source).waveform_CS.shape == (1, 24_000)
    for look in (probe, read_clip):
        with pytest.raises(MediaError, match="Limits.max_duration_s"):
            look(source, limits=Limits(max_duration_s=2.0))


def test_a_picture_that_grows_behind_the_header_is_refused(tmp_path, recording):
    parts = []
    for number, size in enumerate(((32, 32), (480, 640))):
        made = recording(name=f"{number}.ts", size=size, length_s=0.5, flashes_s=())
        parts.append(made.write(tmp_path).read_bytes())
    source = MediaBytes("grows.ts", b"".join(parts))
    with pytest.raises(MediaError):
        read_clip(source, limits=Limits(max_pixels=10_000), size=(16, 16))
