"""Readouts of published benchmarks: what is plain is found, in one class of several and in several
at once; dealt-out labels tell nothing; clips that were lost count as wrong."""

from __future__ import annotations

import pytest
import torch

from mmpredict.probes.external import Bench, BenchError, Readout
from mmpredict.probes.external.readout import _permuted, _shares, fitted_scores
from mmpredict.probes.items import Suite


def labels(several: bool, count: int = 60) -> Readout:
    """Clips by turns of three classes; with `several`, of the next class as well."""
    shown = {f"{k:03d}": ((k % 3, (k + 1) % 3) if several else (k % 3,)) for k in range(count)}
    split = {name: "test" if k >= count // 2 else "train" for k, name in enumerate(shown)}
    return Readout(shown, split, 3, several=several, remedy="get more")


def features(of: Readout) -> dict[str, list[torch.Tensor]]:
    """Noise, and then the classes among noise: the second candidate is the better one."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, classes in of.labels.items():
        plain = torch.randn(8, generator=generator)
        plain[list(classes)] += 6.0
        found[name] = [torch.randn(8, generator=generator), plain]
    return found


def right(of: Readout, scores: dict[str, list[float]]) -> float:
    """Share of test clips whose best class is one of theirs."""
    hits = [row.index(max(row)) in of.labels[name] for name, row in scores.items()]
    return sum(hits) / len(hits)


@pytest.mark.parametrize("several", [False, True])
def test_what_is_plain_is_found_and_dealt_labels_tell_nothing(several):
    of = labels(several)
    values = features(of)
    scores = fitted_scores("b", of, values)
    assert list(scores) == [name for name, part in of.split.items() if part == "test"]
    assert right(of, scores) == 1
    dealt = _permuted(of, seed=1)
    assert sorted(dealt.labels.values()) == sorted(of.labels.values())
    test = [name for name, part in of.split.items() if part == "test"]
    assert all(dealt.labels[name] == of.labels[name] for name in test)
    assert right(of, fitted_scores("b", dealt, values)) < 0.9
    assert len({tuple(row) for row in _shares(of).values()}) == 1


def test_groups_are_trained_apart():
    """In the second group the classes are the other way round."""
    of = labels(False, 120)
    group = {name: "ab"[k // 30 % 2] for k, name in enumerate(of.labels)}
    turned = {n: ((2 - c[0],) if group[n] == "b" else c) for n, c in of.labels.items()}
    both = Readout(turned, of.split, 3, group)
    assert right(both, fitted_scores("b", both, features(of))) == 1
    one = Readout(turned, of.split, 3)
    assert right(one, fitted_scores("b", one, features(of))) < 0.9


def test_too_few_clips_and_missing_features_are_named():
    of = labels(False, 6)
    with pytest.raises(BenchError, match="has 3 readout clips, needs 4 of each outcome: get more"):
        fitted_scores("b", of, features(of))
    whole = labels(False)
    given = features(whole)
    del given["000"]
    with pytest.raises(BenchError, match="1 clips have no features, first '000'"):
        fitted_scores("b", whole, given)
    for_training = {name: "train" for name in whole.split}
    with pytest.raises(BenchError, match="no test clips"):
        fitted_scores("b", Readout(whole.labels, for_training, 3), features(whole))


def test_lost_test_clips_count_as_wrong():
    of = labels(False)
    bench = Bench(
        "b",
        Suite("b", ()),
        lambda items, answers: {},
        readout=of,
        readout_metric=lambda bench, scores: {"right": right(of, dict(scores))},
    )
    scores = fitted_scores("b", of, features(of))
    assert bench.score_readout(scores, {}) == {"right": 1, "data_errors": 0}
    lost = {"030": "gone", "000": "gone"}  # one of the test, one of the training clips
    left = {name: row for name, row in scores.items() if name not in lost}
    found = bench.score_readout(left, lost)
    assert found == {"right": pytest.approx(29 / 30), "data_errors": 1}
