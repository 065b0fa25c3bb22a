"""What hangs on the Trainer, on a world of one moving square, one beep and one line of text."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from datamodules.base import ClipDataModule, Documents, Loading, Skipped, Split
from mmpredict.model import HeadConfig, PredictorConfig
from mmpredict.schema import Batch, Clip, TextPiece
from mmpredict.tokens import MelChunks, Patches, TextTokens
from mmpredict.training import Pretrain, samples
from mmpredict.training.callbacks import (
    Checkpoints,
    FinalTable,
    Progress,
    Report,
    Samples,
    run_callbacks,
    score_test_documents,
)
from mmpredict.training.checkpoint import load_predictor

SIZE, SECONDS, RATE = 16, 1.0, 8000
WAYS = ("left <b>&amp;", "right")  # what a stranger writes must not become a tag of the report


class Squares(ClipDataModule):
    """A square that slides left or right; a beep in the ear towards which it goes."""

    def __init__(self, streams: str = "audio video text", broken: tuple[int, ...] = ()) -> None:
        super().__init__(
            audio=MelChunks(sample_rate=RATE, num_mels=12, hops=2) if "audio" in streams else None,
            video=Patches(size=SIZE, patch=8, fps=8.0) if "video" in streams else None,
            text=TextTokens() if "text" in streams else None,
            loading=Loading(context_length=160, rows=2, workers=0, statistics_documents=4),
            seed=0,
        )
        self.broken = broken
        self.skip_log.num_sources = 41

    def documents(self, split: Split) -> Documents:
        return _Squares(self, split)

    def corpus(self) -> Iterable[str]:
        yield from WAYS


class _Squares(Documents):
    def __init__(self, data: Squares, split: Split) -> None:
        self.data, self.split = data, split

    def __len__(self) -> int:
        return {"train": 32, "val": 4, "test": 5}[self.split]

    def name(self, index: int) -> str:
        return f"{self.split} {index}"

    def document(self, epoch: int, index: int) -> Batch | Skipped:
        if self.split == "train" and index in self.data.broken:
            return Skipped(f"clip-{index}.mp4", "it ends in the middle")
        row = self.data.encode(square_clip(index + 1000 * (self.split != "train")))
        assert row is not None
        return row


def square_clip(index: int) -> Clip:
    way = index % 2
    frames = torch.full((int(SECONDS * 8), 3, SIZE, SIZE), 40, dtype=torch.uint8)
    for t in range(len(frames)):
        x = (index * 5 + t * (1 if way else -1)) % (SIZE - 4)
        frames[t, :, 4:8, x : x + 4] = 220
    seconds = torch.arange(int(SECONDS * RATE)) / RATE
    waveform = torch.zeros(2, len(seconds))
    waveform[way] = 0.3 * torch.sin(2 * math.pi * 600 * seconds)
    return Clip(
        frames_TCHW=frames,
        times_s=torch.arange(len(frames)) / 8.0,
        waveform_CS=waveform,
        sample_rate=RATE,
        texts=(TextPiece(WAYS[way], 0.2, 0.8),),
        name=f"square/{index}",
    )


def fit(
    run_dir: Path,
    data: Squares,
    *,
    steps: int = 20,
    callbacks: list[pl.Callback] | None = None,
    ckpt_path: Path | None = None,
) -> tuple[pl.Trainer, Pretrain]:
    head = HeadConfig(dim=32, depth=1)
    heads = {s.name: head for s in data.layout.streams if not s.is_discrete}
    config = PredictorConfig(dim=32, depth=1, num_heads=2, heads=heads)
    model = Pretrain(data.layout, config, eval_samples=2, sample_steps=4)
    trainer = pl.Trainer(
        default_root_dir=run_dir,
        accelerator="cpu",
        max_steps=steps,
        val_check_interval=10,
        check_val_every_n_epoch=None,
        log_every_n_steps=2,
        enable_model_summary=False,
        logger=[
            CSVLogger(str(run_dir), name="", version=""),
            TensorBoardLogger(str(run_dir), name="", version=""),
        ],
        callbacks=run_callbacks(run_dir) if callbacks is None else callbacks,
    )
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return trainer, model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one whole run of all three streams; two files cannot be read."""
    run_dir = tmp_path_factory.mktemp("run")
    (run_dir / "config.yaml").write_text("data: <script>alert(1)</script>\n")
    (run_dir / "env.json").write_text(json.dumps({"starts": [{"cpu": "a <fast> one"}]}))
    fit(run_dir, Squares(broken=(3, 4)))
    return run_dir


