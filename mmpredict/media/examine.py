"""What a media file really holds, measured: stamps of its packets, key frames, loudness, damage.

In: a file. Out: FileFacts. One pass over the packets; sound is decoded (it is cheap), frames only
when asked for. Memory does not grow with the pictures: nothing decoded is kept.

Shapes: C channels, S samples, K chunks, N packets.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmpredict.media.audio import float_samples
from mmpredict.media.clock import as_fraction
from mmpredict.media.container import Source, describe, open_source
from mmpredict.media.facts import AudioFacts, Damage, FileFacts, VideoFacts
from mmpredict.media.limits import Limits
from mmpredict.media.local import MediaBytes
from mmpredict.media.subtitles import text_codec, unread_tracks
from mmpredict.media.turning import turning

WHOLE_BYTES = 256 * 1024**2  # a larger file is looked at in its first and last seconds only
HEAD_S, TAIL_S = 60.0, 5.0  # of a large file
LISTEN_S = 120.0  # sound that is decoded where not everything is
CHUNK_S = 0.04
SILENCE_DB = -60.0  # root mean square of a chunk, against full scale
MAX_DAMAGE = 1000  # places listed
_STEP_SLACK_S = 0.002  # containers round stamps to 1 ms, so a step is off by up to 2
_STEP_SLACK = 0.1  # of the usual step


def examine(
    source: str | PathLike[str] | MediaBytes, *, decode: bool = False, limits: Limits | None = None
) -> FileFacts:
    """Measure a file.

    Args:
        source: a local file, or bytes in memory.
        decode: decode every frame and all sound. Otherwise frames are judged by the stamps of their
            packets, and the first two minutes of sound are decoded.
        limits: what is too much.

    Raises:
        MediaError: the file cannot be opened at all, or passes the limits.
    """
    limits = limits or Limits()
    with open_source(source, limits) as opened:
        in_memory = isinstance(source, MediaBytes)
        size = len(source.data) if in_memory else Path(source).stat().st_size
        return _Examination(opened, size, decode, limits).run()


class _Stamps:
    """Stamps of one stream's packets. A new run starts where packets were left out between."""

    def __init__(self, source: Source, stream: Any) -> None:
        self.base_s = float(as_fraction(stream.time_base))
        self.origin_s = source.origin_s
        self.runs: list[list[tuple[float, float, bool]]] = [[]]  # stamp, length, key

    def add(self, packet: Any) -> None:
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is not None:
            at_s = stamp * self.base_s - self.origin_s
            self.runs[-1].append((at_s, (packet.duration or 0) * self.base_s, packet.is_keyframe))

    @property
    def count(self) -> int:
        return sum(map(len, self.runs))

    def span(self, usual_s: float) -> tuple[float, float]:
        """(start, end); codec priming before t = 0 is not counted."""
        every = [stamp for run in self.runs for stamp in run]
        if not every:
            return 0.0, 0.0
        end_s = max(at_s + (length_s or usual_s) for at_s, length_s, _ in every)
        return max(0.0, min(at_s for at_s, _, _ in every)), max(0.0, end_s)

    def steps(self) -> NDArray[np.float64]:
        """Seconds between neighbours in order of showing."""
        found = [np.diff(np.sort([at_s for at_s, _, _ in run])) for run in self.runs]
        return np.concatenate(found)

    def gops(self, is_whole: bool) -> list[int]:
        """Distances of key frames in frames; what lies behind the last one counts, where all of it
        was seen."""
        found = []
        for run in self.runs:
            keys = [place for place, (_, _, is_key) in enumerate(run) if is_key]
            found += np.diff([*keys, len(run)] if is_whole else keys).tolist()
        return found


