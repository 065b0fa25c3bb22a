"""Streams to one row and back. In: Tokens per stream. Out: a Batch of one row, one document,
unpadded.

Blocks stand in the order of their END times; of those that end together, audio comes before video
before text. Untimed text keeps its place after what stands before it in its own stream.

Shapes: K blocks of one stream, N blocks of all streams, L positions.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from mmpredict.schema import TICK_S, Batch, Layout, StreamSpec, Tokens


def interleave(streams: list[Tokens], layout: Layout) -> Batch:
    """Lay the blocks of all streams in one row.

    Args:
        streams: at most one Tokens per stream of `layout`; empty ones are allowed.
        layout: the streams of the run.

    Returns:
        a Batch with B = 1 and doc_id 1 everywhere; `separate` undoes it exactly.
    """
    streams = [tokens for tokens in streams if len(tokens.contents)]
    if not streams:
        raise ValueError("nothing to lay in a row: no stream has a block")
    for tokens in streams:
        _check(tokens, layout[tokens.modality])
        if sum(other.modality == tokens.modality for other in streams) > 1:
            raise ValueError(f"the {layout[tokens.modality].name} stream is given twice")
    modality_N = np.concatenate([np.full(len(t.end_s), t.modality) for t in streams])
    end_N = np.concatenate([t.end_s.numpy() for t in streams])
    key_N = np.concatenate([_sort_keys(t.end_s.numpy()) for t in streams])
    order = np.lexsort((modality_N, key_N))  # stable: equal keys keep their stream's own order
    modality_N, end_N = modality_N[order], end_N[order]

    per_block = np.zeros(1 + max(spec.modality for spec in layout.streams), dtype=np.int64)
    for spec in layout.streams:
        per_block[spec.modality] = spec.positions_per_block
    count_N = per_block[modality_N]
    start_N = np.cumsum(count_N) - count_N
    block_L = np.repeat(np.arange(len(order)), count_N)
    slot_L = np.arange(len(block_L)) - start_N[block_L]
    prev_same_N = _previous_of_own_stream(modality_N)

    prev_block_L = prev_same_N[block_L]
    prev_same_L = np.where(prev_block_L < 0, -1, start_N[prev_block_L] + slot_L)
    row = {
        "modality": modality_N[block_L],
        "block_id": block_L,
        "doc_id": np.ones_like(block_L),
        "prev_same": prev_same_L,
        "prev_any": start_N[block_L] - 1,
    }
    positions_L3 = _positions(modality_N, end_N, block_L, slot_L, layout)
    return Batch(
        **{name: torch.from_numpy(values.astype(np.int64))[None] for name, values in row.items()},
        positions=torch.from_numpy(positions_L3)[None],
        end_s=torch.from_numpy(end_N[block_L])[None],
        loss_mask=torch.ones(1, len(block_L), dtype=torch.bool),
        contents={
            int(t.modality): t.contents if t.contents.ndim == 1 else t.contents.flatten(0, 1)
            for t in streams
        },
    )


def separate(row: Batch, layout: Layout) -> list[Tokens]:
    """Undo `interleave`: the streams that have a block in a one-document row, by modality."""
    streams = []
    for modality, contents in sorted(row.contents.items()):
        per_block = layout[modality].positions_per_block
        end_s = row.end_s[0][row.modality[0] == modality][::per_block]
        blocks = contents if contents.ndim == 1 else contents.unflatten(0, (-1, per_block))
        streams.append(Tokens(modality=modality, contents=blocks, end_s=end_s))
    return streams


def first_blocks(row: Batch, max_positions: int) -> Batch:
    """The leading whole blocks of a one-document row that fit into `max_positions`."""
    if row.modality.shape[1] <= max_positions:
        return row
    length = int((row.block_id[0] < row.block_id[0, max_positions]).sum())
    if not length:
        first = int((row.block_id[0] == row.block_id[0, 0]).sum())
        raise ValueError(
            f"the first block has {first} positions, a row has room for {max_positions}"
        )
    return blocks_between(row, 0, int(row.block_id[0, length - 1]))


def split_blocks(row: Batch, max_positions: int) -> list[Batch]:
    """A one-document row as rows of whole blocks, each of at most `max_positions`."""
    pieces = []
    while row.modality.shape[1] > max_positions:
        head = first_blocks(row, max_positions)
        pieces.append(head)
        row = blocks_between(row, int(head.block_id[0, -1]) + 1, int(row.block_id[0, -1]))
    return [*pieces, row]


def blocks_between(row: Batch, first: int, last: int) -> Batch:
    """The blocks `first` to `last` of a one-document row, at the positions that they have in it."""
    start = int((row.block_id[0] < first).sum())
    stop = int((row.block_id[0] <= last).sum())
    if stop - start == row.modality.shape[1]:
        return row
    contents = {}
    for modality, values in row.contents.items():
        before = int((row.modality[0, :start] == modality).sum())
        count = int((row.modality[0, start:stop] == modality).sum())
        if count:
            contents[modality] = values[before : before + count]
    part = replace(row, contents={}).map(lambda x: x[:, start:stop])
    return replace(
        part,
        block_id=part.block_id - first,
        prev_same=(part.prev_same - start).clamp(min=-1),
        prev_any=(part.prev_any - start).clamp(min=-1),
        contents=contents,
    )


def _check(tokens: Tokens, spec: StreamSpec) -> None:
    shape = tuple(tokens.contents.shape)
    want = () if spec.is_discrete else (spec.positions_per_block, spec.width)
    if shape[1:] != want:
        raise ValueError(f"{spec.name} blocks have shape {shape[1:]}, the layout says {want}")
    if len(tokens.contents) != len(tokens.end_s):
        count = len(tokens.contents)
        raise ValueError(f"{count} {spec.name} blocks have {len(tokens.end_s)} times")
    times = tokens.end_s[~tokens.end_s.isnan()]
    if not spec.is_discrete and len(times) != len(tokens.end_s):
        raise ValueError(
            f"{spec.name} blocks need a time each; {len(tokens.end_s) - len(times)} lack one"
        )
    if len(times) > 1 and bool((times.diff() < 0).any()):
        late = int((times.diff() < 0).nonzero()[0])
        raise ValueError(
            f"{spec.name} runs back in time: {times[late]:.3f} s is followed by "
            f"{times[late + 1]:.3f} s"
        )


def _sort_keys(end_s: np.ndarray) -> np.ndarray:
    """Microseconds (so that 25 chunks of 0.04 s end with the frame at 1 s); untimed blocks take the
    key of the block before them in their stream, or come first."""
    microseconds = np.where(np.isnan(end_s), -np.inf, np.round(end_s * 1e6))
    return np.maximum.accumulate(microseconds)


def _previous_of_own_stream(modality_N: np.ndarray) -> np.ndarray:
    previous = np.full(len(modality_N), -1)
    for modality in np.unique(modality_N):
        blocks = np.flatnonzero(modality_N == modality)
        previous[blocks[1:]] = blocks[:-1]
    return previous


def _positions(
    modality_N: np.ndarray,
    end_N: np.ndarray,
    block_L: np.ndarray,
    slot_L: np.ndarray,
    layout: Layout,
) -> np.ndarray:
    """(L, 3) float32 of seconds, row, column.

    Timed blocks stand at their end time. Every untimed token moves the rest of the document on by
    one tick, and neighbouring text tokens are at least a tick apart, so that pure text gets the
    positions 0, 1, 2, ... ticks of a language model and words spoken together keep their order.
    """
    untimed_N = np.isnan(end_N)
    shift_N = TICK_S * np.cumsum(untimed_N)
    known_N = np.maximum.accumulate(np.where(untimed_N, 0.0, end_N))
    seconds_N = np.where(untimed_N, known_N, end_N) + shift_N - TICK_S * untimed_N
    discrete = [spec.modality for spec in layout.streams if spec.is_discrete]
    for modality in discrete:
        mine = np.flatnonzero(modality_N == modality)
        ticks = TICK_S * np.arange(len(mine))
        seconds_N[mine] = np.maximum.accumulate(seconds_N[mine] - ticks) + ticks
    cols = np.array([0] * (1 + max(spec.modality for spec in layout.streams)))
    rows = cols.copy()
    for spec in layout.streams:
        rows[spec.modality], cols[spec.modality] = spec.rows, spec.cols
    rows_L, cols_L = rows[modality_N][block_L], cols[modality_N][block_L]
    y = slot_L // np.maximum(cols_L, 1) - (rows_L - 1) / 2
    x = slot_L % np.maximum(cols_L, 1) - (cols_L - 1) / 2
    return np.stack([seconds_N[block_L], y, x], axis=1).astype(np.float32)
