"""Rows of plain text for the pages of `inspect`: a label, and words wrapped beside it.

At most 100 columns wide and without colours, so that a log, a mail and a terminal show the same.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence

WIDTH = 100
LABEL = 12  # columns of the left side
SHOWN = 20  # names shown of a long list


def row(label: str, words: str) -> list[str]:
    """A label and its words."""
    head, rest = f"  {label:<{LABEL}}", " " * (LABEL + 2)
    wrapped = textwrap.wrap(
        shown(words), WIDTH, initial_indent=head, subsequent_indent=rest, break_on_hyphens=False
    )
    return wrapped or [head.rstrip()]


def names(found: Sequence[tuple[str, str]], show_all: bool, first: int = SHOWN) -> list[str]:
    """Names with what is to be said of each; the first ones, unless all are wanted."""
    lines: list[str] = []
    for name, words in found if show_all else found[:first]:
        lines += textwrap.wrap(
            shown(f"{name}: {words}"),
            WIDTH,
            initial_indent=" " * (LABEL + 2),
            subsequent_indent=" " * (LABEL + 4),
            break_on_hyphens=False,
        )
    hidden = 0 if show_all else len(found) - first
    if hidden > 0:
        lines.append(f"{' ' * (LABEL + 2)}... and {hidden:,} more (--all names them)")
    return lines


def listed(label: str, what: str, found: Sequence[tuple[str, str]], show_all: bool) -> list[str]:
    """How many there are of something, and their names with reasons."""
    if not found:
        return row(label, "nothing")
    return [*row(label, f"{many(len(found), what)}:"), *names(found, show_all)]


def counted(counts: Mapping[str, int], most: int = 12) -> str:
    """Names with how often each was seen."""
    parts = [f"{name} ({count:,})" for name, count in list(counts.items())[:most]]
    more = [f"and {len(counts) - most} more"] if len(counts) > most else []
    return ", ".join([*parts, *more])


def many(count: int, what: str) -> str:
    """1 file, 2 files. `what` is in the singular; of several words the first one is counted."""
    first, space, rest = what.partition(" ")
    plural = "" if count == 1 else "s"
    return f"{count:,} {first}{plural}{space}{rest}"


def size(bytes_: int) -> str:
    """Bytes with a unit that leaves few digits."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if bytes_ >= factor:
            return f"{bytes_ / factor:.3g} {unit}"
    return f"{bytes_} bytes"


def span(seconds: float) -> str:
    """A length of time as a person reads it."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d} h"


def shown(text: str) -> str:
    """Text that any terminal can show: names of files may hold line ends, escapes and bytes that
    are no letters."""
    safe = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in safe)


def printed(lines: Iterable[str]) -> str:
    """All lines as one text."""
    return "\n".join(shown(line) for line in lines)
