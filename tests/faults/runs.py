"""Starts tiny trainings by command, as a user would, so that a test can hurt them from outside.

`fit(folder)` runs one to its end, `start(folder)` returns at once; `warm(folder)` is a start
without the seconds of importing, for tests that need many. What a run is trained on is written by
`tests.faults.spy.Spy` into `folder/spy.jsonl`; `batches_of` reads it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
STEPS = 20
LIMIT_S = 240  # of one run on a machine under load; a run takes some seconds


def recipe(steps: int = STEPS) -> dict[str, Any]:
    """Settings of a run of some seconds: sound, frames and words of the world, a flow head."""
    return {
        "seed_everything": 3,
        "trainer": {
            "max_steps": steps,
            "accelerator": "cpu",
            "val_check_interval": 10,
            "check_val_every_n_epoch": None,
            "limit_val_batches": 1,
            "limit_test_batches": 0,
            "num_sanity_val_steps": 1,
            "log_every_n_steps": 1,
            "gradient_clip_val": 1.0,
            "enable_progress_bar": False,
            "callbacks": [
                {"class_path": "tests.faults.spy.Spy", "init_args": {"log": "spy.jsonl"}},
                {
                    "class_path": "mmpredict.training.saving.Checkpoints",
                    "init_args": {"every_n_train_steps": 5},
                },
            ],
        },
        "model": {
            "class_path": "mmpredict.training.Pretrain",
            "init_args": {
                "predictor": {
                    "dim": 32,
                    "depth": 1,
                    "num_heads": 2,
                    "heads": {
                        "audio": {"dim": 32, "depth": 1, "draws": 1},
                        "video": {"dim": 32, "depth": 1, "draws": 1},
                    },
                },
                "eval_samples": 1,
                "sample_steps": 1,
            },
        },
        "data": {
            "class_path": "datamodules.World",
            "init_args": {
                "video": {"size": 16, "patch": 8, "fps": 8},
                "audio": {"sample_rate": 8000, "channels": 2, "num_mels": 8, "hops": 2},
                "text": {"kind": "bytes"},
                "train_scenes": 12,
                "val_scenes": 2,
                "test_scenes": 2,
                "loading": {"context_length": 320, "rows": 1, "statistics_documents": 2},
            },
        },
    }


def words(folder: Path, *more: str, settings: Mapping[str, Any] | None = None) -> list[str]:
    """The command `mmpredict fit` on a recipe in `folder`, writing to `folder/run`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings or recipe()))
    own = ["--config", "tiny.yaml", "--run_dir", "run", "--allow-import", "tests.faults"]
    return [sys.executable, "-m", "mmpredict", "fit", *own, *more]


def environment(**changes: str) -> dict[str, str]:
    """One thread, and this checkout first on the path."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **changes}


def start(
    folder: Path,
    *more: str,
    settings: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    **popen: Any,
) -> subprocess.Popen[str]:
    """Start a run; `more` are words of the command line, `popen` goes to subprocess.Popen."""
    return subprocess.Popen(
        words(folder, *more, settings=settings),
        cwd=folder,
        env=environment(**(env or {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **popen,
    )


WARM = multiprocessing.get_context("forkserver")


class Warm:
    """A run in a process of its own that found everything imported; stdout and stderr in `said`."""

    def __init__(self, process: Any, said: Path) -> None:
        self.process, self.said = process, said

    def poll(self) -> int | None:
        return self.process.exitcode

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()

    def finish(self, limit_s: float = LIMIT_S) -> tuple[int, str]:
        """Exit code (minus the signal's number if it was killed) and what was said."""
        self.process.join(limit_s)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"the run hangs\n{self.said.read_text()[-3000:]}")
        return self.process.exitcode, self.said.read_text(errors="replace")


def warm(
    folder: Path,
    *more: str,
    settings: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    limit_bytes: int | None = None,
) -> Warm:
    """Start `mmpredict fit` in a fresh process forked from one that has imported everything.

    Args:
        limit_bytes: no file of the run may grow beyond (RLIMIT_FSIZE).
    """
    WARM.set_forkserver_preload(["tests.faults.imported"])
    command = words(folder, *more, settings=settings)[3:]
    said = folder / f"said-{sum(1 for _ in folder.glob('said-*'))}.txt"
    changes = {"OMP_NUM_THREADS": "1", **(env or {})}
    options = (str(folder), command, changes, str(said), limit_bytes)
    process = WARM.Process(target=_run, args=options)
    process.start()
    return Warm(process, said)


def _run(
    folder: str, command: list[str], env: dict[str, str], said: str, limit_bytes: int | None
) -> None:
    """In the new process."""
    os.chdir(folder)
    os.environ.update(env)
    tempfile.tempdir = None
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if limit_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    torch.set_num_threads(1)
    from mmpredict import cli

    code = 1
    try:
        code = cli.main(command)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(run: subprocess.Popen[str], limit_s: float = LIMIT_S) -> tuple[int, str, str]:
    """Wait for a started run: exit code, what it printed, and what it said on stderr."""
    try:
        out, err = run.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        run.kill()
        out, err = run.communicate()
        raise AssertionError(f"the run hangs\n{out[-2000:]}\n{err[-2000:]}") from None
    return run.returncode, out, err


def fit(folder: Path, *more: str, code: int = 0, **options: Any) -> tuple[str, str]:
    """Run to the end; what it printed on stdout and stderr. The exit code must be `code`."""
    found, out, err = finish(start(folder, *more, **options))
    assert found == code, f"exit code {found}\n{out[-2000:]}\n{err[-3000:]}"
    return out, err


def wait_until(
    true: Callable[[], bool], run: subprocess.Popen[str] | Warm, limit_s: float = LIMIT_S
) -> bool:
    """Look often until something is true of a run; False if the run was over before."""
    end = time.monotonic() + limit_s
    while not true():
        if run.poll() is not None:
            return bool(true())
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.001)
    return True


def batches_of(folder: Path, name: str = "spy.jsonl") -> dict[int, list[Any]]:
    """[step, documents, loss] by the number of the batch; a batch that was done again after a kill
    must have been the same again. A torn last line is dropped."""
    path = folder / name
    text = path.read_text() if path.is_file() else ""
    found: dict[int, list[Any]] = {}
    for line in text[: text.rfind("\n") + 1].splitlines():
        number, *seen = json.loads(line)
        assert found.setdefault(number, seen) == seen, f"batch {number} was another the next time"
    return found


def checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, read without our own code."""
    return torch.load(path, map_location="cpu", weights_only=True)


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of weights and moments that are not equal bit by bit."""
    names = [n for n, t in one["state_dict"].items() if not torch.equal(t, other["state_dict"][n])]
    for a, b in zip(one["optimizer_states"], other["optimizer_states"], strict=True):
        for index, state in a["state"].items():
            for name, value in state.items():
                if not torch.equal(
                    torch.as_tensor(value), torch.as_tensor(b["state"][index][name])
                ):
                    names.append(f"optimizer {index}.{name}")
    return names
