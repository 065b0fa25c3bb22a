"""A resumed run is the unbroken one: weights, averages, moments, counts and logged numbers, bit by
bit, from every step of it. The resumed run begins with other random states on purpose."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import DummyLogger
from torch import Tensor

from datamodules import AudioVisual, ClipDataModule, Loading, Mixture, Text
from mmpredict.model import HeadConfig, PredictorConfig
from mmpredict.model.fast_weights import FastWeightsConfig
from mmpredict.objectives import LossWeights
from mmpredict.tokens import MelChunks, TextTokens
from mmpredict.training import Pretrain
from mmpredict.training.checkpoint_io import VerifiedCheckpointIO
from mmpredict.training.randomness import Randomness
from mmpredict.training.saving import Checkpoints
from tests.datamodules.small import prose, write_sounds

SOUND = MelChunks(sample_rate=8000, channels=1, num_mels=8, hops=2)
STEPS = 6


@dataclass(frozen=True)
class Case:
    """What is switched on in a run.

    Args:
        model, predictor, trainer, loading: settings beside those of the plain run.
        mixed: documents come from two sources by weight.
    """

    model: dict[str, Any] = field(default_factory=dict)
    predictor: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    loading: dict[str, Any] = field(default_factory=dict)
    mixed: bool = False


CASES = {
    "plain": Case(),
    "workers": Case(loading={"workers": 2}),
    "accumulation": Case(trainer={"accumulate_grad_batches": 2, "val_check_interval": 3}),
    "average": Case(model={"ema": 0.8}),
    "muon": Case(model={"optimizer": "muon"}),
    "mixture": Case(mixed=True),
    "fast weights": Case(
        predictor={"fast_weights": FastWeightsConfig(every=1, num_heads=2, chunk=8)}
    ),
    "open rows": Case(loading={"open_rows": 6, "context_length": 48}),
    "uncertainty": Case(model={"weights": LossWeights(balance="uncertainty")}, mixed=True),
    "all": Case(
        model={"ema": 0.8, "optimizer": "muon", "weights": LossWeights(balance="uncertainty")},
        predictor={"fast_weights": FastWeightsConfig(every=1, num_heads=2, chunk=8)},
        trainer={"accumulate_grad_batches": 3, "gradient_clip_val": 0.5, "val_check_interval": 4},
        loading={"workers": 1, "open_rows": 5},
        mixed=True,
    ),
}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    write_sounds(folder / "sounds", 9, seconds=1.0)
    (folder / "words").mkdir()
    for n in range(4):
        (folder / "words" / f"{n}.txt").write_text(prose(900, seed=n))
    return folder


def data_of(case: Case, media: Path) -> ClipDataModule:
    how = {"context_length": 32, "rows": 2, "workers": 0, "open_rows": 3, "statistics_documents": 2}
    loading = Loading(**how | case.loading)
    root = str(media / "sounds")
    sounds = AudioVisual(root, audio=SOUND, video=None, text=None, clip_seconds=0.4)
    if case.mixed:
        words = Text(str(media / "words"), text=TextTokens())
        return Mixture([sounds, words], [1.0, 1.0], documents_per_epoch=20, loading=loading)
    sounds.loading = sounds.skip_log.loading = loading
    return sounds


def model_of(case: Case, data: ClipDataModule) -> Pretrain:
    heads = {"audio": HeadConfig(dim=16, depth=1, draws=1)}
    config = PredictorConfig(dim=32, depth=1, num_heads=2, heads=heads, **case.predictor)
    return Pretrain(data.layout, config, eval_samples=1, sample_steps=1, lr=0.01, **case.model)


class Keeping(Checkpoints):
    """Keeps what a run that is killed behind each save would have left."""

    kept: dict[int, Path]

    def save(self, trainer: pl.Trainer) -> None:
        before = self.saved_step
        super().save(trainer)
        if self.saved_step != before:
            kept = Path(self.dirpath).parent / f"behind-{self.saved_step}.ckpt"
            shutil.copy(Path(self.dirpath) / "last.ckpt", kept)
            self.kept[self.saved_step] = kept


class Log(pl.Callback):
    """The loss of each batch, and where each step of it stands among all batches."""

    def __init__(self) -> None:
        self.batches: dict[int, float] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, *_: Any) -> None:
        number = trainer.fit_loop.epoch_loop.batch_progress.total.processed
        self.batches[number] = float(outputs["loss"])


class Written(DummyLogger):
    """What went to the logs: all numbers, by step, as metrics.csv has them."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))


@dataclass
class Run:
    """A finished run, and the checkpoints that it would have left behind each step."""

    model: Pretrain
    log: Log
    rows: list[tuple[int, dict[str, float]]]
    trainer: pl.Trainer
    kept: dict[int, Path]


