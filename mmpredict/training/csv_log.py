"""The logs of a run that may have begun before, on a disk that may fill up or lose the folder. In:
what is logged. Out: rows added to metrics.csv, events for TensorBoard.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from mmpredict.training.disk import give_up


class Writer(ExperimentWriter):
    """Writes whole rows or none, and never loses those that stand there: a header that grows is
    written into another file first. Rows that could not be written are kept for the next time."""

    def _check_log_dir_exists(self) -> None:
        """Nothing: Lightning deletes here what an earlier start wrote."""

    def save(self) -> None:
        path = Path(self.metrics_file_path)
        with give_up("metrics.csv not written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            length = path.stat().st_size if path.is_file() else 0
            header = list(self.metrics_keys)
            try:
                super().save()
            except OSError:
                self.metrics_keys = header  # Lightning has noted those that it meant to write
                if path.is_file() and path.stat().st_size > length:
                    os.truncate(path, length)  # half a row
                raise

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        part = path.with_suffix(".csv.part")
        with path.open(newline="") as old, part.open("w", newline="") as new:
            writer = csv.DictWriter(new, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(csv.DictReader(old))
        os.replace(part, path)


class AppendingCSVLogger(CSVLogger):
    """Goes on in the run's metrics.csv; Lightning's own deletes what an earlier start wrote."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            os.makedirs(self.log_dir, exist_ok=True)
            self._experiment = Writer(self.log_dir)
            metrics = Path(self.log_dir) / "metrics.csv"
            if metrics.is_file():
                with metrics.open(newline="") as file:
                    self._experiment.metrics_keys = next(csv.reader(file), [])
        return self._experiment


class EventLogger(TensorBoardLogger):
    """TensorBoard's events; begins a new file where the old one is gone or cannot be written."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self._surviving():
            if self._experiment is not None and not any(Path(self.log_dir).glob("events.*")):
                self._experiment = None
            super().log_metrics(metrics, step)

    @rank_zero_only
    def save(self) -> None:
        with self._surviving():
            super().save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        with self._surviving():
            super().finalize(status)

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """TensorBoard's thread dies of the first error; the next events get a new one."""
        with give_up("TensorBoard's events not written"):
            try:
                yield
            except (OSError, ValueError) as error:  # Lightning wraps whatever a writer raises
                cause = error if isinstance(error, OSError) else error.__cause__
                if not isinstance(cause, OSError):
                    raise
                self._experiment = None
                raise cause from None
