"""Preparing again: only what changed is made, and the bytes are always those of a fresh start.

The law of all tests here: whatever was there before, however often and wherever the work was
stopped, the shards and the index come out as a preparation into an empty folder makes them.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tarfile
from dataclasses import replace

import pytest

from mmpredict.schema import UserError
from mmpredict.shards import stage as stage_module
from mmpredict.shards.index import INDEX_NAME, IndexDamaged, read_index
from mmpredict.shards.known import WORK_NAME
from mmpredict.shards.sandbox import Verdict
from tests.shards.prepared import KEEP, RAW, InHouse, files_of, make_folder, prepared, video, wav


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "in")


def fresh(folder, tmp_path, settings=RAW):
    out = tmp_path / "fresh"
    shutil.rmtree(out, ignore_errors=True)
    prepared(folder, out, settings)
    return files_of(out)


class Refusing(InHouse):
    """No source may be worked on."""

    def submit(self, number, items):
        raise AssertionError(f"{[item['name'] for item in items]} are worked on again")


def test_nothing_changed_nothing_is_done(folder, tmp_path):
    prepared(folder, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("[0-9i]*")}
    again = prepared(folder, tmp_path / "out", sandbox=Refusing)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("[0-9i]*")}
    assert (again.converted, again.unchanged, again.bytes_copied) == (0, 6, 0)
    assert again.samples == len(read_index(tmp_path / "out").samples)


def test_touched_or_copied_sources_are_known_by_their_content(folder, tmp_path):
    prepared(folder, tmp_path / "out")
    before = files_of(tmp_path / "out")
    for path in folder.rglob("*.mp4"):
        os.utime(path, (1, 1))
    again = prepared(folder, tmp_path / "out")
    assert again.converted == 0 and files_of(tmp_path / "out") == before
    shutil.rmtree(tmp_path / "out" / WORK_NAME)  # nobody remembers times any more
    assert prepared(folder, tmp_path / "out").converted == 0
    prepared(folder, tmp_path / "out", sandbox=Refusing)  # now they are remembered again


def added(folder):
    video(folder / "aa.mp4", 1.0, 9)
    return 1


def removed(folder):
    (folder / "b.mp4").unlink()
    (folder / "b.srt").unlink()
    return 0


def changed(folder):
    wav(folder / "sub" / "tone.wav", 1.25, 8)
    return 1


def new_words(folder):
    (folder / "b.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nother words\n")
    return 1


def mended(folder):
    video(folder / "broken.mp4", 0.5, 4)
    return 1


def renamed(folder):
    (folder / "sub" / "tone.wav").rename(folder / "a first.wav")
    return 1


@pytest.mark.parametrize("settings", [RAW, KEEP], ids=["raw", "keep"])
@pytest.mark.parametrize("change", [added, removed, changed, new_words, mended, renamed])
def test_a_change_costs_what_changed_and_gives_the_bytes_of_a_fresh_start(
    change, settings, folder, tmp_path
):
    prepared(folder, tmp_path / "out", settings)
    expected = change(folder)
    summary = prepared(folder, tmp_path / "out", settings)
    assert summary.converted == expected
    assert files_of(tmp_path / "out") == fresh(folder, tmp_path, settings)


def test_the_number_of_workers_changes_no_byte(folder, tmp_path):
    prepared(folder, tmp_path / "one", workers=1)
    prepared(folder, tmp_path / "five", workers=5, items_per_job=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "five")


class Stopped(BaseException):
    """The power fails."""


def whole(out):
    """Every shard under its own name is a whole tar, and the index names only such."""
    for path in out.glob("*.tar"):
        with tarfile.open(path, "r:") as tar:
            tar.getmembers()
        assert path.read_bytes().endswith(bytes(1024))
    if (out / INDEX_NAME).exists():
        index = read_index(out)
        for shard in index.shards:
            assert (out / shard.name).stat().st_size == shard.bytes
            assert files_of(out)[shard.name] == shard.sha256


class FailingAt:
    """Counts what is done to files and folders, and stops everything at one step."""

    def __init__(self, limit, folder, patch):
        self.left, self.folder = limit, str(folder)
        for name in ("replace", "unlink", "open", "fsync"):
            patch.setattr(os, name, self.counting(name, getattr(os, name)))

    def counting(self, name, real):
        def call(first, *args, **kwargs):
            if name == "fsync" or str(first).startswith(self.folder):
                self.left -= 1
                if not self.left:
                    raise Stopped
            return real(first, *args, **kwargs)

        return call


@pytest.mark.parametrize("start", ["empty", "changed"])
def test_stopped_at_any_step_the_next_run_gives_the_same_bytes(start, tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    wav(folder / "b.wav", 2.0, 1)
    (folder / "c.txt").write_text("words")
    (folder / "d.mp4").write_bytes(b"no film")
    prepared(folder, tmp_path / "first", RAW)
    if start == "changed":
        wav(folder / "a.wav", 1.0, 2)
    expected = fresh(folder, tmp_path)
    limit, done = 0, False
    while not done:
        limit += 1 if limit < 10 else 2
        out = tmp_path / f"out{limit}"
        if start == "changed":
            shutil.copytree(tmp_path / "first", out)
        with monkeypatch.context() as patch:
            FailingAt(limit, out, patch)
            try:
                prepared(folder, out)
                done = True
            except Stopped:
                pass
        whole(out)
        prepared(folder, out)
        assert files_of(out) == expected, f"stopped at step {limit}"
        left = {path.name for path in (out / WORK_NAME).rglob("*")}
        assert left == {"lock", "seen.jsonl"}
        shutil.rmtree(out)
    assert limit > 15


def test_stopped_again_and_again_it_gets_there(folder, tmp_path, monkeypatch):
    """Each run makes one source more and is stopped; what was made is not made again."""
    made = []

    class Tired(InHouse):
        def next_done(self):
            if not self.waiting:
                raise AssertionError
            made.append(self.waiting[-1][1][0]["name"])
            if len(made) > len(set(made)):
                raise AssertionError(f"{made[-1]} is made again")
            result = super().next_done()
            self.last = result
            raise Stopped

    out = tmp_path / "out"
    for _ in range(6):
        with pytest.raises(Stopped):
            prepared(folder, out, sandbox=Tired, workers=1)
        assert not (out / INDEX_NAME).exists()
    prepared(folder, out, sandbox=Refusing)
    assert files_of(out) == fresh(folder, tmp_path)


def test_sources_that_change_while_stopped_are_made_again(folder, tmp_path):
    class Tired(InHouse):
        count = 0

        def next_done(self):
            self.count += 1
            if self.count == 6:
                raise Stopped
            return super().next_done()

    out = tmp_path / "out"
    small = replace(RAW, shard_bytes=9_000)
    with pytest.raises(Stopped):
        prepared(folder, out, small, sandbox=Tired, workers=1)
    changed(folder), new_words(folder), added(folder)
    with pytest.raises(Stopped):
        prepared(folder, out, small, sandbox=type("Later", (Tired,), {"count": 3}), workers=1)
    prepared(folder, out, small)
    assert files_of(out) == fresh(folder, tmp_path, small)


class Full(InHouse):
    """The disk is full when the third source is written."""

    jobs = 0

    def next_done(self):
        type(self).jobs += 1
        if self.jobs == 3:
            number, _ = self.waiting.pop()
            return number, Verdict("disk", "no space left")
        return super().next_done()


def test_a_full_disk_loses_nothing(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="no space left"):
        prepared(folder, out, sandbox=Full, workers=1)
    real = stage_module.Stage._write

    def full(self, name, pieces):
        if name == "000001.tar":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, name, pieces)

    monkeypatch.setattr(stage_module.Stage, "_write", full)
    with pytest.raises(UserError, match="No space left.*make room"):
        prepared(folder, out)
    monkeypatch.undo()
    prepared(folder, out)
    assert files_of(out) == fresh(folder, tmp_path)


def test_other_settings_are_refused_by_name(folder, tmp_path):
    prepared(folder, tmp_path / "out")
    before = files_of(tmp_path / "out")
    with pytest.raises(UserError, match="fps=4.0, and is now to be prepared with 5.0"):
        prepared(folder, tmp_path / "out", replace(RAW, fps=5.0))
    assert files_of(tmp_path / "out") == before

    class Dead(InHouse):
        def next_done(self):
            raise Stopped

    with pytest.raises(Stopped):
        prepared(folder, tmp_path / "half", sandbox=Dead)
    with pytest.raises(UserError, match="channels"):
        prepared(folder, tmp_path / "half", replace(RAW, channels=2))


def test_another_folder_into_the_same_shards_is_refused(folder, tmp_path):
    prepared(folder, tmp_path / "out")
    (tmp_path / "other").mkdir()
    wav(tmp_path / "other" / "z.wav", 0.5, 1)
    with pytest.raises(UserError, match="none of its 6"):
        prepared(tmp_path / "other", tmp_path / "out")


def test_a_missing_shard_is_made_again_and_a_damaged_one_named(folder, tmp_path):
    out = tmp_path / "out"
    prepared(folder, out)
    before = files_of(out)
    (out / "000001.tar").unlink()
    assert prepared(folder, out).converted > 0
    assert files_of(out) == before
    index = read_index(out)
    sample = next(sample for sample in index.samples if sample.shard == 1)
    with (out / "000001.tar").open("r+b") as file:
        file.seek(sample.members[-1].offset)
        file.write(b"\xff\x00\xff")
    added(folder)  # so that its samples have to move
    with pytest.raises(UserError, match="000001.tar.*sha256.*delete"):
        prepared(folder, out)
    (out / "000001.tar").unlink()
    prepared(folder, out)
    assert files_of(out) == fresh(folder, tmp_path)


def test_crashes_are_tried_again_and_broken_files_are_not(folder, tmp_path):
    class Crashing(InHouse):
        def next_done(self):
            if self.waiting[-1][1][0]["name"] == "b.mp4":
                number, _ = self.waiting.pop()
                return number, Verdict("crash", "its reader was ended by SIGSEGV")
            return super().next_done()

    first = prepared(folder, tmp_path / "out", sandbox=Crashing)
    assert {s.path: s.kind for s in first.skipped} == {
        "b.mp4": "crash",
        "broken.mp4": "unreadable",
    }
    again = prepared(folder, tmp_path / "out")
    assert again.converted == 1 and [s.path for s in again.skipped] == ["broken.mp4"]
    assert files_of(tmp_path / "out") == fresh(folder, tmp_path)


def test_a_job_of_several_blames_the_source_at_which_it_failed(folder, tmp_path):
    """And only after it has failed alone: what stood before it may have spoilt the process."""
    alone = []

    class Crashing(InHouse):
        def next_done(self):
            number, items = self.waiting.pop()
            names = [item["name"] for item in items]
            for bad in [name for name in names if name in ("b.mp4", "notes.txt")]:
                if bad == "notes.txt" and len(names) == 1:
                    break  # fails in company alone
                alone.extend(names if len(names) == 1 else ())
                for item in items[: names.index(bad)]:
                    self.open(self.context)(item, lambda: None)
                return number, Verdict("timeout", "took longer than 1 s")
            self.waiting.append((number, items))
            return super().next_done()

    summary = prepared(folder, tmp_path / "out", sandbox=Crashing, items_per_job=4)
    assert {s.path: s.kind for s in summary.skipped} == {
        "b.mp4": "timeout",
        "broken.mp4": "unreadable",
    }
    assert summary.used == 4 and alone == ["b.mp4"]


def test_two_at_a_time_in_one_folder_are_refused(folder, tmp_path):
    class Second(InHouse):
        def next_done(self):
            with pytest.raises(UserError, match="another"):
                prepared(folder, tmp_path / "out")
            return super().next_done()

    assert prepared(folder, tmp_path / "out", sandbox=Second).samples


def test_a_damaged_index_is_noticed(folder, tmp_path):
    prepared(folder, tmp_path / "out")
    path = tmp_path / "out" / INDEX_NAME
    data = path.read_bytes()
    middle = len(data) // 2
    for bad in (data[:-40], data[:middle], b"", b"{}\n", data.replace(b"raw", b"row", 1)):
        path.write_bytes(bad)
        with pytest.raises(IndexDamaged):
            read_index(tmp_path / "out")
    lines = data.splitlines(keepends=True)
    newer = json.loads(lines[0]) | {"version": 99}
    path.write_bytes(json.dumps(newer).encode() + b"\n" + b"".join(lines[1:]))
    with pytest.raises(UserError, match="version 99"):
        read_index(tmp_path / "out")
