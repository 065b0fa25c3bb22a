"""Which words of a recording's text belong to which stretch of it.

In: the text of a whole file. Out: timed pieces for a window, on the window's clock. The same rule
as for folders that are read without shards, so that both give the same documents.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from mmpredict.schema import TextPiece

_PLACE_TO_CUT = re.compile(r"\s")


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

    Words share their piece's time in proportion to their letters. A window that starts at 0 has the
    words that end at 0, too. All pieces must be timed.
    """
    found = []
    for piece in pieces:
        if piece.start_s > end_s or (piece.end_s <= start_s and start_s > 0):
            continue  # no word of it can be here; long files have many such pieces
        said = [
            word
            for word in _words(piece)
            if word.end_s <= end_s and (word.end_s > start_s or start_s == 0)
        ]
        if said:
            text = " ".join(word.text for word in said)
            found.append(TextPiece(text, said[0].start_s - start_s, said[-1].end_s - start_s))
    return tuple(found)


def _words(piece: TextPiece) -> list[TextPiece]:
    words = piece.text.split()
    letters = len(" ".join(words))
    span, passed, timed = piece.end_s - piece.start_s, 0, []
    for word in words:
        begin = piece.start_s + span * passed / letters
        passed += len(word)
        timed.append(TextPiece(word, begin, piece.start_s + span * passed / letters))
        passed += 1  # the space
    return timed


def mended(pieces: Iterable[TextPiece]) -> tuple[TextPiece, ...]:
    """Pieces without lone surrogates, which JSON can hold and no vocabulary can spell."""
    return tuple(
        replace(p, text=p.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        for p in pieces
    )


def passages(pieces: Iterable[TextPiece], characters: int) -> list[tuple[TextPiece, ...]]:
    """Pieces in groups of at most `characters`; a longer piece is cut where there is white space.

    Only white space at a cut is lost.
    """
    groups: list[list[TextPiece]] = []
    room = 0
    for piece in pieces:
        for text in _cut(piece.text, characters):
            if not groups or len(text) > room:
                groups.append([])
                room = characters
            groups[-1].append(replace(piece, text=text))
            room -= len(text)
    return [tuple(group) for group in groups]


def _cut(text: str, characters: int) -> Iterable[str]:
    while len(text) > characters:
        places = [match.start() for match in _PLACE_TO_CUT.finditer(text, 1, characters)]
        place = places[-1] if places else characters
        yield text[:place].rstrip() or text[:place]
        text = text[place:].lstrip()
    if text:
        yield text
