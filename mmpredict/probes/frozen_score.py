"""One target, decoded from one source: which layer, which probe, how good. In: features and labels.
Out: scores row by row on the test scenes, whose mean is the score.

The layer and the pooling are chosen on the dev scenes by linear probes; the test scenes are asked
once. R2 is told row by row, as 1 - squared error / mean squared distance from the train mean, and
balanced accuracy as hits, weighted by how rare the class is: so every score is a mean over rows,
and two scores can be compared pair by pair.

Shapes: R rows, C columns, X columns of a design.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmpredict.probes.features import Features
from mmpredict.probes.readouts import Design, Linear, logistic, ridge
from mmpredict.probes.targets import Table, Target
from mmpredict.schema import UserError

FEWEST = 10  # train rows of a class; rarer ones are left out
FEWEST_ROWS = 16  # of train, dev and test rows of a target


@dataclass(frozen=True)
class Task:
    """The rows at which a target holds, and what is right there.

    Args:
        held: per part, numbers of the rows of its table at which the target holds.
        rows: those of them that are asked: of classes, the common ones.
        truth: per part, of `rows`: (R, C) float32, or (R,) int64 below len(classes).
        classes: those that are left.
        left_out: what was left out, for the report.
    """

    target: Target
    held: Mapping[str, Tensor]
    rows: Mapping[str, Tensor]
    truth: Mapping[str, Tensor]
    classes: tuple[str, ...] = ()
    left_out: str = ""

    @property
    def is_class(self) -> bool:
        return self.target.kind == "class"

    @property
    def width(self) -> int:
        return len(self.classes) if self.is_class else self.truth["train"].shape[1]

    def columns(self, part: str) -> Tensor:
        """(H, C) float32 at the rows of `held`: values, or one column per class, all 0 where the
        class is rare; so that targets with the same rows share one ridge solution."""
        truth = self.truth[part]
        if not self.is_class:
            return truth
        columns = torch.zeros(len(self.held[part]), self.width)
        asked = torch.isin(self.held[part], self.rows[part])
        columns[asked] = torch.nn.functional.one_hot(truth, self.width).float()
        return columns

    @property
    def chance(self) -> float:
        """Score of a guess: the mean, or any class."""
        return 1 / len(torch.unique(self.truth["test"])) if self.is_class else 0.0


def make_task(target: Target, tables: Mapping[str, Table]) -> Task | str:
    """The task, or why there is none."""
    rows = {part: table.valid(target).nonzero()[:, 0] for part, table in tables.items()}
    truth = {part: tables[part].labels[target.name][rows[part]] for part in tables}
    if target.kind == "value":
        task = Task(target, rows, rows, truth)
    else:
        task = _with_common_classes(target, rows, truth)
    few = {part: len(r) for part, r in task.rows.items() if len(r) < FEWEST_ROWS and part != "comp"}
    if few:
        return f"only {', '.join(f'{n} {part} rows' for part, n in few.items())}; take more scenes"
    return task if not task.is_class or task.width > 1 else "only one class is common enough"


def _with_common_classes(
    target: Target, rows: Mapping[str, Tensor], truth: Mapping[str, Tensor]
) -> Task:
    counts = torch.bincount(truth["train"], minlength=len(target.classes))
    common = (counts >= FEWEST).nonzero()[:, 0]
    number = torch.full((len(target.classes),), -1)
    number[common] = torch.arange(len(common))
    kept = {part: number[t] >= 0 for part, t in truth.items()}
    lost = sum(int((~keep).sum()) for keep in kept.values())
    rare = [target.classes[c] for c in (counts < FEWEST).nonzero()[:, 0].tolist()]
    return Task(
        target,
        rows,
        {part: rows[part][keep] for part, keep in kept.items()},
        {part: number[truth[part]][keep] for part, keep in kept.items()},
        tuple(target.classes[c] for c in common.tolist()),
        f"{lost} rows of rare classes ({', '.join(rare)})" if lost else "",
    )


@dataclass(frozen=True)
class Source:
    """Something to decode from.

    Args:
        features: per part.
        tables: per part; they say which moment a row is about.
        names_KD: vectors of the names; None where names do not matter.
    """

    name: str
    features: Mapping[str, Features]
    tables: Mapping[str, Table]
    names_KD: Tensor | None

    @property
    def layers(self) -> tuple[str, ...]:
        return self.features["train"].layers

    def design(self, layer: int, pooling: str, target: Target) -> tuple[Design, dict[str, Tensor]]:
        """How features become columns for this kind of target, and the pooled features."""
        pooled = {
            part: features.pooled(layer, pooling, target.reads)
            for part, features in self.features.items()
        }
        names = self.names_KD if target.of == "object" else None
        return Design.fit(pooled["train"], names), pooled

    def rows(self, design: Design, pooled: Mapping[str, Tensor], part: str, rows: Tensor) -> Tensor:
        """(R, X) of these rows of a part's table."""
        table = self.tables[part]
        return design.rows(pooled[part], table.moment_R[rows], table.name_R[rows])


