"""Folders of media: windows, text in time, streams that are missing, images, texts alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from datamodules import AudioVisual, Skipped
from mmpredict.media import read_text
from mmpredict.media.cutting import Window
from mmpredict.schema import Batch
from mmpredict.sequence import separate
from mmpredict.tokens import TextTokens
from tests.datamodules.small import (
    AUDIO,
    FPS,
    STREAMS,
    SUBSET_IDS,
    SUBSETS,
    TEXT,
    VIDEO,
    WORDS,
    all_documents,
    codecs,
    loading,
    same,
    text_of,
    write_image,
    write_sound,
    write_sounds,
    write_video,
)

SPLITS = ("train", "val", "test")


def folder_data(root: Path, *streams: str, **options: object) -> AudioVisual:
    how = {"clip_seconds": 0.5, "loading": loading()} | codecs(*streams or STREAMS)
    data = AudioVisual(str(root), **how | options)
    data.setup()
    return data


def windows(data: AudioVisual) -> list[tuple[Path, Window]]:
    """All windows in all splits, each with its file."""
    return [
        (documents.find(n)[0].path, documents.window(0, n))
        for documents in map(data.documents, SPLITS)
        for n in range(len(documents))
    ]


def all_rows(data: AudioVisual) -> list[Batch | Skipped]:
    return [row for split in SPLITS for row in all_documents(data.documents(split))]


# Windows


@pytest.mark.parametrize("seconds", [0.3, 1.0, 1.2, 1.3, 2.0])
def test_windows_cover_each_file_without_overlap(tmp_path, seconds):
    for n in range(3):
        write_sound(tmp_path / f"{n}.wav", seconds, n)
    data = folder_data(tmp_path, "audio")
    for path in sorted({path for path, _ in windows(data)}):
        mine = sorted((w for p, w in windows(data) if p == path), key=lambda w: w.start_s)
        assert [w.is_last for w in mine] == [False] * (len(mine) - 1) + [True]
        assert mine[0].start_s == 0
        for one, following in zip(mine, mine[1:], strict=False):
            assert following.start_s == pytest.approx(one.start_s + one.duration_s)
        left_out = seconds - sum(w.duration_s for w in mine)
        assert -1e-6 <= left_out < 0.25


def test_what_windows_show_is_what_the_file_holds(tmp_path):
    write_video(tmp_path / "a.mp4", 2.0)
    data = folder_data(tmp_path, "audio", "video")
    whole = folder_data(tmp_path, "audio", "video", clip_seconds=2.0)
    one = whole.documents("train").document(0, 0)
    parts = [row for s in SPLITS for row in all_documents(data.documents(s))]
    assert len(windows(data)) == len(parts) == 4
    frames = torch.cat([row.contents[VIDEO] for row in parts])
    assert torch.equal(frames, one.contents[VIDEO]) and len(frames) == 2 * FPS * 4
    assert sum(len(row.contents[AUDIO]) for row in parts) == 4 * 12 <= len(one.contents[AUDIO])


@pytest.mark.parametrize("subset", SUBSETS, ids=SUBSET_IDS)
def test_every_subset_of_the_streams(tmp_path, subset):
    for n in range(3):
        write_video(tmp_path / f"{n}.mp4", 0.5, n)
        (tmp_path / f"{n}.txt").write_text("a b c")
    made = AudioVisual(str(tmp_path), **codecs(*subset), clip_seconds=0.5, loading=loading())
    assert {spec.name for spec in made.layout.streams} == subset, "known before setup"
    made.setup()
    batch = next(iter(made.train_dataloader()))
    assert {made.layout[m].name for m in batch.contents} == subset


def test_silent_videos_and_sounds_alone_stand_in_one_batch(tmp_path):
    for n in range(4):
        write_video(tmp_path / f"silent{n}.mp4", 0.5, n, sound=False)
        write_sound(tmp_path / f"sound{n}.wav", 0.5, n)
        write_video(tmp_path / f"both{n}.mp4", 0.5, n + 4)
    data = folder_data(tmp_path, loading=loading(rows=8, context_length=64))
    rows = [row for s in SPLITS for row in all_documents(data.documents(s))]
    kinds = [frozenset(row.contents) for row in rows]
    for kind in ({VIDEO}, {AUDIO}, {AUDIO, VIDEO}):
        assert kinds.count(frozenset(kind)) == 4
    batch = next(iter(data.train_dataloader()))
    assert set(batch.contents) == {AUDIO, VIDEO} and not data.skip_log.reasons


def test_a_run_reads_only_the_files_that_have_its_streams(tmp_path, capsys):
    write_sounds(tmp_path, 3, 0.5)
    write_video(tmp_path / "silent.mp4", 0.5, sound=False)
    data = folder_data(tmp_path, "audio")
    assert {path.suffix for path, _ in windows(data)} == {".wav"}
    assert data.skip_log.num_sources == 3 and not data.skip_log.reasons, "nothing is wrong with it"
    said = capsys.readouterr().err
    assert "1 files" in said and str(tmp_path / "silent.mp4") in said


def test_workers_give_the_same_batches(tmp_path):
    for n in range(4):
        write_video(tmp_path / f"{n}.mp4", 1.0, n)
    runs = []
    for workers in (0, 2):
        data = folder_data(tmp_path, loading=loading(workers=workers, timeout_s=60.0), seed=3)
        loader = data.train_dataloader()
        runs.append([batch for _ in range(2) for batch in loader])
        data.teardown("fit")
    assert len(runs[0]) == len(runs[1])
    assert all(map(same, *runs))


@pytest.mark.parametrize(("fits", "context"), [(False, 19), (True, 20)])
def test_a_clip_that_no_row_can_hold(tmp_path, fits, context):
    """0.55 s at 8 frames a second are 5 frames of 4 patches: 0, 0.125, ... 0.5."""
    write_video(tmp_path / "a.mp4", 1.1)
    options = {"clip_seconds": 0.55, "loading": loading(context_length=context)}
    if fits:
        data = folder_data(tmp_path, "video", **options)
        assert data.documents("train").document(0, 0).modality.shape[1] == 20
        return
    with pytest.raises(ValueError) as refusal:
        folder_data(tmp_path, "video", **options)
    for part in ("0.55 s", "20 positions", "context_length is 19", "raise it", "video.fps"):
        assert part in str(refusal.value)


def test_the_length_of_a_file_is_looked_up_once(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", 2.0)
    (tmp_path / "a.txt").write_text("one two three four")
    data = folder_data(tmp_path)
    monkeypatch.setattr("datamodules.files.headers.probe", None)
    assert all(isinstance(row, Batch) for row in all_documents(data.documents("train")))


# Text in time

SRT = """1
00:00:00,100 --> 00:00:00,900
Hello there, <i>you</i>

