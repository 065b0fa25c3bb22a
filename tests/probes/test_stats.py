"""Laws of the statistics: coverage, agreement with closed forms and with counting by hand."""

import math
import random

import pytest
import torch

from mmpredict.probes import stats


def clustered(scenes: int, items: int, *, share: float, seed: int) -> tuple[list[float], list[str]]:
    """Right or wrong with a chance that scenes share: a beta draw around `share`."""
    dice = random.Random(seed)
    values, clusters = [], []
    for scene in range(scenes):
        chance = dice.betavariate(4 * share, 4 * (1 - share))
        for _ in range(items):
            values.append(float(dice.random() < chance))
            clusters.append(f"scene {scene:04d}")
    return values, clusters


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    inside = 0
    for seed in range(400):
        values, clusters = clustered(60, 4, share=0.6, seed=seed)
        interval = stats.cluster_bootstrap(values, clusters, draws=500, seed=seed)
        inside += interval.low <= 0.6 <= interval.high
    assert 0.93 <= inside / 400 <= 0.97


def test_resampling_items_would_claim_too_much():
    inside = 0
    for seed in range(200):
        values, clusters = clustered(60, 8, share=0.6, seed=seed)
        alone = [f"{name}/{n}" for n, name in enumerate(clusters)]
        interval = stats.cluster_bootstrap(values, alone, draws=300, seed=seed)
        inside += interval.low <= 0.6 <= interval.high
    assert inside / 200 < 0.9


def test_bootstrap_error_is_the_closed_form():
    values, clusters = clustered(300, 4, share=0.6, seed=3)
    interval = stats.cluster_bootstrap(values, clusters)
    half = (interval.high - interval.low) / 2
    assert half == pytest.approx(1.96 * stats.clustered_error(values, clusters), rel=0.06)


def test_intervals_do_not_depend_on_order_and_repeat():
    values, clusters = clustered(20, 3, share=0.5, seed=1)
    order = random.Random(0).sample(range(60), 60)
    again = stats.cluster_bootstrap([values[k] for k in order], [clusters[k] for k in order])
    assert again.to_plain() == pytest.approx(stats.cluster_bootstrap(values, clusters).to_plain())


def test_one_scene_says_nothing_of_others():
    interval = stats.cluster_bootstrap([1.0, 1.0], ["a", "a"])
    assert (interval.low, interval.high) == (-math.inf, math.inf)


def test_missing_scores_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        stats.cluster_bootstrap([1.0, math.nan], ["a", "b"])
    with pytest.raises(ValueError, match="2 values of 3 items"):
        stats.cluster_bootstrap([1.0, 0.0], ["a", "b", "c"])


def test_wilson_of_known_numbers():
    # No success at all: the low end is 0, the high is z^2 / (n + z^2).
    none = stats.wilson(0, 10)
    assert (none.low, none.high) == pytest.approx((0, 1.96**2 / (10 + 1.96**2)), abs=1e-4)
    half = stats.wilson(50, 100)
    assert (half.low, half.high) == pytest.approx((0.40383, 0.59617), abs=1e-5)


def test_pairing_sees_what_two_intervals_hide():
    values, clusters = clustered(200, 4, share=0.6, seed=5)
    dice = random.Random(1)
    better = [1.0 if v == 0 and dice.random() < 0.1 else v for v in values]
    found = stats.paired_difference(better, values, clusters)
    assert found.interval.low > 0 and found.p < 0.001
    one, other = (stats.cluster_bootstrap(v, clusters) for v in (better, values))
    assert other.high > one.low


def test_sign_flip_counts_all_where_it_can():
    # +1 four times: of 16 ways only all plus and all minus reach the sum.
    assert stats.sign_flip([1.0] * 4, list("abcd")) == pytest.approx(2 / 16)
    assert stats.sign_flip([0.0] * 4, list("abcd")) == 1
    # items of one scene flip together: two scenes, four ways, two of them reach it
    assert stats.sign_flip([1.0] * 4, list("aabb")) == pytest.approx(2 / 4)


