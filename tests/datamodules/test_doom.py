"""Doom: the same bytes from anywhere, stereo from where things are, truth, and an engine that goes
when it should."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import Doom
from datamodules.games.doom_engine import DoomEngine, scenario_folder
from datamodules.games.doom_server import BUTTONS
from datamodules.games.episodes import ACTION
from mmpredict.schema import Clip, UserError
from mmpredict.tokens import MelChunks, Patches, TextTokens, Vectors
from tests.datamodules.small import loading

pytest.importorskip("vizdoom")
SHARED = Path("/dev/shm")
SCENARIOS = ("take_cover", "defend_the_center")


def doom(*scenarios: str, **how: object) -> Doom:
    streams = {"audio": MelChunks(), "video": Patches((24, 32), 8, 8.75), "text": TextTokens()}
    streams |= {"series": {ACTION: Vectors(8, 8.75)}}
    short = {"clip_seconds": 1.0, "warmup_seconds": (0.3, 2.0), "loading": loading()}
    sizes = {"train_clips": 6, "val_clips": 2, "test_clips": 3}
    return Doom(**streams | {"scenarios": scenarios or SCENARIOS} | short | sizes | how)


def digest(clip: Clip) -> tuple[bytes, ...]:
    actions = clip.series[ACTION]
    tensors = (clip.frames_TCHW, clip.waveform_CS, clip.times_s, actions.values_TD)
    return (*(tensor.numpy().tobytes() for tensor in tensors), repr(clip.texts).encode())


@pytest.fixture(scope="module")
def data() -> Iterator[Doom]:
    made = doom()
    yield made
    made._engine.close()


@pytest.fixture(scope="module")
def first(data) -> dict[int, Clip]:
    return {n: data.documents("train").clip(0, n) for n in range(4)}


@pytest.fixture(scope="module")
def heard(data) -> None:
    """For what is about sound: without its library the engine is silent."""
    if not data._engine.ask("a test", "has_sound"):
        pytest.skip("the machine has no OpenAL")


def processes_of(session: int) -> list[int]:
    """The living members of a session, by /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def test_streams_have_their_rates_and_shapes(first):
    for clip in first.values():
        count = len(clip.frames_TCHW)
        assert 5 <= count <= 9 and clip.frames_TCHW.shape[1:] == (3, 24, 32)
        assert len(clip.series[ACTION].times_s) == count
        assert abs(clip.waveform_CS.shape[1] / 16000 - count / 8.75) < 1 / 8.75
        assert clip.frames_TCHW.float().std() > 3
    assert first[0].texts[0].text == "Take cover."


def test_there_is_sound_in_both_ears(first, heard):
    for clip in first.values():
        assert (clip.waveform_CS.square().mean(1).sqrt() > 1e-4).all()


def test_a_used_engine_gives_the_same_bytes_in_any_order(data, first):
    documents = data.documents("train")
    for n in (3, 1, 2, 0, 1):
        assert digest(documents.clip(0, n)) == digest(first[n])
    assert len({digest(clip) for clip in first.values()}) == 4


def test_another_engine_gives_the_same_bytes(data, first):
    again = pickle.loads(pickle.dumps(data))
    assert digest(again.documents("train").clip(0, 2)) == digest(first[2])
    again._engine.close()
    assert digest(again.documents("train").clip(0, 1)) == digest(first[1]), "and a third one"
    again._engine.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(data, workers):
    """They are forks of a process that has an engine."""
    batches = []
    for n in (0, workers):
        data.loading = loading(workers=n, context_length=512)
        batches.append(list(data.train_dataloader()))
    assert len(batches[0]) == len(batches[1]) > 0
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.modality, other.modality)
        assert all(torch.equal(one.contents[m], other.contents[m]) for m in one.contents)
    assert isinstance(data.documents("train").clip(0, 0), Clip), "our own engine lives"


def test_held_out_documents_are_not_trained_on(data):
    found = [
        digest(data.documents(split).clip(0, n)) for split in ("train", "val") for n in range(2)
    ]
    found += [digest(data.documents("train").clip(1, 0))]
    assert len(set(found)) == 5


