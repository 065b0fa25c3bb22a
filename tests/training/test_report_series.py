"""Vectors in the report: scored beside their baselines, drawn, rolled on, shown in the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mmpredict.generate.series import read_table
from mmpredict.schema import Batch
from mmpredict.sequence import interleave, pack
from mmpredict.training import report_figures, samples
from mmpredict.training.held_out import HeldOut
from mmpredict.training.report import write_report
from tests.generate.small import SERIES, make_model, make_prompt

ACTION = SERIES["action"].modality


def documents(*names: str, count: int = 2) -> tuple[samples.Subject, list[Batch]]:
    model, codecs = make_model(*names)
    clips = [make_prompt(*names, seconds=1.0 + 0.5 * n) for n in range(count)]
    rows = [interleave(codecs.encode(clip), codecs.layout) for clip in clips]
    return samples.Subject(model, codecs), rows


def test_held_out_scores_of_vectors_stand_beside_the_last_and_the_mean():
    subject, rows = documents("video", "action")
    scores = HeldOut(subject.predictor, {}, samples=4, steps=2)
    scores.add(pack([rows], 400), seed=0)
    results = scores.results()["action"]
    scale = subject.predictor.embed.standardise["action"]
    values = [scale(row.contents[ACTION]) for row in rows]
    last = torch.cat([(x[1:] - x[:-1]).square().mean(dim=1) for x in values]).mean()
    mean = torch.cat([x[1:].square().mean(dim=1) for x in values]).mean()
    baselines = results["baselines"]
    assert baselines.keys() == {"copy_last", "mean"}
    assert baselines["copy_last"]["mse_of_mean"] == pytest.approx(float(last), rel=1e-5)
    assert baselines["mean"]["mse_of_mean"] == pytest.approx(float(mean), rel=1e-5)
    assert 0 < results["energy_score"] < float("inf") and results["mse_of_mean"] > 0


def test_every_vector_with_a_predecessor_is_guessed_in_its_own_units():
    subject, rows = documents("video", "text", "state", "action")
    first, second = samples.next_blocks(subject, rows)
    assert {1, *(codec.modality for codec in SERIES.values())} == first.keys()
    truth = make_prompt("video", "text", "state", "action").series["action"].values_TD
    assert torch.allclose(first[ACTION].truth[:, 0], truth[1:], atol=1e-5)
    assert torch.allclose(first[ACTION].previous[:, 0], truth[:-1], atol=1e-5)
    assert len(second[ACTION].end_s) == 23  # all of them, unlike frames


def test_vectors_are_drawn_rolled_on_and_shown_in_the_page(tmp_path: Path):
    subject, rows = documents("video", "state", "action")
    stem = tmp_path / "samples" / "step-000003"
    stem.parent.mkdir()
    pictures = samples.draw(stem, subject, rows)
    pictures += samples.roll_on(stem, subject, rows, context_length=400)
    assert {"state/1", "action/1", "rollout"} <= {picture.name for picture in pictures}
    drawn = {p.name for p in stem.parent.iterdir()}
    for name in SERIES:
        assert f"step-000003-series-{name}-1.png" in drawn
        shown, series = read_table(stem.parent / f"step-000003-rollout.{name}.csv")
        assert shown == name and len(series.times_s) == round(1.5 * SERIES[name].hz)
    page = write_report(
        tmp_path, metrics=tmp_path / "none.csv", results={}, scored="", step=3
    ).read_text()
    assert "<h2>Next vectors</h2>" in page and page.count('alt="next vectors') == 2
    assert '<img alt="rollout 1"' in page


def test_a_run_of_vectors_alone_has_a_rollout_in_its_page(tmp_path: Path):
    subject, rows = documents("action")
    stem = tmp_path / "samples" / "step-000003"
    stem.parent.mkdir()
    samples.roll_on(stem, subject, rows, context_length=400)
    page = write_report(
        tmp_path, metrics=tmp_path / "none.csv", results={}, scored="", step=3
    ).read_text()
    assert "<h2>Rollout</h2>" in page and '<img alt="rollout 1"' in page
    assert "<h2>Next vectors</h2>" not in page


@pytest.mark.parametrize(("width", "rows"), [(1, 1), (3, 3), (20, report_figures.MOST_VALUES)])
def test_lines_have_one_panel_for_each_value(width: int, rows: int):
    truth = torch.randn(12, width, generator=torch.Generator().manual_seed(0))
    kinds = {"truth": truth, "predicted mean": truth + 0.1}
    image = report_figures.lines(kinds, (torch.arange(12) / 10).tolist(), "action")
    assert image.dtype == np.uint8 and image.shape[1:] == (1080, 4)
    assert image.shape[0] == pytest.approx((0.75 * rows + 0.62) * report_figures.DPI, abs=1)
    assert image[0, 0, 3] == 0  # transparent paper
    for colour in ((0x80, 0x85, 0x8E), (0x2F, 0x6F, 0xDE)):
        close = np.abs(image[..., :3].astype(int) - colour).sum(-1) + (image[..., 3] < 200) * 999
        assert (close < 30).sum() > 100 * rows


def test_one_vector_is_a_dot():
    image = report_figures.lines({"truth": torch.ones(1, 1)}, [0.5], "action")
    assert (image[..., 3] > 0).any()
