"""How many bits it takes to tell the labels, given the features (Voita & Titov 2020, "Information-
theoretic probing with minimum description length", section 3.2, online code).

A probe is trained on what has been told so far and pays for the next block: a probe that needs many
labels to learn pays more, even where it ends at the same accuracy. Each block is told with the
penalty that would have been cheapest so far, and chances are mixed with a uniform one that weighs
as much as one label of each class: both are known to whoever reads the code.

Shapes: R rows, X columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmpredict.probes.readouts import logistic

BLOCKS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
BINS = 8  # values are told as which of so many equally full bins they are in
L2S = (10.0, 1.0, 0.1, 0.01)


@dataclass(frozen=True)
class Codelength:
    """Bits of the online code, and of telling each label without features.

    Args:
        bits: of the online code.
        uniform_bits: R log2 K.
        labels, classes: R and K.
    """

    bits: float
    uniform_bits: float
    labels: int
    classes: int

    @property
    def compression(self) -> float:
        """How many times shorter than the uniform code."""
        return self.uniform_bits / self.bits if self.bits > 0 else math.inf


def online_codelength(
    x_RX: Tensor,
    labels_R: Tensor,
    scenes_R: Tensor,
    num_classes: int,
    *,
    seed: int = 0,
) -> Codelength:
    """Tell the labels scene by scene, in random order; a block ends with a scene, so that no probe
    is paid for a scene that it has seen."""
    order = scene_order(scenes_R, seed)
    x, labels, scenes = x_RX[order], labels_R[order], scenes_R[order]
    ends = block_ends(scenes)
    paid, spent = ends[0] * math.log2(num_classes), [0.0] * len(L2S)
    for told, end in zip(ends, ends[1:], strict=False):
        probes = [
            logistic((x[:told], labels[:told]), None, num_classes, l2s=(l2,), balanced=False)
            for l2 in L2S
        ]
        costs = [
            _bits(probe(x[told:end]), labels[told:end], told / (told + num_classes))
            for probe in probes
        ]
        paid += costs[spent.index(min(spent))]
        spent = [before + now for before, now in zip(spent, costs, strict=True)]
    uniform = len(labels) * math.log2(num_classes)
    return Codelength(paid, uniform, len(labels), num_classes)


def _bits(logits_RC: Tensor, labels_R: Tensor, trust: float) -> float:
    """What the labels cost, with `trust` in the probe and the rest in a uniform guess."""
    chances = trust * logits_RC.softmax(-1) + (1 - trust) / logits_RC.shape[1]
    return -float(chances.gather(1, labels_R[:, None]).double().log2().sum())


def scene_order(scenes_R: Tensor, seed: int) -> Tensor:
    """(R,) numbers of the rows, scenes shuffled and each kept together."""
    names, member_R = torch.unique(scenes_R, return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    rank = torch.randperm(len(names), generator=generator)
    return torch.argsort(rank[member_R], stable=True)


def block_ends(scenes_R: Tensor) -> list[int]:
    """How many rows have been told after each block, moved on to the end of a scene."""
    R = len(scenes_R)
    last = torch.ones(R, dtype=torch.bool)
    last[:-1] = scenes_R[1:] != scenes_R[:-1]
    closed = (last.nonzero()[:, 0] + 1).tolist()
    ends = []
    for share in BLOCKS:
        end = next(c for c in closed if c >= min(R, max(1, round(share * R))))
        if not ends or end > ends[-1]:
            ends.append(end)
    return ends


def binned(values_RC: Tensor, like_RC: Tensor, bins: int = BINS) -> Tensor:
    """(R,) which bin the first column is in; edges are the quantiles of `like_RC`."""
    inner = torch.linspace(0, 1, bins + 1)[1:-1]
    edges = torch.unique(like_RC[:, 0].quantile(inner))
    return torch.bucketize(values_RC[:, 0].contiguous(), edges)


def num_bins(values_R: Sequence[int] | Tensor) -> int:
    return int(torch.as_tensor(values_R).max()) + 1
