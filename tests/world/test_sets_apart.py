"""No two matched sets are the same, and no two splits share a scene. Plain data only: nothing is
filmed."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from mmpredict.world import SET_KINDS, SPLITS, matched_set

MANY = 1000  # sets of a kind
FEW = 6
OF_SPLIT = 30  # sets of a kind in each split


def plain(kind: str, seed: int, split: str = "test_iid") -> tuple[str, set[str]]:
    """What the four takes are but for their names, and the scenes that they begin with."""
    takes = matched_set(kind, seed, split=split).takes
    whole = [{**take.to_plain(), "key": ""} for take in takes]
    stages = {json.dumps(asdict(take.stage), sort_keys=True) for take in takes}
    return json.dumps(whole, sort_keys=True), stages


def check(kind: str, count: int, of_split: int) -> None:
    found = [plain(kind, seed) for seed in range(count)]
    assert len({whole for whole, _ in found}) == count
    # Not even a scene comes twice, and so none is in two sets.
    assert len({stage for _, stages in found for stage in stages}) == sum(
        len(stages) for _, stages in found
    )
    owner: dict[str, str] = {}
    for split in SPLITS:
        for seed in range(of_split):
            for stage in plain(kind, seed, split)[1]:
                assert owner.setdefault(stage, split) == split, (kind, split, seed)


@pytest.mark.parametrize("kind", SET_KINDS)
def test_sets_differ(kind):
    check(kind, FEW, 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SET_KINDS)
def test_a_thousand_sets_of_a_kind_differ(kind):
    check(kind, MANY, OF_SPLIT)
