"""Disks that are full or lose their folders. In: paths, lines, a trainer. Out: files, where they
can be written; before a training, whether its checkpoints will fit.

What cannot be written in mid-run is said once and given up: a log must not cost the training.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer

from mmpredict.schema import UserError
from mmpredict.training.saving import Checkpoints

MOMENTS = 2  # of AdamW, for each weight that is trained
KEPT = 3  # checkpoints at a time: last, previous, and the one that is being written
GB = 1e9


@contextmanager
def give_up(what: str) -> Iterator[None]:
    """An error of the disk inside is said in one warning, `what` first, and forgotten."""
    try:
        yield
    except OSError as error:
        warnings.warn(f"{what}: {error}; training goes on", stacklevel=3)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file; its folder is made if it is gone."""
    with give_up(f"{path.name} not written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


class DiskSpace(Callback):
    """Before the first step: stops a run whose first checkpoint will not fit on the disk, and warns
    of one that has no room for the three that may stand there at a time."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folders = [c.dirpath for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoints)]
        if not folders or not trainer.is_global_zero or trainer.fast_dev_run:
            return
        size = checkpoint_size(pl_module)
        folder = next(p for p in (Path(folders[0]), *Path(folders[0]).parents) if p.is_dir())
        free = shutil.disk_usage(folder).free
        said = (
            f"{folder} has {free / GB:.3g} GB free; a checkpoint takes about {size / GB:.3g} GB, "
            f"and {KEPT} may stand there at a time"
        )
        if free < size:
            raise UserError(f"{said}: make room, or choose another --run_dir")
        if free < KEPT * size:
            warnings.warn(f"{said}: make room, or saving will fail", stacklevel=2)


def checkpoint_size(module: LightningModule) -> int:
    """Bytes of weights and buffers, of what AdamW remembers, and of the averaged weights."""
    weights = {id(p): p for p in module.parameters()}.values()
    trained = sum(p.numel() * p.element_size() for p in weights if p.requires_grad)
    fixed = sum(t.numel() * t.element_size() for t in module.buffers())
    fixed += sum(p.numel() * p.element_size() for p in weights if not p.requires_grad)
    averaged = trained if getattr(module, "ema", 0) else 0
    return fixed + trained * (1 + MOMENTS) + averaged
