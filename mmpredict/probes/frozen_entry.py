"""One target's entry in results.json. In: how the model, its controls and its baselines answered.
Out: plain types.

An entry has: kind, unit, meaning, classes, rows, chance, left_out; per readout ("linear",
"attentive") layer, pooling, score [estimate, low, high], measures, control, selectivity, baselines
(name -> score, and how much the model is above it, with p), temporal, comp, gap, claim; and
by_layer (dev R2), ranks, samples, mdl, permuted, leak, oracle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mmpredict.probes.controls import claim, leaks
from mmpredict.probes.frozen_answers import Answer, Study
from mmpredict.probes.frozen_score import Scored, Task, measures
from mmpredict.probes.mdl import Codelength
from mmpredict.probes.stats import Interval, cluster_bootstrap, paired_difference

Answers = dict[str, Answer]
UNTRAINED, TEXT_ONLY, CAPTIONS = "untrained", "text-only", "captions"
FIRST_UNTRAINED = f"{UNTRAINED} 0"


@dataclass
class Beside:
    """Answers of others, by their name and by target."""

    baselines: dict[str, Answers] = field(default_factory=dict)
    temporal: dict[str, Answers] = field(default_factory=dict)
    oracle: Answers = field(default_factory=dict)


def entry(  # noqa: PLR0913 - all that is known of a target
    task: Task,
    mine: Answer,
    closer: Study,
    beside: Beside,
    *,
    clusters: Mapping[str, Tensor],
    layers: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """See the head of this file."""
    name = task.target.name
    scenes = {
        part: [str(n) for n in clusters[part][rows].tolist()]
        for part, rows in task.rows.items()
        if part in ("test", "comp")
    }
    permuted = cluster_bootstrap(closer.permuted.rows["test"], scenes["test"], seed=seed)
    fresh = beside.baselines[FIRST_UNTRAINED][name]
    readouts = {}
    for readout in ("linear", "attentive"):
        if getattr(mine, readout) is not None:
            found = _readout(readout, task, mine, closer, beside, scenes=scenes, seed=seed)
            layer = mine.choice.layer if readout == "linear" else mine.layer
            pooling = mine.choice.pooling if readout == "linear" else "attentive"
            readouts[readout] = {"layer": layers[layer], "pooling": pooling, **found}
    return {
        "kind": task.target.kind,
        "unit": task.target.unit,
        "meaning": task.target.meaning,
        "classes": list(task.classes),
        "rows": {part: len(rows) for part, rows in task.rows.items()},
        "chance": task.chance,
        "left_out": task.left_out,
        "readouts": readouts,
        "by_layer": dict(zip(layers, mine.choice.by_layer, strict=True)),
        "ranks": {str(rank): score for rank, score in closer.ranks.items()},
        "samples": {str(count): score for count, score in closer.samples.items()},
        "mdl": {"model": _code(mine.code), FIRST_UNTRAINED: _code(fresh.code)},
        "permuted": permuted.to_plain(),
        "leak": leaks(permuted, task.chance),
        "oracle": beside.oracle[name].linear.score,
    }


def best_init(baselines: Mapping[str, Answers], name: str, readout: str) -> str:
    """The untrained model from which the target is best decoded on the dev scenes."""
    inits = [other for other in baselines if other.startswith(UNTRAINED)]
    if readout == "linear":
        return max(inits, key=lambda other: baselines[other][name].choice.dev)
    return min(inits, key=lambda other: baselines[other][name].attentive_dev)


def rivals(baselines: Mapping[str, Answers], name: str, readout: str) -> dict[str, str]:
    """What a claim must be above: each raw baseline, the best untrained model, and text alone (the
    model's own view of the captions, where no text-only model was given)."""
    found = {other: other for other in baselines if other.startswith("raw")}
    found[UNTRAINED] = best_init(baselines, name, readout)
    text = TEXT_ONLY if TEXT_ONLY in baselines else CAPTIONS
    return found | ({text: text} if text in baselines else {})


def _readout(  # noqa: PLR0913 - one readout of a target
    readout: str,
    task: Task,
    mine: Answer,
    closer: Study,
    beside: Beside,
    *,
    scenes: Mapping[str, Sequence[str]],
    seed: int,
) -> dict[str, Any]:
    name, test = task.target.name, scenes["test"]
    own: Scored = getattr(mine, readout)
    score = cluster_bootstrap(own.rows["test"], test, seed=seed)
    control = closer.control[readout]
    selectivity = paired_difference(own.rows["test"], control.rows["test"], test, seed=seed)

    def against(others: Mapping[str, Answers]) -> dict[str, dict[str, Any]]:
        found = {}
        for other, answers in others.items():
            theirs: Scored = getattr(answers[name], readout)
            apart = paired_difference(own.rows["test"], theirs.rows["test"], test, seed=seed)
            found[other] = {
                "score": theirs.score,
                "above": apart.interval.to_plain(),
                "p": apart.p,
            }
        return found

    baselines = against(beside.baselines)
    above = {
        label: Interval(*baselines[other]["above"])
        for label, other in rivals(beside.baselines, name, readout).items()
    }
    return {
        "score": score.to_plain(),
        "measures": measures(task, own),
        "control": control.score,
        "selectivity": selectivity.interval.to_plain(),
        "baselines": baselines,
        "temporal": against(beside.temporal),
        **_composition(own, scenes, score, seed),
        "claim": claim(score, task.chance, above, selectivity.interval),
    }


def _composition(
    own: Scored, scenes: Mapping[str, Sequence[str]], score: Interval, seed: int
) -> dict[str, Any]:
    """The score on unseen pairs of colour and shape, and what it loses there; the scenes are
    others, so the two errors add up in squares."""
    if "comp" not in own.rows:
        return {"comp": None, "gap": None}
    comp = cluster_bootstrap(own.rows["comp"], scenes["comp"], seed=seed)
    apart = score.estimate - comp.estimate
    down = ((score.estimate - score.low) ** 2 + (comp.high - comp.estimate) ** 2) ** 0.5
    up = ((score.high - score.estimate) ** 2 + (comp.estimate - comp.low) ** 2) ** 0.5
    return {"comp": comp.to_plain(), "gap": [apart, apart - down, apart + up]}


def _code(code: Codelength | None) -> dict[str, float] | None:
    if code is None:
        return None
    return {
        "bits": code.bits,
        "uniform_bits": code.uniform_bits,
        "labels": code.labels,
        "compression": code.compression,
    }
