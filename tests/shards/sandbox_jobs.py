"""Jobs that behave badly, for the tests of the sandbox; loaded by its helper process."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def open_worker(context: dict[str, Any]):
    """A worker that does what the item says."""
    if context.get("broken"):
        raise ValueError("no such recipe")

    def work(item: dict[str, Any], beat: Callable[[], None]) -> None:
        Path(item["mark"]).write_text(str(os.getpid()))
        if item["do"] == "long":
            for _ in range(4):
                time.sleep(0.6)
                beat()
        WAYS[item["do"]]()

    return work


def open_hanging_reader(context: dict[str, Any]):
    """The real converter with a decoder that hangs at one file, and eats memory at another."""
    from mmpredict.shards import convert

    real = convert.windows_of

    def windows(item, info, settings):
        if item["name"] == "hangs.wav":
            time.sleep(60)
        if item["name"] == "hungry.wav":
            eat()
        if item["name"] == "crashes.wav":
            os.kill(os.getpid(), signal.SIGSEGV)
        yield from real(item, info, settings)

    convert.windows_of = windows
    return convert.open_converter(context)


def eat() -> None:
    held = []
    while len(held) < 200:
        held.append(bytearray(64 << 20))


def fill() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def spin() -> None:
    while True:
        pass


WAYS = {
    "well": lambda: None,
    "long": lambda: None,
    "nap": lambda: time.sleep(0.8),
    "sleep": lambda: time.sleep(60),
    "spin": spin,
    "eat": eat,
    "fill": fill,
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "raise": lambda: 1 / 0,
    "print": lambda: print("{}", flush=True),
}
