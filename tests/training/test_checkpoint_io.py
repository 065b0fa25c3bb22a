"""Writing and finding checkpoints: what stands on the disk at every moment."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmpredict.training import checkpoint_io
from mmpredict.training.checkpoint import (
    DamagedCheckpoint,
    check_hash,
    hashes_path,
    locate,
    newest,
    read,
)
from mmpredict.training.checkpoint_io import VerifiedCheckpointIO, keep_as, put, seal, shift, write


def content(step: int) -> dict:
    return {"global_step": step, "state_dict": {"w": torch.full((300,), float(step))}}


def step_of(path: Path) -> int:
    return read(path)["global_step"]


def test_what_is_written_is_read_and_can_be_checked_by_other_tools(tmp_path: Path):
    path = tmp_path / "deep" / "last.ckpt"
    VerifiedCheckpointIO().save_checkpoint(content(3), path)
    found = VerifiedCheckpointIO().load_checkpoint(path)
    assert torch.equal(found["state_dict"]["w"], content(3)["state_dict"]["w"])
    assert {p.name for p in path.parent.iterdir()} == {"last.ckpt", "last.ckpt.sha256"}
    check = ["sha256sum", "-c", "last.ckpt.sha256"]
    assert subprocess.run(check, cwd=path.parent, capture_output=True).returncode == 0
    VerifiedCheckpointIO().remove_checkpoint(path)
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("call", ["replace", "fsync", "write", "unlink"])
def test_whatever_fails_while_replacing_there_is_a_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
):
    """Stopped at each system call in turn, as by a kill: no clean-up runs."""
    path = tmp_path / "last.ckpt"
    for stop_at in range(1, 12):
        monkeypatch.undo()
        write(content(1), path)
        calls = 0
        real = getattr(os, call)

        def dies(*args, real=real, stop_at=stop_at, **settings):
            nonlocal calls
            calls += 1
            if calls >= stop_at:
                raise MemoryError  # nothing below catches this
            return real(*args, **settings)

        monkeypatch.setattr(os, call, dies)
        try:
            write(content(2), path)
        except MemoryError:
            pass
        monkeypatch.undo()
        assert check_hash(path)
        assert step_of(path) in (1, 2)
        if calls < stop_at:
            return
    assert call == "write", "not every place was tried"


def test_a_disk_that_changes_bytes_is_noticed_before_the_old_file_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "last.ckpt"
    write(content(1), path)
    real = checkpoint_io._crc_on_disk
    monkeypatch.setattr(checkpoint_io, "_crc_on_disk", lambda p: (real(p)[0] ^ 1, real(p)[1]))
    with pytest.raises(OSError, match="does not give back"):
        write(content(2), path)
    assert step_of(path) == 1 and not list(tmp_path.glob("*.part"))


def test_a_disk_without_room_is_refused_before_it_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Usage:
        free = 1000

    monkeypatch.setattr(checkpoint_io.shutil, "disk_usage", lambda folder: Usage)
    with pytest.raises(OSError) as refused:
        write(content(1), tmp_path / "last.ckpt")
    assert refused.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())


def test_the_size_counts_shared_memory_once():
    weight = torch.zeros(100)
    assert checkpoint_io.size_of({"a": weight, "b": [weight[:50]], "c": ({"d": 1},)}) == 400


def test_older_ones_move_on_and_the_newest_is_found(tmp_path: Path):
    last, previous, new = (tmp_path / f"{n}.ckpt" for n in ("last", "previous", "next"))
    for step in (1, 2, 3):
        write(content(step), new)
        assert step_of(tmp_path) == step
        if last.exists():
            keep_as(last, previous)
        shift(new, last)
        assert newest(tmp_path) == (last, [])
    assert (step_of(last), step_of(previous)) == (3, 2)
    assert check_hash(last) and check_hash(previous)
    assert len(list(tmp_path.iterdir())) == 4


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[700] ^= 4
    path.write_bytes(data)


def test_damaged_ones_are_passed_over_by_name(tmp_path: Path, capsys):
    ckpt = tmp_path / "ckpt"
    for name, step in (("previous", 1), ("last", 2)):
        write(content(step), ckpt / f"{name}.ckpt")
    (ckpt / "next.ckpt").write_bytes(b"PK no archive")
    damage(ckpt / "last.ckpt")
    assert locate(tmp_path) == ckpt / "previous.ckpt"
    said = capsys.readouterr().out
    assert "last.ckpt" in said and "next.ckpt" in said and said.count("passed over") == 2
    with pytest.raises(DamagedCheckpoint, match="last.ckpt"):
        read(ckpt / "last.ckpt")
    damage(ckpt / "previous.ckpt")
    with pytest.raises(FileNotFoundError, match="no whole checkpoint.*previous.ckpt"):
        locate(tmp_path)


def test_a_note_of_hashes_that_is_damaged_is_no_free_pass(tmp_path: Path):
    write(content(1), tmp_path / "last.ckpt")
    hashes_path(tmp_path / "last.ckpt").write_text("")
    with pytest.raises(DamagedCheckpoint, match="sha256"):
        read(tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("https://host/x.ckpt", "is a URL"),
        ("s3://bucket/x.ckpt", "is a URL"),
        ("none.ckpt", "does not exist"),
        (".", "no whole checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, monkeypatch, path: str, error: str):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=error):
        read(path)
    if "://" in path:
        with pytest.raises(ValueError, match=error):
            write(content(1), path)


def sharded(folder: Path, step: int) -> Path:
    """Looks as what two devices write."""
    folder.mkdir(parents=True)
    for rank in range(2):
        (folder / f"__{rank}_0.distcp").write_bytes(bytes([step, rank]) * 100)
    torch.save({"global_step": step}, folder / "meta.pt")
    return folder


def test_folders_of_shards_are_sealed_moved_and_checked(tmp_path: Path):
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    for step in (1, 2, 3):
        part = sharded(tmp_path / "next.ckpt.part", step)
        checkpoint_io.settle(part, tmp_path / "next.ckpt")
        if last.exists():
            keep_as(last, previous)
        shift(tmp_path / "next.ckpt", last)
    assert (step_of(last), step_of(previous)) == (3, 2)
    assert check_hash(last) and check_hash(previous)
    (last / "__1_0.distcp").write_bytes(b"else")
    assert newest(tmp_path)[0] == previous
    (previous / "__0_0.distcp").unlink()
    with pytest.raises(DamagedCheckpoint, match="lacks __0_0.distcp"):
        check_hash(previous)


def test_a_folder_gives_way_to_a_file_and_the_reverse(tmp_path: Path):
    last = sharded(tmp_path / "last.ckpt", 1)
    write(content(2), last)
    assert last.is_file() and step_of(last) == 2
    part = sharded(tmp_path / "x.part", 3)
    put(part, last, seal(part))
    assert last.is_dir() and step_of(last) == 3 and check_hash(last)
    assert not list(tmp_path.glob("*.part"))


def test_leftovers_are_swept(tmp_path: Path):
    sharded(tmp_path / "next.ckpt.part", 1)
    write(content(1), tmp_path / "last.ckpt")
    (tmp_path / "last.ckpt.part").write_bytes(b"half")
    assert checkpoint_io.sweep(tmp_path) == ["last.ckpt.part", "next.ckpt.part"]
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_is_held_in_memory_twice(tmp_path: Path):
    """Of 200 MB, less than a tenth above what was held before; in a process of its own."""
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1])\n"
        "from mmpredict.training.checkpoint_io import write\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(x.split()[1]) for x in lines if x.startswith('VmHWM')) / 1024\n"
        "weights = [torch.ones(1000, 2500) for _ in range(20)]\n"
        "write({'few': torch.ones(9)}, sys.argv[2])\n"
        "before = peak(); write({'w': weights}, sys.argv[2]); print(peak() - before)\n"
    )
    if not Path("/proc/self/status").is_file():
        pytest.skip("no /proc")
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", code, root, str(tmp_path / "x.ckpt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) < 20
