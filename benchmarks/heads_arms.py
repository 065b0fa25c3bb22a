"""The arms of the comparison, and how one of them is trained.

All arms share data, batches and their order, trunk, optimiser, schedule and steps; a head's width
and depth are chosen so that whole models are of one size within 10 % (`check_sizes`).
Shapes: M blocks, P positions, D values.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from heads_data import Data, batch_of
from torch import Tensor
from torch.nn import functional as F

from mmpredict.model import HeadConfig, Predictor, PredictorConfig
from mmpredict.model.embed import Standardise
from mmpredict.model.fsq import BlockTokenizer, FsqConfig
from mmpredict.objectives import LossWeights, next_loss
from mmpredict.schema import Batch, Layout, StreamSpec
from mmpredict.training.optim import OptimizerSettings, optimizer_for, warmup_stable_decay

DIM, DEPTH, HEADS = 96, 4, 4
TOLERANCE = 0.10
CLIP = 1.0
WARM_UP, DECAY = 0.05, 0.3
FSQ = {
    "video": FsqConfig(levels=(5, 5, 5), codes_per_position=6, dim=96, depth=1),
    "audio": FsqConfig(levels=(5, 5, 5), codes_per_position=8, dim=96, depth=1),
}
TOKENIZER_STEPS, TOKENIZER_BLOCKS, TOKENIZER_LR = 600, 192, 2e-3


@dataclass(frozen=True)
class Arm:
    """A head, the same kind for frames and for sound.

    Args:
        name: in tables.
        video, audio: sizes of the heads.
        mean: weight of the auxiliary regression.
    """

    name: str
    video: HeadConfig
    audio: HeadConfig
    mean: float = 1.0


def arm(name: str, kind: str, sizes: dict[str, Any], *, mean: float = 1.0) -> Arm:
    """An arm whose two heads have the same sizes, but for what `sizes` names "audio_..."."""
    audio = {k.removeprefix("audio_"): v for k, v in sizes.items() if k.startswith("audio_")}
    video = {k: v for k, v in sizes.items() if not k.startswith("audio_")}
    both = {"video": video, "audio": video | audio}
    if kind == "fsq":
        both = {stream: own | {"codes": FSQ[stream]} for stream, own in both.items()}
    heads = {stream: HeadConfig(kind=kind, **own) for stream, own in both.items()}
    return Arm(name, heads["video"], heads["audio"], mean)


# Sizes of the heads by frame size: larger patches cost a flow more weights than a regression.
_FLOW = {32: {"dim": 96, "depth": 2}, 64: {"dim": 96, "depth": 2}}
_REGRESSION = {32: {"mean_depth": 4}, 64: {"mean_depth": 6}}
_GMM = {
    32: {"dim": 64, "depth": 2, "components": 4},
    64: {"dim": 56, "depth": 2, "components": 4},
}
_FSQ = {32: {"dim": 64, "depth": 2}, 64: {"dim": 80, "depth": 2}}
NAMES = ("flow", "regression", "flow_alone", "gmm", "fsq", "gmm_alone", "fsq_alone")


def arms(size: int) -> dict[str, Arm]:
    """All arms for frames of this size."""
    made = (
        arm("flow", "flow", _FLOW[size]),
        arm("regression", "regression", _REGRESSION[size]),
        arm("flow_alone", "flow", _FLOW[size], mean=0.0),
        arm("gmm", "gmm", _GMM[size]),
        arm("fsq", "fsq", _FSQ[size]),
        arm("gmm_alone", "gmm", _GMM[size], mean=0.0),
        arm("fsq_alone", "fsq", _FSQ[size], mean=0.0),
    )
    return {a.name: a for a in made}


def build(layout: Layout, which: Arm, seed: int) -> Predictor:
    """An untrained predictor of an arm."""
    torch.manual_seed(seed)
    config = PredictorConfig(
        dim=DIM,
        depth=DEPTH,
        num_heads=HEADS,
        heads={"video": which.video, "audio": which.audio},
    )
    return Predictor(layout, config)


def count(model: torch.nn.Module) -> int:
    """Parameters that are trained: a frozen tokenizer is counted apart."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def check_sizes(layout: Layout, chosen: list[Arm]) -> dict[str, int]:
    """Parameters of every arm; stops if they are further apart than TOLERANCE."""
    sizes = {which.name: count(build(layout, which, 0)) for which in chosen}
    least, most = min(sizes.values()), max(sizes.values())
    if most > (1 + TOLERANCE) * least:
        raise SystemExit(f"the arms are not of one size: {sizes}")
    return sizes


