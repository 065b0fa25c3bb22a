"""Wording, balance and what a played take says."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mmpredict.probes.families import hands, rooms, words
from mmpredict.probes.families.draft import Draft, balanced, common_labels, finish
from mmpredict.probes.families.shot import cast_until, exchange


def _draft(number: int, right: str, stratum: str = "") -> Draft:
    return Draft(
        "left_right",
        None,
        f"group {number}",
        ("known?",),
        ("fresh?", "new?"),
        right,
        ("left", "right"),
        ("told",),
        cluster=f"scene {number // 3}",
        stratum=stratum,
    )


def test_balance_is_exact_in_every_stratum() -> None:
    drafts = [_draft(k, "left" if k % 3 else "right", "a" if k % 2 else "b") for k in range(60)]
    kept = balanced(drafts, 2, ("left", "right"))
    counts = Counter((draft.stratum, draft.right) for draft in kept)
    assert counts["a", "left"] == counts["a", "right"] > 0
    assert counts["b", "left"] == counts["b", "right"] > 0
    assert max(Counter(draft.cluster for draft in kept).values()) <= 2


def test_rare_labels_are_not_balanced() -> None:
    drafts = [_draft(k, "left") for k in range(30)] + [_draft(30, "right")]
    assert common_labels(drafts) == ("left",)


def test_items_are_numbered_worded_and_shuffled() -> None:
    items = finish([_draft(k, "left") for k in range(300)], "dev")
    assert len({item.id for item in items}) == 300
    assert all(item.choices[item.answer] == "left" and item.chance == 0.5 for item in items)
    assert 100 < sum(item.answer for item in items) < 200
    assert 100 < sum(item.paraphrase for item in items) < 200
    assert all((item.question == "known?") != item.paraphrase for item in items)


def test_a_number_counts_by_its_nearness() -> None:
    draft = Draft("n", None, "g", (), ("how many?",), "2", ("1", "2", "4"), ("x",), cluster="c")
    item = finish([Draft(**{**draft.__dict__, "is_number": True})], "dev")[0]
    assert item.choices == ("1", "2", "4") and item.numeric == 2
    assert item.chance == pytest.approx(1 / 3)  # half and twice are beyond every threshold


def test_chains_follow_from_what_is_told() -> None:
    """Solved anew from the sentences, the answer is the same."""
    step = {"left": (-1, 0), "right": (1, 0), "above": (0, 1), "below": (0, -1)}
    hops = set()
    for number in range(12):
        for draft in words.text_transfer(number, "dev", 0):
            edges = []
            for line in draft.told:
                part = line.replace(" of ", " ").split()
                edges.append((" ".join(part[5:]), step[part[4]], " ".join(part[:3])))
            things = sorted({name for a, _, b in edges for name in (a, b)})
            places = {things[0]: (0, 0)}
            while len(places) < len(things):
                for a, (dx, dy), b in edges:
                    if a in places:
                        places[b] = places[a][0] + dx, places[a][1] + dy
                    elif b in places:
                        places[a] = places[b][0] - dx, places[b][1] - dy
            b, a = draft.known[0].removeprefix("on which side of ").removesuffix("?").split(" is ")
            gap = places[a][0] - places[b][0], places[a][1] - places[b][1]
            way = step[draft.right]
            assert gap[0] * way[1] == gap[1] * way[0] and np.dot(gap, way) > 0
            assert len(draft.told) == draft.condition["hops"]
            hops.add(len(draft.told))
    assert hops == {1, 2, 3, 4, 5}


def test_a_room_keeps_its_plan() -> None:
    for number in range(5):
        shot = rooms.build_room(number, "dev", 0, mirrored=False)[0]
        near, far = shot.roles["near"], shot.roles["far"]
        objects = shot.stage.objects
        assert objects[near].shape == objects[far].shape
        is_bigger_far = objects[far].width > objects[near].width
        assert is_bigger_far == shot.facts["same_size_in_picture"]
        assert shot.seen_N.min() > 0.6


def test_exchanged_things_swap_names_and_nothing_else() -> None:
    shot = hands.build_hand(2, "dev", 0)[0]
    swapped = exchange(shot.stage, 1, 2)
    assert swapped.objects[1].colour == shot.stage.objects[2].colour
    assert swapped.objects[1].x == shot.stage.objects[1].x
    assert exchange(swapped, 1, 2) == shot.stage


def test_who_goes_with_the_hand_moves() -> None:
    for number in (0, 1, 2, 3):
        for shot in hands.build_hand(number, "dev", 0):
            went_N = np.abs(shot.motion.state_KN6[-1, :, :2] - shot.motion.state_KN6[0, :, :2])
            load = shot.facts["load"]
            for role in "ab":
                moved = went_N[shot.roles[role]].max() > 0.3
                assert moved == (role == load)


def test_what_never_fits_is_named() -> None:
    with pytest.raises(ValueError, match="'nowhere'.*'dev'"):
        cast_until(lambda cast: None, "nowhere", "dev")
