"""Laws of the row: nothing is lost, blocks stand by their ends, a prefix stays the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmpredict.schema import TICK_S, Batch, Tokens
from mmpredict.sequence import first_blocks, interleave, separate
from tests.builders import (
    AUDIO,
    LAYOUT,
    SUBSET_IDS,
    SUBSETS,
    TEXT,
    VIDEO,
    audio_tokens,
    blocks_of,
    document,
    same_batch,
    streams,
    text_tokens,
    video_tokens,
)

EACH_SUBSET = pytest.mark.parametrize("subset", SUBSETS, ids=SUBSET_IDS)
EACH_TIMING = pytest.mark.parametrize("timed", ["all", "none", "mixed"])


def starts_of(row: Batch) -> list[int]:
    """First position of each block."""
    ids = row.block_id[0].tolist()
    return [ids.index(block) for block in range(ids[-1] + 1)]


def order_of(row: Batch) -> list[tuple[int, float]]:
    """(modality, end) of each block."""
    starts = starts_of(row)
    return list(zip(row.modality[0][starts].tolist(), row.end_s[0][starts].tolist(), strict=True))


def seconds_of(row: Batch, modality: int) -> Tensor:
    per_block = LAYOUT[modality].positions_per_block
    return row.positions[0, :, 0].double()[row.modality[0] == modality][::per_block]


def words(times: list[float | None]) -> Tokens:
    end_s = torch.tensor([float("nan") if t is None else t for t in times], dtype=torch.float64)
    return Tokens(TEXT, torch.arange(len(times)), end_s)


@EACH_SUBSET
@EACH_TIMING
def test_separate_undoes_interleave(subset: set[int], timed: str):
    for seed in range(3):
        before = streams(subset, seed, timed)
        row = interleave(before, LAYOUT)
        after = separate(row, LAYOUT)
        assert len(after) == len(before)
        for a, b in zip(after, before, strict=True):
            assert a.modality == b.modality and a.contents.dtype == b.contents.dtype
            assert torch.equal(a.contents, b.contents)
            assert torch.equal(a.end_s.nan_to_num(nan=-1), b.end_s.nan_to_num(nan=-1))
        assert same_batch(interleave(after[::-1], LAYOUT), row)  # the order of the list is nothing


def test_empty_streams_are_as_good_as_absent():
    text = text_tokens(4)
    with_empty = interleave([audio_tokens(0), video_tokens(0), text], LAYOUT)
    assert same_batch(with_empty, interleave([text], LAYOUT))
    with pytest.raises(ValueError, match="no stream has a block"):
        interleave([audio_tokens(0)], LAYOUT)


def test_ties_go_to_sound_then_frame_then_word_in_spite_of_float_dust():
    sound = audio_tokens(30)
    for dust in (-1e-12, 0.0, 1e-12):
        frame = replace(video_tokens(2), end_s=torch.tensor([0.28 - dust, 1.0 + dust]).double())
        row = interleave([sound, frame, words([0.28 + dust, 1.0 - dust])], LAYOUT)
        kinds = [m for m, _ in order_of(row)]
        assert kinds == [AUDIO] * 7 + [VIDEO, TEXT] + [AUDIO] * 18 + [VIDEO, TEXT] + [AUDIO] * 5


@EACH_SUBSET
@EACH_TIMING
def test_blocks_stand_by_end_and_untimed_text_after_its_own_past(subset: set[int], timed: str):
    for seed in range(3):
        end, last = float("-inf"), -1
        for modality, time in order_of(document(subset, seed, timed)):
            if time == time:  # not NaN
                assert time >= end - 1e-6
                if abs(time - end) < 1e-6:
                    assert modality >= last
                end, last = time, modality


def test_untimed_text_keeps_its_place():
    row = interleave([audio_tokens(5), words([None, 0.08, None, None, 0.2])], LAYOUT)
    kinds = [m for m, _ in order_of(row)]
    assert kinds == [TEXT] + [AUDIO] * 2 + [TEXT] * 3 + [AUDIO] * 3 + [TEXT]
    assert row.contents[TEXT].tolist() == [0, 1, 2, 3, 4]


@EACH_SUBSET
def test_blocks_are_counted_up_and_never_torn(subset: set[int]):
    row = document(subset)
    steps = row.block_id[0].diff()
    assert row.block_id[0, 0] == 0 and bool(((steps == 0) | (steps == 1)).all())
    for start in starts_of(row):
        block = row.block_id[0] == row.block_id[0, start]
        modality = int(row.modality[0, start])
        assert int(block.sum()) == LAYOUT[modality].positions_per_block
        assert bool((row.modality[0][block] == modality).all())
    assert bool((row.doc_id == 1).all()) and bool(row.loss_mask.all())


@EACH_SUBSET
def test_prev_any_is_the_last_position_before_the_block(subset: set[int]):
    row = document(subset)
    for i, start in enumerate(starts_of(row)):
        assert bool((row.prev_any[0][row.block_id[0] == i] == start - 1).all())


@EACH_SUBSET
def test_prev_same_is_the_same_slot_of_the_previous_own_block(subset: set[int]):
    row = document(subset)
    for modality in subset:
        mine = (row.modality[0] == modality).nonzero()[:, 0]
        blocks = mine.unflatten(0, (-1, LAYOUT[modality].positions_per_block))
        expected = torch.cat([torch.full_like(blocks[:1], -1), blocks[:-1]])
        assert torch.equal(row.prev_same[0][mine], expected.flatten())


def test_pure_text_has_the_positions_of_a_language_model():
    positions = document({TEXT}, timed="none").positions[0]
    assert torch.allclose(positions[:, 0] / TICK_S, torch.arange(6.0), atol=1e-5)
    assert not positions[:, 1:].any()


@EACH_TIMING
def test_sound_and_frames_stand_at_their_time_plus_a_tick_per_untimed_word(timed: str):
    for seed in range(5):
        row = document(seed=seed, timed=timed)
        untimed_before = (row.end_s.isnan() & (row.modality == TEXT)).cumsum(1)
        for modality in (AUDIO, VIDEO):
            mine = row.modality[0] == modality
            expected = row.end_s[0] + TICK_S * untimed_before[0]
            assert torch.allclose(row.positions[0, mine, 0].double(), expected[mine], atol=1e-5)
            assert bool((seconds_of(row, modality).diff() > 0).all())


@EACH_TIMING
def test_words_stand_at_their_time_or_a_tick_after_their_neighbour(timed: str):
    for seed in range(5):
        row = document(seed=seed, timed=timed)
        mine = row.modality[0] == TEXT
        seconds, end_s = seconds_of(row, TEXT).tolist(), row.end_s[0][mine].tolist()
        untimed = row.end_s[0].isnan()
        before = (untimed.cumsum(0) - untimed.long())[mine].tolist()
        latest = torch.cummax(row.end_s[0].nan_to_num(nan=0.0), 0).values[mine].tolist()
        previous = float("-inf")
        for now, end, known, count in zip(seconds, end_s, latest, before, strict=True):
            own = (end if end == end else known) + TICK_S * count
            assert now == pytest.approx(max(own, previous + TICK_S), abs=1e-5)
            previous = now


def test_rows_and_columns_are_centred_and_in_reading_order():
    row = document({VIDEO}, blocks=(0, 2, 0))
    frame = row.positions[0, 6:12, 1:]
    assert frame.tolist() == [[y, x] for y in (-0.5, 0.5) for x in (-1.0, 0.0, 1.0)]
    assert not document({AUDIO, TEXT}).positions[..., 1:].any()


@EACH_SUBSET
@EACH_TIMING
def test_a_prefix_laid_out_alone_is_the_prefix_of_the_row(subset: set[int], timed: str):
    """What streams in later changes nothing of what stands: a rollout sees what training saw."""
    for seed in range(3):
        row = document(subset, seed, timed)
        for start in starts_of(row)[1:]:
            prefix = first_blocks(row, start)
            assert prefix.modality.shape[1] == start
            assert same_batch(interleave(separate(prefix, LAYOUT), LAYOUT), prefix)


def test_first_blocks_cuts_at_whole_blocks():
    row = document()
    starts = [*starts_of(row), row.modality.shape[1]]
    for most in range(starts[1], starts[-1] + 3):
        kept = first_blocks(row, most)
        assert kept.modality.shape[1] == max(s for s in starts if s <= most)
        for modality, contents in kept.contents.items():
            assert len(contents) == int((kept.modality == modality).sum())
        assert kept.contents.keys() == set(kept.modality.flatten().tolist())
    assert first_blocks(row, starts[-1]) is row


def test_a_first_block_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="first block has 6 positions, .* room for 5"):
        first_blocks(document({VIDEO}), 5)


def test_blocks_of_agrees_with_the_row():
    row = document()
    for modality in (AUDIO, VIDEO, TEXT):
        _, blocks = blocks_of(row, modality)
        assert torch.equal(blocks, row.block_id[row.modality == modality].unique())


def test_broken_streams_are_refused_with_their_numbers():
    frames = video_tokens(3)
    with pytest.raises(
        ValueError, match=r"video blocks have shape \(6, 5\), the layout says \(6, 4\)"
    ):
        interleave([replace(frames, contents=torch.zeros(3, 6, 5))], LAYOUT)
    with pytest.raises(ValueError, match="runs back in time: 0.250 s is followed by 0.125 s"):
        interleave([replace(frames, end_s=torch.tensor([0.0, 0.25, 0.125]).double())], LAYOUT)
    with pytest.raises(ValueError, match="need a time each; 1 lack"):
        interleave([replace(frames, end_s=torch.tensor([0, 0.1, float("nan")]).double())], LAYOUT)
    with pytest.raises(KeyError, match="no stream 3"):
        interleave([replace(frames, modality=3)], LAYOUT)
    with pytest.raises(ValueError, match="video stream is given twice"):
        interleave([frames, frames], LAYOUT)
    with pytest.raises(ValueError, match="3 video blocks .* 2 times"):
        interleave([replace(frames, end_s=frames.end_s[:2])], LAYOUT)
