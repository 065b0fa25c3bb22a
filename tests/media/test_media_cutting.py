"""Laws of cutting: windows tile, and every word of a text is said in exactly one of them."""

from __future__ import annotations

import math
import random

import pytest

from mmpredict.media.cutting import SHORTEST_WINDOW_S, Cut, drawn_start_s
from mmpredict.media.speech import said_between
from mmpredict.schema import TextPiece

LENGTHS = (0.0, 0.1, 0.3, 1.0, 1.2, 1.3, 2.0, 7.9, 8.1, 3600.0)
FIRSTS = (0.0, 0.25, 0.4, 0.999)


def assert_tiles(cut: Cut) -> None:
    """From start to end without a hole, but for a remainder that is too short."""
    windows = list(cut)
    assert len(windows) == len(cut) >= 1
    assert windows[0].start_s == cut.start_s
    for one, following in zip(windows, windows[1:], strict=False):
        assert following.start_s == pytest.approx(one.end_s, abs=1e-6)
        assert one.said_until_s == one.end_s and not one.is_last
    assert windows[-1].is_last and windows[-1].said_until_s == cut.said_until_s
    assert -1e-5 <= cut.end_s - windows[-1].end_s < SHORTEST_WINDOW_S
    durations = [window.duration_s for window in windows]
    shortest_s = min(SHORTEST_WINDOW_S, cut.end_s - cut.start_s)
    assert all(shortest_s <= d <= cut.window_s + 1e-5 for d in durations)
    inner = durations[int(cut.first_s > 0) : -1]
    assert all(d == cut.window_s for d in inner), "exactly, so that one pass can give them"


@pytest.mark.parametrize("length_s", LENGTHS)
@pytest.mark.parametrize("start_s", [0.0, 2.5])
@pytest.mark.parametrize("first_s", FIRSTS)
def test_windows_tile(length_s, start_s, first_s):
    cut = Cut(start_s, start_s + length_s, 1.0)
    assert_tiles(cut)
    shifted = cut.shifted(first_s)
    assert_tiles(shifted)
    assert len(shifted) <= len(cut) + (len(cut) > 1)


def test_no_such_window():
    for number in (-1, 4):
        with pytest.raises(IndexError):
            Cut(0.0, 4.0, 1.0)[number]


@pytest.mark.parametrize("length_s", [4.0, 4.1, 4.6])
def test_parts_have_the_windows_of_the_whole(length_s):
    cut = Cut(1.0, 1.0 + length_s, 1.0)
    for first in range(len(cut)):
        for end in range(first + 1, len(cut) + 1):
            part = list(cut.part(first, end))
            assert_tiles(cut.part(first, end))
            spans = [(w.start_s, w.duration_s, w.said_until_s) for w in part]
            assert spans == [
                (w.start_s, pytest.approx(w.duration_s), w.said_until_s)
                for w in list(cut)[first:end]
            ]


def test_starts_are_drawn_evenly_and_by_their_key_alone():
    starts = [drawn_start_s(2.0, 7, epoch, "a.mp4") for epoch in range(4000)]
    assert starts == [drawn_start_s(2.0, 7, epoch, "a.mp4") for epoch in range(4000)]
    for other in (drawn_start_s(2.0, 8, 0, "a.mp4"), drawn_start_s(2.0, 7, 0, "b.mp4")):
        assert other != starts[0]
    assert all(s == 0 or SHORTEST_WINDOW_S <= s < 2.0 for s in starts)
    assert starts.count(0.0) / 4000 == pytest.approx(SHORTEST_WINDOW_S / 2, abs=0.02)
    for quarter in range(1, 4):
        share = sum(quarter / 2 <= s < (quarter + 1) / 2 for s in starts) / 4000
        assert share == pytest.approx(0.25, abs=0.03)


def test_a_window_without_a_length_is_all():
    for start_s, end_s in ((0.0, 7.3), (2.0, 2.1), (0.0, 0.0)):
        (window,) = Cut(start_s, end_s, math.inf)
        assert (window.start_s, window.is_last) == (start_s, True)
        assert window.end_s == pytest.approx(end_s)


@pytest.mark.parametrize("seed", range(5))
def test_every_word_is_said_once(seed):
    """Whatever the cues, windows and first window: no word is lost, doubled or moved."""
    draw = random.Random(seed)
    starts = sorted(draw.uniform(0, 10) for _ in range(20))
    cues = [
        TextPiece(f"w{n} x{n} {'y' * n}", s, s + draw.uniform(0, 4)) for n, s in enumerate(starts)
    ]
    cues.append(TextPiece("at the start", 0.0, 0.0))
    whole = words_of(said_between(cues, 0.0, math.inf), 0.0)
    for first_s in FIRSTS:
        cut = Cut(0.0, 10.0 + draw.random(), 1.0, first_s)
        found = [w for window in cut for w in words_of(window.said(cues), window.start_s)]
        assert sorted(found) == sorted(whole)


def words_of(pieces: tuple[TextPiece, ...], start_s: float) -> list[tuple[str, float]]:
    """Words with the time at which they end, by said_between's own rule on single words."""
    found = []
    for piece in pieces:
        words = piece.text.split()
        letters, passed = len(" ".join(words)), 0
        for word in words:
            passed += len(word)
            end_s = piece.start_s + (piece.end_s - piece.start_s) * passed / letters
            found.append((word, round(start_s + end_s, 6)))
            passed += 1
    return found
