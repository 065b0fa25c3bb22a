"""Laws of takes: mirrored exactly, written and read back, and changed only in what is said."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmpredict.world import (
    NONE,
    Condition,
    Film,
    Knock,
    Resound,
    Take,
    draw_scene,
    matched_set,
)
from mmpredict.world.families import FAMILIES, build_stage
from mmpredict.world.mirror import mirror_motion, mirror_stage
from mmpredict.world.physics import Breach, simulate
from mmpredict.world.stage import HandSpec, Move, ObjectSpec, ScreenSpec, Stage, StringSpec

FILM = Film((32, 32))
RATE = FILM.sample_rate
BALL = ObjectSpec("red", "ball", "wood", 0.6, 0.6, 1, -0.6, 1.3)
BOX = ObjectSpec("blue", "box", "metal", 0.6, 0.6, 1, 0.5, 0.3)
DROP = Take(Stage((BALL, BOX), 2.0), "drop")


def take_of(family: str, seed: int = 1) -> Take:
    return Take(build_stage(seed, family, "dev", Condition()), f"{family}/{seed}", family)


def first_strike(take: Take) -> int:
    return next(k for k, e in enumerate(take.play().history.events) if e.impulse > 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_mirrored_is_the_flipped_picture_swapped_ears_and_mirrored_truth(family):
    take = take_of(family)
    plain, mirrored = take.record(FILM), take.mirrored().record(FILM)
    assert torch.equal(mirrored.clip.frames_TCHW, plain.clip.frames_TCHW.flip(-1))
    assert torch.equal(mirrored.clip.waveform_CS, plain.clip.waveform_CS.flip(0))
    one, two = plain.truth, mirrored.truth
    flip = torch.tensor([-1.0, 1.0, 1.0])
    assert torch.equal(two.position_TN3, one.position_TN3 * flip)
    assert torch.equal(two.velocity_TN3, one.velocity_TN3 * flip)
    assert torch.equal(two.angle_TN, -one.angle_TN)
    for field in ("visible_TN", "support_TN", "container_TN", "held_TN", "size_N2"):
        assert torch.equal(getattr(one, field), getattr(two, field))
    assert not torch.equal(plain.clip.frames_TCHW, mirrored.clip.frames_TCHW)
    assert take.mirrored().mirrored() == take


@pytest.mark.parametrize("family", FAMILIES)
def test_mirrored_events_are_those_of_the_mirrored_motion(family):
    take = take_of(family, 2)
    seen, plain = take.mirrored().play(), take.play()
    for one, two in zip(plain.history.events, seen.history.events, strict=True):
        assert (one.time_s, one.kind, one.a, one.b) == (two.time_s, two.kind, two.a, two.b)
        assert two.position == pytest.approx((-one.position[0], *one.position[1:]))
    assert take.mirrored().record(FILM).truth.events == seen.history.events
    # The mirrored motion is what physics makes of the mirrored stage.
    again = simulate(mirror_stage(take.stage)).state_KN6[:60, :, :2]
    assert np.abs(again - mirror_motion(plain.motion).state_KN6[:60, :, :2]).max() < 0.02


def test_mirrored_questions_have_mirrored_answers():
    opposite = {"left": "right", "right": "left"}
    compared = 0
    for seed in range(6):
        take = take_of("roll_and_bounce", seed)
        pairs = (take.record(FILM).questions, take.mirrored().record(FILM).questions)
        for one, two in zip(*pairs, strict=True):
            answers = [q.choices[q.answer] for q in (one, two)]
            if one.family in ("left_right", "direction"):
                assert answers[1] == opposite[answers[0]]
                compared += 1
            else:
                assert answers[0] == answers[1]
    assert compared >= 5


def everything() -> Take:
    """A take that uses every field."""
    screen = ScreenSpec(0.1, 2.85, 1.0, 1.0, 0.2, 3.0, 0.0, 0.25, 1.0)
    hand = HandSpec(1, 1, 0.2, (Move(0.3, 0.9, 0.1, 0.4),), 1.2)
    spheres = (replace(BALL, colour="green", x=0.5), replace(BALL, lane=2))
    stage = Stage((BALL, BOX), 2.0, (StringSpec(1, 0, 3.0),), screen, hand, (screen,))
    return Take(
        stage,
        "all",
        "pick_up",
        breaches=(Breach(400, 0, (0.1, 0.4), (1.0, 0.0)), Breach(410, 0, through=1)),
        other=Stage((*spheres,), 2.0),
        swaps_s=(0.5, 1.0),
        heard="other",
        sounds=(
            Resound(first_strike(Take(stage, "all")), delay_s=0.1, material="metal", size=0.9),
        ),
        knocks=(Knock(0.3, 1),),
        ears="swapped",
        mirror=True,
    )


@pytest.mark.parametrize("take", [DROP, everything(), matched_set("gravity", 1).takes[1]])
def test_written_and_read_back_it_films_the_same(take):
    again = Take.from_plain(json.loads(json.dumps(take.to_plain())))
    assert again == take
    one, two = take.record(FILM), again.record(FILM)
    assert torch.equal(one.clip.frames_TCHW, two.clip.frames_TCHW)
    assert torch.equal(one.clip.waveform_CS, two.clip.waveform_CS)


def test_plain_data_are_short_where_nothing_is_changed():
    assert set(DROP.to_plain()) == {"stage", "key"}


def test_a_lawful_take_is_filmed_as_the_scene_of_its_key():
    scene = draw_scene(3, split="dev", condition=Condition(speech="none"))
    scenes, take = scene.record(32), Take(scene.stage(), scene.key, scene.family).record(FILM)
    assert torch.equal(scenes.clip.frames_TCHW, take.clip.frames_TCHW)
    assert torch.equal(scenes.clip.waveform_CS, take.clip.waveform_CS)
    assert scenes.questions == take.questions


def test_breaches_do_what_they_say():
    stage = Stage((replace(BALL, x=0.5, y=1.4), BOX), 2.0)
    free = simulate(stage).state_KN6
    assert free[:, 0, 1].min() > 0.85  # it bounces on the box
    through = simulate(stage, Breach(30, 0, through=1)).state_KN6
    assert through[:, 0, 1].min() == pytest.approx(0.3, abs=0.05)
    alone = simulate(Stage((BOX,), 2.0)).state_KN6
    assert np.abs(through[:, 1] - alone[:, 0]).max() < 1e-9  # the box notices nothing
    hangs = simulate(stage, Breach(30, 0, hangs=True)).state_KN6
    assert np.array_equal(hangs[:31], free[:31])
    assert (hangs[31:, 0, :2] == hangs[30, 0, :2]).all() and not hangs[31:, 0, 3:].any()
    pushed = Stage((replace(BALL, y=0.3), replace(BOX, vx=1.5)), 2.0)
    glued = simulate(pushed, Breach(0, 0, glued_to=1)).state_KN6
    apart = glued[:, 1, :2] - glued[:, 0, :2]
    assert np.hypot(*(apart - apart[0]).T).max() < 0.06 and np.ptp(glued[:, 0, 0]) > 0.2
    both = simulate(stage, Breach(30, 0, hangs=True), Breach(60, 0, place=(0.0, 2.0))).state_KN6
    assert both[59, 0, 0] == 0.5 and both[61, 0, 0] == 0.0


def heard(take: Take) -> torch.Tensor:
    """What is heard, before the soft limit, without the room."""
    silent = replace(take, sounds=tuple(Resound(k, silent=True) for k in strikes(take)), knocks=())
    return take.record(FILM).clip.waveform_CS.atanh() - silent.record(FILM).clip.waveform_CS.atanh()


def strikes(take: Take) -> list[int]:
    return [k for k, e in enumerate(take.play().history.events) if e.impulse > 0]


def test_sounds_are_silenced_late_of_another_material_or_for_nothing():
    k = first_strike(DROP)
    time_s = DROP.play().history.events[k].time_s
    start, length = round(time_s * RATE), round(0.05 * RATE)
    plain = heard(DROP)
    assert float(plain[:, :start].abs().max()) < 1e-4 < float(plain[:, start:].abs().max())
    silent = heard(replace(DROP, sounds=(Resound(k, silent=True),)))
    assert float(silent[:, start : start + length].abs().max()) < 1e-4
    shift = round(0.05 * RATE)
    late = heard(replace(DROP, sounds=(Resound(k, delay_s=0.05),)))
    assert float(late[:, start : start + length].abs().max()) < 1e-4
    moved = late[:, start + shift : start + shift + length] - plain[:, start : start + length]
    assert float(moved.abs().max()) < 1e-3
    metal = heard(replace(DROP, sounds=(Resound(k, material="metal"),)))
    real = heard(replace(DROP, stage=Stage((replace(BALL, material="metal"), BOX), 2.0)))
    one, two, wood = (s[0, start : start + 800] for s in (metal, real, plain))
    assert float(torch.corrcoef(torch.stack([one, two]))[0, 1]) > 0.99
    assert abs(float(torch.corrcoef(torch.stack([one, wood]))[0, 1])) < 0.7
    knock = DROP.record(FILM).clip.waveform_CS
    knocked = replace(DROP, knocks=(Knock(0.2, 1),)).record(FILM).clip.waveform_CS
    differs = (knock != knocked).any(0).nonzero()[:, 0]
    assert 0.2 <= int(differs[0]) / RATE < 0.202
    with pytest.raises(ValueError, match="these do"):
        replace(DROP, sounds=(Resound(999, silent=True),)).record(FILM)


def test_ears_are_swapped_or_joined():
    plain = DROP.record(FILM).clip.waveform_CS
    swapped = replace(DROP, ears="swapped").record(FILM).clip
    mono = replace(DROP, ears="mono").record(FILM).clip.waveform_CS
    assert torch.equal(swapped.waveform_CS, plain.flip(0))
    assert torch.equal(swapped.frames_TCHW, DROP.record(FILM).clip.frames_TCHW)
    assert torch.equal(mono[0], mono[1]) and torch.allclose(mono[0], plain.mean(0))


def test_a_swap_shows_the_other_stage_and_names_all():
    other = Stage((BOX, replace(BALL, colour="green", x=0.6)), 2.0)
    take = Take(DROP.stage, "swap", other=other, swaps_s=(0.5, 1.25))
    recording, one = take.record(FILM), Take(DROP.stage, "swap").record(FILM)
    two = Take(other, "swap").record(FILM)
    times_T = one.truth.times_s
    second_T = (times_T > 0.5) & (times_T <= 1.25)
    for frame, second in enumerate(second_T.tolist()):
        source = two if second else one
        assert torch.equal(recording.clip.frames_TCHW[frame], source.clip.frames_TCHW[frame])
    cut = int(0.5 * RATE)
    assert torch.equal(recording.clip.waveform_CS[:, :cut], one.clip.waveform_CS[:, :cut])
    later = slice(cut + 1, int(1.25 * RATE))
    assert torch.equal(recording.clip.waveform_CS[:, later], two.clip.waveform_CS[:, later])
    truth = recording.truth
    assert truth.names == ("red ball", "blue box", "green ball")
    assert (truth.visible_TN[second_T, 0] == 0).all() and (
        truth.position_TN3[second_T, 0] == 60
    ).all()
    assert (truth.visible_TN[~second_T, 2] == 0).all()
    assert torch.equal(truth.position_TN3[second_T, 2], two.truth.position_TN3[second_T, 1])
    assert torch.equal(truth.position_TN3[second_T, 1], two.truth.position_TN3[second_T, 0])
    assert (truth.support_TN[~second_T, 2] == NONE).all()
    assert {e.b for e in truth.events if e.a == 2} == {1}  # on the box, by its number here
    for event in truth.events:
        assert (event.a == 2) <= (0.5 < event.time_s <= 1.25)
        assert (event.a == 0) <= (not 0.5 < event.time_s <= 1.25)
    assert recording.questions == () and len(truth.colour_N) == 3


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"swaps_s": (0.5,)}, "second stage"),
        ({"other": DROP.stage}, "second stage"),
        ({"heard": "other"}, "second stage"),
        ({"heard": "nobody"}, "own"),
        ({"ears": "three"}, "mono"),
        ({"other": DROP.stage, "swaps_s": (1.0, 0.5)}, "rise"),
        ({"other": replace(DROP.stage, seconds=3.0), "swaps_s": (1.0,)}, "3.0 s"),
    ],
)
def test_mistakes_are_explained(change, hint):
    with pytest.raises(ValueError, match=hint):
        replace(DROP, **change)
    with pytest.raises(ValueError, match="metal"):
        Resound(0, material="glass")
