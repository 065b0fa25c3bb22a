"""What a preparation was asked to make. In: the user's options. Out: codecs, limits, plain JSON.

Everything here decides the bytes of the shards, and nothing else does: two preparations with equal
settings and sources are equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mmpredict.media import Limits
from mmpredict.schema import UserError
from mmpredict.shards.members import Packing
from mmpredict.tokens import Codecs, MelChunks, Patches, TextTokens


@dataclass(frozen=True)
class Settings:
    """The settings of a preparation.

    Args:
        form: "keep", "encoded" or "raw"; see index.py.
        size: height and width of frames in pixels.
        patch: side of a patch, for counting tokens.
        fps: frames a second.
        sample_rate, channels: of the sound.
        clip_seconds: length of a sample.
        text: "bytes", or the path of a tokenizer.json, for counting tokens.
        sound: of raw samples: "int16" or "float32".
        crf: H.264 quality of encoded frames.
        gop: frames from one key frame to the next, at most.
        shard_bytes: a shard is closed before it would grow larger.
        max_bytes, max_pixels, max_frames, max_duration_s: what a file may cost (see Limits).
        trust: with "keep", believe the headers instead of decoding every file once.
        recipe: what a recipe's documents are made by; empty for files.
    """

    form: str = "keep"
    size: tuple[int, int] = (64, 64)
    patch: int = 8
    fps: float = 8.0
    sample_rate: int = 16000
    channels: int = 2
    clip_seconds: float = 2.0
    text: str = "bytes"
    sound: str = "int16"
    crf: int = 10
    gop: int = 12
    shard_bytes: int = 256 * 1024**2
    max_bytes: int = Limits.max_bytes
    max_pixels: int = Limits.max_pixels
    max_frames: int = Limits.max_frames
    max_duration_s: float = Limits.max_duration_s
    trust: bool = False
    recipe: str = ""

    @property
    def limits(self) -> Limits:
        return Limits(
            max_pixels=self.max_pixels,
            max_duration_s=self.max_duration_s,
            max_frames=self.max_frames,
            max_bytes=self.max_bytes,
        )

    @property
    def packing(self) -> Packing:
        return Packing(self.form, self.sound, self.crf, self.gop)  # type: ignore[arg-type]

    def codecs(self) -> Codecs:
        """The codecs that count tokens."""
        text = TextTokens()
        if self.text != "bytes":
            text = TextTokens(kind="bpe", path=self.text)
        return Codecs(
            audio=MelChunks(sample_rate=self.sample_rate, channels=self.channels),
            video=Patches(size=tuple(self.size), patch=self.patch, fps=self.fps),
            text=text,
        )

    def plain(self) -> dict[str, Any]:
        """As the header of the index has it: a vocabulary by its content, not by its path."""
        plain = asdict(self) | {"size": list(self.size)}
        if self.text != "bytes":
            plain["text"] = hashlib.sha256(Path(self.text).read_bytes()).hexdigest()
        return plain


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse to mix samples of different settings in one folder.

    Raises:
        UserError: names the first setting that differs, both values and the remedy.
    """
    names = [field.name for field in fields(Settings)]
    for name in names + sorted(before.keys() - set(names)):
        if before.get(name) != now.get(name):
            raise UserError(
                f"{folder} was prepared with {name}={before.get(name)!r}, and is now to be "
                f"prepared with {now.get(name)!r}; give another --out, or delete {folder} first"
            )
