"""What fast weights are worth: two recipes, four arms each, three seeds; all as they come out.

The recipes are recipes/associative_recall.yaml and recipes/cucumber.yaml; the arms are what their
heads say, by the same words that a user would add to the command:

    window          attention within the window alone
    window, wider   the same with a wider feed-forward, so that it has as many parameters as
    fast weights    attention within the window and fast weights (the recipe as it stands)
    full attention  attention to the whole document, no fast weights

All arms of a seed see the same documents in the same order. Accuracy has a bootstrap interval over
the test documents (of all seeds), and its range over the seeds beside it.

Then the price: CPU time of the memory, forward and backward, beside causal attention to everything.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from harness import print_table, time_interleaved, write_result
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from mmpredict import command_line, lightning_cli
from mmpredict.model.fast_weights import Steps, chunked
from mmpredict.schema import Batch
from mmpredict.training.callbacks import evaluating
from mmpredict.training.recall_score import NEW, RecallScore, RecallTally, summary

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
RECIPES = ("associative_recall", "cucumber")
PICTURES = {  # file; what its axes say
    "associative_recall": (
        "recall.png",
        "positions since the pair last stood (a pair has 2)",
        "right answers, %",
    ),
    "cucumber": (
        "cucumber.png",
        "positions since the word was last heard (2 a word of 80 ms)",
        "noisy words recognised, %",
    ),
}
SEEDS = (0, 1, 2)
FAST, WIDER = "fast weights", "window, wider"
NO_MEMORY = ("--model.predictor.fast_weights.every", "0")
ARMS: dict[str, tuple[str, ...]] = {
    "window": NO_MEMORY,
    WIDER: NO_MEMORY,  # and the width, from `matched_width`
    FAST: (),
    "full attention": (*NO_MEMORY, "--model.predictor.window", "0"),
}
MATCH = 0.01  # share by which parameters may differ
LEAST_ANSWERS = 100  # of a group, to be drawn
SMOKE = ("--trainer.max_steps", "2", "--data.train_documents", "64", "--data.test_documents", "6")


@dataclass(frozen=True)
class Built:
    """What a recipe builds."""

    module: LightningModule
    data: LightningDataModule
    trainer: Trainer
    score: RecallScore


@dataclass(frozen=True)
class Outcome:
    """Of one arm with one seed: right answers and answers (2, documents, groups), and its price."""

    table_2DG: Tensor
    parameters: int
    cpu_s: float


def build(recipe: str, words: tuple[str, ...], run_dir: str) -> Built:
    """What `mmpredict fit --config recipe WORDS` would train, by its own parser."""
    path = str(ROOT / "recipes" / f"{recipe}.yaml")
    command = command_line.parse("fit", ["--config", path, *words, "--run_dir", run_dir])
    lightning_cli.trust(command.trusted)
    with contextlib.redirect_stdout(io.StringIO()):
        cli = lightning_cli.TrainerCLI(command, lightning_cli.FirstBatch(), run=False)
    score = next(c for c in cli.trainer.callbacks if isinstance(c, RecallScore))
    return Built(cli.model, cli.datamodule, cli.trainer, score)


def parameters_of(module: LightningModule) -> int:
    return sum(p.numel() for p in module.predictor.parameters())


def matched_width(recipe: str, run_dir: str) -> int:
    """Width of the feed-forward with which the window alone has as many parameters as with fast
    weights."""
    want = parameters_of(build(recipe, (), run_dir).module)
    plain = build(recipe, NO_MEMORY, run_dir).module
    config = plain.predictor.config
    per_width = 3 * config.dim * config.depth
    width = config.hidden_width + round((want - parameters_of(plain)) / per_width)
    wider = (*NO_MEMORY, "--model.predictor.hidden", str(width))
    got = parameters_of(build(recipe, wider, run_dir).module)
    if abs(got - want) > MATCH * want:
        raise AssertionError(f"{got} parameters are not within {MATCH:.0%} of {want}")
    return width


def train_and_ask(
    built: Built, batches: list[Batch], tests: list[Batch], seed: int
) -> tuple[RecallTally, float]:
    """Train on `batches` as the recipe says, with nothing beside; then ask for all answers of the
    test documents. The CPU seconds are of the training."""
    torch.manual_seed(seed)
    built.data.train_dataloader = lambda: DataLoader(batches, batch_size=None)
    trainer = Trainer(
        max_steps=built.trainer.max_steps,
        gradient_clip_val=built.trainer.gradient_clip_val,
        precision=built.trainer.precision,
        accelerator="cpu",
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    begun = time.process_time()
    trainer.fit(built.module, built.data)
    cpu_s = time.process_time() - begun
    tally = RecallTally(built.module.predictor, built.score.window)
    with evaluating(built.module), trainer.precision_plugin.forward_context():
        for batch in tests:
            tally.add(batch)
    return tally, cpu_s


def run_recipe(
    recipe: str, seeds: tuple[int, ...], extra: tuple[str, ...], cache: Path | None
) -> dict[str, Any]:
    """Train and score all arms with all seeds; those that the cache holds are not trained anew."""
    outcomes: dict[str, list[Outcome]] = {arm: [] for arm in ARMS}
    with TemporaryDirectory() as folder:
        width = matched_width(recipe, folder)
        score = build(recipe, (), folder).score
        for seed in seeds:
            batches: list[Batch] = []
            tests: list[Batch] = []
            for arm, words in ARMS.items():
                wider = ("--model.predictor.hidden", str(width)) if arm == WIDER else ()
                own = ("--data.seed", str(seed), "--seed_everything", str(seed))
                all_words = (*words, *wider, *own, *extra)
                kept = cache and cache / f"{recipe}-{digest(recipe, all_words)}.pt"
                if kept and kept.exists():
                    outcomes[arm].append(Outcome(**torch.load(kept)))
                    continue
                built = build(recipe, all_words, folder)
                if not batches:
                    built.data.setup("fit")
                    batches = list(islice(built.data.train_dataloader(), built.trainer.max_steps))
                    tests = list(built.data.test_dataloader())
                tally, cpu_s = train_and_ask(built, batches, tests, seed)
                outcome = Outcome(tally.table(), parameters_of(built.module), cpu_s)
                outcomes[arm].append(outcome)
                if kept:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    torch.save(vars(outcome), kept)
                print(
                    f"{recipe}, seed {seed}, {arm}: {accuracy(outcome.table_2DG):.1%} of all "
                    f"answers, {cpu_s:.0f} CPU-s",
                    flush=True,
                )
        return figures_of(score, outcomes, width)


def digest(recipe: str, words: tuple[str, ...]) -> str:
    """Of what decides an outcome, the code aside."""
    settings = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text())
    return hashlib.sha256(json.dumps([settings, words]).encode()).hexdigest()[:16]


def accuracy(table_2DG: Tensor) -> float:
    return float(table_2DG[0].sum() / table_2DG[1].sum().clamp(min=1))


def figures_of(
    score: RecallScore, outcomes: dict[str, list[Outcome]], width: int
) -> dict[str, Any]:
    """Per arm: the summary over the documents of all seeds, and the least and the most of them."""
    arms: dict[str, Any] = {}
    for arm, runs in outcomes.items():
        tables = [run.table_2DG for run in runs]
        widest = max(t.shape[-1] for t in tables)
        tables = [torch.nn.functional.pad(t, (0, widest - t.shape[-1])) for t in tables]

        def summed(table: Tensor) -> dict[str, Any]:
            return summary(table, score.window, by_answers=score.by_answers)

        pooled = summed(torch.cat(tables, dim=1))
        add_range(pooled, [summed(table) for table in tables])
        arms[arm] = {
            "parameters": runs[0].parameters,
            "cpu_s": [round(run.cpu_s, 1) for run in runs],
            **pooled,
        }
    return {"window": score.window, "wider_hidden": width, "arms": arms}


def add_range(pooled: dict[str, Any], seeds: list[dict[str, Any]]) -> None:
    """To each score its accuracy seed by seed."""
    for name, value in pooled.items():
        if not isinstance(value, dict):
            continue
        if "accuracy" in value:
            value["seeds"] = [s[name]["accuracy"] for s in seeds if name in s]
        else:
            add_range(value, [s.get(name, {}) for s in seeds])


def print_figures(recipe: str, figures: dict[str, Any], group: str) -> None:
    """Rows: arms. Columns: groups of distances or of numbers of answers."""
    arms = figures["arms"]
    names = list(dict.fromkeys(name for arm in arms.values() for name in arm[group]))
    counts = next(iter(arms.values()))[group]
    print(f"\n{recipe}, {group}: right answers in %, [interval over documents] (least-most seed)")
    rows = [
        [arm, f"{found['parameters']:,}", *(_cell(found[group].get(name)) for name in names)]
        for arm, found in arms.items()
    ]
    head = ["arm", "parameters", *(f"{n} (n={counts[n]['answers']})" for n in names)]
    print_table(head, rows)


def _cell(score: dict[str, Any] | None) -> str:
    if score is None:
        return "-"
    middle, low, high = (100 * score[k] for k in ("accuracy", "low", "high"))
    least, most = 100 * min(score["seeds"]), 100 * max(score["seeds"])
    return f"{middle:.1f} [{low:.1f}-{high:.1f}] ({least:.1f}-{most:.1f})"


def draw(recipe: str, figures: dict[str, Any]) -> Path:
    """Accuracy over the distance: a line per arm, a thin one per seed; what is new stands apart."""
    from matplotlib.figure import Figure

    window = figures["window"]
    found = figures["arms"]["window"]["by_distance"]
    names = [name for name, score in found.items() if score["answers"] >= LEAST_ANSWERS]
    start = int(names[0] == NEW)
    colours = dict(zip(ARMS, ("#999999", "#c49a3a", "#2f6fdb", "#3a9a5b"), strict=True))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, (arm, found) in enumerate(figures["arms"].items()):
        scores = [found["by_distance"][name] for name in names]
        x = [n + 0.08 * (number - 1.5) for n in range(len(names))]
        y = [100 * s["accuracy"] for s in scores]
        ends = [
            [100 * (s["accuracy"] - s["low"]), 100 * (s["high"] - s["accuracy"])] for s in scores
        ]
        style = {"color": colours[arm], "capsize": 2, "linewidth": 1.8, "fmt": "o"}
        axes.errorbar(x, y, yerr=list(zip(*ends, strict=True)), label=arm, **style)
        axes.plot(x[start:], y[start:], color=colours[arm], linewidth=1.8)
        for of_seed in zip(*(score["seeds"] for score in scores), strict=True):
            percent = [100 * value for value in of_seed]
            axes.plot(x[start:], percent[start:], color=colours[arm], alpha=0.4, linewidth=0.7)
            axes.plot(x, percent, ".", color=colours[arm], alpha=0.5, ms=5)
    axes.axvline(start + 0.5, color="black", linestyle=":", linewidth=1)
    axes.set_xticks(range(len(names)), names)
    file, across, up = PICTURES[recipe]
    axes.set_xlabel(f"{across}; dotted: the window of {window}")
    axes.set_ylabel(up)
    axes.set_ylim(-3, 103)
    axes.grid(axis="y", alpha=0.3)
    handles = axes.get_legend_handles_labels()
    figure.legend(*handles, frameon=False, loc="outside upper center", ncols=4)
    path = IMAGES / file
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def ratios_of(results: dict[str, Any]) -> dict[str, float]:
    """Right answers beyond the window: fast weights against the matched window, and full against
    fast."""
    ratios = {}
    for recipe, figures in results.items():
        beyond = {arm: f["beyond_window"]["accuracy"] for arm, f in figures["arms"].items()}
        ratios[f"{recipe}/fast_vs_wider_window"] = beyond[FAST] / max(beyond[WIDER], 1e-9)
        ratios[f"{recipe}/fast_vs_full"] = beyond[FAST] / max(beyond["full attention"], 1e-9)
    return ratios


def speed(shape_BHLE: tuple[int, int, int, int], rounds: int) -> dict[str, float]:
    """CPU milliseconds of the memory in chunks, and of the fused causal attention."""
    generator = torch.Generator().manual_seed(0)
    B, H, L, E = shape_BHLE
    q, k, v = (torch.randn(shape_BHLE, generator=generator) for _ in range(3))
    q, k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
    strength, decay = (torch.rand(B, H, L, generator=generator) for _ in range(2))
    leaves = [x.requires_grad_() for x in (q, k, v, strength, -0.1 * decay)]
    steps = Steps(*leaves, torch.zeros(B, L, dtype=torch.bool))
    state = torch.zeros(B, H, E, E)

    def remember(chunk: int) -> Callable[[], object]:
        return lambda: torch.autograd.grad(chunked(steps, state, chunk)[0].sum(), leaves)

    def attend() -> object:
        seen = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.autograd.grad(seen.sum(), leaves[:3])

    calls = {f"chunk_{c}": remember(c) for c in (32, 64)} | {"attention": attend}
    timed = time_interleaved(calls, rounds=rounds)
    return {f"{name}_cpu_ms": round(1e3 * t.cpu_median_s, 2) for name, t in timed.items()}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a minute: does it run at all?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep finished arms here")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")  # as mmpredict fit does
    lightning_cli.quiet()
    seeds, extra = (SEEDS[:1], SMOKE) if options.smoke else (SEEDS, ())
    results = {
        recipe: run_recipe(recipe, seeds, extra, options.cache) for recipe in options.recipes
    }
    for recipe, figures in results.items():
        print_figures(recipe, figures, "by_distance")
        if "by_answers" in figures["arms"][FAST]:
            print_figures(recipe, figures, "by_answers")
        if not options.smoke:
            print(f"drew {draw(recipe, figures)}")
    sizes = [(1, 4, 128, 32)] if options.smoke else [(1, 4, 1024, 32), (16, 4, 1024, 32)]
    prices = {"x".join(map(str, size)): speed(size, 2 if options.smoke else 7) for size in sizes}
    print(f"\nCPU ms, forward and backward, rows x heads x positions x values: {prices}")
    figures = results | {"speed": prices}
    write_result(options.json, "fast_weights", ratios=ratios_of(results), figures=figures)


if __name__ == "__main__":
    main()
