"""A clip to the members of a sample, and back. In: a Clip. Out: bytes by suffix, and their facts.

Every sample has the member "json"; for the other members see the table in index.py. It holds

    {"key", "source", "start_s", "duration_s", "form",
     "video": {"frames", "channels", "height", "width", "fps", "first"} or {..., "times_s": [...]},
     "audio": {"sample_rate", "channels", "samples", "start_s"},
     "texts": [{"text", "start", "end"}, ...],
     "series": {name: {"times_s": [...], "values": [[...], ...]}},
     "notices": [...], "split"}

A stream that is missing has no entry. Frame k is shown at (first + k) / fps, or at times_s[k]; all
times are seconds from the sample's start. Untimed text has neither start nor end. A null among the
values is no number. Of the form "keep", video and audio hold what the file's header says, and all
text of the file stands on the file's clock.

Shapes: T frames or steps, C channels, H W pixels, S samples, D values.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mmpredict.media import MediaBytes, MediaError, read_clip
from mmpredict.media.compact import S16, flac_bytes, h264_bytes, to_s16
from mmpredict.schema import Clip, Series, TextPiece

Made = list[tuple[str, bytes]]
SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


@dataclass(frozen=True)
class Packing:
    """How frames and sound are stored.

    Args:
        form: "encoded" or "raw".
        sound: of raw samples.
        crf: H.264 quality of encoded frames.
        gop: frames from one key frame to the next, at most.
    """

    form: Literal["encoded", "raw"] = "raw"
    sound: Literal["int16", "float32"] = "int16"
    crf: int = 10
    gop: int = 12


@dataclass(frozen=True)
class Origin:
    """Where a sample comes from: key, path of its source, seconds into it, split."""

    key: str
    source: str
    start_s: float = 0.0
    split: str | None = None


def members_of_clip(clip: Clip, origin: Origin, packing: Packing) -> tuple[Made, dict[str, Any]]:
    """Members of a clip, the json first, and the json as it was before it became text.

    Raises:
        MediaError: the clip holds something that cannot be stored.
    """
    made: Made = []
    about = _about(origin, packing.form, clip)
    try:
        if clip.frames_TCHW is not None and len(clip.frames_TCHW):
            about["video"] = _video_facts(clip)
            if packing.form == "raw":
                made.append(("video.npy", _npy(clip.frames_TCHW.numpy())))
            else:
                data = h264_bytes(clip.frames_TCHW, clip.times_s, crf=packing.crf, gop=packing.gop)
                made.append(("mp4", data))
        if clip.waveform_CS is not None and clip.waveform_CS.shape[1]:
            about["audio"] = _audio_facts(clip)
            made.append(_sound_member(clip, packing))
        about["duration_s"] = length_s(clip)
        made.insert(0, ("json", as_json(about)))
    except ValueError as error:
        raise MediaError(origin.source, f"cannot be stored: {error}") from error
    return made, about


def clip_of_members(members: Mapping[str, bytes], name: str) -> Clip:
    """Undo `members_of_clip`: raw samples exactly (sound to 16 bits), encoded ones as decoded.

    Args:
        members: content by suffix; only those of streams that are wanted and "json" need be there.
        name: of the sample, for the clip and for messages.

    Raises:
        MediaError: a member is not what it should be.
    """
    try:
        about = json.loads(members["json"])
        frames_TCHW = times_s = waveform_CS = None
        if "video" in about and members.keys() & {"video.npy", "mp4"}:
            frames_TCHW = _frames(members, name)
            times_s = frame_times(about["video"])
        if "audio" in about and members.keys() & {"audio.npy", "flac"}:
            waveform_CS = _waveform(members, name)
        audio = about.get("audio", {})
        return Clip(
            frames_TCHW,
            times_s,
            waveform_CS,
            audio["sample_rate"] if waveform_CS is not None else None,
            waveform_start_s=audio.get("start_s", 0.0),
            texts=pieces_of(about),
            series=_series(about),
            name=name,
            notices=tuple(about.get("notices", ())),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(name, f"not a sample of ours: {error!r}") from error


def _about(origin: Origin, form: str, clip: Clip) -> dict[str, Any]:
    about: dict[str, Any] = {
        "key": origin.key,
        "source": origin.source,
        "start_s": origin.start_s,
        "form": form,
    }
    if origin.split is not None:
        about["split"] = origin.split
    if clip.texts:
        about["texts"] = [piece_row(piece) for piece in clip.texts]
    if clip.series:
        about["series"] = {name: _series_row(name, s) for name, s in clip.series.items()}
    if clip.notices:
        about["notices"] = list(clip.notices)
    return about


def piece_row(piece: TextPiece) -> dict[str, Any]:
    """A piece of text as plain JSON."""
    if piece.start_s is None:
        return {"text": piece.text}
    return {"text": piece.text, "start": piece.start_s, "end": piece.end_s}


def pieces_of(about: Mapping[str, Any]) -> tuple[TextPiece, ...]:
    """The text of a sample's json."""
    rows = about.get("texts", ())
    return tuple(TextPiece(row["text"], row.get("start"), row.get("end")) for row in rows)


def _series_row(name: str, series: Series) -> dict[str, Any]:
    if not name or not SAFE.issuperset(name):
        raise MediaError(name, "a series needs a name of letters, digits, _ and -")
    values = series.values_TD.double().numpy()
    if np.isinf(values).any():
        raise MediaError(name, "a series holds an infinite value")
    rows = [[None if math.isnan(x) else x for x in row] for row in values.tolist()]
    return {"times_s": series.times_s.tolist(), "values": rows}


