"""Linear probes: features to labels with nothing hidden in between. In: features and labels of
train and dev rows. Out: a fitted readout. The test rows are never seen here.

Ridge in closed form, logistic regression by L-BFGS, and both through a bottleneck of few
directions. What is decoded of a named object is linear in the features, in the name and in their
products: y = w f + v q + f' A q, where A has the rank of q at most.

Shapes: M moments, R rows, F features, Q principal directions, K names, k numbers of a name, X
columns of the design, C columns to decode (or classes).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LAMBDAS = torch.logspace(-3, 5, 17, dtype=torch.float64)
L2S = (1e0, 1e-1, 1e-2, 1e-3)  # strong first: each starts from the one before
MOST_DIRECTIONS = 256
INTERACTING = 64  # directions of the features that are multiplied with the name
NAME_RANK = 12  # 8 colours and 5 shapes, less one: all that a mean of two words can say
RANKS = (1, 2, 4, 8)
_STEPS = 30  # of L-BFGS; the next penalty goes on from there
_PASSES = 3  # of the subspace iteration


def principal(values_MF: Tensor, most: int, seed: int = 0) -> Tensor:
    """(F, Q) orthonormal directions of the largest variance of centred values, Q <= most.

    Exact where there are few; else by subspace iteration (Halko et al. 2011, algorithm 4.4)."""
    M, num_features = values_MF.shape
    if num_features <= 2 * most:
        _, vectors = torch.linalg.eigh((values_MF.T @ values_MF).double())
        return vectors.flip(1)[:, :most].float()
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(num_features, min(most + 16, M), generator=generator)
    for _ in range(_PASSES):
        basis = torch.linalg.qr(values_MF.T @ (values_MF @ basis)).Q
    _, _, right = torch.linalg.svd(values_MF @ basis, full_matrices=False)
    return (basis @ right.T)[:, :most]


@dataclass(frozen=True)
class Design:
    """How rows of features and names become columns; fitted on train moments.

    Args:
        mean_F, std_F: of the features.
        basis_FQ: their principal directions.
        scale: makes the mean square of the columns about 1.
        names_Kk: whitened numbers of each name; None where no object is named.
    """

    mean_F: Tensor
    std_F: Tensor
    basis_FQ: Tensor
    scale: float
    names_Kk: Tensor | None

    @classmethod
    def fit(cls, values_MF: Tensor, names_KD: Tensor | None) -> Design:
        mean_F, std_F = values_MF.mean(0), values_MF.std(0)
        std_F = torch.where(std_F > 1e-6 * (1 + mean_F.abs()), std_F, math.inf)  # still: counts 0
        standard_MF = (values_MF - mean_F) / std_F
        basis_FQ = principal(standard_MF, MOST_DIRECTIONS)
        size = float((standard_MF @ basis_FQ).square().mean().sqrt())
        names_Kk = None if names_KD is None else whitened(names_KD, NAME_RANK)
        return cls(mean_F, std_F, basis_FQ, 1 / size if size > 0 else 1.0, names_Kk)

    def rows(self, values_MF: Tensor, moment_R: Tensor, name_R: Tensor) -> Tensor:
        """(R, X) float32."""
        z_MQ = self.scale * (((values_MF - self.mean_F) / self.std_F) @ self.basis_FQ)
        z_RQ = z_MQ[moment_R]
        if self.names_Kk is None:
            return z_RQ
        q_Rk = self.names_Kk[name_R]
        products = z_RQ[:, :INTERACTING, None] * q_Rk[:, None]
        return torch.cat([z_RQ, q_Rk, products.flatten(1)], 1)


def whitened(names_KD: Tensor, rank: int) -> Tensor:
    """(K, k) centred coordinates along the principal directions, each of unit variance."""
    centred = (names_KD - names_KD.mean(0)).double()
    left, sizes, _ = torch.linalg.svd(centred, full_matrices=False)
    keep = int((sizes > 1e-4 * sizes[0].clamp(min=1e-12)).sum())
    return (left[:, : min(rank, keep)] * math.sqrt(len(names_KD))).float()


@dataclass(frozen=True)
class Linear:
    """y = x W + b.

    Args:
        chosen: the lambda of each group of columns, or the L2 of a logistic probe.
        dev: how well each group does on the dev rows: R2, or the log loss in nats.
    """

    weight_XC: Tensor
    bias_C: Tensor
    chosen: tuple[float, ...]
    dev: tuple[float, ...]

    def __call__(self, x_RX: Tensor) -> Tensor:
        return x_RX @ self.weight_XC + self.bias_C


def ridge(
    train: tuple[Tensor, Tensor], dev: tuple[Tensor, Tensor], widths: Sequence[int] = ()
) -> Linear:
    """Ridge regression in closed form; lambda by the dev rows, for each group of columns.

    Args:
        train, dev: x (R, X) and y (R, C).
        widths: columns of each group, in order; () takes all as one.
    """
    x, y = (t.double() for t in train)
    x_dev, y_dev = (t.double() for t in dev)
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, x_dev, centred = x - x_mean, x_dev - x_mean, y - y_mean
    wide = x.shape[1] > len(x)
    values, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    values = values.clamp(min=0)
    # in the eigenbasis, what a lambda does is a division: (G + lambda)^-1 = V (e + lambda)^-1 V'
    inner = vectors.T @ (centred if wide else x.T @ centred)
    reach = (x_dev @ x.T if wide else x_dev) @ vectors
    variance = (y_dev - y_mean).square().mean(0).clamp(min=1e-12)
    r2 = torch.stack(
        [
            1
            - (reach @ (inner / (values + lam)[:, None]) + y_mean - y_dev).square().mean(0)
            / variance
            for lam in LAMBDAS
        ]
    )
    pieces, chosen, scores, start = [], [], [], 0
    for width in widths or (y.shape[1],):
        here = slice(start, start + width)
        group = r2[:, here].mean(1)
        best = int(group.argmax())
        solved = vectors @ (inner[:, here] / (values + LAMBDAS[best])[:, None])
        pieces.append(x.T @ solved if wide else solved)
        chosen.append(float(LAMBDAS[best]))
        scores.append(float(group[best]))
        start += width
    weight = torch.cat(pieces, 1)
    bias = y_mean - x_mean @ weight
    return Linear(weight.float(), bias.float(), tuple(chosen), tuple(scores))


def logistic(
    train: tuple[Tensor, Tensor],
    dev: tuple[Tensor, Tensor] | None,
    num_classes: int,
    *,
    l2s: Sequence[float] = L2S,
    balanced: bool = True,
) -> Linear:
    """Multinomial logistic regression by L-BFGS; the L2 penalty by the log loss on the dev rows.

    Args:
        train, dev: x (R, X) and labels (R,) int64; dev may be None where one L2 is given.
        balanced: every class weighs the same, however rare.
    """
    x, labels = train
    weight = torch.zeros(x.shape[1], num_classes, requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    share_C = class_weights(labels, num_classes) if balanced else torch.ones(num_classes)
    best = None
    for l2 in l2s:
        _minimise(x, labels, (weight, bias), share_C, l2)
        now = Linear(weight.detach().clone(), bias.detach().clone(), (l2,), (math.nan,))
        if dev is None:
            return now
        with torch.no_grad():
            shares = class_weights(dev[1], num_classes) if balanced else share_C
            loss = float(torch.nn.functional.cross_entropy(now(dev[0]), dev[1], weight=shares))
        if best is None or loss < best.dev[0]:
            best = Linear(now.weight_XC, now.bias_C, (l2,), (loss,))
    return best


def class_weights(labels_R: Tensor, num_classes: int) -> Tensor:
    """(C,) so that all classes that occur weigh the same, 1 in the mean over rows."""
    counts = torch.bincount(labels_R, minlength=num_classes).float()
    occurring = int((counts > 0).sum())
    return torch.where(counts > 0, len(labels_R) / (occurring * counts.clamp(min=1)), 0.0)


def _minimise(
    x: Tensor, labels: Tensor, parameters: tuple[Tensor, Tensor], share_C: Tensor, l2: float
) -> None:
    weight, bias = parameters
    optimiser = torch.optim.LBFGS(
        parameters, max_iter=_STEPS, history_size=10, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        nats = torch.nn.functional.cross_entropy(x @ weight + bias, labels, weight=share_C)
        total = nats + 0.5 * l2 * weight.square().sum()
        total.backward()
        return total

    optimiser.step(loss)


def bottleneck(design: Design, fitted: Linear, rank: int) -> Design:
    """The same design behind the `rank` directions of the features that a fitted probe uses most:
    the rank of a probe in the sense of Hewitt & Liang (2019), by reduced-rank regression (the
    leading left singular vectors of the weights, in units of what the directions carry)."""
    Q = design.basis_FQ.shape[1]
    weight_QX = fitted.weight_XC[:Q]
    if design.names_Kk is not None:
        k = design.names_Kk.shape[1]
        inter = min(INTERACTING, Q)
        products = fitted.weight_XC[Q + k :].view(inter, -1)
        products = torch.cat([products, products.new_zeros(Q - inter, products.shape[1])])
        weight_QX = torch.cat([weight_QX, products], 1)
    left, _, _ = torch.linalg.svd(weight_QX.double(), full_matrices=False)
    basis_FQ = design.basis_FQ @ left[:, :rank].float()
    return Design(design.mean_F, design.std_F, basis_FQ, design.scale, design.names_Kk)
