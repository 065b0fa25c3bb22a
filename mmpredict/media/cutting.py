"""Long recordings fall into windows. In: seconds. Out: windows, each with what is said in it.
Nothing here decodes a file, so that folders, shards and surveys cut alike.

    pieces = in_time(read_text(path), 0.0, length_s)
    for window in Cut(0.0, length_s, clip_seconds):
        ... window.start_s, window.duration_s, window.said(pieces)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from mmpredict.media.speech import said_between
from mmpredict.schema import TextPiece

SHORTEST_WINDOW_S = 0.25  # a remainder at the end of a file that is shorter is left out


@dataclass(frozen=True)
class Window:
    """A stretch of a recording that becomes one document.

    Args:
        start_s, duration_s: the stretch.
        said_until_s: its text ends here: with the window; in the last one of a file never.
        is_last: of its recording.
    """

    start_s: float
    duration_s: float
    said_until_s: float
    is_last: bool = False

    @property
    def end_s(self) -> float:
        return self.start_s + self.duration_s

    def said(self, pieces: Iterable[TextPiece]) -> tuple[TextPiece, ...]:
        """What of a recording's timed text is said in this window, on the window's clock."""
        return said_between(pieces, self.start_s, self.said_until_s)


@dataclass(frozen=True)
class Cut(Sequence[Window]):
    """A recording's windows, made as they are asked for: hours of it cost nothing.

    They tile it from its start: windows of `window_s`, then a shorter one, or if that would be
    below SHORTEST_WINDOW_S a remainder without a window, whose words the last window has. There is
    always one window, however short.

    Args:
        start_s, end_s: the recording, or a span of it.
        window_s: length of a window; inf for one window of all.
        first_s: length of a shorter first window, which shifts all others; 0 for none.
        said_until_s: where the last window's text ends; a cue may last longer than its file.
    """

    start_s: float
    end_s: float
    window_s: float
    first_s: float = 0.0
    said_until_s: float = math.inf

    def _whole(self) -> tuple[int, float | None]:
        """Number of whole windows, and the length of the one after them, if there is one."""
        body_s = self.end_s - self.start_s - self.first_s
        whole = max(0, int(body_s / self.window_s + 1e-6))
        rest_s = max(0.0, body_s - whole * self.window_s if whole else body_s)
        is_only = not whole and not self.first_s
        return whole, rest_s if rest_s >= SHORTEST_WINDOW_S or is_only else None

    def __len__(self) -> int:
        whole, rest_s = self._whole()
        return (self.first_s > 0) + whole + (rest_s is not None)

    def __getitem__(self, number: int) -> Window:  # type: ignore[override]
        count = len(self)
        if not 0 <= number < count:
            raise IndexError(f"window {number} of {count}")
        shifted = int(self.first_s > 0)
        whole, rest_s = self._whole()
        start_s, duration_s = self.start_s, self.first_s
        if number >= shifted:
            start_s += self.first_s
            if number > shifted:  # windows may be endless, and then there is but one
                start_s += (number - shifted) * self.window_s
            duration_s = self.window_s if number - shifted < whole else rest_s
        is_last = number == count - 1
        said_until_s = self.said_until_s if is_last else start_s + duration_s
        return Window(start_s, duration_s, said_until_s, is_last)

    def __iter__(self) -> Iterator[Window]:
        return (self[number] for number in range(len(self)))

    def part(self, first: int, end: int) -> Cut:
        """The windows from number `first` to before number `end` as a recording of their own."""
        last = self[end - 1]
        end_s = self.end_s if last.is_last else last.end_s
        return replace(
            self, start_s=self[first].start_s, end_s=end_s, said_until_s=last.said_until_s
        )

    def shifted(self, first_s: float) -> Cut:
        """The same recording with windows that begin `first_s` later, after a shorter first one.

        Where there is only one window it stays as it is; one more comes to be at most.
        """
        return self if len(self) == 1 else replace(self, first_s=first_s)


def drawn_start_s(window_s: float, *key: object) -> float:
    """A length for the first window: 0, or between SHORTEST_WINDOW_S and `window_s`.

    A pure function of the key (seed, epoch, file), even in its range, to the millisecond.
    """
    digest = hashlib.sha256("\0".join(map(str, key)).encode("utf-8", "surrogatepass")).digest()
    drawn_s = round(int.from_bytes(digest[:8], "big") / 2**64 * window_s, 3)
    return drawn_s if SHORTEST_WINDOW_S <= drawn_s < window_s else 0.0
