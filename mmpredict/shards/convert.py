"""One source to its samples. Runs in a process of its own, for the file may be hostile.

In: an item (see Found.item) and the settings. Out: a spool file with the samples as a stretch of
tar, and what the index will say of them. `open_converter` is what the sandbox calls.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mmpredict.media import MediaError, MediaInfo, probe, read_text
from mmpredict.media.speech import in_time, mended, said_between
from mmpredict.schema import Clip, Modality, TextPiece
from mmpredict.shards.members import (
    Origin,
    as_json,
    length_s,
    members_of_clip,
    piece_row,
    pieces_of,
)
from mmpredict.shards.passages import passages
from mmpredict.shards.sandbox import Beat, Item, Worker
from mmpredict.shards.settings import Settings
from mmpredict.shards.sources import key_of
from mmpredict.shards.spool import SpoolWriter
from mmpredict.shards.windows import windows_of
from mmpredict.tokens import Codecs

PASSAGE_CHARACTERS = 20_000  # of a document of text: long texts are cut where there is white space
_CHUNK = 1 << 20


def open_converter(context: Item) -> Worker:
    """The worker of a sandbox: makes the spool file of an item."""
    settings = Settings(**context["settings"])
    codecs = settings.codecs()
    if codecs.text is not None:
        codecs.text.ids_of("")  # loads the vocabulary once, before the forks
    return partial(convert, settings=settings, codecs=codecs)


def convert(item: Item, beat: Beat, *, settings: Settings, codecs: Codecs) -> None:
    """Write the spool file of an item: its samples, or why there are none.

    `beat` is called after every window. Where the source still has the digest `item["known"]`, the
    spool file says only that.
    """
    with SpoolWriter(Path(item["spool"]), item["kind"]) as spool:
        spool.about = {"name": item["name"], "bytes": 0, "sha256": "", "stat": stat_of(item)}
        with reasons_noted(spool):
            spool.about |= digest_of(item, beat)
            if spool.about["sha256"] == item.get("known"):
                spool.about["same"] = True
                return
            if item["kind"] == "text":
                _text(item, spool, codecs)
            elif settings.form == "keep":
                _keep(item, beat, spool, settings, codecs)
            else:
                _clips(item, beat, spool, settings, codecs)
            if stat_of(item) != spool.about["stat"]:
                raise MediaError(item["path"], "changed while it was read; run again")
            if not spool.samples and not spool.skipped:
                raise MediaError(item["path"], "it holds nothing to learn from", kind="empty")


def write_document(item: Item, make: Callable[[], Any], settings: Settings, codecs: Codecs) -> None:
    """Write the spool file of a recipe's document.

    Args:
        item: its "name", "sha256", "split" and "spool".
        make: gives its clip, or something with a `kind` and a `reason` why there is none.
        settings, codecs: as in `convert`.
    """
    with SpoolWriter(Path(item["spool"]), item["kind"]) as spool:
        spool.about = {key: item[key] for key in ("name", "sha256")} | {"bytes": 0, "stat": None}
        with reasons_noted(spool):
            clip = make()
            if not isinstance(clip, Clip):
                spool.skip(clip.kind, clip.reason)
                return
            origin = Origin(key_of(item["name"], 0), item["name"], split=item["split"])
            members, about = members_of_clip(clip, origin, settings.packing)
            spool.add(about, members, count_tokens(clip, codecs))


@contextmanager
def reasons_noted(spool: SpoolWriter) -> Iterator[None]:
    """What goes wrong with a source becomes the reason why it is skipped; a lack of memory or disk
    is not the source's."""
    try:
        yield
    except MediaError as error:
        check_memory(error)
        spool.drop_samples()
        spool.skip(error.kind, error.reason)
    except (MemoryError, OSError):
        raise
    except Exception as error:
        if "not enough memory" in str(error) or "can't allocate" in str(error):
            raise MemoryError from error
        spool.drop_samples()
        spool.skip("unreadable", f"{type(error).__name__}: {error}")


def check_memory(error: MediaError) -> None:
    """MemoryError where that is behind it: then nothing is known of the file."""
    if isinstance(error.__cause__, MemoryError):
        raise MemoryError from error


