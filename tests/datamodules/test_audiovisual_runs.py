"""Runs and random starts: what is read together is what each document is, and nothing is lost."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from datamodules import AudioVisual, Skipped
from datamodules.files.window_documents import read_windows
from mmpredict.media import read_clip
from mmpredict.schema import Batch
from mmpredict.sequence import separate
from tests.datamodules.small import (
    AUDIO,
    STREAMS,
    TEXT,
    VIDEO,
    all_documents,
    codecs,
    loading,
    same,
    text_of,
    write_sound,
    write_video,
)


def folder_data(root: Path, *streams: str, **options: object) -> AudioVisual:
    how = {"clip_seconds": 0.5, "loading": loading()} | codecs(*streams or STREAMS)
    data = AudioVisual(str(root), **how | options)
    data.setup()
    return data


def write_mixed(root: Path) -> None:
    """Whole and broken windows, with and without text, of which some are not there."""
    write_video(root / "a.mp4", 4.3, 1)
    (root / "a.txt").write_text("one two three four five six seven eight nine ten")
    write_video(root / "b.mp4", 2.0, 2, sound=False)
    write_sound(root / "c.wav", 3.1, 3)
    write_sound(root / "short.wav", 0.3, 4)
    (root / "alone.txt").write_text("a text\n\n" + 40 * "of many words and lines\n")


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("run_seconds", [0.0, 1.5, 32.0])
def test_runs_tile_all_documents(tmp_path, random_start, run_seconds):
    write_mixed(tmp_path)
    data = folder_data(tmp_path, random_start=random_start, run_seconds=run_seconds)
    for split in ("train", "val", "test"):
        documents = data.documents(split)
        runs = documents.runs()
        if runs is None:
            continue
        assert [i for run in runs for i in run] == list(range(len(documents)))
        for run in runs:
            sources = {id(documents.find(i)[0]) for i in run}
            assert len(sources) == 1, "of one file"
            if documents.window(0, run[0]) is not None:
                assert len(run) * 0.5 <= max(run_seconds, 0.5)


@pytest.mark.parametrize("random_start", [False, True])
def test_what_is_read_together_is_what_each_document_is(tmp_path, random_start):
    """For any subset of the documents, in any order, gaps and repetitions included."""
    write_mixed(tmp_path)
    data = folder_data(tmp_path, random_start=random_start)
    documents = data.documents("train")
    draw = random.Random(0)
    for epoch in (0, 1, 5):
        one_by_one = all_documents(documents, epoch)
        assert sum(isinstance(row, Batch) for row in one_by_one) > 10
        for _ in range(8):
            subset = draw.choices(range(len(documents)), k=draw.randint(1, 12))
            read = documents.read(epoch, subset)
            assert len(read) == len(subset)
            assert all(map(same, read, [one_by_one[i] for i in subset]))
        every = documents.read(epoch, range(len(documents)))
        assert all(map(same, every, one_by_one))


def test_neighbours_are_read_by_one_pass_and_far_ones_sought(tmp_path, monkeypatch):
    write_sound(tmp_path / "a.wav", 20.0)
    documents = folder_data(tmp_path, "audio").documents("train")
    passes = []

    def counted(source, start_s, window_s, count, **how):
        passes.append((start_s, window_s, count))
        return read_windows(source, start_s, window_s, count, **how)

    monkeypatch.setattr("datamodules.files.window_documents.read_windows", counted)
    [run] = documents.runs()
    documents.read(0, run)
    documents.read(0, [1, 4, 20, 22])
    assert passes == [(0.0, 0.5, len(run)), (0.5, 0.5, 4), (10.0, 0.5, 3)]


# Random starts


def test_random_windows_of_an_epoch_hold_the_whole_file(tmp_path):
    """All samples, frames and words of the training part, each once, in every epoch."""
    path = write_video(tmp_path / "a.mp4", 4.0, 5)
    (tmp_path / "a.txt").write_text("one two three four five six seven eight nine ten")
    data = folder_data(tmp_path, random_start=True)
    fixed = folder_data(tmp_path)
    assert [fixed.documents(s).window(0, 0) for s in ("val", "test")] == [
        data.documents(s).window(0, 0) for s in ("val", "test")
    ], "only training moves"
    documents, still = data.documents("train"), fixed.documents("train")
    end_s = still.window(0, len(still) - 1).end_s
    words = text_of(all_documents(still))
    seen = set()
    for epoch in range(12):
        windows = [documents.window(epoch, n) for n in range(len(documents))]
        windows = [window for window in windows if window is not None]
        assert windows[0].start_s == 0
        for one, following in zip(windows, windows[1:], strict=False):
            assert following.start_s == pytest.approx(one.end_s)
        assert 0 <= end_s - windows[-1].end_s + 1e-6 < 0.25
        rows = all_documents(documents, epoch)
        assert " ".join(text_of(rows)).split() == " ".join(words).split()
        seen.add(windows[0].duration_s)
        for window, row in zip(windows, rows, strict=False):
            clip = read_clip(
                path, start_s=window.start_s, duration_s=window.duration_s, fps=8.0, size=(16, 16),
                sample_rate=8000, channels=1,
            )  # fmt: skip
            expected = data.codecs.video.encode(clip)
            found = [t for t in separate(row, data.layout) if t.modality == VIDEO]
            assert torch.equal(found[0].contents, expected.contents)
    assert len(seen) > 3


def test_random_starts_are_the_seeds_and_epochs_alone(tmp_path):
    write_mixed(tmp_path)
    one = folder_data(tmp_path, random_start=True, seed=3).documents("train")
    torch.manual_seed(99)
    two = folder_data(tmp_path, random_start=True, seed=3).documents("train")
    other = folder_data(tmp_path, random_start=True, seed=4).documents("train")
    for epoch in range(3):
        mine = [one.window(epoch, n) for n in range(len(one))]
        assert mine == [two.window(epoch, n) for n in range(len(two))]
        assert mine != [other.window(epoch, n) for n in range(len(other))]
    assert len(one) == len(other)
    assert one.title(0, 1) != one.title(1, 1) and one.name(1).endswith("window 2")


def test_every_moment_is_seen_in_every_epoch_and_borders_move(tmp_path):
    """What stands at the border of two windows in one epoch is inside of one in others."""
    write_sound(tmp_path / "a.wav", 5.0)
    documents = folder_data(tmp_path, "audio", random_start=True).documents("train")
    borders = [
        {documents.window(epoch, n).start_s for n in range(1, len(documents) - 1)}
        for epoch in range(20)
    ]
    assert not set.intersection(*borders)


def test_the_document_that_is_too_many_does_no_harm(tmp_path):
    for n in range(4):
        write_sound(tmp_path / f"{n}.wav", 1.9 + 0.2 * n, n)
    data = folder_data(tmp_path, "audio", random_start=True)
    documents = data.documents("train")
    outcomes = [row for epoch in range(6) for row in all_documents(documents, epoch)]
    skipped = [row for row in outcomes if isinstance(row, Skipped)]
    assert skipped and all(s.harmless for s in skipped)
    loader = data.train_dataloader()
    assert sum(batch.num_tokens for _ in range(3) for batch in loader) > 0
    assert not data.skip_log.reasons


def test_prepare_gets_the_clips(tmp_path):
    write_mixed(tmp_path)
    documents = folder_data(tmp_path).documents("train")
    for n in range(len(documents)):
        clip, row = documents.clip(0, n), documents.document(0, n)
        kinds = {VIDEO: clip.frames_TCHW, AUDIO: clip.waveform_CS, TEXT: clip.texts or None}
        assert set(row.contents) == {m for m, stream in kinds.items() if stream is not None}