def test_run_folder_is_complete(run: Path) -> None:
    names = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    wanted = {"metrics.csv", "results.json", "report.html", "ckpt/last.ckpt", "ckpt/previous.ckpt"}
    made = ("frames-1.png", "frames-2.png", "sound-1.png", "sound-1-truth.wav", "text.json")
    wanted |= {f"samples/step-{step:06d}-{name}" for step in (10, 20) for name in made}
    wanted |= {"samples/step-000020-rollout.mp4", "samples/step-000020-rollout.json"}
    assert wanted <= names
    assert not [name for name in names if name.endswith(".part")]
    assert any("tfevents" in name for name in names)


def test_results_have_exactly_the_schema(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    pair = {"energy_score", "mse_of_mean"}
    assert set(results) == {"video", "audio", "text", "seconds", "held_out_scenes"}
    assert set(results["video"]) == set(results["audio"])
    assert set(results["video"]) == pair | {"bits_per_value", "baselines"}
    assert set(results["video"]["baselines"]) == {"copy_last"}
    assert set(results["audio"]["baselines"]) == {"last_spectrum", "mean_spectrum"}
    for stream in ("video", "audio"):
        assert all(set(scores) == pair for scores in results[stream]["baselines"].values())
    assert set(results["text"]) == {"nats_per_token", "baselines"}
    assert set(results["text"]["baselines"]) == {"unigram", "bigram"}
    assert results["held_out_scenes"] == 5
    assert 0 < results["seconds"] < 60


def test_report_needs_nothing_else_and_escapes_text(run: Path) -> None:
    page = (run / "report.html").read_text()
    outside = re.findall(r"(?:src|href)\s*=\s*[\"'](?!data:|#)[^\"']*", page)
    assert not outside
    assert not re.search(r"@import|url\((?!#)|<script|<link|<b>&amp;", page)
    assert "left &lt;b&gt;&amp;amp;" in page or "&lt;" in page
    assert "&lt;script&gt;alert(1)" in page and "a &lt;fast&gt; one" in page
    for kind in ("image/png", "video/mp4", "audio/wav"):
        assert f'src="data:{kind};base64,' in page
    for said in ("copy last", "mean spectrum", "bigram", "clip-3.mp4: it ends in the middle"):
        assert said in page


def test_checkpoints_load_as_plain_data(run: Path) -> None:
    for name, step in (("last", 20), ("previous", 10)):
        plain = torch.load(run / "ckpt" / f"{name}.ckpt", weights_only=True)
        assert plain["global_step"] == step
        assert str(run) not in str(plain["callbacks"])
    assert len(list((run / "ckpt").iterdir())) == 4  # a hash beside each
    predictor, codecs, _ = load_predictor(run / "ckpt" / "last.ckpt")
    assert [s.name for s in predictor.layout.streams] == ["audio", "video", "text"]
    assert codecs.layout == predictor.layout


@pytest.mark.parametrize("streams", ["text", "video", "audio", "video text"])
def test_any_streams(tmp_path: Path, streams: str, recwarn: pytest.WarningsRecorder) -> None:
    fit(tmp_path, Squares(streams), steps=10)
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) == set(streams.split()) | {"seconds", "held_out_scenes"}
    assert not [w for w in recwarn if "left out" in str(w.message)]
    page = (tmp_path / "report.html").read_text()
    assert ("<video" in page) == ("video" in streams)
    assert ("<audio" in page) == ("audio" in streams)
    assert ("the model writes" in page) == ("text" in streams)


def test_few_lines_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, Squares(broken=(3, 4)), steps=10)
    out, _ = capsys.readouterr()
    opening, _, rest = out.partition("\nstep ")
    lines = [line for line in opening.splitlines() if line.strip()]
    assert [line.split()[0] for line in lines] == ["data", "model", "steps", "cost"]
    assert "\x1b" not in out and "\r" not in out
    assert re.search(r"10/10  \S+ tok/s  \d+% MFU  audio \S+  video \S+  text \S+\n", rest)
    assert (
        "2 files skipped (2 video unreadable):" in rest
        and "clip-4.mp4: it ends in the middle" in rest
    )
    assert all(len(line) <= 80 for line in rest.splitlines() if "better" in line or "worse" in line)


