"""Opening a local media file safely.

In: a path or MediaBytes. Out: an open PyAV container with the two streams we read; a png or jpg
comes as a stand-in for one (see still.py).

Only regular local files are read, through a file object, in formats from a list, and anything a
file refers to is refused: playlists (m3u8, ffconcat) and URLs can neither name other files nor
reach a network.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from errno import EPERM
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import av
from av.stream import Disposition

from mmpredict.media.clock import as_fraction, file_origin_s
from mmpredict.media.gif import GIF_MARKS, gif_facts
from mmpredict.media.limits import Limits, MediaError
from mmpredict.media.local import MediaBytes, open_local, source_path
from mmpredict.media.still import JPEG_MARK, PNG_MARK, StillContainer

# Demuxers that hold their own data. Playlists, image sequences, capture devices are not among them.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,flv,ogg,asf,wav,w64,aiff,flac,mp3,"
    "aac"
)
_MKV_DURATION = re.compile(r"(\d{1,4}):(\d\d):(\d\d\.\d+)")
# Lossless sound whose packets carry checksums, which their decoders compare only when asked. AC-3
# has them, too, but broadcasts start in the middle of a packet, and nobody calls that damage.
_WITH_CHECKSUMS = ("flac", "tta", "wavpack")
_WAV_PROBE = 8192  # a wav says all in its header; FFmpeg would read 5 MB to guess what is known
_HEAD = 16  # bytes that tell a picture from a film
_MAX_JUMP_S = 60.0
_MAX_HEAD_PACKETS = 64  # how far we look for a first frame


@dataclass(frozen=True)
class Source:
    """An open file.

    Args:
        path: its name.
        container: of PyAV, or what stands in for one.
        video, audio: its streams, or None.
        origin_s: t = 0 of the file on its container's clock.
        notices: what is odd.
        video_lag: steps by which the frames of an avi come too late, see `counts_frames`.
        counted_s: its length, where the blocks of the file were counted rather than a claim read.
        file: what the container reads from.
    """

    path: Path
    container: Any
    video: Any
    audio: Any
    origin_s: float
    notices: tuple[str, ...]
    video_lag: int = 0
    counted_s: float | None = None
    file: BinaryIO | None = None

    @property
    def still(self) -> bool:
        """A picture without a length."""
        return isinstance(self.container, StillContainer)

    @property
    def counts_frames(self) -> bool:
        """An avi numbers its packets in the order in which they are decoded, and stamps nothing.

        What FFmpeg makes up as the stamp of a frame is wrong for B-frames. But decoders give frames
        in the order in which they are shown, one for one packet, so a frame's time is the number of
        the packet that brought it out (its dts), less `video_lag`.
        """
        return self.kind == "avi" and self.video is not None

    @property
    def kind(self) -> str:
        """The container's name, or the codec's of a still."""
        return self.container.header.codec if self.still else self.container.format.name

    def seconds(self, stamp: int, stream: Any) -> float:
        """A stamp of a packet or frame on the file's clock."""
        return float(stamp * as_fraction(stream.time_base)) - self.stream_origin_s(stream)

    def stream_origin_s(self, stream: Any) -> float:
        """What to take off a stream's stamps to be on the file's clock."""
        if not self.video_lag or stream.index != self.video.index:
            return self.origin_s
        return self.origin_s + float(self.video_lag * as_fraction(stream.time_base))

    def start_s(self, stream: Any) -> float | None:
        if stream is None or stream.start_time is None:
            return None
        return float(stream.start_time * as_fraction(stream.time_base)) - self.origin_s

    def check_jump(self, kind: str, from_s: float, to_s: float) -> None:
        """Refuse a stamp that leaps out of the file: filling the hole could take all memory."""
        if to_s - from_s > _MAX_JUMP_S and to_s > (self.claimed_s or 0.0) + _MAX_JUMP_S:
            raise MediaError(self.path, f"{kind} leaps from {from_s:.2f} s to {to_s:.2f} s")

    @property
    def claimed_s(self) -> float | None:
        """The header's duration of the file; None where it is absent or makes no sense."""
        if self.counted_s is not None:
            return self.counted_s
        ends_s = [_claimed_end_s(s) for s in (self.video, self.audio) if s is not None]
        known_s = [end_s for end_s in ends_s if end_s is not None]
        whole_s = self.container.duration or 0
        # A subtitle may stay longer than the film: then the film's own streams count.
        has_more = any(s.type == "subtitle" for s in self.container.streams)
        if whole_s <= 0 or (has_more and len(known_s) == len(ends_s)):
            return max(known_s) - self.origin_s if known_s else None
        return whole_s / av.time_base


def _claimed_end_s(stream: Any) -> float | None:
    """Where the header says that a stream ends, on its container's clock."""
    start_s = float((stream.start_time or 0) * as_fraction(stream.time_base))
    if stream.duration and stream.duration > 0:
        return start_s + float(stream.duration * as_fraction(stream.time_base))
    told = _MKV_DURATION.fullmatch(stream.metadata.get("DURATION", ""))
    if not told:
        return None
    hours, minutes, seconds = map(float, told.groups())
    return 3600 * hours + 60 * minutes + seconds


def _refuse_reference(url: str, flags: int, options: dict) -> NoReturn:
    raise PermissionError(f"refers to another file or address ({url})")


