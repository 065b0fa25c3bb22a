"""Suites: pure functions of their arguments, balanced, true, and silent about what they ask."""

from __future__ import annotations

from collections import Counter

import pytest

from mmpredict.probes.items import Suite
from mmpredict.probes.suites import build_suite, supervised_split
from mmpredict.world import SPLITS, Film, Take, is_held_out_pair
from mmpredict.world.sets import SET_KINDS

FAMILIES = {
    *("left_right above_below between nearer_farther rel_direction distance size_order").split(),
    *("counting caption_minpair pick_up containment support permanence appearance_order").split(),
    *("velocity ttc speed_class ttc_frames sound_dir sound_event which_hit text_transfer").split(),
    *(f"{kind}_voe" for kind in SET_KINDS),
}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


@pytest.fixture(scope="module")
def suite() -> Suite:
    return build_suite("smoke")


def test_every_family_is_there(suite: Suite) -> None:
    assert set(suite.families) == FAMILIES


def test_the_same_arguments_give_the_same_suite(suite: Suite) -> None:
    again = build_suite("smoke", scenes=10)
    assert again.sha == build_suite("smoke", scenes=10).sha
    assert again.sha != build_suite("smoke", scenes=10, seed=1).sha != suite.sha


def test_a_suite_survives_its_file(suite: Suite, tmp_path) -> None:
    suite.write(tmp_path / "suite.jsonl")
    assert Suite.read(tmp_path / "suite.jsonl").sha == suite.sha


def test_labels_are_balanced_and_partners_differ(suite: Suite) -> None:
    for family in ("left_right", "above_below", "permanence", "rel_direction", "counting"):
        ours = [item for item in suite.items if item.family == family]
        counts = Counter(item.choices[item.answer] for item in ours)
        assert len(set(counts.values())) == 1, (family, counts)
    for family in ("left_right", "above_below", "nearer_farther", "velocity", "which_hit"):
        groups: dict[str, list[str]] = {}
        for item in suite.items:
            if item.family == family:
                groups.setdefault(item.group, []).append(item.choices[item.answer])
        assert all(len(set(Counter(g).values())) == 1 and len(set(g)) == 2 for g in groups.values())


def test_partners_are_asked_in_the_same_words(suite: Suite) -> None:
    words: dict[tuple[str, str], set[str]] = {}
    for item in suite.items:
        words.setdefault((item.family, item.group), set()).add(item.template)
    assert all(len(found) == 1 for found in words.values())


def test_half_of_the_wordings_are_new(suite: Suite) -> None:
    ours = [i for i in suite.items if i.family in ("left_right", "above_below", "nearer_farther")]
    assert 0.3 < sum(item.paraphrase for item in ours) / len(ours) < 0.7
    assert all(item.paraphrase == ("fresh" in item.template) for item in ours)


def test_what_is_told_is_never_the_answer(suite: Suite) -> None:
    for item in suite.items:
        lines = [line for evidence in item.evidence for line in evidence.told]
        if item.family == "caption_minpair":
            assert not set(lines) & set(item.choices)
        if item.family not in ("left_right", "above_below", "text_transfer"):
            continue
        things = sorted(_things(item.question), key=item.question.index)
        a, b = things if not _asks_side_first(item.question) else things[::-1]
        side = item.choices[item.answer]
        of = " of" if side in ("left", "right") else ""
        assert f"{a} is {side}{of} {b}" not in lines, item


def _things(text: str) -> list[str]:
    found = text.replace("?", "").split("the ")[1:]
    return [f"the {' '.join(part.split()[:2])}" for part in found]


def _asks_side_first(question: str) -> bool:
    return question.startswith(("on which side of", "from "))


def test_answers_hold_in_the_truth(suite: Suite) -> None:
    film = Film((16, 16), frames=False, sound=False)
    truths = {}
    checked: Counter[str] = Counter()
    for item in suite.items:
        if item.family not in _TRUE or checked[item.family] >= 40:
            continue
        evidence = item.evidence[0]
        if evidence.source not in truths:
            truths[evidence.source] = suite.sources[evidence.source].record(film).truth
        truth = truths[evidence.source]
        last = int((truth.times_s < evidence.until_s - 1e-9).sum()) - 1
        numbers = {f"the {name}": n for n, name in enumerate(truth.names)}
        assert _TRUE[item.family](item, truth, last, numbers), item
        checked[item.family] += 1
    assert set(checked) == set(_TRUE)


