"""Physion (Bear et al. 2021, NeurIPS): will the red object touch the yellow one?

Layout: `<scenario>/mp4s-redyellow/*.mp4` (or `mp4s`) for eight scenarios, and labels as CSV
anywhere below: `stim_ID,scenario,...,correct,label` for the test clips, `,ground truth outcome` for
the readout clips. Scored are accuracy of each scenario, its mean, and Cohen's kappa with the
majority of people, where `correct` (the share of people who were right) is given; the authors
average kappa over single people, which needs their raw answers.

The authors' way is a logistic readout on frozen features, for each scenario: `readout`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mmpredict.probes.external.agreement import cohens_kappa
from mmpredict.probes.external.bench import (
    Answers,
    Bench,
    BenchError,
    Readout,
    Scores,
    grades,
    mean_of,
    means_by,
)
from mmpredict.probes.external.readout import fitted_scores
from mmpredict.probes.external.tables import columns_of, listing, need_folder, read_rows
from mmpredict.probes.items import Evidence, Files, Item, Suite

SCENARIOS = ("collide", "contain", "dominoes", "drape", "drop", "link", "roll", "support")
QUESTION = "Will the red object touch the yellow one?"
MARKS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Outcome:
    """What a table says of a clip: its scenario ("" for readout clips), whether red touches yellow,
    and the share of people who were right, if known."""

    scenario: str
    touches: bool
    right: float | None = None


def load(root: Path, part: str = "") -> Bench:
    """`part` is a scenario; all if empty. Labels without a clip count as errors of the data; clips
    without a label are named in the notes."""
    root = need_folder(root)
    test, train = _labels(root)
    clips: dict[str, tuple[str, Path]] = {}
    for scenario in SCENARIOS:
        folders = [root / scenario / name for name in ("mp4s-redyellow", "mp4s")]
        folder = next((f for f in folders if f.is_dir()), None)
        if folder is not None and part in ("", scenario):
            found = sorted(folder.glob("*.mp4"))
            clips |= {_stimulus(path.stem): (scenario, path) for path in found}
    asked = {n: o for n, o in test.items() if n in clips or part in ("", o.scenario)}
    if not clips or not asked:
        raise BenchError(
            f"{root}: {len(clips)} clips in <scenario>/mp4s-redyellow, {len(asked)} "
            f"of {len(test)} labels are theirs; it has {listing(root)}"
        )
    items, faults = [], {}
    for name, outcome in asked.items():
        scenario = clips[name][0] if name in clips else outcome.scenario
        items.append(_item(name, scenario, outcome))
        if name not in clips:
            faults[name] = f"no clip {name} in {root / scenario}/mp4s-redyellow"
    lost = sorted(set(clips) - set(test) - set(train))
    labels = {**train, **test}
    known = {name: scenario for name, (scenario, _) in clips.items() if name in labels}
    return Bench(
        "physion",
        Suite("physion", tuple(items), _sources(root, clips, items)),
        metric,
        faults,
        (f"{len(lost)} clips have no label: {', '.join(lost[:3])}",) if lost else (),
        readout=Readout(
            {name: (int(labels[name].touches),) for name in known},
            {name: "test" if name in test else "train" for name in known},
            2,
            known,
            remedy="put those of PhysionTrain-Readout into its folder, with readout_labels.csv",
        ),
        readout_metric=readout_score,
    )


def _sources(
    root: Path, clips: Mapping[str, tuple[str, Path]], items: Sequence[Item]
) -> dict[str, Files]:
    found = {name: Files(video=str(path)) for name, (_, path) in clips.items()}
    return {i.id: Files(video=str(root / i.family / f"{i.id}_img.mp4")) for i in items} | found


def metric(items: Sequence[Item], answers: Answers) -> dict[str, float]:
    """Accuracy of each scenario and their mean; kappa with the majority of people."""
    by_scenario = means_by(items, grades(items, answers), lambda item: item.family)
    found = {f"{name}_accuracy": value for name, value in by_scenario.items()}
    found["accuracy"] = mean_of(by_scenario.values())
    judged = [item for item in items if "people" in item.condition]
    if judged:
        said = [answers[item.id][0] > answers[item.id][1] for item in judged]
        found["kappa_people"] = cohens_kappa(said, [i.condition["people"] for i in judged])
    return found


def readout(bench: Bench, features: Mapping[str, Tensor]) -> dict[str, float]:
    """Train a logistic readout for each scenario on the readout clips and ask it of the test clips.

    Args:
        bench: with readout clips and test clips.
        features: (D,) of every clip, frozen.

    Raises:
        BenchError: features are missing, or a scenario has no readout clips of both kinds.
    """
    labels = bench.labels_for_training()
    one = {name: [values_D] for name, values_D in features.items()}
    return bench.score_readout(fitted_scores(bench.name, labels, one), {})


def readout_score(bench: Bench, scores: Scores) -> dict[str, float]:
    """The published metric of a readout's scores of "does not touch" and "touches"."""
    return bench.score({name: (yes, no) for name, (no, yes) in scores.items()})


def _labels(root: Path) -> tuple[dict[str, Outcome], dict[str, Outcome]]:
    """Outcomes of test clips and of readout clips."""
    test: dict[str, Outcome] = {}
    train: dict[str, Outcome] = {}
    paths = sorted(root.rglob("*.csv"))
    for path in paths:
        columns = columns_of(path)
        if {"stim_ID", "label"} <= set(columns):
            for row in read_rows(path, ("stim_ID", "label")):
                right = float(row["correct"]) if row.get("correct") else None
                touches = _mark(path, row["label"])
                test[row["stim_ID"]] = Outcome(row.get("scenario", ""), touches, right)
        elif {"", "ground truth outcome"} <= set(columns):
            for row in read_rows(path, ("", "ground truth outcome")):
                train[row[""]] = Outcome("", _mark(path, row["ground truth outcome"]))
    if not test:
        seen = ", ".join(str(p.relative_to(root)) for p in paths[:5]) or "no CSV"
        raise BenchError(f"{root}: found {seen}; expected one with the columns stim_ID and label")
    return test, train


def _mark(path: Path, text: str) -> bool:
    try:
        return MARKS[text.strip().lower()]
    except KeyError:
        raise BenchError(f"{path}: {text!r} is neither True nor False") from None


def _stimulus(stem: str) -> str:
    """Name of a clip in the tables: files end in _img, or in -redyellow_img."""
    return stem.removesuffix("_img").removesuffix("-redyellow")


def _item(name: str, scenario: str, outcome: Outcome) -> Item:
    condition = {"label": outcome.touches}
    if outcome.right is not None:
        condition["people"] = outcome.touches == (outcome.right > 0.5)
    return Item(
        id=name,
        family=scenario,
        score="mc",
        evidence=(Evidence(name),),
        variants=("video",),
        question=QUESTION,
        choices=("yes", "no"),
        answer=0 if outcome.touches else 1,
        cluster=name,
        split="test",
        condition=condition,
    )