def test_bar_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(time, "monotonic", partial(next, count(0, 2)))  # every step is due
    fit(tmp_path, Squares("text"), steps=4, callbacks=[Progress()])
    said = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)
    assert re.search(r" 3/4  \S+ tok/s  0:0\d left  text \d", said)
    assert re.search(r" 4/4  \S+ tok/s  text \d", said)


def test_a_failing_drawing_only_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(samples, "strip", fail)
    monkeypatch.setattr("mmpredict.training.callbacks.write_report", fail)
    with pytest.warns(UserWarning, match="left out: RuntimeError: no ink") as caught:
        fit(tmp_path, Squares("video"))
    ours = [str(w.message).partition(" left")[0] for w in caught if "no ink" in str(w.message)]
    assert sorted(ours) == ["report.html", "samples"]  # once each, however often they fail
    assert (tmp_path / "results.json").is_file() and (tmp_path / "ckpt" / "last.ckpt").is_file()


def test_results_that_cannot_be_written_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results.json").mkdir()
    with pytest.raises(OSError):
        fit(tmp_path, Squares("text"), steps=2, callbacks=[FinalTable(tmp_path)])


def test_resume_adds_seconds_and_steps(tmp_path: Path) -> None:
    fit(tmp_path / "a", Squares("text"), steps=10)
    first = json.loads((tmp_path / "a" / "results.json").read_text())["seconds"]
    last = tmp_path / "a" / "ckpt" / "last.ckpt"
    table = FinalTable(tmp_path / "b")
    trainer, _ = fit(
        tmp_path / "b",
        Squares("text"),
        callbacks=[table, Checkpoints(tmp_path / "b" / "ckpt")],
        ckpt_path=last,
    )
    assert trainer.global_step == 20
    assert table.seconds > 0.9 * first


def test_scoring_leaves_the_model_and_the_ngrams_as_they_were(tmp_path: Path) -> None:
    class Watch(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            before = {m: int(c.state_dict()["counts"].sum()) for m, c in pl_module.ngrams.items()}
            pl_module.predictor.trunk.norm.eval()
            assert score_test_documents(trainer, pl_module)["held_out_scenes"] == 5
            assert pl_module.training and not pl_module.predictor.trunk.norm.training
            after = {m: int(c.state_dict()["counts"].sum()) for m, c in pl_module.ngrams.items()}
            assert before == after

    fit(tmp_path, Squares("text"), steps=2, callbacks=[Watch()])


def test_validate_writes_the_same_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Squares("video")
    _, model = fit(tmp_path, data, steps=2, callbacks=[])
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_model_summary=False,
        callbacks=run_callbacks(tmp_path),
    )
    trainer.validate(model, datamodule=data, verbose=False)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["held_out_scenes"] == 4 and results["seconds"] is None
    assert "copy last" in capsys.readouterr().out


class Stranger(pl.LightningModule):
    """A user's own module on plain tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = self.layer(batch[0]).square().mean()
        self.log("train/loss/own", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("logger", [True, False])
def test_a_module_of_the_user(
    tmp_path: Path, logger: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 2)))
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=2,
        logger=CSVLogger(str(tmp_path), name="", version="") if logger else False,
        log_every_n_steps=1,
        enable_model_summary=False,
        callbacks=run_callbacks(tmp_path),
    )
    trainer.fit(Stranger(), loader)
    assert (tmp_path / "report.html").is_file() and (tmp_path / "ckpt" / "last.ckpt").is_file()
    assert not (tmp_path / "results.json").exists()
    assert "16/16" in capsys.readouterr().out


def test_samples_and_report_are_cheap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spent: list[float] = []

    def timed(function: object) -> object:
        def run(*args: object, **kwargs: object) -> object:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent.append(time.perf_counter() - start)

        return run

    monkeypatch.setattr(Samples, "on_validation_end", timed(Samples.on_validation_end))
    monkeypatch.setattr(Report, "on_validation_end", timed(Report.on_validation_end))
    fit(tmp_path, Squares(), steps=20, callbacks=[Samples(tmp_path), Report(tmp_path)])
    assert min(spent) < 2.0 and sum(spent) < 10.0