def _side_is_true(item, truth, t, numbers) -> bool:
    a, b = _things(item.question)
    if _asks_side_first(item.question):
        a, b = b, a
    axis = 0 if item.family == "left_right" else 1
    gap = truth.position_TN3[t, numbers[a], axis] - truth.position_TN3[t, numbers[b], axis]
    return (gap > 0) == (item.choices[item.answer] in ("right", "above"))


def _nearer_is_true(item, truth, t, numbers) -> bool:
    depth = {c: float(truth.position_TN3[t, numbers[c], 2]) for c in item.choices}
    best = min if "nearer" in item.question else max
    return item.choices[item.answer] == best(depth, key=depth.get)


def _size_is_true(item, truth, t, numbers) -> bool:
    size = {c: float(truth.size_N2[numbers[c], 0]) for c in item.choices}
    best = max if "bigger" in item.question else min
    return item.choices[item.answer] == best(size, key=size.get)


def _middle_is_true(item, truth, t, numbers) -> bool:
    order = sorted(item.choices, key=lambda c: float(truth.position_TN3[t, numbers[c], 0]))
    return item.choices[item.answer] == order[1]


def _content_is_true(item, truth, t, numbers) -> bool:
    cup = next(n for n in numbers.values() if int(truth.shape_N[n]) == 2)
    inside = [name for name, n in numbers.items() if int(truth.container_TN[t, n]) == cup]
    return (inside or ["nothing"]) == [item.choices[item.answer]]


def _hidden_is_true(item, truth, t, numbers) -> bool:
    name = next(thing for thing in _things(item.question) if thing in numbers)
    is_hidden = float(truth.visible_TN[t, numbers[name]]) == 0.0
    return is_hidden == (item.choices[item.answer] == "yes")


def _faster_is_true(item, truth, t, numbers) -> bool:
    speed = {c: abs(float(truth.velocity_TN3[t, numbers[c], 0])) for c in item.choices}
    best = max if "faster" in item.question else min
    return item.choices[item.answer] == best(speed, key=speed.get)


_TRUE = {
    "left_right": _side_is_true,
    "above_below": _side_is_true,
    "nearer_farther": _nearer_is_true,
    "size_order": _size_is_true,
    "between": _middle_is_true,
    "containment": _content_is_true,
    "permanence": _hidden_is_true,
    "velocity": _faster_is_true,
}


def test_mirrored_rooms_mirror_answers(suite: Suite) -> None:
    by_source: dict[str, dict[str, str]] = {}
    for item in suite.items:
        if item.family == "left_right":
            found = by_source.setdefault(item.evidence[0].source, {})
            found[item.question] = item.choices[item.answer]
    mirrored = [name for name in by_source if name.endswith("/mirrored")]
    assert mirrored
    for name in mirrored:
        plain = by_source[name.removesuffix("/mirrored")]
        assert {q: OPPOSITE[a] for q, a in by_source[name].items()} == plain


def test_a_blind_hit_is_told_by_sound_alone(suite: Suite) -> None:
    ours = [i for i in suite.items if i.family == "which_hit"]
    evidence = [e for e in dict.fromkeys(i.evidence[0] for i in ours)][:2]
    clips = [suite.sources[e.source].record(Film((32, 32))).clip for e in evidence]
    shown = int((clips[0].times_s < evidence[0].until_s).sum())
    assert evidence[0].until_s == evidence[1].until_s
    assert (clips[0].frames_TCHW[:shown] == clips[1].frames_TCHW[:shown]).all()
    heard = int(evidence[0].until_s * clips[0].sample_rate)
    assert (clips[0].waveform_CS[:, :heard] != clips[1].waveform_CS[:, :heard]).any()


@pytest.mark.parametrize("split", [s for s in SPLITS if s.startswith("test")])
def test_every_split_keeps_its_rules(split: str) -> None:
    found = build_suite("smoke", split=split, scenes=5)
    assert {item.split for item in found.items} == {split}
    takes = [s for name, s in found.sources.items() if isinstance(s, Take) and "set/" not in name]
    pairs = {is_held_out_pair(o.colour, o.shape) for t in takes for o in t.stage.objects}
    assert pairs == {split == "test_comp"}


def test_what_is_learnt_from_is_no_test(suite: Suite) -> None:
    learnt = supervised_split("smoke", split="train", scenes=5)
    assert not set(learnt.sources) & set(suite.sources)
    with pytest.raises(ValueError, match="test_iid.*'train'"):
        supervised_split("smoke", split="test_iid")


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="huge.*spatial"):
        build_suite("huge")
    with pytest.raises(ValueError, match="test_all.*test_iid"):
        build_suite("smoke", split="test_all")
    with pytest.raises(ValueError, match="scenes=2.*5"):
        build_suite("smoke", scenes=2)
