"""A media file to a Clip: frames and sound of a span from one pass over the file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from mmpredict.media.audio import SoundCollector
from mmpredict.media.container import Source, describe, open_source
from mmpredict.media.limits import Limits, MediaError
from mmpredict.media.video import FrameCollector, SeekMissed
from mmpredict.schema import Clip

# How far before the span a seek aims: decoders of sound need some packets to swing in. Where the
# nearer aim turns out too late (odd indexes), the next is tried; None reads from the start of the
# file.
_SEEK_MARGINS_S: tuple[float | None, ...] = (0.4, 10.0, None)
_NOT_WORTH_SEEKING_S = 2.0
_MAX_INTERLEAVE_S = 10.0  # a stream that lags more behind the others has nothing for this span
_SHORT_BY_S = 0.5  # a header may claim this much too much, or 2 %


@dataclass(frozen=True)
class _Request:
    start_s: float
    duration_s: float | None
    fps: float | None
    size: tuple[int, int] | None
    sample_rate: int | None
    channels: int | None
    frames: bool
    sound: bool

    def __post_init__(self) -> None:
        positive = {"duration_s": self.duration_s, "fps": self.fps, "sample_rate": self.sample_rate}
        for name, value in positive.items():
            if value is not None and not (0 < value < math.inf):
                raise ValueError(f"{name} is {value}; it must be above 0 (or None)")
        if not 0 <= self.start_s < math.inf:
            raise ValueError(f"start_s is {self.start_s}; it must be 0 or more")
        if self.channels not in (None, 1, 2):
            raise ValueError(f"channels is {self.channels}; it must be 1, 2 or None")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise ValueError(f"size is {self.size}; it must be (height, width) in pixels")
        if not (self.frames or self.sound):
            raise ValueError("frames and sound are both False; nothing is left to read")

    @property
    def span_s(self) -> tuple[float, float]:
        return self.start_s, self.start_s + (self.duration_s or math.inf)


def read_clip(  # noqa: PLR0913 - the front door of the room; every argument is a user's choice
    path: str | PathLike[str],
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    sample_rate: int | None = None,
    channels: int | None = None,
    frames: bool = True,
    sound: bool = True,
    limits: Limits | None = None,
) -> Clip:
    """Decode a span of a file.

    The clock: t = 0 is the earliest start among the file's video and sound streams, each by its own
    time base and start time; a start before zero (codec priming) counts as zero. `start_s` is on
    this clock; the clip's own times count from `start_s`.

    Frames: with `fps`, one frame for each time k / fps in [0, duration): the one on show, that is
    the last whose stamp is not later. Before the first frame nothing is on show and the clip has no
    frame, except that a first frame less than half a step late stands in. After the last one has
    been shown for its duration there are no more. Without `fps`, every frame whose stamp lies in
    the span, with its time. Windows tile: frames and samples of [a, b) and [b, c) together are
    those of [a, c).

    Sound: if the file has a sound stream, the waveform starts at 0 and covers the whole span; where
    the file has no sound (a late start, an early end, missing packets) it is silent, and where
    packets overlap the later one is cut, so that index / sample_rate is the time. `start_s` counts
    as the nearest sample. After a seek samples are exact where the container's stamps are (mp4) or
    packets have a constant size (nearly all); otherwise to one unit of the container's time base, 1
    ms.

    The span ends at `duration_s` or where the file does, whichever comes first; the file ends with
    the later of its decoded streams.

    Damage is an error: a packet that does not decode, or a frame that its decoder marks as damaged,
    raises, naming the time, although what came before it could be shown. A file that is merely
    shorter than its header claims is read as far as it goes, with a notice.

    Args:
        path: a local file; URLs and playlists are refused.
        start_s: start of the span, seconds on the file's clock.
        duration_s: its length; None reads to the end of the file.
        fps: grid of frame times; None keeps all frames with their own times.
        size: (height, width): resized by area until it covers this, then cropped around the centre.
        sample_rate: Hz; None keeps the file's.
        channels: 1 or 2: mixed down, or mono repeated; None keeps the file's.
        frames, sound: False leaves the stream out.
        limits: what is too much.

    Returns:
        A Clip whose notices say what had to be changed.

    Raises:
        MediaError: the file cannot be used; says why.
    """
    request = _Request(start_s, duration_s, fps, size, sample_rate, channels, frames, sound)
    limits = limits or Limits()
    seeks = _SEEK_MARGINS_S if start_s > _NOT_WORTH_SEEKING_S else (None,)
    for margin_s in seeks:
        aim_s = None if margin_s is None or margin_s >= start_s else start_s - margin_s
        with open_source(path, limits) as source:
            try:
                return _read(source, request, limits, aim_s)
            except SeekMissed:
                continue
            except MediaError:
                # Broken references right after a seek are no proof of damage; the start of the file
                # is.
                if aim_s is None:
                    raise
    raise AssertionError("the last attempt reads from the start and does not miss")


def _read(source: Source, request: _Request, limits: Limits, aim_s: float | None) -> Clip:
    video, sound = _collectors(source, request, limits, sought=aim_s is not None)
    if aim_s is not None:
        if sound is not None:
            sound.find_lattice()
        stamp = round((aim_s + source.origin_s) * 1_000_000)
        source.container.seek(stamp, backward=True)
    _decode(source, video, sound, request.span_s)
    ends_s = [collector.end_s for collector in (video, sound) if collector is not None]
    length_s = min(request.duration_s or math.inf, max(ends_s))
    notices = [*source.notices, *_short(source, request, max(ends_s))]
    clip_frames = times_s = waveform_CS = None
    if length_s <= 0:
        end_s = request.start_s + max(ends_s)
        raise MediaError(
            source.path,
            f"nothing to read from {request.start_s:g} s on; "
            f"what can be decoded ends at {max(0.0, end_s):.2f} s",
        )
    if video is not None:
        clip_frames, times_s = video.frames()
        if clip_frames is None:
            notices.append("no frame in this span")
        if video.disordered:
            notices.append(f"{video.disordered} frames out of order left out")
    if sound is not None:
        if sound.rate or request.duration_s is not None:
            waveform_CS = sound.waveform(length_s)
        else:
            notices.append("its sound stream is empty")
        notices += sound.notices()
    return Clip(
        clip_frames,
        times_s,
        waveform_CS,
        sound.target_rate if waveform_CS is not None and sound is not None else None,
        name=Path(source.path).name,
        notices=tuple(notices),
    )


def _collectors(
    source: Source, request: _Request, limits: Limits, sought: bool
) -> tuple[FrameCollector | None, SoundCollector | None]:
    video = sound = None
    if request.frames and source.video is not None:
        video = FrameCollector(
            source, request.span_s, fps=request.fps, size=request.size, limits=limits, sought=sought
        )
    if request.sound and source.audio is not None:
        sound = SoundCollector(
            source,
            request.span_s,
            sample_rate=request.sample_rate,
            channels=request.channels,
            limits=limits,
            sought=sought,
        )
    if video is None and sound is None:
        kind = "video" if request.frames else "sound"
        raise MediaError(source.path, f"no {kind} stream that can be decoded")
    return video, sound


def _decode(
    source: Source,
    video: FrameCollector | None,
    sound: SoundCollector | None,
    span_s: tuple[float, float],
) -> None:
    """Run the packets of the file through the collectors until both have what they need."""
    collectors: dict[int, FrameCollector | SoundCollector] = {}
    if video is not None:
        collectors[source.video.index] = video
    if sound is not None:
        collectors[source.audio.index] = sound
    streams = [source.container.streams[index] for index in collectors]
    for packet, at_s in _packets(source, streams):
        collector = collectors[packet.stream.index]  # a last, empty packet knows its stream only
        if not collector.done:
            for frame in _decoded(source, packet, at_s):
                collector.add(frame)
                if collector.done:
                    break
        if all(c.done for c in collectors.values()) or at_s > span_s[1] + _MAX_INTERLEAVE_S:
            break
    if video is not None:
        video.close()


def _packets(source: Source, streams: list[Any]) -> Iterator[tuple[Any, float]]:
    """The packets of some streams, each with the time that the file has reached."""
    packets = source.container.demux(streams)
    at_s = 0.0
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except Exception as error:
            raise MediaError(
                source.path, f"breaks off after {at_s:.2f} s: {describe(error)}"
            ) from error
        if packet.pts is not None:
            at_s = max(0.0, source.seconds(packet.pts, packet.stream))
        yield packet, at_s


def _decoded(source: Source, packet: Any, at_s: float) -> list[Any]:
    kind = packet.stream.type
    if packet.is_corrupt:
        raise MediaError(source.path, f"{kind} is damaged at {at_s:.2f} s")
    try:
        return packet.decode()
    except EOFError:
        return []  # a decoder that was flushed already
    except Exception as error:
        raise MediaError(
            source.path, f"{kind} cannot be decoded at {at_s:.2f} s: {describe(error)}"
        ) from error


def _short(source: Source, request: _Request, end_s: float) -> list[str]:
    """A notice if the header promised more than there is."""
    claimed_s = source.claimed_s
    if claimed_s is None or not (request.frames and request.sound):
        return []
    promised_s = min(claimed_s, request.span_s[1])
    found_s = request.start_s + end_s
    if found_s >= promised_s - max(_SHORT_BY_S, 0.02 * claimed_s):
        return []
    return [f"the header claims {claimed_s:.2f} s, its streams end at {found_s:.2f} s"]
