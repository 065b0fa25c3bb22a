"""Weights shared out over devices (FSDP2). In: a predictor on every rank. Out: the same predictor,
of whose weights each rank keeps a part, whole only while a layer is at work.

Zhao et al. 2023, arXiv 2304.11277, in the form of torch.distributed.fsdp.fully_shard.
"""

from __future__ import annotations

from pytorch_lightning import Trainer
from torch.distributed.fsdp import FSDPModule, fully_shard

from mmpredict.model import Predictor


def share_out(predictor: Predictor, trainer: Trainer) -> None:
    """Shard each layer of the trunk, and the rest together, where the strategy is FSDP2.

    What is used by several parts (tables of words that are heads too) stays in one group.
    """
    strategy = trainer.strategy
    if type(strategy).__name__ != "ModelParallelStrategy" or isinstance(predictor, FSDPModule):
        return
    mesh = strategy.device_mesh
    if mesh["tensor_parallel"].size() > 1:
        raise ValueError(
            f"tensor_parallel_size is {mesh['tensor_parallel'].size()}; the layers are not written "
            "for that: set it to 1, and data_parallel_size to the number of devices"
        )
    for layer in predictor.trunk.layers:
        fully_shard(layer, mesh=mesh["data_parallel"])
    fully_shard(predictor, mesh=mesh["data_parallel"])
