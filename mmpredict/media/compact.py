"""Frames and sound as small encoded files in memory, for shards; both come back as they went in.

In: uint8 RGB frames, or a waveform. Out: the bytes of an mp4 (H.264 4:4:4, short groups of
pictures, nothing but frames) or of a flac (16 bit). `read_clip` of a MediaBytes undoes both.

4:4:4 keeps the colours of every pixel: at 64 pixels the usual 4:2:0 costs 9 grey levels on
average. The same input gives the same bytes.
"""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
from av import AudioFrame, VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from torch import Tensor

from mmpredict.media.encoding import STAMPS_PER_S, add_video_stream, show_lengths

_EXACT = Interpolation.AREA | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
_FLAC_FRAME = 4096
S16 = 32768.0  # levels of 16-bit sound: a float times this


def h264_bytes(frames_TCHW: Tensor, times_s: Tensor, *, crf: int = 10, gop: int = 12) -> bytes:
    """An mp4 of the frames; its clock starts with the first of them.

    Args:
        frames_TCHW: uint8, 1 or 3 channels (1 comes back as 3), any size.
        times_s: (T,) rising, when each is shown.
        crf: H.264 quality, 0 (lossless but for the change of colour space) to 51.
        gop: frames from one key frame to the next, at most.
    """
    if not len(frames_TCHW) or frames_TCHW.shape[1] not in (1, 3):
        raise ValueError(
            f"frames are {tuple(frames_TCHW.shape)}; need one or more, of 1 or 3 channels"
        )
    start_s = float(times_s[0])
    times = [float(time) - start_s for time in times_s]
    lengths = show_lengths(times)
    height, width = frames_TCHW.shape[2:]
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = add_video_stream(container, (height, width), len(times) / sum(lengths), crf)
        stream.pix_fmt = "yuv444p"
        stream.codec_context.gop_size = gop
        for frame_CHW, time_s, length_s in zip(frames_TCHW, times, lengths, strict=True):
            rgb_HWC = np.ascontiguousarray(frame_CHW.expand(3, -1, -1).permute(1, 2, 0).numpy())
            frame = VideoFrame.from_ndarray(rgb_HWC, format="rgb24").reformat(
                format="yuv444p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=_EXACT,
                threads=1,
            )
            frame.time_base = Fraction(1, STAMPS_PER_S)
            frame.pts = round(time_s * STAMPS_PER_S)
            frame.duration = max(1, round(length_s * STAMPS_PER_S))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def flac_bytes(waveform_CS: Tensor, sample_rate: int) -> bytes:
    """A flac of a waveform in [-1, 1], rounded to 16 bits; sound that had 16 bits is exact."""
    levels_CS = to_s16(waveform_CS)
    layout = {1: "mono", 2: "stereo"}.get(len(levels_CS))
    if layout is None or not levels_CS.shape[1]:
        raise ValueError(f"a waveform is (1 or 2, S), got {tuple(waveform_CS.shape)}")
    file = io.BytesIO()
    with av.open(file, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=sample_rate)
        stream.layout, stream.format = layout, "s16"
        for at in range(0, levels_CS.shape[1], _FLAC_FRAME):
            part_1N = np.ascontiguousarray(levels_CS[:, at : at + _FLAC_FRAME].T).reshape(1, -1)
            frame = AudioFrame.from_ndarray(part_1N, format="s16", layout=layout)
            frame.sample_rate, frame.time_base = sample_rate, Fraction(1, sample_rate)
            frame.pts = at
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def to_s16(waveform_CS: Tensor) -> np.ndarray:
    """A waveform in [-1, 1] as int16, the way decoders undo it (a level is 1 / 32768)."""
    return (waveform_CS.float().numpy() * S16).round().clip(-S16, S16 - 1).astype(np.int16)