def run(
    folder: Path,
    case: Case,
    media: Path,
    ckpt: Path | None = None,
    every_n: int = 1,
    **settings: Any,
) -> Run:
    pl.seed_everything(0 if ckpt is None else 12345)
    data, log, written = data_of(case, media), Log(), Written()
    data.prepare_data()
    model = model_of(case, data)
    saving = Keeping(folder / "ckpt", every_n_train_steps=every_n)
    saving.kept = {}
    defaults = {"max_steps": STEPS, "val_check_interval": 2, "limit_val_batches": 1}
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        check_val_every_n_epoch=None,
        log_every_n_steps=1,
        num_sanity_val_steps=1,
        logger=written,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Randomness(), log, saving],
        plugins=[VerifiedCheckpointIO()],
        **defaults | case.trainer | settings,
    )
    trainer.fit(model, datamodule=data, ckpt_path=ckpt and str(ckpt))
    return Run(model, log, written.rows, trainer, saving.kept)


def everything(run: Run) -> dict[str, Tensor]:
    """All that the end of a run consists of, flat."""
    found: dict[str, Tensor] = {}

    def take(name: str, thing: Any) -> None:
        if isinstance(thing, Tensor):
            found[name] = thing
        elif isinstance(thing, dict):
            for key, value in thing.items():
                take(f"{name}.{key}", value)
        elif isinstance(thing, list | tuple):
            for index, value in enumerate(thing):
                take(f"{name}.{index}", value)
        elif isinstance(thing, int | float | bool):
            found[name] = torch.tensor(thing, dtype=torch.float64)

    checkpoint = torch.load(run.kept[STEPS], weights_only=True)
    for name in ("state_dict", "optimizer_states", "lr_schedulers", "randomness", "mmpredict"):
        take(name, checkpoint[name])
    take("data", next(v for k, v in checkpoint.items() if isinstance(v, dict) and "position" in v))
    take("average", checkpoint.get("running_weights", {}))
    return found


QUICK = ("accumulation", "mixture")
MARKED = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES]


@pytest.mark.parametrize("name", MARKED)
def test_from_every_step_on_it_is_the_same_run(tmp_path: Path, media: Path, name: str):
    case = CASES[name]
    whole = run(tmp_path / "whole", case, media)
    expected = everything(whole)
    assert sorted(whole.kept) == list(range(1, STEPS + 1)) and whole.rows
    chosen = sorted(whole.kept)[:-1] if name in ("plain", "all") else [1, 2, 5]
    for step in chosen:
        again = run(tmp_path / f"from-{step}", case, media, whole.kept[step])
        found = everything(again)
        assert found.keys() == expected.keys()
        assert [n for n in found if not torch.equal(found[n], expected[n])] == [], f"from {step}"
        position = torch.load(whole.kept[step], weights_only=True)["loops"]["fit_loop"]
        first = position["epoch_loop.batch_progress"]["total"]["processed"] + 1
        assert again.log.batches == {n: x for n, x in whole.log.batches.items() if n >= first}
        assert again.rows == [row for row in whole.rows if row[0] >= again.rows[0][0]], step
        assert again.rows[0][0] == step


def test_a_validation_amid_an_accumulation_is_saved_behind_the_step(tmp_path: Path, media: Path):
    """With gradients half gathered, which no checkpoint holds; every_n is off on purpose."""
    case = CASES["accumulation"]
    whole = run(tmp_path / "whole", case, media, every_n=0)
    expected = everything(whole)
    first, *others = sorted(whole.kept)
    assert others and first < STEPS
    again = everything(run(tmp_path / "again", case, media, whole.kept[first], every_n=0))
    assert [n for n in again if not torch.equal(again[n], expected[n])] == []


def test_a_batch_that_failed_is_met_again_with_the_same_noise(tmp_path: Path, media: Path):
    """A crash in the middle of a step: what it drew and counted until then leaves no trace."""
    case = CASES["plain"]
    whole = run(tmp_path / "whole", case, media)

    class Broken(Pretrain):
        def losses(self, prediction: Any) -> Any:
            found = super().losses(prediction)
            if self.trainer.global_step == 3 and self.trainer.training:
                torch.rand(3)  # whatever else a step may draw
                raise RuntimeError("the middle of a step")
            return found

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="middle"):
        patch.setattr(f"{__name__}.Pretrain", Broken)
        run(tmp_path / "broken", case, media, every_n=0)
    last = tmp_path / "broken" / "ckpt" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 3
    again = everything(run(tmp_path / "again", case, media, last))
    expected = everything(whole)
    assert [n for n in again if not torch.equal(again[n], expected[n])] == []


def test_nothing_is_saved_while_the_weights_are_being_changed(tmp_path: Path, media: Path):
    class Interrupted(Pretrain):
        def optimizer_step(self, *args: Any, **settings: Any) -> None:
            super().optimizer_step(*args, **settings)
            if self.trainer.global_step == 3:
                raise RuntimeError("before the average has followed")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="followed"):
        patch.setattr(f"{__name__}.Pretrain", Interrupted)
        run(tmp_path, CASES["average"], media, every_n=2)
    saved = torch.load(tmp_path / "ckpt" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
