"""Small streams, documents and predictors for the tests of sequence, model and objectives.

The layout has three unequal streams: sound of 3 values, frames of 2 x 3 positions, 11 ids of text.
Nothing here draws from the global random state: every builder takes a seed.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from mmpredict.model import HeadConfig, Predictor, PredictorConfig
from mmpredict.schema import Batch, Layout, Modality, StreamSpec, Tokens
from mmpredict.sequence import interleave, pack

AUDIO, VIDEO, TEXT = (int(m) for m in Modality)
LAYOUT = Layout(
    (
        StreamSpec(modality=AUDIO, name="audio", width=3, period_s=0.04),
        StreamSpec(modality=VIDEO, name="video", width=4, rows=2, cols=3, period_s=0.125),
        StreamSpec(modality=TEXT, name="text", vocab_size=11),
    )
)
SUBSETS = [set(s) for n in (1, 2, 3) for s in combinations((AUDIO, VIDEO, TEXT), n)]
SUBSET_IDS = ["+".join(LAYOUT[m].name for m in sorted(s)) for s in SUBSETS]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def audio_tokens(blocks: int, seed: int = 0, start_s: float = 0.0) -> Tokens:
    contents = torch.randn(blocks, 1, 3, generator=generator(seed)).half()
    return Tokens(AUDIO, contents, start_s + 0.04 * torch.arange(1, blocks + 1).double())


def video_tokens(blocks: int, seed: int = 0, start_s: float = 0.0) -> Tokens:
    contents = torch.randint(256, (blocks, 6, 4), generator=generator(seed)).to(torch.uint8)
    return Tokens(VIDEO, contents, start_s + 0.125 * torch.arange(blocks).double())


def text_tokens(blocks: int, seed: int = 0, timed: str = "mixed") -> Tokens:
    """Ids with rising times, some of them equal; `timed`: all, none, or mixed (half untimed)."""
    g = generator(seed)
    contents = torch.randint(11, (blocks,), generator=g)
    end_s = (0.04 * torch.randint(3, (blocks,), generator=g).cumsum(0)).double()
    untimed = {
        "all": torch.zeros(blocks, dtype=torch.bool),
        "none": torch.ones(blocks, dtype=torch.bool),
        "mixed": torch.rand(blocks, generator=g) < 0.5,
    }[timed]
    return Tokens(TEXT, contents, end_s.masked_fill(untimed, float("nan")))


def streams(
    subset: set[int], seed: int = 0, timed: str = "mixed", blocks: tuple[int, int, int] = (5, 3, 6)
) -> list[Tokens]:
    """Random tokens of the streams in `subset`; `blocks` of sound, video and text."""
    made = {
        AUDIO: audio_tokens(blocks[0], seed),
        VIDEO: video_tokens(blocks[1], seed),
        TEXT: text_tokens(blocks[2], seed, timed),
    }
    return [made[m] for m in sorted(subset)]


def document(
    subset: set[int] | None = None,
    seed: int = 0,
    timed: str = "mixed",
    blocks: tuple[int, int, int] = (5, 3, 6),
) -> Batch:
    """A one-document row of the streams in `subset` (all three by default)."""
    return interleave(streams(subset or {AUDIO, VIDEO, TEXT}, seed, timed, blocks), LAYOUT)


def packed_rows() -> Batch:
    """Two rows of 2 and 3 unlike documents, with padding: packing at its most mixed."""
    rows = [
        [document(seed=1, blocks=(3, 2, 3)), document({VIDEO, TEXT}, seed=2, blocks=(0, 2, 4))],
        [
            document({TEXT}, seed=3),
            document({AUDIO, VIDEO}, seed=4, blocks=(4, 2, 0)),
            document({AUDIO}, seed=5),
        ],
    ]
    return pack(rows, context_length=40)


def predictor(
    layout: Layout = LAYOUT, *, kind: str = "flow", awake: bool = True, **config: object
) -> Predictor:
    """A tiny predictor, the same on every call. `awake` replaces the weights that begin at 0
    (those of the heads and queries), so that every path carries signal."""
    sized = {"dim": 32, "depth": 1} if kind != "regression" else {}
    head = HeadConfig(kind=kind, **sized)
    heads = {s.name: head for s in layout.streams if not s.is_discrete}
    sizes = {"dim": 32, "depth": 2, "num_heads": 2} | config
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = Predictor(layout, PredictorConfig(heads=heads, **sizes))
    if awake:
        g = generator(8)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.std(correction=0) == 0:
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=g))
    for name, scale in model.embed.standardise.items():
        if name == "video":
            scale.mean.fill_(127.5)
            scale.std.fill_(74.0)
    return model


def blocks_of(batch: Batch, modality: int) -> tuple[Tensor, Tensor]:
    """(M,) row and (M,) block_id of each block of a stream, in the order of its contents."""
    first = (batch.block_id != torch.roll(batch.block_id, 1, 1)) | (
        torch.arange(batch.block_id.shape[1]) == 0
    )
    row, column = (first & (batch.modality == modality)).nonzero(as_tuple=True)
    return row, batch.block_id[row, column]


def same_batch(a: Batch, b: Batch) -> bool:
    """Equal in every tensor, NaN times included, and in its contents' types."""
    names = ("modality", "block_id", "doc_id", "positions", "prev_same", "prev_any", "loss_mask")
    return (
        all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)
        and torch.equal(a.end_s.nan_to_num(nan=-1.0), b.end_s.nan_to_num(nan=-1.0))
        and a.contents.keys() == b.contents.keys()
        and all(a.contents[m].dtype == b.contents[m].dtype for m in a.contents)
        and all(torch.equal(a.contents[m], b.contents[m]) for m in a.contents)
    )
