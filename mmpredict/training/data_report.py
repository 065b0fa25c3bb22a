"""What the data came to: logged while the run goes on, said at its end, kept as a list.

In: the datamodule's figures and its list of what could not be read. Out: metrics "data/...",
quarantine.jsonl in the run folder, and lines for the table and the report.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from mmpredict.training.disk import give_up

SHOWN = 10  # skipped files in a terminal
QUARANTINE = "quarantine.jsonl"


class DataReport(Callback):
    """Logs how full the rows are, of what, and what was skipped; writes the quarantine list.

    Args:
        run_dir: where quarantine.jsonl goes; None for the trainer's default_root_dir.
    """

    def __init__(self, run_dir: Path | None = None) -> None:
        self.run_dir = run_dir
        self._written = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        data = getattr(trainer, "datamodule", None)
        if hasattr(data, "figures") and trainer.global_step % trainer.log_every_n_steps == 0:
            values = {f"data/{name}": float(value) for name, value in data.figures().items()}
            pl_module.log_dict(values, batch_size=1)
        self.write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.write(trainer)

    def write(self, trainer: Trainer) -> None:
        """The whole list, whenever it has grown."""
        log = getattr(getattr(trainer, "datamodule", None), "skip_log", None)
        if log is None or len(log.reasons) == self._written or not trainer.is_global_zero:
            return
        rows = [
            {"source": source, "reason": reason, "kind": log.kinds.get(source, "unreadable")}
            for source, reason in log.reasons.items()
        ]
        folder = Path(self.run_dir or trainer.default_root_dir)
        part = folder / f"{QUARANTINE}.part"
        with give_up(f"{QUARANTINE} not written"):
            folder.mkdir(parents=True, exist_ok=True)
            part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            os.replace(part, folder / QUARANTINE)
            self._written = len(rows)


def data_lines(trainer: Trainer, most: int = SHOWN) -> list[str]:
    """What a person should know of the data at the end: rows, skipped files, cut documents."""
    datamodule = getattr(trainer, "datamodule", None)
    figures = datamodule.figures() if hasattr(datamodule, "figures") else {}
    log = getattr(datamodule, "skip_log", None)
    return packing_lines(figures) + (skip_lines(log, most) if log is not None else [])


def packing_lines(figures: Mapping[str, float]) -> list[str]:
    """How full the rows of the training were, and of what."""
    if "efficiency" not in figures:
        return []
    shares = ", ".join(
        f"{name.removeprefix('share/')} {100 * share:.3g} %"
        for name, share in figures.items()
        if name.startswith("share/")
    )
    return [
        f"training rows: {100 * figures['efficiency']:.1f} % of the slots are real tokens, "
        f"{figures['documents_per_row']:.3g} documents a row; {shares}"
    ]


def skip_lines(log: Any, most: int = SHOWN) -> list[str]:
    """Files that could not be read, with counts by kind, and what was done to documents."""
    lines = []
    bad = len(log.reasons)
    if bad:
        counts = ", ".join(f"{n} {name.replace('/', ' ')}" for name, n in log.counts().items())
        lines.append(f"{bad} file{'s' * (bad != 1)} skipped ({counts}):")
        lines += [f"  {source}: {reason}" for source, reason in list(log.reasons.items())[:most]]
        if bad > most:
            lines.append(f"  ... and {bad - most} more")
    if log.substituted:
        lines.append(f"{_times(log.substituted)} a broken document was replaced by another")
    if log.truncated:
        lines.append(
            f"{_times(log.truncated)} a document was longer than data.loading.context_length and "
            "was cut (data.loading.too_long: split keeps the rest)"
        )
    return lines


def _times(count: int) -> str:
    return f"{count:,} time{'s' * (count != 1)}"
