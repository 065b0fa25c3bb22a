"""Which head for frames and sounds? Arms of one trunk, trained alike on the embedded world, scored
by forecasts, by surprise at impossible events, and by what is left after 24 frames of rollout.

Arms: flow (with auxiliary regression, the default), flow_alone, regression, gmm, fsq (its tokenizer
trained first), gmm_alone, fsq_alone (without the auxiliary). Everything but the head is the same:
data and their order, trunk, optimiser, schedule, steps, about as many parameters. The learning rate
is the best of LEARNING_RATES for each arm, by forecasts of other scenes than the final ones.
Every finished training is a line in CACHE/runs.jsonl; started again, only missing ones are run.
Run: python benchmarks/heads.py --cache DIR [--smoke] [--json FILE] [--arms NAME ...]
     [--sizes 32 64] [--seeds 0 1 2] [--steps N] [--plot FILE] [--table FILE] [--report]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import heads_data as data_room  # noqa: E402
from harness import write_result  # noqa: E402
from heads_arms import (  # noqa: E402
    FSQ,
    NAMES,
    Training,
    arms,
    build,
    check_sizes,
    train,
    train_tokenizers,
)
from heads_data import FINAL, TUNING, Amounts, Data, prepare  # noqa: E402
from heads_plot import draw  # noqa: E402
from heads_report import figures, ratios, read_runs, write_table  # noqa: E402
from heads_rollout import (  # noqa: E402
    VIDEO,
    calibrate,
    copied_frames,
    judge,
    recoded_frames,
    roll_out,
    templates,
    true_frames,
)
from heads_scores import all_surprise, held_out, tuning_score  # noqa: E402

from mmpredict.model import Predictor  # noqa: E402
from mmpredict.model.fsq import BlockTokenizer  # noqa: E402

LEARNING_RATES = (1e-3, 2e-3, 4e-3, 8e-3)
TUNING_SIZE, TUNING_SEED = 32, 100
AMOUNTS = Amounts(train_documents=1200, held_out=48, pairs=64, prompts=48)
SMOKE = Amounts(train_documents=16, held_out=4, pairs=2, prompts=2)


@dataclass(frozen=True)
class Plan:
    """What is asked for on the command line."""

    arms: tuple[str, ...]
    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    steps: int
    tuning_steps: int
    tokenizer_steps: int
    rows: int
    amounts: Amounts
    cache: Path


class Runner:
    """Trains and scores what is missing."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.lines = plan.cache / "runs.jsonl"
        plan.cache.mkdir(parents=True, exist_ok=True)
        self.done = {run["key"]: run for run in read_runs(self.lines)}
        self.data = cache(self._prepared)
        self.tokenizers = cache(self._tokenizers)
        self.fits = cache(lambda size: templates(self.data(size)))

    def run(self) -> None:
        """All tunings first; then one seed of everything after the other."""
        plan = self.plan
        rates = {name: self.tuned(name) for name in plan.arms}
        for size in plan.sizes:
            self.once({"stage": "scene", "size": size}, lambda size=size: self.baselines(size))
        for seed in plan.seeds:
            for size in plan.sizes:
                for name in plan.arms:
                    key = {"stage": "final", "arm": name, "size": size, "seed": seed}
                    key |= {"lr": rates[name], "steps": plan.steps, "rows": plan.rows}
                    self.once(key, lambda key=key: self.final(key))

    def tuned(self, name: str) -> float:
        """The learning rate with which a short training forecasts best."""
        found = {}
        for lr in LEARNING_RATES:
            key = {"stage": "tune", "arm": name, "size": TUNING_SIZE, "seed": TUNING_SEED}
            key |= {"lr": lr, "steps": self.plan.tuning_steps, "rows": self.plan.rows}
            found[lr] = self.once(key, lambda key=key: self.tune(key))["score"]
        return min(found, key=found.get)

    def once(self, key: dict[str, Any], job: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a job, from the cache or made now."""
        digest = self.digest(key)
        if digest not in self.done:
            started = time.process_time()
            result = {"key": digest, **key, **job(), "cpu_s": time.process_time() - started}
            with self.lines.open("a") as file:
                file.write(json.dumps(result) + "\n")
            self.done[digest] = result
            print({k: result[k] for k in (*key, "cpu_s")}, flush=True)
        return self.done[digest]

    def digest(self, key: dict[str, Any]) -> str:
        """Names a job by all that decides its result."""
        about = key | {"amounts": asdict(self.plan.amounts)}
        if "arm" in key:
            about |= {"config": repr(arms(key["size"])[key["arm"]])}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]

    def tune(self, key: dict[str, Any]) -> dict[str, Any]:
        model, cost = self.trained(key)
        scores = held_out(model, self.data(key["size"]).held_out[TUNING])
        return {"score": tuning_score(scores), **cost}

    def final(self, key: dict[str, Any]) -> dict[str, Any]:
        model, cost = self.trained(key)
        data, size = self.data(key["size"]), key["size"]
        frames = roll_out(model, data, key["seed"])
        return {
            **cost,
            "parameters": self.sizes(size)[key["arm"]],
            "held_out": held_out(model, data.held_out[FINAL]),
            "surprise": all_surprise(model, data),
            "rollout": judge(frames, data, self.fits(size)),
        }

    def baselines(self, size: int) -> dict[str, Any]:
        """What needs no model: the test of validity itself, the truth, and standing still."""
        data, fits = self.data(size), self.fits(size)
        tokenizer = BlockTokenizer(data.layout[VIDEO], FSQ["video"])
        tokenizer.load_state_dict(self.tokenizers(size)[0]["video"])
        return {
            "calibration": calibrate(data, fits),
            "truth": judge(true_frames(data), data, fits),
            "recoded": judge(recoded_frames(data, tokenizer), data, fits),
            "copy_last": judge(copied_frames(data), data, fits),
            "parameters": self.sizes(size),
        }

    def trained(self, key: dict[str, Any]) -> tuple[Predictor, dict[str, float]]:
        """A trained model and its cost; its weights are kept, so that it can be scored anew."""
        data, path = self.data(key["size"]), self.plan.cache / f"{self.digest(key)}.pt"
        arm = arms(key["size"])[key["arm"]]
        tokenizers, cost = ({}, {})
        if arm.video.kind == "fsq":
            tokenizers, cost = self.tokenizers(key["size"])
        if path.exists():
            kept = torch.load(path, weights_only=True)
            model = build(data.layout, arm, key["seed"])
            model.load_state_dict(kept["state"])
            return model.eval(), kept["cost"]
        training = Training(key["steps"], key["rows"], key["lr"], key["seed"])
        model, own = train(data, arm, training, tokenizers)
        if key["stage"] == "final":
            torch.save({"state": model.state_dict(), "cost": cost | own}, path)
        return model, cost | own

    def sizes(self, size: int) -> dict[str, int]:
        chosen = [arms(size)[name] for name in self.plan.arms]
        return check_sizes(self.data(size).layout, chosen)

    def _prepared(self, size: int) -> Data:
        """Filmed and encoded once; kept on disk."""
        name = hashlib.sha256(repr((size, self.plan.amounts, data_room.CONDITION)).encode())
        path = self.plan.cache / f"data-{size}-{name.hexdigest()[:8]}.pickle"
        if not path.exists():
            half = path.with_suffix(".half")
            half.write_bytes(pickle.dumps(prepare(size, self.plan.amounts)))
            half.rename(path)
        return pickle.loads(path.read_bytes())

    def _tokenizers(self, size: int) -> tuple[dict[str, Any], dict[str, float]]:
        """Trained once for each size: kept, so that a run that goes on has the same."""
        path = self.plan.cache / f"tokenizers-{size}.pt"
        if not path.exists():
            found, cost = train_tokenizers(self.data(size), self.plan.tokenizer_steps)
            state = {name: tokenizer.state_dict() for name, tokenizer in found.items()}
            torch.save({"state": state, "cost": cost}, path)
        kept = torch.load(path, weights_only=True)
        return kept["state"], kept["cost"]


def parse() -> tuple[Plan, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="a minute: does it run at all?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    parser.add_argument("--cache", type=Path, default=Path("heads-cache"), metavar="DIR")
    parser.add_argument("--arms", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 64])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--tuning-steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=2, help="documents a step")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figure here")
    parser.add_argument("--table", type=Path, metavar="FILE", help="put the tables in this page")
    parser.add_argument("--report", action="store_true", help="of what is there; train nothing")
    asked = parser.parse_args()
    plan = Plan(
        arms=tuple(asked.arms),
        sizes=tuple(asked.sizes),
        seeds=tuple(asked.seeds),
        steps=2 if asked.smoke else asked.steps,
        tuning_steps=2 if asked.smoke else asked.tuning_steps,
        tokenizer_steps=2 if asked.smoke else 600,
        rows=asked.rows,
        amounts=SMOKE if asked.smoke else AMOUNTS,
        cache=asked.cache,
    )
    return plan, asked


def main() -> None:
    """Train and score what is missing, then report."""
    plan, asked = parse()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")
    if not asked.report:
        Runner(plan).run()
    found = figures(read_runs(plan.cache / "runs.jsonl"), plan.steps)
    found["settings"] = {
        "amounts": asdict(plan.amounts),
        "families": data_room.FAMILIES,
        "condition": asdict(data_room.CONDITION),
        "steps": plan.steps,
        "rows": plan.rows,
        "tuning_steps": plan.tuning_steps,
        "learning_rates": LEARNING_RATES,
        "tokenizer": {name: asdict(config) for name, config in FSQ.items()},
        "arms": {
            str(size): {name: repr(arms(size)[name]) for name in plan.arms} for size in plan.sizes
        },
    }
    if asked.plot:
        draw(found, asked.plot)
    if asked.table:
        write_table(found, asked.table)
    write_result(asked.json, "heads", ratios=ratios(found), figures=found)


if __name__ == "__main__":
    main()
