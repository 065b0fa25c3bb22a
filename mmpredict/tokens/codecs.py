"""The encoders of a run, together: Clip to Tokens and back, and what a checkpoint keeps of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mmpredict.schema import Clip, Layout, Modality, Tokens
from mmpredict.tokens.audio import MelChunks
from mmpredict.tokens.series import Vectors
from mmpredict.tokens.text import TextTokens
from mmpredict.tokens.video import Patches

Codec = MelChunks | Patches | TextTokens | Vectors


@dataclass(frozen=True)
class Codecs:
    """One encoder per stream; None leaves the stream out.

    Args:
        audio, video, text: of the three built-in streams.
        series: of further continuous streams, by name; each with a `modality` of its own.
    """

    audio: MelChunks | None = None
    video: Patches | None = None
    text: TextTokens | None = None
    series: Mapping[str, Vectors] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "series", _named(self.series))
        if not self.by_modality:
            raise ValueError("all streams are null; keep at least one of text, video and audio")

    @property
    def by_modality(self) -> dict[int, Codec]:
        built_in = {
            Modality.AUDIO: self.audio,
            Modality.VIDEO: self.video,
            Modality.TEXT: self.text,
        }
        found: dict[int, Codec] = {int(m): c for m, c in built_in.items() if c is not None}
        return found | {codec.modality: codec for codec in self.series.values()}

    @property
    def layout(self) -> Layout:
        return Layout(tuple(codec.spec for _, codec in sorted(self.by_modality.items())))

    def encode(self, clip: Clip) -> list[Tokens]:
        """Every stream that both the clip and the run have."""
        encoded = [codec.encode(clip) for codec in self.by_modality.values()]
        return [tokens for tokens in encoded if tokens is not None]

    def decode(self, streams: list[Tokens]) -> Clip:
        """One clip from the streams' tokens."""
        clip = Clip()
        for tokens in streams:
            part = self.by_modality[tokens.modality].decode(tokens)
            if tokens.modality == Modality.AUDIO:
                clip = replace(
                    clip,
                    waveform_CS=part.waveform_CS,
                    sample_rate=part.sample_rate,
                    waveform_start_s=part.waveform_start_s,
                )
            elif tokens.modality == Modality.VIDEO:
                clip = replace(clip, frames_TCHW=part.frames_TCHW, times_s=part.times_s)
            elif tokens.modality == Modality.TEXT:
                clip = replace(clip, texts=part.texts)
            else:
                clip = replace(clip, series={**clip.series, **part.series})
        return clip

    def to_plain(self) -> dict[str, Any]:
        """Plain types only, for the checkpoint."""
        plain: dict[str, Any] = {
            name: None if codec is None else asdict(codec)
            for name, codec in (("audio", self.audio), ("video", self.video), ("text", self.text))
        }
        return plain | {"series": {name: asdict(codec) for name, codec in self.series.items()}}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Codecs:
        """Undo `to_plain`; works on a machine where `text.path` does not exist."""
        kinds = {"audio": MelChunks, "video": Patches, "text": TextTokens}
        known = {name: plain.get(name) for name in kinds}
        built_in = {k: None if v is None else kinds[k](**v) for k, v in known.items()}
        series = plain.get("series", {})  # older checkpoints have none
        return cls(**built_in, series={name: Vectors(**v) for name, v in series.items()})


def _named(series: Mapping[str, Vectors]) -> dict[str, Vectors]:
    """Each under its own name, with numbers that no other has."""
    named: dict[str, Vectors] = {}
    numbers: dict[int, str] = {}
    for name, codec in series.items():
        if codec.name not in ("", name):
            raise ValueError(f"series.{name} calls itself {codec.name!r}; leave its name out")
        if codec.modality in numbers:
            raise ValueError(
                f"series.{name} and series.{numbers[codec.modality]} both have modality "
                f"{codec.modality}; give one of them another, {max(numbers) + 1} or more"
            )
        named[name] = replace(codec, name=name)
        numbers[codec.modality] = name
    return named
