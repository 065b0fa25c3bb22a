"""LightningModules and what hangs on the Trainer."""

from mmpredict.training.pretrain import Pretrain
from mmpredict.training.tokenizer import FsqTokenizers

__all__ = ["FsqTokenizers", "Pretrain"]
