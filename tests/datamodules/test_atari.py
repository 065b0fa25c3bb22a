"""Real games of the console: the same bytes from anywhere, one clock, and the console's truth."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from datamodules import Atari
from datamodules.atari import BUTTONS, STEP_SAMPLES, _actions_of
from datamodules.games.episodes import ACTION
from mmpredict.schema import Clip, UserError
from mmpredict.tokens import MelChunks, Patches, TextTokens, Vectors
from tests.datamodules.small import loading

pytest.importorskip("ale_py")
CPU_SCORE, PLAYER_SCORE = 13, 14  # where Pong keeps them


def atari(*games: str, **how: object) -> Atari:
    streams = {"audio": MelChunks(channels=1), "video": Patches((24, 32), 8, 15.0)}
    streams |= {"text": TextTokens(), "series": {ACTION: Vectors(5, 15)}}
    short = {"clip_seconds": 1.0, "warmup_seconds": (0.2, 2.0), "loading": loading()}
    sizes = {"train_clips": 6, "val_clips": 2, "test_clips": 3}
    return Atari(**streams | {"games": games or ("pong", "seaquest")} | short | sizes | how)


def digest(clip: Clip) -> tuple[bytes, ...]:
    actions = clip.series[ACTION]
    tensors = (clip.frames_TCHW, clip.waveform_CS, clip.times_s, actions.values_TD)
    return (*(tensor.numpy().tobytes() for tensor in tensors), repr(clip.texts).encode())


@pytest.fixture(scope="module")
def first() -> dict[int, Clip]:
    documents = atari().documents("train")
    return {n: documents.clip(0, n) for n in range(4)}


def test_streams_have_their_rates_and_shapes(first):
    for clip in first.values():
        assert clip.frames_TCHW.shape == (15, 3, 24, 32) and clip.waveform_CS.shape == (1, 16000)
        assert torch.equal(clip.series[ACTION].times_s, clip.times_s)
    assert first[0].texts[0].text == "Pong." and first[1].texts[0].text == "Seaquest."
    assert max(float(clip.waveform_CS.abs().max()) for clip in first.values()) > 0.1
    assert all(clip.frames_TCHW.float().std() > 10 for clip in first.values())


def test_a_used_console_gives_the_same_bytes_in_any_order(first):
    documents = atari().documents("train")
    for n in (3, 1, 2, 0, 1):
        assert digest(documents.clip(0, n)) == digest(first[n])
    assert len({digest(clip) for clip in first.values()}) == 4


def test_a_copy_in_another_process_gives_the_same_bytes(first):
    data = atari()
    data.documents("train").clip(0, 2)
    again = pickle.loads(pickle.dumps(data))
    assert digest(again.documents("train").clip(0, 1)) == digest(first[1])


@pytest.mark.slow  # the loader plays far ahead
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    how = {"video": None, "train_clips": 4, "clip_seconds": 0.5}
    batches = [
        list(atari(**how, loading=loading(workers=n, context_length=128)).train_dataloader())
        for n in (0, workers)
    ]
    assert len(batches[0]) == len(batches[1]) > 0
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.modality, other.modality)
        assert all(torch.equal(one.contents[m], other.contents[m]) for m in one.contents)


def test_held_out_documents_are_not_trained_on():
    how = {"games": ("pong",), "repeat": True, "clip_seconds": 0.5}
    data = atari(**how)
    found = {
        split: {digest(data.documents(split).clip(0, n)) for n in range(size)}
        for split, size in (("train", 6), ("val", 2), ("test", 3))
    }
    assert len(set.union(*found.values())) == 11
    assert digest(data.documents("train").clip(5, 0)) in found["train"]
    again = atari(**how | {"repeat": False}).documents("train")
    assert digest(again.clip(1, 0)) not in found["train"], "a new epoch is new"


def test_what_an_action_causes_lies_behind_it():
    data = atari("seaquest")
    plan = data.plan("train", 1)
    presses = plan.presses_ND.copy()
    change_s = 7 / 15
    presses[plan.warmup + 28 :] = [1, 1, 0, 0, 1]
    one, other = (
        data.clip(data.record(p, truth=False)) for p in (plan, replace(plan, presses_ND=presses))
    )
    until = int(change_s * 15)
    assert torch.equal(one.frames_TCHW[: until + 1], other.frames_TCHW[: until + 1])
    assert not torch.equal(one.frames_TCHW[until + 1 :], other.frames_TCHW[until + 1 :])
    differs = (one.waveform_CS != other.waveform_CS)[0].nonzero()
    assert not len(differs) or differs[0] > (change_s - 0.002) * 16000  # the filter's reach
    acts = [clip.series[ACTION] for clip in (one, other)]
    changed = (acts[0].values_TD != acts[1].values_TD).any(1)
    assert acts[0].times_s[changed][0] == pytest.approx(change_s)


def test_a_blip_is_heard_from_the_step_that_shows_the_bounce():
    """Pong sounds when the ball turns; its position is in the console's memory."""
    data = atari("pong", video=Patches((24, 32), 8, 60.0), clip_seconds=4.0, policy="random")
    plan = data.plan("train", 0)
    stretch = data.record(plan, truth=True)
    sound = stretch.sound_CS[0].reshape(-1, STEP_SAMPLES)[data.lead_steps :][: data.clip_steps]
    ball_x = stretch.truth.ram_TR[:, 49].long().tolist()
    loud = (sound != 0).any(1)
    begins = [n for n in range(3, len(loud)) if loud[n] and not loud[n - 1]]
    turned = [
        n
        for n in begins
        if ball_x[n - 2] and (ball_x[n - 1] - ball_x[n - 2]) * (ball_x[n] - ball_x[n - 1]) < 0
    ]
    assert begins and turned, "or this test says nothing"
    clip = data.clip(stretch)
    for n in turned:
        before = clip.waveform_CS[0, int((n / 60 - 0.01) * 16000) : int((n / 60 - 0.002) * 16000)]
        after = clip.waveform_CS[0, int(n / 60 * 16000) : int((n / 60 + 0.01) * 16000)]
        assert before.abs().max() < 0.02 < after.abs().max()


