"""The smallest recipe from end to end, as a user runs it; then a rollout from its checkpoint."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmpredict.media import probe

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def mmpredict(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmpredict", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, str]:
    """The run folder of the smoke recipe, and what it printed."""
    folder = tmp_path_factory.mktemp("smoke") / "run"
    done = mmpredict("fit", "--config", "recipes/smoke.yaml", "--run_dir", str(folder))
    assert done.returncode == 0, done.stderr[-2000:]
    assert not done.stderr.strip(), done.stderr[-2000:]
    return folder, done.stdout


def test_the_run_folder_is_complete(run: tuple[Path, str]):
    folder, _ = run
    names = {path.name for path in folder.iterdir()}
    expected = {"config.yaml", "env.json", "metrics.csv", "results.json", "report.html"}
    assert expected | {"ckpt", "samples"} <= names
    assert (folder / "ckpt" / "last.ckpt").is_file()
    assert any(name.startswith("events.out.tfevents") for name in names)


def test_the_table_has_every_stream_with_its_baselines(run: tuple[Path, str]):
    folder, printed = run
    results = json.loads((folder / "results.json").read_text())
    assert set(results) == {"video", "audio", "text", "seconds", "held_out_scenes"}
    assert set(results["video"]["baselines"]) == {"copy_last"}
    assert set(results["audio"]["baselines"]) == {"last_spectrum", "mean_spectrum"}
    assert set(results["text"]["baselines"]) == {"unigram", "bigram"}
    scores = [results["text"]["nats_per_token"], *results["text"]["baselines"].values()]
    for stream in ("video", "audio"):
        for pair in (results[stream], *results[stream]["baselines"].values()):
            scores += [pair["energy_score"], pair["mse_of_mean"]]
    assert all(math.isfinite(score) and score > 0 for score in scores)
    assert results["held_out_scenes"] == 8 and 0 < results["seconds"] < 240
    for word in ("video", "audio", "text", "unigram", "bigram"):
        assert word in printed


def test_few_lines_come_before_the_first_step(run: tuple[Path, str]):
    _, printed = run
    lines = printed.splitlines()
    first = next(i for i, line in enumerate(lines) if "tok/s" in line or "tokens/s" in line)
    assert first <= 10


def test_the_model_goes_on_from_words(run: tuple[Path, str], tmp_path: Path):
    folder, _ = run
    out = tmp_path / "next.mp4"
    done = mmpredict(
        *("rollout", "--ckpt", str(folder / "ckpt" / "last.ckpt"), "--seconds", "0.5"),
        *("--prompt", "the red ball rolls left", "--steps", "2", "--out", str(out)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    info = probe(out)
    assert info.has_video and info.has_audio and info.duration_s > 0.3
    for suffix in (".wav", ".txt", ".png"):
        assert out.with_suffix(suffix).stat().st_size > 0


def test_the_checkpoint_is_scored_by_test_and_validate(run: tuple[Path, str], tmp_path: Path):
    folder, _ = run
    trained = json.loads((folder / "results.json").read_text())
    again = tmp_path / "again"
    done = mmpredict(
        *("test", "--config", "recipes/smoke.yaml", "--run_dir", str(again)),
        *("--ckpt_path", str(folder / "ckpt" / "last.ckpt")),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((again / "results.json").read_text())
    for key in ("energy_score", "mse_of_mean"):
        for stream in ("video", "audio"):
            assert results[stream][key] == pytest.approx(trained[stream][key], rel=1e-4)
    assert results["text"]["nats_per_token"] == pytest.approx(
        trained["text"]["nats_per_token"], rel=1e-4
    )
    assert results["text"]["baselines"] == pytest.approx(trained["text"]["baselines"])


def test_predict_writes_a_line_per_document(run: tuple[Path, str], tmp_path: Path):
    folder, _ = run
    done = mmpredict(
        *("predict", "--config", "recipes/smoke.yaml", "--run_dir", str(tmp_path / "said")),
        *("--ckpt_path", str(folder / "ckpt" / "last.ckpt")),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    text = (tmp_path / "said" / "predictions.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) == 8 and len({line["document"] for line in lines}) == 8
    trained = json.loads((folder / "results.json").read_text())
    # Every document has as many frames as every other, so the mean of means is the mean.
    mean = sum(line["video"]["mse_of_mean"] for line in lines) / len(lines)
    assert mean == pytest.approx(trained["video"]["mse_of_mean"], rel=1e-3)
