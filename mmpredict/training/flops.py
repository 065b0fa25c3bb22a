"""How many floating-point operations a training step does. In: a predictor and its batches. Out:
a count by formula, and the speed of the machine's own matrix product to hold it against.

    FLOPs = 6 N T + 12 L H E pairs + 3 heads

N matrix parameters of the trunk that a token meets (of experts, one stream's), T useful tokens, L
layers of H heads of E values, `pairs` the (query, key) pairs that the law of sight shows: each seen
key counts once, causal and within documents. Fast weights add 18 H K V a token and layer (read by
key, write, read by query). Heads: the matrix products of one forward pass over them, as torch
counts them, times 3 for the backward. Not counted: embeddings and patch projections, frozen
encoders, norms and other elementwise work, what is computed twice to save memory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mmpredict.model import Predictor
from mmpredict.schema import Batch

FORWARD_AND_BACKWARD = 3  # the backward of a matrix product is two of its size
BF16_PEAK = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "B200": 2250e12,
}  # dense, of the vendor


@dataclass(frozen=True)
class Work:
    """FLOPs of forward and backward.

    Args:
        token: of the trunk's matrices, per token.
        pair: of attention, per visible pair, all layers.
        heads: per position of a stream, by modality.
    """

    token: float
    pair: float
    heads: Mapping[int, float]

    def parts(self, counts: Mapping[int, int], pairs: float) -> dict[str, float]:
        """FLOPs of so many positions of each stream with so many visible pairs."""
        heads = sum(self.heads.get(m, 0.0) * count for m, count in counts.items())
        return {
            "trunk": self.token * sum(counts.values()),
            "attention": self.pair * pairs,
            "heads": heads,
        }


def work_of(predictor: Predictor, batch: Batch) -> Work:
    """The work of a predictor; the heads of the streams that the batch has are counted on it."""
    config = predictor.config.attention_layer
    layers = predictor.config.depth
    pair = 4 * FORWARD_AND_BACKWARD * config.num_heads * config.head_dim * layers
    return Work(token_work(predictor), pair, head_work(predictor, batch))


def token_work(predictor: Predictor) -> float:
    """6 N and what fast weights do beside their matrices, per token."""
    config = predictor.config
    matrices = sum(m.weight.numel() for m in predictor.trunk.modules() if isinstance(m, nn.Linear))
    for layer in predictor.trunk.layers:
        if layer.experts:
            streams = list(layer.feed_forward.streams.values())
            own = sum(p.numel() for p in streams[0].parameters())
            matrices -= (len(streams) - 1) * own
    memories = sum(config.has_memory(index) for index in range(config.depth))
    fast = config.fast_weights
    state = 6 * fast.num_heads * fast.key_dim * fast.value_dim if memories else 0
    return FORWARD_AND_BACKWARD * (2.0 * matrices + state * memories)


def head_work(predictor: Predictor, batch: Batch) -> dict[int, float]:
    """FLOPs per position of each stream of the batch: forward over the heads alone, times 3.

    The trunk is left out by handing the heads noise; random states stay as they were.
    """
    hidden = torch.randn(
        *batch.doc_id.shape,
        predictor.config.dim,
        device=batch.doc_id.device,
        generator=torch.Generator(batch.doc_id.device).manual_seed(0),
    )
    devices = [hidden.device] if hidden.is_cuda else []
    predictor.hidden = lambda *_: hidden  # type: ignore[method-assign]
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            with FlopCounterMode(display=False) as counter:
                predictor(batch)
    finally:
        del predictor.hidden
    by_module = {name: sum(c.values()) for name, c in counter.get_flop_counts().items()}
    counts = positions(batch)
    own = {m: _own(by_module, predictor.layout[m].name) for m in counts}
    shared = (counter.get_total_flops() - sum(own.values())) / max(1, sum(counts.values()))
    return {m: FORWARD_AND_BACKWARD * (own[m] / max(1, counts[m]) + shared) for m in counts}


def _own(by_module: Mapping[str, int], name: str) -> int:
    """FLOPs of the parts that a stream has to itself."""
    places = ("heads", "queries", "latents")
    return sum(
        by_module.get(f"{root}.{place}.{name}", 0) for place in places for root in ("Predictor",)
    )


def positions(batch: Batch) -> dict[int, int]:
    """Useful positions of each stream; known on the host, whatever the device."""
    return {modality: len(contents) for modality, contents in batch.contents.items()}


def visible_pairs(batch: Batch, window: int = 0) -> Tensor:
    """Number of (query, key) pairs that the law of sight shows; a tensor on the batch's device."""
    doc_BL, block_BL = batch.doc_id, batch.block_id
    L = doc_BL.shape[1]
    index_BL = torch.arange(L, device=doc_BL.device).expand_as(doc_BL)
    document_BL = _first(doc_BL, index_BL)
    block_first_BL = _first(block_BL, index_BL)
    block_last_BL = L - 1 - _first(block_BL.flip(1), index_BL).flip(1)
    reach_BL = index_BL - window + 1 if window else torch.zeros_like(index_BL)
    earlier_BL = (block_first_BL - torch.maximum(document_BL, reach_BL)).clamp(min=0)
    seen_BL = block_last_BL - block_first_BL + 1 + earlier_BL
    return (seen_BL * (doc_BL > 0)).sum()


def _first(number_BL: Tensor, index_BL: Tensor) -> Tensor:
    """Of each position, the first of its run of equal numbers."""
    begins_BL = torch.ones_like(number_BL, dtype=torch.bool)
    begins_BL[:, 1:] = number_BL[:, 1:] != number_BL[:, :-1]
    return torch.where(begins_BL, index_BL, 0).cummax(dim=1).values


def matmul_speed(
    rows: int, dim: int, hidden: int, *, device: torch.device, dtype: torch.dtype, seconds: float
) -> float:
    """FLOP/s of the trunk's largest matrix product, on random numbers (zeros would run faster).

    Args:
        rows, dim, hidden: (rows, dim) times (dim, hidden).
        seconds: how long to measure; the best of the tries counts.
    """
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(rows, dim, device=device, generator=generator).to(dtype)
    weight = torch.randn(hidden, dim, device=device, generator=generator).to(dtype)
    work, best = 2.0 * rows * dim * hidden, 0.0
    repeats = 10 if device.type == "cuda" else 1  # one launch is shorter than the clock's tick
    end, tries = time.monotonic() + seconds, 0
    with torch.no_grad():
        while tries < 3 or time.monotonic() < end:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            for _ in range(repeats):
                F.linear(x, weight)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = max(best, repeats * work / (time.perf_counter() - start))
            tries += 1
    return best


def known_peak(device: torch.device) -> float | None:
    """The vendor's dense bfloat16 FLOP/s of a GPU that is known here."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in BF16_PEAK.items() if part in name), None)
