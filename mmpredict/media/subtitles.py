"""The subtitle track inside a media file as TextPieces.

In: an mp4, mov, mkv or webm. Out: its cues, with times on the file's clock.

Tracks of text are read: mov_text, subrip, webvtt, ass. Tracks of pictures (DVD, Blu-ray) are not.
The bytes of the packets are read here by hand: a decoder would turn them into ASS markup and back.
"""

from __future__ import annotations

import html
import re
from os import PathLike
from typing import Any

from av.stream import Disposition

from mmpredict.media.clock import as_fraction
from mmpredict.media.container import Source, open_source
from mmpredict.media.limits import Limits, MediaError
from mmpredict.media.local import MediaBytes
from mmpredict.schema import TextPiece

TEXT_CODECS = ("mov_text", "subrip", "srt", "text", "webvtt", "ass", "ssa")
# <i>, </b>, <c.loud>, <v Anna>, <00:01.500> and {\an8}, but neither "<3" nor "<vid>"
_TAGS = "i|b|u|s|c|v|em|strong|font|span|lang|ruby|rt"
_MARKUP = re.compile(
    rf"</?(?:{_TAGS})(?:[.\s][^<>\n]*)?>|<[\d:.]*:[\d:.]*>|\{{\\[^{{}}\n]*\}}", re.IGNORECASE
)
_ASS_FIELDS = 8  # before the text of an event in Matroska
_MAX_CHARACTERS = 64 * 1024**2


def plain(text: str) -> str:
    """A cue's text without tags and character references."""
    return html.unescape(_MARKUP.sub("", text)).strip()


def _text_track(source: Source) -> Any:
    """The track that is read: the default one, else the first of text; None without any."""
    tracks = [s for s in _tracks(source) if _codec(s) in TEXT_CODECS]
    chosen = [s for s in tracks if s.disposition & Disposition.default] or tracks
    return chosen[0] if chosen else None


def _tracks(source: Source) -> list[Any]:
    return [s for s in source.container.streams if s.type == "subtitle"]


def text_codec(source: Source) -> str:
    """The codec of the track that `read_track` reads; "" without one."""
    track = _text_track(source)
    return "" if track is None else "subrip" if _codec(track) == "srt" else _codec(track)


def unread_tracks(source: Source) -> list[str]:
    """A notice if there are subtitles besides the track that is read."""
    read = _text_track(source)
    left = [_codec(s) or "unknown" for s in _tracks(source) if s is not read]
    if not left:
        return []
    return [f"{len(left)} further subtitle tracks are not read ({', '.join(sorted(set(left)))})"]


def read_track(
    source: str | PathLike[str] | MediaBytes, limits: Limits | None = None
) -> tuple[TextPiece, ...]:
    """The cues of a media file's own subtitle track, in order of time; () if it has none.

    A cue without a length lasts until the next one starts, the last one no time at all. What lies
    before t = 0 is cut there.
    """
    with open_source(source, limits or Limits()) as opened:
        track = _text_track(opened)
        if track is None:
            return ()
        codec, cues, characters = _codec(track), [], 0
        for packet in opened.container.demux(track):
            if packet.pts is None or not packet.size:
                continue
            text = _text(codec, bytes(packet))
            characters += len(text)
            if characters > _MAX_CHARACTERS:
                reason = f"over {_MAX_CHARACTERS:,} characters of subtitles"
                raise MediaError(opened.path, reason, kind="limits")
            if text:
                start_s = opened.seconds(packet.pts, track)
                length_s = float((packet.duration or 0) * as_fraction(track.time_base))
                cues.append((start_s, length_s, text))
    cues.sort(key=lambda cue: cue[0])
    pieces = []
    for index, (start_s, length_s, text) in enumerate(cues):
        end_s = start_s + length_s
        if not length_s and index + 1 < len(cues):
            end_s = cues[index + 1][0]
        if end_s >= 0:
            pieces.append(TextPiece(text, max(0.0, start_s), end_s))
    return tuple(pieces)


def _codec(stream: Any) -> str:
    return stream.codec_context.name if stream.codec_context is not None else ""


def _text(codec: str, payload: bytes) -> str:
    if codec == "mov_text":  # a length, the text, boxes of styles
        length = int.from_bytes(payload[:2], "big")
        raw = payload[2 : 2 + length]
        encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
        return raw.decode(encoding, errors="replace").strip()
    text = payload.decode(errors="replace").replace("\r\n", "\n").replace("\0", "")
    if codec in ("ass", "ssa"):
        fields = text.split(",", _ASS_FIELDS)
        text = fields[-1] if len(fields) > _ASS_FIELDS else ""
        text = re.sub(r"\{[^{}]*\}", "", text).replace("\\N", "\n").replace("\\n", "\n")
        return text.replace("\\h", " ").strip()
    return plain(text)
