"""LightningModules and what hangs on the Trainer."""

from mmpredict.training.pretrain import Pretrain

__all__ = ["Pretrain"]
