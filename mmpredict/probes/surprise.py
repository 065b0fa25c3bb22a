"""How much the clips of a matched set surprise a checkpoint. In: the clips' tokens. Out: a number
per clip, the higher the more surprising, and the curve over time that it was taken from.

    prediction  surprise of the heads: `error` (squared, or of denoising) or `nats` by the head's
                kind; per value, in deviations of the data. An error is never called a likelihood.
    latent      L1 between what is said of a block and the block, as features: those of the
                predictor's own latent auxiliary where it has one, else both as the predictor's own
                embedding shows them to the trunk

Only blocks from the cut on count: before it all clips of a set are alike. Of those the mean counts
(registered before any result); `max` and `area` (over time) stand beside it. All clips of a set see
the same noise. With video and sound together both are added; where their heads speak different
units the video alone counts. `*/video` and `*/audio` are each by itself.

Shapes: B clips, M blocks, P positions per block, W values per position, D model width, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmpredict.model import Predictor
from mmpredict.model.embed import Seen
from mmpredict.probes.background import SLACK_S
from mmpredict.probes.evidence import Shown
from mmpredict.schema import Batch, StreamSpec
from mmpredict.sequence import interleave, pack

ERRORS = {"flow": "error", "regression": "error", "gmm": "nats", "fsq": "nats"}
RULES = ("prediction", "latent")
AGGREGATORS = ("mean", "max", "area")  # the first is the registered one


@dataclass(frozen=True)
class Curve:
    """Surprise over time of one stream of one clip, by rule.

    Args:
        stream: its name.
        unit: of the rule `prediction`: "error" or "nats".
        times_s: when each block ends.
        prediction, latent: of each block.
    """

    stream: str
    unit: str
    times_s: tuple[float, ...]
    prediction: tuple[float, ...]
    latent: tuple[float, ...]


def unit_of(predictor: Predictor, spec: StreamSpec) -> str:
    """What the head's surprise is."""
    return ERRORS[predictor.heads[spec.name].config.kind]


@torch.no_grad()
def curves(
    predictor: Predictor, clips: Sequence[Shown], *, seed: int, from_s: float | None = None
) -> list[list[Curve]]:
    """Per clip, the surprise of each continuous stream.

    Args:
        predictor: in evaluation mode.
        clips: with the same streams.
        seed: of the noise, the same for all clips.
        from_s: blocks that end earlier are left out; None: those without a block before them alone.
    """
    rows = [interleave(list(clip.streams), predictor.layout) for clip in clips]
    device = predictor.trunk.norm.weight.device
    batch = pack([[row] for row in rows], max(row.modality.shape[1] for row in rows))
    batch = batch.to(device).placed()
    hidden_BLD = predictor.hidden(batch)
    found: list[list[Curve]] = [[] for _ in clips]
    for tokens in clips[0].streams:
        spec = predictor.layout[tokens.modality]
        if spec.is_discrete or tokens.modality in clips[0].blank:
            continue
        times_M, row_M = _times_and_rows(batch, spec)
        chosen_M = predictor.has_previous(batch, spec.modality).cpu()
        if from_s is not None:
            chosen_M &= times_M >= from_s - SLACK_S
        values = _surprise(predictor, batch, hidden_BLD, spec, chosen_M.to(device), seed)
        times, row = times_M[chosen_M], row_M[chosen_M]
        for number in range(len(clips)):
            mine = row == number
            parts = (tuple(x[mine].tolist()) for x in (times, *values))
            found[number].append(Curve(spec.name, unit_of(predictor, spec), *parts))
    return found


def numbers(clips: Sequence[Sequence[Curve]], from_s: float) -> dict[str, list[float]]:
    """Per rule, a number per clip; the registered rule comes first.

    Raises:
        ValueError: a stream has no block from `from_s` on.
    """
    found: dict[str, list[float]] = {}
    streams, units = [c.stream for c in clips[0]], {c.unit for c in clips[0]}
    counted = streams if len(units) == 1 else [s for s in streams if s == "video"]
    for rule in RULES:
        per_stream = {
            aggregator: {
                stream: [_aggregated(clip[n], rule, aggregator, from_s) for clip in clips]
                for n, stream in enumerate(streams)
            }
            for aggregator in AGGREGATORS
        }
        for aggregator, of in per_stream.items():
            name = rule if aggregator == AGGREGATORS[0] else f"{rule}/{aggregator}"
            # Features of all streams are vectors of one space: latent errors may be added.
            added = streams if rule == "latent" else counted
            found[name] = [sum(values) for values in zip(*(of[s] for s in added), strict=True)]
        if len(streams) > 1:
            found |= {f"{rule}/{s}": per_stream[AGGREGATORS[0]][s] for s in streams}
    return found


def _aggregated(curve: Curve, rule: str, aggregator: str, from_s: float) -> float:
    pairs = zip(curve.times_s, getattr(curve, rule), strict=True)
    kept = [(t, s) for t, s in pairs if t >= from_s - SLACK_S]
    if not kept:
        raise ValueError(f"{curve.stream} has nothing from the cut at {from_s} s on")
    values = [s for _, s in kept]
    mean = sum(values) / len(values)
    if aggregator == "mean":
        return mean
    if aggregator == "max":
        return max(values)
    return mean * (kept[-1][0] - from_s)


def _times_and_rows(batch: Batch, spec: StreamSpec) -> tuple[Tensor, Tensor]:
    """(M,) end and row of each block of a stream, on the host."""
    firsts_M = batch.places.positions[spec.modality][:: spec.positions_per_block]
    return batch.end_s.flatten()[firsts_M].cpu(), (firsts_M // batch.modality.shape[1]).cpu()


def _surprise(  # noqa: PLR0913 - one stream of a batch, and which of it
    predictor: Predictor,
    batch: Batch,
    hidden_BLD: Tensor,
    spec: StreamSpec,
    chosen_M: Tensor,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """(M,) by the head and by features, of the chosen blocks, on the host."""
    z = predictor.condition(batch, hidden_BLD, spec.modality)[chosen_M]
    previous = predictor.previous(batch, spec.modality)[chosen_M]
    truth = predictor.embed.values(batch, spec.modality)[chosen_M]
    if not len(truth):
        return torch.zeros(0), torch.zeros(0)
    generator = torch.Generator(truth.device).manual_seed(seed)
    head = predictor.heads[spec.name]
    by_head = head.surprise(z, previous, truth, generator)
    by_features = _latent(predictor, spec, z, (head.mean(z, previous), truth))
    return by_head.float().cpu(), by_features.float().cpu()


def _latent(
    predictor: Predictor, spec: StreamSpec, z: Tensor, said_and_truth: tuple[Tensor, Tensor]
) -> Tensor:
    """(M,) mean |said - true| over the features of a block."""
    if spec.name in predictor.latents:
        latent = predictor.latents[spec.name]
        raw = predictor.embed.standardise[spec.name].inverse(said_and_truth[1])
        prediction = latent(z, latent.targets(raw))
        return (prediction.said_MPF - prediction.targets_MPF).abs().mean((1, 2))
    shape = said_and_truth[1].shape[:2]
    said, truth = (
        predictor.embed.vectors(spec, Seen(values, values)).unflatten(0, shape)
        for values in said_and_truth
    )
    return (said - truth).float().abs().mean((1, 2))