def test_what_an_action_causes_lies_behind_it(data):
    plan = data.plan("train", 1)
    presses = plan.presses_ND.copy()
    presses[plan.warmup + 16 :] = [name in ("ATTACK", "TURN_LEFT") for name in BUTTONS]
    one, other = (
        data.clip(data.record(p, truth=False)) for p in (plan, replace(plan, presses_ND=presses))
    )
    same = (one.frames_TCHW[:8] == other.frames_TCHW[:8]).flatten(1).all(1).tolist()
    assert same[:5] == [True] * 5 and not same[7], "frame 4 is shown when action 4 begins"
    length = min(c.waveform_CS.shape[1] for c in (one, other))
    differs = (one.waveform_CS[:, :length] != other.waveform_CS[:, :length]).any(0).nonzero()
    assert not len(differs) or differs[0] > (4 / 8.75 - 0.002) * 16000
    assert not torch.equal(*(c.series[ACTION].values_TD[4] for c in (one, other)))


def test_truth_is_of_the_same_course(data, first):
    for n in range(2):
        stretch = data.stretch("train", 0, n, truth=True)
        assert digest(data.clip(stretch)) == digest(first[n])
        truth = stretch.truth
        assert torch.equal(truth.times_s, first[n].times_s)
        assert truth.depth_Thw.shape == (len(truth.times_s), 24, 32)
        assert 0 <= truth.depth_Thw.min() and truth.depth_Thw.max() > truth.depth_Thw.min() + 5
        assert len(truth.position_T3) == len(truth.angle_T) == len(truth.times_s)


def test_things_stand_in_the_picture_where_the_truth_says(data):
    """A box left of the middle belongs to a thing on the player's left."""
    objects = data.truth("train", 0, 0).objects
    seen = (objects.pixels_K > 8) & ~objects.box_K4[:, 0].isnan()
    middle_K = (objects.box_K4[:, 0] + objects.box_K4[:, 2]) / 2 - 16
    aside = seen & (middle_K.abs() > 1.5)
    assert aside.sum() > 3
    assert torch.equal(middle_K[aside] < 0, objects.azimuth_K[aside] > 0)
    assert objects.box_K4[~(objects.pixels_K > 0)].isnan().all()
    expected = -16 * torch.tan(objects.azimuth_K[aside])  # a field of view of 90 degrees
    assert (middle_K[aside] - expected).abs().max() < 1.5


def test_objects_keep_their_numbers_and_move_by_their_velocity(data):
    """Fireballs fly straight."""
    truths = [data.truth("train", 0, n).objects for n in (0, 2, 4)]
    flights = 0
    for objects in truths:
        assert dict(zip(objects.names, objects.categories, strict=True))["DoomImp"] == "Monster"
        for number in objects.id_K.unique().tolist():
            mine = objects.id_K == number
            assert len(objects.name_K[mine].unique()) == 1, "one number, one thing"
            assert (objects.frame_K[mine].diff() > 0).all()
            if objects.names[int(objects.name_K[mine][0])] == "DoomImpBall":
                speed_K = objects.velocity_K3[mine].norm(dim=1)
                flown_K = objects.position_K3[mine].diff(dim=0).norm(dim=1)
                steady = (speed_K[1:] > 5) & (speed_K[1:] == speed_K[:-1])
                flights += int(steady.sum())
                assert torch.allclose(flown_K[steady], 4 * speed_K[1:][steady], rtol=0.02)
    assert flights > 0


def test_the_nearer_ear_hears_more(heard):
    """One monster, one sound, somewhere around a player who stands still."""
    data = doom("basic_audio", policy="noop", text=None, warmup_seconds=(0.5, 0.5))
    sides = []
    for n in range(12):
        stretch = data.stretch("train", 0, n, truth=True)
        azimuth = float(stretch.truth.objects.azimuth_K[0])
        left, right = data.clip(stretch).waveform_CS.square().mean(1).tolist()
        if abs(np.sin(azimuth)) > 0.2:
            sides.append((azimuth > 0, left > right))
    data._engine.close()
    assert len(sides) > 3 and {side for side, _ in sides} == {True, False}
    assert all(is_left == louder_left for is_left, louder_left in sides)


def test_the_flash_of_a_shot_and_its_bang_begin_together(heard):
    data = doom("basic_audio", policy="noop", video=Patches((24, 32), 8, 35.0), text=None)
    plan = data.plan("train", 0)
    presses = plan.presses_ND.copy()
    presses[plan.warmup + 5 : plan.warmup + 8, BUTTONS.index("ATTACK")] = 1
    clip = data.clip(data.record(replace(plan, presses_ND=presses), truth=False))
    quiet = data.clip(data.record(plan, truth=False))
    data._engine.close()
    flash = (clip.frames_TCHW != quiet.frames_TCHW).flatten(1).any(1).nonzero()[0].item()
    bang = (clip.waveform_CS - quiet.waveform_CS).abs().amax(0)
    start_s = (bang > 0.05).nonzero()[0].item() / 16000
    assert abs(start_s - flash / 35) < 0.005


