"""What a grade is: known answers, ties in every kind, refused numbers."""

import math

import pytest

from mmpredict.probes.grading import grade, mean_relative_accuracy
from mmpredict.probes.items import Evidence, Item, ItemError


def item(score: str, **fields: object) -> Item:
    plain = {"evidence": (Evidence(),), "choices": ("a", "b", "c"), "answer": 1} | fields
    return Item("i", "f", score, variants=("video",), cluster="c", **plain)


def voe(*possible: bool) -> Item:
    return item(
        "voe", choices=(), answer=0, possible=possible, cut_s=1.0, evidence=(Evidence(),) * 4
    )


def test_choices():
    assert grade(item("mc"), [0, 1, -5]).score == 1
    assert grade(item("mc"), [2, 1, 0]).score == 0
    tied = grade(item("mc"), [1, 1, 0])
    assert (tied.score, tied.tied) == (0.5, True)
    assert grade(item("mc"), [3, 3, 3]).score == pytest.approx(1 / 3)
    assert grade(item("mc"), [-1e9, -1e9 * (1 + 1e-9), -2e9]).tied


def test_a_number_scores_by_how_near_it_is():
    about_two = item("numeric", choices=("1", "2", "4"), numeric=2.0)
    assert grade(about_two, [0, 1, 0]).score == 1
    assert grade(about_two, [1, 0, 0]).score == 0  # 50 % off: not below any 1 - t
    assert grade(item("numeric", choices=("10", "8"), numeric=10.0), [0, 1]).score == 0.6
    # both said: the mean of both
    assert grade(about_two, [1, 1, 0]).score == pytest.approx(0.5)


def test_mean_relative_accuracy_by_hand():
    assert mean_relative_accuracy(9.01, 10) == 0.9  # 9.9 % off: below .5, .45 ... .10, not .05
    assert mean_relative_accuracy(10, 10) == 1
    assert mean_relative_accuracy(7, 10) == 0.4  # exactly 30 % off; floats would say .5
    assert mean_relative_accuracy(0, 0) == 1
    assert mean_relative_accuracy(1, 0) == 0
    # exactly 25 % off with the paper's strict sign: .25 < 1 - t for t = .5 to .7
    assert mean_relative_accuracy(7.5, 10) == 0.5


def test_sets_compare_means_of_both_kinds():
    set_ = voe(True, False, True, False)
    assert grade(set_, [1, 2, 1, 2]).score == 1
    assert grade(set_, [1, 0, 1, 0]).score == 0
    assert grade(set_, [0, 3, 4, 1]) == grade(set_, [1, 1, 1, 1])
    assert grade(set_, [5, 5, 5, 5]).tied


def test_pairs_of_pairs():
    pair = item("minpair", evidence=(Evidence(), Evidence()), choices=("a", "b"), answer=0)
    # chance of statement 1, 2 after context 1, then after context 2
    assert grade(pair, [-1, -3, -2, -1]).score == 1
    assert grade(pair, [-1, -1, -2, -2]).score == 0.5
    assert grade(pair, [-2, -1, -1, -2]).score == 0
    assert grade(pair, [-1, -1, -1, -1]) == grade(pair, [-7, -7, -7, -7])
    assert grade(pair, [-1, -1, -1, -1]).tied


@pytest.mark.parametrize("numbers", [[1, 2], [1, math.nan, 2], [1, 2, math.inf], []])
def test_missing_numbers_are_refused(numbers: list[float]):
    with pytest.raises(ValueError, match="needs 3 finite numbers"):
        grade(item("mc"), numbers)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"choices": ("a",)}, "two or more"),
        ({"choices": ("a", "a")}, "different"),
        ({"answer": 3}, "none of the 3"),
        ({"evidence": ()}, "0 evidences"),
        ({"score": "numeric"}, "true number"),
        ({"score": "voe", "possible": (True,), "cut_s": 1.0}, "both kinds"),
        ({"score": "voe", "possible": (True, False)}, "1 clips"),
        ({"score": "minpair"}, "2 contexts"),
        ({"score": "yes"}, "not one of"),
        ({"chance": 1.0}, "below 1"),
    ],
)
def test_wrong_items_are_refused(fields: dict[str, object], why: str):
    with pytest.raises(ItemError, match=why):
        item(**({"score": "mc"} | fields))
