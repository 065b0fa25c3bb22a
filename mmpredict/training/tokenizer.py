"""Trains the tokenizers of the `fsq` heads: one small autoencoder for each continuous stream, on
the blocks of any datamodule. Out: a checkpoint that `predictor.heads.NAME.tokenizer` names.

Shapes: M blocks, P positions per block, D values per position, G groups of codes, V codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from mmpredict.model.embed import Standardise
from mmpredict.model.fsq import CHECKPOINT_ENTRY, FORMAT, BlockTokenizer, FsqConfig
from mmpredict.schema import Batch, Layout, StreamSpec
from mmpredict.training.optim import OptimizerSettings, optimizer_for, warmup_stable_decay


class FsqTokenizers(LightningModule):
    """Learns to say blocks in codes and back (Mentzer et al. 2023), by squared error.

    Validation reports, in units of the data's deviation, the squared error of what comes back, and
    how much of the vocabulary is in use: the share of the codes that occur, and their perplexity as
    a share of the vocabulary.

    Args:
        layout: the streams; comes from the data.
        streams: sizes per continuous stream name; others take the default.
        lr: peak learning rate.
        weight_decay: of matrices.
        betas: of AdamW.
        warmup_share: share of the steps in which the rate rises.
        decay_share: share of the steps, at the end, in which it falls to 0.
    """

    def __init__(  # noqa: PLR0913 - the knobs of a recipe
        self,
        layout: Layout,
        streams: dict[str, FsqConfig] | None = None,
        *,
        lr: float = 2e-3,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup_share: float = 0.03,
        decay_share: float = 0.3,
    ) -> None:
        super().__init__()
        self.specs = {s.name: s for s in layout.streams if not s.is_discrete}
        unknown = sorted(set(streams or {}) - set(self.specs))
        if unknown or not self.specs:
            raise ValueError(
                f"streams names {unknown}; the continuous streams of this run are "
                f"{sorted(self.specs)}, and there must be one or more"
            )
        sizes = {name: (streams or {}).get(name, FsqConfig()) for name in self.specs}
        self.tokenizers = nn.ModuleDict(
            {name: BlockTokenizer(spec, sizes[name]) for name, spec in self.specs.items()}
        )
        # Lightning does not clip for a fused optimiser under autocast.
        self.settings = OptimizerSettings("adamw", lr, weight_decay, betas, fused=False)
        self.shares = {"warmup_share": warmup_share, "decay_share": decay_share}
        self.use: dict[str, Use] = {}

    def setup(self, stage: str) -> None:
        """Take the data's statistics over; the tokenizers remember the units they learn in."""
        if self.tokenizers[next(iter(self.specs))].std_D.any():
            return  # a checkpoint brought them
        statistics = self.trainer.datamodule.statistics()
        for name, spec in self.specs.items():
            scale, tokenizer = Standardise(spec.width), self.tokenizers[name]
            mean, std = statistics.mean[spec.modality], statistics.std[spec.modality]
            scale.take(mean, std, own_units=spec.own_units)  # as the predictor will
            tokenizer.mean_D.copy_(scale.mean)
            tokenizer.std_D.copy_(scale.std)

    def blocks(self, batch: Batch, spec: StreamSpec) -> Tensor:
        """(M, P, D) standardised."""
        tokenizer, values = self.tokenizers[spec.name], batch.contents[spec.modality]
        values = (values.float() - tokenizer.mean_D) / tokenizer.std_D
        return values.unflatten(0, (-1, spec.positions_per_block))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        parts: dict[str, Tensor] = {}
        for name, spec in self.specs.items():
            if spec.modality in batch.contents:
                blocks_MPD = self.blocks(batch, spec)
                tokenizer = self.tokenizers[name]
                again_MPD, _ = tokenizer(blocks_MPD)
                parts[name] = F.mse_loss(again_MPD, blocks_MPD)
                tokenizer.error.add(again_MPD, blocks_MPD)
        if not parts:
            raise ValueError(f"a batch has none of the streams {sorted(self.specs)}")
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:
            losses = {f"train/loss/{name}": value.detach() for name, value in parts.items()}
            self.log_dict(losses, batch_size=batch.num_rows)
        values = list(parts.values())
        return sum(values[1:], values[0])

    def on_validation_epoch_start(self) -> None:
        self.use = {}

    def on_test_epoch_start(self) -> None:
        self.use = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._score(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._score(batch)

    def _score(self, batch: Batch) -> None:
        for name, spec in self.specs.items():
            if spec.modality in batch.contents:
                use = self.use.setdefault(name, Use(self.tokenizers[name]))
                use.add(self.tokenizers[name], self.blocks(batch, spec))

    def on_validation_epoch_end(self) -> None:
        self._log("val/")

    def on_test_epoch_end(self) -> None:
        self._log("test/")

    def _log(self, prefix: str) -> None:
        for name, use in self.use.items():
            scores = {f"{prefix}{name}/{what}": value for what, value in use.scores().items()}
            self.log_dict(scores, batch_size=1, sync_dist=True)
            if self.trainer.is_global_zero and not self.trainer.sanity_checking:
                said = ", ".join(f"{what} {float(v):.3g}" for what, v in use.scores().items())
                print(f"tokenizer of {name}: {said}", flush=True)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = optimizer_for(self.tokenizers, self.settings)
        schedule = warmup_stable_decay(optimizer, steps=self.trainer.max_steps, **self.shares)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        streams: Mapping[str, Any] = {n: asdict(t.config) for n, t in self.tokenizers.items()}
        checkpoint[CHECKPOINT_ENTRY] = {"format": FORMAT, "streams": streams}


class Use:
    """How a tokenizer does on blocks that it was not trained on: sums over batches."""

    def __init__(self, tokenizer: BlockTokenizer) -> None:
        device = tokenizer.std_D.device
        shape = (tokenizer.config.codes_per_position, tokenizer.num_codes)
        self.count_GV = torch.zeros(shape, device=device)
        self.error = torch.zeros((), dtype=torch.float32, device=device)
        self.batches = 0

    @torch.no_grad()
    def add(self, tokenizer: BlockTokenizer, blocks_MPD: Tensor) -> None:
        again_MPD, levels = tokenizer(blocks_MPD)
        codes_NG = tokenizer.quantiser.codes(levels).flatten(0, 1)
        self.count_GV.scatter_add_(1, codes_NG.T, torch.ones_like(codes_NG.T, dtype=torch.float32))
        self.error += F.mse_loss(again_MPD, blocks_MPD)
        self.batches += 1

    def scores(self) -> dict[str, Tensor]:
        """Squared error; share of the codes in use; perplexity as a share of the vocabulary."""
        share_GV = self.count_GV / self.count_GV.sum(1, keepdim=True)
        perplexity_G = torch.special.entr(share_GV).sum(1).exp()
        return {
            "squared_error": self.error / self.batches,
            "codes_used": (self.count_GV > 0).float().mean(),
            "perplexity_share": perplexity_G.mean() / self.count_GV.shape[1],
        }
