"""Laws of bad steps: which are found, and that they leave no trace."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from mmpredict.objectives import Losses
from mmpredict.schema import Stop
from mmpredict.training import Pretrain
from mmpredict.training.averaging import WeightAverage
from mmpredict.training.bad_steps import BadSteps, StepGuard, Verdicts
from mmpredict.training.muon import MuonAdamW
from tests.training import test_pretrain as tiny

CPU = torch.device("cpu")
SOON = BadSteps(warm_up=4)  # for trainings of a few steps


def verdicts(norms: list[float], settings: BadSteps = SOON) -> tuple[list[bool], Verdicts]:
    rule = Verdicts(settings, CPU)
    return [bool(rule.judge(torch.tensor(x), step)) for step, x in enumerate(norms)], rule


def wavy(count: int, seed: int = 0) -> list[float]:
    """Norms as of a sound training: within some ten percent of 1, falling slowly."""
    noise = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    return [math.exp(0.1 * float(x) - 0.002 * n) for n, x in enumerate(noise)]


@pytest.mark.parametrize("seed", range(5))
def test_a_sound_training_loses_no_step(seed: int):
    found, rule = verdicts(wavy(600, seed), BadSteps())
    assert not any(found)
    assert int(rule.good) == 600


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e6, 8.0])
def test_a_bad_norm_is_found_and_not_remembered(bad: float):
    norms = wavy(200)
    found, rule = verdicts([*norms[:100], bad, *norms[100:]])
    assert found == [step == 100 for step in range(201)]
    without = verdicts([*norms[:100], norms[100], *norms[100:]])[1]
    assert rule.logs_W.isfinite().all() and int(without.good) == int(rule.good) + 1
    assert not (rule.logs_W == torch.tensor(bad).log()).any()


def test_many_bad_steps_do_not_blind_the_rule():
    """OLMo's gap: once a NaN is in the window, every step is judged by a NaN."""
    norms = wavy(100)
    found, _ = verdicts(norms + [math.nan, 1e5] * 10 + norms)
    assert found == [False] * 100 + [True] * 20 + [False] * 100


def test_before_the_warm_up_only_what_is_not_finite_is_bad():
    settings = BadSteps(warm_up=16)
    assert verdicts([1.0] * 5 + [1e6, math.nan] + [1.0] * 5, settings)[0].index(True) == 6
    assert sum(verdicts([1.0] * 5 + [1e6, math.nan] + [1.0] * 5, settings)[0]) == 1
    assert sum(verdicts(wavy(50) + [1e6, math.nan], BadSteps(sigmas=0))[0]) == 1


def test_what_is_common_in_a_training_is_not_wild():
    """Norms that differ by a factor of 10 all the time, and a fall to 0 (all weights frozen)."""
    wide = [math.exp(2.3 * float(x)) for x in torch.randn(300, generator=tiny_seed(1))]
    assert not any(verdicts(wide, BadSteps())[0])
    assert not any(verdicts([1.0] * 40 + [0.0] * 20 + [3.9] * 5, BadSteps())[0])


