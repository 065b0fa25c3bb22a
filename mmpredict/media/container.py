"""Opening a local media file safely, and what its header says.

In: a path. Out: an open PyAV container with the two streams we read, or a MediaInfo.

Only regular local files are read, through a file object, in formats from a list, and anything a
file refers to is refused: playlists (m3u8, ffconcat) and URLs can neither name other files nor
reach a network.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import av
from av.stream import Disposition

from mmpredict.media.clock import as_fraction, file_origin_s
from mmpredict.media.limits import Limits, MediaError

# Demuxers that hold their own data. Playlists, image sequences, capture devices are not among them.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,wav,w64,aiff,flac,mp3,aac"
)
_MAX_JUMP_S = 60.0
_MAX_HEAD_PACKETS = 64  # how far we look for a first frame


@dataclass(frozen=True)
class MediaInfo:
    """What a file's header says; nobody has checked that it is true.

    Args:
        path: the file.
        duration_s: the header's claim, or the last packet's end where the header is silent.
        has_video, has_audio: whether there is a stream of the kind that can be decoded.
        width, height: pixels as shown, after rotation; 0 without video.
        fps: average frames a second; 0 without video or if unknown.
        sample_rate: Hz; 0 without sound.
        channels: 0 without sound.
        video_start_s, audio_start_s: seconds on the file's clock; None without the stream or if
            unknown.
        rotation: degrees counter-clockwise that the stored picture is turned by for showing.
        notices: what is odd.
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


@dataclass(frozen=True)
class Source:
    """An open file. `video` and `audio` are PyAV streams or None; `origin_s` is t = 0 on its
    clock."""

    path: Path
    container: Any
    video: Any
    audio: Any
    origin_s: float
    notices: tuple[str, ...]

    def seconds(self, stamp: int, stream: Any) -> float:
        """A stamp of a stream on the file's clock."""
        return float(stamp * as_fraction(stream.time_base)) - self.origin_s

    def start_s(self, stream: Any) -> float | None:
        if stream is None or stream.start_time is None:
            return None
        return self.seconds(stream.start_time, stream)

    def check_jump(self, kind: str, from_s: float, to_s: float) -> None:
        """Refuse a stamp that leaps out of the file: filling the hole could take all memory."""
        if to_s - from_s > _MAX_JUMP_S and to_s > (self.claimed_s or 0.0) + _MAX_JUMP_S:
            raise MediaError(self.path, f"{kind} leaps from {from_s:.2f} s to {to_s:.2f} s")

    @property
    def claimed_s(self) -> float | None:
        """The header's duration of the file."""
        if self.container.duration:
            return self.container.duration / av.time_base
        ends = [
            float(s.duration * as_fraction(s.time_base))
            for s in (self.video, self.audio)
            if s is not None and s.duration
        ]
        return max(ends, default=None)


def _refuse_reference(url: str, flags: int, options: dict) -> NoReturn:
    raise PermissionError(f"refers to another file or address ({url})")


@contextmanager
def open_source(path: str | PathLike[str], limits: Limits) -> Iterator[Source]:
    """Open a file, choose its streams and hold its header against the limits.

    Whatever goes wrong inside the `with` becomes a MediaError: on damaged files PyAV raises not
    only its own errors but IndexError, UnicodeDecodeError and MemoryError as well.
    """
    path = Path(path)
    try:
        # stat before open: opening a pipe would wait for its other end.
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise MediaError(path, "not a regular file")
        if status.st_size == 0:
            raise MediaError(path, "empty file (0 bytes)")
        _check(path, limits, bytes_=status.st_size)
        with path.open("rb") as file, _opened(path, file) as container:
            source = _choose_streams(path, container)
            _check_header(source, limits)
            yield source
    except (MediaError, AssertionError):
        raise
    except FileNotFoundError as error:
        raise MediaError(path, "no such file") from error
    except Exception as error:
        raise MediaError(path, f"cannot be read as media: {describe(error)}") from error


def _opened(path: Path, file: BinaryIO) -> Any:
    """A PyAV container in one of our formats, forbidden to open anything besides `file`."""
    try:
        return av.open(
            file,
            "r",
            container_options={"format_whitelist": _FORMATS},
            io_open=_refuse_reference,
        )
    except (av.error.ArgumentError, PermissionError) as error:
        # What the list of formats and the refusal of references come out as.
        raise MediaError(
            path, "not a kind of media that is read (playlists and lists of files never are)"
        ) from error


