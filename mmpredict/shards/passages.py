"""Texts that stand alone fall into passages. In: the pieces of a text. Out: groups of them, each
short enough for a document.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from mmpredict.schema import TextPiece

_PLACE_TO_CUT = re.compile(r"\s")


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
