"""A media file to a Clip: frames and sound of a span from one pass over the file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from typing import Any

from mmpredict.media.audio import SWING_IN_S, SoundCollector
from mmpredict.media.container import Source, describe, open_source
from mmpredict.media.limits import BehindTheEndError, DamagedError, Limits, MediaError
from mmpredict.media.local import MediaBytes
from mmpredict.media.nal import looks_whole
from mmpredict.media.video import FrameCollector, SeekMissed, stamp_reader
from mmpredict.schema import Clip

# How to look for a span: how far before it a seek aims, and whether frames that no other frame
# needs may be left undecoded on the way. Decoders of sound need some packets to swing in. Where an
# aim turns out too late (odd indexes), or the frame on show may be among those left out, the next
# is tried; None reads from the start of the file.
ATTEMPTS: tuple[tuple[float | None, bool], ...] = (
    (SWING_IN_S, True),
    (SWING_IN_S, False),
    (10.0, False),
    (None, False),
)
NOT_WORTH_SEEKING_S = 2.0
MAX_INTERLEAVE_S = 10.0  # a stream that lags more behind the others has nothing for this span
_SHORT_BY_S = 0.5  # a header may claim this much too much, or 2 %


@dataclass(frozen=True)
class Request:
    """What `read_clip` is asked for; checked when made."""

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
    source: str | PathLike[str] | MediaBytes,
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
    raises, naming the time, although what came before it could be shown. Damage before the span is
    none where the span can do without: a key frame lies between them, and so much sound that the
    decoder has forgotten. A file that is merely shorter than its header claims is read as far as it
    goes, with a notice.

    Args:
        source: a local file, or one that lies in memory; URLs and playlists are refused.
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
    request = Request(start_s, duration_s, fps, size, sample_rate, channels, frames, sound)
    limits = limits or Limits()
    for aim_s, sparsely in attempts(start_s):
        with open_source(source, limits) as opened:
            try:
                video, heard = collectors(opened, request, limits, sought=aim_s is not None)
                if aim_s is not None:
                    seek(opened, video, heard, aim_s=aim_s, sparsely=sparsely)
                _decode(opened, video, heard, request.span_s)
                return finished(opened, request, video, heard)
            except SeekMissed:
                continue
            except MediaError:
                # Broken references right after a seek are no proof of damage; the start of the file
                # is.
                if aim_s is None:
                    raise
    raise AssertionError("the last attempt reads from the start and does not miss")


def attempts(start_s: float) -> list[tuple[float | None, bool]]:
    """What to try in turn to read from `start_s` on: (where a seek aims, whether to leave out what
    can be left out on the way). The last reads from the start of the file."""
    if start_s <= NOT_WORTH_SEEKING_S:
        return [(None, False)]
    return [
        (None if margin_s is None or margin_s >= start_s else start_s - margin_s, sparsely)
        for margin_s, sparsely in ATTEMPTS
    ]


def seek(
    source: Source,
    video: FrameCollector | None,
    sound: SoundCollector | None,
    *,
    aim_s: float,
    sparsely: bool,
) -> None:
    """Move a file that was just opened to the last key frame before `aim_s`."""
    if source.kind == "mpeg":
        # A program stream has no index: a seek may end inside of a picture, whose stamp then goes
        # to the next one.
        raise SeekMissed
    if sound is not None:
        sound.find_lattice()
    try:
        source.container.seek(round((aim_s + source.origin_s) * 1_000_000), backward=True)
    except Exception as error:  # no index, or none that reaches so far
        raise SeekMissed from error
    # Decoders from other libraries (dav1d) are told only once, and would leave frames out for ever.
    native = video is not None and not source.video.codec_context.codec.name.startswith("lib")
    if video is not None and sparsely and native and not source.counts_frames:
        source.video.codec_context.skip_frame = "NONREF"
        video.sparse_until_s = aim_s


def finished(
    source: Source,
    request: Request,
    video: FrameCollector | None,
    sound: SoundCollector | None,
) -> Clip:
    """The clip of a span from what was collected; of `sound` it may be a part."""
    ends_s = [] if video is None else [video.end_s]
    if sound is not None:
        ends_s.append(sound.end_from(request.start_s))
    length_s = min(request.duration_s or math.inf, max(ends_s))
    notices = [*source.notices, *_short(source, request, max(ends_s))]
    clip_frames = times_s = waveform_CS = None
    if length_s <= 0:
        end_s = max(0.0, request.start_s + max(ends_s))
        raise BehindTheEndError(source.path, request.start_s, end_s)
    if video is not None:
        clip_frames, times_s = video.frames()
        if clip_frames is None:
            notices.append("no frame in this span")
        if video.disordered:
            notices.append(f"{video.disordered} frames out of order left out")
    if sound is not None:
        if sound.rate or request.duration_s is not None:
            waveform_CS = sound.window(request.start_s, length_s)
        else:
            notices.append("its sound stream is empty")
        notices += sound.notices(request.start_s, length_s)
    return Clip(
        clip_frames,
        times_s,
        waveform_CS,
        sound.target_rate if waveform_CS is not None and sound is not None else None,
        name=source.path.name,
        notices=tuple(notices),
    )


def collectors(
    source: Source, request: Request, limits: Limits, sought: bool
) -> tuple[FrameCollector | None, SoundCollector | None]:
    """What collects the streams that are asked for and there; MediaError if there is none."""
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
    wanted: dict[int, FrameCollector | SoundCollector] = {}
    if video is not None:
        wanted[source.video.index] = video
    if sound is not None:
        wanted[source.audio.index] = sound
    waiting = list(wanted.values())
    for packet, at_s in packets(source, list(wanted), video):
        collector = wanted[packet.stream.index]
        if not collector.done:
            _take(source, packet, at_s, collector)
            if collector.done:
                waiting.remove(collector)
        if not waiting or at_s > span_s[1] + MAX_INTERLEAVE_S:
            break
    if video is not None:
        video.close()


def _take(
    source: Source, packet: Any, at_s: float, collector: FrameCollector | SoundCollector
) -> None:
    """Decode a packet into its collector; damage before the span costs only what needs it."""
    try:
        for frame in decoded(source, packet, at_s):
            collector.add(frame)
            if collector.done:
                return
    except DamagedError as error:
        collector.lose(error, at_s)


def packets(
    source: Source, indices: list[int], video: FrameCollector | None
) -> Iterator[tuple[Any, float]]:
    """The packets of some streams, each with the time that the file has reached.

    After a sparse seek the decoder of `video` is told to leave nothing out from its
    `sparse_until_s` on.
    """
    streams = [source.container.streams[index] for index in indices]
    seconds = {stream.index: stamp_reader(source, stream) for stream in streams}
    sparse = video is not None and video.sparse_until_s > 0
    demuxed = source.container.demux(streams)
    at_s = 0.0
    while True:
        try:
            packet = next(demuxed)
        except StopIteration:
            return
        except Exception as error:
            raise MediaError(
                source.path, f"breaks off after {at_s:.2f} s: {describe(error)}"
            ) from error
        index, stamp = packet.stream.index, packet.pts
        if stamp is not None:
            at_s = max(0.0, seconds[index](stamp))
        if (
            sparse
            and index == source.video.index
            and (stamp is None or at_s >= video.sparse_until_s)
        ):
            source.video.codec_context.skip_frame = "DEFAULT"
            sparse = False
        if sparse and index == source.video.index and not _is_whole(packet):
            raise DamagedError(source.path, f"video is damaged at {at_s:.2f} s")
        yield packet, at_s


def _is_whole(packet: Any) -> bool:
    context = packet.stream.codec_context
    return looks_whole(bytes(packet), context.codec.name, context.extradata)


def decoded(source: Source, packet: Any, at_s: float) -> list[Any]:
    """The frames that a packet completes; DamagedError if it is damaged."""
    kind = packet.stream.type
    # The last packet of a wav is merely short where the header promises more, as in streamed ones.
    if packet.is_corrupt and source.kind != "wav":
        raise DamagedError(source.path, f"{kind} is damaged at {at_s:.2f} s")
    try:
        return packet.decode()
    except EOFError:
        return []  # a decoder that was flushed already
    except Exception as error:
        raise DamagedError(
            source.path, f"{kind} cannot be decoded at {at_s:.2f} s: {describe(error)}"
        ) from error


def _short(source: Source, request: Request, end_s: float) -> list[str]:
    """A notice if the header promised more than there is, or less."""
    claimed_s = source.claimed_s
    if claimed_s is None or not (request.frames and request.sound):
        return []
    promised_s = min(claimed_s, request.span_s[1])
    found_s = request.start_s + end_s
    slack_s = max(_SHORT_BY_S, 0.02 * claimed_s)
    if request.duration_s is None and found_s > claimed_s + slack_s and not source.still:
        return [f"the header claims {claimed_s:.2f} s, its streams go on to {found_s:.2f} s"]
    if found_s >= promised_s - slack_s:
        return []
    return [f"the header claims {claimed_s:.2f} s, its streams end at {found_s:.2f} s"]
