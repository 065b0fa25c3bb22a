"""What may be said follows from the intervals alone."""

import random

import pytest

from mmpredict.probes.summary import summarise


def rows(share: float, *, family: str = "left_right", scenes: int = 200, seed: int = 0) -> list:
    dice = random.Random(f"{seed}/{family}")
    return [
        {
            "id": f"{family}/{n}",
            "family": family,
            "variant": "video",
            "cluster": f"scene {n // 2}",
            "group": f"pair {family} {n // 2}",
            "chance": 0.5,
            "score": float(dice.random() < share),
            "tied": False,
            "error": "",
        }
        for n in range(2 * scenes)
    ]


def entry(found: dict, family: str = "left_right") -> dict:
    return found["video"]["families"][family]


def test_at_chance_nothing_is_claimed_and_what_would_show_is_named():
    claimed = entry(summarise(rows(0.5), {}))["claim"]
    assert claimed.startswith("not told from chance (differences from 0.0")


def test_above_chance_and_baselines():
    found = entry(summarise(rows(0.9), {"untrained": rows(0.5, seed=1)}))
    assert found["claim"] == "above chance and untrained"
    assert found["interval"][0] > 0.5 < found["score"]
    assert found["baselines"]["untrained"]["more"] == pytest.approx(0.4, abs=0.1)


def test_above_chance_but_no_better_than_pixels():
    found = entry(summarise(rows(0.9), {"pixels": rows(0.9, seed=1), "majority": rows(0.5)}))
    assert found["claim"] == "above chance, not above pixels"


def numbers(right_when: str) -> list:
    """Items whose number is 2 in three of four; who is asked is right where it is that."""
    worth = {"2": {"1": 0.0, "2": 1.0, "4": 0.3}, "4": {"1": 0.0, "2": 0.0, "4": 1.0}}
    found = []
    for n, row in enumerate(rows(0.5, family="distance")):
        truth = "4" if n // 2 % 4 == 0 else "2"
        constants = worth[truth]
        score = 1.0 if truth in right_when else constants["2"]
        chance = sum(constants.values()) / 3
        found.append(row | {"score": score, "chance": chance, "constants": constants})
    return found


def test_a_number_always_said_is_no_knowledge_though_it_beats_a_guess():
    found = entry(summarise(numbers("2"), {"majority": numbers("")}), "distance")
    assert found["interval"][0] > found["chance"]
    assert found["baselines"]["best constant"]["score"] == found["score"] == 0.75
    assert found["claim"] == "not above saying one number always"


def test_numbers_that_are_known_beat_the_best_constant():
    found = entry(summarise(numbers("2 4"), {}), "distance")
    assert found["claim"] == "above chance and best constant"
    assert "best constant" not in entry(summarise(rows(0.9), {}))["baselines"]


def test_below_chance_is_said():
    assert entry(summarise(rows(0.2), {}))["claim"] == "below chance"


def test_many_families_at_chance_yield_no_find():
    many = [row for k in range(60) for row in rows(0.5, family=f"f{k}", scenes=40, seed=1)]
    found = summarise(many, {})["video"]["families"]
    assert not [name for name, e in found.items() if e["claim"].startswith("above")]
    assert any(e["p"] < 0.05 for e in found.values())  # unadjusted, there would be one


def test_groups_are_right_all_together():
    whole = rows(1.0)
    whole[0] = whole[0] | {"score": 0.0}
    found = entry(summarise(whole, {}))
    assert found["group_score"] == pytest.approx(199 / 200)
    assert found["group_chance"] == 0.25


def test_what_could_not_be_asked_is_counted_and_has_no_score():
    broken = rows(0.9)
    broken[3] = broken[3] | {"score": None, "error": "clip.mp4 cannot be read"}
    found = entry(summarise(broken, {"untrained": rows(0.5)[10:]}))
    assert (found["n"], found["errors"]) == (399, 1)
    assert found["baselines"]["untrained"]["n"] == 390
    none = [row | {"score": None, "error": "no"} for row in rows(0.9, scenes=2)]
    assert entry(summarise(none, {}))["claim"] == "could not be asked"


def test_scenes_that_all_score_alike_and_a_single_one():
    alike = [row | {"score": float(n % 2)} for n, row in enumerate(rows(0.5, scenes=20))]
    assert entry(summarise(alike, {}))["claim"] == "at chance in every scene"
    one = entry(summarise(rows(1.0, scenes=1), {}))
    assert (one["claim"], one["interval"]) == ("one scene says nothing", [0.0, 1.0])


def test_macro_mean_is_of_families():
    both = rows(1.0, scenes=50) + rows(0.5, family="size_order", scenes=400)
    found = summarise(both, {})["video"]
    assert found["macro"][0] == pytest.approx(0.5, abs=0.06)
    assert found["iqm"] == pytest.approx(found["macro"][0])
