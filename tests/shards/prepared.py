"""A small folder of every kind of source, and ways to prepare it quickly. For the prepare tests."""

from __future__ import annotations

import hashlib
import importlib
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmpredict.media import write_clip, write_wav
from mmpredict.schema import Clip
from mmpredict.shards.prepare import Summary, Work, prepare
from mmpredict.shards.sandbox import Verdict
from mmpredict.shards.settings import Settings
from mmpredict.shards.sources import find_sources

RAW = Settings(
    form="raw",
    size=(16, 16),
    patch=8,
    fps=4.0,
    sample_rate=8000,
    channels=1,
    clip_seconds=0.5,
    shard_bytes=24_000,
)
KEEP = replace(RAW, form="keep")
ENCODED = replace(RAW, form="encoded")


class InHouse:
    """Stands in for the Sandbox: does the jobs in this process, the latest first, so that results
    never come in order."""

    def __init__(self, target: str, context: Any, *, workers: int, limits: Any) -> None:
        module, _, function = target.partition(":")
        self.open = getattr(importlib.import_module(module), function)
        self.context, self.workers = context, workers
        self.waiting: deque[tuple[int, Any]] = deque()

    def __enter__(self) -> InHouse:
        return self

    def __exit__(self, *_: object) -> None: ...

    @property
    def free(self) -> int:
        return self.workers - len(self.waiting)

    @property
    def busy(self) -> bool:
        return bool(self.waiting)

    def submit(self, number: int, items: list[Any]) -> None:
        self.waiting.append((number, items))

    def next_done(self) -> tuple[int, Verdict]:
        number, items = self.waiting.pop()
        worker = self.open(self.context)
        for item in items:
            worker(item, lambda: None)
        return number, Verdict()


def video(path: Path, seconds: float, seed: int, sound: bool = True) -> None:
    """A film of noise that differs by seed."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(256, (round(seconds * 8), 3, 24, 32), generator=generator)
    times = torch.arange(len(frames)).double() / 8
    waveform = torch.rand(1, round(seconds * 8000), generator=generator) - 0.5 if sound else None
    write_clip(path, Clip(frames.to(torch.uint8), times, waveform, 8000 if sound else None))


def wav(path: Path, seconds: float, seed: int) -> None:
    """A wav of noise that differs by seed."""
    generator = torch.Generator().manual_seed(seed)
    write_wav(path, torch.rand(1, round(seconds * 8000), generator=generator) - 0.5, 8000)


def make_folder(root: Path) -> Path:
    """Films with and without sound and text, a sound, texts, a broken film, an unknown file."""
    (root / "sub").mkdir(parents=True)
    video(root / "b.mp4", 1.5, 1)
    (root / "b.srt").write_text("1\n00:00:00,000 --> 00:00:01,200\none two three four\n")
    video(root / "sub" / "a.mp4", 1.0, 2, sound=False)
    wav(root / "sub" / "tone.wav", 0.75, 3)
    (root / "notes.txt").write_text("First words.\n\nSecond words.\n")
    (root / "rows.jsonl").write_text('{"text": "row one"}\n{"text": "row two"}\n')
    (root / "broken.mp4").write_bytes(b"no film at all" * 100)
    (root / "table.xlsx").write_bytes(b"?")
    return root


def prepared(source: Path, out: Path, settings: Settings = RAW, **work: Any) -> Summary:
    """Prepare in this process."""
    asked = {"workers": 2, "items_per_job": 1, "sandbox": InHouse} | work
    asked["context"] = {"settings": settings.__dict__}
    tasks = find_sources(source, out).sources
    return prepare(tasks, out, settings, settings.codecs(), Work(**asked))


def files_of(out: Path) -> dict[str, str]:
    """sha256 of every file that a preparation has made, by name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.iterdir())
        if path.is_file()
    }
