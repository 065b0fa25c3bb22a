"""Which files of a folder are held out: by content, none that trained, of few exactly enough."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from datamodules import AudioVisual
from datamodules.feed.split import FEW, split_by_hash, split_by_kind
from datamodules.files.headers import content_hash
from mmpredict.schema import Batch
from tests.datamodules.small import (
    STREAMS,
    VIDEO,
    all_documents,
    codecs,
    loading,
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


def split_of(data: AudioVisual) -> dict[Path, str]:
    return {source.path: s for s in SPLITS for source in data.documents(s).sources}


def starts(data: AudioVisual, split: str) -> list[float]:
    documents = data.documents(split)
    return sorted({documents.window(0, n).start_s for n in range(len(documents))})


def place(digest: str) -> float:
    return int(digest[:16], 16) / 16**16


def draw_hashes(draw: random.Random, count: int) -> list[str]:
    return [f"{draw.getrandbits(256):064x}" for _ in range(count)]


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


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.45])
def test_no_split_is_empty_and_what_trained_stays(share):
    """Above the threshold always; below it from FEW / share contents on."""
    draw = random.Random(share)
    counts = dict.fromkeys(SPLITS, 0)
    for _ in range(100):
        hashes = draw_hashes(draw, 40)
        trained: set[str] = set()
        for n in range(3, 41):
            names = split_by_hash(hashes[:n], share)
            assert set(names) == set(SPLITS)
            now = {h for h, name in zip(hashes, names, strict=False) if name == "train"}
            if all(place(h) < 2 * share for h in hashes[:n]):
                continue
            assert {h for h in trained if place(h) >= 2 * share} <= now
            if share * (n - 1) >= FEW:
                assert trained <= now
            trained = now
        for name in names:
            counts[name] += 1
    assert counts["test"] / 4000 == pytest.approx(max(share, 1 / 40), abs=0.03)
    assert counts["val"] / 4000 == pytest.approx(max(share, 1 / 40), abs=0.03)


@pytest.mark.parametrize("files", [3, 5, 10, 14, 20, 29])
def test_few_files_hold_out_no_more_than_needed(files):
    draw = random.Random(files)
    most = max(1, round(0.1 * files))
    for _ in range(200):
        names = split_by_hash(draw_hashes(draw, files), 0.1)
        assert 1 <= names.count("val") <= most and 1 <= names.count("test") <= most


def test_equal_contents_share_a_split():
    hashes = [f"{n % 5}" + 63 * "7" for n in range(20)]
    names = split_by_hash(hashes, 0.1)
    assert len({(h, n) for h, n in zip(hashes, names, strict=True)}) == 5


def test_each_kind_is_held_out():
    draw = random.Random(0)
    for _ in range(50):
        kinds = ["video"] * 4 + ["audio"] * 40 + ["text"]
        hashes = draw_hashes(draw, 45)
        names = split_by_kind(kinds, hashes, 0.1)
        found = set(zip(kinds, names, strict=True))
        assert {(k, s) for k in ("video", "audio") for s in SPLITS} <= found
        assert names[4:44] == split_by_hash(hashes[4:44], 0.1)
        assert (names[44] == "train") == (place(hashes[44]) >= 0.2)


def test_kinds_too_small_to_split_are_split_as_one():
    hashes = draw_hashes(random.Random(1), 4)
    assert split_by_kind("aabb", hashes, 0.1) == split_by_hash(hashes, 0.1)


def test_a_note_beside_the_films_is_not_the_validation(tmp_path):
    for n in range(6):
        write_video(tmp_path / f"{n}.mp4", 0.5, n)
    for n in range(8):
        (tmp_path / "note.txt").write_text(f"number {n}")
        data = folder_data(tmp_path)
        for split in ("val", "test"):
            rows = all_documents(data.documents(split))
            assert any(VIDEO in row.contents for row in rows)


@pytest.mark.parametrize("files", [1, 2])
def test_of_fewer_than_three_files_the_last_windows_are_held_out(tmp_path, files):
    write_sounds(tmp_path, files, 4.0)
    data = folder_data(tmp_path, "audio")
    assert starts(data, "train") == [0, 0.5, 1, 1.5, 2, 2.5]
    assert starts(data, "val") == [3.0] and starts(data, "test") == [3.5]


def test_three_copies_of_one_file_are_one_file(tmp_path):
    [path] = write_sounds(tmp_path, 1, 4.0)
    for n in range(2):
        shutil.copy(path, tmp_path / f"copy{n}.wav")
    data = folder_data(tmp_path, "audio")
    assert not set(starts(data, "train")) & {*starts(data, "val"), *starts(data, "test")}


@pytest.mark.parametrize("files", [1, 2, 3])
def test_files_of_one_window(tmp_path, files):
    write_sounds(tmp_path, files, 0.4)
    data = folder_data(tmp_path, "audio")
    assert all(len(data.documents(split)) >= 1 for split in SPLITS)
    assert all(isinstance(r, Batch) for s in SPLITS for r in all_documents(data.documents(s)))


def test_a_growing_folder_holds_out_nothing_above_the_threshold_that_trained(tmp_path):
    trained: set[str] = set()
    for n in range(3, 24):
        write_sound(tmp_path / f"s{n:02d}.wav", 0.3, n)
        write_sounds(tmp_path, 3, 0.3)
        split = split_of(folder_data(tmp_path, "audio"))
        held_out = {content_hash(path) for path, name in split.items() if name != "train"}
        assert all(place(digest) < 0.2 for digest in trained & held_out)
        trained |= {content_hash(path) for path, name in split.items() if name == "train"}
        assert set(split.values()) == set(SPLITS)


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