def describe(error: Exception) -> str:
    """One short line for an error of the media library, without the path it likes to repeat."""
    text = getattr(error, "strerror", None) or str(error) or "no message"
    return f"{text.splitlines()[0][:200]} ({type(error).__name__})"


def _check(path: Path, limits: Limits, **amounts: float) -> None:
    reason = limits.refusal(**amounts)  # type: ignore[arg-type]
    if reason:
        raise MediaError(path, reason)


def _check_header(source: Source, limits: Limits) -> None:
    _check(source.path, limits, duration_s=source.claimed_s or 0.0)
    if source.video is not None:
        context = source.video.codec_context
        _check(
            source.path, limits, pixels=context.width * context.height, frames=source.video.frames
        )


def _choose_streams(path: Path, container: Any) -> Source:
    """The best video and sound stream; cover pictures are no video."""
    notices = []
    chosen = {}
    for kind, streams in (("video", container.streams.video), ("audio", container.streams.audio)):
        moving = [s for s in streams if not s.disposition & Disposition.attached_pic]
        usable = [s for s in moving if s.codec_context is not None]
        if moving and not usable:
            notices.append(f"no decoder for its {kind} stream")
        best = container.streams.best(kind) if usable else None
        chosen[kind] = best if best in usable else (usable[0] if usable else None)
        if len(usable) > 1:
            notices.append(f"{len(usable)} {kind} streams; stream {chosen[kind].index} is read")
    if chosen["video"] is None and chosen["audio"] is None:
        raise MediaError(path, "; ".join(notices) or "no video or sound stream")
    for stream in chosen.values():
        if stream is not None:
            # One process decodes one file: threads of its own only add cost.
            stream.codec_context.thread_type = "SLICE"
            stream.codec_context.thread_count = 1
    starts = [
        None
        if s is None or s.start_time is None
        else float(s.start_time * as_fraction(s.time_base))
        for s in chosen.values()
    ]
    return Source(
        path, container, chosen["video"], chosen["audio"], file_origin_s(starts), tuple(notices)
    )


def head_frames(source: Source, stream: Any, count: int) -> list[Any]:
    """The first decoded frames of a stream, at most `count`; moves the container's position."""
    found: list[Any] = []
    for number, packet in enumerate(source.container.demux(stream)):
        found.extend(packet.decode())
        if len(found) >= count or number >= _MAX_HEAD_PACKETS:
            break
    return found[:count]


def probe(path: str | PathLike[str], limits: Limits | None = None) -> MediaInfo:
    """What a file claims to hold.

    From the header alone, save two things a header may lack: the rotation comes from the first
    frame, and a missing duration from the stamps of all packets.
    """
    with open_source(path, limits or Limits()) as source:
        video, audio = source.video, source.audio
        notices = list(source.notices)
        claimed_s = source.claimed_s
        facts: dict[str, Any] = {}
        if video is not None:
            context = video.codec_context
            rotation = _header_rotation(source)
            turned = rotation % 180 == 90
            facts = {
                "width": context.height if turned else context.width,
                "height": context.width if turned else context.height,
                "fps": float(video.average_rate or 0),
                "rotation": rotation,
            }
        if audio is not None:
            facts |= {
                "sample_rate": audio.codec_context.sample_rate,
                "channels": audio.codec_context.channels,
            }
        if claimed_s is None:
            claimed_s = _packets_end_s(source)
            notices.append(f"the header gives no duration; its packets end at {claimed_s:.2f} s")
            _check(source.path, limits or Limits(), duration_s=claimed_s)
        return MediaInfo(
            source.path,
            claimed_s,
            video is not None,
            audio is not None,
            video_start_s=source.start_s(video),
            audio_start_s=source.start_s(audio),
            notices=tuple(notices),
            **facts,
        )


def _header_rotation(source: Source) -> int:
    """PyAV shows the rotation of a container only on decoded frames; a broken first one counts as
    0."""
    try:
        frames = head_frames(source, source.video, 1)
    except Exception:
        return 0
    return round(frames[0].rotation / 90) * 90 % 360 if frames else 0


def _packets_end_s(source: Source) -> float:
    """The end of the last packet, by stamps alone."""
    source.container.seek(0)
    end_s = 0.0
    for packet in source.container.demux(
        [s for s in (source.video, source.audio) if s is not None]
    ):
        if packet.pts is not None:
            end_s = max(end_s, source.seconds(packet.pts + (packet.duration or 0), packet.stream))
    return end_s
