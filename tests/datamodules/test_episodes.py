"""What holds for every game, shown on one that counts its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from datamodules import Skipped
from datamodules.games.episodes import (
    ACTION,
    PATIENCE_S,
    Episodes,
    Plan,
    Play,
    Stretch,
    spoken,
    words,
)
from mmpredict.schema import Clip
from mmpredict.tokens import MelChunks, Patches, TextTokens, Vectors
from tests.datamodules.small import loading

HZ, RATE, SAMPLES = 30, 12000, 400  # steps and samples of a second, samples of a step


class Counting(Episodes):
    """State n shows n in every pixel and sounds as n / 1000; it ends after `length` steps."""

    step_hz, native, pixel_aspect, buttons = HZ, (6, 8), 1.0, ("jump", "run", "duck")
    length, click = 10**9, None  # click: the state whose first sample alone is loud

    def draw_action(self, world: str, rng: np.random.Generator) -> Sequence[int]:
        return rng.integers(0, 2, 3)

    def record(self, plan: Plan, *, truth: bool) -> Stretch:
        last = min(len(plan.presses_ND), self.length)
        states = np.arange(plan.warmup - self.lead_steps, last + 1)
        shown = [n for n in self.frame_states(plan).tolist() if n <= last]
        sound = (states / 1000.0).repeat(SAMPLES)
        if self.click is not None:
            sound = np.zeros_like(sound)
            sound[(self.click - states[0]) * SAMPLES] = 0.5
        return Stretch(
            plan=plan,
            steps=max(0, min(last + 1 - plan.warmup, self.clip_steps)),
            screens_THWC=np.array(shown, np.uint8)[:, None, None, None] + np.zeros((6, 8, 3), int),
            sound_CS=np.stack([sound, -sound]).astype(np.float32),
            sound_hz=RATE,
            title="Counting",
            events=((0.5, "Half."),),
            truth=shown,
        )


def game(
    *, fps: float = 10.0, rate: int = RATE, channels: int = 2, hz: float | None = None, **how
) -> Counting:
    play = {"clip_seconds": 2.0, "warmup_seconds": (1.0, 3.0), "hold": (4, 12), "policy": "random"}
    play |= {"fit": "crop", "repeat": False, "sizes": {"train": 5, "val": 3, "test": 3}}
    return Counting(
        audio=MelChunks(sample_rate=rate, channels=channels, num_mels=8, hops=2),
        video=Patches(size=(6, 8), patch=2, fps=fps),
        text=TextTokens(),
        series={ACTION: Vectors(3, hz or fps)},
        worlds=("one", "two"),
        play=Play(**play | how),
        loading=loading(context_length=1024),
        seed=0,
    )


def clip_of(data: Counting, number: int = 0) -> tuple[Plan, Clip]:
    return data.plan("train", number), data.documents("train").clip(0, number)


@pytest.mark.parametrize("fps", [10.0, 7.0, 12.5])
def test_a_frame_shows_the_last_state_that_is_finished(fps):
    plan, clip = clip_of(game(fps=fps))
    assert torch.equal(clip.times_s, torch.arange(len(clip.times_s)).double() / fps)
    states = clip.frames_TCHW[:, 0, 0, 0].double() - plan.warmup
    assert torch.equal(states, (clip.times_s * HZ + 1e-6).floor())


def test_the_sound_of_a_step_begins_when_its_picture_is_shown():
    plan, clip = clip_of(game())
    samples = clip.waveform_CS[0].double() * 1000 - plan.warmup
    assert clip.waveform_CS.shape == (2, 2 * RATE)
    assert torch.equal(samples.round(), (torch.arange(2 * RATE) * HZ // RATE).double())
    assert torch.equal(clip.waveform_CS[1], -clip.waveform_CS[0]), "left and right are kept"


@pytest.mark.parametrize("rate", [8000, 16000, 22050])
def test_another_rate_keeps_the_time_of_a_sound_to_the_sample(rate):
    data = game(rate=rate)
    plan = data.plan("train", 0)
    for offset in (0, 7, 31):
        data.click = plan.warmup + offset
        heard = data.documents("train").clip(0, 0).waveform_CS[0].abs()
        assert abs(int(heard.argmax()) - offset / HZ * rate) < 1
    assert heard.max() > 0.1


def test_one_ear_is_the_mean_of_both():
    _, clip = clip_of(game(channels=1))
    assert clip.waveform_CS.abs().max() == 0 and clip.waveform_CS.shape[0] == 1


@pytest.mark.parametrize("hz", [10.0, 7.0, 30.0])
def test_actions_are_what_went_in_from_their_time_to_the_next(hz):
    plan, clip = clip_of(game(hz=hz))
    actions = clip.series[ACTION]
    begins = plan.warmup + np.ceil(actions.times_s.numpy() * HZ - 1e-6).astype(int)
    ends = [*begins[1:], plan.warmup + 2 * HZ]
    for values, begin, end in zip(actions.values_TD.numpy(), begins, ends, strict=True):
        assert (plan.presses_ND[begin:end] == values).all(), "nothing changes in between"
    assert len(np.unique(actions.values_TD.numpy(), axis=0)) > 3


def test_actions_are_held():
    data = game(hold=(5, 9))
    presses = replace(data.plan("train", 0)).presses_ND
    changes = np.flatnonzero((presses[1:] != presses[:-1]).any(1))
    assert len(changes) > 5 and np.diff(changes).min() >= 5


def test_noop_presses_nothing():
    data = game(policy="noop")
    assert not data.plan("train", 0).presses_ND.any()
    assert not clip_of(data)[1].series[ACTION].values_TD.any()


def test_warmups_lie_in_their_bounds_and_worlds_take_turns():
    data = game(warmup_seconds=(2.0, 4.0))
    plans = [data.plan("train", n) for n in range(40)]
    warmups = [plan.warmup for plan in plans]
    assert min(warmups) >= 60 and max(warmups) <= 120 and len(set(warmups)) > 15
    assert [plan.world for plan in plans[:4]] == ["one", "two", "one", "two"]


def test_splits_and_epochs_play_different_games_and_held_out_ones_stay():
    data = game()
    plans = [data.plan(split, n) for split in ("train", "val", "test") for n in range(10)]
    assert len({plan.seed for plan in plans}) == len({p.presses_ND.tobytes() for p in plans}) == 30
    assert [data.number("train", 2, 4), data.number("val", 2, 2)] == [14, 2]
    assert game(repeat=True).number("train", 2, 4) == 4
    names = {data.documents("train").title(e, i) for e in (0, 1) for i in range(5)}
    assert len(names) == 10 and data.documents("val").name(1) == "two/val/1"


def test_a_plan_is_a_pure_function():
    one, other = game().plan("train", 7), game().plan("train", 7)
    assert np.array_equal(one.presses_ND, other.presses_ND) and one.seed == other.seed
    other = game().plan("train", 7, attempt=1)
    assert not np.array_equal(one.presses_ND[:30], other.presses_ND[:30])


def test_a_document_ends_with_its_episode_in_all_streams():
    data = game()
    plan = data.plan("train", 0)
    data.length = plan.warmup + 44  # 45 states: 1.5 s
    clip = data.documents("train").clip(0, 0)
    assert len(clip.frames_TCHW) == 15 and clip.waveform_CS.shape[1] == 1.5 * RATE
    assert len(clip.series[ACTION].times_s) == 15


def test_a_short_episode_is_met_earlier_and_a_hopeless_one_skipped():
    data = game(warmup_seconds=(3.0, 3.0))
    data.length = 85
    clip = data.documents("train").clip(0, 0)
    assert int(clip.frames_TCHW[0, 0, 0, 0]) == 45, "half of the 90 steps"
    data.length = 25
    assert len(data.documents("train").clip(0, 0).frames_TCHW) > 5, "the longest there is"
    data.length = 5
    skipped = data.documents("train").clip(0, 0)
    assert isinstance(skipped, Skipped) and "ended within 0.2 s of their start" in skipped.reason
    assert skipped.harmless
    assert isinstance(data.truth("train", 0, 0), Skipped)


def test_truth_is_of_the_clip_s_own_frames():
    data = game()
    clip = data.documents("test").clip(0, 1)
    assert data.truth("test", 0, 1) == clip.frames_TCHW[:, 0, 0, 0].tolist()


def test_words_come_after_what_they_tell_and_end_with_the_clip():
    events = [(0.0, "One two."), (0.1, "Three."), (0.2, "Four."), (1.9, "Late words here.")]
    pieces = spoken(events, 2.0)
    assert [piece.text for piece in pieces] == ["One two.", "Three.", "Four."]
    at = dict((text, time_s) for time_s, text in events)
    assert all(at[p.text] <= p.start_s <= at[p.text] + PATIENCE_S for p in pieces)
    assert all(a.end_s <= b.start_s for a, b in zip(pieces, pieces[1:], strict=False))
    assert pieces[-1].end_s <= 2.0
    many = spoken([(0.0, "A b c.")] * 9, 9.0)
    assert len(many) == 2, "the third could begin after 1.2 s alone"


def test_the_title_comes_first_and_untimed():
    _, clip = clip_of(game())
    assert [(p.text, p.start_s) for p in clip.texts] == [("Counting.", None), ("Half.", 0.5)]
    assert set(game().corpus()) == {"Counting.", "Half."}


def test_names_in_words():
    assert [words(name) for name in ("ShotgunGuy", "take_cover", "HKnight", "pong")] == [
        "shotgun guy",
        "take cover",
        "hknight",
        "pong",
    ]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"policy": "best"}, r"data.policy='best' must be one of random, noop"),
        ({"warmup_seconds": (3.0, 1.0)}, r"data.warmup_seconds=\[3.0, 1.0\]"),
        ({"hold": (0, 3)}, r"data.hold=\[0, 3\]"),
        ({"clip_seconds": 0.0}, "data.clip_seconds=0"),
        ({"sizes": {"train": 0}}, "data.train_clips=0"),
    ],
)
def test_settings_that_make_no_sense(how, message):
    with pytest.raises(ValueError, match=message):
        game(**how)


def test_actions_of_another_width_or_name_are_refused():
    streams = {"audio": None, "video": None, "text": TextTokens(), "worlds": ("a",)}
    how = {"play": game().play, "loading": None, "seed": 0}
    with pytest.raises(ValueError, match=r"width=4 must be 3: jump, run, duck"):
        Counting(**streams, series={ACTION: Vectors(4, 8)}, **how)
    with pytest.raises(ValueError, match=r"data.series.force: a game has no such series"):
        Counting(**streams, series={"force": Vectors(3, 8)}, **how)
    with pytest.raises(ValueError, match="list of games is empty"):
        Counting(**streams | {"worlds": ()}, series=None, **how)
