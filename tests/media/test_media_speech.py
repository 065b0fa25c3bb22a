"""Which words of a text belong to which stretch of a recording."""

from __future__ import annotations

import pytest

from mmpredict.media.speech import in_time, mended, said_between
from mmpredict.schema import TextPiece


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


def test_what_json_can_hold_and_no_vocabulary_is_mended():
    assert mended("a\ud800b") == "a\ufffdb"
    assert mended("\U0001f600 plain") == "\U0001f600 plain"
    assert mended("\ud83d\ude00") == "\U0001f600", "two halves are a whole"
    (piece,) = said_between([TextPiece("a\udfffb", 0.0, 1.0)], 0.0, 2.0)
    assert piece.text == "a\ufffdb"
