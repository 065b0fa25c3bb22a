"""What benchmarks/h200.py trains on. Out: packed batches of frames, sound and words.

With pymunk and pytorch-lightning: scenes of the embedded world through the recipes' own loader and
its workers. Without (a bare machine): synthetic documents of unlike lengths through the real
interleaving and packing. Frames have 64 positions of 768 values on a GPU, 16 of 192 on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from mmpredict.schema import Batch, Layout, Statistics, StreamSpec, Tokens
from mmpredict.sequence import interleave, pack

CUDA = torch.cuda.is_available()
LENGTH = 2304 if CUDA else 416  # a little over two scenes, or one
SIZE, PATCH = (128, 16) if CUDA else (32, 8)
PATCHES, WIDTH = (SIZE // PATCH) ** 2, 3 * PATCH * PATCH
WORKERS = 14 if CUDA else 0
LAYOUT = Layout(
    (
        StreamSpec(0, "audio", width=512, period_s=0.04, fills_period=True),
        StreamSpec(1, "video", width=WIDTH, rows=PATCHES, cols=1, period_s=0.125),
        StreamSpec(2, "text", vocab_size=32768 if CUDA else 256),
    )
)


Source = tuple[Layout, Iterable[Batch], Statistics | None, str]


def loader_of(rows: int) -> Source:
    """The streams, batches without end, their statistics, and where they come from."""
    try:
        return _world(rows)
    except ImportError as error:
        loader = torch.utils.data.DataLoader(
            Stream(rows),
            batch_size=None,
            num_workers=WORKERS,
            prefetch_factor=4 if CUDA else None,
        )
        return LAYOUT, loader, None, f"synthetic documents ({error})"


def _world(rows: int) -> Source:
    from datamodules import Loading, World
    from mmpredict.tokens import MelChunks, Patches, TextTokens

    loading = Loading(context_length=LENGTH, rows=rows, workers=WORKERS)
    data = World(
        audio=MelChunks(sample_rate=16000, channels=2),
        video=Patches(size=SIZE, patch=PATCH, fps=8),
        text=TextTokens(kind="bpe", vocab_size=512),
        train_scenes=100_000,
        loading=loading,
    )
    data.setup()
    name = "the embedded world through PackedLoader"
    return data.layout, data.train_dataloader(), data.statistics(), name


def document(seed: int, seconds: float | None = None) -> Batch:
    """A clip of unlike length: frames at 8/s, sound at 25/s, two words a second."""
    g = torch.Generator().manual_seed(seed)
    longest = 0.8 * LENGTH / (8 * PATCHES + 27)
    if seconds is None:
        seconds = float(longest * (0.15 + 0.85 * torch.rand((), generator=g)))
    frames, sounds, words = (max(1, int(seconds * rate)) for rate in (8, 25, 2))
    streams = [
        Tokens(0, torch.randn(sounds, 1, 512, generator=g).half(), 0.04 * _count(sounds, 1)),
        Tokens(
            1,
            torch.randint(256, (frames, PATCHES, WIDTH), generator=g).to(torch.uint8),
            0.125 * _count(frames),
        ),
        Tokens(2, torch.randint(256, (words,), generator=g), 0.5 * _count(words, 1)),
    ]
    return interleave(streams, LAYOUT)


def _count(number: int, first: int = 0) -> torch.Tensor:
    return torch.arange(first, first + number).double()


def batch_of(rows: int, seed: int, *, packed: bool = True) -> Batch:
    """Rows filled one document after the other, or with one document each."""
    filled: list[list[Batch]] = []
    for row in range(rows):
        documents, used, number = [], 0, 0
        while number < (64 if packed else 1):
            made = document(1000 * seed + 64 * row + number)
            if used + made.doc_id.shape[1] > LENGTH:
                break
            documents.append(made)
            used, number = used + made.doc_id.shape[1], number + 1
        filled.append(documents)
    return pack(filled, context_length=LENGTH)


class Stream(torch.utils.data.IterableDataset):
    """New batches for ever, each worker its own."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Batch]:
        info = torch.utils.data.get_worker_info()
        seed, stride = (info.id, info.num_workers) if info else (0, 1)
        while True:
            yield batch_of(self.rows, 100 + seed)
            seed += stride
