"""Two processes and one run folder: the second is refused, and the first is not disturbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmpredict import cli, lightning_cli, run_folder
from tests.faults import runs
from tests.test_lightning_cli import RECIPE, STAND_INS

HOLD = """
import sys, time
from pathlib import Path
from mmpredict import run_folder
run_folder.lock(Path(sys.argv[1]))
if sys.argv[2] == "fork":
    import os
    if os.fork() == 0:  # as a loader's worker, which outlives its parent for a moment
        time.sleep(30)
        os._exit(0)
print("locked", flush=True)
time.sleep(60)
"""


def holder(folder: Path, kind: str = "plain", **env: str) -> subprocess.Popen[str]:
    """A process that has the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), kind],
        stdout=subprocess.PIPE,
        text=True,
        cwd=runs.ROOT,
        env={**os.environ, **env},
        start_new_session=True,
    )
    assert process.stdout.readline() == "locked\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def attempt(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from pathlib import Path; from mmpredict import run_folder\n"
    code += "run_folder.lock(Path(sys.argv[1]))"
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        cwd=runs.ROOT,
        env={**os.environ, **env},
        check=False,
        timeout=60,
    )


def test_the_second_process_is_refused_and_told_who_was_first(tmp_path):
    first = holder(tmp_path)
    try:
        refused = attempt(tmp_path)
        assert refused.returncode == 1
        assert f"is in use by process {first.pid} on " in refused.stderr
        assert "--run_dir" in refused.stderr
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == first.pid  # not written over
    finally:
        end(first)
    assert attempt(tmp_path).returncode == 0


def test_a_lock_goes_with_its_process_even_if_a_worker_lives_on(tmp_path):
    first = holder(tmp_path, "fork")
    end(first)
    try:
        assert attempt(tmp_path).returncode == 0
    finally:
        os.killpg(first.pid, 9)


def test_a_note_of_a_dead_process_is_no_lock(tmp_path):
    note = {"pid": os.getpid(), "host": "elsewhere", "since": "yesterday"}
    (tmp_path / ".lock").write_text(json.dumps(note))
    assert attempt(tmp_path).returncode == 0
    (tmp_path / ".lock").write_text("\x00 not json")
    assert attempt(tmp_path).returncode == 0


def test_ranks_of_one_run_share_the_lock_of_the_first(tmp_path):
    first = holder(tmp_path, RANK="0", LOCAL_RANK="0")
    try:
        assert attempt(tmp_path, LOCAL_RANK="1").returncode == 0
        assert attempt(tmp_path, RANK="4", LOCAL_RANK="0").returncode == 0
        assert attempt(tmp_path, RANK="0", LOCAL_RANK="0").returncode == 1
    finally:
        end(first)


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """Runs `mmpredict fit` on a model of one number, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(lightning_cli, "default_callbacks", lambda run_dir: [])
    Path("stand_ins.py").write_text(STAND_INS)
    Path("small.yaml").write_text(RECIPE)

    def run(*words: str) -> int:
        return cli.main(["fit", "--config", "small.yaml", "--allow-import", "stand_ins", *words])

    return run


def test_a_run_in_a_folder_in_use_ends_with_code_2_and_changes_nothing(fit, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("of the first")
    first = holder(folder)
    try:
        assert fit("--run_dir", "run") == 2
    finally:
        end(first)
    message = capsys.readouterr().err
    assert f"process {first.pid}" in message and len(message.splitlines()) <= 8
    assert {path.name for path in folder.iterdir()} == {".lock", "config.yaml"}
    assert (folder / "config.yaml").read_text() == "of the first"
    assert fit("--run_dir", "run") == 0  # and later it runs
    assert fit("--run_dir", "run") == 0  # again, in the same process


@pytest.mark.parametrize("error", [13, 30])
def test_a_folder_that_cannot_be_written_to_is_a_clear_mistake(error, fit, monkeypatch, capsys):
    real = os.open

    def refuse(path, *more, **named):
        if str(path).endswith(run_folder.LOCK):
            raise OSError(error, os.strerror(error), str(path))
        return real(path, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    assert fit("--run_dir", "run") == 2
    message = capsys.readouterr().err
    assert "run_dir run cannot be written to" in message and os.strerror(error) in message
    assert len(message.splitlines()) <= 8


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's rights are tried by the first user")
def test_the_rights_of_a_folder_are_respected(tmp_path):
    """What the system itself says to a user who may not write."""
    folder = tmp_path / "run"
    folder.mkdir(mode=0o555)
    code = (
        "import os, sys; from pathlib import Path; from mmpredict import run_folder\n"
        "os.setuid(65534)\n"
        "run_folder.lock(Path('run'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(runs.ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "ValueError: run_dir run cannot be written to: Permission denied" in done.stderr


def test_a_disk_without_locks_is_named_and_used(tmp_path, monkeypatch, capsys):
    import errno
    import fcntl

    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unknown)
    run_folder.lock(tmp_path)
    assert "knows no locks" in capsys.readouterr().out


def test_runs_of_one_second_do_not_share_a_folder(tmp_path, monkeypatch):
    """Also where the clock stands still, or jumps back."""
    monkeypatch.chdir(tmp_path)

    class Still(run_folder.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2001, 1, 1, tzinfo=tz)

    monkeypatch.setattr(run_folder, "datetime", Still)
    made = [run_folder.choose(None, "x", "the same settings") for _ in range(3)]
    assert len(set(made)) == 3 and all(folder.is_dir() for folder in made)


@pytest.mark.slow
def test_two_trainings_in_one_folder(tmp_path):
    """The second is refused while the first goes on to its end, as if alone."""
    first = runs.start(tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / ".lock").is_file() or not (tmp_path / "run/.lock").read_text():
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    code, _, said = runs.finish(runs.start(tmp_path))
    assert code == 2 and f"process {first.pid}" in said
    code, _, said = runs.finish(first)
    assert code == 0, said[-2000:]
