"""The contract refuses what no room could handle, with the numbers in the message."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mmpredict.schema import Batch, Clip, Layout, Modality, StreamSpec, TextPiece
from tests.builders import LAYOUT, TEXT, document, packed_rows, same_batch


def test_sound_comes_before_the_frame_before_the_word():
    assert Modality.AUDIO < Modality.VIDEO < Modality.TEXT


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"frames_TCHW": torch.zeros(2, 3, 4, 4)}, r"float32 \(2, 3, 4, 4\)"),
        ({"frames_TCHW": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}, "2 frames"),
        (
            {
                "frames_TCHW": torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
                "times_s": torch.zeros(3),
            },
            "got 3",
        ),
        ({"waveform_CS": torch.zeros(2, 5)}, r"\(2, 5\) at None Hz"),
        ({"waveform_CS": torch.zeros(5), "sample_rate": 8000}, r"\(5,\) at 8000 Hz"),
    ],
)
def test_clip_refuses_with_name_and_numbers(fields: dict, said: str):
    with pytest.raises(ValueError, match=said) as error:
        Clip(name="film.mp4", **fields)
    assert "film.mp4" in str(error.value)


def test_text_piece_is_timed_or_not():
    with pytest.raises(ValueError, match="only one"):
        TextPiece("hello", start_s=1.0)
    with pytest.raises(ValueError, match="ends at 1.0 s before its start 2.0 s"):
        TextPiece("hello", 2.0, 1.0)
    assert TextPiece("hello", 1.0, 1.0).end_s == 1.0


def test_layout_is_sorted_and_knows_its_streams():
    audio, video, text = LAYOUT.streams
    assert LAYOUT[TEXT] is text and TEXT in LAYOUT and 7 not in LAYOUT
    for wrong in ((), (video, audio), (text, text)):
        with pytest.raises(ValueError, match="layout needs"):
            Layout(wrong)
    with pytest.raises(KeyError, match="7"):
        LAYOUT[7]


def test_stream_spec_counts_positions_and_kinds():
    video = StreamSpec(modality=1, name="video", width=12, rows=2, cols=3)
    assert video.positions_per_block == 6 and not video.is_discrete
    assert StreamSpec(modality=2, name="text", vocab_size=5).is_discrete


def test_the_contract_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        document().doc_id = torch.zeros(1)


def test_batch_maps_every_tensor_and_keeps_them_all():
    batch = packed_rows()
    seen: list[int] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.numel())
        return x.clone()

    assert same_batch(batch.map(look), batch)
    assert len(seen) == len(dataclasses.fields(Batch)) - 2 + len(batch.contents)
    assert same_batch(batch.to("cpu"), batch)
    assert batch.num_rows == 2
    assert batch.num_tokens == int(sum((d > 0).sum() for d in batch.doc_id))


def test_places_are_the_rules_written_out():
    batch = packed_rows()
    mask = batch.loss_mask.clone()
    mask[1, 2] = False  # of a block of one position: not counted
    batch = dataclasses.replace(batch, loss_mask=mask)
    places = batch.placed().places
    L = batch.modality.shape[1]
    turns = []
    for modality in batch.contents:
        rows, columns = (batch.modality == modality).nonzero(as_tuple=True)
        assert places.positions[modality].tolist() == (rows * L + columns).tolist()
        blocks = list(dict.fromkeys(zip(rows.tolist(), _block(batch, rows, columns), strict=True)))
        counted, nth, seen = [], [], {}
        for number, (row, block) in enumerate(blocks):
            at = int((batch.block_id[row] == block).nonzero()[0])
            doc = (row, int(batch.doc_id[row, at]))
            if batch.loss_mask[row, at]:
                counted.append(number)
                nth.append(seen.get(doc, 0))
                if at and batch.doc_id[row, at - 1] == batch.doc_id[row, at]:
                    turns.append(row * L + at - 1)
            seen[doc] = seen.get(doc, 0) + 1
        assert places.counted[modality].tolist() == counted
        assert places.nth[modality].tolist() == nth
    assert places.turns.tolist() == sorted(turns)
    assert batch.placed().placed().places is not None and batch.map(lambda x: x).places is None


def _block(batch: Batch, rows: torch.Tensor, columns: torch.Tensor) -> list[int]:
    return batch.block_id[rows, columns].tolist()
