"""How much sooner, and at what price in old skills, a fine-tuning learns a new kind of scenes.

In: a quickstart checkpoint that was trained without `pick_up` (the hand that lifts):

    mmpredict fit --config quickstart --run_dir base \
        --data.families '[roll_and_bounce,occluder,stack,container]'
    python benchmarks/finetune.py --base base/ckpt/last.ckpt --seeds 0 1 2

Out: results/finetune.json and docs/images/finetune.png. All arms are trained on pick_up scenes by
4 rows of 352 tokens a step, as the recipes in recipes/finetune are, and scored on the same held-out
scenes in the same units. `scratch` has fresh weights and three times the steps; its vocabulary and
its mean and deviation are those of the checkpoint, or its scores would be in other units.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from datamodules import Loading, Mixture, World
from mmpredict.model import Predictor
from mmpredict.tokens import MelChunks, Patches
from mmpredict.training import Finetune, Pretrain
from mmpredict.training.before_after import BeforeAfter
from mmpredict.training.checkpoint import PREFIX, load_predictor
from mmpredict.training.lora import Lora
from mmpredict.training.warm_start import Start

ROOT = Path(__file__).parent
RESULTS, PLOT = ROOT / "results/finetune.json", ROOT.parent / "docs/images/finetune.png"
NEW, OLD = ("pick_up",), ("roll_and_bounce", "occluder", "stack", "container")
STEPS, SCRATCH_STEPS = 66, 200
SCORING = {"eval_samples": 4, "sample_steps": 6}
MEASURES = {"audio": "energy_score", "video": "energy_score", "text": "nats_per_token"}
ARMS: dict[str, dict[str, Any]] = {
    "scratch": {"lr": 2e-3},
    "full": {"lr": 1e-3},
    "fast": {"lr": 2e-3},
    "replay": {"lr": 1e-3},
    "lora": {"lr": 5e-3, "lora": Lora(4, 8.0, ("trunk.*_proj",))},
    "frozen": {"lr": 2e-3, "freeze": ("trunk",)},
}


class Curve(pl.Callback):
    """The validation scores of every validation."""

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        scores = {name: pl_module.results[name][m] for name, m in MEASURES.items()}
        self.points.append({"step": trainer.global_step, **scores})


def world(families: tuple[str, ...], **more: Any) -> World:
    audio, video = MelChunks(sample_rate=16000, channels=2), Patches(32, patch=8, fps=8)
    scenes = {"val_scenes": 16, "test_scenes": 16}
    loading = Loading(context_length=352, rows=4, workers=0)
    return World(audio, video, families=families, loading=loading, **scenes, **more)


def data_of(arm: str, seed: int, start: Start) -> Any:
    if arm != "replay":
        return start.data(world(NEW, seed=seed))
    parts = [start.data(world(f, seed=seed)) for f in (NEW, OLD)]
    loading = Loading(context_length=352, rows=4, workers=0)
    return start.data(Mixture(parts, [0.5, 0.5], loading=loading, seed=seed))


def untrained(base: Path, seed: int, folder: Path) -> Path:
    """A checkpoint as the base before its first step: fresh weights, its statistics and words."""
    known, codecs, about = load_predictor(base)
    torch.manual_seed(seed)
    fresh = Predictor(codecs.layout, known.config)
    fresh.embed.standardise.load_state_dict(known.embed.standardise.state_dict())
    state = {f"{PREFIX}{name}": x for name, x in fresh.state_dict().items()}
    path = folder / f"untrained_{seed}.ckpt"
    torch.save(
        {"mmpredict": {k: about[k] for k in about if k != "scores"}, "state_dict": state}, path
    )
    return path


def run(arm: str, seed: int, base: Path, folder: Path) -> dict[str, Any]:
    """One training: curve, scores before and after, parameters, seconds of CPU."""
    scratch = arm == "scratch"
    start = Start.of(str(untrained(base, seed, folder) if scratch else base), None)
    pl.seed_everything(seed, verbose=False)
    data = data_of(arm, seed, start)
    settings = start.model_settings({}, data.layout)
    model = (Pretrain if scratch else Finetune)(data.layout, **settings, **ARMS[arm], **SCORING)
    steps = SCRATCH_STEPS if scratch else STEPS
    asks = seed == 0 and not scratch  # the probes cost more than the training
    curve, table = Curve(), BeforeAfter(world(OLD), scenes=8 if asks else 0, items=8)
    table.run_dir = folder / f"{arm}_{seed}"
    trainer = pl.Trainer(
        default_root_dir=table.run_dir,
        max_steps=steps,
        accelerator="cpu",
        precision="bf16-mixed",
        val_check_interval=50 if scratch else 11,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=start.callbacks([curve, table], table.run_dir),
    )
    begun = time.process_time()
    trainer.fit(model, data)
    found = json.loads((table.run_dir / "before_after.json").read_text())
    return {
        "arm": arm,
        "seed": seed,
        "steps": steps,
        "lr": ARMS[arm]["lr"],
        "trained": sum(p.numel() for p in model.predictor.parameters() if p.requires_grad),
        "parameters": sum(p.numel() for p in model.predictor.parameters()),
        "cpu_s": round(time.process_time() - begun, 1),
        "curve": curve.points,
        **found,
    }


def steps_to(
    reached: dict[str, float], curve: list[dict[str, float]], first: dict[str, float]
) -> dict[str, Any]:
    """By stream, the first step at which it is as good as `reached`; None if that never comes."""
    points = [{"step": 0, **first}, *curve]
    return {
        name: next((point["step"] for point in points if point[name] <= value), None)
        for name, value in reached.items()
    }


def scores(of: dict[str, Any], *names: str) -> dict[str, float]:
    """The three measures on the first of these data that was scored."""
    data = next(of["scores"][name] for name in names if name in of["scores"])
    return {stream: data[stream][measure] for stream, measure in MEASURES.items()}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Per seed: steps to the from-scratch run's last scores; ratios to full fine-tuning; damage."""
    found: dict[str, Any] = {}
    by = {(r["arm"], r["seed"]): r for r in runs}
    new, part = "new data", "part 0 (World)"
    for (arm, seed), r in sorted(by.items()):
        entry = found.setdefault(arm, {})
        after = scores(r["after"], new, part)
        entry.setdefault("after_new", {})[str(seed)] = after
        entry.setdefault("before_new", {})[str(seed)] = scores(r["before"], new, part)
        if ("scratch", seed) in by and arm in ("full", "fast", "lora", "frozen"):
            goal = scores(by["scratch", seed]["after"], new)
            begin = scores(r["before"], new)
            entry.setdefault("steps_to_scratch", {})[str(seed)] = steps_to(goal, r["curve"], begin)
        if ("full", seed) in by:
            full = scores(by["full", seed]["after"], new)
            ratios = {n: after[n] / full[n] for n in MEASURES}
            entry.setdefault("to_full", {})[str(seed)] = ratios
        if arm != "scratch":
            old = scores(r["before"], "old data"), scores(r["after"], "old data")
            lost = {n: old[1][n] / old[0][n] - 1 for n in MEASURES}
            entry.setdefault("old_change", {})[str(seed)] = lost
            probes = [list(r[k]["probes"].values()) for k in ("before", "after")]
            if all(probes):
                means = [sum(p) / len(p) for p in probes]
                entry.setdefault("probes", {})[str(seed)] = means
    return found


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """Curves of the arms on the new scenes, stream by stream."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = {
        "scratch": "0.5",
        "full": "C0",
        "fast": "C3",
        "lora": "C1",
        "frozen": "C2",
    }
    named: set[str] = set()
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.4), constrained_layout=True)
    for axis, (stream, measure) in zip(axes, MEASURES.items(), strict=True):
        for arm, colour in colours.items():
            for r in (r for r in runs if r["arm"] == arm):
                first = {"step": 0, **scores(r["before"], "new data")}
                points = [first, *r["curve"]]
                label = f"{arm}, lr {r['lr']:g}" if arm not in named else None
                named |= {arm} if axis is axes[0] else set()
                x, y = [p["step"] for p in points], [p[stream] for p in points]
                axis.plot(x, y, color=colour, label=label, lw=1.2, alpha=0.8)
        axis.set(title=f"{stream}: {measure.replace('_', ' ')}", xlabel="step", yscale="log")
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="runs.json of others")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")
    args.work.mkdir(parents=True, exist_ok=True)
    kept = args.work / "runs.json"  # what was done is not done again
    runs = json.loads(kept.read_text()) if kept.is_file() else []
    for seed in args.seeds:
        for arm in args.arms:
            if not any((r["arm"], r["seed"]) == (arm, seed) for r in runs):
                runs.append(run(arm, seed, args.base, args.work))
                kept.write_text(json.dumps(runs, indent=1))
                print(f"{arm} {seed}: {runs[-1]['curve'][-1]}", flush=True)
    for path in args.also:  # made by other processes
        runs += [r for r in json.loads(path.read_text()) if r not in runs]
    args.out.write_text(json.dumps({"summary": summary(runs), "runs": runs}, indent=1) + "\n")
    plot(runs, PLOT if args.out == RESULTS else args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
