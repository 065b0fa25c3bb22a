"""Held-out scores beside their baselines. In: batches, one by one. Out: the plain dict of
results.json.

Continuous streams are scored in units of the training data's standard deviation, on blocks that
have a previous block (the others have nothing to be copied from); text in nats per token. Bits per
value are those of a density in the same units, of the block plus a little noise (model.heads), so
they can be below 0: they compare heads and nothing else.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from mmpredict.model import Predictor
from mmpredict.objectives import (
    NgramCounts,
    copy_last,
    energy_score,
    ids_and_previous,
    mean_block,
    squared_error,
    token_nll,
)
from mmpredict.schema import Batch, IdsPrediction, Modality, StreamSpec

# What is copied has a name that a reader of the stream knows.
BASELINE_NAMES = {
    int(Modality.VIDEO): {"copy_last": copy_last},
    int(Modality.AUDIO): {"last_spectrum": copy_last, "mean_spectrum": mean_block},
}
OTHER_BASELINES = {"copy_last": copy_last, "mean": mean_block}
BITS = "bits_per_value"


class HeldOut:
    """Adds up scores over batches.

    Args:
        predictor: the model.
        ngrams: per discrete stream, counts from training.
        samples: futures drawn per block for the energy score.
        steps: Euler steps per sample.
    """

    def __init__(
        self,
        predictor: Predictor,
        ngrams: dict[int, NgramCounts],
        *,
        samples: int = 8,
        steps: int = 10,
    ) -> None:
        self.predictor, self.ngrams, self.samples, self.steps = predictor, ngrams, samples, steps
        self.sums: dict[str, float] = defaultdict(float)
        self._text: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    @torch.no_grad()
    def add(self, batch: Batch, seed: int) -> None:
        """Score one batch; `seed` fixes the noise, so that two models see the same."""
        generator = torch.Generator(batch.doc_id.device).manual_seed(seed)
        hidden = self.predictor.hidden(batch)
        for spec in self.predictor.layout.streams:
            if spec.modality in batch.contents:
                score = self._ids if spec.is_discrete else self._values
                score(batch, hidden, spec, generator)
        self.sums["documents"] += int(batch.doc_id.amax(dim=1).sum())

    def _sum(self, name: str, what: str, values: Tensor) -> None:
        self.sums[f"{name}/{what}"] += float(values.double().sum())
        self.sums[f"{name}/{what}/count"] += values.numel()

    def _ids(
        self, batch: Batch, hidden: Tensor, spec: StreamSpec, generator: torch.Generator
    ) -> None:
        counted = self.predictor.counted(batch, spec.modality)
        z = self.predictor.condition(batch, hidden, spec.modality)[counted][:, 0]
        ids, previous = ids_and_previous(batch, spec.modality, spec.vocab_size)
        if not len(z):
            return
        said = IdsPrediction(self.predictor.heads[spec.name].logits(z), ids[counted])
        self._sum(spec.name, "nats_per_token", token_nll(said))
        self._text[spec.modality].append((ids[counted].cpu(), previous[counted].cpu()))

    def _values(
        self, batch: Batch, hidden: Tensor, spec: StreamSpec, generator: torch.Generator
    ) -> None:
        model, modality = self.predictor, spec.modality
        scored = model.counted(batch, modality) & model.has_previous(batch, modality)
        if not scored.any():
            return
        head = model.heads[spec.name]
        z = model.condition(batch, hidden, modality)[scored]
        previous = model.previous(batch, modality)[scored]
        truth = model.embed.values(batch, modality)[scored]
        samples = head.sample(
            z, previous, draws=self.samples, steps=self.steps, generator=generator
        )
        self._sum(spec.name, "energy_score", energy_score(samples, truth))
        self._sum(spec.name, "mse_of_mean", squared_error(head.mean(z, previous), truth))
        for name, forecast in BASELINE_NAMES.get(modality, OTHER_BASELINES).items():
            said = forecast(previous)
            self._sum(spec.name, f"{name}/energy_score", energy_score(said[None], truth))
            self._sum(spec.name, f"{name}/mse_of_mean", squared_error(said, truth))
        # Noise of its own, so that samples do not depend on what a density takes.
        apart = torch.Generator(truth.device).manual_seed(generator.initial_seed())
        nats_M = head.nats(z, previous, truth, apart)
        self._sum(spec.name, BITS, nats_M / truth[0].numel() / math.log(2))

    def results(self) -> dict[str, Any]:
        """Means per stream with their baselines; a stream that never came is absent."""
        table: dict[str, Any] = {}
        for spec in self.predictor.layout.streams:
            if spec.is_discrete and self._text[spec.modality]:
                ids, previous = (torch.cat(x) for x in zip(*self._text[spec.modality], strict=True))
                counts = self.ngrams[spec.modality]
                table[spec.name] = {
                    "nats_per_token": self._mean(spec.name, "nats_per_token"),
                    "baselines": counts.nats(ids, previous),
                }
            elif f"{spec.name}/energy_score" in self.sums:
                baselines = BASELINE_NAMES.get(spec.modality, OTHER_BASELINES)
                table[spec.name] = self._pair(spec.name, "") | {
                    BITS: self._mean(spec.name, BITS),
                    "baselines": {b: self._pair(spec.name, f"{b}/") for b in baselines},
                }
        table["held_out_scenes"] = int(self.sums["documents"])
        return table

    def _pair(self, name: str, prefix: str) -> dict[str, float]:
        return {w: self._mean(name, prefix + w) for w in ("energy_score", "mse_of_mean")}

    def _mean(self, name: str, what: str) -> float:
        return self.sums[f"{name}/{what}"] / max(1.0, self.sums[f"{name}/{what}/count"])
