"""What a frozen model holds at a moment. In: scenes. Out: vectors per layer and moment.

Scenes are filmed with the model's own codecs and read once, left to right; what is taken at a
moment depends on nothing after it. Of the frame at the moment stay at most 4 x 4 cells (neighbours
are averaged), of the sound the chunks of the last quarter second, and the very last position.

Shapes: N scenes, T frames, B rows of a batch, L positions, D width, M moments (all scenes), S
places that are taken at a moment, K names.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpredict.model import Predictor
from mmpredict.probes.targets import NAMES
from mmpredict.schema import Batch, Clip, Modality, Tokens
from mmpredict.sequence import interleave, pack
from mmpredict.tokens import Codecs
from mmpredict.world import COLOURS, FAMILIES, SHAPES, Condition, Recording, draw_scene

AnyRow = TypeVar("AnyRow")
Given = Literal["clip", "captions", "shuffled", "last_frame"]
CELLS_A_SIDE = 4
CHUNKS = 6  # of 40 ms: a quarter second
_FPS = 8.0  # of the moments, where the model sees no frames
_ROW_POSITIONS = 4096  # read at once
_IN_MEMORY = 1 << 30  # bytes; more lies in a file


@dataclass(frozen=True)
class Scenes:
    """Which scenes, and which moments of each.

    Args:
        split: of the world.
        count: how many.
        seed: of the scenes. Training draws from small seeds: see frozen.py.
        moments: numbers of frames.
        seconds: length of each.
    """

    split: str
    count: int
    seed: int
    moments: tuple[int, ...]
    seconds: float = 2.0

    def record(self, index: int, codecs: Codecs) -> Recording:
        """Film one as the model sees and hears; captions are in it, questions are not."""
        condition = Condition(seconds=self.seconds, speech="captions")
        scene = draw_scene(
            index, split=self.split, seed=self.seed, families=FAMILIES, condition=condition
        )
        video, audio = codecs.video, codecs.audio
        return scene.record(
            size=video.height_width if video else (32, 32),
            fps=frame_rate(codecs),
            sample_rate=audio.sample_rate if audio else 16000,
            channels=audio.channels if audio else 2,
            frames=video is not None,
            sound=audio is not None,
        )


def frame_rate(codecs: Codecs) -> float:
    """Of the moments: that of the model's frames, if it sees any."""
    return codecs.video.fps if codecs.video else _FPS


def moments_of(fps: float, count: int, seconds: float) -> tuple[int, ...]:
    """Frames at which the model is probed: spread over the later two thirds, the end left out, so
    that something has come before and something may still come."""
    frames = round(seconds * fps)
    first, last = frames // 3, frames - 3
    if count < 1 or last - first + 1 < count:
        raise ValueError(f"{count} moments do not fit into a clip of {frames} frames")
    return tuple(round(m) for m in torch.linspace(first, last, count).tolist())


@dataclass(frozen=True)
class Features:
    """Vectors at moments.

    Args:
        layers: their names.
        values_MSD: per layer, float16.
        slots: which of the S places belong to "video", "audio", "text" and "last".
        places_S3: row and column of each place in the picture, -1 to 1, and 1 where it has any.
    """

    layers: tuple[str, ...]
    values_MSD: Sequence[Tensor]
    slots: Mapping[str, slice]
    places_S3: Tensor
    kept: Any = field(default=None, repr=False, compare=False)  # the folder of the file, if any

    @property
    def poolings(self) -> tuple[str, ...]:
        """Ways in which a layer's places become one vector."""
        streams = [places for name, places in self.slots.items() if name != "last"]
        many = any(places.stop - places.start > 1 for places in streams)
        return ("mean", *["last"] * ("last" in self.slots), *["grid"] * many)

    def pooled(self, layer: int, pooling: str, reads: str) -> Tensor:
        """(M, F) float32: the places of a stream in the mean or side by side ("grid"), or the last
        position that was read."""
        if pooling == "last":
            return self.values_MSD[layer][:, self.slots["last"]][:, 0].float()
        stream = next(s for s in (reads, "video", "audio", "text") if s in self.slots)
        found_MSD = self.values_MSD[layer][:, self.slots[stream]].float()
        return found_MSD.mean(1) if pooling == "mean" else found_MSD.flatten(1)


def name_vectors(predictor: Predictor, codecs: Codecs) -> Tensor:
    """(K, D) for every name in NAMES: the mean of its tokens in the model's own text table, or of a
    model without text one number per colour and per shape."""
    if codecs.text is None:
        colour = torch.eye(len(COLOURS)).repeat_interleave(len(SHAPES), 0)
        return torch.cat([colour, torch.eye(len(SHAPES)).repeat(len(COLOURS), 1)], 1)
    table = predictor.embed.tables["text"].weight.detach().cpu().float()
    ids = [codecs.text.ids_of(f" {name}")[0] for name in NAMES]  # as within a sentence
    return torch.stack([table[torch.tensor(row)].mean(0) for row in ids])


