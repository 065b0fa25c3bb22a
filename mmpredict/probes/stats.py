"""How sure a score is. In: scores of items and the scenes that they belong to. Out: intervals.

Items of one scene are not independent, so scenes are resampled and never items. Two models are
compared by the difference on the same items, never by two intervals side by side (Miller 2024,
"Adding error bars to evals").

Shapes: N items, C scenes (clusters), S training seeds, R draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

DRAWS = 2000
FLIPS = 10_000
_EXACT = 13  # clusters up to which all sign flips are counted
_CHUNK = 2_000_000  # random numbers at a time


@dataclass(frozen=True)
class Interval:
    """An estimate and where the truth is, at `level`."""

    estimate: float
    low: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def excludes(self, value: float) -> bool:
        return value < self.low or value > self.high

    def to_plain(self) -> list[float]:
        """[estimate, low, high]"""
        return [self.estimate, self.low, self.high]


@dataclass(frozen=True)
class Difference:
    """Of two scores on the same items: with its interval, and p of no difference."""

    interval: Interval
    p: float


def wilson(right: float, count: int, *, level: float = 0.95) -> Interval:
    """Of a share of independent trials (Wilson 1927)."""
    if count < 1:
        raise ValueError("a share of no trials has no interval")
    z, share = NormalDist().inv_cdf(0.5 + level / 2), right / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count)
    reach *= math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(share, max(0.0, centre - reach), min(1.0, centre + reach), level)


def _sums(values: Sequence[float] | Tensor, clusters: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Sum and number of the items of each scene, (C,) float64 each, scenes in order of name."""
    values_N = torch.as_tensor(values, dtype=torch.float64)
    if len(values_N) != len(clusters) or not len(values_N):
        raise ValueError(f"{len(values_N)} values of {len(clusters)} items; needs one each")
    if not bool(values_N.isfinite().all()):
        raise ValueError("a score is not finite; an item that failed has no score")
    index = {name: n for n, name in enumerate(sorted(set(clusters)))}
    member_N = torch.tensor([index[name] for name in clusters])
    sums_C = torch.zeros(len(index), dtype=torch.float64).index_add_(0, member_N, values_N)
    counts_C = torch.bincount(member_N, minlength=len(index)).double()
    return sums_C, counts_C


