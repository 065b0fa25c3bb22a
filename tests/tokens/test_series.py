"""Vectors in time: an exact round trip on the grid, the last value off it, mistakes in words."""

from __future__ import annotations

import io

import pytest
import torch

from mmpredict.schema import Clip, Series
from mmpredict.tokens import Codecs, Patches, Vectors
from tests.builders import generator

ACTION = Vectors(width=3, hz=10, name="action")


def clip_of(values: torch.Tensor, times_s: torch.Tensor | list[float], name="action") -> Clip:
    times_s = torch.as_tensor(times_s, dtype=torch.float64)
    return Clip(series={name: Series(values, times_s)}, name="episode 7")


@pytest.mark.parametrize("start_s", [0.0, 0.037, 3.2])
def test_on_the_grid_the_round_trip_is_exact(start_s: float):
    values = 1e6 * torch.randn(40, 3, generator=generator(0))
    times_s = start_s + torch.arange(40).double() / 10
    tokens = ACTION.encode(clip_of(values, times_s))
    assert tokens.contents.shape == (40, 1, 3) and tokens.contents.dtype == ACTION.spec.dtype
    assert tokens.modality == 3 and torch.equal(tokens.end_s, times_s)
    back = ACTION.decode(tokens).series["action"]
    assert torch.equal(back.values_TD, values) and torch.equal(back.times_s, times_s)


def test_times_that_were_float32_are_on_the_grid():
    values = torch.randn(3000, 1, generator=generator(0))
    times_s = (torch.arange(3000) / 30).float()  # 100 s, as recorders store it
    codec = Vectors(width=1, hz=30, name="action")
    tokens = codec.encode(clip_of(values, times_s))
    assert torch.equal(tokens.contents[:, 0], values)


@pytest.mark.parametrize(("source_hz", "ticks"), [(30, 20), (25, 20), (5, 20), (9.5, 20), (4, 20)])
def test_off_the_grid_the_last_value_holds(source_hz: float, ticks: int):
    """Whatever the source's rate: at k / 10 s stands the newest value, none is from the future, and
    neighbouring windows leave no hole between them."""
    times_s = torch.arange(round(2 * source_hz)).double() / source_hz
    values = times_s[:, None].float().expand(-1, 3).contiguous()
    tokens = ACTION.encode(clip_of(values, times_s))
    assert torch.allclose(tokens.end_s, torch.arange(ticks).double() / 10, atol=1e-12)
    for value, end_s in zip(tokens.contents[:, 0, 0].tolist(), tokens.end_s.tolist(), strict=True):
        newest = max(t for t in times_s.tolist() if t <= end_s + 1e-3)
        assert value == pytest.approx(newest, abs=1e-6)


def test_a_gap_is_filled_with_what_held():
    values = torch.arange(4.0)[:, None].expand(-1, 3).contiguous()
    tokens = ACTION.encode(clip_of(values, [0.0, 0.1, 0.4, 0.5]))
    assert tokens.contents[:, 0, 0].tolist() == [0, 1, 1, 1, 2, 3]


def test_drift_is_noticed():
    """29.97 Hz taken for 30 Hz would be a frame off after 33 s."""
    times_s = torch.arange(2000).double() / 29.97
    codec = Vectors(width=1, hz=30, name="action")
    tokens = codec.encode(clip_of(times_s[:, None].float(), times_s))
    late = tokens.end_s - tokens.contents[:, 0, 0].double()
    assert float(late.max()) < 1 / 29.97 + 1e-3 and float(late.min()) > -1e-3


def test_without_the_series_there_are_no_tokens():
    assert ACTION.encode(Clip()) is None
    assert ACTION.encode(clip_of(torch.zeros(2, 3), [0, 0.1], name="state")) is None
    assert ACTION.encode(clip_of(torch.zeros(0, 3), [])) is None


@pytest.mark.parametrize(
    ("values", "times_s", "words"),
    [
        (torch.zeros(2, 4), [0, 0.1], "episode 7: series action has 4 values .* takes 3"),
        (torch.tensor([[0, 0, 0], [0, float("nan"), 0]]), [0, 0.1], "at 0.100 s .* finite"),
        (torch.zeros(3, 3), [0, 0.2, 0.1], "times that do not rise"),
        (torch.zeros(2, 3), [0, float("nan")], "times that do not rise"),
    ],
)
def test_what_cannot_be_taken_is_said(values: torch.Tensor, times_s: list[float], words: str):
    with pytest.raises(ValueError, match=words):
        ACTION.encode(clip_of(values.float(), times_s))


@pytest.mark.parametrize("name", ["observation.state", "a/b", "text", "keys", "x_mean", "half", ""])
def test_names_that_cannot_be_used_are_refused(name: str):
    with pytest.raises(ValueError, match="name"):
        Codecs(series={name: Vectors(width=1, hz=1)}).layout  # noqa: B018 - asked for its error


@pytest.mark.parametrize("knobs", [{"width": 0}, {"hz": 0}, {"hz": float("inf")}, {"modality": 2}])
def test_numbers_that_cannot_be_used_are_refused(knobs: dict):
    with pytest.raises(ValueError, match=str(next(iter(knobs)))):
        Vectors(**({"width": 1, "hz": 10} | knobs))


def test_codecs_keep_series_by_name_and_number():
    codecs = Codecs(
        video=Patches(size=4, patch=2),
        series={"action": Vectors(3, 10, modality=4), "state": Vectors(2, 5)},
    )
    assert [(s.modality, s.name) for s in codecs.layout.streams] == [
        (1, "video"),
        (3, "state"),
        (4, "action"),
    ]
    values = {
        n: torch.randn(4, w, generator=generator(w)) for n, w in {"action": 3, "state": 2}.items()
    }
    times_s = {"action": torch.arange(4).double() / 10, "state": torch.arange(4).double() / 5}
    clip = Clip(series={n: Series(values[n], times_s[n]) for n in values})
    streams = codecs.encode(clip)
    assert {t.modality for t in streams} == {3, 4}
    back = codecs.decode(streams)
    for name in values:
        assert torch.equal(back.series[name].values_TD, values[name])
        assert torch.equal(back.series[name].times_s, times_s[name])


def test_two_series_of_one_number_or_under_another_name_are_refused():
    with pytest.raises(ValueError, match="action and series.state both .* 3; .* 4 or more|both"):
        Codecs(series={"state": Vectors(2, 5), "action": Vectors(3, 10)})
    with pytest.raises(ValueError, match="calls itself 'force'"):
        Codecs(series={"action": Vectors(3, 10, name="force")})


def test_plain_form_survives_a_checkpoint_and_old_ones_have_no_series():
    codecs = Codecs(series={"action": Vectors(3, 10, modality=5)})
    file = io.BytesIO()
    torch.save(codecs.to_plain(), file)
    file.seek(0)
    assert Codecs.from_plain(torch.load(file, weights_only=True)) == codecs
    old = {"audio": None, "video": {"size": 4, "patch": 2, "fps": 8.0}, "text": None}
    assert Codecs.from_plain(old) == Codecs(video=Patches(size=4, patch=2))


def test_each_value_has_its_own_statistics():
    assert ACTION.groups_D.tolist() == [0, 1, 2]