@dataclass
class _Ears:
    """Loudness of decoded sound, chunk by chunk."""

    rate: int = 0
    names: list[str] = field(default_factory=list)
    layout: str = ""
    samples: int = 0
    chunks: int = 0
    silent: int = 0
    peak: float = 0.0
    end_s: float = 0.0
    waiting: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, frame: Any, at_s: float | None) -> None:
        names = [channel.name for channel in frame.layout.channels]
        if not self.rate:
            self.rate, self.names = frame.sample_rate, names
            self.layout = {1: "mono", 2: "stereo"}.get(len(names), frame.layout.name)
        elif (frame.sample_rate, names) != (self.rate, self.names):
            change = f"{len(self.names)} channels at {self.rate} Hz to {len(names)}"
            raise ValueError(f"sound changes from {change} at {frame.sample_rate}")
        start_s = self.end_s if at_s is None else at_s
        self.end_s = start_s + frame.samples / self.rate
        self.samples += frame.samples
        self.waiting.append(float_samples(frame))
        if sum(part.shape[1] for part in self.waiting) >= self.rate:
            self.listen()

    def listen(self) -> None:
        """Judge the whole chunks that wait."""
        if not self.waiting:
            return
        sound_CS = np.concatenate(self.waiting, axis=1)
        size = max(1, round(CHUNK_S * self.rate))
        count = sound_CS.shape[1] // size
        self.waiting = [sound_CS[:, count * size :]]
        sound_CKS = sound_CS[:, : count * size].reshape(len(sound_CS), count, size)
        if count:
            power_K = np.square(sound_CKS).mean(-1).max(0)
            self.silent += int((power_K < 10 ** (SILENCE_DB / 10)).sum())
            self.peak = max(self.peak, float(np.abs(sound_CKS).max()))
            self.chunks += count