def tiny_seed(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_resumed_rule_judges_alike():
    norms = [*wavy(70), 1e3, *wavy(30, 1), 1e3]
    found, _ = verdicts(norms)
    for cut in (3, 33, 70, 71, 90):
        first, rule = verdicts(norms[:cut])
        again = Verdicts(SOON, CPU)
        again.load_state_dict(rule.state_dict())
        rest = [bool(again.judge(torch.tensor(x), cut + n)) for n, x in enumerate(norms[cut:])]
        assert first + rest == found


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sigmas": -1}, "sigmas=-1"),
        ({"least_ratio": 0.5}, "least_ratio=0.5"),
        ({"warm_up": 1}, "warm_up=1 must be at least 4"),
        ({"window": 8}, "window=8 no less than warm_up"),
        ({"most_in_a_row": 0}, "most_in_a_row=0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        BadSteps(**settings)


# -- in a training ---------------------------------------------------------------------------------


class Hurt(Pretrain):
    """Has a loss or a gradient that was tampered with at chosen steps."""

    def __init__(self, *args: Any, hurt: dict[int, str], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.hurt = hurt

    def _kind(self) -> str:
        return self.hurt.get(self.trainer.global_step, "")

    def losses(self, prediction: Any) -> Losses:
        losses = super().losses(prediction)
        factor = {"nan": math.nan, "inf loss": math.inf}.get(self._kind(), 1.0)
        if factor == math.inf:  # its gradient is finite
            return Losses(losses.total + math.inf, losses.parts)
        return Losses(losses.total * factor, losses.parts)

    def on_after_backward(self) -> None:
        super().on_after_backward()
        for parameter in self.parameters():
            if parameter.grad is not None and self._kind() == "spike":
                parameter.grad.mul_(1e6)
        if self._kind() == "inf grad":
            next(p.grad for p in self.parameters() if p.grad is not None).view(-1)[0] = math.inf


class Snapshots(pl.Callback):
    """Everything that a step may move, behind every step."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: Pretrain) -> None:
        self._take(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Pretrain, *_: Any) -> None:
        self._take(trainer, pl_module)

    def _take(self, trainer: pl.Trainer, module: Pretrain) -> None:
        found = {name: p.detach().clone() for name, p in module.named_parameters()}
        found |= {f"buffer {name}": b.clone() for name, b in module.named_buffers()}
        if module.average is not None:
            found |= {f"ema {n}": t.clone() for n, t in module.average.averaged().items()}
        for index, state in trainer.optimizers[0].state_dict()["state"].items():
            found |= {f"state {index}.{k}": torch.as_tensor(v).clone() for k, v in state.items()}
        module.guard.settle(trainer)
        for modality, counts in module.ngrams.items():
            found |= {f"words {modality}.{k}": v for k, v in counts.state_dict().items()}
        if module.guard.verdicts is not None:
            found |= {f"rule {k}": v for k, v in module.guard.verdicts.state_dict().items()}
        self.taken.append(found)

    def moved(self, step: int) -> set[str]:
        """What differs behind a step (counted from 0), by the first word of its name."""
        before, after = self.taken[step], self.taken[step + 1]
        return {
            name.split()[0]
            for name in before.keys() | after.keys()
            if name not in before or name not in after or not torch.equal(before[name], after[name])
        }


def hurt(folder: Path, steps: int, hurt: dict[int, str], **settings: Any) -> tuple[Any, Snapshots]:
    pl.seed_everything(0)
    data, taken = tiny.world(), Snapshots()
    trainer_settings = {
        name: settings.pop(name)
        for name in ("gradient_clip_val", "accumulate_grad_batches")
        if name in settings
    }
    settings = {"bad_steps": BadSteps(warm_up=8), **settings}
    heads = {s.name: tiny.TINY_HEAD for s in data.layout.streams if not s.is_discrete}
    config = tiny.PredictorConfig(dim=32, depth=1, num_heads=2, heads=heads)
    model = Hurt(data.layout, config, hurt=hurt, eval_samples=1, sample_steps=1, **settings)
    run = tiny.trainer(folder, steps, taken, **trainer_settings)
    run.fit(model, datamodule=data)
    return model, taken


@pytest.mark.parametrize(
    "settings",
    [
        {"ema": 0.9, "gradient_clip_val": 1.0},
        {"optimizer": "muon"},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5},
    ],
    ids=["average", "muon", "accumulation"],
)
def test_f7_bad_steps_move_nothing_and_are_told(
    tmp_path: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    every = settings.get("accumulate_grad_batches", 1)
    bad = {9: "nan", 12: "inf grad", 17: "spike", 18: "inf loss"}
    model, taken = hurt(tmp_path, 22, bad, **settings)
    for step in range(22):
        moved = set.union(*(taken.moved(step * every + part) for part in range(every)))
        if step in bad:
            assert not moved - {"rule"}, (step, moved)
        else:
            assert moved >= {"state", "words", "rule", "predictor.next_stream.bias"}, (step, moved)
    assert model.guard.total == 4 and model.guard.in_a_row == 0
    assert all(p.isfinite().all() for p in model.parameters())
    lines = [json.loads(x) for x in (tmp_path / "bad_steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [step + 1 for step in bad]
    assert [line["reason"].split()[0] for line in lines] == [
        "loss", "gradient", "|gradient|", "loss",
    ]  # fmt: skip
    said = capsys.readouterr().out
    for line in lines:
        [names] = line["documents"]
        assert names and all(f"step {line['step']} skipped" in said and n for n in names)
        assert line["batches"] == [(line["step"] - 1) * every + 1, line["step"] * every]


def test_the_documents_of_a_bad_step_are_those_of_its_batch(tmp_path: Path):
    """The names in the log lead to documents whose rows are the batch's."""
    model, _ = hurt(tmp_path, 3, {1: "nan"})
    line = json.loads((tmp_path / "bad_steps.jsonl").read_text())
    data = tiny.world()
    data.setup("fit")
    loader = data.train_dataloader()
    batches = iter(loader)
    next(batches)
    second = next(batches)
    assert line["documents"] == [loader.titles(2)]
    documents = data.documents("train")
    every = [(epoch, i) for epoch in range(3) for i in range(len(documents))]
    titles = [f"{documents.title(*at)} (epoch {at[0]})" for at in every]
    named = [every[titles.index(title)] for title in loader.titles(2)]
    for modality, values in second.contents.items():
        rows = torch.cat([documents.document(*at).contents[modality] for at in named])
        assert len(rows) == len(values)
        assert float(rows.double().sum()) == pytest.approx(float(values.double().sum()))


def test_f8_too_many_in_a_row_stop_with_the_batch_saved(tmp_path: Path):
    first, taken = hurt(tmp_path / "clean", 2, {})
    with pytest.raises(Stop, match=r"5 bad steps in a row \(limit: model.bad_steps") as stop:
        hurt(
            tmp_path,
            30,
            dict.fromkeys(range(2, 30), "nan"),
            bad_steps=BadSteps(most_in_a_row=5),
        )
    assert stop.value.code == 70
    saved = torch.load(tmp_path / "bad_batch.pt", weights_only=True)
    assert saved["step"] == 7 and len(saved["batches"]) == 1 and saved["documents"]
    assert set(saved["batches"][0]["contents"]) == {0, 1, 2}
    lines = (tmp_path / "bad_steps.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["in_a_row"] == 5
    assert json.loads(lines[-1])["documents"] == [saved["documents"]]


def test_switched_off_nothing_is_skipped(tmp_path: Path):
    model, _ = hurt(tmp_path, 3, {1: "nan"}, bad_steps=BadSteps(skip=False))
    assert model.guard.total == 0 and not (tmp_path / "bad_steps.jsonl").exists()
    assert any(p.isnan().any() for p in model.parameters())


def test_the_state_goes_into_the_checkpoint_as_plain_types(tmp_path: Path):
    pl.seed_everything(0)
    data = tiny.world()
    model = tiny.pretrain(data, bad_steps=SOON)
    run = tiny.trainer(tmp_path, 6)
    run.fit(model, datamodule=data)
    model.guard.total, model.guard.in_a_row = 3, 2
    run.save_checkpoint(tmp_path / "x.ckpt")
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)["bad_steps"]
    assert state["total"] == 3 and int(state["statistics"]["good"]) == 6
    guard = StepGuard(SOON)
    guard.load_state_dict(state)
    assert (guard.total, guard.in_a_row) == (3, 2)
    again = guard.state_dict()["statistics"]
    assert all(torch.equal(again[k], v) for k, v in state["statistics"].items())
    guard.load_state_dict({**state, "in_a_row": SOON.most_in_a_row})
    assert guard.in_a_row == 0  # one who goes on after a stop is not stopped at once


# -- the verdict on the device ---------------------------------------------------------------------


def one_step(kind: str, bad: bool, steps: int = 2) -> tuple[list[Tensor], dict[str, Any]]:
    """Weights and state after good steps and one that may be bad, its verdict in `found_inf`."""
    torch.manual_seed(0)
    one, two = nn.Parameter(torch.randn(40, 36)), nn.Parameter(torch.randn(5))
    adamw = AdamW([two] if kind == "muon" else [one, two], lr=0.1, fused=True)
    hidden = [{"params": [one], "weight_decay": 0.1}]
    optimizer = MuonAdamW(hidden, adamw, lr=0.1) if kind == "muon" else adamw
    for step in range(steps + 1):
        last = step == steps
        for p in (one, two):
            p.grad = torch.full_like(p, math.nan) if last and bad else torch.randn_like(p)
        if last and not bad:
            continue
        optimizer.found_inf = torch.tensor(float(last and bad))
        optimizer.step()
    return [one, two], optimizer.state_dict()["state"]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_verdict_in_the_kernel_keeps_weights_and_state(kind: str, steps: int):
    """The way that CUDA goes; torch's kernels know it on a CPU, too."""
    kept, kept_state = one_step(kind, bad=False, steps=steps)
    bad, bad_state = one_step(kind, bad=True, steps=steps)
    assert all(torch.equal(a, b) for a, b in zip(kept, bad, strict=True))
    for index, state in bad_state.items():
        for name, value in state.items():
            before = kept_state.get(index, {}).get(name, torch.zeros_like(value))
            assert torch.equal(before, value), (index, name)


def test_the_average_stays_where_the_verdict_says_so():
    module = nn.Linear(3, 2)
    average = WeightAverage(module, 0.9)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(1.0)
    before = [t.clone() for t in average.other]
    average.update(torch.tensor(1.0))
    assert all(torch.equal(a, b) for a, b in zip(before, average.other, strict=True))
    other = WeightAverage(module, 0.9)
    other.other = [t.clone() for t in before]
    average.update(torch.tensor(0.0))
    other.update()
    for a, b in zip(average.other, other.other, strict=True):
        torch.testing.assert_close(a, b)
