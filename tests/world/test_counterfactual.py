"""Laws of matched pairs: one scene twice, the same bit for bit up to the cut, then one breach."""

from __future__ import annotations

from functools import cache
from itertools import islice

import numpy as np
import pytest
import torch

from mmpredict.world import (
    SOUND_KINDS,
    VIDEO_KINDS,
    Condition,
    Film,
    Pair,
    Unsuitable,
    counterfactual,
    draw_pairs,
    draw_scene,
    matched_pair,
)
from mmpredict.world.counterfactual import DELAY_S, JUMP_M, KINDS, MARGIN_S
from mmpredict.world.physics import STEP_HZ, Breach, simulate
from mmpredict.world.stage import ObjectSpec, Stage

COUNT = 3
RATE = 16000


@cache
def pairs(kind: str) -> list[Pair]:
    return list(islice(draw_pairs(kind, split="dev", film=Film((32, 32))), COUNT))


def scene_of(pair: Pair):
    """The scene that a pair was filmed from, by its name."""
    for index in range(2000):
        scene = draw_scene(index, split="dev")
        if scene.name == pair.possible.clip.name:
            return scene
    raise AssertionError(pair.possible.clip.name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bit_for_bit_up_to_the_cut_and_then_not(kind):
    for pair in pairs(kind):
        one, two = pair.possible.clip, pair.impossible.clip
        past_T, past = one.times_s <= pair.cut_s, int(pair.cut_s * RATE)
        assert past_T.sum() >= 4 and (~past_T).sum() >= 4
        assert torch.equal(one.frames_TCHW[past_T], two.frames_TCHW[past_T])
        assert torch.equal(one.waveform_CS[:, :past], two.waveform_CS[:, :past])
        assert pair.cut_s == pytest.approx(pair.breach_s - MARGIN_S)
        differs_T = (one.frames_TCHW != two.frames_TCHW).flatten(1).any(1)
        assert torch.equal(pair.frames_T, differs_T)
        differs_S = (one.waveform_CS != two.waveform_CS).any(0).nonzero()[:, 0]
        if kind in VIDEO_KINDS:
            assert differs_T[int(past_T.sum()) + 1]  # the breach may fall on a frame: the next one
        else:
            assert not differs_T.any()
            assert pair.samples == (int(differs_S[0]), int(differs_S[-1]) + 1)
            assert pair.breach_s - MARGIN_S <= pair.samples[0] / RATE <= pair.breach_s + 0.002


@pytest.mark.parametrize("kind", KINDS)
def test_the_possible_one_is_the_ordinary_recording(kind):
    pair = pairs(kind)[0]
    ordinary = scene_of(pair).record(32)
    assert torch.equal(ordinary.clip.frames_TCHW, pair.possible.clip.frames_TCHW)
    assert torch.equal(ordinary.clip.waveform_CS, pair.possible.clip.waveform_CS)
    assert ordinary.clip.texts == pair.possible.clip.texts
    assert ordinary.questions == pair.possible.questions and not pair.impossible.questions
    assert ordinary.truth.events == pair.possible.truth.events
    # What is said after the cut tells of what did not happen: the other clip is silent about it.
    assert all(piece.end_s <= pair.cut_s for piece in pair.impossible.clip.texts)
    assert pair.impossible.clip.texts == tuple(
        piece for piece in ordinary.clip.texts if piece.end_s <= pair.cut_s
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_pure_function_whatever_the_film(kind):
    pair = pairs(kind)[0]
    scene = scene_of(pair)
    again, other = matched_pair(scene, kind, size=32), matched_pair(scene, kind, fps=24.0)
    assert torch.equal(again.impossible.clip.frames_TCHW, pair.impossible.clip.frames_TCHW)
    assert torch.equal(again.impossible.clip.waveform_CS, pair.impossible.clip.waveform_CS)
    for pair_other in (again, other):
        assert (pair_other.cut_s, pair_other.target) == (pair.cut_s, pair.target)
        assert pair_other.impossible.truth.events == pair.impossible.truth.events


def after(pair: Pair, recording) -> int:
    """The first frame behind the breach."""
    return int((recording.truth.times_s <= pair.breach_s).sum())


def test_teleport_jumps_and_goes_on():
    for pair in pairs("teleport"):
        k, n = after(pair, pair.possible), pair.target
        places = [r.truth.position_TN3[k, n] for r in (pair.possible, pair.impossible)]
        jump = float(places[0][0] - places[1][0])
        assert JUMP_M[0] - 0.1 <= abs(jump) <= JUMP_M[1] + 0.1
        assert float(places[0][1] - places[1][1]) == pytest.approx(0, abs=0.02)
        speeds = [float(r.truth.velocity_TN3[k, n, 0]) for r in (pair.possible, pair.impossible)]
        assert speeds[0] == pytest.approx(speeds[1], abs=0.1)
        assert float(pair.impossible.truth.visible_TN[k, n]) > 0.8


def test_vanish_leaves_nothing_to_see_or_to_tell():
    for pair in pairs("vanish"):
        k, n = after(pair, pair.possible), pair.target
        truth = pair.impossible.truth
        assert float(truth.visible_TN[k - 1, n]) > 0.8 and not truth.visible_TN[k:, n].any()
        late = [e for e in truth.events if e.time_s > pair.breach_s]
        assert all(n not in (e.a, e.b) for e in late)


def test_where_something_vanished_there_is_only_the_room():
    alone = Condition(num_objects=(1, 1))
    found = draw_pairs(
        "vanish", split="dev", families=("roll_and_bounce",), condition=alone, film=Film((32, 32))
    )
    pair = next(pair for pair in found if len(pair.possible.truth.names) == 1)
    frames = pair.impossible.clip.frames_TCHW[after(pair, pair.possible) :]
    assert torch.equal(frames, frames[:1].expand_as(frames))
    before = pair.impossible.clip.frames_TCHW[0]
    still = (before == frames[0]).all(0).float().mean()
    assert 0.8 < float(still) < 1  # all but where the object and its shadow were


def test_wrong_turn_turns_back_where_nothing_is():
    for pair in pairs("wrong_turn"):
        k, n = after(pair, pair.possible), pair.target
        before, turned = (r.truth.velocity_TN3[k, n, 0] for r in (pair.possible, pair.impossible))
        assert float(before) * float(turned) < 0
        assert abs(float(turned)) == pytest.approx(abs(float(before)), rel=0.1)
        near = [e for e in pair.impossible.truth.events if abs(e.time_s - pair.breach_s) < 0.2]
        assert all(n not in (e.a, e.b) for e in near)


def power(recording, start_s: float, length_s: float = 0.1) -> float:
    start = round(start_s * RATE)
    sound_CS = recording.clip.waveform_CS[:, start : start + round(length_s * RATE)]
    return float(sound_CS.square().mean())


def test_sounds_are_missing_late_or_for_nothing():
    for pair in pairs("silent_impact"):
        assert power(pair.possible, pair.breach_s) > 5 * power(pair.impossible, pair.breach_s)
    for pair in pairs("phantom_sound"):
        assert power(pair.impossible, pair.breach_s) > 5 * power(pair.possible, pair.breach_s)
        near = [e for e in pair.possible.truth.events if abs(e.time_s - pair.breach_s) < 0.2]
        assert not [e for e in near if e.impulse > 0]
    for pair in pairs("late_sound"):
        assert power(pair.possible, pair.breach_s) > 5 * power(pair.impossible, pair.breach_s)
        one, two = (r.clip.waveform_CS.atanh() for r in (pair.possible, pair.impossible))
        heard = (one - two)[:, pair.samples[0] : pair.samples[1]][0]
        # What is missing now comes back once, with its sign turned, after the delay.
        start = heard[: int(0.15 * RATE)]
        lags = range(int(0.1 * RATE), len(heard) - len(start))
        match = torch.stack([start @ heard[lag : lag + len(start)] for lag in lags])
        delay_s = (int(match.argmin()) + lags[0]) / RATE
        assert DELAY_S[0] - 0.001 <= delay_s <= DELAY_S[1] + 0.001
        assert float(match.min()) < -0.5 * float(start @ start)


def test_the_breach_itself_is_not_seen_before_its_step():
    ball = ObjectSpec("red", "ball", "metal", 0.5, 0.5, 0, -0.5, 0.25, 1.0)
    stage = Stage((ball,), 1.0)
    free = simulate(stage).state_KN6
    broken = simulate(stage, Breach(120, 0, place=(0.6, 0.25), velocity=(-1.0, 0.0))).state_KN6
    assert np.array_equal(free[:121], broken[:121]) and not np.array_equal(free[121], broken[121])
    assert broken[121, 0, 0] == pytest.approx(0.6 - 1 / STEP_HZ, abs=1e-3)
    assert broken[121, 0, 5] == pytest.approx(-free[121, 0, 5], rel=0.05)  # it rolls back


def test_unsuitable_scenes_say_why():
    silent = Condition(num_objects=(1, 1), speed=(0.01, 0.02))
    scenes = [
        draw_scene(k, split="dev", families=("roll_and_bounce",), condition=silent)
        for k in range(4)
    ]
    for kind, hint in (("teleport", "m/s"), ("late_sound", "impact")):
        refused = 0
        for scene in scenes:
            try:
                matched_pair(scene, kind, size=32)
            except Unsuitable as error:
                assert hint in str(error) and scene.name in str(error) and kind in str(error)
                refused += 1
        assert refused
    with pytest.raises(ValueError, match="teleport"):
        matched_pair(scenes[0], "levitate")


def test_a_search_that_finds_nothing_ends(monkeypatch):
    monkeypatch.setattr(counterfactual, "MOST_REFUSED", 5)
    still = Condition(num_objects=(1, 1), speed=(0.01, 0.02))
    with pytest.raises(Unsuitable, match="none of 5 scenes in a row is suitable for wrong_turn"):
        list(islice(draw_pairs("wrong_turn", split="dev", condition=still), 100))


def test_kinds_break_only_what_they_name():
    assert not set(VIDEO_KINDS) & set(SOUND_KINDS)
    for kind in SOUND_KINDS:
        for pair in pairs(kind):
            assert torch.equal(pair.possible.truth.position_TN3, pair.impossible.truth.position_TN3)
            assert pair.impossible.truth.events == pair.possible.truth.events
