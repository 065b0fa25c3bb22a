"""The encoders of a run, together: Clip to Tokens and back, and what a checkpoint keeps of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from mmpredict.schema import Clip, Layout, Modality, Tokens
from mmpredict.tokens.audio import MelChunks
from mmpredict.tokens.text import TextTokens
from mmpredict.tokens.video import Patches


@dataclass(frozen=True)
class Codecs:
    """One encoder per stream; None leaves the stream out."""

    audio: MelChunks | None = None
    video: Patches | None = None
    text: TextTokens | None = None

    def __post_init__(self) -> None:
        if not self.by_modality:
            raise ValueError("all streams are null; keep at least one of text, video and audio")

    @property
    def by_modality(self) -> dict[int, MelChunks | Patches | TextTokens]:
        all_three = {
            Modality.AUDIO: self.audio,
            Modality.VIDEO: self.video,
            Modality.TEXT: self.text,
        }
        return {int(m): codec for m, codec in all_three.items() if codec is not None}

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
            else:
                clip = replace(clip, texts=part.texts)
        return clip

    def to_plain(self) -> dict[str, Any]:
        """Plain types only, for the checkpoint."""
        return {
            name: None if codec is None else asdict(codec)
            for name, codec in (("audio", self.audio), ("video", self.video), ("text", self.text))
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Codecs:
        """Undo `to_plain`; works on a machine where `text.path` does not exist."""
        kinds = {"audio": MelChunks, "video": Patches, "text": TextTokens}
        return cls(**{k: None if v is None else kinds[k](**v) for k, v in plain.items()})
