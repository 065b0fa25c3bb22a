"""The part of the command line that trains, on stand-ins of a few numbers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from mmpredict import cli, lightning_cli

STAND_INS = """
from dataclasses import dataclass

import pytorch_lightning as pl
import torch


@dataclass(frozen=True)
class Size:
    dim: int = 8

    def __post_init__(self):
        if self.dim % 2:
            raise ValueError(f"dim {self.dim} is odd; take an even number")


class Model(pl.LightningModule):
    def __init__(self, layout: str, size: Size = Size(), lr: float = 0.5, crash: bool = False):
        super().__init__()
        self.layout, self.size, self.lr, self.crash = layout, size, lr, crash
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.save_hyperparameters(ignore=["layout", "size"])

    def training_step(self, batch, batch_idx):
        if self.crash:
            raise ValueError("a crash in a step")
        self.log("train/loss", (loss := (self.weight * batch).square().mean()))
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/lr", self.lr)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


class Plain(Model):
    def __init__(self, lr: float = 0.25):
        super().__init__("none", lr=lr)


class Data(pl.LightningDataModule):
    def __init__(
        self, rows: int = 4, folder: str | None = None, size: Size | None = Size(dim=2)
    ):
        super().__init__()
        if rows < 1:
            raise ValueError(f"rows={rows} must be at least 1")
        print("data size:", size)
        self.rows, self.folder, self.layout = rows, folder, f"layout of {rows}"

    def setup(self, stage):
        if self.folder is not None:
            raise FileNotFoundError(f"no folder {self.folder!r}; run prepare first")

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(self.rows, 1), batch_size=2)

    val_dataloader = train_dataloader
"""
RECIPE = """\
trainer: {max_steps: 2, log_every_n_steps: 1, accelerator: cpu, enable_progress_bar: false}
model: {class_path: stand_ins.Model, init_args: {size: {dim: 4}, lr: 0.125}}
data: {class_path: stand_ins.Data}
"""


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """Runs `mmpredict fit` on the stand-ins in tmp_path, without the callbacks of real runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(lightning_cli, "default_callbacks", lambda run_dir: [])
    Path("stand_ins.py").write_text(STAND_INS)
    Path("small.yaml").write_text(RECIPE)

    def run(*words: str, verb: str = "fit") -> int:
        return cli.main([verb, "--config", "small.yaml", "--allow-import", "stand_ins", *words])

    return run


def test_a_run_keeps_what_it_made(fit, tmp_path, capsys):
    assert fit() == 0
    (folder,) = Path("runs/small").iterdir()
    assert {"config.yaml", "env.json", "metrics.csv"} <= {path.name for path in folder.iterdir()}
    assert list(folder.glob("events.out.tfevents.*"))
    start = json.loads((folder / "env.json").read_text())["starts"][0]
    assert start["versions"]["torch"] == torch.__version__.split("+")[0]
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert any(row["train/loss"] for row in rows)
    assert len(capsys.readouterr().err.splitlines()) <= 10

    # the kept configuration is itself a recipe
    again = ["fit", "--config", str(folder / "config.yaml"), "--allow-import", "stand_ins"]
    assert cli.main([*again, "--run_dir", "again"]) == 0
    assert Path("again/config.yaml").is_file()


def test_a_used_folder_is_no_obstacle_and_nothing_is_lost(fit):
    assert fit("--run_dir", "here") == 0
    before = Path("here/metrics.csv").read_text().splitlines()
    assert fit("--run_dir", "here") == 0
    after = Path("here/metrics.csv").read_text().splitlines()
    assert after[: len(before)] == before and len(after) == 2 * len(before) - 1
    assert len(json.loads(Path("here/env.json").read_text())["starts"]) == 2


def test_null_survives_in_the_kept_configuration(fit, capsys):
    assert fit("--data.size", "null", "--run_dir", "first") == 0
    again = ["fit", "--config", "first/config.yaml", "--allow-import", "stand_ins"]
    assert cli.main([*again, "--run_dir", "second"]) == 0
    assert capsys.readouterr().out.count("data size: None") == 2


def test_the_command_line_wins_over_recipe_and_checkpoint(fit, tmp_path):
    assert fit("--run_dir", "a") == 0
    (checkpoint,) = Path("a").rglob("*.ckpt")
    words = ["--ckpt_path", str(checkpoint), "--model.lr", "0.75", "--run_dir", "b"]
    assert fit(*words, verb="validate") == 0
    (row,) = csv.DictReader(Path("b/metrics.csv").open())
    assert float(row["val/lr"]) == 0.75


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_a_damaged_checkpoint_is_named(content, fit, capsys):
    Path("bad.ckpt").write_bytes(content)
    assert fit("--ckpt_path", "bad.ckpt") == 2
    message = capsys.readouterr().err
    assert "'bad.ckpt'" in message
    assert len(message.splitlines()) <= 8


def test_a_checkpoint_that_would_run_code_is_refused(fit, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    torch.save({"state_dict": Evil()}, "evil.ckpt")
    assert fit("--ckpt_path", "evil.ckpt") == 2
    assert "'evil.ckpt' holds" in capsys.readouterr().err
    assert not (tmp_path / "canary").exists()


def test_layout_goes_only_to_models_that_ask_for_it(fit, monkeypatch, tmp_path):
    assert fit("--model", "stand_ins.Plain", "--data.rows", "6") == 0
    assert "lr: 0.125" in next(Path("runs").rglob("config.yaml")).read_text()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--model.size.dim", "3"], "error: dim 3 is odd; take an even number"),
        (["--data.rows", "0"], "error: rows=0 must be at least 1"),
        (["--data.folder", "gone"], "error: no folder 'gone'; run prepare first"),
        (["--trainer.accelerator", "cpuu"], "invalid accelerator name"),
        (["--trainer.default_root_dir", "x", "--run_dir", "y"], "differ; keep one"),
        (["--trainer.callbacks", "[{class_path: EarlyStopping}]"], "monitor"),
    ],
)
def test_mistakes_that_show_late(words, hint, fit, capsys):
    assert fit(*words) == 2
    message = capsys.readouterr().err
    assert hint in message
    assert len(message.splitlines()) <= 8


def test_a_crash_keeps_its_traceback(fit):
    with pytest.raises(ValueError, match="a crash in a step"):
        fit("--model.crash", "true")


def test_traceback_on_request(fit, monkeypatch):
    with pytest.raises(ValueError, match="rows=0"):
        fit("--data.rows", "0", "--traceback")
    monkeypatch.setenv("MMPREDICT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="rows=0"):
        fit("--data.rows", "0")


def test_own_loggers_and_callbacks_are_added_not_lost(fit, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        lightning_cli.Trainer, "fit", lambda self, *a, **k: seen.update(trainer=self, words=k)
    )
    callback = "{class_path: pytorch_lightning.callbacks.EarlyStopping, init_args: {monitor: x}}"
    assert fit("--trainer.callbacks", f"[{callback}]", "--trainer.logger", "true") == 0
    names = [type(callback).__name__ for callback in seen["trainer"].callbacks]
    assert {"EarlyStopping", "KeepSettings", "FirstBatch"} <= set(names)
    assert [type(x).__name__ for x in seen["trainer"].loggers] == [
        "AppendingCSVLogger",
        "EventLogger",
    ]
    assert seen["words"]["weights_only"] is True
    added = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=x"]
    assert fit(*added, "--run_dir", "added") == 0
    assert any(getattr(c, "monitor", None) == "x" for c in seen["trainer"].callbacks)
    assert fit("--trainer.logger", "false", "--run_dir", "quiet") == 0
    assert seen["trainer"].loggers == []
