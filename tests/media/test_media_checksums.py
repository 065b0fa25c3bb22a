"""Law: where packets carry checksums, no damage goes unnoticed."""

from __future__ import annotations

import io
import random
from fractions import Fraction

import av
import numpy as np
import pytest

from mmpredict.media import MediaBytes, MediaError, read_clip


def lossless(codec: str, suffix: str) -> tuple[bytes, list[bytes]]:
    """A noisy sound, and its packets."""
    file, packets = io.BytesIO(), []
    with av.open(file, "w", format=suffix) as container:
        stream = container.add_stream(codec, rate=16_000)
        stream.layout = "mono"
        noise = np.random.default_rng(0).normal(0, 3000, 32_000).astype(np.int16)
        form = stream.codec_context.format.name
        for at in range(0, len(noise), 4000):
            frame = av.AudioFrame.from_ndarray(noise[None, at : at + 4000], "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 16_000, at, Fraction(1, 16_000)
            for ready in av.AudioResampler(form, "mono", 16_000).resample(frame):
                container.mux(stream.encode(ready))
        container.mux(stream.encode(None))
    with av.open(io.BytesIO(file.getvalue())) as container:
        packets = [bytes(packet) for packet in container.demux(audio=0)]
    return file.getvalue(), [packet for packet in packets if packet]


@pytest.mark.parametrize(
    ("codec", "kind"),
    [("flac", "flac"), ("flac", "matroska"), ("tta", "matroska"), ("wavpack", "matroska")],
)
def test_no_flipped_bit_of_lossless_sound_goes_unnoticed(codec, kind):
    data, packets = lossless(codec, kind)
    assert read_clip(MediaBytes("a", data)).waveform_CS.shape == (1, 32_000)
    draw = random.Random(0)
    for number, packet in enumerate(packets):
        for _ in range(4):
            damaged = bytearray(data)
            content = packet[len(packet) // 4 :]  # containers may write headers anew
            place = data.index(content) + draw.randrange(len(content))
            damaged[place] ^= 1 << draw.randrange(8)
            with pytest.raises(MediaError):
                read_clip(MediaBytes(f"{number}", bytes(damaged)))
