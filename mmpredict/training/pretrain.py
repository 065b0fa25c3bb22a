"""The system around the predictor: optimises it on the next thing of every stream, and scores
it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from mmpredict.model import Predictor, PredictorConfig
from mmpredict.objectives import LossWeights, NgramCounts, ids_and_previous, next_loss
from mmpredict.schema import Batch, Layout
from mmpredict.training.checkpoint import describe
from mmpredict.training.held_out import HeldOut
from mmpredict.training.optim import adamw, warmup_stable_decay


class Pretrain(LightningModule):
    """Trains a predictor from scratch on the next token, frame and sound.

    Args:
        layout: the streams; comes from the data.
        predictor: size of the model.
        lr: peak learning rate.
        weight_decay: of matrices.
        betas: of AdamW.
        warmup_share: share of the steps in which the rate rises.
        decay_share: share of the steps, at the end, in which it falls to 0.
        weights: of the losses.
        eval_samples: futures drawn per block when validating.
        sample_steps: steps of the flow head per future.
    """

    def __init__(  # noqa: PLR0913 - the knobs of a recipe
        self,
        layout: Layout,
        predictor: PredictorConfig = PredictorConfig(),  # noqa: B008 - frozen
        *,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup_share: float = 0.03,
        decay_share: float = 0.3,
        weights: LossWeights = LossWeights(),  # noqa: B008 - frozen
        eval_samples: int = 8,
        sample_steps: int = 10,
    ) -> None:
        super().__init__()
        weights.check(layout)
        self.predictor = Predictor(layout, predictor)
        self.lr, self.weight_decay, self.betas = lr, weight_decay, betas
        self.warmup_share, self.decay_share = warmup_share, decay_share
        self.weights = weights
        self.eval_samples, self.sample_steps = eval_samples, sample_steps
        self.ngrams = {
            int(s.modality): NgramCounts(s.vocab_size) for s in layout.streams if s.is_discrete
        }
        self.held_out = self.new_held_out()
        self.results: dict[str, Any] = {}
        self.statistics_taken = False

    def new_held_out(self) -> HeldOut:
        return HeldOut(
            self.predictor, self.ngrams, samples=self.eval_samples, steps=self.sample_steps
        )

    def forward(self, batch: Batch) -> Any:
        return self.predictor(batch)

    def setup(self, stage: str) -> None:
        """Take the data's statistics over, unless a checkpoint brought its own."""
        if not self.statistics_taken:
            self.predictor.embed.set_statistics(self.trainer.datamodule.statistics())
            self.statistics_taken = True

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Count text for the n-gram baselines while it is still on the host."""
        if self.trainer.training:
            for modality, counts in self.ngrams.items():
                if modality in batch.contents:
                    counts.add(*ids_and_previous(batch, modality, counts.vocab_size))
        return batch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = next_loss(self.predictor(batch), self.predictor.layout, self.weights)
        if self.trainer.global_step % self.trainer.log_every_n_steps == 0:
            parts = {f"train/loss/{name}": value.detach() for name, value in losses.parts.items()}
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            self.log_dict(parts | {"train/lr": rate}, batch_size=batch.num_rows)
        return losses.total

    def on_validation_epoch_start(self) -> None:
        self.held_out = self.new_held_out()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.held_out.add(batch, seed=batch_idx)

    def on_validation_epoch_end(self) -> None:
        self.results = self.reduced_results()
        self.log_dict(flat_metrics(self.results, "val/"), batch_size=1)

    def on_test_epoch_start(self) -> None:
        self.held_out = self.new_held_out()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.held_out.add(batch, seed=batch_idx)

    def on_test_epoch_end(self) -> None:
        self.results = self.reduced_results()
        self.log_dict(flat_metrics(self.results, "test/"), batch_size=1)

    def reduced_results(self) -> dict[str, Any]:
        """Results over all ranks: sums and counts are added up before they are divided."""
        held_out = self.held_out
        if self.trainer.world_size > 1:
            # A rank that saw no document of a stream has no sums of it.
            found: list[list[str]] = [[] for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(found, sorted(held_out.sums))
            names = sorted(set().union(*found))
            sums = torch.tensor([held_out.sums.get(n, 0.0) for n in names], device=self.device)
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum").tolist()
            held_out = copy.copy(held_out)
            held_out.sums = held_out.sums | dict(zip(names, sums, strict=True))
        return held_out.results()

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Scores of a batch, in the form of `results.json`."""
        scores = self.new_held_out()
        scores.add(batch, seed=batch_idx)
        results = scores.results()
        return {name: value for name, value in results.items() if isinstance(value, dict)}

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = adamw(
            self.predictor, lr=self.lr, weight_decay=self.weight_decay, betas=self.betas
        )
        schedule = warmup_stable_decay(
            optimizer,
            steps=self.trainer.max_steps,
            warmup_share=self.warmup_share,
            decay_share=self.decay_share,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        datamodule = self.trainer.datamodule
        checkpoint["mmpredict"] = describe(
            self.predictor, datamodule.codecs, datamodule.loading.context_length
        ) | {"ngrams": {int(m): counts.state_dict() for m, counts in self.ngrams.items()}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.statistics_taken = True  # they are buffers of the predictor
        data = type(getattr(self.trainer, "datamodule", None)).__qualname__
        if self.trainer.state.fn == TrainerFn.FITTING and data not in checkpoint:
            print(f"note: the checkpoint does not say how far {data} was read; it begins anew")
        for modality, state in checkpoint["mmpredict"]["ngrams"].items():
            self.ngrams[modality].load_state_dict(state)


def flat_metrics(results: dict[str, Any], prefix: str) -> dict[str, float]:
    """results.json as metrics: "val/video/energy_score", "val/video/copy_last/energy_score", ..."""
    flat: dict[str, float] = {}
    for name, value in results.items():
        if isinstance(value, dict):
            flat |= flat_metrics(value, prefix if name == "baselines" else f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = float(value)
    return flat
