"""F5, F6 and F24's signals: a run that is told to leave saves what it has, and leaves."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import SLURMEnvironment

from mmpredict.schema import Stop
from mmpredict.training.randomness import Randomness
from mmpredict.training.saving import Checkpoints
from mmpredict.training.signals import Signals
from tests.faults import runs
from tests.training import test_pretrain as tiny

SOON_S = 10.0  # from a signal to the end of a small run
TERM, USR1, INT = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT


class SignalAt(pl.Callback):
    """Sends this very process a signal inside a step, or inside a validation."""

    def __init__(self, number: int, step: int, where: str = "step") -> None:
        self.number, self.step, self.where, self.sent = number, step, where, False

    def _send(self, trainer: pl.Trainer, where: str) -> None:
        if trainer.global_step == self.step and where == self.where and not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.number)
            time.sleep(0.01)

    def on_before_optimizer_step(self, trainer: pl.Trainer, *_: Any) -> None:
        self._send(trainer, "step")

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self._send(trainer, "validation")


def run(folder: Path, *extra: pl.Callback, ckpt: Path | None = None, **settings: Any) -> Any:
    """A training of 6 steps that validates every 3, to its end or to a Stop."""
    pl.seed_everything(0)
    data = tiny.world()
    model = tiny.pretrain(data, ema=0.9)
    own = [] if any(isinstance(c, Signals) for c in extra) else [Signals()]
    callbacks = [Randomness(), *own, *extra, Checkpoints(folder / "ckpt")]
    trainer = pl.Trainer(
        default_root_dir=folder,
        max_steps=6,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=2,
        callbacks=callbacks,
        val_check_interval=3 * settings.get("accumulate_grad_batches", 1),
        check_val_every_n_epoch=None,
        **settings,
    )
    handlers = [signal.getsignal(number) for number in (TERM, USR1, INT)]
    try:
        trainer.fit(model, datamodule=data, ckpt_path=ckpt and str(ckpt), weights_only=True)
    finally:
        if "plugins" not in settings:  # Lightning puts back later what it has found
            assert [signal.getsignal(number) for number in (TERM, USR1, INT)] == handlers
    return model


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Whatever a test leaves behind, the next begins with the usual handlers."""
    before = [(number, signal.getsignal(number)) for number in (TERM, USR1, INT)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return run(tmp_path_factory.mktemp("whole")).state_dict()


@pytest.mark.parametrize(
    ("number", "step", "where", "code"),
    [
        (TERM, 1, "step", 143),
        (USR1, 3, "step", 143),
        (INT, 4, "step", 130),
        (TERM, 2, "step", 143),  # a validation follows
        (TERM, 3, "validation", 143),
    ],
)
def test_f5_a_signal_ends_a_step_and_the_run_goes_on_bit_by_bit(
    tmp_path: Path, whole: dict[str, Any], number: int, step: int, where: str, code: int
):
    with pytest.raises(Stop, match=f"{signal.Signals(number).name} behind step .*--ckpt_") as stop:
        run(tmp_path, SignalAt(number, step, where))
    assert stop.value.code == code
    saved = torch.load(tmp_path / "ckpt/last.ckpt", weights_only=True)
    assert saved["global_step"] == (step + 1 if where == "step" else step)
    again = run(tmp_path, ckpt=tmp_path / "ckpt/last.ckpt").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_a_gathering_of_gradients_is_finished_first(tmp_path: Path):
    """The signal falls into the first of two micro-batches."""

    class First(SignalAt):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            self._send(trainer, "step")

        def on_before_optimizer_step(self, *_: Any) -> None:
            pass

    with pytest.raises(Stop, match="behind step 2"):
        run(tmp_path, First(TERM, 1), accumulate_grad_batches=2)
    assert torch.load(tmp_path / "ckpt/last.ckpt", weights_only=True)["global_step"] == 2


def test_signals_are_somebody_else_s_before_and_after(tmp_path: Path):
    told = []
    before = signal.signal(USR1, lambda *_: told.append("mine"))
    try:
        signals = Signals()
        run(tmp_path, signals)
        signals.receive(USR1, None)  # as if Lightning had put ours back
        assert told == ["mine"] and signal.getsignal(USR1) != signals.receive
    finally:
        signal.signal(USR1, before)


def test_a_trainer_in_a_thread_works_without_handlers(tmp_path: Path):
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(run(tmp_path)))
    thread.start()
    thread.join(120)
    assert done


