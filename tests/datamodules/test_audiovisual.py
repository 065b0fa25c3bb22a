"""Folders of media: windows, text in time, streams that are missing, and the split by content."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from datamodules import AudioVisual
from datamodules.audiovisual import Window, content_hash, said_between
from datamodules.base import split_by_hash
from mmpredict.media import probe, read_text
from mmpredict.schema import Batch, TextPiece
from mmpredict.sequence import separate
from mmpredict.tokens import TextTokens
from tests.datamodules.small import (
    AUDIO,
    FPS,
    STREAMS,
    SUBSET_IDS,
    SUBSETS,
    VIDEO,
    WORDS,
    all_documents,
    codecs,
    loading,
    same,
    text_of,
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


def windows(data: AudioVisual) -> list[Window]:
    return [window for split in SPLITS for window in data.documents(split).windows]


def split_of(data: AudioVisual) -> dict[Path, str]:
    return {window.path: split for split in SPLITS for window in data.documents(split).windows}


# Windows


@pytest.mark.parametrize("seconds", [0.3, 1.0, 1.2, 1.3, 2.0])
def test_windows_cover_each_file_without_overlap(tmp_path, seconds):
    for n in range(3):
        write_sound(tmp_path / f"{n}.wav", seconds, n)
    data = folder_data(tmp_path, "audio")
    for path in sorted({window.path for window in windows(data)}):
        mine = sorted((w for w in windows(data) if w.path == path), key=lambda w: w.start_s)
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


def test_a_run_reads_only_the_files_that_have_its_streams(tmp_path):
    write_sounds(tmp_path, 3, 0.5)
    write_video(tmp_path / "silent.mp4", 0.5, sound=False)
    data = folder_data(tmp_path, "audio")
    assert {w.path.suffix for w in windows(data)} == {".wav"}
    assert data.skip_log.reasons == {
        str(tmp_path / "silent.mp4"): "has no stream that the recipe uses"
    }


def test_workers_give_the_same_batches(tmp_path):
    for n in range(4):
        write_video(tmp_path / f"{n}.mp4", 1.0, n)
    runs = []
    for workers in (0, 2):
        data = folder_data(tmp_path, loading=loading(workers=workers, timeout_s=60.0), seed=3)
        loader = data.train_dataloader()
        runs.append([batch for _ in range(2) for batch in loader])
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
    monkeypatch.setattr("datamodules.audiovisual.probe", None)
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
    [one] = whole.documents("train").windows
    true = separate(whole.encode(whole.clip(one)), whole.layout)[0]
    expected = characters(true.contents.tolist(), true.end_s.tolist())
    words = " ".join(piece.text for piece in read_text(tmp_path / f"a{suffix}")).split()
    assert bytes(c for c, _ in expected).decode() == "".join(words), "no word is lost"

    found = []
    for window in windows(data):
        row = data.encode(data.clip(window))
        if row is not None:
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


def test_words_share_their_cue_by_their_letters():
    [piece] = said_between([TextPiece("aaa bb cccc", 1.0, 3.2)], 9.0, 0.0, 9.0)
    assert piece == TextPiece("aaa bb cccc", 1.0, 3.2)
    cut = [said_between([TextPiece("aaa bb cccc", 1.0, 3.2)], 9.0, s, s + 1) for s in range(4)]
    assert [[p.text for p in pieces] for pieces in cut] == [[], ["aaa"], ["bb"], ["cccc"]]
    assert cut[1][0].end_s == pytest.approx(0.6)  # 3 of 11 letters of 2.2 s
    assert cut[2][0].end_s == pytest.approx(0.2)
    assert cut[3][0].end_s == pytest.approx(0.2)


def test_untimed_text_is_spread_over_its_file_not_over_its_window():
    pieces = [TextPiece("a b"), TextPiece("c d")]
    said = [said_between(pieces, 4.0, s, s + 1) for s in range(4)]
    assert [[p.text for p in part] for part in said] == [["a"], ["b"], ["c"], ["d"]]
    assert [p.text for p in said_between(pieces, 4.0, 0.0, 4.0)] == ["a b", "c d"]


def test_what_is_said_after_the_end_belongs_to_another_file(tmp_path):
    """The subtitles of a film beside its trailer."""
    write_sound(tmp_path / "a.wav", 2.0)
    cues = [f"{n}\n00:00:{n:02d},000 --> 00:00:{n:02d},900\nword{n}\n" for n in range(9)]
    (tmp_path / "a.srt").write_text("\n".join(cues))
    data = folder_data(tmp_path, "text")
    rows = [data.encode(data.clip(window)) for window in windows(data)]
    assert text_of(row for row in rows if row is not None) == ["word0", "word1"]


def test_a_folder_is_searched_for_text_only_where_there_is_some(tmp_path, monkeypatch):
    write_sounds(tmp_path, 3)
    monkeypatch.setattr("datamodules.audiovisual.sidecar_text", None)
    folder_data(tmp_path)


def test_the_vocabulary_comes_from_training_windows_alone(tmp_path):
    write_sound(tmp_path / "a.wav", 4.0)
    (tmp_path / "a.txt").write_text("aaaa bbbb cccc dddd eeee ffff gggg hhhh")
    data = folder_data(tmp_path, "text", "audio", text=TextTokens(kind="bpe", vocab_size=280))
    assert data.codecs.text.is_fitted
    train = " ".join(data.corpus()).split()
    said = text_of(all_documents(data.documents("train")), data.codecs.text)
    assert train == " ".join(said).split() == "aaaa bbbb cccc dddd eeee ffff".split()


# The split


def test_a_new_name_or_a_copy_does_not_move_a_file(tmp_path):
    (tmp_path / "one").mkdir()
    paths = write_sounds(tmp_path / "one", 12, 0.5)
    before = {content_hash(p): s for p, s in split_of(folder_data(tmp_path, "audio")).items()}
    assert set(before.values()) == set(SPLITS)
    for n, path in enumerate(paths):
        shutil.copy(path, tmp_path / f"copy of {n}.wav")
        path.rename(tmp_path / f"{97 - n}.wav")
    after = split_of(folder_data(tmp_path, "audio"))
    assert len(after) == 24
    assert all(before[content_hash(path)] == split for path, split in after.items())


def test_a_growing_folder_never_holds_out_what_it_trained_on(tmp_path):
    trained: set[str] = set()
    for n in range(3, 30):
        write_sounds(tmp_path, n, 0.3)
        split = split_of(folder_data(tmp_path, "audio"))
        held_out = {content_hash(path) for path, name in split.items() if name != "train"}
        assert not trained & held_out
        trained |= {content_hash(path) for path, name in split.items() if name == "train"}
        assert set(split.values()) == set(SPLITS)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.45])
def test_split_by_hash(share):
    """No split is empty; one that trained stays, unless everything was below the threshold."""
    draw = random.Random(share)
    counts = {"train": 0, "val": 0, "test": 0}
    for _ in range(100):
        hashes = [f"{draw.getrandbits(256):064x}" for _ in range(40)]
        trained: set[str] = set()
        for n in range(3, 41):
            names = split_by_hash(hashes[:n], share)
            assert set(names) == set(counts)
            now = {h for h, name in zip(hashes, names, strict=False) if name == "train"}
            if all(int(h[:16], 16) / 16**16 < 2 * share for h in hashes[:n]):
                continue
            assert trained <= now
            trained = now
        for name in names:
            counts[name] += 1
    assert counts["test"] / 4000 == pytest.approx(max(share, 1 / 40), abs=0.03)
    assert counts["val"] / 4000 == pytest.approx(max(share, 1 / 40), abs=0.03)


def test_equal_contents_share_a_split():
    hashes = [f"{n % 5}" + 63 * "7" for n in range(20)]
    names = split_by_hash(hashes, 0.1)
    assert {h: n for h, n in zip(hashes, names, strict=True)} == dict(
        zip(hashes, names, strict=True)
    )
    assert len({(h, n) for h, n in zip(hashes, names, strict=True)}) == 5


@pytest.mark.parametrize("files", [1, 2])
def test_of_fewer_than_three_files_the_last_windows_are_held_out(tmp_path, files):
    write_sounds(tmp_path, files, 4.0)
    data = folder_data(tmp_path, "audio")
    starts = {s: sorted({w.start_s for w in data.documents(s).windows}) for s in SPLITS}
    assert starts == {"train": [0, 0.5, 1, 1.5, 2, 2.5], "val": [3.0], "test": [3.5]}


def test_three_copies_of_one_file_are_one_file(tmp_path):
    [path] = write_sounds(tmp_path, 1, 4.0)
    for n in range(2):
        shutil.copy(path, tmp_path / f"copy{n}.wav")
    data = folder_data(tmp_path, "audio")
    spans = {s: {w.start_s for w in data.documents(s).windows} for s in SPLITS}
    assert not spans["train"] & (spans["val"] | spans["test"])


@pytest.mark.parametrize("files", [1, 2, 3])
def test_files_of_one_window(tmp_path, files):
    write_sounds(tmp_path, files, 0.4)
    data = folder_data(tmp_path, "audio")
    assert all(len(data.documents(split)) >= 1 for split in SPLITS)
    assert all(isinstance(r, Batch) for s in SPLITS for r in all_documents(data.documents(s)))


def test_the_hash_is_of_the_content(tmp_path):
    one, two = write_sounds(tmp_path, 2)
    assert content_hash(one) != content_hash(two)
    shutil.copy(one, tmp_path / "x.bin")
    os.utime(tmp_path / "x.bin", (0, 0))
    assert content_hash(tmp_path / "x.bin") == content_hash(one)
    long = tmp_path / "long.bin"
    long.write_bytes(b"a" * 300_000)
    before = content_hash(long)
    long.write_bytes(b"a" * 300_001)
    assert content_hash(long) != before


def test_a_single_file_is_a_folder_of_one(tmp_path):
    path = write_video(tmp_path / "a.mp4", 1.5)
    write_video(tmp_path / "b.mp4", 1.5, 1)
    data = folder_data(path)
    assert {w.path for w in windows(data)} == {path}
    assert probe(path).duration_s == pytest.approx(windows(data)[0].info.duration_s)
