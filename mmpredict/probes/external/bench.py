"""What every adapter gives back. In: a published benchmark as its authors lay it out on disk. Out:
items of this room's contract, the published metric as a function of numbers, and exports.

Answers are the numbers that a scorer gave for each item (see `grading`): one per choice, one
surprise per clip of a set, four per minimal pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmpredict.media import MediaError, probe
from mmpredict.probes.grading import grade, mean_relative_accuracy
from mmpredict.probes.items import Files, Item, Suite
from mmpredict.schema import UserError

Answers = Mapping[str, Sequence[float]]  # item id -> numbers
Scores = Mapping[str, Sequence[float]]  # source of a readout -> a number per class
Metric = Callable[[Sequence[Item], Answers], dict[str, float]]


class BenchError(UserError):
    """A benchmark's folder or file is not as published; says which, what is there and what is
    expected."""


@dataclass(frozen=True)
class Readout:
    """Labels for a probe that is trained on frozen features.

    Args:
        labels: classes of each source by its name; several where a clip shows several actions.
        split: "train" or "test" of each source.
        classes: how many there are.
        group: what is trained separately (the scenarios of Physion); "" where nothing is.
        several: whether a source may show several classes at once.
        remedy: where more training clips are to be had.
    """

    labels: Mapping[str, tuple[int, ...]]
    split: Mapping[str, str]
    classes: int
    group: Mapping[str, str] = field(default_factory=dict)
    several: bool = False
    remedy: str = ""

    def with_labels(self, labels: Mapping[str, tuple[int, ...]]) -> Readout:
        """The same of other labels, or of fewer sources."""
        return replace(self, labels=labels)


@dataclass(frozen=True)
class Continuation:
    """A video to be generated.

    Args:
        file: name under which it is handed in.
        source: what is given, a name in the suite's sources.
        seconds: length of what is generated.
        prompt: description, for models that read one.
        fps: frames per second at which it is handed in.
    """

    file: str
    source: str
    seconds: float
    prompt: str = ""
    fps: float = 30.0


@dataclass(frozen=True)
class Bench:
    """A benchmark that was found in a folder.

    Args:
        name: of `BENCHES`.
        suite: items with known answers.
        metric: the published metric, a pure function of items and answers.
        faults: item ids whose files are missing or unreadable, and why. They count as wrong.
        notes: what was left out, with how many, and other surprises.
        unlabelled: items of a test set whose marks are placeholders; they can be asked and
            exported, and are never graded.
        exports: by name, writers of what the authors' own tools or servers read.
        readout: labels for frozen probes, or None.
        readout_metric: the published metric of a readout's scores of the test sources by class.
        training_refused: why no probe may be trained on these data; "" where one may.
        continuations: videos to generate.
        judge: score of a folder of generated videos.
    """

    name: str
    suite: Suite
    metric: Metric
    faults: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unlabelled: Suite | None = None
    exports: Mapping[str, Callable[[Bench, Answers, Path], list[Path]]] = field(
        default_factory=dict
    )
    readout: Readout | None = None
    readout_metric: Callable[[Bench, Scores], dict[str, float]] | None = None
    training_refused: str = ""
    continuations: tuple[Continuation, ...] = ()
    judge: Callable[[Path], dict[str, float]] | None = None

    @property
    def asked(self) -> tuple[Item, ...]:
        """Items whose files are there: those to ask."""
        return tuple(item for item in self.suite.items if item.id not in self.faults)

    @property
    def handed_in(self) -> Suite:
        """What an export holds the answers to: items without labels, if the folder has any."""
        secret = self.unlabelled
        return secret if secret is not None and secret.items else self.suite

    def score(self, answers: Answers, faults: Mapping[str, str] | None = None) -> dict[str, float]:
        """The published metric, with `items` and `data_errors` beside it.

        Args:
            answers: of every item that has no fault.
            faults: further items whose files turned out to be unreadable.

        Raises:
            BenchError: answers are missing, unknown, too few or not finite.
        """
        faults = {**self.faults, **(faults or {})}
        items = self.suite.items
        numbers = _completed(self.name, items, answers, faults)
        broken = sum(item.id in faults for item in items)
        return {**self.metric(items, numbers), "items": len(items), "data_errors": broken}

    def score_rows(
        self, rows: Iterable[Mapping[str, Any]], *, variant: str = "", rule: str = ""
    ) -> dict[str, float]:
        """The published metric of a run's rows (`run.ProbeRun.rows`, or lines of per_item.jsonl).

        Args:
            rows: with id, variant, numbers by rule, rule and error; an error counts as wrong.
            variant: which one; may be "" where there is only one.
            rule: which rule's numbers; "" for the registered one.

        Raises:
            BenchError: rows of several variants, or no such rule.
        """
        rows = [row for row in rows if variant in ("", row["variant"])]
        variants = {row["variant"] for row in rows}
        if len(variants) != 1:
            raise BenchError(
                f"{self.name} is scored one variant at a time; {variant or 'all'} has "
                f"{', '.join(sorted(variants)) or 'no rows'}"
            )
        faults = {row["id"]: row["error"] for row in rows if row["error"]}
        answers = {}
        for row in rows:
            if not row["error"]:
                name = rule or row["rule"]
                if name not in row["numbers"]:
                    raise BenchError(
                        f"{row['id']}: no rule {name!r}, has {', '.join(row['numbers'])}"
                    )
                answers[row["id"]] = row["numbers"][name]
        return self.score(answers, faults)

    def export(self, kind: str, answers: Answers, out: str | Path) -> list[Path]:
        """Write answers in the form that the authors read.

        Raises:
            BenchError: there is no such export, or answers are missing.
        """
        if kind not in self.exports:
            known = ", ".join(self.exports) or "none"
            raise BenchError(f"{self.name} has no export {kind!r}; there is {known}")
        Path(out).mkdir(parents=True, exist_ok=True)
        return self.exports[kind](self, answers, Path(out))

    def labels_for_training(self) -> Readout:
        """What a probe on frozen features is trained on.

        Raises:
            BenchError: the authors forbid it, or there are no labels for it.
        """
        if self.training_refused:
            raise BenchError(f"{self.name}: {self.training_refused}")
        if self.readout is None:
            raise BenchError(f"{self.name} has no labels for a probe; it is asked zero-shot")
        return self.readout

    def score_readout(self, scores: Scores, faults: Mapping[str, str]) -> dict[str, float]:
        """The published metric of a trained readout.

        Args:
            scores: of the test sources.
            faults: sources that could not be shown; those of the test count as wrong.
        """
        labels = self.labels_for_training()
        values = [v for row in scores.values() for v in row] or [0.0]
        low, high = min(values) - 1, max(values) + 1
        lost = [n for n, part in labels.split.items() if part == "test" and n in faults]
        wrong = {
            name: [low if k in labels.labels[name] else high for k in range(labels.classes)]
            for name in lost
        }
        found = self.readout_metric(self, {**scores, **wrong})
        return {**found, "data_errors": found.get("data_errors", 0) + len(lost)}

    def examined(self) -> Bench:
        """With the faults that a glance at every file's header shows."""
        bad: dict[str, str] = {}
        for name, source in self.suite.sources.items():
            for path in files_of(source):
                try:
                    probe(path)
                except (MediaError, OSError) as error:
                    bad[name] = str(error)
        return replace(self, faults={**faults_of(self.suite.items, bad), **self.faults})


