"""Laws of a run with image encoders: the copy follows once per optimiser step and comes back from a
checkpoint; what is frozen needs its file once; a collapse is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import timm
import torch
from torch import Tensor

from datamodules import Loading, World
from mmpredict.model import HeadConfig, PredictorConfig
from mmpredict.model.frame_encoder import FrameEncoderConfig
from mmpredict.model.latent import LatentConfig
from mmpredict.schema import LatentPrediction, Prediction
from mmpredict.tokens import Patches
from mmpredict.training import Pretrain
from mmpredict.training.latent import LEAST_SHARE, PATIENCE, LatentMonitor
from mmpredict.training.report_curves import panels, stream_names
from tests.builders import LAYOUT, VIDEO, generator

VIT = FrameEncoderConfig("test_vit", size=16, args={"patch_size": 8})
EMA = LatentConfig(target="ema", decay=0.9)


def world() -> World:
    loading = Loading(context_length=64, rows=2, workers=0, statistics_documents=4)
    video = Patches(size=16, patch=8, fps=8)
    return World(
        video=video,
        audio=None,
        text=None,
        train_scenes=12,
        val_scenes=2,
        test_scenes=2,
        loading=loading,
    )


def module(encoder: FrameEncoderConfig, latent: LatentConfig | None = EMA, **settings: Any):
    data = world()
    config = PredictorConfig(
        dim=32,
        depth=1,
        num_heads=2,
        heads={"video": HeadConfig(kind="regression")},
        encoders={"video": encoder},
        latent={} if latent is None else {"video": latent},
    )
    return Pretrain(data.layout, config, eval_samples=2, sample_steps=2, **settings), data


class Logged(pl.Callback):
    """Every metric of every step, and how often the copy followed."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []
        self.followed: list[int] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: Pretrain) -> None:
        latent = pl_module.predictor.latents["video"]
        follow = latent.follow
        latent.follow = lambda own, bad=None: (
            self.followed.append(trainer.global_step),
            follow(own, bad),
        )

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.metrics.append({k: float(v) for k, v in trainer.callback_metrics.items()})


def fit(folder: Path, model: Pretrain, data: World, *callbacks: pl.Callback, **settings: Any):
    ckpt = settings.pop("ckpt", None)
    pl.seed_everything(0)
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        log_every_n_steps=1,
        callbacks=list(callbacks),
        **settings,
    )
    trainer.fit(model, datamodule=data, ckpt_path=ckpt)
    return trainer


def test_the_copy_follows_once_per_optimiser_step_and_ranks_are_logged(tmp_path: Path):
    logged = Logged()
    model, data = module(VIT)
    fit(tmp_path, model, data, logged, max_steps=2, accumulate_grad_batches=2)
    assert logged.followed == [0, 1]  # not with each of the four batches
    last = logged.metrics[-1]
    assert 1 <= last["train/latent/video_rank_target"] <= 64
    assert 1 <= last["train/latent/video_rank_said"] <= 64
    assert last["train/loss/video_latent"] > 0


def test_a_resumed_copy_goes_on_where_it_was(tmp_path: Path):
    unbroken, data = module(VIT, warmup_share=0.0, decay_share=0.0)
    fit(tmp_path, unbroken, data, max_steps=4)
    first, data = module(VIT, warmup_share=0.0, decay_share=0.0)
    trainer = fit(tmp_path, first, data, max_steps=2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    second, data = module(VIT, warmup_share=0.0, decay_share=0.0)
    fit(tmp_path, second, data, max_steps=4, ckpt=tmp_path / "two.ckpt")
    ends = [model.predictor.state_dict() for model in (unbroken, second)]
    copied = [name for name in ends[0] if ".target.backbone." in name]
    own = "embed.encoders.video.backbone.pos_embed"
    assert copied and not torch.equal(
        ends[0][own], ends[0]["latents.video.target.backbone.pos_embed"]
    )
    for name in ends[0]:
        assert torch.equal(ends[0][name], ends[1][name]), name


def test_weights_are_read_once_and_not_to_go_on(tmp_path: Path):
    with torch.random.fork_rng():
        state = timm.create_model("test_vit", img_size=16, patch_size=8).state_dict()
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    frozen = replace(VIT, weights=str(path), frozen=True)
    model, data = module(frozen, latent=None)
    name = "blocks.0.attn.qkv.weight"
    trainer = fit(tmp_path, model, data, max_steps=1)
    backbone = model.predictor.embed.encoders["video"].backbone
    assert torch.equal(backbone.state_dict()[name], state[name])
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    path.unlink()
    again, data = module(frozen, latent=None)
    fit(tmp_path, again, data, max_steps=2, ckpt=tmp_path / "one.ckpt")
    backbone = again.predictor.embed.encoders["video"].backbone
    assert torch.equal(backbone.state_dict()[name], state[name])
    frozen_now = {p for group in again.trainer.optimizers[0].param_groups for p in group["params"]}
    assert not frozen_now & set(backbone.parameters())


def looks(said: Tensor, targets: Tensor, times: int) -> LatentMonitor:
    monitor = LatentMonitor(LAYOUT)
    for _ in range(times):
        monitor.look(Prediction({}, None, {VIDEO: LatentPrediction(said, targets)}))
    return monitor


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(0))


def test_a_collapse_is_told_once_after_some_looks(recwarn: pytest.WarningsRecorder):
    rich, poor = normal(50, 6, 32), normal(1, 1, 32).expand(50, 6, 32)
    looks(poor, rich, PATIENCE - 1)
    assert not recwarn.list
    looks(poor, rich, 3 * PATIENCE)
    assert len(recwarn.list) == 1
    assert "features said of video have collapsed: effective rank 1.0" in str(recwarn[0].message)


def test_targets_that_are_all_alike_are_a_collapse_too():
    poor = normal(1, 1, 32).expand(50, 6, 32)
    with pytest.warns(UserWarning, match="of their targets 1.0"):
        looks(poor, poor, PATIENCE)


def test_good_features_are_left_in_peace(recwarn: pytest.WarningsRecorder):
    rich = normal(50, 6, 32)
    monitor = looks(rich, rich, PATIENCE)
    looks(rich * torch.logspace(0, -2, 32), rich, PATIENCE)  # fewer directions, but not few
    assert not recwarn.list and LEAST_SHARE < 0.5
    poor = normal(1, 1, 32).expand(50, 6, 32)
    for said in [poor] * (PATIENCE - 1) + [rich] + [poor] * (PATIENCE - 1):  # it passes
        monitor.look(Prediction({}, None, {VIDEO: LatentPrediction(said, rich)}))
    assert not recwarn.list


def test_the_report_draws_features_with_their_stream():
    points = [(1.0, 0.5), (2.0, 0.4)]
    ranks = [f"train/latent/video_rank_{which}" for which in ("said", "target")]
    losses = [f"train/loss/video{part}" for part in ("", "_mean", "_latent")]
    series = dict.fromkeys([*losses, *ranks], points)
    assert stream_names(series) == ["video"]
    titles = [panel.title for panel in panels(series, "video")]
    assert {"loss of the features", "effective rank of the features"} <= set(titles)
