"""Laws of training on the embedded world, at toy size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from datamodules import Loading, World
from mmpredict.model import HeadConfig, PredictorConfig
from mmpredict.objectives import LossWeights, next_loss
from mmpredict.schema import Batch
from mmpredict.sequence import pack
from mmpredict.tokens import MelChunks, Patches, TextTokens
from mmpredict.training import Pretrain
from mmpredict.training.callbacks import evaluating
from mmpredict.training.checkpoint import load_predictor
from tests import builders

AUDIO = MelChunks(sample_rate=8000, num_mels=16, hops=2)
VIDEO = Patches(size=16, patch=8, fps=8)
TINY_HEAD = HeadConfig(dim=32, depth=1, draws=1)
NOISELESS = HeadConfig(kind="regression")


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


def pretrain(data: World, head: HeadConfig = TINY_HEAD, **settings: Any) -> Pretrain:
    heads = {s.name: head for s in data.layout.streams if not s.is_discrete}
    config = PredictorConfig(dim=32, depth=1, num_heads=2, heads=heads)
    return Pretrain(data.layout, config, eval_samples=2, sample_steps=2, **settings)


def trainer(folder: Path, steps: int, *callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    defaults = {"limit_val_batches": 0}
    return pl.Trainer(
        default_root_dir=folder,
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=list(callbacks),
        **defaults | settings,
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
    assert not model.predictor.heads["video"].block_mean.to_mean.weight.grad.any()
    assert model.predictor.embed.tables["text"].weight.grad.any()


def test_unknown_stream_names_in_settings_are_refused():
    data = world()
    with pytest.raises(ValueError, match="viedo"):
        pretrain(data, weights=LossWeights(streams={"viedo": 2.0}))
    with pytest.raises(ValueError, match="sound"):
        Pretrain(data.layout, PredictorConfig(dim=32, num_heads=2, heads={"sound": TINY_HEAD}))


class Weights(pl.Callback):
    """The predictor's weights after every optimiser step, and the gradients that it took."""

    def __init__(self) -> None:
        self.seen: list[list[Tensor]] = []
        self.gradients: list[list[Tensor]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        if len(self.seen) < trainer.global_step:
            self.seen.append(copies(pl_module.predictor.parameters()))
            self.gradients.append([p.grad.clone() for p in pl_module.parameters()])


def copies(tensors: Any) -> list[Tensor]:
    return [t.detach().clone() for t in tensors]


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def near(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in zip(a, b, strict=True))


def test_two_micro_batches_equal_one_batch_of_both(tmp_path: Path):
    """Where the counts of every stream are equal, so that a mean of means is the mean."""
    documents = [builders.document(seed=seed, timed="all") for seed in (1, 2)]
    batches = {
        "apart": [pack([[document]], context_length=64) for document in documents],
        "together": [pack([[document] for document in documents], context_length=64)],
    }
    gradients = {}
    for name, parts in batches.items():
        pl.seed_everything(0)
        heads = {"audio": NOISELESS, "video": NOISELESS}
        config = PredictorConfig(dim=32, depth=1, num_heads=2, heads=heads)
        model = Pretrain(builders.LAYOUT, config)
        model.statistics_taken, seen = True, Weights()
        loader = torch.utils.data.DataLoader(parts, batch_size=None)
        run = trainer(tmp_path, 1, seen, accumulate_grad_batches=len(parts))
        run.fit(model, train_dataloaders=loader)
        gradients[name] = seen.gradients[0]
    assert sum(float(g.abs().sum()) for g in gradients["together"]) > 1
    assert near(gradients["apart"], gradients["together"])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_under_a_fused_optimiser(tmp_path: Path, precision: str):
    seen = Weights()
    data = world()
    run = trainer(tmp_path, 2, seen, gradient_clip_val=0.01, precision=precision)
    model = pretrain(data)
    run.fit(model, datamodule=data)
    norms = [torch.cat([g.flatten() for g in gs]).norm() for gs in seen.gradients]
    assert [float(norm) for norm in norms] == pytest.approx([0.01, 0.01], rel=1e-3)
    assert float(model.grad_norm) > 0.01  # what it was before


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_resumed_run_equals_the_unbroken_one_bit_by_bit(tmp_path: Path, kind: str):
    """Weights, averages, moments and the schedule, with clipping and accumulation."""

    def run(steps: int, until: int, ckpt: Path | None = None) -> Pretrain:
        pl.seed_everything(0)
        data = world()
        model = pretrain(data, NOISELESS, optimizer=kind, lr=0.01, ema=0.9, decay_share=0.5)
        stop = StopAt(until, tmp_path / "x.ckpt")
        settings = {"gradient_clip_val": 1.0, "accumulate_grad_batches": 2}
        trainer(tmp_path, steps, stop, **settings).fit(
            model, datamodule=data, ckpt_path=ckpt and str(ckpt), weights_only=True
        )
        return model

    whole = run(4, until=4)
    run(4, until=2)
    halves = run(4, until=4, ckpt=tmp_path / "x.ckpt")
    assert same(whole.predictor.parameters(), halves.predictor.parameters())
    assert same(whole.average.other, halves.average.other)
    assert not same(whole.average.other, whole.average.weights)


class StopAt(pl.Callback):
    """Saves and stops after so many steps, as a killed run would have."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True
            trainer.limit_train_batches = 0


def test_the_average_is_the_average_and_what_a_checkpoint_predicts_with(tmp_path: Path):
    data, seen = world(), Weights()
    pl.seed_everything(0)
    model = pretrain(data, lr=0.01, ema=0.75)
    expected = copies(model.predictor.parameters())
    run = trainer(tmp_path, 3, seen)
    run.fit(model, datamodule=data)
    for weights in seen.seen:
        expected = [0.75 * e + 0.25 * w for e, w in zip(expected, weights, strict=True)]
    assert near(list(model.average.other), expected)
    assert not near(expected, seen.seen[-1])
    assert same(model.predictor.parameters(), seen.seen[-1])  # training goes on with these

    run.save_checkpoint(tmp_path / "x.ckpt")
    predictor, _, _ = load_predictor(tmp_path / "x.ckpt")
    assert near(copies(predictor.parameters()), expected)
    with evaluating(model):  # as the closing scores and the samples are made
        assert same(model.predictor.parameters(), predictor.parameters())
    assert same(model.predictor.parameters(), seen.seen[-1])


def test_validation_scores_the_average_and_gives_the_weights_back(tmp_path: Path):
    class Watch(pl.Callback):
        def on_validation_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            scored.append(copies(pl_module.predictor.parameters()))
            trainer.save_checkpoint(tmp_path / "amid.ckpt")  # as a run that fails here would

    data, scored, seen = world(), [], Weights()
    model = pretrain(data, lr=0.01, ema=0.5)
    settings = {"limit_val_batches": 1, "val_check_interval": 2, "num_sanity_val_steps": 0}
    run = trainer(tmp_path, 2, seen, Watch(), check_val_every_n_epoch=None, **settings)
    run.fit(model, datamodule=data)
    assert near(scored[0], model.average.other)
    assert not near(scored[0], seen.seen[-1])
    assert same(model.predictor.parameters(), seen.seen[-1])
    saved = torch.load(tmp_path / "amid.ckpt", weights_only=True)
    running = saved["running_weights"]
    assert same(running.values(), model.average.running().values())
    averaged = [saved["state_dict"][name] for name in running]
    assert same(averaged, model.average.averaged().values())


def test_an_average_is_left_and_taken_up(tmp_path: Path):
    """A run without an average goes on with the weights that were trained, and the reverse."""
    data = world()
    with_average = pretrain(data, ema=0.9, lr=0.01)
    first = trainer(tmp_path, 2)
    first.fit(with_average, datamodule=data)
    first.save_checkpoint(tmp_path / "x.ckpt")
    without = pretrain(data, lr=0.0, weight_decay=0.0)
    resumed = trainer(tmp_path, 3)
    resumed.fit(without, datamodule=data, ckpt_path=str(tmp_path / "x.ckpt"), weights_only=True)
    assert same(without.predictor.parameters(), with_average.predictor.parameters())
    resumed.save_checkpoint(tmp_path / "y.ckpt")
    again = pretrain(data, lr=0.0, weight_decay=0.0, ema=0.9)
    trainer(tmp_path, 4).fit(
        again, datamodule=data, ckpt_path=str(tmp_path / "y.ckpt"), weights_only=True
    )
    assert near(again.average.other, copies(again.predictor.parameters()))


@pytest.mark.parametrize("ema", [-0.1, 1.0])
def test_an_impossible_average_is_refused(ema: float):
    with pytest.raises(ValueError, match="ema"):
        pretrain(world(), ema=ema)
