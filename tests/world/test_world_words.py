"""Captions and questions: they keep to the scene, to the truth, and to their time."""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
import pytest

from mmpredict.world import (
    COLOURS,
    FAMILIES,
    FLOOR,
    MATERIALS,
    NONE,
    SHAPES,
    Condition,
    Question,
    Recording,
    Truth,
    draw_scene,
)

NAME = re.compile(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")
SCENES = 40
FPS = 40.0  # truth at this rate: question times fall on frames


@lru_cache
def recordings(speech: str = "both") -> tuple[Recording, ...]:
    condition = Condition(speech=speech)
    scenes = [draw_scene(k, split="train", condition=condition) for k in range(SCENES)]
    return tuple(scene.record(16, FPS, frames=False, sound=False) for scene in scenes)


def everything_asked() -> list[tuple[Truth, Question]]:
    return [(r.truth, q) for r in recordings() for q in r.questions]


@pytest.mark.parametrize("speech", ["captions", "dialogue", "both"])
def test_words_lie_inside_the_clip_and_do_not_overlap(speech):
    for recording in recordings(speech):
        pieces = recording.clip.texts
        assert pieces, recording.clip.name
        assert pieces[0].start_s >= 0 and pieces[-1].end_s <= 2.0
        for before, after in zip(pieces, pieces[1:], strict=False):
            assert before.end_s < after.start_s
        for piece in pieces:
            assert type(piece.start_s) is float and piece.end_s - piece.start_s >= 0.05


def test_no_words_when_none_are_wanted():
    assert all(recording.clip.texts == () for recording in recordings("none"))


def test_words_name_only_what_is_there():
    for recording in recordings():
        named = {" ".join(m) for p in recording.clip.texts for m in NAME.findall(p.text)}
        assert named <= set(recording.truth.names)


def test_vocabulary_is_small_and_wordings_vary():
    texts = [p.text for s in ("both", "dialogue") for r in recordings(s) for p in r.clip.texts]
    assert len({word for text in texts for word in text.split()}) <= 150
    assert len({NAME.sub("X", text) for text in texts}) >= 40


def test_captions_of_ways_agree_with_the_truth():
    checked = 0
    for recording in recordings("captions"):
        truth = recording.truth
        for piece in recording.clip.texts:
            way = r"the (\w+ \w+) (?:rolls|slides|is \w+ing)(?: to the)? (left|right)"
            found = re.match(way, piece.text)
            if not found:
                continue
            n = truth.names.index(found[1])
            sign = -1 if found[2] == "left" else 1
            start = next(e for e in truth.events if e.kind == "start" and e.a == n)
            assert sign * truth.velocity_TN3[round(start.time_s * FPS), n, 0] > 0
            checked += 1
    assert checked > 10


def test_captions_follow_their_events():
    kinds = {"hits": ("hit", "land"), "lands on": ("land", "bounce"), "lifts": ("lift",)}
    checked = 0
    for recording in recordings("captions"):
        for piece in recording.clip.texts:
            for word, wanted in kinds.items():
                names = NAME.findall(piece.text)
                if f" {word} " not in piece.text or not names or "rolls" in piece.text:
                    continue
                first = recording.truth.names.index(" ".join(names[0]))
                times = [
                    e.time_s
                    for e in recording.truth.events
                    if first in (e.a, e.b) and e.kind in (*wanted, "bounce", "wall")
                ]
                assert any(0 <= piece.start_s - time < 0.8 for time in times), piece
                checked += 1
    assert checked > 15


def test_relations_can_be_kept_out_of_captions():
    for index in range(20):
        condition = Condition(speech="captions", relations=0.0)
        clip = draw_scene(index, split="train", condition=condition).record(frames=False).clip
        for piece in clip.texts:
            assert not re.search(r"(left|right) of|above|is on|is in the", piece.text)


def object_in(truth: Truth, text: str) -> int:
    return NONE if text == "nothing" else truth.names.index(text.removeprefix("the "))


def state_at(truth: Truth, question: Question) -> int:
    frame = round(question.time_s * FPS)
    assert float(truth.times_s[frame]) == pytest.approx(question.time_s)
    return frame


def check(truth: Truth, question: Question) -> None:
    """Answer the question from the tensors alone."""
    right, t = question.choices[question.answer], state_at(truth, question)
    place_N3, family = truth.position_TN3[t], question.family
    if family in ("left_right", "above_below"):
        first, second = question.objects
        if question.text.startswith("on which side"):
            order = [question.text.index(truth.names[n]) for n in (second, first)]
            assert order == sorted(order)
        gap_3 = place_N3[second] - place_N3[first]
        expected = {"left": gap_3[0] > 0, "right": gap_3[0] < 0, "above": gap_3[1] < 0}
        expected["below"] = gap_3[1] > 0
        assert expected[right], question
    elif family == "nearer_farther":
        depths = place_N3[list(question.objects), 2]
        best = depths.argmin() if "nearer" in question.text else depths.argmax()
        assert object_in(truth, right) == question.objects[int(best)]
    elif family == "containment":
        inside = (truth.container_TN[t] == question.objects[0]).nonzero().flatten().tolist()
        assert [object_in(truth, right)] == (inside[:1] or [NONE])
    elif family == "support":
        below = FLOOR if right == "the floor" else object_in(truth, right)
        assert int(truth.support_TN[t, question.objects[0]]) == below
    elif family == "material":
        assert right == MATERIALS[truth.material_N[question.objects[0]]]
    elif family == "moved":
        path_T3 = truth.position_TN3[: t + 1, question.objects[0]]
        assert (right == "yes") == bool((path_T3 - path_T3[0]).abs().max() > 0.1)
    elif family == "direction":
        x_T = truth.position_TN3[:, question.objects[0], 0]
        assert right == ("left" if x_T[t] < x_T[0] else "right")
    elif family == "counting":
        plural = question.text.split()[2]
        counts = {f"{s}{'es' if s == 'box' else 's'}": s for s in SHAPES}
        named = [name for name in truth.names if name.endswith(counts.get(plural, ""))]
        assert right == str(len(named))


def test_answers_agree_with_the_truth():
    asked = everything_asked()
    for truth, question in asked:
        assert len(set(question.choices)) == len(question.choices) >= 2, question
        check(truth, question)
    assert len({q.family for _, q in asked}) >= 11


def test_what_the_hand_moves_and_what_falls():
    condition, seen = Condition(), {"falls": set(), "moves": set()}
    for index in range(60):
        scene = draw_scene(index, split="train", families=("pick_up",), condition=condition)
        recording = scene.record(16, FPS, frames=False, sound=False)
        truth = recording.truth
        for question in recording.questions:
            if question.family != "pick_up":
                continue
            right, t = question.choices[question.answer], state_at(truth, question)
            chosen = object_in(truth, right)
            grab = next(e for e in truth.events if e.kind == "grab")
            start = min(round(grab.time_s * FPS), t)
            went_N3 = truth.position_TN3[t] - truth.position_TN3[start]
            if "hand" in question.text:
                assert bool(truth.held_TN[start + 1, chosen])
            elif re.search("falls|fell", question.text):
                seen["falls"].add(right == "nothing")
                if chosen != NONE:
                    assert went_N3[chosen, 1] < -0.1
            else:
                seen["moves"].add(right == "nothing")
                if chosen != NONE:
                    assert (went_N3[chosen] - went_N3[question.objects[0]]).abs().max() < 0.35
    assert seen == {"falls": {True, False}, "moves": {True, False}}


def test_places_of_the_right_answers_are_balanced():
    places = np.array([q.answer / (len(q.choices) - 1) for _, q in everything_asked()])
    assert 0.4 < places.mean() < 0.6


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_words(family):
    scene = draw_scene(0, split="train", families=(family,))
    assert scene.record(16, 4.0, sound=False).clip.texts
