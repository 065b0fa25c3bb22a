"""A suite tests itself: can its items be had without what they ask about?

In: a suite. Out: an `Audit`: a line per check and family, and whether all is well. Limits are set
for all checks of a kind together (Bonferroni), so that a sound suite fails one time in twenty.

    words, network    readers of question and choices alone are not above chance
    repeated          no two scenes are alike, nor is one alike to a scene of another split
    place             the right answer stands at every place equally often
    template          no wording goes with an answer
    change            on sets that break a law out of sight, surprise by change alone is at chance
    gate              a small reader that is given the evidence is above 0.9; reported, and asked
                      for only where `Audit` is made with a `Gate`
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from . import audit_marks
from .audit_gate import GATE, Gate, gate_scores
from .audit_text import READERS, blind_scores
from .grading import best_constant, constant_scores
from .items import Item, Suite
from .stats import cluster_bootstrap, wilson
from .suites import SIZES, supervised_split

_LEVEL = 0.05  # of all checks of one kind together
_FEWEST = 12  # items and scenes below which a check says nothing


@dataclass(frozen=True)
class Check:
    """One line.

    Args:
        name: see the head of this file.
        family: "" for the suite as a whole.
        value: what was found.
        limits: between which it should be.
        passed: whether it is; None where there are too few items, or where it is no demand.
        note: what was counted.
    """

    name: str
    family: str
    value: float
    limits: tuple[float, float]
    passed: bool | None
    note: str = ""


@dataclass(frozen=True)
class Audit:
    """All checks of a suite."""

    suite: str
    sha: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed is not False for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.passed is False)

    def table(self) -> str:
        """As Markdown."""
        lines = ["| check | family | found | should be | |", "| --- | --- | --- | --- | --- |"]
        for c in self.checks:
            said = {True: "ok", False: "FAILS", None: "not judged"}[c.passed]
            limits = f"{c.limits[0]:.3g} to {c.limits[1]:.3g}"
            lines.append(f"| {c.name} | {c.family} | {c.value:.3f} | {limits} | {said} {c.note} |")
        return "\n".join(lines)

    def write(self, folder: str | Path) -> None:
        """As audit.json and audit.md."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        plain = {**asdict(self), "passed": self.passed}
        (folder / "audit.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
        (folder / "audit.md").write_text(self.table() + "\n", encoding="utf-8")


def audit(
    suite: Suite,
    *,
    others: Sequence[Suite] = (),
    most: int = 1200,
    gate: Gate | None = None,
    seed: int = 0,
) -> Audit:
    """Ask the suite itself.

    Args:
        others: of other splits or what is learnt from; no scene may be in both.
        most: items of a family that the readers of words are given.
        gate: what the learnability gate may cost; None leaves it out.
    """
    asked = [item for item in suite.items if item.score in ("mc", "numeric")]
    by_family: dict[str, list[Item]] = {}
    for item in asked:
        by_family.setdefault(item.family, []).append(item)
    checks = _check_words(by_family, most, seed)
    checks += _check_repeated(suite, others)
    checks += _check_marks(by_family)
    checks += _check_change(suite)
    if gate is not None:
        checks += _check_gate(suite, gate, seed)
    return Audit(suite.name, suite.sha, tuple(checks))


def _check_words(by_family: dict[str, list[Item]], most: int, seed: int) -> list[Check]:
    checks = []
    level = 1 - 2 * _LEVEL / max(1, 2 * len(by_family))  # one side: below chance is no leak
    for family, items in by_family.items():
        items = items[:most]
        chances = _floor(items)
        clusters = [item.cluster for item in items]
        few = len(items) < _FEWEST or len(set(clusters)) < _FEWEST
        chance = sum(chances) / len(chances)
        for reader in READERS:
            scores = blind_scores(items, reader, seed=seed)
            excess = [s - c for s, c in zip(scores, chances, strict=True)]
            interval = cluster_bootstrap(excess, clusters, level=level)
            reach = max(0.0, interval.estimate - interval.low)
            passed = None if few else interval.low <= 0
            value = chance + interval.estimate
            limits = (0.0, chance + reach)
            note = f"{len(items)} items, chance {chance:.3f}"
            checks.append(Check(reader, family, value, limits, passed, note))
    return checks


def _floor(items: Sequence[Item]) -> list[float]:
    """What knowing nothing but the family gives of each item: the chance of a guess; of numbers,
    the score of the one number that is best in the mean, which is no leak."""
    if any(item.score != "numeric" for item in items):
        return [item.chance for item in items]
    return best_constant([constant_scores(item) for item in items])


def _check_repeated(suite: Suite, others: Sequence[Suite]) -> list[Check]:
    twice, elsewhere = audit_marks.repeated(suite, others)
    shown = len(suite.sources)
    names = ", ".join(other.name for other in others) or "no other suite given"
    return [
        Check("repeated", "", twice, (0, 0), twice == 0, f"{shown} takes"),
        Check("repeated", "", elsewhere, (0, 0), elsewhere == 0, f"in {names}"),
    ]


def _check_marks(by_family: dict[str, list[Item]]) -> list[Check]:
    checks = []
    least = _LEVEL / max(1, len(by_family))
    for family, items in by_family.items():
        few = len(items) < _FEWEST
        ranked = [item for item in items if item.score == "mc"]  # numbers stand in their order
        if ranked:
            p = audit_marks.position_p(ranked)
            checks.append(Check("place", family, p, (least, 1.0), None if few else p >= least, "p"))
        few = few or len(items) < 5 * audit_marks.cells(items)  # as the chi-square test needs
        p = audit_marks.template_p(items)
        checks.append(Check("template", family, p, (least, 1.0), None if few else p >= least, "p"))
    return checks


def _check_change(suite: Suite) -> list[Check]:
    """Sets whose breach happens in full view are reported, not judged: there a jump is a change."""
    sets = [item for item in suite.items if item.score == "voe"]
    families = list(dict.fromkeys(item.family for item in sets))
    checks = []
    for family in families:
        for is_hidden in (True, False):
            ours = [
                item
                for item in sets
                if item.family == family and bool(item.condition.get("occluded")) == is_hidden
            ]
            if not ours:
                continue
            scores = audit_marks.change_scores(suite, ours)
            level = 1 - _LEVEL / len(families)
            interval = wilson(sum(scores), len(scores), level=level)
            few = len(ours) < _FEWEST or not is_hidden
            passed = None if few else not interval.excludes(0.5)
            reach = (interval.high - interval.low) / 2
            note = f"{len(ours)} sets {'out of sight' if is_hidden else 'in full view'}"
            limits = (max(0.0, 0.5 - reach), min(1.0, 0.5 + reach))
            checks.append(Check("change", family, interval.estimate, limits, passed, note))
    return checks


def _check_gate(suite: Suite, gate: Gate, seed: int) -> list[Check]:
    name = suite.name if suite.name in SIZES else "spatial"
    scenes = min(gate.scenes, SIZES[name].rooms)
    learn = supervised_split(name, split="train", scenes=scenes, seed=seed + 1, even=True)
    judge = supervised_split(
        name, split="dev", scenes=max(5, scenes // 5), seed=seed + 1, even=True
    )
    practice, shown = None, gate.view
    if gate.view == "pixels":
        practice = supervised_split(name, split="train", scenes=scenes, seed=seed + 2, even=True)
        shown = f"{gate.size} px, {gate.sense_steps} steps of eye and ear"
    checks = []
    found = gate_scores(learn, judge, gate, practice=practice, seed=seed)
    for family, (score, count) in found.items():
        note = f"{shown}, {scenes} scenes of a kind, {gate.steps} steps, {count} items"
        checks.append(Check("gate", family, score, (GATE, 1.0), score > GATE, note))
    return checks


def run_audit(
    suite: Suite, *, out: str | Path | None = None, gate: Gate | None = None, seed: int = 0
) -> bool:
    """Audit a suite against scenes of the training splits, print the table and what fails.

    Args:
        out: folder for audit.json and audit.md; None writes nothing.
        gate: see `audit`.

    Returns:
        Whether all is well.
    """
    others = [supervised_split("smoke", split=split) for split in ("train", "dev")]
    result = audit(suite, others=others, gate=gate, seed=seed)
    print(result.table())
    for check in result.failures:
        print(f"FAILS: {check.name} {check.family}: {check.value:.3f}, {check.note}")
    judged = sum(check.passed is not None for check in result.checks)
    print(f"{judged} checks judged, {len(result.failures)} failed, suite {result.sha[:12]}")
    if out is not None:
        result.write(out)
    return result.passed