def _series(about: Mapping[str, Any]) -> dict[str, Series]:
    found = {}
    for name, row in about.get("series", {}).items():
        values = [[math.nan if x is None else x for x in vector] for vector in row["values"]]
        values_TD = torch.tensor(values, dtype=torch.float32).reshape(len(values), -1)
        found[name] = Series(values_TD, torch.tensor(row["times_s"], dtype=torch.float64))
    return found


def _video_facts(clip: Clip) -> dict[str, Any]:
    frames_TCHW, times_s = clip.frames_TCHW, clip.times_s.double()
    T, C, H, W = frames_TCHW.shape
    return {"frames": T, "channels": C, "height": H, "width": W, **_grid(times_s)}


def _grid(times_s: Tensor) -> dict[str, Any]:
    """Times as a rate and a first step where that gives them back to the last bit."""
    if len(times_s) > 1:
        fps = float((len(times_s) - 1) / (times_s[-1] - times_s[0]))
        for candidate in (float(round(fps)), round(fps, 3), fps):
            if not (candidate > 0 and math.isfinite(candidate)):
                continue
            first = round(float(times_s[0]) * candidate)
            facts = {"fps": candidate, "first": first, "frames": len(times_s)}
            if torch.equal(frame_times(facts), times_s):
                return {"fps": candidate, "first": first}
    return {"fps": 0.0, "times_s": times_s.tolist()}


def frame_times(video: Mapping[str, Any]) -> Tensor:
    """(T,) float64 times of the frames, from the "video" of a sample's json."""
    if "times_s" in video:
        return torch.tensor(video["times_s"], dtype=torch.float64)
    steps = torch.arange(video["first"], video["first"] + video["frames"], dtype=torch.float64)
    return steps / video["fps"]


def _audio_facts(clip: Clip) -> dict[str, Any]:
    return {
        "sample_rate": clip.sample_rate,
        "channels": clip.waveform_CS.shape[0],
        "samples": clip.waveform_CS.shape[1],
        "start_s": clip.waveform_start_s,
    }


def _sound_member(clip: Clip, packing: Packing) -> tuple[str, bytes]:
    waveform_CS = clip.waveform_CS.detach().cpu()
    if packing.form == "encoded":
        return "flac", flac_bytes(waveform_CS, clip.sample_rate)
    if packing.sound == "int16":
        return "audio.npy", _npy(to_s16(waveform_CS))
    return "audio.npy", _npy(waveform_CS.float().numpy())


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    contiguous = np.ascontiguousarray(array)
    np.lib.format.write_array(file, contiguous, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def _load(members: Mapping[str, bytes], suffix: str) -> np.ndarray:
    """An array of numbers from an .npy member; its header may not claim more than is there."""
    data = members[suffix]
    file = io.BytesIO(data)
    read_header = (
        np.lib.format.read_array_header_1_0
        if np.lib.format.read_magic(file) == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, in_columns, dtype = read_header(file)
    held = len(data) - file.tell()
    if dtype.hasobject or in_columns or math.prod(shape) * dtype.itemsize != held:
        raise ValueError(f"{suffix} claims {dtype} {shape}, it holds {held} bytes")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape).copy()


def _frames(members: Mapping[str, bytes], name: str) -> Tensor:
    if "video.npy" in members:
        return torch.from_numpy(_load(members, "video.npy"))
    clip = read_clip(MediaBytes(f"{name}.mp4", members["mp4"]), sound=False)
    assert clip.frames_TCHW is not None
    return clip.frames_TCHW


def _waveform(members: Mapping[str, bytes], name: str) -> Tensor:
    if "audio.npy" not in members:
        clip = read_clip(MediaBytes(f"{name}.flac", members["flac"]), frames=False)
        assert clip.waveform_CS is not None
        return clip.waveform_CS
    waveform_CS = torch.from_numpy(_load(members, "audio.npy"))
    return waveform_CS / S16 if waveform_CS.dtype == torch.int16 else waveform_CS


def length_s(clip: Clip) -> float:
    """Seconds from the clip's start to the end of its last stream; 0 for untimed text."""
    ends = [piece.end_s for piece in clip.texts if piece.end_s is not None]
    if clip.waveform_CS is not None and clip.sample_rate:
        ends.append(clip.waveform_start_s + clip.waveform_CS.shape[1] / clip.sample_rate)
    if clip.times_s is not None and len(clip.times_s) > 1:
        ends.append(float(clip.times_s[-1] + clip.times_s[-1] - clip.times_s[-2]))
    ends += [float(series.times_s[-1]) for series in clip.series.values() if len(series.times_s)]
    return max(ends, default=0.0)


def as_json(about: Mapping[str, Any]) -> bytes:
    """The member "json": one line of ASCII."""
    return json.dumps(about, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def facts_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """What of a sample's json stands in the index as `streams`."""
    facts: dict[str, Any] = {}
    if "video" in about:
        facts["video"] = {k: about["video"][k] for k in ("frames", "height", "width", "fps")}
    if "audio" in about:
        facts["audio"] = dict(about["audio"])
    if about.get("texts"):
        rows = about["texts"]
        characters = sum(len(row["text"]) for row in rows)
        timed = sum("start" in row for row in rows)
        facts["text"] = {"pieces": len(rows), "characters": characters, "timed": timed}
    if about.get("series"):
        facts["series"] = {
            name: {"steps": len(row["times_s"]), "width": len((row["values"] or [[]])[0])}
            for name, row in about["series"].items()
        }
    return facts
