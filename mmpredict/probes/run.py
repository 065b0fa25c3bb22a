"""A suite is asked. In: whoever is asked (`Scorer`), a suite, variants of its evidence. Out: a row
per item and variant, in the suite's order, the same in every run.

A checkpoint is a scorer, too: `ModelScorer`. Items that show the same sources are asked together,
in all variants, so that every take is filmed once and every evidence is read once.
"""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmpredict.model import Predictor
from mmpredict.probes import surprise
from mmpredict.probes.evidence import EvidenceError, Footage, Shown, check_streams
from mmpredict.probes.grading import Scorer, constant_scores, grade
from mmpredict.probes.items import Evidence, Item, Source, Suite
from mmpredict.probes.likelihood import Ask, Likelihood
from mmpredict.probes.writing import write_whole
from mmpredict.schema import UserError
from mmpredict.tokens import Codecs

MOST_POSITIONS = 16384  # of what is shown; a minute of small frames
Numbers = dict[str, list[float]]
Progress = Callable[[int, int], None]


class ModelScorer:
    """A checkpoint as a `Scorer`.

    Args:
        predictor: in evaluation mode, on the device that is to work.
        codecs: its encoders.
        sources: of the suite that will be asked.
        variants: that will be asked.
        seed: of the noise in which surprise is measured.
        blind: nothing is shown or told; what is right then was in the question and the choices.
            Sets of clips have nothing to be asked by, and get no answer.

    Attributes:
        errors: (item, variant) -> why it could not be asked.
        drawn: ids of voe items whose curves are kept.
        curves: (item, variant) -> the curves of its clips, of the items in `drawn`.
    """

    def __init__(
        self,
        predictor: Predictor,
        codecs: Codecs,
        sources: Mapping[str, Source],
        *,
        variants: Sequence[str],
        seed: int = 0,
        blind: bool = False,
    ) -> None:
        self.predictor, self.codecs, self.seed, self.blind = predictor, codecs, seed, blind
        self.footage = Footage(sources, codecs, variants)
        self.likelihood = Likelihood(predictor, codecs) if codecs.text is not None else None
        self.errors: dict[tuple[str, str], str] = {}
        self.drawn: set[str] = set()
        self.curves: dict[tuple[str, str], list[list[surprise.Curve]]] = {}

    def scores(self, items: Sequence[Item], variant: str) -> list[Numbers]:
        """Numbers by rule, the registered rule first; {} for an item that could not be asked.

        Raises:
            UserError: the checkpoint lacks a stream that is needed.
        """
        check_streams(self.codecs, items, [variant])
        found: dict[str, Numbers] = {}
        parts: dict[tuple[str, int], Numbers] = {}
        for evidence, asked in _by_evidence(items, variant).items():
            shown = self._shown(evidence, variant, asked)
            if shown is None:
                continue
            asks = [Ask(item.question, item.choices) for item, _ in asked]
            said = self.likelihood.numbers(shown, asks)
            parts |= {(item.id, n): x for (item, n), x in zip(asked, said, strict=True)}
        for item in items:
            if (item.id, variant) in self.errors:
                found[item.id] = {}
            elif item.score == "voe":
                found[item.id] = {} if self.blind else self._surprise(item, variant)
            elif item.score == "minpair":
                found[item.id] = _joined(parts[item.id, 0], parts[item.id, 1])
            else:
                found[item.id] = parts[item.id, 0]
        return [found[item.id] for item in items]

    def _shown(
        self, evidence: Evidence, variant: str, asked: Iterable[tuple[Item, int]]
    ) -> Shown | None:
        """None where it cannot be shown; that is noted for all who ask."""
        if self.blind:
            return self.footage.nothing(evidence.until_s)
        try:
            shown = self.footage.shown(evidence, variant)
            self._check_length(shown, evidence.source)
            return shown
        except EvidenceError as error:
            self.errors |= {(item.id, variant): str(error) for item, _ in asked}
            return None

    def _check_length(self, shown: Shown, source: str) -> None:
        """Attention over too long a row would take all memory, and hours."""
        layout = self.codecs.layout
        length = sum(len(t.end_s) * layout[t.modality].positions_per_block for t in shown.streams)
        if length > MOST_POSITIONS:
            raise EvidenceError(
                f"source {source!r} takes {length} positions, at most {MOST_POSITIONS} are asked "
                "at once; show a shorter span"
            )

    def _surprise(self, item: Item, variant: str) -> Numbers:
        clips = [self._shown(evidence, variant, [(item, 0)]) for evidence in item.evidence]
        if None in clips:
            return {}
        kept = item.id in self.drawn
        seed = self.seed + zlib.crc32(item.id.encode())  # of the item's own, in any order
        curves = surprise.curves(
            self.predictor, clips, seed=seed, from_s=None if kept else item.cut_s
        )
        if kept:
            self.curves[item.id, variant] = curves
        try:
            return surprise.numbers(curves, item.cut_s)
        except ValueError as error:
            self.errors[item.id, variant] = str(error)
            return {}


