"""What the heads are compared on: scenes of the embedded world, encoded once for all arms.

Training: scenes of 4 s, each shown once. Scoring: held-out scenes; matched pairs (the possible and
the impossible clip of a scene, see mmpredict.world.counterfactual), cut off half a second after the
breach; and prompts of 8 frames to be continued.
Shapes: T frames, P positions of a frame, D values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from datamodules import Loading, World
from mmpredict.schema import Batch, Clip, Layout, Modality, Statistics, Tokens
from mmpredict.sequence import interleave, pack
from mmpredict.tokens import Codecs, MelChunks, Patches, TextTokens
from mmpredict.world import Condition, Film, Pair, Recording, Scene, draw_pairs, draw_scene

FAMILIES = ("roll_and_bounce",)
CONDITION = Condition(seconds=4.0, num_objects=(1, 2), speech="captions")
PAIR_CONDITION = replace(CONDITION, seconds=2.0)
FPS = 8.0
POSITIONS = 16  # of a frame, whatever its size: 4 x 4 patches
WINDOW_S = 0.5  # after the breach, in which surprise is measured
PROMPT_FRAMES, ROLLED_FRAMES = 8, 24
MOVING = 0.5  # m/s at the prompt's end: a rollout in which nothing moves shows nothing
EVERY = {Modality.VIDEO: 4, Modality.AUDIO: 8}  # every so many blocks are scored
FINAL, TUNING = "test_iid", "dev"


@dataclass(frozen=True)
class Scored:
    """A batch whose counted blocks (`loss_mask`) are those to be scored, one document a row."""

    batch: Batch


@dataclass(frozen=True)
class PairRows:
    """One kind of pairs: rows 2 i and 2 i + 1 are the possible and the impossible clip of pair i;
    the blocks from the cut on are counted."""

    kind: str
    batch: Batch


@dataclass(frozen=True)
class Prompt:
    """A scene to be continued, with its true continuation."""

    scene: Scene
    truth: Recording
    frames_TPD: Tensor
    chunks_KPD: Tensor


@dataclass(frozen=True)
class Amounts:
    """How much of everything."""

    train_documents: int
    held_out: int
    pairs: int
    prompts: int


@dataclass(frozen=True)
class Data:
    """All of one frame size."""

    size: int
    codecs: Codecs
    layout: Layout
    statistics: Statistics
    train: list[Batch]
    held_out: dict[str, Batch]
    pairs: list[PairRows]
    prompts: list[Prompt]


def world(size: int) -> World:
    """The datamodule: frames of `size` px in 16 patches, stereo sound, captions in BPE."""
    data = World(
        MelChunks(),
        Patches(size, size // 4, FPS),
        TextTokens(kind="bpe", vocab_size=512),
        families=FAMILIES,
        condition=CONDITION,
        train_scenes=100_000,
        loading=Loading(context_length=2048, rows=1, workers=0),
    )
    data.setup()
    return data


def prepare(size: int, amounts: Amounts) -> Data:
    """Film and encode everything that one frame size needs."""
    data = world(size)
    documents = data.documents("train")
    train = [documents.document(0, k) for k in range(amounts.train_documents)]
    held_out = {
        split: _packed([_filmed(data, split, k) for k in range(amounts.held_out)])
        for split in (TUNING, FINAL)
    }
    return Data(
        size=size,
        codecs=data.codecs,
        layout=data.layout,
        statistics=data.statistics(),
        train=train,
        held_out={split: _thinned(batch) for split, batch in held_out.items()},
        pairs=[_pair_rows(data, kind, amounts.pairs) for kind in PAIR_KINDS],
        prompts=_prompts(data, amounts.prompts),
    )


def batch_of(documents: list[Batch]) -> Batch:
    """Documents as rows, padded to a multiple of 64 positions."""
    return _packed(documents)


def _packed(documents: list[Batch]) -> Batch:
    longest = max(d.modality.shape[1] for d in documents)
    return pack([[d] for d in documents], -(-longest // 64) * 64)


def _filmed(data: World, split: str, index: int) -> Batch:
    scene = draw_scene(index, split=split, families=FAMILIES, condition=CONDITION)
    return data.encode(data.clip(scene))


def _thinned(batch: Batch) -> Batch:
    """Count only every n-th block of the continuous streams, and all of the text."""
    counted = batch.loss_mask.clone()
    for modality, every in EVERY.items():
        for row in range(batch.num_rows):
            mine = batch.modality[row] == modality
            number = batch.block_id[row][mine]
            order = torch.unique_consecutive(number, return_inverse=True)[1]
            counted[row, mine.nonzero()[:, 0]] = order % every == every - 1
    return replace(batch, loss_mask=counted)


# Matched pairs.

PAIR_KINDS = ("teleport", "vanish", "wrong_turn", "silent_impact", "phantom_sound", "late_sound")


def _pair_rows(data: World, kind: str, count: int) -> PairRows:
    found = draw_pairs(
        kind,
        split=FINAL,
        families=FAMILIES,
        condition=PAIR_CONDITION,
        film=Film(data.codecs.video.height_width, FPS),
    )
    documents = []
    for pair in islice(found, count):
        documents += [_document(data, pair, clip) for clip in _clips(pair)]
    return PairRows(kind, _packed(documents))


def _clips(pair: Pair) -> tuple[Clip, Clip]:
    """Both clips with the same text: what was said before the cut."""
    said = pair.impossible.clip.texts
    return replace(pair.possible.clip, texts=said), pair.impossible.clip


def _document(data: World, pair: Pair, clip: Clip) -> Batch:
    until_s = pair.breach_s + WINDOW_S + 1e-6
    streams = [_until(tokens, until_s) for tokens in data.codecs.encode(clip)]
    row = interleave(streams, data.layout)
    counted = (row.end_s > pair.cut_s) & (row.modality != Modality.TEXT)
    return replace(row, loss_mask=counted)


def _until(tokens: Tokens, end_s: float) -> Tokens:
    keep = tokens.end_s <= end_s
    return Tokens(tokens.modality, tokens.contents[keep], tokens.end_s[keep])


# Prompts.


def _prompts(data: World, count: int) -> list[Prompt]:
    """Scenes in which something moves when the prompt ends, and nothing is flat: 2 px of a plate
    are too few to judge."""
    found, index = [], 0
    video, audio = data.codecs.video, data.codecs.audio
    while len(found) < count:
        scene = draw_scene(index, split=FINAL, families=FAMILIES, condition=CONDITION)
        index += 1
        truth = scene.record(video.height_width, FPS, audio.sample_rate, audio.channels)
        speed_N = truth.truth.velocity_TN3[PROMPT_FRAMES - 1].norm(dim=-1)
        flat = any(spec.shape == "plate" for spec in scene.stage().objects)
        if flat or float(speed_N.max()) < MOVING:
            continue
        frames = video.encode(truth.clip).contents
        chunks = audio.encode(truth.clip).contents
        found.append(Prompt(scene, truth, frames, chunks))
    return found
