"""What one source says of all targets. In: a source and tasks. Out: an Answer per target, and of
the model itself the closer study of each: control task, dealt-out labels, curves.

Shapes: R rows, C columns, k numbers of a name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmpredict.model import Predictor
from mmpredict.probes.controls import control_labels, permuted_labels
from mmpredict.probes.frozen_score import (
    Choice,
    Scored,
    Source,
    Task,
    choose,
    fit_design,
    fit_linear,
    scored,
    with_truth,
)
from mmpredict.probes.mdl import Codelength, binned, num_bins, online_codelength
from mmpredict.probes.readouts import NAME_RANK, RANKS, bottleneck, whitened
from mmpredict.probes.readouts_attentive import (
    Asked,
    count_parameters,
    fit_attentive,
    head_width,
    standardised,
)

SAMPLES = (32, 128, 512, 2048)


@dataclass(frozen=True)
class Answer:
    """How one target is decoded from one source.

    Args:
        choice: layer and pooling of the linear probe.
        linear, attentive: scores; None where the attentive probe is left out.
        layer: of the attentive probe.
        attentive_dev: its loss on the dev rows.
        code: how long the train labels are, told with the source's features.
    """

    choice: Choice
    linear: Scored
    attentive: Scored | None = None
    layer: int = 0
    attentive_dev: float = 0.0
    code: Codelength | None = None


def attentive_width(predictor: Predictor, tasks: Sequence[Task]) -> int:
    """Width of a head of the attentive probe, for all sources; 0: the model is too small for one of
    at most 1 % of its size."""
    backbone = count_parameters(predictor.trunk)
    return head_width(predictor.config.dim, NAME_RANK, [task.width for task in tasks], backbone)


def answer(
    source: Source, tasks: Sequence[Task], *, width: int, seed: int = 0, code: bool = False
) -> dict[str, Answer]:
    """All targets, by name.

    Args:
        width: of the attentive probe's heads; 0 leaves it out.
        code: also tell the labels' code length.
    """
    choices = choose(source, tasks)
    layer = busiest_layer([choices[task.target.name] for task in tasks])
    looked = attend(source, tasks, layer, width=width, seed=seed) if width else {}
    answers = {}
    for task in tasks:
        name = task.target.name
        attentive, dev = looked.get(name, (None, 0.0))
        answers[name] = Answer(
            choices[name],
            fit_linear(source, task, choices[name]),
            attentive,
            layer,
            dev,
            codelength(source, task, choices[name], seed) if code else None,
        )
    return answers


def answer_at(
    source: Source, tasks: Sequence[Task], like: Mapping[str, Answer], *, width: int, seed: int = 0
) -> dict[str, Answer]:
    """The same with layers and poolings that were chosen for another source."""
    layer = next(iter(like.values())).layer
    looked = attend(source, tasks, layer, width=width, seed=seed) if width else {}
    answers = {}
    for task in tasks:
        name = task.target.name
        choice = like[name].choice
        attentive, dev = looked.get(name, (None, 0.0))
        answers[name] = Answer(choice, fit_linear(source, task, choice), attentive, layer, dev)
    return answers


def busiest_layer(choices: Sequence[Choice]) -> int:
    """The layer from which most is decoded on the dev rows, all targets together."""
    table = torch.tensor([choice.by_layer for choice in choices]).clamp(min=0)
    return int(table.mean(0).argmax())


def attend(
    source: Source, tasks: Sequence[Task], layer: int, *, width: int, seed: int
) -> dict[str, tuple[Scored, float]]:
    """The attentive probe of all targets at one layer: scores, and losses on the dev rows."""
    like = source.features["train"].values_MSD[layer]
    asked = {part: _asked(source, tasks, part, layer, like) for part in source.features}
    outputs = {task.target.name: task.width for task in tasks}
    probes = fit_attentive(asked["train"], asked["dev"], outputs, width=width, seed=seed)
    found = {}
    for task in tasks:
        probe = probes[task.target.name]
        said = {
            part: probe(asked[part], task.rows[part])
            for part in ("test", "comp")
            if part in asked and len(task.rows[part])
        }
        if not task.is_class:
            mean_C, std_C = _units(task)
            said = {part: columns * std_C + mean_C for part, columns in said.items()}
        found[task.target.name] = scored(task, said), probe.dev
    return found


def _units(task: Task) -> tuple[Tensor, Tensor]:
    train = task.truth["train"]
    return train.mean(0), train.std(0).clamp(min=1e-6)


def _asked(source: Source, tasks: Sequence[Task], part: str, layer: int, like_MSD: Tensor) -> Asked:
    table, features = source.tables[part], source.features[part]
    places_MSD = standardised(features.values_MSD[layer], like_MSD, features.places_S3)
    numbers = torch.zeros(1, NAME_RANK)  # of no name
    if source.names_KD is not None:
        names = whitened(source.names_KD, NAME_RANK)
        filled = torch.zeros(len(names), NAME_RANK)
        filled[:, : names.shape[1]] = names
        numbers = torch.cat([filled, numbers])  # row -1 is no name
    truth = {}
    for task in tasks:
        right, R = task.truth[part], len(table)
        if task.is_class:
            whole = torch.full((R,), -1)
            whole[task.rows[part]] = right
        else:
            mean_C, std_C = _units(task)
            whole = torch.full((R, right.shape[1]), float("nan"))
            whole[task.rows[part]] = (right - mean_C) / std_C
        truth[task.target.name] = whole
    return Asked(places_MSD, table.moment_R, numbers[table.name_R], truth)


def codelength(source: Source, task: Task, choice: Choice, seed: int) -> Codelength:
    """Of the train labels at the chosen layer; values are told as one of 8 bins."""
    design, pooled = source.design(choice.layer, choice.pooling, task.target)
    x_RX = source.rows(design, pooled, "train", task.rows["train"])
    labels = task.truth["train"]
    labels = labels if task.is_class else binned(labels, labels)
    scenes_R = source.tables["train"].scene_R[task.rows["train"]]
    return online_codelength(x_RX, labels, scenes_R, num_bins(labels), seed=seed)


@dataclass(frozen=True)
class Study:
    """A closer look at how the model's features are decoded.

    Args:
        control: the control task; per readout.
        permuted: labels dealt out anew (linear).
        ranks: score by rank of the linear probe.
        samples: score by number of labels.
    """

    control: Mapping[str, Scored]
    permuted: Scored
    ranks: Mapping[int, float]
    samples: Mapping[int, float]


def control_task(source: Source, task: Task, seed: int) -> Task:
    """The task with labels that are a random function of colour, shape and place."""
    types = {part: source.tables[part].type_R[rows] for part, rows in task.rows.items()}
    return with_truth(task, control_labels(task.truth, types, seed=seed))


def study(
    source: Source, tasks: Sequence[Task], answers: Mapping[str, Answer], *, width: int, seed: int
) -> dict[str, Study]:
    """Every target, at its chosen layer."""
    controls = [control_task(source, task, seed + n) for n, task in enumerate(tasks)]
    layer = next(iter(answers.values())).layer
    looked = attend(source, controls, layer, width=width, seed=seed) if width else {}
    return {
        task.target.name: _study(source, task, control, answers[task.target.name], looked, seed)
        for task, control in zip(tasks, controls, strict=True)
    }


def _study(  # noqa: PLR0913 - a task, its control, and how it was answered
    source: Source,
    task: Task,
    control: Task,
    answered: Answer,
    looked: Mapping[str, tuple[Scored, float]],
    seed: int,
) -> Study:
    choice = answered.choice
    design, pooled = source.design(choice.layer, choice.pooling, task.target)
    controls = {"linear": fit_design(source, control, design, pooled)}
    if task.target.name in looked:
        controls["attentive"] = looked[task.target.name][0]
    permuted = with_truth(task, permuted_labels(task.truth, seed=seed))
    full = design.basis_FQ.shape[1]
    ranks = {
        rank: fit_design(
            source, task, bottleneck(design, answered.linear.fitted, rank), pooled
        ).score
        for rank in RANKS
        if rank < full
    }
    labels = len(task.rows["train"])
    samples = {
        count: fit_design(source, task, design, pooled, upto=count).score
        for count in SAMPLES
        if count < labels
    }
    return Study(
        controls,
        fit_design(source, permuted, design, pooled),
        {**ranks, full: answered.linear.score},
        {**samples, labels: answered.linear.score},
    )
