"""Laws of training tokenizers, and of handing them to a predictor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from datamodules import Loading, World
from mmpredict.model import HeadConfig, Predictor, PredictorConfig
from mmpredict.model.fsq import FsqConfig
from mmpredict.tokens import MelChunks, Patches, TextTokens
from mmpredict.training import FsqTokenizers, Pretrain
from mmpredict.training.checkpoint import load_predictor
from mmpredict.training.tokenizer import Use

SMALL = FsqConfig(levels=(5, 5), codes_per_position=4, dim=32, depth=1)


def world(**settings: Any) -> World:
    streams = {
        "audio": MelChunks(sample_rate=8000, num_mels=16, hops=2),
        "video": Patches(size=16, patch=8, fps=8),
        "text": TextTokens(),
    }
    loading = Loading(context_length=320, rows=2, workers=0, statistics_documents=4)
    counts = {"train_scenes": 12, "val_scenes": 3, "test_scenes": 3}
    return World(**(streams | settings), **counts, loading=loading)


def trainer(folder: Path, steps: int) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder,
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        limit_val_batches=1,
        check_val_every_n_epoch=None,
        val_check_interval=steps,
        log_every_n_steps=1,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FsqTokenizers, dict]:
    folder = tmp_path_factory.mktemp("tokenizer")
    pl.seed_everything(0)
    data = world()
    module = FsqTokenizers(data.layout, {"video": SMALL, "audio": SMALL}, lr=5e-3)
    run = trainer(folder, 40)
    run.fit(module, datamodule=data)
    metrics = {name: float(value) for name, value in run.callback_metrics.items()}
    run.save_checkpoint(folder / "t.ckpt")
    return folder / "t.ckpt", module, metrics


def test_it_learns_and_says_how_well(trained):
    _, module, metrics = trained
    assert metrics["val/audio/squared_error"] < 0.5  # twelve scenes teach frames by heart
    for name in ("audio", "video"):
        assert metrics[f"train/loss/{name}"] < 0.85  # 1 says the mean
        assert 0 < metrics[f"val/{name}/codes_used"] <= 1
        assert 0 < metrics[f"val/{name}/perplexity_share"] <= metrics[f"val/{name}/codes_used"]
        running = module.tokenizers[name].error.value_D
        assert 0 < float(running.mean()) < 1


def test_it_learns_in_the_units_of_the_predictor(trained):
    _, module, _ = trained
    data = world()
    predictor = Predictor(data.layout, PredictorConfig(dim=32, depth=1, num_heads=2))
    data.setup("fit")
    predictor.embed.set_statistics(data.statistics())
    batch = next(iter(data.train_dataloader()))
    for name, spec in module.specs.items():
        mine = module.blocks(batch, spec)
        torch.testing.assert_close(mine, predictor.embed.values(batch, spec.modality))
        scale = predictor.embed.standardise[name]
        module.tokenizers[name].check_statistics(scale.mean, scale.std, name)


def test_use_counts_codes_and_errors(trained):
    _, module, _ = trained
    tokenizer = module.tokenizers["video"]
    blocks = torch.randn(50, 4, 192, generator=torch.Generator().manual_seed(0))
    use = Use(tokenizer)
    for part in blocks.chunk(2):
        use.add(tokenizer, part)
    codes = tokenizer.encode(blocks).flatten(0, 1)
    share = sum(len(codes[:, g].unique()) for g in range(4)) / 4 / 25
    scores = use.scores()
    assert float(scores["codes_used"]) == pytest.approx(share)
    counts = torch.stack([torch.bincount(codes[:, g], minlength=25) for g in range(4)])
    chances = counts / counts.sum(1, keepdim=True)
    perplexity = torch.distributions.Categorical(chances).perplexity().mean() / 25
    assert float(scores["perplexity_share"]) == pytest.approx(float(perplexity), rel=1e-4)
    with torch.no_grad():
        error = (tokenizer(blocks)[0] - blocks).square().mean()
    assert float(scores["squared_error"]) == pytest.approx(float(error), rel=1e-5)


def test_a_predictor_learns_on_it_and_its_checkpoint_stands_alone(trained, tmp_path: Path):
    path, module, _ = trained
    file = tmp_path / "mine.ckpt"
    file.write_bytes(path.read_bytes())
    data = world()
    heads = {
        name: HeadConfig(kind="fsq", dim=32, depth=1, tokenizer=str(file))
        for name in ("audio", "video")
    }
    config = PredictorConfig(dim=32, depth=1, num_heads=2, heads=heads)
    model = Pretrain(data.layout, config, eval_samples=2, sample_steps=2)
    run = trainer(tmp_path, 2)
    run.fit(model, datamodule=data)
    run.save_checkpoint(tmp_path / "p.ckpt")
    file.unlink()
    predictor, _, _ = load_predictor(tmp_path / "p.ckpt")
    for name, tokenizer in module.tokenizers.items():
        mine = predictor.heads[name].tokenizer.state_dict()
        assert all(torch.equal(v, mine[k]) for k, v in tokenizer.state_dict().items())
    batch = next(iter(data.val_dataloader()))
    generators = (torch.Generator().manual_seed(0) for _ in range(2))
    with torch.no_grad():
        pairs = zip((model.predictor, predictor), generators, strict=True)
        one, two = (m.eval()(batch, g) for m, g in pairs)
    assert torch.equal(one.streams[1].nats_MP, two.streams[1].nats_MP)


def test_same_seed_same_tokenizer(tmp_path: Path):
    states = []
    for _ in range(2):
        pl.seed_everything(1)
        data = world()
        module = FsqTokenizers(data.layout, {"video": SMALL, "audio": SMALL})
        trainer(tmp_path, 3).fit(module, datamodule=data)
        states.append(module.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_training_goes_on_from_a_checkpoint(trained, tmp_path: Path):
    path, module, _ = trained
    data = world()
    again = FsqTokenizers(data.layout, {"video": SMALL, "audio": SMALL}, lr=5e-3)
    run = trainer(tmp_path, 41)
    run.fit(again, datamodule=data, ckpt_path=str(path), weights_only=True)
    assert run.global_step == 41
    for name in module.specs:
        assert torch.equal(module.tokenizers[name].std_D, again.tokenizers[name].std_D)


def test_a_tokenizer_of_other_data_is_refused_when_training_begins(trained, tmp_path: Path):
    path, _, _ = trained
    head = HeadConfig(kind="fsq", dim=32, depth=1, tokenizer=str(path))
    data = world()
    config = PredictorConfig(dim=32, depth=1, num_heads=2, heads={"video": head})
    model = Pretrain(data.layout, config)
    statistics = data.statistics()
    statistics.mean[1].add_(1000.0)
    with pytest.raises(ValueError, match="tokenizer of video was trained on data with other"):
        trainer(tmp_path, 1).fit(model, datamodule=data)


def test_streams_without_values_are_refused():
    layout = world().layout
    with pytest.raises(ValueError, match=r"\['viedo'\].*\['audio', 'video'\]"):
        FsqTokenizers(layout, {"viedo": SMALL})
    with pytest.raises(ValueError, match="one or more"):
        FsqTokenizers(world(audio=None, video=None).layout)