def stat_of(item: Item) -> list[Any] | None:
    """What tells cheaply that the files of an item are as they were."""
    found: list[Any] = []
    for path in (item["path"], item["beside"]):
        try:
            status = os.stat(path) if path else None
        except OSError:
            return None
        found.append([status.st_size, status.st_mtime_ns] if status else None)
    return found


def digest_of(item: Item, beat: Beat) -> dict[str, Any]:
    """Size of an item's file, and the sha256 of all that it is made from."""
    hexes, size = [], 0
    for path in (item["path"], item["beside"]):
        if not path:
            continue
        if not Path(path).is_file():
            if not Path(path).exists():
                raise MediaError(path, "no such file", kind="missing")
            raise MediaError(path, "not a regular file")
        digest = hashlib.sha256()
        try:
            with open(path, "rb") as file:
                while piece := file.read(_CHUNK):
                    digest.update(piece)
                    beat()
                size = size or file.tell()
        except OSError as error:
            raise MediaError(path, error.strerror or str(error)) from error
        hexes.append(digest.hexdigest())
    said = {key: item[key] for key in ("start_s", "end_s", "texts", "weight")}
    if said != {"start_s": 0.0, "end_s": None, "texts": None, "weight": 1.0}:
        hexes.append(hashlib.sha256(as_json(said)).hexdigest())
    if len(hexes) > 1:
        hexes = [hashlib.sha256("".join(f"{h}\n" for h in hexes).encode()).hexdigest()]
    return {"bytes": size, "sha256": hexes[0]}


def count_tokens(clip: Clip, codecs: Codecs) -> dict[str, int]:
    """How many tokens each stream of a clip has, without making those of frames and sound."""
    counts = {}
    if codecs.audio is not None and clip.waveform_CS is not None:
        counts["audio"] = clip.waveform_CS.shape[1] // codecs.audio.chunk_samples
    if codecs.video is not None and clip.frames_TCHW is not None:
        counts["video"] = len(clip.frames_TCHW) * codecs.video.spec.positions_per_block
    if codecs.text is not None and clip.texts:
        tokens = codecs.text.encode(Clip(texts=clip.texts))
        assert tokens is not None and tokens.modality == Modality.TEXT
        counts["text"] = len(tokens.contents)
    return counts


def _texts_of(item: Item) -> tuple[TextPiece, ...]:
    if item["texts"] is not None:
        return _mended(pieces_of(item))
    return _mended(read_text(item["beside"])) if item["beside"] else ()


def _mended(pieces: Iterable[TextPiece]) -> tuple[TextPiece, ...]:
    return tuple(replace(piece, text=mended(piece.text)) for piece in pieces)


def _text(item: Item, spool: SpoolWriter, codecs: Codecs) -> None:
    """A text file: each line of a .jsonl is a text of its own; subtitles lose their times."""
    pieces = _mended(read_text(item["path"]))
    timed = any(piece.start_s is not None for piece in pieces)
    groups = [(piece,) for piece in pieces]
    if timed:
        groups = [(TextPiece("\n".join(piece.text for piece in pieces)),)]
    elif not item["path"].lower().endswith(".jsonl"):
        groups = [pieces]
    parts = [part for group in groups for part in passages(group, PASSAGE_CHARACTERS)]
    for number, part in enumerate(parts):
        clip = Clip(texts=part)
        about = {"key": key_of(item["name"], number), "source": item["name"], "start_s": 0.0}
        about |= {"form": "raw", "texts": [piece_row(piece) for piece in part]}
        about["duration_s"] = length_s(clip)
        spool.add(about, [("json", as_json(about))], count_tokens(clip, codecs), item["weight"])