def test_slurm_s_requeueing_is_lightning_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its signal reaches Lightning's handler: save, and `scontrol requeue`."""
    called: list[Any] = []
    from pytorch_lightning.trainer.connectors import signal_connector

    monkeypatch.setattr(signal_connector, "call", lambda words, **_: called.append(words) or 0)
    for name, value in {"JOB_ID": "77", "NTASKS": "1", "LOCALID": "0", "PROCID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    run(tmp_path, SignalAt(USR1, 2), plugins=[SLURMEnvironment(auto_requeue=True)])
    assert called == [["scontrol", "requeue", "77"]]
    with pytest.raises(Stop, match="SIGTERM behind step 2"):
        run(tmp_path / "b", SignalAt(TERM, 1), plugins=[SLURMEnvironment(auto_requeue=True)])


# -- by command ------------------------------------------------------------------------------------


def slow(settings: dict[str, Any], seconds: float) -> dict[str, Any]:
    settings["trainer"]["callbacks"][0]["init_args"]["slow"] = seconds
    return settings


def ended(process: Any, numbers: list[int], code: int, limit_s: float = SOON_S) -> str:
    """Send signals; the run must end in time with this code. What it said."""
    began = time.monotonic()
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.2)
    found, out, err = runs.finish(process, 60)
    took = time.monotonic() - began
    assert found == code, (found, out, err)
    assert "Traceback" not in err and len(err.splitlines()) <= 5, err
    assert took < limit_s, f"{took:.1f} s"
    return err


@pytest.mark.slow
def test_f5_once_by_command_and_on(tmp_path: Path):
    process = runs.start(tmp_path, settings=slow(runs.recipe(), 0.2))
    runs.wait_until(lambda: len(runs.batches_of(tmp_path)) >= 2, process)
    err = ended(process, [TERM], 143, 2 * SOON_S)  # the machine is shared
    assert "stopped: SIGTERM behind step" in err and "--ckpt_path run/ckpt/last.ckpt" in err
    step = runs.checkpoint(tmp_path / "run/ckpt/last.ckpt")["global_step"]
    assert step == len(runs.batches_of(tmp_path)) >= 2
    runs.fit(tmp_path, "--ckpt_path", "run/ckpt/last.ckpt")
    assert len(runs.batches_of(tmp_path)) == 20  # none twice, none left out


@pytest.mark.slow
def test_f5_twice_leaves_at_once(tmp_path: Path):
    settings = runs.recipe()
    settings["data"]["init_args"]["loading"]["workers"] = 2
    process = runs.start(tmp_path, settings=slow(settings, 30.0))
    runs.wait_until(lambda: len(runs.batches_of(tmp_path)) >= 1, process)
    err = ended(process, [TERM, TERM], 143, 5.0)
    assert "SIGTERM: left at once; nothing was saved" in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [TERM, INT])
@pytest.mark.parametrize("after_s", [0.5, 2.0])
def test_f6_while_starting(tmp_path: Path, number: int, after_s: float):
    process = runs.start(tmp_path)
    time.sleep(after_s)
    process.send_signal(number)
    code, out, err = runs.finish(process, 60)
    assert code in ((143, -TERM) if number == TERM else (130, -INT)), (code, err)
    assert len(err.splitlines()) <= 5 and "Traceback" not in err, err
    assert code < 0 or "no step to save" in err or "nothing to save" in err


@pytest.mark.slow
def test_f6_while_sanity_checking(tmp_path: Path):
    class_path = "tests.faults.test_signals.InSanityCheck"
    settings = runs.recipe()
    settings["trainer"]["callbacks"].append({"class_path": class_path})
    code, _, err = runs.finish(runs.start(tmp_path, settings=settings))
    assert code == 143 and "SIGTERM: left at once; nothing to save" in err
    assert len(err.splitlines()) <= 5 and not (tmp_path / "run/ckpt/last.ckpt").exists()


class InSanityCheck(pl.Callback):
    """Is told to leave in the check that comes before a training."""

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        assert trainer.sanity_checking
        os.kill(os.getpid(), TERM)
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["rank 0", "rank 1", "both"])
def test_f24_both_ranks_leave_behind_the_same_step(tmp_path: Path, whom: str):
    settings = slow(runs.recipe(40), 0.1)
    settings["trainer"] |= {"devices": 2, "strategy": "ddp", "val_check_interval": 200}
    process = runs.start(tmp_path, settings=settings)
    other = tmp_path / "spy.jsonl.1"
    runs.wait_until(lambda: other.is_file() and len(runs.batches_of(tmp_path)) >= 2, process, 120)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [pid for pid in children if b"fit" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    if whom != "rank 0":
        os.kill(int(ranks[0]), TERM)
    if whom != "rank 1":
        process.send_signal(TERM)
    code, _, err = runs.finish(process, 30)
    assert code == 143 and "stopped: SIGTERM behind step" in err, (code, err)
    assert "Traceback" not in err, err
    step = runs.checkpoint(tmp_path / "run/ckpt/last.ckpt")["global_step"]
    counts = [len(runs.batches_of(tmp_path, name)) for name in ("spy.jsonl", "spy.jsonl.1")]
    assert counts == [step, step]
