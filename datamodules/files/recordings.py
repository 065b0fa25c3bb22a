"""What becomes documents: stretches of media files, and texts that stand alone.

In: what a folder or manifest lists, with the files' headers. Out: Recordings and TextFiles, each of
them a number of documents, and how few of them are divided between the splits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from datamodules.base import Split
from mmpredict.media import MediaBytes, MediaError, MediaInfo, read_text
from mmpredict.media.cutting import Cut
from mmpredict.media.speech import in_time, mended
from mmpredict.schema import TextPiece


@dataclass(frozen=True)
class Recording:
    """A media file or a span of it; every window is a document.

    Args:
        info: the file's header.
        cut: its windows.
        texts: its text, or the file that has it (itself, if it has a subtitle track).
        text_span_s: what untimed text is spread over.
        weight: how often its windows are wanted.
        to_the_end: the last window goes on to the end of the file, wherever that turns out to be.
    """

    info: MediaInfo
    cut: Cut
    texts: Path | tuple[TextPiece, ...] | None = None
    text_span_s: tuple[float, float] = (0.0, 0.0)
    weight: float = 1.0
    to_the_end: bool = True

    @property
    def is_image(self) -> bool:
        """One frame, whose text has no times."""
        return self.info.still

    @property
    def path(self) -> Path:
        return self.info.path

    @property
    def start_s(self) -> float:
        return self.cut.start_s

    def __len__(self) -> int:
        return len(self.cut)

    def medium(self) -> Path | MediaBytes:
        """What is decoded; raises MediaError."""
        return self.path

    def part(self, first: int, end: int) -> Recording:
        """Its windows from number `first` to before `end`."""
        to_the_end = self.to_the_end and end == len(self)
        return replace(self, cut=self.cut.part(first, end), to_the_end=to_the_end)

    def pieces(self) -> tuple[TextPiece, ...]:
        """Its text, timed; raises MediaError."""
        if self.texts is None:
            return ()
        pieces = read_text(self.texts) if isinstance(self.texts, Path) else self.texts
        if self.is_image:
            return tuple(TextPiece(mended(piece.text)) for piece in pieces)
        return in_time(pieces, *self.text_span_s)


@dataclass(frozen=True)
class TextFile:
    """A text that stands beside no media file; its passages number `first` to before `end`."""

    path: Path
    passage_bytes: int
    first: int
    end: int
    weight: float = 1.0
    start_s: float = 0.0  # of the whole text

    def __len__(self) -> int:
        return self.end - self.first

    def part(self, first: int, end: int) -> TextFile:
        return replace(self, first=self.first + first, end=self.first + end)

    def passages(self) -> list[str]:
        """The passages of this part; raises MediaError."""
        found = passages(self.path, self.passage_bytes)[self.first : self.end]
        if len(found) < len(self):
            raise MediaError(self.path, "has become shorter while it was in use")
        return found


Source = Recording | TextFile


def passages(path: Path, most_bytes: int) -> list[str]:
    """The text of a file in passages of at most so many bytes, which a row has room for.

    Cut between lines, within a longer line between words, within a longer word anywhere; white
    space around passages is left out. Subtitles lose their times. Lines of .jsonl without times
    stand each for itself.
    """
    pieces = read_text(path)
    timed = any(piece.start_s is not None for piece in pieces)
    texts = [mended(piece.text) for piece in pieces]
    if timed or path.suffix.lower() != ".jsonl":
        texts = [("\n" if timed else "\n\n").join(texts)]
    return [passage for text in texts for passage in _cut_text(text, most_bytes)]


def _cut_text(text: str, most_bytes: int) -> Iterator[str]:
    held, size = "", 0
    for unit in _units(text, most_bytes):
        length = len(unit.encode())
        if size + length > most_bytes:
            if held.strip():
                yield held.strip()
            held, size = "", 0
        held += unit
        size += length
    if held.strip():
        yield held.strip()


def _units(text: str, most_bytes: int) -> Iterator[str]:
    """Lines, or else words, or else characters; joined, they are the text."""
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        if len(line.encode()) <= most_bytes:
            yield line
            continue
        for word in re.findall(r"\s+|\S+", line):
            yield from [word] if len(word.encode()) <= most_bytes else word


def hold_out_last(sources: Iterable[Source], share: float) -> dict[Split, list[Source]]:
    """Of each file the last documents for "val" and "test"; a file of one document, or the last of
    two, stands in more than one split."""
    split: dict[Split, list[Source]] = {"train": [], "val": [], "test": []}
    ordered = sorted(sources, key=lambda source: (source.path, source.start_s))
    for _, group in groupby(ordered, lambda source: source.path):
        of_file = list(group)
        count = sum(map(len, of_file))
        held_out = max(1, round(share * count))
        first = max(1, count - 2 * held_out)
        second = first + held_out
        split["train"] += _between(of_file, 0, first)
        split["val"] += _between(of_file, min(first, count - 1), min(second, count))
        split["test"] += _between(of_file, min(second, count - 1), count)
    return split


def _between(sources: Sequence[Source], first: int, end: int) -> list[Source]:
    found, passed = [], 0
    for source in sources:
        low, high = max(first - passed, 0), min(end - passed, len(source))
        if low < high:
            found.append(source.part(low, high))
        passed += len(source)
    return found