def test_sign_flip_errs_as_often_as_it_says():
    found = []
    for seed in range(300):
        noise = torch.randn(40, generator=torch.Generator().manual_seed(seed)).tolist()
        found.append(stats.sign_flip(noise, [str(k) for k in range(40)], flips=400, seed=seed))
    assert 0.02 <= sum(p < 0.05 for p in found) / 300 <= 0.09


def test_two_levels_are_wider_than_one_and_cover():
    inside = 0
    for trial in range(200):
        dice = torch.Generator().manual_seed(trial)
        seeds = 0.05 * torch.randn(5, 1, generator=dice)
        scenes = 0.2 * torch.randn(1, 50, generator=dice)
        values = 0.6 + seeds + scenes + 0.1 * torch.randn(5, 50, generator=dice)
        names = [str(k) for k in range(50)]
        interval = stats.two_level_bootstrap(values, names, draws=300, seed=trial)
        inside += interval.low <= 0.6 <= interval.high
    assert 0.9 <= inside / 200 <= 0.99
    one = stats.cluster_bootstrap(values.mean(0), names)
    assert interval.high - interval.low > one.high - one.low


def test_mcnemar_by_hand():
    one = [True] * 8 + [False] * 2
    other = [False] * 7 + [True] + [False, True]  # 7 to 1 of those that differ
    assert stats.mcnemar(one, other) == pytest.approx(2 * (1 + 8) / 2**8)
    assert stats.mcnemar([True], [True]) == 1


def test_holm_by_hand():
    adjusted = stats.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})


def test_interquartile_mean_by_hand():
    assert stats.interquartile_mean([0, 1, 2, 100]) == 1.5
    assert stats.interquartile_mean([0, 1, 5]) == pytest.approx((0.25 * 0 + 1 + 0.25 * 5) / 1.5)
    assert stats.interquartile_mean([7.0]) == 7


def test_macro_mean_weighs_families_alike_and_resamples_shared_scenes_together():
    names = [str(k) for k in range(40)]
    right = [float(k % 2) for k in range(40)]
    wrong = [1 - x for x in right]
    families = [stats.FamilyScores(right, names, 0.0), stats.FamilyScores(wrong, names, 0.0)]
    together = stats.macro_mean(families, draws=300)
    assert (together.low, together.estimate, together.high) == pytest.approx((0.5, 0.5, 0.5))
    one = stats.FamilyScores([1.0] * 8, list("abcdefgh"), 0.5)
    other = stats.FamilyScores([0.25] * 2, list("ab"), 0.25)
    assert stats.macro_mean([one, other], draws=50).estimate == pytest.approx(0.5)


def test_auroc_counts_ties_half():
    assert stats.auroc([3, 2], [1, 2]) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert stats.auroc([1, 1], [1, 1, 1]) == 0.5


def test_signal_detection():
    assert stats.balanced_accuracy([1, 1, 1, 1], [1, 1, 1, 0]) == 0.5
    assert stats.d_prime(5, 10, 5, 10) == pytest.approx(0)
    assert stats.d_prime(9, 10, 1, 10) > 2
    assert stats.effect_size([2.0, 3.0, 4.0], [1.0, 1.0, 1.0]) == pytest.approx(2.0)


def test_power_is_the_share_of_simulated_findings():
    error, found = stats.error_of_design(250, 4), 0
    for seed in range(2000):
        dice = random.Random(seed)
        found += abs(dice.gauss(0.05, error)) > 1.96 * error
    assert stats.power(0.05, error) == pytest.approx(found / 2000, abs=0.03)
    assert stats.power(stats.detectable(error), error) == pytest.approx(0.9, abs=1e-3)
    assert stats.power(0.0, error) == pytest.approx(0.05)
    unpaired = stats.error_of_design(250, 4, paired=False)
    assert unpaired == pytest.approx(error * math.sqrt(2))
