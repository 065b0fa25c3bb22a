"""What `mmpredict predict` leaves behind: a line per document, in predictions.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from pytorch_lightning import Callback, LightningModule, Trainer


def finite(value: Any) -> Any:
    """Numbers that are not finite become None: JSON has no word for them."""
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Predictions(Callback):
    """Writes the scores that `predict_step` returns, beside the name of their document.

    Every rank writes a file of its own. A line is {"document": name, "video": {...}, ...} as in
    results.json.

    Args:
        run_dir: where the file goes; None for the trainer's default_root_dir.
    """

    def __init__(self, run_dir: Path | None = None) -> None:
        self.run_dir = run_dir
        self.path = Path()
        self._file: TextIO | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = Path(trainer.default_root_dir if self.run_dir is None else self.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        rank = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        self.path = folder / f"predictions{rank}.jsonl"
        self._file = self.path.open("w", encoding="utf-8")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        names = getattr(trainer.predict_dataloaders, "names", None)
        name = names[batch_idx] if names else f"batch {batch_idx}"
        assert self._file is not None
        self._file.write(json.dumps({"document": name, **finite(outputs)}) + "\n")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()
        print(f"predictions: {self.path}")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
