"""Laws of the probes: what was planted is found, at the strength with which it was planted."""

import pytest
import torch

from mmpredict.probes.frozen_score import explained, macro_f1, weighted_hits
from mmpredict.probes.readouts import Design, bottleneck, logistic, principal, ridge, whitened
from mmpredict.probes.readouts_attentive import (
    SHARE,
    Asked,
    Attentive,
    count_parameters,
    fit_attentive,
    head_width,
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noisy_line(rows: int, noise: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """20 features, 1 column of unit signal and `noise` of noise."""
    g = generator(seed)
    x = torch.randn(rows, 20, generator=g)
    weight = torch.randn(20, 1, generator=generator(99))
    return x, x @ (weight / weight.norm()) + noise * torch.randn(rows, 1, generator=g)


@pytest.mark.parametrize("noise", [0.5, 1.0])
def test_ridge_finds_a_planted_line_with_its_known_r2(noise):
    fitted = ridge(noisy_line(3000, noise, 0), noisy_line(500, noise, 1))
    x, y = noisy_line(4000, noise, 2)
    r2 = float(explained(fitted(x), y, y.mean(0)).mean())
    assert abs(r2 - 1 / (1 + noise**2)) < 0.03


def test_ridge_solves_the_normal_equations_wide_and_tall():
    for rows in (60, 12):  # 20 features: tall and wide
        x, y = noisy_line(rows, 1.0, 3)
        fitted = ridge((x, y), noisy_line(50, 1.0, 4))
        a, b = (x - x.mean(0)).double(), (y - y.mean(0)).double()
        gram = a.T @ a + fitted.chosen[0] * torch.eye(20, dtype=torch.float64)
        assert torch.allclose(
            fitted.weight_XC.double(), torch.linalg.solve(gram, a.T @ b), atol=1e-5
        )


def test_each_group_of_columns_has_its_own_penalty():
    x, y = noisy_line(40, 0.0, 5)
    x_dev, y_dev = noisy_line(40, 0.0, 6)
    noise = torch.randn(40, 1, generator=generator(7))
    fitted = ridge(
        (x, torch.cat([y, noise], 1)), (x_dev, torch.cat([y_dev, noise.flip(0)], 1)), [1, 1]
    )
    assert fitted.chosen[0] < fitted.chosen[1]
    alone = ridge((x, y), (x_dev, y_dev))
    assert torch.allclose(fitted.weight_XC[:, :1], alone.weight_XC, atol=1e-6)


def test_random_features_are_at_chance():
    g = generator(8)
    x, y = torch.randn(2000, 30, generator=g), torch.randn(2000, 1, generator=g)
    fitted = ridge((x[:1000], y[:1000]), (x[1000:1300], y[1000:1300]))
    assert abs(float(explained(fitted(x[1300:]), y[1300:], y[:1000].mean(0)).mean())) < 0.03
    labels = torch.randint(4, (2000,), generator=g)
    said = logistic((x[:1000], labels[:1000]), (x[1000:1300], labels[1000:1300]), 4)(x[1300:])
    assert abs(float(weighted_hits(said.argmax(1), labels[1300:]).mean()) - 0.25) < 0.06


def test_logistic_reaches_the_known_accuracy_of_two_clouds():
    def clouds(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        g = generator(seed)
        labels = torch.randint(2, (rows,), generator=g)
        x = torch.randn(rows, 5, generator=g)
        x[:, 0] += 2.0 * labels - 1.0  # one deviation from the border
        return x, labels

    fitted = logistic(clouds(2000, 0), clouds(500, 1), 2)
    x, labels = clouds(6000, 2)
    assert abs(float((fitted(x).argmax(1) == labels).float().mean()) - 0.841) < 0.02


def test_rare_classes_weigh_as_much_as_common_ones():
    g = generator(3)
    labels = (torch.rand(3000, generator=g) < 0.05).long()
    x = torch.randn(3000, 2, generator=g)
    x[:, 0] += 2.0 * labels
    said = logistic((x[:2000], labels[:2000]), (x[2000:], labels[2000:]), 2)(x[2000:]).argmax(1)
    recall = (said == 1)[labels[2000:] == 1].float().mean()
    assert recall > 0.7  # unweighted, the border lies where next to none of them is found


def test_balanced_accuracy_and_f1_of_a_constant_answer():
    truth = torch.tensor([0, 0, 0, 0, 1, 2])
    assert weighted_hits(torch.zeros(6, dtype=torch.int64), truth).mean() == pytest.approx(1 / 3)
    assert macro_f1(torch.zeros(6, dtype=torch.int64), truth) == pytest.approx((8 / 10) / 3)
    assert weighted_hits(truth, truth).mean() == pytest.approx(1.0)


def test_r2_of_the_train_mean_is_zero_and_of_the_truth_is_one():
    y = torch.randn(50, 2, generator=generator(0))
    mean = torch.tensor([0.3, -0.2])
    assert explained(mean.expand(50, 2), y, mean).mean() == pytest.approx(0.0, abs=1e-6)
    assert explained(y, y, mean).mean() == pytest.approx(1.0)


def test_principal_directions_of_many_features_are_those_of_the_exact_solution():
    g = generator(4)
    low = torch.randn(300, 10, generator=g) @ torch.randn(10, 900, generator=g)
    values = low + 0.01 * torch.randn(300, 900, generator=g)
    basis = principal(values, 10)
    exact = torch.linalg.svd(values, full_matrices=False).Vh[:10].T
    assert torch.linalg.svdvals(exact.T @ basis).min() > 0.999


def named_scenes(moments: int, seed: int, kinds: int = 6) -> tuple[torch.Tensor, ...]:
    """Features that hold the place of every kind of object, each in a direction of its own."""
    g = generator(seed)
    places_MK = torch.rand(moments, kinds, generator=g) * 2 - 1
    mix = torch.randn(kinds, 24, generator=generator(77))
    values_MF = places_MK @ mix + 0.01 * torch.randn(moments, 24, generator=g)
    moment_R = torch.arange(moments).repeat_interleave(2)
    name_R = torch.stack([torch.randperm(kinds, generator=g)[:2] for _ in range(moments)]).flatten()
    return values_MF, moment_R, name_R, places_MK[moment_R, name_R][:, None]


def test_the_query_picks_the_named_object_and_swapped_names_swap_the_answers():
    names_KD = torch.eye(6)
    train, dev, test = (named_scenes(n, s) for n, s in ((400, 0), (100, 1), (100, 2)))
    design = Design.fit(train[0], names_KD)
    fitted = ridge((design.rows(*train[:3]), train[3]), (design.rows(*dev[:3]), dev[3]))
    values, moment_R, name_R, y = test
    said = fitted(design.rows(values, moment_R, name_R))
    assert explained(said, y, train[3].mean(0)).mean() > 0.95
    swapped_R = name_R.view(-1, 2).flip(1).flatten()
    other = fitted(design.rows(values, moment_R, swapped_R))
    assert torch.allclose(other, said.view(-1, 2).flip(1).reshape(-1, 1), atol=1e-5)
    nameless = Design.fit(train[0], None)  # without the name, two answers fit each moment
    blind = ridge((nameless.rows(*train[:3]), train[3]), (nameless.rows(*dev[:3]), dev[3]))
    assert explained(blind(nameless.rows(*test[:3])), y, train[3].mean(0)).mean() < 0.5


def test_the_rank_of_a_probe_bounds_what_it_decodes():
    train, dev, test = (named_scenes(n, s) for n, s in ((400, 0), (100, 1), (200, 2)))
    design = Design.fit(train[0], torch.eye(6))
    full = ridge((design.rows(*train[:3]), train[3]), (design.rows(*dev[:3]), dev[3]))
    scores = []
    for rank in (1, 3, 6):  # six places stand in six directions
        narrow = bottleneck(design, full, rank)
        assert narrow.basis_FQ.shape[1] == rank
        fitted = ridge((narrow.rows(*train[:3]), train[3]), (narrow.rows(*dev[:3]), dev[3]))
        scores.append(float(explained(fitted(narrow.rows(*test[:3])), test[3], 0.0).mean()))
    assert scores[0] < 0.45 and scores[0] + 0.2 < scores[1] < 0.85 and scores[2] > 0.95


def test_names_of_two_words_have_the_rank_of_their_words():
    g = generator(0)
    colours, shapes = torch.randn(8, 40, generator=g), torch.randn(5, 40, generator=g)
    names = (colours[:, None] + shapes).flatten(0, 1) / 2
    assert whitened(names, 99).shape == (40, 11)  # 7 + 4
    numbers = whitened(names, 12)
    assert torch.allclose(numbers.T @ numbers / 40, torch.eye(11), atol=1e-4)


def planted_places(moments: int, seed: int) -> Asked:
    """Two things of 4 kinds in 9 places; the query names a kind, asked is the column it is in."""
    g = generator(seed)
    columns = torch.linspace(-1, 1, 3).repeat(3)
    where_MS3 = torch.stack(
        [torch.linspace(-1, 1, 3).repeat_interleave(3), columns, columns * 0], 1
    )
    places = torch.zeros(moments, 9, 4)
    spots = torch.stack([torch.randperm(9, generator=g)[:2] for _ in range(moments)])
    kinds = torch.stack([torch.randperm(4, generator=g)[:2] for _ in range(moments)])
    for n in range(2):
        places[torch.arange(moments), spots[:, n], kinds[:, n]] = 3.0
    moment_R = torch.arange(moments).repeat_interleave(2)
    found_R = spots.flatten()
    return Asked(
        torch.cat([places, where_MS3.expand(moments, -1, -1)], -1),
        moment_R,
        torch.eye(4)[kinds.flatten()] * 2,
        {"x": columns[found_R][:, None], "right": (columns[found_R] > 0.5).long()},
    )


def test_the_attentive_probe_looks_where_the_name_says():
    train, dev, test = (planted_places(n, s) for n, s in ((600, 0), (150, 1), (200, 2)))
    probes = fit_attentive(train, dev, {"x": 1, "right": 2}, width=4)
    rows = torch.arange(400)
    said = probes["x"](test, rows)
    assert explained(said, test.truth["x"], train.truth["x"].mean(0)).mean() > 0.8
    right = probes["right"](test, rows).argmax(1)
    assert weighted_hits(right, test.truth["right"]).mean() > 0.9
    again = fit_attentive(train, dev, {"x": 1, "right": 2}, width=4)
    assert torch.equal(again["x"](test, rows), said)


def test_the_attentive_probe_is_small():
    outputs = [1, 2, 8]
    width = head_width(64, 12, outputs, 400_000)
    with torch.random.fork_rng():
        assert count_parameters(Attentive(64, 12, outputs, width)) <= SHARE * 400_000
        assert count_parameters(Attentive(64, 12, outputs, 2 * width)) > SHARE * 400_000
    assert head_width(64, 12, outputs, 10_000) == 0
