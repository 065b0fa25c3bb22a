"""Probes while training: logged in every logger, and the training does not notice."""

from __future__ import annotations

import random

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger

from mmpredict.model import HeadConfig, PredictorConfig
from mmpredict.probes.items import Suite
from mmpredict.training import Pretrain, probe_callback
from mmpredict.training.probe_callback import ProbeSmoke
from tests.probes.small_suite import suite
from tests.training.test_callbacks import Squares

HEAD = HeadConfig(dim=16, depth=1)
HEADS = {"audio": HEAD, "video": HEAD}


@pytest.fixture(autouse=True)
def _small_suite(monkeypatch):
    """The suites of the world have tests of their own."""
    monkeypatch.setattr(probe_callback, "build_suite", lambda name, **_: suite(2))


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, *_: object) -> None:
        self.seen.append(float(outputs["loss"]))


def train(tmp_path, callbacks, *, streams: str = "audio video text", **module) -> pl.Trainer:
    pl.seed_everything(3, verbose=False)
    data = Squares(streams)
    heads = {name: head for name, head in HEADS.items() if name in streams}
    sizes = PredictorConfig(dim=16, depth=1, num_heads=2, heads=heads)
    model = Pretrain(layout=data.codecs.layout, predictor=sizes, eval_samples=2, **module)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=4,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        limit_val_batches=1,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=CSVLogger(tmp_path),
        callbacks=callbacks,
    )
    trainer.fit(model, data)
    return trainer


@pytest.mark.parametrize("module", [{}, {"ema": 0.9}], ids=["plain", "averaged"])
def test_the_losses_are_those_of_a_run_without(tmp_path, module):
    without, along = Losses(), Losses()
    train(tmp_path / "a", [without], **module)
    trainer = train(tmp_path / "b", [ProbeSmoke(every_n_steps=1), along], **module)
    assert len(along.seen) == 4 and along.seen == without.seen
    assert trainer.model.training


def test_logged_after_each_validation(tmp_path):
    probes = ProbeSmoke(families=("left_right", "permanence"))
    trainer = train(tmp_path, [probes])
    assert set(probes.accuracies) == {"left_right", "permanence"}
    trainer.logger.save()
    rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    head = rows[0].split(",")
    column = head.index("probe/left_right/accuracy")
    steps = [row.split(",")[head.index("step")] for row in rows[1:] if row.split(",")[column]]
    assert steps == ["2", "4"]
    last = [row.split(",")[column] for row in rows[1:] if row.split(",")[column]][-1]
    assert float(last) == probes.accuracies["left_right"]


def test_random_states_come_back():
    module = pl.LightningModule()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with probe_callback.undisturbed(module):
        random.random(), np.random.rand(), torch.rand(1)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_each_item_is_asked_in_the_richest_form_that_the_model_has():
    codecs = Squares("video text").codecs
    chosen = ProbeSmoke(items=2)._chosen(codecs)
    assert isinstance(chosen, Suite)
    forms = {item.family: item.variants for item in chosen.items}
    assert forms["left_right"] == forms["permanence"] == ("video",)
    assert forms["caption_minpair"] == ("text",)
    counts = [item.family for item in chosen.items]
    assert max(map(counts.count, counts)) == 2


def test_a_model_that_nothing_fits_is_told_once(tmp_path):
    probes = ProbeSmoke(families=("left_right",))
    with pytest.warns(UserWarning, match="no probe fits the streams of this model"):
        train(tmp_path, [probes], streams="audio")
    assert probes.accuracies == {}


def test_unknown_families_and_settings(tmp_path):
    with pytest.raises(ValueError, match=r"families=\['smell'\] are not in the smoke suite"):
        train(tmp_path, [ProbeSmoke(families=("smell",))])
    with pytest.raises(ValueError, match="scenes=0"):
        ProbeSmoke(scenes=0)
