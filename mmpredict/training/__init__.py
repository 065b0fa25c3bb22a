"""LightningModules and what hangs on the Trainer."""

from mmpredict.training.finetune import Finetune
from mmpredict.training.pretrain import Pretrain
from mmpredict.training.tokenizer import FsqTokenizers

__all__ = ["Finetune", "FsqTokenizers", "Pretrain"]
