"""The energy score: unbiased, proper, and the plain error of a forecast without spread."""

from __future__ import annotations

import pytest
import torch

from mmpredict.objectives import energy_score, squared_error
from tests.builders import generator


def test_it_is_the_unbiased_formula_written_out():
    g = generator(0)
    samples, truth = torch.randn(5, 3, 2, 4, generator=g), torch.randn(3, 2, 4, generator=g)
    for m in range(3):
        x, y = samples[:, m].flatten(1).double(), truth[m].flatten().double()

        def distance(a: torch.Tensor, b: torch.Tensor) -> float:
            return float((a - b).square().mean().sqrt())

        error = sum(distance(a, y) for a in x) / 5
        pairs = [distance(x[r], x[s]) for r in range(5) for s in range(5) if r != s]
        expected = error - sum(pairs) / len(pairs) / 2
        assert float(energy_score(samples, truth)[m]) == pytest.approx(expected, rel=1e-4)


def test_its_expectation_does_not_depend_on_the_number_of_samples():
    g = generator(1)
    truth = torch.randn(4000, 1, 3, generator=g)
    scores = [
        float(energy_score(torch.randn(R, 4000, 1, 3, generator=g), truth).mean()) for R in (2, 8)
    ]
    assert scores[0] == pytest.approx(scores[1], abs=0.03)


def test_the_true_distribution_scores_best():
    g = generator(2)
    truth = torch.randn(2000, 2, 2, generator=g)
    samples = torch.randn(8, 2000, 2, 2, generator=g)
    wrong = {
        "shifted": samples + 0.5,
        "over-confident": 0.3 * samples,
        "too wide": 2 * samples,
        "the mean alone": 0 * samples,
    }
    best = float(energy_score(samples, truth).mean())
    for how, forecast in wrong.items():
        assert float(energy_score(forecast, truth).mean()) > best + 0.02, how


def test_one_sample_scores_its_root_mean_square_error():
    g = generator(3)
    forecast, truth = torch.randn(2, 4, 3, 5, generator=g)
    expected = squared_error(forecast, truth).sqrt()
    torch.testing.assert_close(energy_score(forecast[None], truth), expected)
    copies = forecast[None].expand(3, *forecast.shape)  # no spread, so the same
    torch.testing.assert_close(energy_score(copies, truth), expected)


def test_squared_error_is_per_block():
    forecast = torch.tensor([[[1.0, 2.0]], [[0.0, 4.0]]])
    assert squared_error(forecast, torch.zeros(2, 1, 2)).tolist() == [2.5, 8.0]
