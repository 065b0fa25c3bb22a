"""F7 and F8 from outside: bad steps by command, over two ranks, and across a restart."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from mmpredict.model import PredictorConfig
from mmpredict.objectives import Losses
from mmpredict.schema import Layout
from mmpredict.training import Pretrain
from mmpredict.training.bad_steps import BadSteps
from mmpredict.training.randomness import Randomness
from tests.faults import runs
from tests.training import test_bad_steps as bad
from tests.training import test_pretrain as tiny


class Sick(Pretrain):
    """Its loss is not a number from one step to another, on one rank."""

    def __init__(  # noqa: PLR0913 - Pretrain's, and where it is sick
        self,
        layout: Layout,
        predictor: PredictorConfig = PredictorConfig(),  # noqa: B008 - frozen
        *,
        first: int,
        last: int,
        rank: int = 0,
        eval_samples: int = 1,
        sample_steps: int = 1,
        bad_steps: BadSteps = BadSteps(),  # noqa: B008 - frozen
    ) -> None:
        settings = {"eval_samples": eval_samples, "sample_steps": sample_steps}
        super().__init__(layout, predictor, **settings, bad_steps=bad_steps)
        self.sick = (first, last, rank)

    def losses(self, prediction: Any) -> Losses:
        losses = super().losses(prediction)
        first, last, rank = self.sick
        ill = first <= self.trainer.global_step <= last and self.global_rank == rank
        return Losses(losses.total * (math.nan if ill else 1.0), losses.parts)


def sick(first: int, last: int, rank: int = 0, **settings: Any) -> dict[str, Any]:
    recipe = runs.recipe()
    recipe["model"]["class_path"] = "tests.faults.test_bad_numbers.Sick"
    recipe["model"]["init_args"] |= {"first": first, "last": last, "rank": rank, **settings}
    return recipe


def test_a_restart_between_bad_steps_changes_nothing(tmp_path: Path):
    """Cut behind step 11, with bad steps on both sides: weights, counters and rule are the same."""

    def run(folder: Path, steps: int, ckpt: Path | None = None) -> Pretrain:
        pl.seed_everything(0)
        data = tiny.world()
        heads = {s.name: tiny.TINY_HEAD for s in data.layout.streams if not s.is_discrete}
        config = tiny.PredictorConfig(dim=32, depth=1, num_heads=2, heads=heads)
        hurt = {9: "nan", 10: "nan", 11: "nan", 13: "spike"}
        settings = {"hurt": hurt, "ema": 0.9, "bad_steps": BadSteps(warm_up=6)}
        settings |= {"decay_share": 0.0, "warmup_share": 0.0}  # no schedule of 16 steps or of 11
        model = bad.Hurt(data.layout, config, eval_samples=1, sample_steps=1, **settings)
        trainer = tiny.trainer(folder, steps, Randomness())
        trainer.fit(model, datamodule=data, ckpt_path=ckpt and str(ckpt), weights_only=True)
        trainer.save_checkpoint(folder / "x.ckpt")
        return model

    whole = run(tmp_path / "whole", 16)
    run(tmp_path / "cut", 11)
    again = run(tmp_path / "cut", 16, tmp_path / "cut/x.ckpt")
    assert whole.guard.total == again.guard.total == 4
    one, other = (runs.checkpoint(tmp_path / name / "x.ckpt") for name in ("whole", "cut"))
    assert not runs.differing(one, other)
    for name, tensor in one["bad_steps"]["statistics"].items():
        assert torch.equal(tensor, other["bad_steps"]["statistics"][name]), name
    words = (c["mmpredict"]["ngrams"][2] for c in (one, other))
    assert len({str(w["counts"].tolist()) for w in words}) == 1
    told = [(tmp_path / name / "bad_steps.jsonl").read_text() for name in ("whole", "cut")]
    assert told[0] == told[1]


@pytest.mark.slow
def test_f8_by_command(tmp_path: Path):
    settings = sick(6, 99, bad_steps={"most_in_a_row": 4})
    _, err = runs.fit(tmp_path, code=70, settings=settings)
    assert "stopped: 4 bad steps in a row" in err and "Traceback" not in err
    assert len(err.splitlines()) <= 8
    lines = (tmp_path / "run/bad_steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [7, 8, 9, 10]
    dump = torch.load(tmp_path / "run/bad_batch.pt", weights_only=True)
    assert dump["documents"] == json.loads(lines[-1])["documents"][0]
    saved = runs.checkpoint(tmp_path / "run/ckpt/last.ckpt")
    assert saved["global_step"] == 10
    assert all(t.isfinite().all() for t in saved["state_dict"].values())


@pytest.mark.slow
def test_f7_two_ranks_skip_what_one_of_them_has_met(tmp_path: Path):
    settings = sick(4, 5, rank=1)
    settings["trainer"] |= {"devices": 2, "strategy": "ddp", "max_steps": 8}
    runs.fit(tmp_path, settings=settings)
    lines = [json.loads(x) for x in (tmp_path / "run/bad_steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 6]
    for line in lines:
        assert len(line["documents"]) == 2 and all(line["documents"])
        assert not set(line["documents"][0]) & set(line["documents"][1])
    saved = runs.checkpoint(tmp_path / "run/ckpt/last.ckpt")
    assert saved["global_step"] == 8 and saved["bad_steps"]["total"] == 2
    assert all(t.isfinite().all() for t in saved["state_dict"].values())
