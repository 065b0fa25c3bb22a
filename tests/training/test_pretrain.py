"""Laws of training on the embedded world, at toy size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from datamodules import Loading, World
from mmpredict.model import HeadConfig, PredictorConfig
from mmpredict.objectives import LossWeights, next_loss
from mmpredict.schema import Batch
from mmpredict.tokens import MelChunks, Patches, TextTokens
from mmpredict.training import Pretrain
from mmpredict.training.checkpoint import load_predictor

AUDIO = MelChunks(sample_rate=8000, num_mels=16, hops=2)
VIDEO = Patches(size=16, patch=8, fps=8)
TINY_HEAD = HeadConfig(dim=32, depth=1, draws=1)


class Losses(pl.Callback):
    """Every step's total loss."""

    def __init__(self) -> None:
        self.totals: list[float] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        self.totals.append(float(outputs["loss"]))


def world(**settings: Any) -> World:
    streams = {"audio": AUDIO, "video": VIDEO, "text": TextTokens()} | settings
    loading = Loading(context_length=320, rows=2, workers=0, statistics_documents=4)
    return World(**streams, train_scenes=12, val_scenes=3, test_scenes=3, loading=loading)


def pretrain(data: World, **settings: Any) -> Pretrain:
    heads = {s.name: TINY_HEAD for s in data.layout.streams if not s.is_discrete}
    config = PredictorConfig(dim=32, depth=1, num_heads=2, heads=heads)
    return Pretrain(data.layout, config, eval_samples=2, sample_steps=2, **settings)


def trainer(folder: Path, steps: int, *callbacks: pl.Callback) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder,
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        callbacks=list(callbacks),
    )


def train(folder: Path, seed: int, steps: int = 4, lr: float = 1e-3) -> tuple[list[float], Any]:
    pl.seed_everything(seed)
    data, losses = world(), Losses()
    model = pretrain(data, lr=lr)
    trainer(folder, steps, losses).fit(model, datamodule=data)
    return losses.totals, model


def test_same_seed_same_losses_and_weights(tmp_path: Path):
    first, one = train(tmp_path, seed=0)
    again, two = train(tmp_path, seed=0)
    other, _ = train(tmp_path, seed=1)
    assert first == again and first != other
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_losses_fall(tmp_path: Path):
    losses, _ = train(tmp_path, seed=0, steps=30, lr=1e-2)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.mark.parametrize("left_out", [("audio",), ("video",), ("text",), ("audio", "video")])
def test_trains_without_a_stream(tmp_path: Path, left_out: tuple[str, ...]):
    data = world(**dict.fromkeys(left_out))
    model, losses = pretrain(data), Losses()
    trainer(tmp_path, 2, losses).fit(model, datamodule=data)
    assert len(losses.totals) == 2 and all(map(torch.isfinite, map(torch.tensor, losses.totals)))
    assert not set(left_out) & {s.name for s in model.predictor.layout.streams}


def test_a_batch_may_lack_any_stream_of_the_run():
    """Weights of a run with all streams take a document that has words alone, and the reverse."""
    full, words = world(), world(audio=None, video=None)
    model = pretrain(full)
    batch = next(iter(words.train_dataloader()))
    prediction = model(batch)
    assert set(prediction.streams) == {2}


def test_the_datas_statistics_are_taken_over_once_and_saved(tmp_path: Path):
    data = world()
    model = pretrain(data)
    run = trainer(tmp_path, 1)
    run.fit(model, datamodule=data)
    expected = data.statistics().mean[1]
    assert torch.equal(model.predictor.embed.standardise["video"].mean, expected)
    run.save_checkpoint(tmp_path / "x.ckpt")
    predictor, codecs, about = load_predictor(tmp_path / "x.ckpt")
    assert torch.equal(predictor.embed.standardise["video"].mean, expected)
    assert codecs == data.codecs and about["context_length"] == 320


def test_a_checkpoint_gives_the_same_prediction_without_the_data(tmp_path: Path):
    data = world()
    model = pretrain(data)
    run = trainer(tmp_path, 2)
    run.fit(model, datamodule=data)
    run.save_checkpoint(tmp_path / "x.ckpt")
    predictor, _, _ = load_predictor(tmp_path / "x.ckpt")
    batch: Batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        mine = model.predictor.eval().hidden(batch)
        assert torch.equal(mine, predictor.hidden(batch))


def test_resume_takes_steps_schedule_and_counts_over(tmp_path: Path):
    data = world()
    model = pretrain(data)
    first = trainer(tmp_path, 3)
    first.fit(model, datamodule=data)
    first.save_checkpoint(tmp_path / "x.ckpt")
    counted = model.ngrams[2].state_dict()["counts"].sum()
    second = trainer(tmp_path, 5)
    resumed = pretrain(data)
    second.fit(resumed, datamodule=data, ckpt_path=str(tmp_path / "x.ckpt"), weights_only=True)
    assert second.global_step == 5
    assert resumed.ngrams[2].state_dict()["counts"].sum() > counted


def test_loss_weights_scale_a_streams_gradient():
    data = world()
    model = pretrain(data, weights=LossWeights(streams={"video": 0.0, "audio": 0.0}))
    pl.seed_everything(0)
    batch = next(iter(data.train_dataloader()))
    model.predictor.embed.set_statistics(data.statistics())
    next_loss(model(batch), model.predictor.layout, model.weights).total.backward()
    assert not model.predictor.heads["video"].to_mean.weight.grad.any()
    assert model.predictor.embed.tables["text"].weight.grad.any()


def test_unknown_stream_names_in_settings_are_refused():
    data = world()
    with pytest.raises(ValueError, match="viedo"):
        pretrain(data, weights=LossWeights(streams={"viedo": 2.0}))
    with pytest.raises(ValueError, match="sound"):
        Pretrain(data.layout, PredictorConfig(dim=32, num_heads=2, heads={"sound": TINY_HEAD}))
