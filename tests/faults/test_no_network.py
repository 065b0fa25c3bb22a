"""A machine with next to nothing: no network, no system ffmpeg, no home, no shared memory. The
smallest recipe runs to its end there, and asks for none of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import runs

LIMIT_S = 900
WATCHER = """
import os, socket
LOCAL = (socket.AF_UNIX, getattr(socket, "AF_NETLINK", None))
def watched(name):
    real = getattr(socket.socket, name)
    def call(self, *words):
        if self.family not in LOCAL:
            with open(os.environ["CANARY"], "a") as file:
                file.write(f"{name} {words}\\n")
            raise OSError(101, "Network is unreachable")
        return real(self, *words)
    return call
for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, watched(name))
"""


def unshared(*flags: str) -> list[str]:
    """The words that give a command namespaces of its own; none where that is not allowed."""
    program = shutil.which("unshare")
    if program is None:
        return []
    command = [program, *flags]
    done = subprocess.run([*command, "true"], capture_output=True, check=False, timeout=30)
    return command if done.returncode == 0 else []


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment with nothing in it but Python; every use of the network leaves a line."""
    (tmp_path / "sitecustomize.py").write_text(WATCHER)
    programs = tmp_path / "bin"  # a shell and mount, no ffmpeg
    programs.mkdir()
    for name in ("sh", "mount"):
        (programs / name).symlink_to(shutil.which(name))
    return {
        "PATH": str(programs),
        "HOME": "/dev/null/home",  # cannot be made, not even by root
        "PYTHONPATH": f"{tmp_path}:{runs.ROOT}",
        "CANARY": str(tmp_path / "canary"),
        "OMP_NUM_THREADS": "1",
    }


def without_network(words: list[str], tmp_path: Path, env: dict[str, str]):
    """Run a command with no network, and with a /dev/shm that holds nothing, where the system
    lets us."""
    empty = tmp_path / "empty"
    empty.mkdir()
    hide = f'mount --bind {empty} /dev/shm && mount -o remount,bind,ro /dev/shm; exec "$0" "$@"'
    both, network = unshared("-n", "-m"), unshared("-r", "-n")
    command = [*both, shutil.which("sh"), "-c", hide, *words] if both else [*network, *words]
    return subprocess.run(
        command,
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def test_the_watcher_sees_what_is_asked_of_the_network(bare, tmp_path):
    code = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9/')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=bare, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 1 and "connect" in (tmp_path / "canary").read_text()


def test_there_is_no_ffmpeg_to_fall_back_on(bare):
    assert shutil.which("ffmpeg", path=bare["PATH"]) is None
    assert not os.access(bare["HOME"], os.W_OK)


@pytest.mark.slow
def test_the_smoke_recipe_runs_on_a_bare_machine(bare, tmp_path):
    words = [sys.executable, "-m", "mmpredict", "fit", "--config", "smoke", "--run_dir", "run"]
    done = without_network(words, tmp_path, bare)
    assert done.returncode == 0, (done.stdout[-1000:], done.stderr[-3000:])
    assert not (tmp_path / "canary").exists(), (tmp_path / "canary").read_text()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(results) >= {"video", "audio", "text"}
    assert (tmp_path / "run" / "report.html").is_file()
    assert any((tmp_path / "run" / "samples").iterdir())
    assert "left out" not in done.stderr, done.stderr[-2000:]  # a courtesy that failed


@pytest.mark.slow
def test_media_is_written_and_read_on_a_bare_machine(bare, tmp_path):
    """PyAV brings its own libraries."""
    code = (
        "from pathlib import Path\n"
        "from mmpredict import doctor_trial\n"
        "print(doctor_trial.media(Path('.')))\n"
    )
    done = without_network([sys.executable, "-c", code], tmp_path, bare)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "written and read" in done.stdout
