"""What a run says and leaves: a line of progress, whole files. In: plain dicts. Out: text."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# The others are checkpoints of a user.
OWN_BASELINES = ("majority", "own majority", "blind", "untrained")
LINE_EVERY_S = 20.0  # of progress, where nobody looks at a terminal


def as_json(results: Mapping[str, Any]) -> str:
    """With null for what is no finite number (the interval of a single scene)."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(results), indent=2, allow_nan=False) + "\n"


def write_whole(path: Path, text: str) -> None:
    """The whole file, or the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8", newline="\n")
    os.replace(part, path)


def progress_line(name: str) -> Callable[[int, int], None]:
    """A line on stderr that says how far it is, on a terminal always the same one."""
    begun = said = time.monotonic()

    def say(done: int, total: int) -> None:
        nonlocal said
        now, last = time.monotonic(), done == total
        terminal = sys.stderr.isatty()
        if not last and now - said < (0.2 if terminal else LINE_EVERY_S):
            return
        said = now
        left = (now - begun) / done * (total - done)
        line = f"{name}: {done}/{total} answers, {now - begun:.0f} s, {left:.0f} s left"
        ends = "\n" if last or not terminal else ""
        print(f"\r{line:<70}" if terminal else line, end=ends, file=sys.stderr, flush=True)

    return say