def test_the_score_and_its_words_are_those_on_the_screen():
    data = atari("pong", clip_seconds=6.0, warmup_seconds=(0.5, 1.0))
    stretch = data.record(data.plan("train", 0), truth=True)
    truth, clip = stretch.truth, data.clip(stretch)
    on_screen = truth.ram_TR[:, PLAYER_SCORE].long() - truth.ram_TR[:, CPU_SCORE].long()
    assert torch.equal(truth.score_T, on_screen - on_screen[0]) and truth.score_T.min() < 0
    lost = [(time_s, text) for time_s, text in stretch.events if text == "Loses 1."]
    for time_s, _ in lost:
        after, before = truth.times_s >= time_s - 1e-9, truth.times_s < time_s - 1e-9
        assert truth.score_T[before][-1] == truth.score_T[after][0] + 1
    assert lost and {p.text for p in clip.texts} <= {"Pong."} | {text for _, text in stretch.events}


def test_nothing_of_what_flickers_is_lost():
    """A frame is the brightest of two screens."""
    data = atari("space_invaders", video=Patches((42, 32), 2, 60.0), fit="squeeze")
    plan, seen = data.plan("train", 0), {}
    presses = _actions_of(plan.presses_ND)
    console = data._start(plan.world, plan.seed)
    for n, action in enumerate(presses, start=1):
        console.act(action)
        seen[n] = console.getScreenRGB()
    frames = data.clip(data.record(plan, truth=False)).frames_TCHW
    for k in (0, 1, 30, 59):
        both = np.maximum(seen[plan.warmup + k - 1], seen[plan.warmup + k])
        mean = both.reshape(42, 5, 32, 5, 3).mean((1, 3)).transpose(2, 0, 1)
        assert np.abs(frames[k].numpy() - mean).max() <= 0.51


def test_every_action_has_its_own_buttons():
    import ale_py

    states = np.array([[n >> k & 1 for k in range(5)] for n in range(32)], np.uint8)
    opposite = (states[:, 1] & states[:, 2]) | (states[:, 3] & states[:, 4])
    names = [action.name for action in _actions_of(states[opposite == 0])]
    assert sorted(names) == sorted(ale_py.Action.__members__) and BUTTONS[0] == "fire"
    assert _actions_of(np.array([[1, 1, 0, 1, 0]], np.uint8))[0].name == "UPLEFTFIRE"


def test_any_of_the_streams_alone():
    for keep in ("audio", "video", "text"):
        off = {name: None for name in ("audio", "video", "text", "series") if name != keep}
        data = atari("pong", **off, clip_seconds=0.5)
        data.setup()
        row = data.documents("val").document(0, 0)
        assert [data.layout[m].name for m in row.contents] == [keep]


def test_an_unknown_game_and_a_missing_package_are_said(monkeypatch):
    with pytest.raises(UserError, match=r"no game 'pnog'; did you mean pong"):
        atari("pnog").setup()
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(UserError, match=r'pip install "mmpredict\[atari\]"'):
        atari("pong").setup()


def test_a_changed_game_is_noticed():
    one, other = atari("pong").fingerprint(), atari("pong", "seaquest").fingerprint()
    assert one.keys() == {"pong", "ale-py"} and one["pong"] == other["pong"] != other["seaquest"]
    assert atari("pong").settings() == atari("pong").settings()
    assert atari("pong").settings() != atari("pong", policy="noop").settings()
