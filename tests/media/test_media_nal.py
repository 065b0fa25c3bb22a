"""Law: a part of a packet that is left out undecoded is one whose head can be read."""

from __future__ import annotations

import av
import pytest

from mmpredict.media.nal import looks_whole
from tests.media.test_media_windows import Film


@pytest.mark.parametrize("name", ["film.mp4", "film.ts", "film.mkv"])
def test_whole_packets_look_whole_and_damaged_heads_do_not(name, tmp_path):
    path = Film(name=name, sound_s=None, video_s=(0.0, 1.0)).write(tmp_path)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        extradata = context.extradata
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    assert len(packets) == 30
    for packet in packets:
        assert looks_whole(packet, "h264", extradata)
        head = 4 if name != "film.ts" else packet.index(b"\0\0\1", 4) + 3
        damaged = bytearray(packet)
        damaged[head:] = b"\xff" * (len(packet) - head)
        assert not looks_whole(bytes(damaged), "h264", extradata)
        assert looks_whole(bytes(damaged), "mpeg4", extradata), "of others nothing is known"
    if name != "film.ts":  # lengths must tile the packet
        assert not looks_whole(packets[0][:-1], "h264", extradata)
    assert looks_whole(b"", "h264", extradata)
