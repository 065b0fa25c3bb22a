"""A Clip to files that a person can open: mp4 with sound and subtitles, wav.

Every file appears under its name only when it is whole: it is written beside it and then
    renamed."""

from __future__ import annotations

import heapq
import math
import os
import struct
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from torch import Tensor

from mmpredict.media.audio import AAC_RATES, add_sound_stream, encoder_chunks, resample
from mmpredict.media.encoding import add_video_stream, encoder_frame, show_lengths
from mmpredict.schema import Clip, TextPiece

_TEXT_STAMPS_PER_S = 1_000_000  # what FFmpeg's mov_text encoder uses
# The styles an mp4 subtitle track must declare; players take size and place from their own
# settings.
_SUBTITLE_HEADER = (
    b"[Script Info]\r\nScriptType: v4.00+\r\n\r\n[V4+ Styles]\r\n"
    b"Format: Name, Fontname, Fontsize, PrimaryColour\r\nStyle: Default,Arial,16,&Hffffff\r\n\r\n"
    b"[Events]\r\n"
    b"Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\r\n"
)


@contextmanager
def written_whole(path: str | PathLike[str]) -> Iterator[BinaryIO]:
    """A file open for writing that takes the name `path` only if the `with` ends well."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb+") as file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_clip(
    path: str | PathLike[str],
    clip: Clip,
    *,
    fps: float | None = None,
    crf: int = 16,
    scale: int = 1,
    subtitles: bool = True,
) -> None:
    """Write frames, sound and timed text as one mp4 (H.264 yuv420p, AAC, mov_text) that browsers
    play.

    All three keep their times. Reading back gives frames within a few grey levels and a waveform
    without lag. The file's clock starts with its earliest stream, so a clip in which nothing
    happens at t = 0 comes back that much earlier. Text without times is left out; `write_text`
    keeps it.

    Args:
        path: the file; its folder must exist.
        clip: frames, sound or both.
        fps: show frame k at k / fps instead of at the clip's own times.
        crf: H.264 quality, 0 (lossless) to 51.
        scale: every pixel becomes a square of this side. From 2 up, small frames are visible and
            the halved colour resolution of yuv420p does no harm. Odd sizes get their border
            repeated.
        subtitles: write the timed texts as a subtitle track.
    """
    if scale < 1:
        raise ValueError(f"scale is {scale}; it must be a whole number from 1 up")
    if clip.frames_TCHW is not None and not len(clip.frames_TCHW):
        raise ValueError(f"{clip.name or path}: the clip has frames, but 0 of them")
    if clip.frames_TCHW is None and clip.waveform_CS is None:
        raise ValueError(
            f"{clip.name or path}: an mp4 needs frames or sound; write_text keeps text alone"
        )
    with written_whole(path) as file:
        # The stamps of the tracks differ; mp4 keeps each start by an edit list.
        with av.open(file, "w", format="mp4") as container:
            tracks = []
            if clip.frames_TCHW is not None:
                tracks.append(_video_track(container, clip, fps, crf, scale))
            if clip.waveform_CS is not None:
                tracks.append(_sound_track(container, clip))
            cues = separate_cues(clip.texts) if subtitles else []
            if cues:
                tracks.append(_subtitle_track(container, cues))
            # In order of time, or the muxer would hold whole tracks in memory.
            for _, _, write in heapq.merge(*tracks, key=lambda event: event[:2]):
                container.mux(write())
            for stream in container.streams:
                if stream.type != "subtitle":
                    container.mux(stream.encode(None))


# An event is (seconds, number of the track, a function that makes the packets).
_Event = tuple[float, int, Callable[[], Any]]


def _video_track(
    container: Any, clip: Clip, fps: float | None, crf: int, scale: int
) -> Iterator[_Event]:
    frames_TCHW, times_s = clip.frames_TCHW, clip.times_s
    assert frames_TCHW is not None and times_s is not None
    if frames_TCHW.shape[1] not in (1, 3):
        raise ValueError(
            f"{clip.name}: frames have {frames_TCHW.shape[1]} channels; 1 or 3 can be shown"
        )
    times = [k / fps for k in range(len(frames_TCHW))] if fps else times_s.tolist()
    lengths = show_lengths(times)
    height, width = (side * scale + side * scale % 2 for side in frames_TCHW.shape[2:])
    rate = len(times) / math.fsum(lengths)
    stream = add_video_stream(container, (height, width), rate, crf)

    def events() -> Iterator[_Event]:
        for frame_CHW, time_s, length_s in zip(frames_TCHW, times, lengths, strict=True):
            frame = encoder_frame(frame_CHW, scale, time_s, length_s)
            yield time_s, 0, lambda frame=frame: stream.encode(frame)

    return events()


def _sound_track(container: Any, clip: Clip) -> Iterator[_Event]:
    assert clip.waveform_CS is not None and clip.sample_rate is not None
    if clip.waveform_CS.shape[0] not in (1, 2):
        raise ValueError(f"{clip.name}: {clip.waveform_CS.shape[0]} channels; AAC gets 1 or 2")
    # AAC knows some rates only; the next one up keeps everything.
    rate = next((r for r in AAC_RATES if r >= clip.sample_rate), AAC_RATES[-1])
    waveform_CS = np.ascontiguousarray(clip.waveform_CS.detach().float().cpu().numpy())
    waveform_CS = resample(waveform_CS, clip.sample_rate, rate)
    start = round(clip.waveform_start_s * rate)
    if start < 0:  # before the clip's clock starts
        waveform_CS, start = waveform_CS[:, -start:], 0
    stream = add_sound_stream(container, rate, len(waveform_CS))
    return (
        (chunk.pts / rate, 1, lambda chunk=chunk: stream.encode(chunk))
        for chunk in encoder_chunks(waveform_CS, rate, start)
    )


def _subtitle_track(container: Any, cues: list[TextPiece]) -> Iterator[_Event]:
    stream = container.add_stream("mov_text")
    stream.codec_context.subtitle_header = _SUBTITLE_HEADER

    def packet(cue: TextPiece) -> av.Packet:
        # By hand (length, then UTF-8): the encoder takes ASS markup, which eats braces.
        text = cue.text.encode()[:0xFFFF].decode(errors="ignore").encode()
        made = av.Packet(struct.pack(">H", len(text)) + text)
        made.stream, made.time_base = stream, Fraction(1, _TEXT_STAMPS_PER_S)
        made.pts = made.dts = round((cue.start_s or 0.0) * _TEXT_STAMPS_PER_S)
        end = round((cue.end_s or 0.0) * _TEXT_STAMPS_PER_S)
        made.duration = max(1, end - made.pts)
        return made

    return ((cue.start_s or 0.0, 2, lambda cue=cue: [packet(cue)]) for cue in cues)


def separate_cues(texts: tuple[TextPiece, ...]) -> list[TextPiece]:
    """Timed pieces as cues that do not overlap, in order of time; what overlaps stands together.

    Pieces before t = 0 are cut there; pieces without length or time fall away.
    """
    timed = [
        (max(0.0, piece.start_s), piece.end_s, piece.text.strip())
        for piece in texts
        if piece.start_s is not None and piece.end_s is not None and piece.text.strip()
    ]
    timed = [piece for piece in timed if piece[1] > piece[0]]
    moments = sorted({moment for start, end, _ in timed for moment in (start, end)})
    cues: list[TextPiece] = []
    for start, end in zip(moments, moments[1:], strict=False):
        text = "\n".join(words for s, e, words in timed if s <= start and e >= end)
        if text:
            cues.append(TextPiece(text, start, end))
    return cues


def write_wav(path: str | PathLike[str], waveform_CS: Tensor, sample_rate: int) -> None:
    """Write a waveform in [-1, 1] as 16-bit PCM; what is louder is clipped.

    Args:
        path: the file; its folder must exist.
        waveform_CS: (C, S) float.
        sample_rate: Hz.
    """
    if waveform_CS.ndim != 2:
        raise ValueError(f"a waveform is (C, S), got {tuple(waveform_CS.shape)}")
    levels_SC = (waveform_CS.detach().float().cpu().clamp(-1, 1) * 32767).round().T.contiguous()
    with written_whole(path) as file, wave.open(file, "wb") as sound:
        sound.setnchannels(waveform_CS.shape[0])
        sound.setsampwidth(2)
        sound.setframerate(sample_rate)
        sound.writeframes(levels_SC.numpy().astype("<i2").tobytes())