def layer_outputs(predictor: Predictor, batch: Batch) -> Iterator[Tensor]:
    """(B, L, D) after the embedding, after each layer, and after the last norm."""
    x_BLD = predictor.embed(batch)
    yield x_BLD
    rows = predictor.trunk.rows(batch)
    for layer in predictor.trunk.layers:
        x_BLD = layer.forward(x_BLD, rows)
        yield x_BLD
    yield predictor.trunk.norm(x_BLD)


def layer_names(predictor: Predictor) -> tuple[str, ...]:
    depth = len(predictor.trunk.layers)
    return ("embedding", *(f"layer {n}" for n in range(1, depth + 1)), "norm")


@dataclass(frozen=True)
class _Document:
    """A row to read, and which positions are averaged for what is taken at its moments."""

    row: Batch | None  # None: nothing was said, the vectors are 0
    average_SL: Tensor

    @property
    def length(self) -> int:
        return 0 if self.row is None else self.row.modality.shape[1]


@torch.no_grad()
def read_features(
    predictor: Predictor, codecs: Codecs, scenes: Scenes, *, given: Given = "clip"
) -> Features:
    """Read every scene.

    Args:
        given: "clip": pictures and sound; "captions": only what is said in them; "shuffled":
            pictures in another order and sound; "last_frame": the frame of the moment alone.
    """
    device = next(predictor.parameters()).device
    slots, places_S3 = _slots(codecs, given)
    layers, dim = layer_names(predictor), predictor.config.dim
    per_scene = len(scenes.moments) * len(places_S3)
    values, kept = _room(len(layers), scenes.count * per_scene, dim)
    start = 0
    for documents in read_together(_documents(codecs, scenes, given), lambda d: d.length):
        rows = [d for d in documents if d.row is not None]
        takes = [len(d.average_SL) for d in documents]
        here = slice(start, start + sum(takes))
        start = here.stop
        if not rows:
            continue
        length = max(d.length for d in rows)
        batch = pack([[d.row] for d in rows], length).to(device)
        for layer, x_BLD in enumerate(layer_outputs(predictor, batch)):
            x_BLD, b, found = x_BLD.float(), 0, []
            for document in documents:
                if document.row is None:
                    found.append(torch.zeros(len(document.average_SL), dim))
                    continue
                average_SL = document.average_SL.to(device)
                found.append((average_SL @ x_BLD[b, : average_SL.shape[1]]).cpu())
                b += 1
            values[layer][here] = torch.cat(found).half()
    if not all(bool(x.isfinite().all()) for x in values):
        raise ValueError("the model's activations are not finite in half precision; is it trained?")
    shape = (scenes.count * len(scenes.moments), len(places_S3), dim)
    return Features(layers, [x.view(shape) for x in values], slots, places_S3, kept)


def _room(layers: int, vectors: int, dim: int) -> tuple[list[Tensor], Any]:
    """Half-precision tensors (vectors, dim), one per layer; in a file where they are large."""
    if layers * vectors * dim * 2 <= _IN_MEMORY:
        return [torch.zeros(vectors, dim, dtype=torch.float16) for _ in range(layers)], None
    folder = tempfile.TemporaryDirectory(prefix="mmpredict_features_")
    size = vectors * dim
    return [
        torch.from_file(f"{folder.name}/{n}", shared=True, size=size, dtype=torch.float16).view(
            vectors, dim
        )
        for n in range(layers)
    ], folder


def _slots(codecs: Codecs, given: Given) -> tuple[dict[str, slice], Tensor]:
    """Where in the S places each stream lies, and where each place lies in the picture."""
    slots, places, start = {}, [], 0
    if given == "captions":
        slots["text"], places, start = slice(0, 1), [(0.0, 0.0, 0.0)], 1
    elif codecs.video is not None:
        rows, cols = _cells(codecs)
        places = [
            (2 * (r + 0.5) / rows - 1, 2 * (c + 0.5) / cols - 1, 1.0)
            for r in range(rows)
            for c in range(cols)
        ]
        slots["video"], start = slice(0, len(places)), len(places)
    if codecs.audio is not None and given in ("clip", "shuffled"):
        slots["audio"] = slice(start, start + CHUNKS)
        start += CHUNKS
    slots["last"] = slice(start, start + 1)
    places += [(0.0, 0.0, 0.0)] * (start + 1 - len(places))
    return slots, torch.tensor(places)


def _cells(codecs: Codecs) -> tuple[int, int]:
    spec = codecs.video.spec
    return min(spec.rows, CELLS_A_SIDE), min(spec.cols, CELLS_A_SIDE)


