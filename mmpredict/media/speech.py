"""Which words of a recording's text belong to which stretch of it.

In: the text of a recording, some of it timed. Out: all of it timed, or the words of a window on the
window's clock. Folders, tables, shards and surveys cut text by this one rule.
"""

from __future__ import annotations

from collections.abc import Iterable

from mmpredict.schema import TextPiece

_ROUNDING_S = 1e-6  # the last word of a piece may end so much later than the piece


def mended(text: str) -> str:
    """`text` with lone surrogates, which JSON can hold and no vocabulary can spell, as U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def in_time(pieces: Iterable[TextPiece], start_s: float, end_s: float) -> tuple[TextPiece, ...]:
    """The text of a recording from `start_s` to `end_s`, all of it timed.

    Untimed pieces share that span in proportion to their letters. Timed ones that begin at its end
    or later are left out: they belong to another cut of the film.
    """
    pieces = list(pieces)
    letters = sum(len(piece.text) + 1 for piece in pieces if piece.start_s is None)
    length_s, passed, timed = end_s - start_s, 0, []
    for piece in pieces:
        if piece.start_s is None:
            first_s = start_s + length_s * passed / letters
            passed += len(piece.text) + 1
            timed.append(TextPiece(piece.text, first_s, start_s + length_s * passed / letters))
        elif piece.start_s < end_s or length_s <= 0:
            timed.append(piece)
    return tuple(timed)


def said_between(
    pieces: Iterable[TextPiece], start_s: float, end_s: float
) -> tuple[TextPiece, ...]:
    """The words that end in (start_s, end_s], on a clock that starts at start_s.

    Words share their piece's time in proportion to their letters, as the encoder has it. A window
    that starts at 0 has the words that end at 0, too. All pieces must be timed (see `in_time`).
    """
    found = []
    for piece in pieces:
        if piece.start_s > end_s or piece.end_s < start_s - _ROUNDING_S:
            continue  # no word of it can be here; long files have many such pieces
        said = [
            word
            for word in _words(piece)
            if word.end_s <= end_s and (word.end_s > start_s or start_s == 0)
        ]
        if said:
            # The first word may begin before the window: its times stay right only so.
            text = " ".join(word.text for word in said)
            found.append(TextPiece(text, said[0].start_s - start_s, said[-1].end_s - start_s))
    return tuple(found)


def _words(piece: TextPiece) -> list[TextPiece]:
    words = mended(piece.text).split()
    letters = len(" ".join(words))
    span = piece.end_s - piece.start_s
    timed, passed = [], 0
    for word in words:
        begin = piece.start_s + span * passed / letters
        passed += len(word)
        timed.append(TextPiece(word, begin, piece.start_s + span * passed / letters))
        passed += 1  # the space
    return timed
