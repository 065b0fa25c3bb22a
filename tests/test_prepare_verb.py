"""`mmpredict prepare` at the front door: options, exit codes, kills, recipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmpredict.cli import main
from mmpredict.shards.index import INDEX_NAME, SkippedSource, read_index
from mmpredict.shards.members import clip_of_members
from mmpredict.shards.prepare import Summary
from mmpredict.shards.told import exit_code
from tests.shards.prepared import files_of, make_folder, wav

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--raw", "--size", "16", "--fps", "4", "--sample_rate", "8000", "--channels", "1"]
SMALL += ["--clip_seconds", "0.5", "--shard_bytes", "24000", "--workers", "2"]


def test_a_folder_with_one_command(tmp_path, capsys):
    make_folder(tmp_path / "in")
    out = tmp_path / "out"
    words = ["prepare", str(tmp_path / "in"), "--out", str(out), *SMALL]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "unreadable video 1" in said and "broken.mp4" in said and ".xlsx 1" in said
    before = files_of(out)
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["converted"], told["unchanged"], told["used"]) == (0, 6, 5)
    assert told["skipped"][0]["path"] == "broken.mp4"
    assert files_of(out) == before


def made(work):
    """How many spool files and waiting shards there are."""
    names = [name for _, _, names in os.walk(work) for name in names]
    return sum(name.endswith((".spool", ".tar")) for name in names)


@pytest.mark.slow
def test_killed_at_odd_moments_the_next_run_gives_the_same_bytes(tmp_path):
    make_folder(tmp_path / "in")
    for number in range(12):
        wav(tmp_path / "in" / f"more{number}.wav", 1.0, number)
    words = [sys.executable, "-m", "mmpredict", "prepare", str(tmp_path / "in"), *SMALL, "--out"]
    out = tmp_path / "out"
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for kind in (signal.SIGKILL, signal.SIGINT):
        before = made(out / ".prepare")
        run = subprocess.Popen([*words, str(out)], **quiet)
        while made(out / ".prepare") <= before and run.poll() is None:
            time.sleep(0.005)
        run.send_signal(kind)
        code = run.wait(20)
        assert not (out / INDEX_NAME).exists() and not list(out.glob("*.tar"))
        assert code == (-signal.SIGKILL if kind == signal.SIGKILL else 130)
    assert main(["prepare", str(tmp_path / "in"), *SMALL, "--out", str(out)]) == 0
    assert main(["prepare", str(tmp_path / "in"), *SMALL, "--out", str(tmp_path / "f")]) == 0
    assert files_of(out) == files_of(tmp_path / "f")


@pytest.mark.slow
def test_the_documents_of_a_recipe_become_samples(tmp_path, capsys):
    words = ["prepare", "--config", str(ROOT / "recipes" / "smoke.yaml"), "--out"]
    words += [str(tmp_path / "out"), "--split", "train,val", "--epochs", "2", "--workers", "2"]
    words += ["--set", "data.train_scenes=3", "--set", "data.val_scenes=2"]
    assert main(words) == 0
    index = read_index(tmp_path / "out")
    assert [s.split for s in index.samples] == ["train"] * 6 + ["val"] * 2
    from mmpredict.prepare_verb import build_data

    module, _ = build_data(["--config", words[2], *(f"--{w}" for w in words[-3::2])])
    for number, (split, epoch, place) in ((4, ("train", 1, 1)), (7, ("val", 0, 1))):
        sample = index.samples[number]
        data = (tmp_path / "out" / index.shards[sample.shard].name).read_bytes()
        members = {m.suffix: data[m.offset : m.offset + m.size] for m in sample.members}
        stored = clip_of_members(members, "s")
        direct = module.documents(split).clip(epoch, place)
        assert stored.texts == direct.texts
        assert (stored.frames_TCHW is None) == (direct.frames_TCHW is None)
        if direct.frames_TCHW is not None:
            assert stored.frames_TCHW.equal(direct.frames_TCHW)
            assert stored.times_s.equal(direct.times_s)
        if direct.waveform_CS is not None:
            assert (stored.waveform_CS - direct.waveform_CS).abs().max() <= 0.5 / 32768 + 1e-7
    before = files_of(tmp_path / "out")
    assert main(words) == 0 and files_of(tmp_path / "out") == before
    capsys.readouterr()
    assert main([*words, "--set", "data.seed=7"]) == 2
    assert "was prepared with recipe=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--out"),
        (["--out", "o"], "either a SOURCE"),
        (["nowhere", "--out", "o"], "does not exist"),
        (["http://example.org/a.mp4", "--out", "o"], "download it first"),
        ([".", "--out", "o", "--fps", "0"], "--fps 0.0 must be above 0"),
        ([".", "--out", "o", "--size", "30"], "30x30 is not a multiple of --patch 8"),
        ([".", "--out", "o", "--raw", "--encode"], "not allowed with"),
        ([".", "--out", "o", "--raw", "--trust"], "--trust is for --keep"),
        ([".", "--out", "o", "--text", "no.json"], "neither 'bytes' nor"),
        ([".", "--out", "o", "--set", "data.seed=1"], "are for --config"),
        (["--config", "smoke", "--out", "o", "--fps", "5"], "--fps has no effect"),
        (["--config", "smoke", "--out", "o", "--split", "dev"], "choose of train,val,test"),
        (["--config", "smok", "--out", "o"], "smok"),
        ([".", "--out", "o", "--max_skipped", "2"], "in 0..1"),
    ],
)
def test_mistakes_are_answered_in_a_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) < 9
    assert not (tmp_path / "o").exists()


def test_too_many_bad_sources_end_with_2_and_the_list(tmp_path, capsys):
    root = tmp_path / "in"
    root.mkdir()
    (root / "note.txt").write_text("words")
    for number in range(3):
        (root / f"bad{number}.wav").write_bytes(b"nothing")
    assert main(["prepare", str(root), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert "3 of 4 sources" in said.err and "bad2.wav" in said.out
    assert read_index(tmp_path / "out").sources[0].path == "note.txt"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["prepare", str(empty), "--out", str(tmp_path / "o")]) == 2
    assert "holds no video" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("bad", "total", "samples", "share", "code"),
    [
        (0, 9, 9, 0.05, 0),
        (4, 9, 9, 0.05, 0),
        (5, 9, 9, 0.05, 2),
        (5, 9, 9, 1.0, 0),
        (10, 300, 9, 0.05, 0),
        (16, 300, 9, 0.05, 2),
        (1, 1, 0, 1.0, 2),
    ],
)
def test_how_many_bad_sources_are_too_many(bad, total, samples, share, code):
    skipped = tuple(SkippedSource(f"{n}.wav", "unreadable", "why", "audio") for n in range(bad))
    summary = Summary(sources=total, samples=samples, skipped=skipped)
    assert exit_code(summary, share)[0] == code


def test_help_needs_no_torch():
    code = "import sys; from mmpredict.cli import main; main(['prepare', '--help']); "
    code += "assert 'torch' not in sys.modules"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0 and b"--encode" in done.stdout
