"""Toy documents, small encoders, and folders of media that take milliseconds to write."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path

import av
import numpy as np
import torch

from datamodules import Documents, Loading, PackedLoader, Skipped
from datamodules.feed.plan import keys_of
from datamodules.feed.skips import SkipLog
from mmpredict.media import write_clip, write_wav
from mmpredict.schema import Batch, Clip, Layout, Modality, StreamSpec, Tokens
from mmpredict.sequence import interleave, unpack
from mmpredict.tokens import MelChunks, Patches, TextTokens

AUDIO, VIDEO, TEXT = (int(m) for m in Modality)
STREAMS = ("audio", "video", "text")
SUBSETS = [set(s) for n in (1, 2, 3) for s in combinations(STREAMS, n)]
SUBSET_IDS = ["+".join(sorted(s)) for s in SUBSETS]
RATE, FPS, SIZE = 8000, 8.0, 16
SOUND = MelChunks(sample_rate=RATE, channels=1, num_mels=8, hops=2)
FRAMES = Patches(size=SIZE, patch=8, fps=FPS)
WORDS = TextTokens()
CODECS = {"audio": SOUND, "video": FRAMES, "text": WORDS}


def codecs(*streams: str) -> dict[str, object]:
    """Encoders by keyword; those not named are None."""
    return {name: codec if name in streams else None for name, codec in CODECS.items()}


def loading(**changes: object) -> Loading:
    return Loading(**{"context_length": 256, "rows": 2, "workers": 0} | changes)


class Numbered(Documents):
    """Documents of unlike lengths; every token of document n says n, in epoch e as n + 1000 e.

    Args:
        size: how many.
        length: positions of document n.
        act: what else happens when document n is read.
        run: so many neighbours are read together; 0 for none.
        known: lengths are told without reading.
    """

    layout = Layout((StreamSpec(modality=TEXT, name="text", vocab_size=1_000_000),))

    def __init__(
        self,
        size: int = 23,
        length: Callable[[int], int] = lambda n: 3 + n % 7,
        act: Callable[[int], Skipped | None] = lambda n: None,
        *,
        run: int = 0,
        known: bool = False,
    ) -> None:
        self.size, self.positions, self.act, self.run, self.known = size, length, act, run, known
        self.read_numbers: list[int] = []

    def __len__(self) -> int:
        return self.size

    def name(self, index: int) -> str:
        return f"document {index}"

    def runs(self) -> list[range] | None:
        if not self.run:
            return None
        return [range(n, min(n + self.run, self.size)) for n in range(0, self.size, self.run)]

    def length(self, epoch: int, index: int) -> int | None:
        return self.positions(index) if self.known else None

    def document(self, epoch: int, index: int) -> Batch | Skipped:
        self.read_numbers.append(index)
        skipped = self.act(index)
        if skipped is not None:
            return skipped
        ids = torch.full((self.positions(index),), index + 1000 * epoch)
        return interleave(
            [Tokens(TEXT, ids, torch.full(ids.shape, math.nan).double())], self.layout
        )


def loader(documents: Documents, **options: object) -> PackedLoader:
    """A PackedLoader over 16-position rows; `options` of it and of Loading."""
    keywords = ("seed", "rank", "world_size", "layout", "consumed")
    own = {name: options.pop(name) for name in keywords if name in options}
    how = loading(**{"context_length": 16, "open_rows": 3} | options)
    log = SkipLog(how)
    log.num_sources = len(documents)
    return PackedLoader(documents, how, log, **own)


def numbers(batches: Iterable[Batch]) -> list[int]:
    """Which `Numbered` documents the batches hold, in the order of the rows."""
    rows = [row for batch in batches for row in unpack(batch)]
    return [int(document.contents[TEXT][0]) for row in rows for document in row]


def waiting(batches: PackedLoader) -> list[int]:
    """Which `Numbered` documents stand in rows that are not given out yet."""
    keys = sorted(keys_of(batches.position()))
    return [batches.plan(epoch).number(place) + 1000 * epoch for epoch, place, _ in keys]


def same(a: Batch | Skipped, b: Batch | Skipped) -> bool:
    """Equal bit by bit, NaN included."""
    if isinstance(a, Skipped) or isinstance(b, Skipped):
        return a == b
    left, right = ({**vars(x), **x.contents} for x in (a, b))
    tensors = [key for key in left if key not in ("contents", "places")]
    return left.keys() == right.keys() and all(
        left[k].dtype == right[k].dtype and left[k].numpy().tobytes() == right[k].numpy().tobytes()
        for k in tensors
    )


def all_documents(documents: Documents, epoch: int = 0) -> list[Batch | Skipped]:
    return [documents.document(epoch, index) for index in range(len(documents))]


def text_of(documents: Iterable[Batch | Skipped], codec: TextTokens = WORDS) -> list[str]:
    """The pieces of text in the documents."""
    said = []
    for row in documents:
        if isinstance(row, Batch) and TEXT in row.contents:
            ids = row.contents[TEXT]
            decoded = codec.decode(Tokens(TEXT, ids, torch.full(ids.shape, math.nan).double()))
            said += [piece.text for piece in decoded.texts]
    return said


def recording(seconds: float, seed: int = 0, *, video: bool = True, sound: bool = True) -> Clip:
    """Grey frames whose level tells time and seed, and noise."""
    g = torch.Generator().manual_seed(seed)
    times_s = torch.arange(round(seconds * FPS)) / FPS
    levels = (40 + 17 * seed + 20 * times_s) % 200
    frames = levels[:, None, None, None].expand(-1, 3, SIZE, SIZE).to(torch.uint8)
    waveform = 0.1 * torch.randn(1, round(seconds * RATE), generator=g)
    return Clip(
        frames_TCHW=frames if video else None,
        times_s=times_s.double() if video else None,
        waveform_CS=waveform if sound else None,
        sample_rate=RATE if sound else None,
    )


def write_video(path: Path, seconds: float = 1.0, seed: int = 0, *, sound: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(path, recording(seconds, seed, sound=sound))
    return path


def write_sound(path: Path, seconds: float = 1.0, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_wav(path, recording(seconds, seed, video=False).waveform_CS, RATE)
    return path


def write_sounds(folder: Path, count: int, seconds: float = 1.0) -> list[Path]:
    return [write_sound(folder / f"s{n:02d}.wav", seconds, seed=n) for n in range(count)]


def prose(characters: int, seed: int = 0) -> str:
    """Lines of made-up words, different for every seed."""
    draw = random.Random(seed)
    text = ""
    while len(text) < characters:
        words = ["".join(draw.choices("abcdefgh", k=draw.randint(1, 8))) for _ in range(9)]
        text += " ".join(words) + "\n"
    return text[: characters - 1] + "."


def write_image(path: Path, level: int) -> Path:
    """A png of one level of grey."""
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.width = stream.height = 16
        stream.pix_fmt = "rgb24"
        frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), level, np.uint8), format="rgb24")
        container.mux(stream.encode(frame) + stream.encode(None))
    return path
