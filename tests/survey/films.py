"""Small films and sounds with known content for the tests of surveys."""

from __future__ import annotations

from pathlib import Path

import torch

from mmpredict.media import write_clip, write_wav
from mmpredict.schema import Clip, TextPiece
from mmpredict.survey.expected import Plan
from mmpredict.tokens import Codecs, MelChunks, Patches, TextTokens

RATE = 8000
PLAN = Plan(
    Codecs(
        MelChunks(sample_rate=RATE, channels=1, hops=2, num_mels=8),
        Patches(size=16, patch=8, fps=5.0),
        TextTokens(),
    ),
    clip_seconds=1.0,
    context_length=64,
    rows=2,
    name="a test",
)


def tone(seconds: float, start_s: float = 0.0) -> torch.Tensor:
    """(1, S) of 440 Hz; the first `start_s` are silent."""
    time_S = torch.arange(round(seconds * RATE)) / RATE
    return (0.5 * torch.sin(2 * torch.pi * 440 * time_S) * (time_S >= start_s))[None]


def film(
    path: Path,
    seconds: float = 2.0,
    *,
    fps: float = 10.0,
    sound_s: float | None = None,
    late_s: float = 0.0,
    texts: tuple[TextPiece, ...] = (),
) -> Path:
    """An mp4 of 32 x 32: grey frames that become brighter, and a tone of `sound_s` (as long as the
    picture by default, none for 0) that starts `late_s` late."""
    count = round(seconds * fps)
    frames = torch.linspace(0, 255, count).to(torch.uint8)[:, None, None, None]
    sound_s = seconds - late_s if sound_s is None else sound_s
    clip = Clip(
        frames_TCHW=frames.expand(count, 3, 32, 32).contiguous(),
        times_s=torch.arange(count).double() / fps,
        waveform_CS=tone(sound_s) if sound_s else None,
        sample_rate=RATE if sound_s else None,
        waveform_start_s=late_s,
        texts=texts,
    )
    write_clip(path, clip)
    return path


def sound(path: Path, seconds: float = 2.0, *, silent: bool = False) -> Path:
    """A wav of a tone or of nothing."""
    write_wav(path, tone(seconds) * (not silent), RATE)
    return path
