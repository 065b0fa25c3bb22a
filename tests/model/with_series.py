"""Documents with a state and an action beside sound, frames and text, and their predictor."""

from __future__ import annotations

import torch

from mmpredict.schema import Batch, Layout, StreamSpec, Tokens
from mmpredict.sequence import interleave, pack
from tests.builders import LAYOUT, generator, predictor, streams

STATE, ACTION = 3, 4
SERIES_LAYOUT = Layout(
    (
        *LAYOUT.streams,
        StreamSpec(modality=STATE, name="state", width=2, period_s=0.125, own_units=True),
        StreamSpec(modality=ACTION, name="action", width=3, period_s=0.0625, own_units=True),
    )
)
SERIES_MODEL = predictor(SERIES_LAYOUT)


def vectors(modality: int, blocks: int, seed: int = 0) -> Tokens:
    """Random vectors from 0 s on; states stand with the frames, actions twice as often."""
    spec = SERIES_LAYOUT[modality]
    contents = torch.randn(blocks, 1, spec.width, generator=generator(seed + modality))
    return Tokens(modality, contents, spec.period_s * torch.arange(blocks).double())


def series_document(seed: int = 0, subset: tuple[int, ...] = (0, 1, 2, STATE, ACTION)) -> Batch:
    """A one-document row with the streams of `subset`."""
    made = streams({m for m in subset if m <= 2}, seed, "mixed", (4, 3, 4))
    made += [vectors(m, 3 * (m - 2), seed) for m in subset if m > 2]
    return interleave(made, SERIES_LAYOUT)


def packed_series() -> Batch:
    """Two rows with 2 and 3 unlike documents, with padding."""
    rows = [
        [series_document(1), series_document(2, (1, ACTION))],
        [series_document(3, (STATE,)), series_document(4, (2, ACTION)), series_document(5, (0, 3))],
    ]
    return pack(rows, context_length=70)
