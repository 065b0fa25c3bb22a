"""Readouts of published benchmarks: trained on the clips that a benchmark gives for training, asked
of its test clips. In: a `Bench` with labels, and a frozen checkpoint. Out: the published metric, of
the model and of the controls beside it.

Features are those of `item_readout`, at the end of the clip: every layer, its last position alone
or beside the means of the last frame and of the latest sound. Which of them and which penalty is
chosen on a fifth of the training clips. One class of several: an L2 logistic regression, then
trained on all training clips. Several classes at once: least squares on 0 and 1, as the published
metric (mAP) asks for an order of the clips only.

Shapes: N training clips, M test clips, D features, X columns, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmpredict.model import Predictor
from mmpredict.probes.controls import untrained
from mmpredict.probes.evidence import EvidenceError, Footage, Shown
from mmpredict.probes.external.bench import Bench, BenchError, Readout
from mmpredict.probes.item_readout import ModelReading, RawReading, Reading
from mmpredict.probes.items import Evidence
from mmpredict.probes.readouts import Design, logistic, ridge
from mmpredict.tokens import Codecs

HELD_OUT = 5  # every fifth training clip of a class chooses
LEAST = 4  # training clips of two classes at least

Scores = dict[str, list[float]]  # test clip -> a number per class
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ReadOut:
    """What readouts said.

    Args:
        metric: who was read -> the published metric.
        scores: of the model, test clip -> a number per class.
        faults: clips that could not be shown, and why. Test clips among them count as wrong.
    """

    metric: dict[str, dict[str, float]]
    scores: Scores
    faults: dict[str, str]


def ask_bench_readout(
    predictor: Predictor,
    codecs: Codecs,
    bench: Bench,
    variant: str,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> ReadOut:
    """Train and ask.

    Args:
        predictor: frozen, in evaluation mode.
        codecs: its encoders.
        bench: with labels for training.
        variant: what of the clips is shown.
        seed: of the untrained control and of permuted labels.
        progress: told how many clips are read.

    Raises:
        BenchError: the authors forbid it, there are no labels, or too few training clips.
    """
    labels = bench.labels_for_training()
    footage = Footage(bench.suite.sources, codecs, [variant])
    shown, faults = _all_shown(footage, labels, variant, progress)
    labels = _without(labels, faults)
    _check(bench.name, labels)
    readers: dict[str, Reading] = {
        "model": ModelReading(predictor, codecs, footage),
        "untrained": ModelReading(untrained(predictor, seed), codecs, footage),
        "raw input": RawReading(codecs, footage),
    }
    names = list(labels.labels)
    metric: dict[str, dict[str, float]] = {}
    for who, reader in readers.items():
        values = reader.features([(shown[name], "") for name in names])
        features = dict(zip(names, zip(*values, strict=True), strict=True))
        scores = fitted_scores(bench.name, labels, features)
        metric[who] = bench.score_readout(scores, faults)
        if who == "model":
            said = scores
            shuffled = fitted_scores(bench.name, _permuted(labels, seed), features)
            metric["permuted labels"] = bench.score_readout(shuffled, faults)
    metric["majority"] = bench.score_readout(_shares(labels), faults)
    return ReadOut(metric, said, faults)


def fitted_scores(name: str, labels: Readout, features: Mapping[str, Sequence[Tensor]]) -> Scores:
    """Train on the training clips of each group, score its test clips.

    Args:
        name: of the benchmark, for messages.
        labels: of training and test clips.
        features: of every clip, its candidates (D,): the same number for each.

    Raises:
        BenchError: features are missing, or a group has too few training clips.
    """
    lacks = sorted(set(labels.labels) - set(features))
    if lacks:
        raise BenchError(f"{name}: {len(lacks)} clips have no features, first {lacks[0]!r}")
    _check(name, labels)
    found: Scores = {}
    for train, test in _groups(labels).values():
        truth_NC = _truth(labels, train)
        held_N = _held_out(truth_NC)
        best: tuple[float, Tensor] | None = None
        for candidate in range(len(features[train[0]])):
            x_ND, asked_MD = (
                torch.stack([features[n][candidate] for n in part]).float()
                for part in (train, test)
            )
            fit = _several if labels.several else _one_of
            loss, scores_MC = fit(x_ND, truth_NC, held_N, asked_MD)
            if best is None or loss < best[0]:
                best = loss, scores_MC
        found |= dict(zip(test, best[1].tolist(), strict=True))
    return found


def _one_of(
    x_ND: Tensor, truth_NC: Tensor, held_N: Tensor, asked_MD: Tensor
) -> tuple[float, Tensor]:
    """Log loss on the clips that choose, and (M, C) logits."""
    labels_N, classes = truth_NC.argmax(1), truth_NC.shape[1]
    x_NX, asked_MX = _columns(x_ND, asked_MD)
    fitted = logistic(
        (x_NX[~held_N], labels_N[~held_N]),
        (x_NX[held_N], labels_N[held_N]),
        classes,
        balanced=False,
    )
    whole = logistic((x_NX, labels_N), None, classes, l2s=fitted.chosen, balanced=False)
    return fitted.dev[0], whole(asked_MX)


def _several(
    x_ND: Tensor, truth_NC: Tensor, held_N: Tensor, asked_MD: Tensor
) -> tuple[float, Tensor]:
    """Less R2 on the clips that choose, and (M, C) numbers."""
    x_NX, asked_MX = _columns(x_ND, asked_MD)
    fitted = ridge((x_NX[~held_N], truth_NC[~held_N]), (x_NX[held_N], truth_NC[held_N]))
    return -fitted.dev[0], fitted(asked_MX)


def _columns(x_ND: Tensor, asked_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Standardised, and of very many features the directions of the largest variance."""
    design = Design.fit(x_ND, None)
    none = torch.zeros(0)
    train, asked = (design.rows(x, torch.arange(len(x)), none) for x in (x_ND, asked_MD))
    return train, asked