class _Examination:
    """One pass over a file."""

    def __init__(self, source: Source, size: int, decode: bool, limits: Limits) -> None:
        self.source, self.bytes, self.decode, self.limits = source, size, decode, limits
        self.streams = [s for s in (source.video, source.audio) if s is not None]
        self.stamps = {s.index: _Stamps(source, s) for s in self.streams}
        self.ears = _Ears()
        self.damage: list[Damage] = []
        self.first_frame: Any = None
        self.frames = 0
        self.frames_end_s = 0.0
        self.is_deaf = False  # after a change that the reader refuses
        self.cpu_s = 0.0

    def run(self) -> FileFacts:
        whole = self.decode or self.bytes <= WHOLE_BYTES
        reached_s = self._walk(math.inf if whole else HEAD_S)
        if not whole:
            self._walk_tail(reached_s)
        return FileFacts(
            self.source.kind,
            self.bytes,
            self.source.claimed_s,
            self._video_facts(whole),
            self._audio_facts(),
            tuple(self._others()),
            tuple(self.damage),
            whole,
            self.decode,
            self.cpu_s,
        )

    def _walk(self, until_s: float, listening: bool = True) -> float:
        """Packets up to a time; returns the time reached."""
        packets, at_s = self.source.container.demux(self.streams), 0.0
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return math.inf
            except Exception as error:
                self._note("file", at_s, f"breaks off after {at_s:.2f} s: {describe(error)}")
                return math.inf
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is not None:
                before_s = at_s
                at_s = max(0.0, self.source.seconds(stamp, packet.stream))
                self._check(packet, before_s, at_s)
                if self.source.still or not packet.is_discard:
                    self.stamps[packet.stream.index].add(packet)
            if listening:
                self._decode(packet, at_s)
            if at_s > until_s:
                return at_s

    def _walk_tail(self, reached_s: float) -> None:
        """The last seconds of a large file, by stamps alone."""
        start_s = (self.source.claimed_s or 0.0) - TAIL_S
        if start_s <= reached_s:
            self._walk(math.inf, listening=False)
            return
        for stamps in self.stamps.values():
            stamps.runs.append([])
        stamp = round((start_s + self.source.origin_s) * 1_000_000)
        self.source.container.seek(stamp, backward=True)
        self._walk(math.inf, listening=False)

    def _check(self, packet: Any, before_s: float, at_s: float) -> None:
        """Refuse what passes the limits or leaps out of the file."""
        self.source.check_jump(packet.stream.type, before_s, at_s)
        frames = self.stamps[packet.stream.index].count if packet.stream.type == "video" else 0
        self.limits.check(self.source.path, duration_s=at_s, frames=frames)

    def _decode(self, packet: Any, at_s: float) -> None:
        kind = packet.stream.type
        wanted = self.decode or (self.first_frame is None if kind == "video" else at_s < LISTEN_S)
        if not wanted or (kind == "audio" and self.is_deaf):
            return
        if packet.is_corrupt:
            self._note(kind, at_s, f"{kind} is damaged at {at_s:.2f} s")
            return
        started = time.process_time()
        try:
            for frame in packet.decode():
                self._take(kind, frame)
        except EOFError:
            pass  # a decoder that was flushed already
        except Exception as error:
            reason = f"{kind} cannot be decoded at {at_s:.2f} s: {describe(error)}"
            self._note(kind, at_s, reason)
        self.cpu_s += time.process_time() - started

    def _take(self, kind: str, frame: Any) -> None:
        stream = self.source.video if kind == "video" else self.source.audio
        at_s = None if frame.pts is None else max(0.0, self.source.seconds(frame.pts, stream))
        if kind == "audio":
            try:
                self.ears.add(frame, at_s)
            except ValueError as error:
                self.is_deaf = True
                self._note(kind, at_s or 0.0, f"{error} at {at_s or 0.0:.2f} s")
            return
        self.first_frame = self.first_frame or frame
        self.frames += 1
        base_s = float(as_fraction(stream.time_base))
        length_s = (frame.duration or 0) * base_s or 1 / float(stream.average_rate or 25)
        start_s = self.frames_end_s if at_s is None else at_s
        self.frames_end_s = max(self.frames_end_s, start_s + length_s)
        if frame.is_corrupt:
            self._note(kind, start_s, f"video is damaged at {start_s:.2f} s")

    def _note(self, kind: str, at_s: float, reason: str) -> None:
        if len(self.damage) < MAX_DAMAGE:
            self.damage.append(Damage(kind, at_s, reason))

    def _video_facts(self, whole: bool) -> VideoFacts | None:
        stream = self.source.video
        if stream is None:
            return None
        context, stamps, frame = stream.codec_context, self.stamps[stream.index], self.first_frame
        mirrored, turns = (False, 0)
        if frame is not None and not self.source.still:
            mirrored, turns = turning(frame)
        width, height = context.width, context.height
        if turns % 2:
            width, height = height, width
        steps = stamps.steps()
        usual_s = float(np.median(steps)) if len(steps) else 0.0
        slack_s = max(_STEP_SLACK_S, _STEP_SLACK * usual_s)
        gops = stamps.gops(whole) or [stamps.count]
        start_s, end_s = stamps.span(usual_s)
        total_s = float(steps.sum())
        aspect = context.sample_aspect_ratio
        return VideoFacts(
            _codec(context),
            getattr(context, "pix_fmt", None) or "",  # a still has none
            width,
            height,
            90 * turns,
            mirrored,
            float(aspect) if aspect else 1.0,
            bool(frame is not None and frame.interlaced_frame),
            start_s,
            end_s,
            _header_s(stream),
            stream.frames,
            stamps.count,
            len(steps) / total_s if total_s > 0 else 0.0,
            int((np.abs(steps - usual_s) > slack_s).sum()),
            (float(steps.min()), usual_s, float(steps.max())) if len(steps) else (0.0, 0.0, 0.0),
            sum(is_key for run in stamps.runs for _, _, is_key in run),
            (round(float(np.median(gops))), max(gops)),
            max(gops) * usual_s,
            self.frames if self.decode else None,
            self.frames_end_s if self.decode else None,
        )

    def _audio_facts(self) -> AudioFacts | None:
        stream, ears = self.source.audio, self.ears
        if stream is None:
            return None
        ears.listen()
        context, stamps = stream.codec_context, self.stamps[stream.index]
        start_s, end_s = stamps.span(0.0)
        return AudioFacts(
            _codec(context),
            ears.rate or context.sample_rate,
            len(ears.names) or context.channels,
            ears.layout or context.layout.name,
            start_s,
            end_s,
            _header_s(stream),
            stamps.count,
            ears.samples / ears.rate if ears.rate else 0.0,
            ears.silent / ears.chunks if ears.chunks else None,
            20 * math.log10(ears.peak) if ears.peak > 0 else -math.inf,
            ears.end_s if self.decode else None,
        )

    def _others(self) -> list[str]:
        """What is in the file besides."""
        found = list(self.source.notices)
        if self.source.still:
            return found
        words = text_codec(self.source)
        if words:
            found.append(f"subtitles ({words}), read if no text lies beside the file")
        found += unread_tracks(self.source)
        for stream in self.source.container.streams:
            if stream.type not in ("video", "audio", "subtitle"):  # of these the notices speak
                found.append(f"stream {stream.index}: {stream.type}, not read")
        return found


def _codec(context: Any) -> str:
    """The codec's name; decoders have names of their own ("mp3float")."""
    codec = getattr(context, "codec", None)  # a still has none
    return context.name if codec is None else codec.canonical_name


def _header_s(stream: Any) -> float | None:
    if not stream.duration:
        return None
    return float(stream.duration * as_fraction(stream.time_base))
