"""The attentive probe: each target has one learned query that looks over the places of a moment.

In: the places' vectors at each moment, names, labels. Out: predictions. The query depends on which
object is named, so the probe can look for it; where a place lies in the picture is told to every
source alike. Small on purpose: at most 1 % of the model's parameters, so that the work must have
been done before.

Shapes: M moments, S places, D width, R rows, N targets, H heads, E width of a head, k numbers of a
name, C columns of a target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpredict.probes.readouts import class_weights

HEADS = 4
SHARE = 0.01  # of the backbone's parameters
_WIDTHS = (16, 8, 4, 2, 1)
_STEPS, _ROWS = 400, 256
_LOOK, _PATIENCE = 20, 6  # the dev rows are asked every so many steps
_LR, _DECAY = 1e-2, 1e-2


class Attentive(nn.Module):
    """Keys and values for all targets; queries and outputs for each (the attentive probe of Bardes
    et al. 2024, V-JEPA; here the name is added to the query).

    Args:
        dim: width of a place's vector.
        name_width: numbers of a name; 0 for none.
        outputs: columns of each target.
        width: of a head.
    """

    def __init__(self, dim: int, name_width: int, outputs: Sequence[int], width: int) -> None:
        super().__init__()
        N, self.width, self.outputs = len(outputs), width, tuple(outputs)
        inner = HEADS * width
        self.keys = nn.Linear(dim + 3, inner, bias=False)
        self.values = nn.Linear(dim + 3, inner, bias=False)
        self.query = nn.Parameter(0.1 * torch.randn(N, inner))
        self.by_name = nn.Parameter(torch.randn(name_width, inner) * max(name_width, 1) ** -0.5)
        self.out = nn.ParameterList(torch.zeros(inner, columns) for columns in outputs)
        self.out_bias = nn.ParameterList(torch.zeros(columns) for columns in outputs)

    def forward(self, places_RSD: Tensor, name_Rk: Tensor) -> list[Tensor]:
        """(R, C) for each target."""
        R, S = places_RSD.shape[:2]
        shape = (R, S, HEADS, self.width)
        keys, values = (w(places_RSD).view(shape) for w in (self.keys, self.values))
        query = self.query + (name_Rk @ self.by_name)[:, None]
        query = query.view(R, -1, HEADS, self.width)
        match = torch.einsum("rnhe,rshe->rnhs", query, keys) / self.width**0.5
        found_RNI = torch.einsum("rnhs,rshe->rnhe", match.softmax(-1), values).flatten(2)
        return [
            found_RNI[:, n] @ out + bias
            for n, (out, bias) in enumerate(zip(self.out, self.out_bias, strict=True))
        ]


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def head_width(dim: int, name_width: int, outputs: Sequence[int], backbone: int) -> int:
    """The widest head with which the probe has at most SHARE of the backbone's parameters; 0 where
    none is narrow enough."""
    for width in _WIDTHS:
        with torch.random.fork_rng(devices=[]):
            size = count_parameters(Attentive(dim, name_width, outputs, width))
        if size <= SHARE * backbone:
            return width
    return 0


@dataclass(frozen=True)
class Asked:
    """Rows of one part of the data.

    Args:
        places_MSD: float32, standardised.
        moment_R, name_Rk: of each row; no name is all 0.
        truth: per target (R, C) standardised values with NaN, or (R,) classes with -1.
    """

    places_MSD: Tensor
    moment_R: Tensor
    name_Rk: Tensor
    truth: Mapping[str, Tensor]


@dataclass(frozen=True)
class Fitted:
    """A probe at the epoch that was best for one target.

    Args:
        number: of the target.
        dev: its loss on the dev rows.
    """

    probe: Attentive
    number: int
    dev: float

    @torch.no_grad()
    def __call__(self, asked: Asked, rows: Tensor) -> Tensor:
        """(R, C) what is said of the target at these rows."""
        said = self.probe(asked.places_MSD[asked.moment_R[rows]], asked.name_Rk[rows])
        return said[self.number]


def standardised(places_MSD: Tensor, like_MSD: Tensor, places_S3: Tensor) -> Tensor:
    """Each number in deviations of `like_MSD`, and where the place lies beside it."""
    flat = like_MSD.flatten(0, 1).float()
    mean, std = flat.mean(0), flat.std(0).clamp(min=1e-6)
    where = places_S3.expand(len(places_MSD), -1, -1)
    return torch.cat([(places_MSD.float() - mean) / std, where], -1)


def fit_attentive(
    train: Asked, dev: Asked, outputs: Mapping[str, int], *, width: int, seed: int = 0
) -> dict[str, Fitted]:
    """Train with AdamW; each target keeps the epoch at which it was best on the dev rows.

    Args:
        outputs: columns of each target, or its number of classes.

    Returns:
        per target, the probe to be asked for it (its other targets are not at their best).
    """
    names, sizes = list(outputs), list(outputs.values())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dim = train.places_MSD.shape[-1] - 3
        probe = Attentive(dim, train.name_Rk.shape[1], sizes, width)
    optimiser = torch.optim.AdamW(probe.parameters(), lr=_LR, weight_decay=_DECAY)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: class_weights(labels[labels >= 0], outputs[name])
        for name, labels in train.truth.items()
        if not labels.is_floating_point()
    }
    best: dict[str, tuple[float, dict[str, Tensor]]] = {}
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, _LR, total_steps=_STEPS, pct_start=0.1
    )
    every, since = torch.arange(len(dev.moment_R)), 0
    for step in range(1, _STEPS + 1):
        rows = torch.randint(len(train.moment_R), (_ROWS,), generator=generator)
        optimiser.zero_grad()
        losses = _losses(probe, train, rows, names, weights)
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
        schedule.step()
        if step % _LOOK:
            continue
        with torch.no_grad():
            scores = _losses(probe, dev, every, names, weights)
        better = [n for n, s in scores.items() if n not in best or float(s) < best[n][0]]
        state = {key: value.detach().clone() for key, value in probe.state_dict().items()}
        best |= {name: (float(scores[name]), state) for name in better}
        since = 0 if better else since + 1
        if since >= _PATIENCE:
            break
    return {
        name: Fitted(_with(probe, state), names.index(name), loss)
        for name, (loss, state) in best.items()
    }


def _with(probe: Attentive, state: Mapping[str, Tensor]) -> Attentive:
    with torch.random.fork_rng(devices=[]):
        dim, names = probe.keys.in_features - 3, len(probe.by_name)
        copy = Attentive(dim, names, probe.outputs, probe.width)
    copy.load_state_dict(state)
    return copy.eval()


def _losses(
    probe: Attentive,
    asked: Asked,
    rows: Tensor,
    names: Sequence[str],
    weights: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Squared error or cross-entropy of each target over the rows at which it holds."""
    said = probe(asked.places_MSD[asked.moment_R[rows]], asked.name_Rk[rows])
    losses = {}
    for n, name in enumerate(names):
        truth = asked.truth[name][rows]
        mine = said[n]
        if truth.is_floating_point():
            holds = ~truth.isnan().any(1)
            apart = torch.where(holds[:, None], mine - truth.nan_to_num(0.0), 0.0)
            losses[name] = apart.square().sum() / (holds.sum().clamp(min=1) * truth.shape[1])
        else:
            holds = truth >= 0
            nats = F.cross_entropy(mine, truth, weights[name], ignore_index=-1, reduction="sum")
            losses[name] = nats / holds.sum().clamp(min=1)
    return losses
