"""How documents become batches: the settings that all datamodules share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal

import torch


@dataclass(frozen=True)
class Loading:
    """How documents become batches.

    Args:
        context_length: positions of a row.
        rows: rows per batch (on every device).
        workers: processes that read and encode; 0 does it in the main process.
        open_rows: rows kept waiting for a document that fills them.
        budget: at most so many positions of a stream in one row, by its name ({video: 1536}), so
            that a long video leaves room for others; streams not named have no budget.
        too_long: a document longer than a row is "cut" behind its last whole block that fits (and
            counted), or "split" into as many documents as it needs.
        shuffle_runs: so many runs of neighbouring windows, each decoded in one go, are mixed with
            each other; more mix better and hold more in memory.
        max_skipped_share: stop when more of the files than this cannot be read, and at least
            `min_skipped`.
        min_skipped: see `max_skipped_share`; more than half of the files always stops.
        max_skipped_in_a_row: stop when unreadable documents of so many sources come one after the
            other in training.
        substitute: an unreadable training document is replaced by another, drawn by its number;
            false leaves it out.
        statistics_documents: training documents from which mean and deviation are measured.
        timeout_s: stop when a worker is silent for so long.
        ignore_fingerprint: go on from a checkpoint although the data have changed since.
    """

    context_length: int = 2048
    rows: int = 8
    workers: int = 1
    open_rows: int = 16
    budget: dict[str, int] = field(default_factory=dict)
    too_long: Literal["cut", "split"] = "cut"
    shuffle_runs: int = 16
    max_skipped_share: float = 0.05
    min_skipped: int = 10
    max_skipped_in_a_row: int = 100
    substitute: bool = True
    statistics_documents: int = 64
    timeout_s: float = 300.0
    ignore_fingerprint: bool = False

    def __post_init__(self) -> None:
        counts = ("context_length", "rows", "open_rows", "statistics_documents", "shuffle_runs")
        for name in (*counts, "max_skipped_in_a_row"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.loading.{name}={getattr(self, name)} must be at least 1")
        for name, most in self.budget.items():
            if not 0 < most <= self.context_length:
                raise ValueError(
                    f"data.loading.budget.{name}={most} must lie between 1 and "
                    f"context_length={self.context_length}"
                )
        if self.too_long not in ("cut", "split"):
            raise ValueError(f"data.loading.too_long={self.too_long!r} must be cut or split")
        if self.workers < 0 or self.timeout_s <= 0:
            raise ValueError(
                f"data.loading.workers={self.workers} must be 0 or more, "
                f"timeout_s={self.timeout_s:g} above 0"
            )


def workable(loading: Loading) -> Loading:
    """The settings, without workers where the system has no shared memory to hand batches over
    in. The batches are the same."""
    return replace(loading, workers=0) if loading.workers and not _shares_memory() else loading


@cache
def _shares_memory() -> bool:
    """Tried once a process; what is missing is said."""
    try:
        torch.zeros(1).share_memory_()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        print(f"note: no shared memory ({reason[:120]}); data.loading.workers is taken for 0")
        return False
    return True
