"""What a file claims to hold.

In: a path or MediaBytes. Out: a MediaInfo, from the header alone where the header says enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from mmpredict.media.clock import as_fraction
from mmpredict.media.container import Source, head_frames, open_source
from mmpredict.media.limits import Limits
from mmpredict.media.local import MediaBytes
from mmpredict.media.subtitles import text_codec, unread_tracks
from mmpredict.media.turning import may_be_turned, turning

_SHORT_BY_S = 0.5  # a header may claim this much too little, or 2 %


@dataclass(frozen=True)
class MediaInfo:
    """What a file's header says; nobody has checked that it is true.

    Args:
        path: the file, or the name of bytes in memory.
        duration_s: the header's claim, or the last packet's end where the header is silent; 0 for a
            still picture, which has no length of its own.
        has_video, has_audio: whether there is a stream of the kind that can be decoded.
        width, height: pixels as shown, after rotation; 0 without video.
        fps: average frames a second; 0 without video or if unknown.
        sample_rate: Hz; 0 without sound.
        channels: 0 without sound.
        video_start_s, audio_start_s: seconds on the file's clock; None without the stream or if
            unknown.
        rotation: degrees counter-clockwise that the stored picture is turned by for showing.
        notices: what is odd.
        still: a single picture (png, jpg).
        mirrored: the stored picture is mirrored left to right before it is turned.
        kind: the container, as FFmpeg calls it ("mov,mp4,m4a,3gp,3g2,mj2"; "png"; "mjpeg").
        video_codec, audio_codec, text_codec: names of the codecs that are read; "" without the
            stream.
    """

    path: Path
    duration_s: float
    has_video: bool
    has_audio: bool
    width: int = 0
    height: int = 0
    fps: float = 0.0
    sample_rate: int = 0
    channels: int = 0
    video_start_s: float | None = None
    audio_start_s: float | None = None
    rotation: int = 0
    notices: tuple[str, ...] = ()
    still: bool = False
    mirrored: bool = False
    kind: str = ""
    video_codec: str = ""
    audio_codec: str = ""
    text_codec: str = ""


def probe(source: str | PathLike[str] | MediaBytes, limits: Limits | None = None) -> MediaInfo:
    """What a file claims to hold.

    From the header alone, save two things: where the header turns the picture, a first frame is
    decoded to learn how, and a missing duration is taken from the stamps of all packets.
    """
    limits = limits or Limits()
    with open_source(source, limits, glance=True) as opened:
        video, audio = opened.video, opened.audio
        notices = [*opened.notices, *unread_tracks(opened)]
        facts: dict[str, Any] = {"text_codec": text_codec(opened)}
        if video is not None:
            facts |= _picture(opened)
        if audio is not None:
            facts |= {
                "sample_rate": audio.codec_context.sample_rate,
                "channels": audio.codec_context.channels,
                "audio_codec": audio.codec_context.name,
            }
        claimed_s = opened.claimed_s
        if claimed_s is None:
            claimed_s = _packets_end_s(opened)
            notices.append(f"the header gives no duration; its packets end at {claimed_s:.2f} s")
        indexed_s = _indexed_s(opened)
        if indexed_s > claimed_s + max(_SHORT_BY_S, 0.02 * claimed_s):
            notices.append(f"the header claims {claimed_s:.2f} s, its index {indexed_s:.2f} s")
            claimed_s = indexed_s
        limits.check(opened.path, duration_s=claimed_s)
        return MediaInfo(
            opened.path,
            claimed_s,
            video is not None,
            audio is not None,
            video_start_s=opened.start_s(video),
            audio_start_s=opened.start_s(audio),
            notices=tuple(notices),
            still=opened.still,
            kind=opened.kind,
            **facts,
        )


def _picture(source: Source) -> dict[str, Any]:
    context = source.video.codec_context
    mirrored, turns = (False, 0) if source.still else _header_turning(source)
    width, height = context.width, context.height
    return {
        "width": height if turns % 2 else width,
        "height": width if turns % 2 else height,
        "fps": float(source.video.average_rate or 0),
        "rotation": turns * 90,
        "mirrored": mirrored,
        "video_codec": context.name,
    }


def _header_turning(source: Source) -> tuple[bool, int]:
    """PyAV shows the display matrix of a container only on decoded frames; a broken first one
    counts as upright."""
    if not may_be_turned(source.file, source.kind):
        return False, 0
    try:
        frames = head_frames(source, source.video, 1)
    except Exception:
        return False, 0
    return turning(frames[0]) if frames else (False, 0)


def _indexed_s(source: Source) -> float:
    """Where the last entry of the file's index stands that is shown: no file is shorter."""
    ends_s = [0.0]
    in_stamps = "mp4" in source.kind or "matroska" in source.kind  # else in units of their own
    for stream in (source.video, source.audio):
        entries = stream.index_entries if in_stamps and stream is not None else ()
        for number in reversed(range(len(entries))):
            if not entries[number].is_discard:  # what an edit list cuts away stays in the index
                ends_s.append(source.seconds(entries[number].timestamp, stream))
                break
    return max(ends_s)


def _packets_end_s(source: Source) -> float:
    """The end of the last packet by stamps alone; packets without a stamp follow one another."""
    if may_be_turned(source.file, source.kind):  # then a frame has been read
        source.container.seek(0)
    streams = [s for s in (source.video, source.audio) if s is not None]
    ends_s = dict.fromkeys((s.index for s in streams), 0.0)
    for packet in source.container.demux(streams):
        number, stream = packet.stream.index, packet.stream
        if packet.pts is not None:
            end_s = source.seconds(packet.pts + (packet.duration or 0), stream)
        else:
            end_s = ends_s[number] + float((packet.duration or 0) * as_fraction(stream.time_base))
        ends_s[number] = max(ends_s[number], end_s)
    return max(ends_s.values())
