"""The audit finds what is rigged, and lets pass what is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmpredict.probes.audit import audit, run_audit
from mmpredict.probes.audit_gate import Gate, gate_scores
from mmpredict.probes.audit_marks import position_p, repeated, state_hash
from mmpredict.probes.audit_text import blind_scores
from mmpredict.probes.items import Evidence, Item, Suite
from mmpredict.probes.suites import build_suite, supervised_split


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


@pytest.mark.parametrize("view", ["state", "pixels"])
def test_the_gate_learns_from_what_is_shown(view: str) -> None:
    """At a toy cost it need not pass, but it must run for every kind of evidence."""
    learn = supervised_split("smoke", scenes=5)
    gate = Gate(view, ("left_right", "which_hit"), steps=3, dim=16)
    found = gate_scores(learn, learn, gate)
    assert set(found) == {"left_right", "which_hit"}
    assert all(0 <= score <= 1 and count > 0 for score, count in found.values())
    with pytest.raises(ValueError, match="view='smell'"):
        Gate("smell")