def _resampled(sums_C: Tensor, counts_C: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """(R,) means of resampled scenes."""
    C, means = len(sums_C), []
    at_once = max(1, _CHUNK // C)
    for start in range(0, draws, at_once):
        shape = (min(at_once, draws - start), C)
        drawn_RC = torch.randint(C, shape, generator=generator)
        means.append(sums_C[drawn_RC].sum(1) / counts_C[drawn_RC].sum(1))
    return torch.cat(means)


def _percentiles(means_R: Tensor, estimate: float, level: float) -> Interval:
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = means_R.quantile(edges).tolist()
    return Interval(estimate, low, high, level)


def cluster_bootstrap(
    values: Sequence[float] | Tensor,
    clusters: Sequence[str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Of the mean over items, by resampling scenes; the percentile interval (Efron 1979).

    Resampled means are spread around the mean by sqrt(C / (C - 1)), which the percentile interval
    lacks where scenes are few. With one scene alone nothing is known: the interval is everything
    (-inf, inf).
    """
    sums_C, counts_C = _sums(values, clusters)
    estimate, C = float(sums_C.sum() / counts_C.sum()), len(sums_C)
    if C < 2:
        return Interval(estimate, -math.inf, math.inf, level)
    means_R = _resampled(sums_C, counts_C, draws, torch.Generator().manual_seed(seed))
    means_R = estimate + (means_R - estimate) * math.sqrt(C / (C - 1))
    return _percentiles(means_R, estimate, level)


def clustered_error(values: Sequence[float] | Tensor, clusters: Sequence[str]) -> float:
    """Standard error of the mean with clustered items, in closed form (Miller 2024, eq. 4): a check
    of the bootstrap."""
    sums_C, counts_C = _sums(values, clusters)
    residual_C = sums_C - counts_C * (sums_C.sum() / counts_C.sum())
    return float(residual_C.square().sum().sqrt() / counts_C.sum())


def two_level_bootstrap(
    values_SN: Sequence[Sequence[float]] | Tensor,
    clusters: Sequence[str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Of the mean over training seeds and items: seeds are resampled, then scenes.

    The deviation between seeds is widened by sqrt(S / (S - 1)), as few seeds underrate it.
    """
    rows = [_sums(values_N, clusters) for values_N in values_SN]
    sums_SC, counts_C = torch.stack([sums for sums, _ in rows]), rows[0][1]
    S, C = sums_SC.shape
    grand = float(sums_SC.sum() / (S * counts_C.sum()))
    if S < 2 or C < 2:
        return Interval(grand, -math.inf, math.inf, level)
    generator = torch.Generator().manual_seed(seed)
    means_R = torch.empty(draws, dtype=torch.float64)
    centre_C = sums_SC.mean(0)
    apart_SC = (sums_SC - centre_C) * math.sqrt(S / (S - 1))
    for draw in range(draws):
        seeds_S = torch.randint(S, (S,), generator=generator)
        scenes_C = torch.randint(C, (C,), generator=generator)
        sums_C = centre_C + apart_SC[seeds_S].mean(0)
        means_R[draw] = sums_C[scenes_C].sum() / counts_C[scenes_C].sum()
    return _percentiles(means_R, grand, level)


def sign_flip(
    differences: Sequence[float] | Tensor,
    clusters: Sequence[str],
    *,
    flips: int = FLIPS,
    seed: int = 0,
) -> float:
    """p of the mean difference if each scene's might as well have the other sign (two-sided).

    All 2^C are counted up to 13 scenes; else `flips` random ones, the observed among them.
    """
    sums_C, _ = _sums(differences, clusters)
    C, seen = len(sums_C), float(sums_C.sum().abs()) * (1 - 1e-12)
    if C <= _EXACT:
        numbers = torch.arange(2**C)[:, None] >> torch.arange(C)
        return float(((1 - 2.0 * (numbers & 1).double()) @ sums_C).abs().ge(seen).double().mean())
    generator, reached = torch.Generator().manual_seed(seed), 1
    at_once = max(1, _CHUNK // C)
    for start in range(0, flips, at_once):
        shape = (min(at_once, flips - start), C)
        signs_RC = 1 - 2.0 * torch.randint(2, shape, generator=generator).double()
        reached += int((signs_RC @ sums_C).abs().ge(seen).sum())
    return reached / (flips + 1)


def paired_difference(
    one: Sequence[float] | Tensor,
    other: Sequence[float] | Tensor,
    clusters: Sequence[str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """How much more `one` scores than `other` on the same items."""
    apart_N = torch.as_tensor(one, dtype=torch.float64) - torch.as_tensor(
        other, dtype=torch.float64
    )
    interval = cluster_bootstrap(apart_N, clusters, draws=draws, seed=seed, level=level)
    return Difference(interval, sign_flip(apart_N, clusters, seed=seed))


def mcnemar(one: Sequence[bool], other: Sequence[bool]) -> float:
    """Exact two-sided p that two models are right equally often on independent items (McNemar
    1947): of those that only one of them gets right, as many as seen or fewer are the rarer's."""
    only_one = sum(a and not b for a, b in zip(one, other, strict=True))
    only_other = sum(b and not a for a, b in zip(one, other, strict=True))
    count, rarer = only_one + only_other, min(only_one, only_other)
    tail = sum(math.comb(count, k) for k in range(rarer + 1)) / 2**count
    return min(1.0, 2 * tail)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p adjusted for asking so many questions at once (Holm 1979)."""
    adjusted, worst = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        worst = max(worst, min(1.0, p_values[name] * (len(p_values) - rank)))
        adjusted[name] = worst
    return {name: adjusted[name] for name in p_values}


def chance_normalised(score: float, chance: float) -> float:
    """0 at chance, 1 where all is right; below 0 where it is worse than a guess."""
    return (score - chance) / (1 - chance)


def interquartile_mean(values: Sequence[float]) -> float:
    """Mean of the middle half, fractions of values counted (Agarwal et al. 2021, rliable)."""
    ordered, count = sorted(values), len(values)
    if not count:
        raise ValueError("no values")
    cut, total = count / 4, 0.0
    for rank, value in enumerate(ordered):
        inside = min(rank + 1, count - cut) - max(rank, cut)
        total += max(0.0, inside) * value
    return total / (count - 2 * cut)


@dataclass(frozen=True)
class FamilyScores:
    """Scores of a family's items, their scenes, and what a guess gets on average."""

    scores: Sequence[float]
    clusters: Sequence[str]
    chance: float


def macro_mean(
    families: Sequence[FamilyScores],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean over families of the chance-normalised score; a scene that serves several families is
    resampled in all of them at once."""
    names = sorted({name for family in families for name in family.clusters})
    place = {name: n for n, name in enumerate(names)}
    sums, counts = [], []
    for family in families:
        scores_N = torch.as_tensor(family.scores, dtype=torch.float64)
        member_N = torch.tensor([place[name] for name in family.clusters])
        sums.append(torch.zeros(len(names), dtype=torch.float64).index_add_(0, member_N, scores_N))
        counts.append(torch.bincount(member_N, minlength=len(names)).double())
    sums_FC, counts_FC = torch.stack(sums), torch.stack(counts)
    chance_F = torch.tensor([family.chance for family in families], dtype=torch.float64)

    def normalised(weight_C: Tensor) -> Tensor:
        mean_F = (sums_FC @ weight_C) / (counts_FC @ weight_C)
        return ((mean_F - chance_F) / (1 - chance_F)).nanmean()  # a family may be drawn empty

    generator, C = torch.Generator().manual_seed(seed), len(names)
    estimate = float(normalised(torch.ones(C, dtype=torch.float64)))
    if C < 2:
        return Interval(estimate, -math.inf, math.inf, level)
    means = []
    for _ in range(draws):
        drawn_C = torch.randint(C, (C,), generator=generator)
        means.append(normalised(torch.bincount(drawn_C, minlength=C).double()))
    return _percentiles(torch.stack(means), estimate, level)


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Chance that a positive is above a negative; ties count half (Mann & Whitney 1947)."""
    ordered = torch.tensor(sorted(negative), dtype=torch.float64)
    up = torch.tensor(positive, dtype=torch.float64)
    if not len(ordered) or not len(up):
        raise ValueError("needs both positives and negatives")
    below = torch.searchsorted(ordered, up, right=False)
    up_to = torch.searchsorted(ordered, up, right=True)
    return float((below + up_to).double().mean() / 2 / len(ordered))


def balanced_accuracy(said: Sequence[int], truth: Sequence[int]) -> float:
    """Mean over the true classes of the share of each that is said right."""
    classes = sorted(set(truth))
    shares = []
    for label in classes:
        mine = [s == t for s, t in zip(said, truth, strict=True) if t == label]
        shares.append(sum(mine) / len(mine))
    return sum(shares) / len(shares)


def d_prime(hits: int, positives: int, false_alarms: int, negatives: int) -> float:
    """Distance of "yes" where it is right from "yes" where it is wrong, in deviations; half a case
    is added to each count so that it is finite (Hautus 1995)."""
    hit, alarm = (hits + 0.5) / (positives + 1), (false_alarms + 0.5) / (negatives + 1)
    return NormalDist().inv_cdf(hit) - NormalDist().inv_cdf(alarm)


def effect_size(more: Sequence[float], less: Sequence[float]) -> float:
    """Mean of the paired differences in units of their deviation; 0 where they do not differ."""
    apart = torch.tensor(more, dtype=torch.float64) - torch.tensor(less, dtype=torch.float64)
    deviation = float(apart.std()) if len(apart) > 1 else 0.0
    return float(apart.mean()) / deviation if deviation else 0.0


def power(difference: float, error: float, *, alpha: float = 0.05) -> float:
    """Chance to find a true difference with this standard error (two-sided z test)."""
    edge, normal = NormalDist().inv_cdf(1 - alpha / 2), NormalDist()
    return normal.cdf(difference / error - edge) + normal.cdf(-difference / error - edge)


def detectable(error: float, *, alpha: float = 0.05, power: float = 0.9) -> float:
    """Smallest difference that is found with this power."""
    normal = NormalDist()
    return (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)) * error


def error_of_design(  # noqa: PLR0913 - the assumptions of a design
    scenes: int,
    items: int,
    *,
    base: float = 0.6,
    within_scene: float = 0.3,
    between_models: float = 0.5,
    paired: bool = True,
) -> float:
    """Standard error of the difference of two models before anything is run.

    Args:
        scenes, items: how many scenes, and items of each.
        base: score of an item.
        within_scene: correlation of the items of a scene.
        between_models: correlation of two models on an item (paired).
    """
    variance = base * (1 - base) * (1 + (items - 1) * within_scene) / (items * scenes)
    return math.sqrt(2 * variance * (1 - between_models * paired))
