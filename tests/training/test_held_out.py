"""Laws of the held-out scores."""

from __future__ import annotations

import math

import pytest
import torch

from mmpredict.model import HeadConfig, Predictor, PredictorConfig
from mmpredict.model.fsq import FsqConfig
from mmpredict.objectives import NgramCounts
from mmpredict.training.held_out import HeldOut
from mmpredict.training.report_table import print_table
from tests.builders import LAYOUT, TEXT, VIDEO, packed_rows

SIZES = {
    "flow": {"dim": 32, "depth": 1},
    "regression": {},
    "gmm": {"dim": 32, "depth": 1, "components": 2},
    "fsq": {"dim": 32, "depth": 1, "codes": FsqConfig(levels=(4, 3), dim=16, depth=1)},
}


def model(kind: str) -> Predictor:
    head = HeadConfig(kind=kind, **SIZES[kind])
    with torch.random.fork_rng():
        torch.manual_seed(3)
        predictor = Predictor(
            LAYOUT,
            PredictorConfig(dim=32, depth=1, num_heads=2, heads={"video": head, "audio": head}),
        )
    return predictor.eval()


def scored(predictor: Predictor, seed: int = 0) -> dict:
    held_out = HeldOut(predictor, {TEXT: NgramCounts(11)}, samples=3, steps=2)
    held_out.add(packed_rows(), seed)
    return held_out.results()


@pytest.mark.parametrize("kind", SIZES)
def test_every_head_has_its_scores_and_its_table(kind: str, capsys):
    results = scored(model(kind))
    assert set(results) == {"audio", "video", "text", "held_out_scenes"}
    for name in ("audio", "video"):
        scores = dict(results[name])
        baselines = scores.pop("baselines")
        assert list(scores) == ["energy_score", "mse_of_mean", "bits_per_value"]
        assert all(math.isfinite(value) for value in scores.values())
        assert all(set(b) == {"energy_score", "mse_of_mean"} for b in baselines.values())
    assert set(results["text"]) == {"nats_per_token", "baselines"}  # bits would say it twice
    print_table(results, "scores")
    assert "bits per value" in capsys.readouterr().out


def test_bits_are_the_heads_nats_over_all_scored_values():
    predictor = model("gmm")
    batch = packed_rows()
    with torch.no_grad():
        hidden = predictor.hidden(batch)
        scored_M = predictor.counted(batch, VIDEO) & predictor.has_previous(batch, VIDEO)
        z = predictor.condition(batch, hidden, VIDEO)[scored_M]
        previous = predictor.previous(batch, VIDEO)[scored_M]
        truth = predictor.embed.values(batch, VIDEO)[scored_M]
        noise = torch.Generator().manual_seed(4)
        nats = predictor.heads["video"].nats(z, previous, truth, noise)
    expected = float(nats.sum()) / truth.numel() / math.log(2)
    assert scored(predictor, seed=4)["video"]["bits_per_value"] == pytest.approx(expected, rel=1e-5)


def test_the_seed_alone_decides():
    predictor = model("flow")
    one, again, other = (scored(predictor, seed)["video"] for seed in (1, 1, 2))
    assert one == again and one != other


def test_a_density_takes_no_noise_from_the_samples(monkeypatch: pytest.MonkeyPatch):
    """Samples of the streams behind stay the same, whatever the density of one before draws."""
    predictor = model("flow")
    before = scored(predictor)

    def nats(z, previous, targets, generator):
        torch.rand(1000, generator=generator)
        return torch.zeros(len(z))

    monkeypatch.setattr(predictor.heads["audio"], "nats", nats)
    after = scored(predictor)
    assert after["audio"]["bits_per_value"] == 0
    assert after["video"] == before["video"]