@dataclass(frozen=True)
class Training:
    """What is the same for all arms of a stage.

    Args:
        steps, rows: of the optimiser, and documents a step.
        lr: peak.
        seed: of the weights, the order and the noise.
    """

    steps: int
    rows: int
    lr: float
    seed: int


def batches(data: Data, training: Training) -> Iterator[Batch]:
    """`steps` batches; the order of the documents is the seed's, the same for all arms."""
    generator = torch.Generator().manual_seed(training.seed)
    order = torch.randperm(len(data.train), generator=generator).tolist()
    for step in range(training.steps):
        places = range(step * training.rows, (step + 1) * training.rows)
        yield batch_of([data.train[order[k % len(order)]] for k in places])


def train(
    data: Data, which: Arm, training: Training, tokenizers: dict[str, dict[str, Tensor]]
) -> tuple[Predictor, dict[str, float]]:
    """Train one arm; returns it with its cost and last losses.

    Args:
        tokenizers: weights by stream, for the discrete arms.
    """
    model = build(data.layout, which, training.seed)
    model.embed.set_statistics(data.statistics)
    for name, state in tokenizers.items():
        model.heads[name].tokenizer.load_state_dict(state)
    optimizer = optimizer_for(model, OptimizerSettings(lr=training.lr))
    schedule = warmup_stable_decay(
        optimizer, steps=training.steps, warmup_share=WARM_UP, decay_share=DECAY
    )
    generator = torch.Generator().manual_seed(1000 + training.seed)
    weights = LossWeights(mean=which.mean)
    started, sums = time.process_time(), {}
    model.train()
    for step, batch in enumerate(batches(data, training)):
        with torch.autocast("cpu", torch.bfloat16):
            losses = next_loss(model(batch, generator), data.layout, weights)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step >= 0.9 * training.steps:
            for name, value in losses.parts.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
    cost = {"train_cpu_s": time.process_time() - started}
    last = training.steps - -(-9 * training.steps // 10)
    return model.eval(), cost | {f"loss/{k}": v / max(1, last) for k, v in sums.items()}


def train_tokenizers(data: Data, steps: int) -> tuple[dict[str, BlockTokenizer], dict[str, float]]:
    """The discrete arm's first stage: an autoencoder for each continuous stream.

    Their codes are all that the arm can say; the error that they leave is part of its scores.
    """
    found, cost = {}, {}
    for spec in data.layout.streams:
        if spec.is_discrete:
            continue
        started = time.process_time()
        found[spec.name], error = _train_tokenizer(data, spec, steps)
        cost |= {
            f"tokenizer/{spec.name}/cpu_s": time.process_time() - started,
            f"tokenizer/{spec.name}/mse": error,
            f"tokenizer/{spec.name}/parameters": count(found[spec.name]),
        }
    return found, cost


def _train_tokenizer(data: Data, spec: StreamSpec, steps: int) -> tuple[BlockTokenizer, float]:
    torch.manual_seed(0)
    scale, values_MPD = _standardised(data, spec)
    tokenizer = BlockTokenizer(spec, FSQ[spec.name])
    optimizer = optimizer_for(tokenizer, OptimizerSettings(lr=TOKENIZER_LR, weight_decay=0.0))
    schedule = warmup_stable_decay(optimizer, steps=steps, warmup_share=WARM_UP, decay_share=DECAY)
    held = max(1, len(values_MPD) // 20)
    for _ in range(steps):
        chosen = torch.randint(held, len(values_MPD), (TOKENIZER_BLOCKS,))
        block = values_MPD[chosen].float()
        with torch.autocast("cpu", torch.bfloat16):
            again, _ = tokenizer(block)
        loss = F.mse_loss(again, block)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        block = values_MPD[:held].float()
        error_D = (tokenizer(block)[0] - block).square().mean((0, 1))
        tokenizer.error.value_D.copy_(error_D)
        tokenizer.mean_D.copy_(scale.mean)
        tokenizer.std_D.copy_(scale.std)
    return tokenizer.eval(), float(error_D.mean())


def _standardised(data: Data, spec: StreamSpec) -> tuple[Standardise, Tensor]:
    """The units of a stream, and (M, P, D) float16 blocks of the training documents."""
    model = build(data.layout, arms(data.size)["regression"], 0)
    model.embed.set_statistics(data.statistics)
    scale = model.embed.standardise[spec.name]
    parts = [scale(document.contents[spec.modality]).half() for document in data.train]
    return scale, torch.cat(parts).unflatten(0, (-1, spec.positions_per_block))