def files_of(source: Files) -> tuple[str, ...]:
    """All files of a source."""
    return tuple(path for path in (source.video, source.audio, *source.images) if path)


def missing_files(sources: Mapping[str, Files]) -> dict[str, str]:
    """Sources of which a file is not there or empty, and which."""
    bad = {}
    for name, source in sources.items():
        for path in files_of(source):
            if not Path(path).is_file():
                bad[name] = f"{path} is missing"
            elif not Path(path).stat().st_size:
                bad[name] = f"{path} is empty"
    return bad


def faults_of(items: Iterable[Item], bad: Mapping[str, str]) -> dict[str, str]:
    """Items that show a bad source, and what is wrong with it."""
    return {
        item.id: bad[evidence.source]
        for item in items
        for evidence in item.evidence
        if evidence.source in bad
    }


def asked_answers(items: Sequence[Item], answers: Answers, name: str) -> None:
    """Raise BenchError where an export lacks answers."""
    lacks = [item.id for item in items if item.id not in answers]
    if lacks:
        raise BenchError(
            f"{name}: the export needs all {len(items)} items, {len(lacks)} have no answer, "
            f"the first is {lacks[0]!r}"
        )


def grades(items: Sequence[Item], answers: Answers) -> dict[str, float]:
    """How right each answer is, by item id; ties count as a guess."""
    return {item.id: grade(item, answers[item.id]).score for item in items}


def mean_of(values: Iterable[float]) -> float:
    """NaN of none, so that an empty table cell is visible and divides nothing by zero."""
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


def means_by(
    items: Sequence[Item], values: Mapping[str, float], key: Callable[[Item], str]
) -> dict[str, float]:
    """Mean of the items' values for each key, in order of appearance; a key of "" is left out."""
    found: dict[str, list[float]] = {}
    for item in items:
        if key(item):
            found.setdefault(key(item), []).append(values[item.id])
    return {name: mean_of(row) for name, row in found.items()}


def all_right(
    items: Sequence[Item], values: Mapping[str, float], key: Callable[[Item], str]
) -> dict[str, float]:
    """Chance that all items of a group are right if ties are broken by guessing: the product."""
    found: dict[str, list[float]] = {}
    for item in items:
        if key(item):
            found.setdefault(key(item), []).append(values[item.id])
    return {name: math.prod(row) for name, row in found.items()}


def _completed(
    name: str, items: Sequence[Item], answers: Answers, faults: Mapping[str, str]
) -> dict[str, list[float]]:
    """Answers of all items; those with a fault get the worst that there is."""
    known = {item.id for item in items}
    strange = sorted(set(answers) - known)
    lacks = [i.id for i in items if i.id not in answers and i.id not in faults]
    if strange or lacks:
        raise BenchError(
            f"{name}: {len(lacks)} of {len(items)} items have no answer ({', '.join(lacks[:3])}), "
            f"{len(strange)} answers are to no item ({', '.join(strange[:3])})"
        )
    numbers = {k: [float(v) for v in row] for k, row in answers.items() if k not in faults}
    for item in items:
        wanted = {"voe": len(item.evidence), "minpair": 4}.get(item.score, len(item.choices))
        row = numbers.get(item.id)
        if row is not None and (len(row) != wanted or not all(map(math.isfinite, row))):
            raise BenchError(f"{name}: item {item.id!r} needs {wanted} finite numbers, got {row}")
    everything = [v for row in numbers.values() for v in row] or [0.0]
    low, high = min(everything) - 1, max(everything) + 1
    return {i.id: numbers[i.id] if i.id in numbers else worst(i, low, high) for i in items}


def worst(item: Item, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Numbers of a model that is sure of what is wrong."""
    if item.score == "voe":
        return [high if possible else low for possible in item.possible]
    if item.score == "minpair":
        return [low, high, high, low]
    if item.score == "numeric":
        values = [mean_relative_accuracy(float(c), item.numeric) for c in item.choices]
        far = values.index(min(values))
        return [high if k == far else low for k in range(len(item.choices))]
    return [low if k == item.answer else high for k in range(len(item.choices))]