def _by_evidence(items: Sequence[Item], variant: str) -> dict[Evidence, list[tuple[Item, int]]]:
    """Who asks about what is shown: items, and which of their contexts it is."""
    found: dict[Evidence, list[tuple[Item, int]]] = defaultdict(list)
    for item in items:
        if item.score == "voe":
            continue
        for number, evidence in enumerate(item.evidence):
            told = evidence.told if variant == "text" else ()
            source = evidence.source
            if variant == "text" and told:
                source = ""  # the same words are the same evidence
            found[Evidence(source, evidence.until_s, told)].append((item, number))
    return found


def _joined(first: Numbers, second: Numbers) -> Numbers:
    """Both contexts of a minpair. The same statements are compared, so that `sum` decides."""
    rules = ["sum", *(rule for rule in first if rule != "sum")]
    return {rule: first[rule] + second[rule] for rule in rules}


@dataclass(frozen=True)
class ProbeRun:
    """A suite that was asked.

    Args:
        suite, suite_sha, world_version: what was asked.
        variants: in which forms.
        rows: plain dicts, see `item_row`.
        errors: of items that could not be asked, "item, variant: why".
        curves: surprise over time, of some voe items: (item, variant) -> clips -> streams.
    """

    suite: str
    suite_sha: str
    world_version: str
    variants: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    errors: tuple[str, ...] = ()
    curves: Mapping[tuple[str, str], Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """The rows, a line each; the whole file or the old one."""
        lines = (
            json.dumps(row, ensure_ascii=False, allow_nan=False, sort_keys=True) + "\n"
            for row in self.rows
        )
        write_whole(path, "".join(lines))


def run_suite(
    scorer: Scorer,
    suite: Suite,
    variants: Sequence[str],
    *,
    progress: Progress | None = None,
    curves_per_family: int = 1,
) -> ProbeRun:
    """Ask all items that have one of these variants, in each of them.

    Args:
        scorer: who is asked; what `errors` it has are named in the rows.
        suite: items and sources.
        variants: of VARIANTS.
        progress: told how many of how many answers are in.
        curves_per_family: voe items per family whose surprise is kept over time, if the scorer can.

    Raises:
        UserError: no item has one of the variants, or the checkpoint lacks a stream.
    """
    asked = [(i, v) for i in suite.items for v in variants if v in i.variants]
    if not asked:
        has = dict.fromkeys(v for item in suite.items for v in item.variants)
        raise UserError(
            f"no item of suite {suite.name!r} has evidence {', '.join(variants)}; its "
            f"{len(suite.items)} items have {', '.join(has) or 'none'}"
        )
    if isinstance(scorer, ModelScorer):
        check_streams(scorer.codecs, suite.items, variants)
        scorer.drawn |= voe_to_draw(suite.items, curves_per_family)
    said: dict[tuple[str, str], Numbers] = {}
    for items in together(suite.items):
        for variant in variants:
            mine = [item for item in items if variant in item.variants]
            answers = scorer.scores(mine, variant) if mine else []
            said |= {(i.id, variant): n for i, n in zip(mine, answers, strict=True)}
            if progress is not None and mine:
                progress(len(said), len(asked))
    reasons = getattr(scorer, "errors", {})
    rows = tuple(item_row(i, v, said[i.id, v], reasons.get((i.id, v), "")) for i, v in asked)
    curves = dict(getattr(scorer, "curves", {}))
    return ProbeRun(
        suite.name,
        suite.sha,
        suite.world_version,
        tuple(variants),
        rows,
        named_errors(rows),
        curves,
    )


def named_errors(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What could not be asked, and why."""
    return tuple(f"{r['id']}, {r['variant']}: {r['error']}" for r in rows if r["error"])


def item_row(item: Item, variant: str, numbers: Numbers, error: str) -> dict[str, Any]:
    """One answer. `score` is by `rule`, the registered one; `scores` by every rule; None and an
    `error` where the item could not be asked or the answer is no number. Numeric items have
    `constants`: what each number would get that is offered."""
    row: dict[str, Any] = {
        "id": item.id,
        "family": item.family,
        "kind": item.score,
        "variant": variant,
        "cluster": item.cluster,
        "group": item.group,
        "split": item.split,
        "template": item.template,
        "paraphrase": item.paraphrase,
        "condition": dict(item.condition),
        "chance": item.chance,
        "rule": next(iter(numbers), ""),
        "score": None,
        "tied": False,
        "scores": {},
        "numbers": {},
        "error": error or ("" if numbers else "no answer"),
    }
    if row["error"]:
        return row
    try:
        grades = {rule: grade(item, values) for rule, values in numbers.items()}
    except ValueError as wrong:
        return row | {"error": str(wrong)}
    first = grades[row["rule"]]
    scores = {rule: g.score for rule, g in grades.items()}
    if item.score == "numeric":
        row["constants"] = constant_scores(item)
    return row | {"score": first.score, "tied": first.tied, "scores": scores, "numbers": numbers}


def together(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Items that show the same first source, in the order in which it comes first."""
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.evidence[0].source or f"/{item.cluster}"].append(item)
    yield from groups.values()


def voe_to_draw(items: Sequence[Item], per_family: int) -> set[str]:
    """The first voe items of each family."""
    found: dict[str, list[str]] = defaultdict(list)
    for item in items:
        if item.score == "voe" and len(found[item.family]) < per_family:
            found[item.family].append(item.id)
    return {item for ids in found.values() for item in ids}
