"""What a worker made of one source, in one file: samples as a stretch of tar, then their rows.

    stretch of tar | rows as one line of JSON | length of that line, 16 hex digits

The file takes its name only when it is whole; so what can be found can be used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmpredict.shards.members import as_json, facts_of
from mmpredict.shards.tar_write import write_sample

_TAIL = 16


class SpoolWriter:
    """Writes a spool file; nothing appears under its name unless the `with` ends well.

    Args:
        path: the spool file.
        modality: of the source, for what is skipped.
    """

    def __init__(self, path: Path, modality: str) -> None:
        self.path, self.modality = path, modality
        self.part = path.with_name(f".{path.name}.part")
        self.about: dict[str, Any] = {}
        self.samples: list[dict[str, Any]] = []
        self.skipped: list[dict[str, str]] = []

    def __enter__(self) -> SpoolWriter:
        self.file = self.part.open("wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                about = self.about | {"samples": self.samples, "skipped": self.skipped}
                line = as_json(about)
                self.file.write(line)
                self.file.write(b"%016x" % len(line))
            self.file.close()
            if kind is None:
                os.replace(self.part, self.path)
        finally:
            self.part.unlink(missing_ok=True)

    def add(
        self,
        about: Mapping[str, Any],
        members: Iterable[tuple[str, bytes | Path]],
        tokens: Mapping[str, int],
        weight: float = 1.0,
    ) -> None:
        """Append a sample; `about` is its json."""
        at = self.file.tell()
        written = write_sample(self.file, about["key"], members)
        self.samples.append(
            {
                "at": at,
                "size": self.file.tell() - at,
                "key": about["key"],
                "members": [[m.suffix, m.offset - at, m.size, m.sha256] for m in written],
                "form": about["form"],
                "duration_s": about["duration_s"],
                "streams": facts_of(about),
                "start_s": about["start_s"],
                "split": about.get("split"),
                "tokens": dict(tokens),
                "weight": weight,
            }
        )

    def skip(self, kind: str, reason: str) -> None:
        """Note what of the source cannot be used."""
        self.skipped.append({"kind": kind, "reason": reason, "modality": self.modality})

    def drop_samples(self) -> None:
        """The source proved bad: forget what was made of it."""
        self.samples.clear()
        self.file.seek(0)
        self.file.truncate()


def read_rows(path: Path) -> dict[str, Any] | None:
    """What a spool file says of its source; None if there is no whole one."""
    try:
        with path.open("rb") as file:
            file.seek(-_TAIL, os.SEEK_END)
            length = int(file.read(_TAIL), 16)
            file.seek(-_TAIL - length, os.SEEK_END)
            return json.loads(file.read(length))
    except (OSError, ValueError):  # ValueError: what is left of it after the power failed
        return None
