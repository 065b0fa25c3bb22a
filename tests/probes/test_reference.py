"""Scorers with known scores: 1, chance, 0; and a guess is chance in the mean."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmpredict.probes.grading import grade
from mmpredict.probes.items import VARIANTS, Suite
from mmpredict.probes.reference import Constant, Majority, Oracle, Random
from mmpredict.probes.run import run_suite
from mmpredict.probes.stats import cluster_bootstrap
from tests.probes.small_suite import suite


def many(count: int) -> Suite:
    """The small suite's choices again and again, with names and clusters of their own."""
    small = suite(1)
    items = tuple(
        replace(item, id=f"{item.id}/{n}", cluster=f"{n}")
        for n in range(count)
        for item in small.items
        if item.score == "mc"
    )
    return replace(small, items=items)


def scores(scorer, asked: Suite) -> dict[str, list[dict]]:
    rows = run_suite(scorer, asked, VARIANTS).rows
    return {
        kind: [r for r in rows if r["kind"] == kind] for kind in ("mc", "numeric", "minpair", "voe")
    }


def test_the_oracle_is_always_right():
    for rows in scores(Oracle(), suite(3)).values():
        assert rows and all(row["score"] == 1 and not row["tied"] for row in rows)


def test_the_anti_oracle_never_is():
    for rows in scores(Oracle(says_wrong=True), suite(3)).values():
        assert rows and all(row["score"] == 0 for row in rows)


def test_one_that_says_the_same_of_everything_is_exactly_chance():
    for rows in scores(Constant(), suite(3)).values():
        for row in rows:
            assert row["score"] == pytest.approx(row["chance"], abs=1e-12)
            assert row["tied"]


def test_a_guess_is_inside_of_its_interval_in_95_of_100_of_200_reruns():
    items, runs = many(40).items, 200
    inside = 0
    for seed in range(runs):
        said = Random(seed).scores(items, "video")
        above = [grade(i, n["random"]).score - i.chance for i, n in zip(items, said, strict=True)]
        interval = cluster_bootstrap(above, [item.cluster for item in items], draws=400)
        inside += interval.low <= 0 <= interval.high
    assert inside >= 180  # 190 expected; fewer than 180 in one of 600 such tests


def test_a_guess_depends_on_the_item_and_not_on_its_company():
    asked = suite(2)
    whole = {
        (r["id"], r["variant"]): r["numbers"] for r in run_suite(Random(1), asked, VARIANTS).rows
    }
    alone = run_suite(Random(1), replace(asked, items=asked.items[3:4]), ["audio"]).rows[0]
    assert whole[alone["id"], "audio"] == alone["numbers"]
    assert whole[alone["id"], "video"] != alone["numbers"]


def test_habit_says_what_is_most_often_right_when_it_is_offered():
    yes_no = [
        replace(i, id=f"{k}", answer=int(k < 1)) for k in range(3) for i in suite(1).items[:1]
    ]
    said = Majority(yes_no).scores(suite(1).items, "video")
    assert said[0] == {"majority": [2 / 3, 1 / 3]}
    assert said[1] == {"majority": [1 / 3] * 3}  # never offered: a guess
    assert said[-1] == {"majority": [0.0, 0.0]}  # of clips nothing is known
