"""Twenty steps of four tiny recipes, whose losses are kept in golden_losses/NAME.json.

`python -m tests.faults.golden` makes the files anew: after a change that is meant to change the
losses, and never to make a test pass that fails for a reason that is not known. Names may follow,
such as `python -m tests.faults.golden text`, and `--out FOLDER` writes elsewhere.

All is computed in fp32 with the instructions that every x86 processor of the last ten years has, so
that the same numbers come out of different ones.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from mmpredict.run_folder import cpu_name
from tests.faults import runs

FOLDER = Path(__file__).parent / "golden_losses"
STEPS = 20
NEAR = 1e-5  # relative, of a loss on a machine of another kind
ENVIRONMENT = {  # read when torch is loaded
    "OMP_NUM_THREADS": "1",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
}

COMMON = f"""
seed_everything: 11
trainer:
  max_steps: {STEPS}
  accelerator: cpu
  precision: 32-true
  val_check_interval: 10
  check_val_every_n_epoch: null
  limit_val_batches: 1
  limit_test_batches: 0
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  gradient_clip_val: 1.0
  enable_progress_bar: false
  callbacks:
  - {{class_path: tests.faults.spy.Spy, init_args: {{log: spy.jsonl}}}}
model:
  class_path: mmpredict.training.Pretrain
  init_args:
    predictor:
      dim: 32
      depth: 2
      num_heads: 2
    lr: 2.0e-3
    eval_samples: 1
    sample_steps: 1
"""
WORLD = """
    video: {size: 16, patch: 8, fps: 8}
    audio: {sample_rate: 8000, channels: 2, num_mels: 8, hops: 2}
    train_scenes: 12
    val_scenes: 2
    test_scenes: 2
"""
HEADS = "{audio: {dim: 32, depth: 1, draws: 1}, video: {dim: 32, depth: 1, draws: 1}}"
RECIPES = {
    "world": f"""
model: {{init_args: {{predictor: {{heads: {HEADS}}}, ema: 0.9}}}}
data:
  class_path: datamodules.World
  init_args:{WORLD}
    text: {{kind: bytes}}
    loading: {{context_length: 320, rows: 1, statistics_documents: 2}}
""",
    "text": """
trainer: {accumulate_grad_batches: 2}
data:
  class_path: datamodules.Text
  init_args:
    root: texts
    text: {kind: bpe, vocab_size: 300}
    loading: {context_length: 64, rows: 4}
""",
    "mixture": f"""
model: {{init_args: {{predictor: {{heads: {HEADS}}}}}}}
data:
  class_path: datamodules.Mixture
  init_args:
    parts:
    - class_path: datamodules.World
      init_args: {{video: {{size: 16, patch: 8, fps: 8}}, text: {{kind: bytes}}, train_scenes: 12,
        audio: {{sample_rate: 8000, channels: 2, num_mels: 8, hops: 2}}, val_scenes: 2,
        test_scenes: 2}}
    - class_path: datamodules.Text
      init_args: {{root: texts, text: {{kind: bytes}}}}
    weights: [2.0, 1.0]
    loading: {{context_length: 512, rows: 1, statistics_documents: 2}}
""",
    "fast_weights": """
model:
  init_args:
    predictor:
      window: 8
      fast_weights: {every: 2, num_heads: 2, key_dim: 16, value_dim: 16, chunk: 16}
    optimizer: muon
data:
  class_path: datamodules.Recall
  init_args:
    num_keys: 16
    num_values: 16
    pairs: [4, 8]
    test_pairs: [8]
    train_documents: 400
    loading: {context_length: 64, rows: 4}
""",
}
WORDS = "the a red blue ball cup box rolls falls stops behind under left right and then".split()


def settings(name: str) -> dict[str, Any]:
    """A whole recipe."""
    merged = yaml.safe_load(COMMON)
    _merge(merged, yaml.safe_load(RECIPES[name]))
    return merged


def _merge(low: dict[str, Any], high: dict[str, Any]) -> None:
    for key, value in high.items():
        if isinstance(value, dict) and isinstance(low.get(key), dict):
            _merge(low[key], value)
        else:
            low[key] = value


def write_texts(folder: Path) -> None:
    """Made-up passages, always the same: those that Python ships with differ by its version."""
    draw = random.Random(0)
    (folder / "texts").mkdir()
    for number in range(120):
        sentences = [" ".join(draw.choices(WORDS, k=9)).capitalize() + "." for _ in range(6)]
        (folder / "texts" / f"{number:03}.txt").write_text(" ".join(sentences) + "\n")


def train(name: str, folder: Path) -> list[list[Any]]:
    """[sums of the documents, loss in hex] of every batch."""
    write_texts(folder)
    run = runs.warm(folder, settings=settings(name))
    code, said = run.finish()
    assert code == 0, said[-3000:]
    seen = runs.batches_of(folder)
    return [[documents, loss] for _, (_, documents, loss) in sorted(seen.items())]


def machine() -> dict[str, str]:
    """What the last bits of a loss depend on."""
    return {
        "torch": torch.__version__.split("+")[0],
        "cpu": cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
    }


def read(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """What was written of a recipe."""
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def write(name: str, out: Path) -> Path:
    """Train and keep what came out."""
    with tempfile.TemporaryDirectory() as folder:
        batches = train(name, Path(folder))
    out.mkdir(exist_ok=True)
    rows = ",\n  ".join(json.dumps(row) for row in batches)
    path = out / f"{name}.json"
    text = f'{{\n "machine": {json.dumps(machine())},\n "batches": [\n  {rows}\n ]\n}}\n'
    path.write_text(text, encoding="utf-8")
    return path


def main(words: list[str]) -> int:
    """Write the files of the recipes named, or of all of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.golden")
    parser.add_argument("names", nargs="*", choices=[*RECIPES, []], help="(default: all)")
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args(words)
    for name in args.names or RECIPES:
        print(f"wrote {write(name, args.out)}", flush=True)
    return 0


if __name__ == "__main__":
    if ENVIRONMENT.items() - os.environ.items():  # torch is loaded already, and without it
        command = [sys.executable, "-m", "tests.faults.golden", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | ENVIRONMENT)
    sys.exit(main(sys.argv[1:]))