def read_together(
    rows: Iterable[AnyRow], length_of: Callable[[AnyRow], int]
) -> Iterator[list[AnyRow]]:
    """Neighbours together, as many as are read at once when all are as long as the longest."""
    batch, longest = [], 0
    for row in rows:
        length = length_of(row)
        if batch and (len(batch) + 1) * max(longest, length) > _ROW_POSITIONS:
            yield batch
            batch, longest = [], 0
        batch.append(row)
        longest = max(longest, length)
    if batch:
        yield batch


def _documents(codecs: Codecs, scenes: Scenes, given: Given) -> Iterator[_Document]:
    layout = codecs.layout
    for index in range(scenes.count):
        clip = scenes.record(index, codecs).clip
        fps = frame_rate(codecs)
        frames, times_s = scenes.moments, [frame / fps for frame in scenes.moments]
        if given == "captions":
            clip = Clip(texts=clip.texts)
            streams = codecs.encode(clip)
        else:
            streams = codecs.encode(replace(clip, texts=()))
        if given == "last_frame":
            for frame in frames:
                alone = [_only_frame(t, frame) for t in streams if t.modality == Modality.VIDEO]
                row = interleave(alone, layout)
                yield _Document(row, _averages(row, codecs, [0], [frame / fps], given))
            continue
        if given == "shuffled":
            num_frames = round(scenes.seconds * fps)
            order_T = shuffled_order(num_frames, frames, scenes.seed, index)
            frames = tuple(int((order_T == frame).nonzero()[0, 0]) for frame in frames)
            times_s = [frame / fps for frame in frames]
            streams = [_reordered(t, order_T) for t in streams]
        if not streams:
            yield _Document(None, torch.zeros(len(frames) * len(_slots(codecs, given)[1]), 0))
            continue
        row = interleave(streams, layout)
        yield _Document(row, _averages(row, codecs, frames, times_s, given))


def shuffled_order(num_frames: int, moments: Sequence[int], seed: int, index: int) -> Tensor:
    """(T,) which frame is shown in each place, the same on every call. Frames that are probed swap
    places among themselves, so that as much comes before them as in the clip; so do all others."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
    order_T = torch.arange(num_frames)
    probed = torch.tensor(sorted(moments))
    rest = order_T[~torch.isin(order_T, probed)]
    for places in (probed, rest):
        order_T[places] = places[torch.randperm(len(places), generator=generator)]
    return order_T


def _reordered(tokens: Tokens, order_T: Tensor) -> Tokens:
    """Frames in another order at the same times; other streams as they are."""
    if tokens.modality != Modality.VIDEO:
        return tokens
    return replace(tokens, contents=tokens.contents[order_T])


def _only_frame(tokens: Tokens, frame: int) -> Tokens:
    here = slice(frame, frame + 1)
    return replace(tokens, contents=tokens.contents[here], end_s=tokens.end_s[here])


def _averages(
    row: Batch, codecs: Codecs, frames: Sequence[int], times_s: Sequence[float], given: Given
) -> Tensor:
    """(moments * S, L) what is averaged for each place of each moment."""
    modality_L, end_L = row.modality[0], row.end_s[0]
    length, parts = len(modality_L), []
    for frame, time_s in zip(frames, times_s, strict=True):
        past_L = end_L <= time_s + 1e-6
        if given == "captions":
            said_L = (past_L & (modality_L == Modality.TEXT)).float()
            parts.append((said_L / said_L.sum().clamp(min=1))[None])
        elif codecs.video is not None:
            parts.append(_cell_averages(modality_L, codecs, frame))
        if codecs.audio is not None and given in ("clip", "shuffled"):
            chunks = (past_L & (modality_L == Modality.AUDIO)).nonzero()[-CHUNKS:, 0]
            chunks = torch.cat([chunks[:1].expand(CHUNKS - len(chunks)), chunks])
            parts.append(F.one_hot(chunks, length).float())
        last = past_L.nonzero()[-1:, 0]
        parts.append(F.one_hot(last, length).float() if len(last) else torch.zeros(1, length))
    return torch.cat(parts)


def _cell_averages(modality_L: Tensor, codecs: Codecs, frame: int) -> Tensor:
    """(cells, L): each cell is the mean of its patches of one frame."""
    spec, (rows, cols) = codecs.video.spec, _cells(codecs)
    per_frame = spec.positions_per_block
    positions = (modality_L == Modality.VIDEO).nonzero()[:, 0]
    mine_P = positions[frame * per_frame : (frame + 1) * per_frame]
    patches = torch.eye(per_frame).unflatten(1, (spec.rows, spec.cols))
    cells = F.adaptive_avg_pool2d(patches, (rows, cols)).flatten(1).T  # (cells, P)
    average_SL = torch.zeros(len(cells), len(modality_L))
    average_SL[:, mine_P] = cells
    return average_SL


def join(features: Sequence[Features]) -> Features:
    """Several sets of moments one after another."""
    first = features[0]
    values = [torch.cat(parts) for parts in zip(*(f.values_MSD for f in features), strict=True)]
    return replace(first, values_MSD=values)
