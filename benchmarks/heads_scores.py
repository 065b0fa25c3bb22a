"""What a trained arm is scored by: held-out forecasts and surprise at matched pairs.

Energy score and squared error are in standard deviations of the data; bits are of the block with
dequantisation noise, per value (`nats` of the heads); text in nats per token.
Shapes: R draws, M blocks, P positions, D values, N scenes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from heads_data import Data, PairRows
from torch import Tensor

from mmpredict.model import Predictor
from mmpredict.objectives import copy_last, energy_score, squared_error, token_nll
from mmpredict.schema import Batch, IdsPrediction, Modality

DRAWS, STEPS = 8, 10
ROWS = 8  # documents at a time
LOG_2 = 0.6931471805599453
Scores = dict[str, list[float]]  # by name, one number a scene


@torch.no_grad()
def held_out(model: Predictor, batch: Batch) -> Scores:
    """Scores of the counted blocks, averaged scene by scene."""
    scores: Scores = {}
    for index, part in enumerate(split(model, batch)):
        generator = torch.Generator().manual_seed(index)
        with torch.autocast("cpu", torch.bfloat16):
            seen = model.embed.see(part)
            hidden = model.hidden(part, seen)
        for spec in model.layout.streams:
            counted = model.counted(part, spec.modality)
            rows_M = block_rows(model, part, spec.modality)
            if spec.is_discrete:
                z = model.condition(part, hidden, spec.modality)[counted][:, 0]
                said = IdsPrediction(
                    model.heads[spec.name].logits(z), part.contents[spec.modality][counted]
                )
                found = {"nats": token_nll(said)}
            else:
                asked = model.asked(part, hidden, spec, seen[spec.modality])
                found = values_scores(model.heads[spec.name], asked, generator)
            for name, values_M in found.items():
                by_row = mean_by_row(values_M, rows_M, part.num_rows)
                scores.setdefault(f"{spec.name}/{name}", []).extend(by_row)
    return scores


def values_scores(
    head: torch.nn.Module, asked: tuple[Tensor, Tensor, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """(M,) scores of continuous blocks, and of the baseline that copies the last one."""
    z, previous, truth = asked
    with torch.autocast("cpu", torch.bfloat16):
        samples = head.sample(z, previous, draws=DRAWS, steps=STEPS, generator=generator)
        mean = head.mean(z, previous)
        nats = head.nats(z, previous, truth, generator)
    return {
        "energy_score": energy_score(samples, truth),
        "mse_of_mean": squared_error(mean, truth),
        "mse_of_samples_mean": squared_error(samples.float().mean(0), truth),
        "bits_per_value": nats.float() / truth[0].numel() / LOG_2,
        "copy_last/energy_score": energy_score(copy_last(previous)[None], truth),
        "copy_last/mse_of_mean": squared_error(copy_last(previous), truth),
    }


@torch.no_grad()
def surprise(model: Predictor, pairs: PairRows) -> Scores:
    """Mean surprise of the counted blocks of every clip: "possible/video" and so on.

    The noise is the same for all clips (common random numbers), so that it cancels in pairs.
    """
    scores: Scores = {}
    for part in split(model, pairs.batch):
        with torch.autocast("cpu", torch.bfloat16):
            seen = model.embed.see(part)
            hidden = model.hidden(part, seen)
            for spec in model.layout.streams:
                if spec.is_discrete:
                    continue
                asked = model.asked(part, hidden, spec, seen[spec.modality])
                generator = torch.Generator().manual_seed(0)
                surprise_M = model.heads[spec.name].surprise(*asked, generator)
                rows_M = block_rows(model, part, spec.modality)
                by_row = mean_by_row(surprise_M, rows_M, part.num_rows)
                for side, start in (("possible", 0), ("impossible", 1)):
                    scores.setdefault(f"{side}/{spec.name}", []).extend(by_row[start::2])
    return scores


def split(model: Predictor, batch: Batch) -> list[Batch]:
    """A batch as batches of ROWS rows."""
    parts, taken = [], dict.fromkeys(batch.contents, 0)
    for first in range(0, batch.num_rows, ROWS):
        rows = slice(first, first + ROWS)
        part = replace(batch, contents={}).map(lambda x, rows=rows: x[rows])
        contents = {}
        for modality, values in batch.contents.items():
            count = int((part.modality == modality).sum())
            contents[modality] = values[taken[modality] : taken[modality] + count]
            taken[modality] += count
        parts.append(replace(part, contents={m: v for m, v in contents.items() if len(v)}))
    return parts


def block_rows(model: Predictor, batch: Batch, modality: int) -> Tensor:
    """(M,) the row of every counted block of a stream."""
    per_block = model.layout[modality].positions_per_block
    row_N = (batch.modality == modality).nonzero()[:, 0]
    return row_N[::per_block][model.counted(batch, modality)]


def mean_by_row(values_M: Tensor, rows_M: Tensor, num_rows: int) -> list[float]:
    """Mean per row; NaN for a row that has none."""
    sums = torch.zeros(num_rows, dtype=torch.float64)
    sums.index_add_(0, rows_M, values_M.double())
    return (sums / torch.bincount(rows_M, minlength=num_rows)).tolist()


def tuning_score(scores: Scores) -> float:
    """What learning rates are chosen by: energy scores as shares of copying's, text beside them."""
    mean = {name: torch.tensor(values).nanmean().item() for name, values in scores.items()}
    shares = [
        mean[f"{name}/energy_score"] / mean[f"{name}/copy_last/energy_score"]
        for name in ("video", "audio")
    ]
    return sum(shares)


def all_surprise(model: Predictor, data: Data) -> dict[str, Scores]:
    """`surprise` of every kind of pairs."""
    return {pairs.kind: surprise(model, pairs) for pairs in data.pairs}


VIDEO, AUDIO = int(Modality.VIDEO), int(Modality.AUDIO)