@dataclass(frozen=True)
class Choice:
    """Where a target is best decoded on the dev scenes, by linear probes.

    Args:
        dev: R2 there (of classes: of their one-hot columns).
        by_layer: the best dev R2 of each layer.
    """

    layer: int
    pooling: str
    dev: float
    by_layer: tuple[float, ...]


def choose(source: Source, tasks: Sequence[Task]) -> dict[str, Choice]:
    """The best layer and pooling for each task. Tasks with the same rows share one solution."""
    groups: dict[tuple, list[Task]] = {}
    for task in tasks:
        rows = tuple(tuple(task.held[part].tolist()) for part in ("train", "dev"))
        groups.setdefault((task.target.of, task.target.reads, rows), []).append(task)
    found: dict[str, list[tuple[float, int, str]]] = {task.target.name: [] for task in tasks}
    for layer in range(len(source.layers)):
        for pooling in source.features["train"].poolings:
            designs: dict[tuple, tuple] = {}
            for (of, reads, _), group in groups.items():
                if (of, reads) not in designs:
                    designs[of, reads] = source.design(layer, pooling, group[0].target)
                fitted = _ridge(source, *designs[of, reads], group)
                for task, r2 in zip(group, fitted.dev, strict=True):
                    found[task.target.name].append((r2, layer, pooling))
    chosen = {}
    for name, tries in found.items():
        r2, layer, pooling = max(tries, key=lambda t: (t[0], -t[1]))
        by_layer = tuple(max(t[0] for t in tries if t[1] == n) for n in range(len(source.layers)))
        chosen[name] = Choice(layer, pooling, r2, by_layer)
    return chosen


def _ridge(
    source: Source, design: Design, pooled: Mapping[str, Tensor], group: Sequence[Task]
) -> Linear:
    """One ridge for tasks with the same rows."""
    sides = [
        (
            source.rows(design, pooled, part, group[0].held[part]),
            torch.cat([task.columns(part) for task in group], 1),
        )
        for part in ("train", "dev")
    ]
    return ridge(*sides, [task.width for task in group])


@dataclass(frozen=True)
class Scored:
    """How a task was answered.

    Args:
        rows: per part ("test", "comp"), (R,) float64 whose mean is the score.
        said: per part, the predicted values or classes.
        fitted: the probe, where it is linear.
    """

    rows: Mapping[str, Tensor]
    said: Mapping[str, Tensor]
    fitted: Linear | None = None

    @property
    def score(self) -> float:
        return float(self.rows["test"].mean())


def fit_linear(source: Source, task: Task, choice: Choice) -> Scored:
    """Ridge or logistic regression on the train scenes, its penalty by the dev scenes."""
    design, pooled = source.design(choice.layer, choice.pooling, task.target)
    return fit_design(source, task, design, pooled)


def fit_design(
    source: Source, task: Task, design: Design, pooled: Mapping[str, Tensor], upto: int = 0
) -> Scored:
    """The same, of a given design, and of the first `upto` train rows if that is not 0."""
    upto = upto or len(task.rows["train"])
    truth = task.truth["train"][:upto]
    train = source.rows(design, pooled, "train", task.rows["train"][:upto])
    dev = source.rows(design, pooled, "dev", task.rows["dev"])
    if task.is_class:
        fitted = logistic((train, truth), (dev, task.truth["dev"]), task.width)
    else:
        fitted = ridge((train, truth), (dev, task.truth["dev"]))
    parts = [part for part in ("test", "comp") if part in pooled and len(task.rows[part])]
    said = {part: fitted(source.rows(design, pooled, part, task.rows[part])) for part in parts}
    return scored(task, said, fitted)