def _clips(item: Item, beat: Beat, spool: SpoolWriter, settings: Settings, codecs: Codecs) -> None:
    """Windows of a file, decoded and stored at the size and rates of the settings."""
    info = probe(item["path"], settings.limits)
    pieces = _texts_of(item)
    end_s = info.duration_s if item["end_s"] is None else min(item["end_s"], info.duration_s)
    if not info.still:
        # Text of a manifest's row belongs to its span, text of a file to the file.
        of_row = item["texts"] is not None
        span_s = (item["start_s"], end_s) if of_row else (0.0, info.duration_s)
        pieces = in_time(pieces, *span_s)
    said_until_s = math.inf if end_s >= info.duration_s else end_s
    number = 0
    for window in windows_of(item, info, settings):
        beat()
        if isinstance(window.clip, MediaError):
            check_memory(window.clip)
            spool.skip(window.clip.kind, f"{window.named}: {window.clip.reason}")
            continue
        texts = pieces
        if not info.still:
            until_s = said_until_s if window.is_last else window.end_s
            texts = said_between(pieces, window.start_s, until_s)
        clip = replace(window.clip, texts=texts)
        if clip.frames_TCHW is None and clip.waveform_CS is None and not clip.texts:
            continue
        origin = Origin(key_of(item["name"], number), item["name"], window.start_s)
        members, about = members_of_clip(clip, origin, settings.packing)
        spool.add(about, members, count_tokens(clip, codecs), item["weight"])
        number += 1


def _keep(item: Item, beat: Beat, spool: SpoolWriter, settings: Settings, codecs: Codecs) -> None:
    """The file as it is, decoded once (unless its header is trusted) to know that it can be."""
    if item["start_s"] or item["end_s"] is not None:
        raise MediaError(item["path"], "a span of a file cannot be kept as it is; encode it")
    info = probe(item["path"], settings.limits)
    pieces = _texts_of(item)
    if settings.trust:
        duration_s, counts = info.duration_s, _expected_tokens(info, codecs)
    else:
        duration_s, counts = _decoded(item, info, beat, settings, codecs)
    if pieces:
        counts |= count_tokens(Clip(texts=pieces), codecs)
    about: dict[str, Any] = {
        "key": key_of(item["name"], 0),
        "source": item["name"],
        "start_s": 0.0,
        "form": "keep",
        "duration_s": duration_s,
    }
    about |= _header_facts(info)
    if pieces:
        about["texts"] = [piece_row(piece) for piece in pieces]
    if info.notices:
        about["notices"] = list(info.notices)
    path = Path(item["path"])
    suffix = path.suffix.lower().lstrip(".")
    spool.add(about, [("json", as_json(about)), (suffix, path)], counts, item["weight"])


def _decoded(
    item: Item, info: MediaInfo, beat: Beat, settings: Settings, codecs: Codecs
) -> tuple[float, dict[str, int]]:
    """Length and tokens of a file, by decoding all of it; raises where it is damaged."""
    end_s, frames, samples = 0.0, 0, 0
    for window in windows_of(item, info, settings):
        beat()
        if isinstance(window.clip, MediaError):
            raise window.clip
        clip = window.clip
        end_s = window.start_s + length_s(clip)
        frames += 0 if clip.frames_TCHW is None else len(clip.frames_TCHW)
        samples += 0 if clip.waveform_CS is None else clip.waveform_CS.shape[1]
    counts = {}
    if info.has_audio:
        counts["audio"] = samples // codecs.audio.chunk_samples
    if info.has_video:
        counts["video"] = frames * codecs.video.spec.positions_per_block
    return end_s, counts


def _expected_tokens(info: MediaInfo, codecs: Codecs) -> dict[str, int]:
    counts = {}
    if info.has_audio:
        samples = int(info.duration_s * codecs.audio.sample_rate)
        counts["audio"] = samples // codecs.audio.chunk_samples
    if info.has_video:
        frames = 1 if info.still else math.ceil(info.duration_s * codecs.video.fps - 1e-6)
        counts["video"] = frames * codecs.video.spec.positions_per_block
    return counts


def _header_facts(info: MediaInfo) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if info.has_video:
        facts["video"] = {
            "frames": 1 if info.still else round(info.duration_s * info.fps),
            "channels": 3,
            "height": info.height,
            "width": info.width,
            "fps": info.fps,
        }
    if info.has_audio:
        facts["audio"] = {
            "sample_rate": info.sample_rate,
            "channels": info.channels,
            "samples": round(info.duration_s * info.sample_rate),
            "start_s": info.audio_start_s or 0.0,
        }
    return facts
