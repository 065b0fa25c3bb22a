"""F20's deleted folder, and logs on a disk that is full: said once, and the training goes on."""

from __future__ import annotations

import csv
import errno
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from mmpredict.schema import UserError
from mmpredict.training import disk
from mmpredict.training.csv_log import AppendingCSVLogger, EventLogger, Writer
from mmpredict.training.saving import Checkpoints
from tests.training import test_pretrain as tiny


class Deletes(pl.Callback):
    """Somebody tidies up in mid-run."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.step = folder, step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            shutil.rmtree(self.folder)


def test_f20_a_deleted_folder_comes_back(tmp_path: Path):
    folder = tmp_path / "run"
    data = tiny.world()
    settings = {"save_dir": str(folder), "name": "", "version": ""}
    trainer = pl.Trainer(
        default_root_dir=folder,
        max_steps=8,
        accelerator="cpu",
        logger=[AppendingCSVLogger(**settings), EventLogger(**settings)],
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[Deletes(folder, 3), Checkpoints(folder / "ckpt", every_n_train_steps=2)],
    )
    trainer.logger._flush_logs_every_n_steps = 1
    trainer.fit(tiny.pretrain(data), datamodule=data)
    assert trainer.global_step == 8
    rows = list(csv.DictReader((folder / "metrics.csv").open(newline="")))
    assert {3, 4, 5, 6, 7} <= {int(row["step"]) for row in rows}
    assert list(folder.glob("events.*"))
    saved = torch.load(folder / "ckpt/last.ckpt", weights_only=True)
    assert saved["global_step"] == 8


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_rows_wait_for_room_and_none_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    logger = AppendingCSVLogger(str(tmp_path), name="", version="")
    logger.log_metrics({"a": 1.0}, step=0)
    logger.save()
    before = (tmp_path / "metrics.csv").read_bytes()

    write = csv.DictWriter.writerows

    def half(self: csv.DictWriter, rows: list[dict[str, Any]]) -> None:
        write(self, rows[:1])
        self.writer.writerow(["cut"])
        full()

    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="metrics.csv not written"):
        patch.setattr(csv.DictWriter, "writerows", half)
        logger.log_metrics({"a": 2.0}, step=1)
        logger.log_metrics({"a": 3.0}, step=2)
        logger.save()
    assert (tmp_path / "metrics.csv").read_bytes() == before
    logger.log_metrics({"a": 4.0}, step=3)
    logger.save()
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open(newline="")))
    assert [row["a"] for row in rows] == ["1.0", "2.0", "3.0", "4.0"]


def test_a_header_that_grows_on_a_full_disk_keeps_what_stood_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Lightning opens the file anew to write its header: on a full disk all rows are gone."""
    writer = Writer(str(tmp_path))
    writer.log_metrics({"a": 1.0}, 0)
    writer.save()
    before = (tmp_path / "metrics.csv").read_bytes()
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="No space left"):
        patch.setattr(csv.DictWriter, "writeheader", full)
        writer.log_metrics({"b": 2.0}, 1)
        writer.save()
    assert (tmp_path / "metrics.csv").read_bytes() == before
    writer.save()
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open(newline="")))
    assert [(row["a"], row.get("b")) for row in rows] == [("1.0", ""), ("", "2.0")]


def test_events_that_cannot_be_written_cost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    logger = EventLogger(str(tmp_path), name="", version="")
    logger.log_metrics({"a": 1.0}, 0)
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="events not written"):
        patch.setattr(logger.experiment, "add_scalar", full)
        logger.log_metrics({"a": 2.0}, 1)
    logger.log_metrics({"a": 3.0}, 2)
    logger.finalize("success")
    assert len(list(tmp_path.glob("events.*"))) >= 1
    with pytest.raises(ValueError, match="not supported"):  # a fault of ours is no fault of disks
        logger.log_metrics({"a": object()}, 3)


def test_a_warning_comes_once(tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for line in range(5):
            disk.append_line(blocked / "x.jsonl", str(line))
    assert len(told) == 1 and "x.jsonl not written" in str(told[0].message)


@pytest.mark.parametrize(
    ("free", "outcome"), [(2.9, "error"), (3.1, "warning"), (8.9, "warning"), (9.1, "")]
)
def test_room_is_looked_for_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, outcome: str
):
    """A model of 1 MB needs 3 MB for a checkpoint with AdamW's moments, and three of them."""
    module = nn.Linear(500, 500, bias=False)
    size = disk.checkpoint_size(module)
    assert size == 3 * 4 * 500 * 500
    usage = SimpleNamespace(free=int(free / 3 * size))
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage)
    saver = Checkpoints(tmp_path / "not/there/yet")
    trainer = SimpleNamespace(checkpoint_callbacks=[saver], is_global_zero=True, fast_dev_run=False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if outcome == "error":
            with pytest.raises(UserError, match=r"0.0029 GB free; .* takes about 0.003 GB"):
                disk.DiskSpace().on_fit_start(trainer, module)
        else:
            disk.DiskSpace().on_fit_start(trainer, module)
    assert [("saving will fail" in str(w.message)) for w in told] == [True] * (outcome == "warning")


def test_the_size_that_is_foretold_is_the_size_that_is_written(tmp_path: Path):
    data = tiny.world()
    model = tiny.pretrain(data, ema=0.9)
    run = tiny.trainer(tmp_path, 2)
    run.fit(model, datamodule=data)
    run.save_checkpoint(tmp_path / "x.ckpt")
    assert disk.checkpoint_size(model) == pytest.approx(
        (tmp_path / "x.ckpt").stat().st_size, rel=0.5
    )