def _check(name: str, labels: Readout) -> None:
    """Raise BenchError where too few clips are there to learn from, or none to ask."""
    for group, (train, test) in _groups(labels).items():
        counts = _truth(labels, train).sum(0) if train else torch.zeros(labels.classes)
        few = counts.topk(2).values[-1] < LEAST if not labels.several else len(train) < 2 * LEAST
        if few:
            kind = f"{2 * LEAST} or more" if labels.several else f"{LEAST} of each outcome"
            raise BenchError(
                f"{name}: {group or 'the list'} has {len(train)} readout clips, needs {kind}"
                + (f": {labels.remedy}" if labels.remedy else "")
            )
        if not test:
            raise BenchError(f"{name}: {group or 'the list'} has no test clips to ask")


def _groups(labels: Readout) -> dict[str, tuple[list[str], list[str]]]:
    """Training and test clips of what is trained separately."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for name in labels.labels:
        parts = found.setdefault(labels.group.get(name, ""), ([], []))
        parts[labels.split[name] == "test"].append(name)
    return found


def _truth(labels: Readout, names: Sequence[str]) -> Tensor:
    """(N, C) 1 for each class that a clip shows."""
    truth_NC = torch.zeros(len(names), labels.classes)
    for row, name in enumerate(names):
        truth_NC[row, list(labels.labels[name])] = 1
    return truth_NC


def _held_out(truth_NC: Tensor) -> Tensor:
    """(N,) every fifth clip of each class; of clips with several classes, every fifth clip."""
    several = bool((truth_NC.sum(1) > 1).any())
    held_N = torch.zeros(len(truth_NC), dtype=torch.bool)
    for kind_N in [torch.ones(len(truth_NC))] if several else truth_NC.T:
        held_N[kind_N.nonzero()[::HELD_OUT]] = True
    return held_N


def _permuted(labels: Readout, seed: int) -> Readout:
    """Training labels dealt out anew within each group: what is then read out has leaked."""
    generator = torch.Generator().manual_seed(seed)
    dealt = dict(labels.labels)
    for train, _ in _groups(labels).values():
        order = torch.randperm(len(train), generator=generator).tolist()
        dealt |= {name: labels.labels[train[k]] for name, k in zip(train, order, strict=True)}
    return labels.with_labels(dealt)


def _shares(labels: Readout) -> Scores:
    """Each class's share of the training clips, for every test clip alike."""
    return {
        name: _truth(labels, train).mean(0).tolist()
        for train, test in _groups(labels).values()
        for name in test
    }


def _without(labels: Readout, faults: Mapping[str, str]) -> Readout:
    """Only clips that can be shown."""
    return labels.with_labels({n: row for n, row in labels.labels.items() if n not in faults})


def _all_shown(
    footage: Footage, labels: Readout, variant: str, progress: Progress | None
) -> tuple[dict[str, Shown], dict[str, str]]:
    shown: dict[str, Shown] = {}
    faults: dict[str, str] = {}
    for number, name in enumerate(labels.labels, 1):
        try:
            shown[name] = footage.shown(Evidence(name), variant)
        except EvidenceError as error:
            faults[name] = str(error)
        if progress is not None:
            progress(number, len(labels.labels))
    return shown, faults
