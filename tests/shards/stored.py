"""Small shards, written member by member. In: clips. Out: a folder that `Store` reads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmpredict.media import MediaInfo, probe
from mmpredict.schema import Clip
from mmpredict.shards.index import (
    Header,
    Index,
    Sample,
    Shard,
    Source,
    codec_signatures,
    write_index,
)
from mmpredict.shards.members import (
    Origin,
    Packing,
    as_json,
    facts_of,
    members_of_clip,
    piece_row,
)
from mmpredict.shards.tar_write import END, write_sample
from mmpredict.tokens import Codecs

Item = tuple[list[tuple[str, bytes]], dict[str, Any], str]  # members, json, form


def of_clip(clip: Clip, form: str, name: str = "a") -> Item:
    made, about = members_of_clip(clip, Origin(name, name), Packing(form=form))
    return made, about, form


def of_file(path: Path, clip: Clip = Clip()) -> Item:
    """A file as it is, with the text of `clip`."""
    info = probe(path)
    about: dict[str, Any] = {"key": path.stem, "source": path.name, "form": "keep"}
    about |= facts_of_info(info) | {"duration_s": info.duration_s}
    if clip.texts:
        about["texts"] = [piece_row(piece) for piece in clip.texts]
    made = [("json", as_json(about)), (path.suffix[1:], path.read_bytes())]
    return made, about, "keep"


def facts_of_info(info: MediaInfo) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if info.has_video:
        facts["video"] = {
            "frames": round(info.duration_s * info.fps),
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


def write_store(
    folder: Path,
    items: Sequence[Item],
    *,
    per_shard: int = 4,
    splits: Sequence[str | None] = (),
    codecs: Codecs | None = None,
    sources: Sequence[int] = (),
) -> Path:
    """Write items as shards; `sources` says which samples share a source."""
    folder.mkdir(parents=True, exist_ok=True)
    origin = list(sources) or list(range(len(items)))
    samples, shards = [], []
    for first in range(0, len(items), per_shard):
        name = f"{first // per_shard:06d}.tar"
        some = items[first : first + per_shard]
        with (folder / name).open("wb") as file:
            for number, (made, about, form) in enumerate(some, start=first):
                key = f"k{number:04d}"
                members = write_sample(file, key, made)
                samples.append(
                    Sample(
                        key=key,
                        shard=len(shards),
                        members=tuple(members),
                        form=form,
                        duration_s=about["duration_s"],
                        streams=facts_of(about),
                        source=origin[number],
                        split=splits[number] if splits else None,
                        tokens=_tokens(about, codecs),
                    )
                )
            file.write(END)
        data = (folder / name).read_bytes()
        shards.append(Shard(name, len(data), hashlib.sha256(data).hexdigest(), len(some)))
    names = [f"source{n}" for n in range(max(origin, default=0) + 1)]
    made_from = tuple(Source(n, 1, hashlib.sha256(n.encode()).hexdigest()) for n in names)
    header = Header({"made": "for a test"}, codec_signatures(codecs))
    write_index(folder, Index(header, tuple(shards), made_from, (), samples))
    return folder


def _tokens(about: Mapping[str, Any], codecs: Codecs | None) -> dict[str, int]:
    if codecs is None or about["form"] == "keep":
        return {}
    counts = {}
    if codecs.video and "video" in about:
        counts["video"] = about["video"]["frames"] * codecs.video.spec.positions_per_block
    if codecs.audio and "audio" in about:
        counts["audio"] = about["audio"]["samples"] // codecs.audio.chunk_samples
    if codecs.text and about.get("texts"):
        pieces = [row["text"] for row in about["texts"]]
        counts["text"] = sum(len(codecs.text.encode(_said(text)).contents) for text in pieces)
    return counts


def _said(text: str) -> Clip:
    from mmpredict.schema import TextPiece

    return Clip(texts=(TextPiece(text),))
