"""Frozen probes: what can be read off a model that is not trained any further. In: a predictor and
its codecs. Out: per target a score, with everything that it must be held against, and the words
that may be used.

Scenes of worlds that the model was not trained on are filmed and read at a few moments; probes
learn to decode the truth from the features of each layer on train scenes, layers and penalties are
chosen on dev scenes, and the test scenes are asked once (PROBES 2.5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from mmpredict.model import Predictor
from mmpredict.probes.features import Scenes, layer_names
from mmpredict.probes.frozen_answers import (
    Answer,
    Study,
    answer,
    answer_at,
    attentive_width,
    study,
)
from mmpredict.probes.frozen_entry import FIRST_UNTRAINED, Beside, entry
from mmpredict.probes.frozen_report import table_of
from mmpredict.probes.frozen_score import Task, check_streams, make_task
from mmpredict.probes.frozen_sources import (
    Filmed,
    Sizes,
    baseline_sources,
    film,
    model_source,
    oracle_source,
    temporal_sources,
)
from mmpredict.probes.targets import TARGETS, Target, targets_named
from mmpredict.schema import UserError
from mmpredict.tokens import Codecs
from mmpredict.world import WORLD_VERSION

ALL_TARGETS = tuple(target.name for target in TARGETS)
# For `run_frozen(**SMOKE)`: a minute on two cores; it cannot tell small differences.
SMOKE = {"train_scenes": 64, "dev_scenes": 24, "test_scenes": 40, "inits": 1}


@dataclass(frozen=True)
class FrozenResults:
    """What was found.

    Args:
        targets: per target an entry of plain types; see frozen_entry.py.
        skipped: targets that could not be asked, and why.
        flags: what makes the numbers untrustworthy; empty when all is well.
        about: sizes, layers, seconds.
    """

    targets: Mapping[str, Mapping[str, Any]]
    skipped: Mapping[str, str] = field(default_factory=dict)
    flags: Sequence[str] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_plain(self, *, timing: bool = True) -> dict[str, Any]:
        """For results.json; without `timing` two runs are equal to the byte."""
        about = {k: v for k, v in self.about.items() if timing or not k.endswith("_s")}
        return {
            "about": about,
            "targets": dict(self.targets),
            "skipped": dict(self.skipped),
            "flags": list(self.flags),
        }

    def markdown(self) -> str:
        """A table to read."""
        return table_of(self.to_plain())


def run_frozen(  # noqa: PLR0913 - what a user may set
    predictor: Predictor,
    codecs: Codecs,
    *,
    train_scenes: int = 400,
    dev_scenes: int = 100,
    test_scenes: int = 200,
    targets: Sequence[str] = ALL_TARGETS,
    text_only: tuple[Predictor, Codecs] | None = None,
    inits: int = 3,
    moments: int = 3,
    seconds: float = 2.0,
    seed: int = 0,
) -> FrozenResults:
    """Probe a model.

    Args:
        train_scenes, dev_scenes, test_scenes: scenes to fit, choose and test on; half as many as
            the last are tested with colours of shapes that no probe has seen.
        targets: names of what is decoded.
        text_only: a model that was trained on text alone, to be held against.
        inits: untrained models of the same architecture.
        moments: of each scene at which the model is probed.
        seconds: length of a scene.
        seed: of scenes and probes; two runs with one seed are equal.

    Raises:
        UserError: a target needs a stream that the model lacks, or there are too few scenes.
    """
    begun = perf_counter()
    wanted = _checked(codecs, targets, (train_scenes, dev_scenes, test_scenes, inits))
    comp_scenes = max(1, test_scenes // 2)
    sizes = Sizes(train_scenes, dev_scenes, test_scenes, comp_scenes, moments, seconds, seed)
    scenes = sizes.scenes(codecs)
    filmed = film(codecs, scenes)
    tried = {target.name: make_task(target, filmed.tables) for target in wanted}
    tasks = [task for task in tried.values() if isinstance(task, Task)]
    skipped = {name: why for name, why in tried.items() if isinstance(why, str)}
    if not tasks:
        raise UserError(f"no target can be asked: {skipped}")
    width = attentive_width(predictor, tasks)
    was_training = predictor.training
    predictor.eval()
    try:
        asked = _Asked(predictor, codecs, scenes, filmed, tasks, width, seed)
        mine, closer = asked.model()
        beside = asked.beside(mine, inits, text_only)
    finally:
        predictor.train(was_training)
    layers = layer_names(predictor)
    entries = asked.entries(mine, closer, beside, layers)
    about = {
        "world_version": WORLD_VERSION,
        **{f"{part}_scenes": some.count for part, some in scenes.items()},
        "frames": list(scenes["train"].moments),
        "seconds": seconds,
        "seed": seed,
        "inits": inits,
        "layers": list(layers),
        "head_width": width,
        "device": str(next(predictor.parameters()).device),
        "took_s": round(perf_counter() - begun, 1),
    }
    return FrozenResults(entries, skipped, _flags(entries, width), about)


def _checked(
    codecs: Codecs, targets: Sequence[str], counts: tuple[int, int, int, int]
) -> tuple[Target, ...]:
    wanted = targets_named(targets)
    streams = [n for n in ("video", "audio", "text") if getattr(codecs, n) is not None]
    check_streams(wanted, streams)
    if min(counts) < 1:
        names = ("train_scenes", "dev_scenes", "test_scenes", "inits")
        got = ", ".join(f"{name}={count}" for name, count in zip(names, counts, strict=True))
        raise UserError(f"{got}: each must be 1 or more")
    return wanted


@dataclass(frozen=True)
class _Asked:
    """A model and what it is asked; one source's features are held at a time."""

    predictor: Predictor
    codecs: Codecs
    scenes: Mapping[str, Scenes]
    filmed: Filmed
    tasks: Sequence[Task]
    width: int
    seed: int

    def model(self) -> tuple[dict[str, Answer], dict[str, Study]]:
        source = model_source(self.predictor, self.codecs, self.scenes, self.filmed)
        mine = answer(source, self.tasks, width=self.width, seed=self.seed, code=True)
        return mine, study(source, self.tasks, mine, width=self.width, seed=self.seed)

    def beside(
        self,
        mine: Mapping[str, Answer],
        inits: int,
        text_only: tuple[Predictor, Codecs] | None,
    ) -> Beside:
        shown = (self.predictor, self.codecs, self.scenes, self.filmed)
        tasks, width, seed = self.tasks, self.width, self.seed
        found = Beside()
        for source in temporal_sources(*shown):
            found.temporal[source.name] = answer_at(source, tasks, mine, width=width, seed=seed)
        for source in baseline_sources(*shown, inits=inits, text_only=text_only):
            code = source.name == FIRST_UNTRAINED  # one is enough, and codes cost time
            answers = answer(source, tasks, width=width, seed=seed, code=code)
            found.baselines[source.name] = answers
        found.oracle.update(answer(oracle_source(self.filmed.tables), tasks, width=0, seed=seed))
        return found

    def entries(
        self,
        mine: Mapping[str, Answer],
        closer: Mapping[str, Study],
        beside: Beside,
        layers: Sequence[str],
    ) -> dict[str, dict[str, Any]]:
        clusters = {part: table.scene_R for part, table in self.filmed.tables.items()}
        said = {"clusters": clusters, "layers": layers, "seed": self.seed}
        names = [task.target.name for task in self.tasks]
        return {
            name: entry(task, mine[name], closer[name], beside, **said)
            for name, task in zip(names, self.tasks, strict=True)
        }


def _flags(entries: Mapping[str, Mapping[str, Any]], width: int) -> list[str]:
    """What a reader must know before he believes a number."""
    flags = [
        f"LEAK: {name} is decoded although its labels were dealt out anew "
        f"({e['permuted'][0]:.3f}, chance {e['chance']:.3f})"
        for name, e in entries.items()
        if e["leak"]
    ]
    flags += [
        f"ORACLE: {name} is not decoded from the truth itself ({e['oracle']:.3f})"
        for name, e in entries.items()
        if e["oracle"] < 0.95
    ]
    if not width:
        flags.append("the attentive probe is left out: it would have over 1 % of the model's size")
    return flags
