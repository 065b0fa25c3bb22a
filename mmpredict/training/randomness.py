"""All random states of a run in its checkpoints, so that a resumed run draws the same noise.

In: the generators of Python, NumPy and torch (CPU and this rank's CUDA device). Out: an entry
`randomness` of the checkpoint, a list with the states of each rank as tensors, and the same
generators set back when it is resumed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

ENTRY = "randomness"
States = dict[str, Tensor]


class Randomness(Callback):
    """Puts the random states into checkpoints, and back before the first batch of a resumed run.

    What sanity checks and other callbacks draw before that batch leaves no trace. It stands before
    the callbacks that draw, so that they draw the same again.
    """

    def __init__(self) -> None:
        self._loaded: Sequence[Mapping[str, Tensor]] = ()
        self._at_batch_start: States = {}

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        device = trainer.strategy.root_device
        if self._loaded:
            restore(self._loaded, trainer.global_rank, device)
            if len(self._loaded) != trainer.world_size and trainer.is_global_zero:
                print(
                    f"note: the checkpoint holds the random states of {len(self._loaded)} "
                    f"processes, this run has {trainer.world_size}: the noise is another"
                )
            self._loaded = ()
        self._at_batch_start = states(device)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        progress = trainer.fit_loop.epoch_loop.batch_progress.total
        own = states(trainer.strategy.root_device)
        if self._loaded:  # no batch yet
            own = dict(self._loaded[trainer.global_rank % len(self._loaded)])
        elif progress.ready > progress.processed and self._at_batch_start:
            own = self._at_batch_start  # a batch that failed is done again from its beginning
        everybodys = [own]
        if trainer.world_size > 1:
            everybodys = [own] * trainer.world_size
            torch.distributed.all_gather_object(everybodys, own)
        checkpoint[ENTRY] = everybodys

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._loaded = checkpoint.get(ENTRY, ())
        if not self._loaded and trainer.is_global_zero:
            print("note: the checkpoint holds no random states; the noise begins anew")


def states(device: torch.device) -> States:
    """The states of all generators of this process, as tensors."""
    _, words, gauss = random.getstate()
    _, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    found = {
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor([*keys.tolist(), place, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor(cached, dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def restore(ranks: Sequence[Mapping[str, Tensor]], rank: int, device: torch.device) -> None:
    """Set all generators; a rank that was not there before draws numbers of its own."""
    if rank >= len(ranks):
        told = ranks[0]["torch"].numpy().tobytes() + rank.to_bytes(4, "little")
        seed = int.from_bytes(hashlib.sha256(told).digest()[:4], "little")
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)  # of all devices
        return
    found = ranks[rank]
    gauss = found["python_gauss"].tolist()
    random.setstate((3, tuple(found["python"].tolist()), gauss[0] if gauss else None))
    *keys, place, has_gauss = found["numpy"].tolist()
    cached = float(found["numpy_gauss"])
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), place, has_gauss, cached))
    torch.set_rng_state(found["torch"].cpu())
    if device.type == "cuda" and "cuda" in found:
        torch.cuda.set_rng_state(found["cuda"].cpu(), device)
