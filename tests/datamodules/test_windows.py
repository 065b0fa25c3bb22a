"""Laws of cutting: windows tile, and every word of a text is said in exactly one of them."""

from __future__ import annotations

import math
import os
import random
import shutil

import pytest

from datamodules.windows import (
    SHORTEST_WINDOW_S,
    Cut,
    content_hash,
    drawn_start_s,
    in_time,
    said_between,
)
from mmpredict.schema import TextPiece
from tests.datamodules.small import write_sounds

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


def test_words_share_their_cue_by_their_letters():
    piece = TextPiece("aaa bb cccc", 1.0, 3.2)
    assert said_between([piece], 0.0, 9.0) == (piece,)
    cut = [said_between([piece], s, s + 1) for s in range(4)]
    assert [[p.text for p in pieces] for pieces in cut] == [[], ["aaa"], ["bb"], ["cccc"]]
    assert cut[1][0].end_s == pytest.approx(0.6)  # 3 of 11 letters of 2.2 s
    assert cut[2][0].end_s == pytest.approx(0.2)
    assert cut[3][0].end_s == pytest.approx(0.2)


def test_untimed_text_is_spread_over_its_span():
    pieces = in_time([TextPiece("a b"), TextPiece("c d")], 2.0, 6.0)
    said = [said_between(pieces, s, s + 1) for s in range(2, 6)]
    assert [[p.text for p in part] for part in said] == [["a"], ["b"], ["c"], ["d"]]
    assert [p.text for p in said_between(pieces, 2.0, 6.0)] == ["a b", "c d"]


def test_what_begins_behind_the_end_is_another_cut_of_the_film():
    pieces = [TextPiece("in", 1.0, 9.0), TextPiece("out", 2.0, 3.0)]
    assert in_time(pieces, 0.0, 2.0) == (pieces[0],)


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


def test_the_hash_is_of_the_content(tmp_path):
    one, two = write_sounds(tmp_path, 2)
    assert content_hash(one) != content_hash(two)
    shutil.copy(one, tmp_path / "x.bin")
    os.utime(tmp_path / "x.bin", (0, 0))
    assert content_hash(tmp_path / "x.bin") == content_hash(one)
    long = tmp_path / "long.bin"
    long.write_bytes(b"a" * 300_000)
    before = content_hash(long)
    long.write_bytes(b"a" * 300_001)
    assert content_hash(long) != before