def test_words_are_true(data):
    told = 0
    for n in (0, 2):
        stretch = data.stretch("train", 0, n, truth=True)
        objects = stretch.truth.objects
        for time_s, text in stretch.events:
            side = text.rstrip(".").rsplit(" ", 1)[1]
            if side in ("left", "ahead", "right"):
                frame = int((stretch.truth.times_s - time_s).abs().argmin())
                here = (objects.frame_K == frame) & (objects.pixels_K > 0)
                middle = (objects.box_K4[:, 0] + objects.box_K4[:, 2])[here] / 2
                third = {"left": 0, "ahead": 1, "right": 2}[side]
                told += 1
                assert ((middle / 32 * 3).long() == third).any()
    assert told > 0


def test_the_engine_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = doom("take_cover", audio=None)
    assert isinstance(data.documents("val").clip(0, 0), Clip)
    line = data._engine._line
    members, folder = processes_of(line.process.pid), line.folder
    assert folder.is_dir()
    data._engine.close()
    assert list(tmp_path.iterdir()) == [] and not folder.exists()
    if Path("/proc").is_dir():
        assert members and not processes_of(line.process.pid)


def _play_and_wait(tell) -> None:
    engine = DoomEngine(timeout_s=30)
    scene = (str(scenario_folder() / "take_cover.cfg"), None, None, 22050, False)
    presses = [[0] * len(BUTTONS)] * 5
    engine.ask("x", "record", scene=scene, seed=1, presses=presses, sound_from=2, shown=[3])
    tell.send((engine._line.process.pid, str(engine._line.folder)))
    time.sleep(60)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_an_engine_ends_with_a_parent_that_is_killed():
    ours, theirs = multiprocessing.Pipe()
    before = set(SHARED.glob("ViZDoom*"))
    child = multiprocessing.get_context("fork").Process(target=_play_and_wait, args=(theirs,))
    child.start()
    session, folder = ours.recv()
    assert len(processes_of(session)) >= 3, "guard, server, engine"
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    until = time.monotonic() + 20
    while (processes_of(session) or Path(folder).exists()) and time.monotonic() < until:
        time.sleep(0.05)
    assert not processes_of(session) and not Path(folder).exists()
    assert set(SHARED.glob("ViZDoom*")) <= before


def test_a_scenario_that_hangs_is_named():
    """The trap: freedoom2 has MAPxx, and the engine waits for ever for a map that is not there."""
    data = doom("freedoom2:E1M1", audio=None, engine_timeout_s=3.0)
    data._own_buttons["freedoom2:E1M1"] = []
    with pytest.raises(UserError, match=r"scenario 'freedoom2:E1M1' gave no answer in 3 s"):
        data.documents("val").clip(0, 0)
    assert data._engine._line is None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_a_dead_engine_is_said_and_replaced(data, first):
    guard = data._engine._line.process.pid
    for process in set(processes_of(guard)) - {guard}:
        os.kill(process, signal.SIGKILL)
    with pytest.raises(UserError, match="the engine died in scenario"):
        data.documents("train").clip(0, 0)
    assert digest(data.documents("train").clip(0, 0)) == digest(first[0])


def test_mistakes_are_said_at_once(monkeypatch):
    with pytest.raises(UserError, match=r"no scenario 'take_over'; did you mean take_cover"):
        doom("take_over").setup()
    with pytest.raises(UserError, match=r"'MAP 7' is no name of a map"):
        doom("freedoom2:MAP 7").setup()
    with pytest.raises(ValueError, match=r"data.skill=9"):
        doom(skill=9)
    monkeypatch.setattr(DoomEngine, "ask", lambda *_, **__: False)
    with pytest.raises(UserError, match=r"library OpenAL.*data.audio=null"):
        doom("take_cover").setup()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "mmpredict\[doom\]"'):
        doom("take_cover").setup()


def test_a_changed_scenario_is_noticed():
    one = doom("take_cover").fingerprint()
    assert one.keys() == {"take_cover.cfg", "vizdoom"}
    assert doom().settings() == doom().settings() != doom(skill=1).settings()


def test_any_of_the_streams_alone(data):
    for keep in ("audio", "video", "text"):
        off = {name: None for name in ("audio", "video", "text", "series") if name != keep}
        one = doom("take_cover", **off, clip_seconds=0.5)
        row = one.documents("val").document(0, 0)
        one._engine.close()
        assert [one.layout[m].name for m in row.contents] == [keep]
