"""A training that is killed and resumed sees the same documents at the same steps: by command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.datamodules.small import write_sounds

STEPS = 24
SPY = '''
"""Writes which documents every step was trained on; kills the process where it is told to."""

import json, os, signal
from pathlib import Path

from pytorch_lightning import Callback


class Spy(Callback):
    def __init__(self, log: str, kill_at: int = 0):
        self.file, self.kill_at = Path(log), kill_at

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        # The sound of a document tells which it is.
        sums = [round(float(x.float().sum()), 3) for x in batch.contents.values()]
        loss = outputs["loss"].item()
        with self.file.open("a") as file:
            file.write(json.dumps([trainer.global_step, sums, loss]) + "\\n")
        if trainer.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
'''


def recipe(root: Path, workers: int) -> dict:
    return {
        "seed_everything": 3,
        "trainer": {
            "max_steps": STEPS,
            "val_check_interval": 1000,
            "check_val_every_n_epoch": None,
            "limit_val_batches": 0,
            "limit_test_batches": 0,
            "num_sanity_val_steps": 0,
            "accelerator": "cpu",
            "callbacks": [
                {
                    "class_path": "mmpredict.training.saving.Checkpoints",
                    "init_args": {"every_n_train_steps": 5},
                }
            ],
        },
        "model": {
            "class_path": "mmpredict.training.Pretrain",
            "init_args": {"predictor": {"dim": 32, "depth": 1, "num_heads": 2}},
        },
        "data": {
            "class_path": "datamodules.AudioVisual",
            "init_args": {
                "root": str(root),
                "video": None,
                "text": None,
                "audio": {"sample_rate": 8000, "channels": 1, "num_mels": 8, "hops": 2},
                "clip_seconds": 0.4,
                "loading": {"context_length": 32, "rows": 2, "workers": workers, "open_rows": 3},
            },
        },
    }


def fit(folder: Path, root: Path, *, workers: int, kill_at: int = 0, resume: bool = False) -> int:
    (folder / "spy.py").write_text(SPY)
    settings = recipe(root, workers)
    settings["trainer"]["callbacks"].append(
        {"class_path": "spy.Spy", "init_args": {"log": str(folder / "log"), "kill_at": kill_at}}
    )
    (folder / "r.yaml").write_text(yaml.safe_dump(settings))
    words = ["fit", "--config", "r.yaml", "--run_dir", "run", "--allow-import", "spy"]
    words += ["--ckpt_path", "run/ckpt/last.ckpt"] if resume else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "mmpredict", *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode in (0, 2, -signal.SIGKILL), done.stderr[-2000:]
    if done.returncode == 2:
        raise ValueError(done.stderr)
    return done.returncode


def steps_of(folder: Path) -> dict[int, list]:
    """By step what it was trained on; a step that was done again must be the same again."""
    rows = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    found: dict[int, list] = {}
    for step, sums, _ in rows:
        assert found.setdefault(step, sums) == sums, (
            f"step {step} saw other documents the next time"
        )
    return found


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_documents(tmp_path):
    media = tmp_path / "media"
    write_sounds(media, 9, seconds=2.0)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    straight.mkdir()
    broken.mkdir()
    assert fit(straight, media, workers=0) == 0
    assert fit(broken, media, workers=2, kill_at=8) == -signal.SIGKILL
    time.sleep(1)
    assert fit(broken, media, workers=0, kill_at=17, resume=True) == -signal.SIGKILL
    assert fit(broken, media, workers=1, resume=True) == 0
    assert steps_of(broken) == steps_of(straight)
    assert sorted(steps_of(straight)) == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_changed_data_are_named_and_stop_the_run_unless_told(tmp_path):
    media, run = tmp_path / "media", tmp_path / "run1"
    paths = write_sounds(media, 9, seconds=2.0)
    run.mkdir()
    assert fit(run, media, workers=0, kill_at=8) == -signal.SIGKILL
    data = bytearray(paths[4].read_bytes())
    data[-7] ^= 1
    paths[4].write_bytes(data)
    write_sounds(media / "more", 1)
    with pytest.raises(ValueError) as stop:
        fit(run, media, workers=0, resume=True)
    message = str(stop.value)
    assert "changed: s04.wav" in message and "new: more/s00.wav" in message
    assert "ignore_fingerprint" in message
