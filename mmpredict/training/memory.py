"""How much memory a training step needs, said before the first one. In: a predictor, a batch and
how it is trained. Out: bytes by part.

Weights 4 B a parameter, gradients 4, AdamW's moments 8 (Muon's 4), an average 4, and under bfloat16
2 more for the copy of each matrix that the backward keeps. Activations: per position and layer, a
width d and an inner width h,

    (50 d + 4 c h) eager,  (22 d + 3 c h) compiled     c = 2 B (bfloat16)
    (57 d + 4 c h) eager,  (40 d + 3 c h) compiled     c = 4 B (float32)

and on a CPU, whose attention keeps its weights, c B for each head and key. The numbers before d
were fitted to what autograd keeps (tests/training/test_meters.py repeats the measurement).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mmpredict.model import HeadConfig, Predictor
from mmpredict.model.layers import hidden_width
from mmpredict.schema import Batch, StreamSpec
from mmpredict.training.flops import positions

GB = 1e9
EAGER = {2: 50.0, 4: 57.0}  # bytes per position and width of a layer, by bytes of a product
COMPILED = {2: 22.5, 4: 40.0}
ALONE = {2: 10.0, 4: 12.0}  # of a head's layer over blocks of one position: no attention
RESIDUAL = 4  # the stream between the layers is float32
LOGITS = 14  # bytes per logit: itself, its log-softmax, their gradients
CHUNK = 128  # queries that attention on a CPU takes at once


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step.

    Args:
        parameters: number of them.
        weights: weights, gradients, moments, averages, copies.
        trunk: what the layers keep for the backward.
        heads: what embedding, heads and losses keep.
    """

    parameters: int
    weights: float
    trunk: float
    heads: float

    @property
    def total(self) -> float:
        return self.weights + self.trunk + self.heads


def memory_of(
    predictor: Predictor, batch: Batch, *, half: bool, average: bool = False, muon: int = 0
) -> Memory:
    """The formula.

    Args:
        predictor: as it will be trained.
        batch: one like those to come.
        half: products in bfloat16.
        average: averaged weights are kept.
        muon: parameters that Muon moves.
    """
    count = sum(p.numel() for p in predictor.parameters())
    trained = sum(p.numel() for p in predictor.parameters() if p.requires_grad)
    copies = 0
    if half and not predictor.config.checkpoint_activations:
        copies = 2 * sum(m.weight.numel() for m in predictor.modules() if isinstance(m, nn.Linear))
    weights = 4 * count + (12 + 4 * average) * trained - 4 * muon + copies
    value = 2 if half else 4
    return Memory(count, weights, _trunk(predictor, batch, value), _heads(predictor, batch, value))


def _trunk(predictor: Predictor, batch: Batch, value: int) -> float:
    config, slots = predictor.config, batch.doc_id.numel()
    compiled = predictor.trunk.compiled
    d, h = config.dim, config.hidden_width
    layer = COMPILED[value] * d + 3 * value * h if compiled else EAGER[value] * d + 4 * value * h
    if batch.doc_id.device.type == "cpu":
        L = batch.doc_id.shape[1]
        layer += config.num_heads * value * (L + min(L, CHUNK)) / 2
    memory = 0.0
    if config.fast_weights is not None:  # float32, a few copies of each
        fast = config.fast_weights
        memory = 12.0 * fast.num_heads * (2 * fast.key_dim + 2 * fast.value_dim)
    memories = sum(config.has_memory(index) for index in range(config.depth))
    if config.checkpoint_activations:
        return slots * (config.depth * RESIDUAL * d + layer + memory)
    return slots * (config.depth * layer + memories * memory)


def _heads(predictor: Predictor, batch: Batch, value: int) -> float:
    config, total = predictor.config, 0.0
    for modality, count in positions(batch).items():
        spec = predictor.layout[modality]
        if spec.is_discrete:
            total += count * (LOGITS * spec.vocab_size + 11 * config.dim)
            continue
        head = config.heads.get(spec.name, HeadConfig())
        ahead = len(config.horizons)
        total += count * (8 * config.dim + 2 * spec.width)
        total += count * ahead * _values_head(spec, head, config.dim, value)
    return total + 4.0 * batch.doc_id.numel() * config.dim


def _values_head(spec: StreamSpec, head: HeadConfig, dim: int, value: int) -> float:
    """Bytes per position of a head for blocks of values."""

    def layer(width: int) -> float:
        per_width = EAGER[value] if spec.positions_per_block > 1 else ALONE[value]
        return per_width * width + 4 * value * hidden_width(width)

    mean = 13 * dim + 14 * spec.width + head.mean_depth * layer(dim)
    if head.kind == "regression":
        return mean
    draws = head.draws if head.kind == "flow" else 1
    mixture = 16 * head.components * spec.width if head.kind == "gmm" else 0
    denoised = 34 * spec.width + 12 * head.dim + head.depth * layer(head.dim)
    return mean + 10 * spec.width + mixture + draws * denoised


def available(device: torch.device) -> float | None:
    """Bytes that a step may use on a device; None where nothing says so."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    path = Path("/proc/meminfo")
    if device.type != "cpu" or not path.is_file():
        return None
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("MemAvailable:"):
            return 1024.0 * float(line.split()[1])
    return None


def used(device: torch.device) -> float | None:
    """Most bytes in use so far: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    path = Path("/proc/self/status")
    if device.type != "cpu" or not path.is_file():
        return None
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return 1024.0 * float(line.split()[1])
    return None
