"""The gate's eye and ear: they learn from the truth, and then make what they know out of pictures
and waveforms alone."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from mmpredict.probes.audit_ear import HOP_S, hearing, learn_ear, spectra
from mmpredict.probes.audit_eye import NAMES, Eye, learn_eye, lessons
from mmpredict.probes.audit_senses import Senses, _remembered, _speeds, learn_senses
from mmpredict.probes.audit_views import FPS, PICTURES, Known, as_view, heard, state
from mmpredict.probes.families import rooms, sounds
from mmpredict.world import Film, Take, matched_set

_SIZE = 32


def _rooms(count: int) -> list[Take]:
    return [rooms.build_room(k, "train", 3, mirrored=False)[0].take for k in range(count)]


@cache
def _senses() -> Senses:
    """They hardly know anything, and take everything to be there; what holds of them holds of
    any."""
    senses = learn_senses(_rooms(3), size=_SIZE, steps=2)
    nn.init.zeros_(senses.eye.nowhere)
    nn.init.constant_(senses.ear.layers[-1].bias, 5.0)
    return senses


def _same(one: Known, other: Known) -> bool:
    return torch.equal(as_view(one).tokens_EX, as_view(other).tokens_EX)


def test_nothing_later_and_no_truth_is_known() -> None:
    """Takes of a matched set with one start are alike to them up to the cut, though their truth is
    not; afterwards they are not."""
    drawn = matched_set("permanence", 4, occluded=False)
    first, second = (_senses().perceive(take) for take in drawn.takes[:2])
    assert _same(first.known(drawn.cut_s), second.known(drawn.cut_s))
    assert not _same(first.known(None), second.known(None))


def test_what_is_known_early_does_not_change_with_what_comes_later() -> None:
    take = matched_set("sound_event", 2).takes[0]
    long = _senses().perceive(take)
    clip = take.record(Film((_SIZE, _SIZE), fps=FPS)).clip
    heard_HV = spectra(clip.waveform_CS, clip.sample_rate)
    cut_HV = spectra(clip.waveform_CS, clip.sample_rate, 0.7)
    assert len(cut_HV) == round(0.7 / HOP_S) and torch.equal(heard_HV[: len(cut_HV)], cut_HV)
    sounds_heard = _senses().ear.listen(cut_HV)
    assert [s.impulse for s in long.known(0.7).sounds] == [s.impulse for s in sounds_heard]
    assert len(sounds_heard) > 2


def test_a_mirrored_lesson_is_that_of_the_mirrored_room() -> None:
    """As the world itself mirrors: pictures, and what is right of them."""
    plain, mirrored = rooms.build_room(0, "train", 3, mirrored=True)
    film = Film((_SIZE, _SIZE), fps=FPS, sound=False)
    one, other = (lessons(shot.take.record(film), 1) for shot in (plain, mirrored))
    turned = one.mirrored(torch.tensor([True]))
    off = (turned.frames_BCHW.float() - other.frames_BCHW.float()).abs()
    assert off.mean() < 1
    assert torch.equal(turned.shown_BK, other.shown_BK)
    torch.testing.assert_close(turned.right_BKF, other.right_BKF, atol=1e-4, rtol=0)
    apart_BK = (turned.cell_BK - other.cell_BK).abs()[other.shown_BK]
    assert apart_BK.max() <= 1  # a middle on the border of two cells
    assert torch.equal(one.mirrored(torch.tensor([False])).cell_BK, one.cell_BK)


@pytest.mark.slow
def test_an_eye_learns_what_is_where() -> None:
    """It names the things of a few scenes that it has often seen, and places them."""
    takes = _rooms(6)
    senses = Senses(_eye_of(takes), _senses().ear, _SIZE)
    for take in takes:
        found, right = senses.perceive(take).known(None), state(take, None)
        assert set(found.names) == set(right.names)
        order = [found.names.index(name) for name in right.names]
        off_N3 = (found.place_TN3[-1, order] - right.place_TN3[-1]).abs()
        assert off_N3[:, :2].mean() < 0.3
        assert (found.size_N2[order] - right.size_N2).abs().mean() < 0.3


def _eye_of(takes: list[Take]) -> Eye:
    films = [take.record(Film((_SIZE, _SIZE), fps=FPS, sound=False)) for take in takes]
    return learn_eye([lessons(film, 2) for film in films], steps=120, dim=16)


def test_lessons_point_at_the_thing_itself() -> None:
    """Where a lesson says that a thing is, the picture without it is another one."""
    film = Film((_SIZE, _SIZE), fps=FPS, sound=False)
    drawn = matched_set("permanence", 4, occluded=False)
    there, gone = (drawn.takes[k].record(film) for k in (0, 3))  # lawful: with it, and without
    name = there.truth.names[drawn.target]
    one, two = lessons(there, 1), lessons(gone, 1)
    k = NAMES.index(name)
    assert one.shown_BK[0, k] and not two.shown_BK[0, k]
    assert two.cell_BK[0, k] == 32**2
    row, column = divmod(int(one.cell_BK[0, k]), 32)
    differs_HW = (one.frames_BCHW[0].float() - two.frames_BCHW[0].float()).abs().sum(0) > 10
    assert differs_HW[row, column]


def test_an_ear_learns_when_and_from_where() -> None:
    takes = [shot.take for k in range(6) for shot in sounds.build_knock(k, "train", 3)]
    given, times = [], []
    for take in takes:
        recording = take.record(Film((_SIZE, _SIZE), fps=FPS, frames=False))
        clip, events = recording.clip, heard(take, recording)
        given.append(hearing(spectra(clip.waveform_CS, clip.sample_rate), events))
        times.append([(event.time_s, event.position[0]) for event, _ in events])
    ear = learn_ear(given, steps=150)
    for one, right in zip(given, times, strict=True):
        found = ear.listen(one.spectra_HV)
        for time_s, x in right:
            near = min(found, key=lambda sound: abs(sound.time_s - time_s))
            assert abs(near.time_s - time_s) < 2 * HOP_S
            assert abs(near.place[0] - x) < 0.4


def test_what_is_not_seen_is_where_it_was_seen_last() -> None:
    there_TN = torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0], [0, 0]], dtype=torch.bool)
    assert _remembered(there_TN).T.tolist() == [[1, 1, 1, 3, 3], [0, 1, 1, 1, 1]]


def test_speeds_are_slopes_of_what_was_seen() -> None:
    """Pictures that come again because there are no earlier ones say nothing twice."""
    chosen_T = torch.cat([torch.zeros(4, dtype=torch.long), torch.arange(PICTURES - 4)])
    place_TN2 = torch.stack([1.5 * chosen_T / FPS, -0.5 * chosen_T / FPS], 1)[:, None]
    there_TN = torch.ones(PICTURES, 1, dtype=torch.bool)
    speeds = _speeds(place_TN2, there_TN, chosen_T)
    torch.testing.assert_close(speeds[5:, 0], torch.tensor([[1.5, -0.5]]).expand(PICTURES - 5, -1))
    assert not speeds[:4].any()


def test_a_size_that_the_map_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="size=48 px must be a multiple of 32"):
        Eye(48)