2
00:00:00,900 --> 00:00:02,300
this cue is longer than
the file
"""
VTT = "WEBVTT\n\n00:00.100 --> 00:01.900\na long cue over all the windows of it\n"
JSON = json.dumps(
    {
        "segments": [
            {
                "text": "one two",
                "words": [
                    {"word": " nought", "start": 0.0, "end": 0.0},
                    {"word": " one", "start": 0.1, "end": 0.5},
                    {"word": " two", "start": 0.5, "end": 0.51},
                    {"word": " three", "start": 1.7, "end": 2.0},
                ],
            }
        ]
    }
)
TXT = "Untimed words are spread\n\nover the whole file, by their length."
JSONL = """{"text": "a line", "start": 0.2, "end": 0.7}
{"text": "and then another", "start": 0.7, "end": 1.9}
"""
BESIDE = {".srt": SRT, ".vtt": VTT, ".json": JSON, ".txt": TXT, ".jsonl": JSONL}


@pytest.mark.parametrize("suffix", BESIDE)
@pytest.mark.parametrize("seconds", [2.0, 2.1])
def test_every_word_is_in_one_window_at_its_time(tmp_path, suffix, seconds):
    """Also in the last 0.1 s, which are too short for a window of their own."""
    write_sound(tmp_path / "a.wav", seconds)
    (tmp_path / f"a{suffix}").write_text(BESIDE[suffix])
    whole = folder_data(tmp_path, "text", clip_seconds=4.0)
    data = folder_data(tmp_path, "text")
    true = separate(whole.documents("train").document(0, 0), whole.layout)[0]
    expected = characters(true.contents.tolist(), true.end_s.tolist())
    words = " ".join(piece.text for piece in read_text(tmp_path / f"a{suffix}")).split()
    assert bytes(c for c, _ in expected).decode() == "".join(words), "no word is lost"

    found = []
    for (_, window), row in zip(windows(data), all_rows(data), strict=True):
        if not isinstance(row, Skipped):
            tokens = separate(row, data.layout)[0]
            assert tokens.end_s.min() >= -1e-9
            assert window.is_last or tokens.end_s.max() <= window.duration_s + 1e-9
            times = (tokens.end_s + window.start_s).tolist()
            found += characters(tokens.contents.tolist(), times)
    assert [c for c, _ in found] == [c for c, _ in expected]
    assert [t for _, t in found] == pytest.approx([t for _, t in expected], abs=1e-6)


def characters(ids: list[int], times: list[float]) -> list[tuple[int, float]]:
    """Letters with their times; spaces and ENDs come and go with the windows."""
    return [(i, t) for i, t in zip(ids, times, strict=True) if i not in (32, 10, WORDS.end_id)]


def test_what_is_said_after_the_end_belongs_to_another_file(tmp_path):
    """The subtitles of a film beside its trailer."""
    write_sound(tmp_path / "a.wav", 2.0)
    cues = [f"{n}\n00:00:{n:02d},000 --> 00:00:{n:02d},900\nword{n}\n" for n in range(9)]
    (tmp_path / "a.srt").write_text("\n".join(cues))
    data = folder_data(tmp_path, "text")
    assert text_of(all_rows(data)) == ["word0", "word1"]


def test_the_vocabulary_comes_from_training_windows_alone(tmp_path):
    write_sound(tmp_path / "a.wav", 4.0)
    (tmp_path / "a.txt").write_text("aaaa bbbb cccc dddd eeee ffff gggg hhhh")
    data = folder_data(tmp_path, "text", "audio", text=TextTokens(kind="bpe", vocab_size=280))
    assert data.codecs.text.is_fitted
    train = " ".join(data.corpus()).split()
    said = text_of(all_documents(data.documents("train")), data.codecs.text)
    assert train == " ".join(said).split() == "aaaa bbbb cccc dddd eeee ffff".split()


# What a folder holds


def test_a_single_file_is_a_folder_of_one(tmp_path):
    path = write_video(tmp_path / "a.mp4", 1.5)
    write_video(tmp_path / "b.mp4", 1.5, 1)
    data = folder_data(path)
    assert {path for path, _ in windows(data)} == {path}


def test_an_image_is_a_clip_of_one_frame(tmp_path):
    for n in range(4):
        write_image(tmp_path / f"{n}.png", 50 * n)
        (tmp_path / f"{n}.txt").write_text(f"image number {n}")
    data = folder_data(tmp_path)
    for (path, _), row in zip(windows(data), all_rows(data), strict=True):
        frames = row.contents[VIDEO]
        assert len(frames) == 4 and frames.float().mean() == 50 * int(path.stem)
        assert text_of([row]) == [f"image number {path.stem}"]
        assert row.end_s[row.modality == TEXT].isnan().all(), "its text has no times"
    assert not data.skip_log.reasons


def test_images_count_only_where_frames_or_their_texts_are_wanted(tmp_path):
    write_sounds(tmp_path, 3, 0.5)
    write_image(tmp_path / "cover.png", 0)
    write_image(tmp_path / "told.png", 0)
    (tmp_path / "told.txt").write_text("what it shows")
    for streams, names in (
        ({"audio"}, set()),
        ({"audio", "text"}, {"told.png"}),
        ({"video"}, {"cover.png", "told.png"}),
    ):
        data = folder_data(tmp_path, *streams)
        found = {path.name for path, _ in windows(data) if path.suffix == ".png"}
        assert found == names
        assert not any("png" in source for source in data.skip_log.reasons)


LINES = "\n".join(f"line {n} of a text that stands alone" for n in range(40))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.txt", LINES, LINES),
        ("t.txt", "x" * 999, "x" * 999),
        ("t.txt", "word " * 200, "word " * 200),
        ("t.jsonl", '{"text": "one"}\n{"text": "two"}\n', "one two"),
        ("t.srt", SRT, "Hello there, you this cue is longer than the file"),
    ],
)
@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_a_text_alone_is_documents_of_text_that_fit_a_row(tmp_path, name, content, said, kind):
    for path in write_sounds(tmp_path, 3, 0.5):
        path.with_suffix(".txt").write_text("a text beside a file")
    (tmp_path / name).write_text(content)
    text = TextTokens(kind=kind, vocab_size=270)
    data = folder_data(tmp_path, text=text, loading=loading(context_length=64))
    rows = [row for row in all_rows(data) if set(row.contents) == {TEXT}]
    assert all(row.modality.shape[1] <= 64 for row in rows)
    found = text_of(rows, data.codecs.text)
    assert "".join(" ".join(found).split()) == "".join(said.split())
    if name.endswith(".jsonl"):
        assert found == ["one", "two"], "each line is a text"
    assert len(data.fingerprint()) == 7 and not data.skip_log.reasons


@pytest.mark.parametrize("options", [{"plain_texts": False}, {"text": None}])
def test_texts_alone_count_only_where_they_are_wanted(tmp_path, options):
    write_sounds(tmp_path, 3, 0.5)
    (tmp_path / "broken.txt").write_bytes(b"\xff\xfe\x00")
    data = folder_data(tmp_path, **options)
    assert {path.suffix for path, _ in windows(data)} == {".wav"}
    assert data.skip_log.num_sources == 3 and not data.skip_log.reasons


def test_the_fingerprint_names_every_file_in_use(tmp_path):
    write_sounds(tmp_path / "in", 3, 0.5)
    write_video(tmp_path / "v.mp4", 0.5)
    (tmp_path / "v.en.srt").write_text(SRT)
    (tmp_path / "v.txt").write_text("not in use, as the other comes first")
    (tmp_path / "alone.txt").write_text("a text")
    before = folder_data(tmp_path).fingerprint()
    assert set(before) == {"in/s00.wav", "in/s01.wav", "in/s02.wav", "v.mp4", "v.txt", "alone.txt"}
    changes = {
        "in/s01.wav": lambda: write_sounds(tmp_path / "in", 2, 0.6),
        "v.txt": lambda: (tmp_path / "v.txt").write_text("in use, as it has no language"),
        "alone.txt": lambda: (tmp_path / "alone.txt").write_text("another text"),
    }
    for name, change in changes.items():
        change()
        after = folder_data(tmp_path).fingerprint()
        changed = {key for key in after if after[key] != before[key]} - {"in/s00.wav"}
        assert changed == {name}
        before = after
    (tmp_path.parent / "moved").mkdir()
    tmp_path.rename(tmp_path.parent / "moved" / "here")
    assert folder_data(tmp_path.parent / "moved" / "here").fingerprint() == before
