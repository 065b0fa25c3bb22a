"""What saving a checkpoint costs: ours beside Lightning's own, on a checkpoint of about 500 MB.

Each save runs in a process of its own, sides in turn: CPU and wall seconds of the save, and how far
the peak of the process's memory (VmHWM) rose above what it held before. `copies` is that rise as a
share of the checkpoint: 0 means that nothing was held twice. `only_write` is torch.save to a file
and no more, for scale: ours adds a sha256, an fsync, and the reading back.

Run: python benchmarks/checkpoint.py [--smoke] [--json FILE]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from harness import parse_arguments, print_table, write_result  # noqa: E402

SIDES = ("mmpredict", "lightning", "only_write")
MEGABYTES, ROUNDS = 500, 3
ONE_SAVE = """
import json, sys, time
import torch

side, megabytes, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
sys.path.insert(0, sys.argv[4])
if side == "mmpredict":
    from mmpredict.training.checkpoint_io import VerifiedCheckpointIO as IO
    save = IO().save_checkpoint
elif side == "lightning":
    from pytorch_lightning.plugins.io import TorchCheckpointIO as IO
    save = IO().save_checkpoint
else:
    save = torch.save


def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


save({"warm": torch.zeros(1000)}, path)
torch.manual_seed(0)
weights = {f"w{n}": torch.randn(1000, 2500) for n in range(megabytes // 10)}  # 10 MB each
before, cpu, wall = peak(), time.process_time(), time.perf_counter()
save({"state_dict": weights, "global_step": 1}, path)
spent = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
print(json.dumps(spent | {"peak_rise_mb": peak() - before}))
"""


def one_save(side: str, megabytes: int, folder: Path) -> dict[str, float]:
    """Figures of one save in a fresh process."""
    root = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, "-c", ONE_SAVE, side, str(megabytes), str(folder / "x.ckpt"), root]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    arguments = parse_arguments(__doc__)
    megabytes, rounds = (50, 1) if arguments.smoke else (MEGABYTES, ROUNDS)
    figures: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        for _ in range(rounds):
            for side in SIDES:
                figures[side].append(one_save(side, megabytes, Path(folder)))
    found = {
        side: {name: statistics.median(r[name] for r in all_) for name in all_[0]}
        for side, all_ in figures.items()
    }
    for of_side in found.values():
        of_side["copies"] = of_side["peak_rise_mb"] / megabytes
    rows = [
        [side, *(f"{of_side[n]:.2f}" for n in ("cpu_s", "wall_s", "peak_rise_mb", "copies"))]
        for side, of_side in found.items()
    ]
    print_table(["side", "CPU s", "wall s", "MB above", "copies"], rows)
    ours, theirs = found["mmpredict"], found["lightning"]
    ratios = {
        "copies": ours["copies"],
        "copies_of_lightning": theirs["copies"],
        "cpu_vs_lightning": ours["cpu_s"] / theirs["cpu_s"],
        "wall_vs_lightning": ours["wall_s"] / theirs["wall_s"],
    }
    sides = {"megabytes": megabytes, "rounds": rounds, **found}
    write_result(arguments.json, "checkpoint", ratios=ratios, figures=sides)


if __name__ == "__main__":
    main()
