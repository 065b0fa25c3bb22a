"""F16 as a command, and the watchdog: nothing waits for ever, and what was waited for is named."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from datamodules import World
from mmpredict.training.watchdog import LOOKS, Watchdog
from tests.faults import runs
from tests.training import test_pretrain as tiny

TIMEOUT_S = 4.0


class Hangs(pl.Callback):
    """Waits for ever in one step, as a dead disk or a lost rank would have it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            threading.Event().wait()


class Barking(Watchdog):
    """Says that it would end the process."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(timeout_s)
        self.barks: list[str] = []

    def _bark(self) -> None:
        self.barks.append(self._where)
        self._end()


class Slow(pl.Callback):
    """Every step and every batch of a validation takes its time."""

    def on_train_batch_start(self, *_: Any) -> None:
        time.sleep(0.15)

    def on_validation_batch_start(self, *_: Any) -> None:
        time.sleep(0.15)


def test_beats_of_steps_and_validations_keep_it_quiet(tmp_path: Path):
    """The run takes longer than the time that is allowed between two beats."""
    dog = Barking(1.0)
    run = tiny.trainer(tmp_path, 6, dog, Slow(), limit_val_batches=2, val_check_interval=2)
    data = tiny.world()
    began = time.monotonic()
    run.fit(tiny.pretrain(data), datamodule=data)
    assert time.monotonic() - began > 1.0 and not dog.barks
    assert all(thread.name != "watchdog" for thread in threading.enumerate() if thread.is_alive())


def test_it_says_where_it_stood_still():
    dog = Barking(0.4)
    dog.on_train_start(None, None)
    dog.beat("in step 7")
    time.sleep(0.9)
    assert dog.barks == ["in step 7"]


def test_a_process_that_was_halted_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch):
    """The thread counts its own looks: one look, however late, is one look."""
    dog = Barking(LOOKS * 0.02)
    jumps = iter([0.0, 1e6, 2e6, 3e6])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    monkeypatch.setattr(time, "monotonic", lambda: next(jumps))
    dog.on_train_start(None, None)
    threading.Event().wait(0.1)
    dog._end()
    assert not dog.barks


def test_a_time_below_zero_is_refused_and_zero_is_off():
    with pytest.raises(ValueError, match="timeout_s=-1"):
        Watchdog(-1)
    dog = Watchdog(0)
    dog.on_train_start(None, None)
    assert dog._over is None


def test_it_works_where_stderr_is_no_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    dog = Barking(0.3)
    dog.on_train_start(None, None)
    time.sleep(0.8)
    assert dog.barks


@pytest.mark.slow
def test_a_step_that_hangs_ends_with_75_and_all_stacks(tmp_path: Path):
    settings = runs.recipe()
    settings["trainer"]["callbacks"] += [
        {"class_path": "tests.faults.test_hangs.Hangs", "init_args": {"step": 3}},
        {"class_path": "mmpredict.training.watchdog.Watchdog", "init_args": {"timeout_s": 8}},
    ]
    process = runs.start(tmp_path, settings=settings)
    code, _, err = runs.finish(process, 150)
    assert code == 75, err
    assert "nothing moved for 8 s, in step 4 (Watchdog.timeout_s)" in err
    assert "on_before_optimizer_step" in err and "Thread" in err
    assert len(runs.batches_of(tmp_path)) == 3


class Broken(World):
    """A world one of whose documents fails, dies or hangs in the worker that reads it."""

    def __init__(self, *, act: str = "raise", **settings: Any) -> None:
        super().__init__(**settings)
        self.act = act

    def documents(self, split: str) -> Any:
        found = super().documents(split)
        if split == "train":
            read = found.document

            def document(epoch: int, index: int) -> Any:
                if index == 5:
                    self._act()
                return read(epoch, index)

            found.document = document
        return found

    def _act(self) -> None:
        if self.act == "raise":
            raise ZeroDivisionError("a fault of the reading code")
        if self.act == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "words"),
    [
        ("raise", "ZeroDivisionError: a fault of the reading code"),
        ("die", "a process of the loader died while it read"),
        ("hang", "was silent for 4 s while it read"),
    ],
)
def test_f16_a_worker_that_fails_dies_or_hangs_ends_the_run_in_time(
    tmp_path: Path, act: str, words: str
):
    settings = runs.recipe()
    settings["data"]["class_path"] = "tests.faults.test_hangs.Broken"
    arguments = settings["data"]["init_args"]
    arguments["loading"] |= {"workers": 1, "timeout_s": TIMEOUT_S}
    arguments["act"] = act
    process = runs.start(tmp_path, settings=settings)
    code, _, err = runs.finish(process, 150)
    assert code in (1, 2) and words in err, (code, err[-2000:])
    assert "world/train/" in err
    time.sleep(5)
    assert not workers_of(tmp_path)


def workers_of(folder: Path) -> list[str]:
    """Processes that still work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve() == folder.resolve():
                found.append(process.name)
        except OSError:
            continue
    return found
