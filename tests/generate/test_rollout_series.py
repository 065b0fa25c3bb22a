"""Vectors in time go on as frames and sound do: by the clock, in the order of the training."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from mmpredict.generate import Rollout, rollout, strip, write_rollout
from mmpredict.generate.row import Row
from mmpredict.generate.series import read_table, write_table
from mmpredict.schema import Clip, Modality, Series, Tokens
from mmpredict.sequence import interleave
from tests.generate.small import SERIES, make_model, make_prompt

NAMES = ("video", "text", "state", "action")
STATE, ACTION = (SERIES[name].modality for name in ("state", "action"))


@pytest.fixture(scope="module")
def robot():
    return make_model(*NAMES)


def test_series_go_on_by_the_clock_and_the_prompt_stays(robot):
    prompt = make_prompt(*NAMES)
    result = rollout(*robot, prompt, seconds=0.5, steps=2, max_text_run=2)
    assert result.prompt_end_s == pytest.approx(1.0) and result.notices == ()
    for name, codec in SERIES.items():
        series, count = result.clip.series[name], round(1.5 * codec.hz)
        assert torch.allclose(series.times_s, torch.arange(count).double() / codec.hz)
        assert torch.equal(series.values_TD[: round(codec.hz)], prompt.series[name].values_TD)
        assert bool(series.values_TD.isfinite().all())
    again = rollout(*robot, prompt, seconds=0.5, steps=2, max_text_run=2)
    other = rollout(*robot, prompt, seconds=0.5, steps=2, max_text_run=2, seed=1)
    action = result.clip.series["action"].values_TD
    assert torch.equal(action, again.clip.series["action"].values_TD)
    assert not torch.equal(action, other.clip.series["action"].values_TD)


@pytest.mark.parametrize("names", [("action",), ("state", "action"), ("audio", "action")])
def test_models_with_series_go_on_from_any_prompt(names):
    model, codecs = make_model(*names)
    for prompt in (make_prompt(*names), Clip(), make_prompt("action")):
        result = rollout(model, codecs, prompt, seconds=0.25, steps=1)
        begin = round(16 * result.prompt_end_s) if "action" in prompt.series else 0
        times_s = result.clip.series["action"].times_s
        assert torch.allclose(times_s, torch.arange(begin + 4).double() / 16)


def test_a_step_agrees_with_the_training_forward(robot):
    model, codecs = robot
    prompt = replace(make_prompt("video", "action"), texts=())
    made = rollout(model, codecs, prompt, seconds=1e-3, streams={"action"}, temperature=0)
    (tokens,) = made.tokens
    assert tokens.modality == ACTION and tokens.end_s.tolist() == pytest.approx([1.0])
    true = Tokens(ACTION, 9 * torch.randn(1, 1, 3), torch.tensor([1.0]).double())
    streams = {t.modality: t for t in codecs.encode(prompt)}
    both = Tokens(
        ACTION,
        torch.cat([streams[ACTION].contents, true.contents]),
        torch.cat([streams[ACTION].end_s, true.end_s]),
    )
    row = interleave([streams[Modality.VIDEO], both], codecs.layout)
    with torch.no_grad():
        mean = model(row).streams[ACTION].mean_MPD[-1:]
    raw = model.embed.standardise["action"].inverse(mean)
    assert torch.allclose(tokens.contents, raw, atol=1e-4)


@pytest.mark.parametrize("speaks", [True, False])
def test_the_row_grows_in_the_order_of_the_training(robot, monkeypatch, speaks):
    """Text that comes after an action is later than it, or it would stand before it."""
    model, codecs = make_model(*NAMES)
    texts = [spec.modality == Modality.TEXT for spec in model.layout.streams]
    with torch.no_grad():
        model.next_stream.weight.zero_()
        model.next_stream.bias.copy_(torch.tensor([50.0 if t == speaks else -50.0 for t in texts]))
    grown = []
    add = Row.add

    def watch(self, spec, end_s):
        grown.append((spec.modality, end_s))
        return add(self, spec, end_s)

    monkeypatch.setattr(Row, "add", watch)
    prompt = make_prompt(*NAMES)
    result = rollout(model, codecs, prompt, seconds=0.25, steps=1, max_text_run=2)
    made = [int(modality) for modality, _ in grown]
    streams = {t.modality: t for t in codecs.encode(prompt)}
    for new in result.tokens:
        old = streams[new.modality]
        contents = torch.cat([old.contents, new.contents])
        both = Tokens(new.modality, contents, torch.cat([old.end_s, new.end_s]))
        streams[new.modality] = both
    row = interleave(list(streams.values()), codecs.layout)
    order = row.modality[0][row.block_id[0].diff(prepend=torch.tensor([-1])) > 0].tolist()
    assert order[-len(made) :] == made
    if speaks:  # also between a frame and the state of the same time
        text = int(Modality.TEXT)
        pairs = set(pairwise(made))
        assert {(1, text), (STATE, ACTION), (ACTION, text), (text, STATE)} <= pairs
    else:
        assert made == [1, STATE, ACTION, ACTION] * 2


def test_text_after_an_action_is_a_little_later(robot):
    model, codecs = robot
    row = Row(model.layout, {t.modality: t for t in codecs.encode(make_prompt(*NAMES))}, 1024)
    assert row.text_end_s == pytest.approx(15 / 16, abs=1e-5) and row.text_end_s > 15 / 16
    row.add(model.layout[Modality.VIDEO], 1.0)
    assert row.text_end_s == 1.0
    row.add(model.layout[STATE], 1.0)
    assert row.text_end_s == pytest.approx(1.0, abs=1e-5) and row.text_end_s > 1.0


def test_given_actions_lead_the_frames(robot):
    """Actions that reach beyond the frames are kept, and what is seen depends on those before."""
    prompt = make_prompt("video", "action")
    g = torch.Generator().manual_seed(3)
    longer = Series(3 * torch.randn(24, 3, generator=g), torch.arange(24).double() / 16)

    def frames(series: Series) -> torch.Tensor:
        given = replace(prompt, series={"action": series})
        result = rollout(
            *robot, given, seconds=1e-3, streams={"video"}, temperature=0, text_temperature=0
        )
        assert torch.equal(result.clip.series["action"].values_TD, series.values_TD)
        return result.clip.frames_TCHW

    made = frames(longer)
    assert len(made) == 13  # 8 of the prompt, 4 beside the actions, 1 after
    other = longer.values_TD.clone()
    other[19:] += 5  # from 1.1875 s on
    changed = frames(Series(other, longer.times_s))
    assert torch.equal(made[:10], changed[:10]) and not torch.equal(made[10:], changed[10:])


def test_series_are_written_and_come_back_to_the_bit(robot, tmp_path):
    result = rollout(*robot, make_prompt(*NAMES), seconds=0.5, steps=1, max_text_run=1)
    paths = write_rollout(result, tmp_path / "x.mp4")
    names = ["x.mp4", "x.txt", "x.state.csv", "x.action.csv", "x.png"]
    assert [path.name for path in paths] == names
    for name, series in result.clip.series.items():
        back = read_table(tmp_path / f"x.{name}.csv")
        assert back[0] == name and torch.equal(back[1].values_TD, series.values_TD)
        assert torch.equal(back[1].times_s, series.times_s)


def test_series_alone_have_a_table_and_a_picture(tmp_path):
    prompt = make_prompt("action")
    paths = write_rollout(Rollout(prompt, 0.5), tmp_path / "x")
    assert [path.name for path in paths] == ["x.action.csv", "x.png"]
    image = strip(prompt, prompt_end_s=0.5, width=800)
    assert image.shape == (38 + 3 * 22 + 6 + 34, 800, 3)
    grey = torch.tensor([0x5B, 0x67, 0x70])
    orange = torch.tensor([0xC8, 0x50, 0x1E])
    left, right = image[44:104, 60:390], image[44:104, 450:760]
    for side, colour, foreign in ((left, grey, orange), (right, orange, grey)):
        distance = (side.int() - colour).abs().sum(-1).min()
        assert distance < 40 and (side.int() - foreign).abs().sum(-1).min() > distance
    many = Series(torch.randn(3, 20), torch.arange(3).double())
    assert strip(Clip(series={"force": many}), width=800).shape[0] == 38 + 8 * 22 + 6 + 34
    one = Series(torch.ones(1, 1), torch.zeros(1).double())
    assert strip(Clip(series={"force": one}), prompt_end_s=0.0, width=800).shape[1] == 800


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "first line must be seconds,NAME_0"),
        ("seconds,action_0,action_2\n0,1,2\n", "first line must be"),
        ("time,action_0\n0,1\n", "first line must be"),
        ("seconds,action_0\n0,1\n0.1,x\n", "line 3: could not convert"),
        ("seconds,action_0\n0,1,2\n", "line 2: needs 2 finite numbers"),
        ("seconds,action_0\n0,nan\n", "line 2: needs 2 finite numbers"),
        ("seconds,action_0\n0,1\n0.1,1\n0.1,2\n", "line 4: its time is not after"),
    ],
)
def test_a_damaged_table_is_named_with_its_line(tmp_path, content: str, words: str):
    path = tmp_path / "a.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        read_table(path)


def test_any_float32_survives_the_table(tmp_path):
    bits = torch.randint(-(2**31), 2**31, (400,), generator=torch.Generator().manual_seed(0))
    values = bits.to(torch.int32).view(torch.float32)
    values = values[values.isfinite()][:300].view(-1, 3)
    series = Series(values, torch.arange(len(values)).double() / 7)
    with (tmp_path / "a.csv").open("wb") as file:
        write_table(file, "joint_angle", series)
    name, back = read_table(tmp_path / "a.csv")
    assert name == "joint_angle" and torch.equal(back.values_TD, values)
    assert torch.equal(back.times_s, series.times_s)


def test_a_series_that_the_model_lacks_is_kept_and_told():
    model, codecs = make_model("video")
    prompt = make_prompt("video", "action")
    result = rollout(model, codecs, prompt, seconds=0.25, steps=1)
    words = "the model has no series action: that of the prompt was not looked at"
    assert result.notices == (words,)
    assert torch.equal(result.clip.series["action"].values_TD, prompt.series["action"].values_TD)