@contextmanager
def open_source(
    source: str | PathLike[str] | MediaBytes, limits: Limits, *, glance: bool = False
) -> Iterator[Source]:
    """Open a file, choose its streams and hold its header against the limits.

    With `glance` an mp4 is opened without decoding a picture, ten times as fast for large ones; its
    frames may then come out of order, so this is for a look at the header only.

    Whatever goes wrong inside the `with` becomes a MediaError: on damaged files PyAV raises not
    only its own errors but IndexError, UnicodeDecodeError and MemoryError as well.
    """
    path = source_path(source)
    try:
        with open_local(source, limits) as file:
            head = file.read(_HEAD)
            file.seek(0)
            if not head:
                raise MediaError(path, "empty file (0 bytes)", kind="empty")
            if head.startswith((PNG_MARK, JPEG_MARK)):
                yield _still(path, StillContainer(path, file.read(), limits))
                return
            counted_s = None
            if head.startswith(GIF_MARKS):
                facts = gif_facts(file, path, limits)
                file, counted_s = io.BytesIO(facts.data), facts.duration_s
            # Opening decodes a first picture where the header is terse: never one over the limit.
            options = {"max_pixels": str(limits.max_pixels)}
            if glance and head[4:8] == b"ftyp":
                options["skip_frame"] = "all"
            probesize = _WAV_PROBE if head[8:12] == b"WAVE" else None
            with _opened(path, file, options, probesize) as container:
                opened = _choose_streams(path, container, limits)
                opened = replace(opened, counted_s=counted_s, file=file)
                _check_header(opened, limits)
                if probesize:
                    opened = replace(opened, notices=(*opened.notices, *_cut_off(head, file)))
                if opened.counts_frames:
                    opened = replace(opened, video_lag=_avi_lag(opened))
                yield opened
    except (MediaError, AssertionError):
        raise
    except Exception as error:
        raise MediaError(path, f"cannot be read as media: {describe(error)}") from error


def _cut_off(head: bytes, file: BinaryIO) -> list[str]:
    """A notice for a wav that ends before its header says; FFmpeg goes by the file's size."""
    position, promised = file.tell(), int.from_bytes(head[4:8], "little") + 8
    size = file.seek(0, 2)
    file.seek(position)
    if promised <= size or promised in (8, 1 << 32, (1 << 32) + 7):  # streamed: not known then
        return []
    return [f"cut off: the header promises {promised:,} bytes, the file has {size:,}"]


def _avi_lag(source: Source) -> int:
    """How many steps the decoder of an avi waits before it gives its first frame, which is due at
    the start; the others follow at the same distance."""
    start, found = None, None
    try:
        for number, packet in enumerate(source.container.demux(source.video)):
            start = packet.dts if start is None else start
            found = next((frame.dts for frame in packet.decode() if frame.dts is not None), None)
            if found is not None or number >= _MAX_HEAD_PACKETS:
                break
    except Exception:  # damage at the start: reading it will say so
        found = None
    source.container.seek(0)
    return 0 if found is None or start is None else found - start


def _still(path: Path, container: StillContainer) -> Source:
    return Source(
        path, container, container.streams[0], None, 0.0, container.notices, counted_s=0.0
    )


def _opened(path: Path, file: BinaryIO, options: dict[str, str], probesize: int | None) -> Any:
    """A PyAV container in one of our formats, forbidden to open anything besides `file`."""
    try:
        return av.open(
            file,
            "r",
            container_options={"format_whitelist": _FORMATS}
            | ({"probesize": str(probesize)} if probesize else {}),
            options=options,
            io_open=_refuse_reference,
        )
    except (av.error.ArgumentError, PermissionError) as error:
        # What the list of formats and the refusal of references come out as.
        raise MediaError(
            path, "not a kind of media that is read (playlists and lists of files never are)"
        ) from error


def describe(error: Exception) -> str:
    """One short line for an error of the media library, without the path it likes to repeat."""
    if isinstance(error, av.error.FFmpegError) and error.errno == EPERM:
        # Decoders that give no reason return -1, which happens to be the number of this one.
        return "the decoder gives no reason (FFmpegError)"
    text = getattr(error, "strerror", None) or str(error) or "no message"
    return f"{text.splitlines()[0][:200]} ({type(error).__name__})"


def _check_header(source: Source, limits: Limits) -> None:
    limits.check(source.path, duration_s=source.claimed_s or 0.0)
    if source.video is not None:
        context = source.video.codec_context
        if not context.width or not context.height:
            raise MediaError(
                source.path,
                "its picture has no size, or one over the limit of "
                f"{limits.max_pixels:,} pixels a frame (Limits.max_pixels)",
                kind="limits",
            )
        limits.check(source.path, pixels=context.width * context.height, frames=source.video.frames)


def _choose_streams(path: Path, container: Any, limits: Limits) -> Source:
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
    film = chosen["video"]
    if film is not None and container.start_time is None and container.duration is None:
        rate = float(film.average_rate or film.guessed_rate or 0)
        notices.append(f"no time stamps; its frames are counted at {rate:g} a second")
    if chosen["video"] is None and chosen["audio"] is None:
        raise MediaError(path, "; ".join(notices) or "no video or sound stream")
    for stream in chosen.values():
        if stream is not None:
            # One process decodes one file: threads of its own only add cost.
            stream.codec_context.thread_type = "SLICE"
            stream.codec_context.thread_count = 1
            if stream.type == "video":  # its size may grow after the header
                stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}
            elif stream.codec_context.name in _WITH_CHECKSUMS:
                stream.codec_context.options = {"err_detect": "crccheck+explode"}
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
