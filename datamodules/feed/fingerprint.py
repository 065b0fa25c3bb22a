"""Which data a run was trained on: told from the checkpoint, checked when it goes on.

In: a digest per source (file, shard) and the settings that decide what is made of them. Out: plain
types and tensors for the checkpoint, and the names of what differs.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

DIGEST_BYTES = 8  # of each source's digest are kept: enough to notice a change
SHOWN = 10


def packed(digests: Mapping[str, str]) -> dict[str, Any]:
    """Digests in hex by name, in a form that stays small for a million files."""
    names = sorted(digests)
    text = zlib.compress("\0".join(names).encode("utf-8", "surrogatepass"))
    cut = b"".join(bytes.fromhex(_hex(digests[name])) for name in names)
    return {"names": _tensor(text), "digests": _tensor(cut)}


def unpacked(stored: Mapping[str, Tensor]) -> dict[str, str]:
    """Undo `packed`; digests are as long as they were kept."""
    text = zlib.decompress(stored["names"].numpy().tobytes()).decode("utf-8", "surrogatepass")
    cut = stored["digests"].numpy().tobytes()
    names = text.split("\0") if cut else []
    parts = [cut[i : i + DIGEST_BYTES] for i in range(0, len(cut), DIGEST_BYTES)]
    return {name: part.hex() for name, part in zip(names, parts, strict=True)}


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """One line for each source that changed, went or came."""
    now = {name: _hex(digest) for name, digest in now.items()}
    changed = [f"changed: {n}" for n in sorted(before) if n in now and now[n] != before[n]]
    gone = [f"gone: {n}" for n in sorted(before.keys() - now.keys())]
    new = [f"new: {n}" for n in sorted(now.keys() - before.keys())]
    return changed + gone + new


def setting_differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """One line for each setting that is not what it was."""
    return [
        f"{name}: {before.get(name, 'not set')} then, {now.get(name, 'not set')} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def listed(lines: list[str]) -> str:
    """The first of them, indented, and how many more there are."""
    more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "".join(f"\n  {line}" for line in [*lines[:SHOWN], *more])


def _hex(digest: str) -> str:
    return digest[: 2 * DIGEST_BYTES].ljust(2 * DIGEST_BYTES, "0")


def _tensor(data: bytes) -> Tensor:
    return (
        torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if data
        else torch.zeros(0, dtype=torch.uint8)
    )
