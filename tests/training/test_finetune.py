"""Fine-tuning: what is at rest stays as it was, bit by bit, in the run and after a resume; adapters
come back with their base or not at all; and mistakes are said before anything is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch import Tensor

from datamodules import Loading, World
from mmpredict import cli
from mmpredict.model import HeadConfig, Predictor, PredictorConfig
from mmpredict.tokens import MelChunks, Patches, TextTokens
from mmpredict.training import Finetune
from mmpredict.training.before_after import BeforeAfter, first_scores
from mmpredict.training.checkpoint import PREFIX, describe, load_predictor
from mmpredict.training.lora import Lora
from mmpredict.training.randomness import Randomness
from mmpredict.training.warm_start import Start

HEADS = {name: HeadConfig(dim=32, depth=1, draws=1) for name in ("audio", "video")}
CONFIG = PredictorConfig(dim=32, depth=2, num_heads=2, heads=HEADS)
LORA = Lora(rank=2, targets=("trunk.*_proj",))
Q = "trunk.layers.0.attention.q_proj"


def world(**changes: Any) -> World:
    audio, video = MelChunks(sample_rate=8000, num_mels=8, hops=2), Patches(16, patch=8, fps=8)
    scenes = {"train_scenes": 12, "val_scenes": 2, "test_scenes": 2}
    loading = Loading(context_length=320, rows=1, workers=0, statistics_documents=2)
    return World(audio, video, TextTokens(), loading=loading, **scenes | changes)


def write_base(path: Path, **about: Any) -> Path:
    """A checkpoint as a training of the tiny model leaves it, without the training."""
    data = world()
    torch.manual_seed(5)
    model = Predictor(data.layout, CONFIG)
    model.set_statistics(data.statistics())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.std(correction=0) == 0:
                parameter.add_(0.05 * torch.randn_like(parameter))
    said = describe(model, data.codecs, 320) | {"ngrams": {}} | about
    state = {f"{PREFIX}{n}": x for n, x in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"mmpredict": said, "state_dict": state}, path)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "base.ckpt")


def tune(
    folder: Path, base: Path | None, steps: int = 2, resume: Path | None = None, **settings: Any
) -> Finetune:
    """Train some steps; the checkpoint of the end is folder/last.ckpt."""
    start = Start.of(None if base is None else str(base), resume)
    pl.seed_everything(1, verbose=False)
    data = start.data(world())
    settings = {"lr": 1e-2, "eval_samples": 1, "sample_steps": 1} | settings
    model = Finetune(data.layout, **start.model_settings({}, data.layout), **settings)
    trainer = pl.Trainer(
        default_root_dir=folder,
        max_steps=steps,
        accelerator="cpu",
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=start.callbacks([Randomness(), BeforeAfter(scenes=0)], folder),
    )
    trainer.fit(model, data, ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    return model


def weights(model: Finetune) -> dict[str, Tensor]:
    return dict(model.predictor.named_parameters())


def base_weights(base: Path) -> dict[str, Tensor]:
    return load_predictor(base)[0].state_dict()


def test_what_is_frozen_stays_bit_by_bit_and_costs_no_state(base: Path, tmp_path: Path):
    model = tune(tmp_path, base, freeze=("trunk", "*norm*"), train=("trunk.layers.1.attention",))
    before, moved = base_weights(base), set()
    for name, now in weights(model).items():
        frozen = name.startswith("trunk") or "norm" in name
        frozen &= not name.startswith("trunk.layers.1.attention.")
        assert now.requires_grad != frozen, name
        assert not frozen or torch.equal(now, before[name]), name
        if not torch.equal(now, before[name]):
            moved.add(name)
    assert {"heads.video.to_correction.weight", "trunk.layers.1.attention.q_proj.weight"} <= moved
    states = model.trainer.optimizers[0].state
    assert {id(p) for p in states} == {id(p) for p in weights(model).values() if p.requires_grad}


def test_with_adapters_the_base_rests_and_the_checkpoint_is_small(base: Path, tmp_path: Path):
    model = tune(tmp_path, base, lora=LORA)
    before = base_weights(base)
    for name, now in weights(model).items():
        source = name.replace(".base", ".weight")
        assert source not in before or torch.equal(now, before[source]), name
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    trained = {n for n, p in weights(model).items() if p.requires_grad}
    assert trained and all(n.endswith(("down_RI", "up_OR")) for n in trained)
    buffers = {n for n, _ in model.predictor.named_buffers()}
    assert {n.removeprefix(PREFIX) for n in saved} == trained | buffers
    merged, _, _ = load_predictor(tmp_path / "last.ckpt")
    whole = model.predictor.get_submodule(Q).weight
    assert torch.equal(merged.get_submodule(Q).weight, whole)
    assert not torch.equal(whole, before[f"{Q}.weight"])


def test_a_base_that_is_gone_or_another_is_named(base: Path, tmp_path: Path):
    mine = Path(shutil.copy(base, tmp_path / "mine.ckpt"))
    tune(tmp_path, mine, lora=LORA)
    write_base(mine, context_length=1)
    with pytest.raises(ValueError, match="mine.ckpt is another file"):
        load_predictor(tmp_path / "last.ckpt")
    mine.unlink()
    with pytest.raises(ValueError, match="mine.ckpt is not there"):
        load_predictor(tmp_path / "last.ckpt")
    shutil.copy(base, tmp_path / "base.ckpt")  # beside the adapters it is found
    load_predictor(tmp_path / "last.ckpt")


def test_adapters_stand_on_adapters(base: Path, tmp_path: Path):
    tune(tmp_path / "one", base, lora=LORA)
    model = tune(tmp_path / "two", tmp_path / "one/last.ckpt", lora=LORA)
    merged, _, _ = load_predictor(tmp_path / "two/last.ckpt")
    assert torch.equal(merged.get_submodule(Q).weight, model.predictor.get_submodule(Q).weight)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"freeze": ("trunk.layers.0",), "lr_scale": {"heads": 0.5}},
        {"lora": LORA, "train": ("*norm*",), "ema": 0.9},
    ],
    ids=["frozen", "lora+ema"],
)
def test_a_resumed_run_is_the_uninterrupted_one(base: Path, tmp_path: Path, settings: dict):
    """Weights and what is trained, bit by bit; the rate is constant, so that it does not matter
    where the first run was meant to end. The base is not begun with again: it could be gone, were
    there no adapters on it."""
    same = settings | {"decay_share": 0.0, "warmup_share": 0.0}
    whole = tune(tmp_path / "whole", base, 4, **same)
    tune(tmp_path / "half", base, 2, **same)
    rest = tune(tmp_path / "rest", None, 4, resume=tmp_path / "half/last.ckpt", **same)
    expected = weights(whole)
    for name, now in weights(rest).items():
        assert torch.equal(now, expected[name]), name
        assert now.requires_grad == expected[name].requires_grad, name


def test_a_resumed_run_trains_what_it_trained(base: Path, tmp_path: Path):
    tune(tmp_path, base, freeze=("trunk",))
    with pytest.raises(ValueError, match=r"model.freeze: \['trunk'\] -> \['embed'\]"):
        tune(tmp_path / "x", None, 4, resume=tmp_path / "last.ckpt", freeze=("embed",))


def test_rates_fall_with_depth_and_follow_patterns(base: Path, tmp_path: Path):
    settings = {"layer_decay": 0.5, "lr_scale": {"heads.video": 3.0}}
    model = tune(tmp_path, base, 1, **settings)
    rates = {
        id(p): group["initial_lr"]
        for group in model.trainer.optimizers[0].param_groups
        for p in group["params"]
    }
    found = {name: rates[id(p)] / 1e-2 for name, p in weights(model).items()}
    assert found["trunk.layers.1.attention.q_proj.weight"] == pytest.approx(0.5)
    assert found["trunk.layers.0.attention.q_proj.weight"] == pytest.approx(0.25)
    assert found["embed.linear.video.weight"] == pytest.approx(0.125)
    assert found["trunk.norm.weight"] == found["from_any.weight"] == pytest.approx(1.0)
    assert found["heads.video.to_correction.weight"] == pytest.approx(3.0)


def test_no_checkpoint_no_fine_tuning(tmp_path: Path):
    with pytest.raises(ValueError, match="--init_from CKPT"):
        tune(tmp_path, None)


def test_first_scores_are_told_beside_the_checkpoints_own():
    kept = {"video": {"energy_score": 0.2}, "text": {"nats_per_token": 1.0}, "held_out_scenes": 3}
    mine = {"video": {"energy_score": 0.21}, "text": {"nats_per_token": 1.6}}
    lines = first_scores({"scores": {"new data": mine}}, kept)
    assert "video 0.210 (0.200)" in lines[0] and lines[1].startswith("  far from its own: text;")
    assert "nothing to compare" in first_scores({"scores": {}}, {})[0]


# -- by command --------------------------------------------------------------------------------


def recipe(folder: Path, **model: Any) -> Path:
    settings = {
        "trainer": {"max_steps": 1, "accelerator": "cpu", "limit_val_batches": 0},
        "model": {"class_path": "mmpredict.training.Finetune", "init_args": model},
        "data": {
            "class_path": "datamodules.World",
            "init_args": {
                "video": {"size": 16, "patch": 8, "fps": 8},
                "audio": {"sample_rate": 8000, "num_mels": 8, "hops": 2},
                "train_scenes": 12,
                "loading": {"context_length": 320, "rows": 1, "statistics_documents": 2},
            },
        },
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def refused(folder: Path, capsys: pytest.CaptureFixture, base: Path, *words: str, **model) -> str:
    """What a run says that exits with 2 and leaves nothing that could be taken for a result."""
    path, run = recipe(folder, **model), folder / "run"
    asked = ["fit", "--config", str(path), "--run_dir", str(run), "--init_from", str(base), *words]
    assert cli.main(asked) == 2
    assert not (run / "ckpt").exists() and not (run / "init.json").exists()
    said = capsys.readouterr().err
    assert len(said.splitlines()) <= 9
    return said


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ({"freeze": ["*"]}, "freezes all"),
        ({"freeze": ["trnk.layers"]}, "did you mean trunk.layers"),
        ({"lora": {"targets": ["trunk.*.queries"]}}, "matches no linear map"),
        ({"lora": {"rank": 2}, "optimizer": "muon"}, "take adamw"),
        ({"lr_scale": {"heads": 0.0}}, "must be above 0"),
        ({"layer_decay": 1.5}, "layer_decay=1.5"),
        ({"predictor": {"dim": 64, "num_heads": 2}}, "dim: 32 in the checkpoint, 64 here"),
    ],
)
def test_settings_that_cannot_work(base, tmp_path, capsys, model: dict, text: str):
    assert text in refused(tmp_path, capsys, base, **model)


def spoil(kind: str, base: Path, path: Path) -> Path:
    if kind == "foreign":
        torch.save({"state_dict": {"x": torch.ones(2)}}, path)
    elif kind == "early":
        write_base(path, format=1)
    elif kind == "damaged":
        path.write_bytes(base.read_bytes()[:5000])
    elif kind == "broken":
        found = torch.load(base, weights_only=True)
        found["state_dict"][f"{PREFIX}{Q}.weight"][0, 0] = torch.nan
        torch.save(found, path)
    return path


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("foreign", "not written by mmpredict"),
        ("early", "has format 1"),
        ("damaged", "cannot be read"),
        ("broken", "not finite"),
        ("gone", "does not exist"),
    ],
)
def test_checkpoints_that_cannot_be_begun_with(base, tmp_path, capsys, kind: str, text: str):
    assert text in refused(tmp_path, capsys, spoil(kind, base, tmp_path / "bad.ckpt"))


def test_too_little_that_fits_is_refused_with_the_list(base, tmp_path, capsys):
    words = ("--data.video.patch", "4", "--data.audio.num_mels", "16")
    said = refused(tmp_path, capsys, base, *words)
    assert "init_least is 90%" in said and "embed.linear.video.weight" in said


def test_a_url_is_refused(tmp_path, capsys):
    assert "is a URL" in refused(tmp_path, capsys, "https://example.org/x.ckpt")


@pytest.mark.slow
def test_by_command_with_report_and_resume(base: Path, tmp_path: Path, capsys):
    """init.json and the lines of the report; then the same command goes on, and says so."""
    path, run = recipe(tmp_path, lora={"rank": 2}, eval_samples=1, sample_steps=1), tmp_path / "run"
    words = ["fit", "--config", str(path), "--run_dir", str(run), "--init_from", str(base)]
    words += ["--trainer.limit_test_batches", "0", "--ckpt_path", "last"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert f"init   {base}" in said and "100.0% of what it could give" in said
    found = json.loads((run / "init.json").read_text())
    assert found["share"] == 1.0 and not found["anew"] and len(found["sha256"]) == 64
    (run / "init.json").unlink()
    assert cli.main([*words, "--trainer.max_steps", "2"]) == 0
    assert "init   " not in capsys.readouterr().out and not (run / "init.json").exists()
    last = str(run / "ckpt/last.ckpt")
    asked = ["--config", str(path), "--ckpt_path", last, "--run_dir", str(tmp_path / "validated")]
    assert cli.main(["validate", *asked, "--trainer.limit_val_batches", "1"]) == 0
    assert (tmp_path / "validated/results.json").is_file()
    other = [*words[:-2], "--ckpt_path", str(base)]
    assert cli.main(other) == 2
    assert "give one of the two" in capsys.readouterr().err
