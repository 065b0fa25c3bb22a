"""The system around the predictor: optimises it on the next thing of every stream, and scores
it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer

from mmpredict.model import Predictor, PredictorConfig
from mmpredict.model.pretrained import from_language_model
from mmpredict.objectives import (
    Losses,
    LossWeights,
    NgramCounts,
    ids_and_previous,
    keep_in_range,
    next_loss,
)
from mmpredict.schema import Batch, Layout, Prediction
from mmpredict.training.averaging import WeightAverage
from mmpredict.training.bad_steps import BadSteps, StepGuard, norm_of, stays_on_device, whole
from mmpredict.training.checkpoint import PREFIX, describe
from mmpredict.training.compared import check_architecture
from mmpredict.training.held_out import HeldOut
from mmpredict.training.latent import LatentMonitor
from mmpredict.training.optim import (
    OptimizerSettings,
    optimizer_for,
    restate,
    settings_of,
    warmup_stable_decay,
)
from mmpredict.training.predictions import finite
from mmpredict.training.ranks import Ranks
from mmpredict.training.sharding import share_out

SHARDED = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")  # hold parts of weights
CLIP_THEMSELVES = ("FSDPStrategy", "DeepSpeedStrategy")  # torch clips what FSDP2 has sharded
RUNNING = "running_weights"  # in a checkpoint: those that are trained, beside their average


class Pretrain(LightningModule):
    """Trains a predictor from scratch on the next token, frame and sound.

    Args:
        layout: the streams; comes from the data.
        predictor: size of the model.
        init_trunk_from: folder of a language model (Llama, Qwen2 or Qwen3 with safetensors) whose
            weights the trunk, and text, begin with; its sizes fill those left at their defaults.
        optimizer: `adamw`, or `muon` for the trunk's matrices and AdamW for the rest.
        lr: peak learning rate.
        weight_decay: of matrices.
        betas: of AdamW.
        warmup_share: share of the steps in which the rate rises.
        decay_share: share of the steps, at the end, in which it falls to 0.
        decay_shape: linear, or sqrt (fast at first).
        ema: share of the averaged weights kept at a step (0.999); 0 for no average. With an
            average, scores, samples and the checkpoint's weights are of the average.
        compile: compile the trunk's layers; pays from some hundred steps on.
        weights: of the losses.
        eval_samples: futures drawn per block when validating.
        sample_steps: steps of the flow head per future.
        bad_steps: which steps are skipped, and when there are too many of them.
    """

    def __init__(  # noqa: PLR0913 - the knobs of a recipe
        self,
        layout: Layout,
        predictor: PredictorConfig = PredictorConfig(),  # noqa: B008 - frozen
        *,
        init_trunk_from: str | None = None,
        optimizer: Literal["adamw", "muon"] = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup_share: float = 0.03,
        decay_share: float = 0.3,
        decay_shape: Literal["linear", "sqrt"] = "linear",
        ema: float = 0.0,
        compile: bool = False,
        weights: LossWeights = LossWeights(),  # noqa: B008 - frozen
        eval_samples: int = 8,
        sample_steps: int = 10,
        bad_steps: BadSteps = BadSteps(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        weights.check(layout)
        if init_trunk_from is None:
            self.predictor = Predictor(layout, predictor)
        else:
            self.predictor = from_language_model(layout, predictor, init_trunk_from)
        self.moved = OptimizerSettings(optimizer, lr, weight_decay, betas)
        self.schedule = {
            "warmup_share": warmup_share,
            "decay_share": decay_share,
            "shape": decay_shape,
        }
        if not 0 <= ema < 1:
            raise ValueError(f"ema={ema} must be 0 (no average) or below 1, such as 0.999")
        self.ema, self.compiles = ema, compile
        self.average: WeightAverage | None = None
        self.grad_norm: Tensor | None = None  # before clipping, of the last step
        self._loaded_average: dict[str, Tensor] = {}
        self.weights = weights
        self.log_variances = _log_variances(layout, weights)
        self.eval_samples, self.sample_steps = eval_samples, sample_steps
        self.ngrams = {
            int(s.modality): NgramCounts(s.vocab_size) for s in layout.streams if s.is_discrete
        }
        self._uncounted: dict[int, tuple[Tensor, Tensor]] = {}
        self.guard = StepGuard(bad_steps)
        self.ranks: Ranks | None = None  # where there are several
        self.held_out = self.new_held_out()
        self.results: dict[str, Any] = {}
        self.statistics_taken, self.latent_monitor = False, LatentMonitor(layout)

    def new_held_out(self) -> HeldOut:
        return HeldOut(
            self.predictor, self.ngrams, samples=self.eval_samples, steps=self.sample_steps
        )

    def forward(self, batch: Batch) -> Any:
        return self.predictor(batch)

    def setup(self, stage: str) -> None:
        """Take the data's statistics over, unless a checkpoint brought its own."""
        if type(self.trainer.strategy).__name__ in SHARDED:  # later there are only parts to fill
            self.predictor.read_weights()
        if not self.statistics_taken:
            self.predictor.set_statistics(self.trainer.datamodule.statistics())
            self.statistics_taken = True
        if stage == "fit" and self.compiles and not self.predictor.trunk.compiled:
            self.predictor.compile_layers()

    def configure_model(self) -> None:
        """Share the weights out, where the strategy asks for it."""
        share_out(self.predictor, self.trainer)

    def on_fit_start(self) -> None:
        """Read the weights of image encoders, unless a checkpoint brought them, and begin the
        average where the weights are now: on their device, loaded if resumed."""
        self.ranks = Ranks(self.predictor.layout, self) if self.trainer.world_size > 1 else None
        self.predictor.read_weights()
        if not self.ema:
            return
        strategy = type(self.trainer.strategy).__name__
        if strategy in SHARDED:
            raise ValueError(f"model.ema does not work with {strategy}; set model.ema to 0")
        self.average = WeightAverage(self.predictor, self.ema)
        if self._loaded_average:
            self.average.load(self._loaded_average)
            self._loaded_average = {}

    def on_train_start(self) -> None:
        """A resumed run is moved by its own settings, not by those in the checkpoint."""
        schedule = self.trainer.lr_scheduler_configs[0].scheduler
        changed = restate(self.trainer.optimizers[0], schedule, self._settings)
        if changed and self.trainer.is_global_zero:
            said = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in changed.items())
            print(f"note: this run's settings replace those of the checkpoint: {said}")

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """While it is still on the host: refuse what would spoil the training, and count text for
        the n-gram baselines."""
        self.predictor.check(batch)
        if self.trainer.training:
            self._uncounted = {
                modality: ids_and_previous(batch, modality, counts.vocab_size)
                for modality, counts in self.ngrams.items()
                if modality in batch.contents
            }
        return batch

    def on_after_backward(self) -> None:
        """Now the batch counts, if its step is good: one that failed is met again by a resumed
        run."""
        for modality, ids in self._uncounted.items():
            self.guard.if_good(partial(self.ngrams[modality].add, *ids))
        self._uncounted = {}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.guard.take(batch, self.trainer.fit_loop.epoch_loop.batch_progress.total.ready)
        prediction = self.predictor(batch)
        losses = self.losses(prediction)
        step, every = self.trainer.global_step, self.trainer.log_every_n_steps
        if step == 0 or (step + 1) % every == 0:  # the steps at which Lightning writes to the logs
            parts = {f"train/loss/{name}": value.detach() for name, value in losses.parts.items()}
            said = {f"train/log_variance/{n}": s.detach() for n, s in self.log_variances.items()}
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            ranks = self.latent_monitor.look(prediction)
            state = {"train/lr": rate, "train/bad_steps": float(self.guard.total)}
            self.log_dict(parts | said | ranks | state, batch_size=batch.num_rows)
        if self.ranks is None:
            return self.guard.loss(losses.total)
        return self.guard.loss(self.ranks.reaching_all(losses.total, prediction, batch))

    def losses(self, prediction: Prediction) -> Losses:
        """What the predictor says of a batch, scored."""
        factors = self.ranks.factors(prediction) if self.ranks is not None else None
        layout, learned = self.predictor.layout, self.log_variances or None
        return next_loss(prediction, layout, self.weights, learned, factors=factors)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning does it, but also under bfloat16 with a fused optimiser, which Lightning 2.6
        refuses although nothing is unscaled there; and a bad step is kept from moving anything."""
        if self.ranks is not None:
            self.ranks.average_apart(self.log_variances.values())
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        norm = self._clipped(optimizer, gradient_clip_val, gradient_clip_algorithm, scaled=scaled)
        step, on_device = self.trainer.global_step, stays_on_device(optimizer, norm, scaled=scaled)
        self.guard.judge(norm, optimizer, step, on_device=on_device)

    def _clipped(
        self, optimizer: Optimizer, gradient_clip_val: float | None, algorithm: Any, *, scaled: bool
    ) -> Tensor:
        """Clip; the norm before."""
        if not gradient_clip_val:
            return norm_of(optimizer)
        if str(getattr(algorithm, "value", algorithm)) == "value":
            norm = norm_of(optimizer)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif type(self.trainer.strategy).__name__ in CLIP_THEMSELVES or scaled:
            norm = norm_of(optimizer)
            self.clip_gradients(
                optimizer,
                gradient_clip_val=gradient_clip_val,
                gradient_clip_algorithm=algorithm,
            )
        else:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            norm = self.grad_norm = whole(nn.utils.clip_grad_norm_(parameters, gradient_clip_val))
        return norm

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if (bad := self.guard.bad) is not None and not self.guard.on_device:
            return
        keep_in_range(self.log_variances)
        self.predictor.follow_encoders(bad)
        if self.average is not None:
            self.average.update(bad)

    def on_train_batch_end(self, *_: Any) -> None:
        """Behind every callback's turn: nothing of the step is half done if the run stops here."""
        self.guard.behind(self.trainer, wait=False)

    def on_train_end(self) -> None:
        self.guard.behind(self.trainer, wait=True)

    @contextmanager
    def scored_weights(self) -> Iterator[None]:
        """The predictor holds the weights that scores are taken of: their average, if any."""
        self._show_average()
        try:
            yield
        finally:
            self._hide_average()

    def _show_average(self) -> None:
        if self.average is not None:
            self.average.enter()

    def _hide_average(self) -> None:
        if self.average is not None:
            self.average.leave()

    def on_validation_epoch_start(self) -> None:
        self._show_average()
        self.held_out = self.new_held_out()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.held_out.add(batch, seed=batch_idx)

    def on_validation_epoch_end(self) -> None:
        self._hide_average()
        self.results = self.reduced_results()
        self.log_dict(flat_metrics(self.results, "val/"), batch_size=1)

    def on_test_epoch_start(self) -> None:
        self._show_average()
        self.held_out = self.new_held_out()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.held_out.add(batch, seed=batch_idx)

    def on_test_epoch_end(self) -> None:
        self._hide_average()
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

    def rate_scales(self) -> dict[int, float]:
        """By id of a parameter, a factor on its learning rate; none from scratch."""
        return {}

    def configure_optimizers(self) -> dict[str, Any]:
        # A scaler of gradients (fp16) and clipping need the unfused AdamW.
        fused = getattr(self.trainer.precision_plugin, "scaler", None) is None
        optimizer = optimizer_for(
            self.predictor,
            replace(self.moved, fused=fused),
            trunk=self.predictor.trunk,
            balance=self.log_variances.values(),
            scales=self.rate_scales(),
        )
        schedule = warmup_stable_decay(optimizer, steps=self.trainer.max_steps, **self.schedule)
        self._settings = settings_of(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        datamodule = self.trainer.datamodule
        self.guard.settle(self.trainer)
        checkpoint["bad_steps"] = self.guard.state_dict()
        checkpoint["mmpredict"] = describe(
            self.predictor, datamodule.codecs, datamodule.loading.context_length
        ) | {"ngrams": {int(m): counts.state_dict() for m, counts in self.ngrams.items()}}
        if self.results:  # of the last validation; a run that begins with this compares its own
            checkpoint["mmpredict"]["scores"] = finite(self.results)
        if self.average is not None:  # what is loaded from it predicts with the average
            checkpoint[RUNNING] = _prefixed(self.average.running())
            checkpoint["state_dict"] |= _prefixed(self.average.averaged())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_architecture(self, checkpoint)
        self.statistics_taken = True  # they are buffers of the predictor
        data = type(getattr(self.trainer, "datamodule", None)).__qualname__
        if self.trainer.state.fn == TrainerFn.FITTING and data not in checkpoint:
            print(f"note: the checkpoint does not say how far {data} was read; it begins anew")
        if self.trainer.state.fn == TrainerFn.FITTING and "bad_steps" in checkpoint:
            self.guard.load_state_dict(checkpoint["bad_steps"])
        for modality, state in checkpoint["mmpredict"]["ngrams"].items():
            self.ngrams[modality].load_state_dict(state)
        if self.trainer.state.fn == TrainerFn.FITTING and RUNNING in checkpoint:
            averaged = checkpoint["state_dict"]
            self._loaded_average = {
                n.removeprefix(PREFIX): averaged[n] for n in checkpoint[RUNNING]
            }
            checkpoint["state_dict"] = averaged | checkpoint[RUNNING]


def _log_variances(layout: Layout, weights: LossWeights) -> nn.ParameterDict:
    """s of each stream, where the losses are balanced by their uncertainty; begins at 0."""
    if weights.balance == "fixed":
        return nn.ParameterDict()
    return nn.ParameterDict({s.name: nn.Parameter(torch.zeros(())) for s in layout.streams})


def _prefixed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{PREFIX}{name}": tensor for name, tensor in weights.items()}


def flat_metrics(results: dict[str, Any], prefix: str) -> dict[str, float]:
    """results.json as metrics: "val/video/energy_score", "val/video/copy_last/energy_score", ..."""
    flat: dict[str, float] = {}
    for name, value in results.items():
        if isinstance(value, dict):
            flat |= flat_metrics(value, prefix if name == "baselines" else f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = float(value)
    return flat
