"""The audit finds what is rigged, and lets pass what is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmpredict.probes.audit import audit, run_audit
from mmpredict.probes.audit_gate import GATE, Gate, gate_scores
from mmpredict.probes.audit_marks import position_p, repeated, state_hash
from mmpredict.probes.audit_text import blind_scores
from mmpredict.probes.audit_views import state, told, told_places
from mmpredict.probes.families import sounds, words
from mmpredict.probes.families.draft import finish
from mmpredict.probes.items import Evidence, Item, Suite
from mmpredict.probes.suites import build_suite, supervised_split
from mmpredict.world import matched_set


def _items(count: int, leak: str = "") -> list[Item]:
    """Two items a scene with opposite answers; `leak` puts a trace of the answer somewhere."""
    found = []
    for k in range(count):
        right = "left" if k % 2 else "right"
        word = ("now" if right == "left" else "here") if leak == "words" else "now"
        choices = ("left", "right") if k % 4 < 2 else ("right", "left")
        if "place" in leak:
            choices = (right, "left" if right == "right" else "right")
        template = f"left_right/{right if 'template' in leak else k % 4 // 2}"
        found.append(
            Item(
                id=f"left_right/{k}",
                family="left_right",
                score="mc",
                evidence=(Evidence("", None, ("the red ball is left of the blue box",)),),
                variants=("text",),
                question=f"is the red ball left or right {word}?",
                choices=choices,
                answer=choices.index(right),
                cluster=f"scene {k // 2}",
                template=template,
            )
        )
    return found


def _named(items: list[Item]) -> set[str]:
    return {check.name for check in audit(Suite("x", tuple(items))).failures}


def test_sound_items_pass_and_rigged_ones_fail() -> None:
    assert _named(_items(160)) == set()
    assert {"words", "network"} <= _named(_items(160, "words"))
    assert {"place", "template"} <= _named(_items(160, "place template"))


@pytest.mark.parametrize("reader", ["words", "network"])
def test_readers_of_words_find_a_leak_on_unseen_scenes(reader: str) -> None:
    scores = blind_scores(_items(80, "words"), reader)
    assert sum(scores) / len(scores) > 0.95
    with pytest.raises(ValueError, match="eyes"):
        blind_scores(_items(8), "eyes")


def test_positions_are_compared_among_as_many_choices() -> None:
    assert position_p(_items(160)) > 0.9
    assert position_p(_items(160, "place")) < 1e-6


def test_a_scene_twice_is_found() -> None:
    suite = build_suite("smoke", scenes=5)
    assert repeated(suite, []) == (0, 0)
    assert repeated(suite, [suite])[1] == len({state_hash(t) for t in suite.sources.values()})
    name = next(iter(suite.sources))
    item = next(i for i in suite.items if i.family == "left_right")
    other = replace(item, id="copy", cluster="another scene", evidence=(Evidence("copied", 1.25),))
    take = replace(suite.sources[item.evidence[0].source], key="painted otherwise")
    copied = Suite("x", (*suite.items, other), {**suite.sources, "copied": take})
    assert repeated(copied, [])[0] == 1, name


def test_the_verb_writes_its_table(tmp_path, capsys) -> None:
    suite = Suite("x", tuple(_items(160, "words")))
    assert not run_audit(suite, out=tmp_path)
    assert "FAILS: words left_right" in capsys.readouterr().out
    assert "| words | left_right |" in (tmp_path / "audit.md").read_text()


@pytest.mark.parametrize("view", ["state", pytest.param("pixels", marks=pytest.mark.slow)])
def test_the_gate_asks_every_kind_of_item(view: str) -> None:
    """At a toy cost it need not pass, but it must run for every kind of evidence."""
    learn = supervised_split("smoke", scenes=5, even=True)
    families = ("left_right", "distance", "which_hit", "caption_minpair", "permanence_voe")
    gate = Gate(view, (*families, "text_transfer"), steps=3, sense_steps=3, dim=16)
    found = gate_scores(learn, learn, gate, practice=learn)
    assert set(found) == {*families, *(["text_transfer"] if view == "state" else [])}
    for family, (score, count) in found.items():
        assert count == sum(item.family == family for item in learn.items)
        assert 0 <= score <= 1


@pytest.mark.slow
def test_the_gate_learns_what_can_be_had_and_nothing_else() -> None:
    """What is heard is learnt; by the answers of other scenes the same reader is judged wrong."""
    learn, gate = _knocks("train", 9), Gate(steps=150, dim=48)
    assert gate_scores(learn, learn, gate)["sound_event"][0] > GATE
    turned = [replace(i, answer=(i.answer + k // 2) % 3) for k, i in enumerate(learn.items)]
    judge = replace(learn, items=tuple(turned))
    assert gate_scores(learn, judge, gate)["sound_event"][0] < 0.6


def _knocks(split: str, count: int) -> Suite:
    shots = [shot for k in range(count) for shot in sounds.build_knock(k, split, 1)]
    items = finish([draft for shot in shots for draft in sounds.sound_event(shot)], split)
    return Suite("knocks", tuple(items), {shot.source: shot.take for shot in shots})


def test_a_view_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="view='smell'"):
        Gate("smell")


def test_pixels_without_scenes_to_practise_on_are_refused() -> None:
    suite = _knocks("train", 1)
    with pytest.raises(ValueError, match="practise"):
        gate_scores(suite, suite, Gate("pixels"))


def test_what_is_told_is_solved_into_places() -> None:
    """In any order of the lines; the answer of every chain follows from its places."""
    drafts = [draft for k in range(20) for draft in words.text_transfer(k, "dev", 0)]
    for item in finish(drafts, "dev"):
        places = told_places(item.evidence[0].told)
        a, b = sorted(places, key=lambda name: _asked_at(item.question, name))[:2]
        if f"of the {a} is" in item.question or f"from the {a} on" in item.question:
            a, b = b, a
        dx, dy = (places[a][k] - places[b][k] for k in (0, 1))
        way = ("right" if dx > 0 else "left") if dx else ("above" if dy > 0 else "below")
        assert item.choices[item.answer] == way
    with pytest.raises(ValueError, match="green cup"):
        told(("the red ball is above the blue box", "the tin cone is left of the green cup"))


def _asked_at(question: str, name: str) -> int:
    return question.index(name) if name in question else len(question)


def test_the_state_says_what_is_heard() -> None:
    """The sound of another stage, in the place of what is seen."""
    takes = matched_set("sound_dir", 3).takes
    heard = [state(take, None).sounds[-1].place[0] for take in takes]
    assert heard[0] != 0
    assert heard == pytest.approx([heard[0], -heard[0]] * 2, rel=1e-6)