def scored(task: Task, said: Mapping[str, Tensor], fitted: Linear | None = None) -> Scored:
    """Judge columns that were said."""
    rows, final = {}, {}
    for part, columns in said.items():
        truth = task.truth[part]
        if task.is_class:
            final[part] = columns.argmax(-1)
            rows[part] = weighted_hits(final[part], truth)
        else:
            final[part] = columns
            rows[part] = explained(columns, truth, task.truth["train"].mean(0))
    return Scored(rows, final, fitted)


def explained(said_RC: Tensor, truth_RC: Tensor, train_mean_C: Tensor) -> Tensor:
    """(R,) float64: their mean is R2 against the train mean, the mean over columns."""
    truth = truth_RC.double()
    spread_C = (truth - train_mean_C).square().mean(0).clamp(min=1e-12)
    return (1 - (said_RC - truth).square() / spread_C).mean(1)


def weighted_hits(said_R: Tensor, truth_R: Tensor) -> Tensor:
    """(R,) float64: their mean is the balanced accuracy over the classes that occur."""
    counts = torch.bincount(truth_R).double()
    occurring = int((counts > 0).sum())
    return (said_R == truth_R).double() * len(truth_R) / (occurring * counts[truth_R])


def measures(task: Task, scored_: Scored, part: str = "test") -> dict[str, float]:
    """Further numbers, in the world's own units, each beside that of the train mean (or of the
    commonest class)."""
    said, truth, train = scored_.said[part], task.truth[part], task.truth["train"]
    if task.is_class:
        commonest = int(torch.bincount(train).argmax())
        return {
            "accuracy": float((said == truth).double().mean()),
            "accuracy_of_majority": float((truth == commonest).double().mean()),
            "macro_f1": macro_f1(said, truth),
        }
    if task.target.name == "heading":
        mean = train.mean(0).expand_as(truth)
        return {
            "angular_error_deg": angular_error(said, truth),
            "angular_error_of_mean_deg": angular_error(mean, truth),
        }
    apart = (said - truth).norm(dim=1) if truth.shape[1] > 1 else (said - truth).abs()[:, 0]
    from_mean = truth - train.mean(0)
    found = {"mae": float(apart.mean()), "mae_of_mean": float(from_mean.norm(dim=1).mean())}
    if task.target.name == "z":
        clipped = said.clamp(min=1e-3)
        ratio = torch.maximum(clipped / truth, truth / clipped)
        found["d1"] = float((ratio < 1.25).double().mean())
        found["abs_rel"] = float(((said - truth).abs() / truth).mean())
    return found


def angular_error(said_R2: Tensor, truth_R2: Tensor) -> float:
    """Mean angle in degrees between directions (sine, cosine)."""
    apart = torch.atan2(*said_R2.double().unbind(1)) - torch.atan2(*truth_R2.double().unbind(1))
    return float(torch.atan2(apart.sin(), apart.cos()).abs().mean()) * 180 / math.pi


def macro_f1(said_R: Tensor, truth_R: Tensor) -> float:
    """Mean F1 over the classes that occur."""
    scores = []
    for c in torch.unique(truth_R).tolist():
        right = int(((said_R == c) & (truth_R == c)).sum())
        scores.append(2 * right / (int((said_R == c).sum()) + int((truth_R == c).sum())))
    return sum(scores) / len(scores)


def with_truth(task: Task, truth: Mapping[str, Tensor]) -> Task:
    """The same rows with other labels."""
    return replace(task, truth=truth)


def check_streams(targets: Sequence[Target], streams: Sequence[str]) -> None:
    """Raise UserError where a target needs a stream that the model lacks."""
    lacking = [t.name for t in targets if t.reads not in streams]
    if lacking:
        possible = [t.name for t in targets if t.reads in streams]
        raise UserError(
            f"targets {', '.join(lacking)} are read from pictures or sound that this model does "
            f"not take (it has {', '.join(streams)}); "
            + (f"ask for {', '.join(possible)}" if possible else "nothing can be probed here")
        )
