"""The model card of an export. In: a checkpoint's run folder, the predictor. Out: Markdown with
what was measured, and no claim beyond it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from mmpredict.exported import Loaded
    from mmpredict.tokens import Codecs

RECIPE = "recipe.yaml"
HEAD = """---
library_name: mmpredict
tags:
- multimodal
- next-block-prediction
---
"""
USE = """```python
import mmpredict

model = mmpredict.load("FOLDER")
print(model.predictor.layout, model.codecs)
```

`model.rollout(prompt, seconds=2)` goes on from a text or a `Clip`; at the command line
`mmpredict rollout --ckpt FOLDER --prompt FILE_OR_TEXT --out next.mp4`. The files are safetensors
and JSON: reading them runs no code."""
LIMITS = """- It predicts what its training data make likely. Of other data nothing is known.
- It was not examined for bias, safety or fitness for any purpose. What it says of the world may be
  wrong.
- The scores below are of single runs unless it is said otherwise."""


@dataclass(frozen=True)
class Facts:
    """What a run left beside its checkpoint.

    Args:
        step: optimiser steps of the checkpoint; None where it does not say.
        config: the run's whole configuration.
        results: results.json, with the baselines.
        probes: folder name -> tables of `mmpredict probe`, asked of these very weights.
        start: of the run's last start: machine and versions.
        texts: files that go into the export as they are.
        notices: what was left out, and why.
    """

    step: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    probes: Mapping[str, str] = field(default_factory=dict)
    start: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


def gather(checkpoint: str | Path) -> Facts:
    """Read what lies beside a checkpoint."""
    from mmpredict.exported import is_export
    from mmpredict.schema import UserError
    from mmpredict.training.checkpoint import locate, read

    if is_export(checkpoint):
        raise UserError(f"--ckpt {checkpoint} is an export already; copy the folder")
    path = locate(checkpoint)
    found = read(path, mmap=True)
    run = path.parent.parent if path.parent.name == "ckpt" else path.parent
    notices: list[str] = []
    texts: dict[str, str] = {}
    config: dict[str, Any] = {}
    if (run / "config.yaml").is_file():
        texts[RECIPE] = _for_others((run / "config.yaml").read_text(encoding="utf-8"))
        config = _mapping(yaml.safe_load(texts[RECIPE]))
    else:
        notices.append(f"no config.yaml in {run}: the export has no recipe")
    results = _json(run / "results.json", notices)
    step = found.get("global_step")
    if not results:
        notices.append(f"no results.json in {run}: the card has no scores")
    elif (why := _not_of(step, path, config)) is not None:
        notices.append(f"{run / 'results.json'} left out: {why}")
        results = {}
    probes = dict(_probes(path, (path.parent, run), notices))
    starts = _json(run / "env.json", notices).get("starts") or [{}]
    return Facts(step, config, results, probes, _mapping(starts[-1]), texts, tuple(notices))


def _for_others(config: str) -> str:
    """A run's configuration without the lines that are of that run alone."""
    return re.sub(r"(?m)^(run_dir|ckpt_path):.*\n", "", config)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _json(path: Path, notices: list[str]) -> dict[str, Any]:
    """A file that may be missing; one that is damaged costs figures of the card, no more."""
    if not path.is_file():
        return {}
    try:
        return _mapping(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        notices.append(f"{path} is damaged and left out: {error}")
        return {}


def _not_of(step: int | None, path: Path, config: Mapping[str, Any]) -> str | None:
    """Why the scores of the run's end are not those of this checkpoint; None if they are."""
    last = _mapping(config.get("trainer")).get("max_steps")
    if isinstance(last, int) and last > 0 and step is not None and step != last:
        return f"it is of step {last}, {path.name} is of step {step}"
    if path.name != "last.ckpt":
        return f"it is of last.ckpt, not of {path.name}"
    return None


def _probes(path: Path, folders: tuple[Path, ...], notices: list[str]) -> Iterator[tuple[str, str]]:
    from mmpredict.probes.table import markdown

    files = sorted({f for folder in folders for f in folder.glob("probe-*/results.json")})
    if not files:
        return
    with path.open("rb") as file:
        sha = hashlib.file_digest(file, "sha256").hexdigest()
    for file in files:
        results = _json(file, notices)
        about = _mapping(results.get("about"))
        if "variants" in results and about.get("ckpt_sha") == sha:
            try:
                yield file.parent.name, markdown(results).strip()
            except (KeyError, TypeError, ValueError) as error:
                notices.append(f"{file} left out: it is not of this version ({error!r})")
        elif results:
            notices.append(f"{file} left out: it was not asked of {path.name} as it is now")


def card(facts: Facts, loaded: Loaded) -> str:
    """README.md of an export."""
    names = [spec.name for spec in loaded.codecs.layout.streams]
    count = sum(p.numel() for p in loaded.predictor.parameters())
    parts = [
        f"{HEAD}\n# A predictor of {_listed(names)}",
        f"One causal model of {count:,} parameters that predicts the next block of every stream, "
        "trained with mmpredict on the data and by the recipe named here.",
        "## Use",
        USE,
        "## What it takes and gives",
        "\n".join(_streams(loaded.codecs, loaded.about)),
        "## Training",
        "\n".join(_training(facts)),
        "## Limits",
        LIMITS,
        "## Measured",
        *_measured(facts),
        "## Licence",
        "Left to whoever publishes these weights: name the licence here, and that of the data.",
    ]
    return "\n\n".join(parts) + "\n"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _streams(codecs: Codecs, about: Mapping[str, Any]) -> Iterator[str]:
    for name, plain in codecs.to_plain().items():
        streams = plain if name == "series" else {name: plain}
        for stream, settings in streams.items():
            if settings is not None:
                shown = {
                    key: value
                    for key, value in settings.items()
                    if key not in ("vocabulary", "path", "name") and value is not None
                }
                yield f"- {stream}: {', '.join(f'{key} {value}' for key, value in shown.items())}"
    length = about.get("context_length")
    yield f"- rows of {length} positions in training" if length else "- row length not known"


def _training(facts: Facts) -> Iterator[str]:
    config, trainer = facts.config, _mapping(facts.config.get("trainer"))
    data = _mapping(config.get("data"))
    arguments = _mapping(data.get("init_args"))
    kinds = [data.get("class_path"), *(p.get("class_path") for p in arguments.get("parts") or [])]
    yield f"- data: {', '.join(str(kind) for kind in kinds if kind) or 'not known'}"
    loading = _mapping(arguments.get("loading"))
    if loading.get("rows"):
        batches = trainer.get("accumulate_grad_batches", 1)
        yield f"- batch: {loading['rows']} rows; {batches} batch a step"
    yield f"- steps: {'not known' if facts.step is None else f'{facts.step:,}'}"
    yield f"- seed: {config.get('seed_everything', 'not known')}"
    if facts.results.get("seconds"):
        yield f"- time: {facts.results['seconds']:,.0f} s"
    machine = [*(facts.start.get("gpus") or []), facts.start.get("cpu")]
    yield f"- machine: {machine[0] or 'not known'}"
    versions = _mapping(facts.start.get("versions"))
    yield f"- versions: {', '.join(f'{n} {v}' for n, v in versions.items()) or 'not known'}"
    if RECIPE in facts.texts:
        yield f"- all settings: [{RECIPE}]({RECIPE})"


def _measured(facts: Facts) -> Iterator[str]:
    from mmpredict.training.report_table import caption, number, table_rows

    if facts.results:
        lines = ["| stream | measure | model | baseline | | the model is |"]
        lines.append("| --- | --- | ---: | --- | ---: | --- |")
        for row in table_rows(facts.results):
            beside = list(zip(row.baselines.items(), row.verdicts, strict=True))
            for (name, value), verdict in beside or [(("", None), "")]:
                cells = (row.stream, row.measure, number(row.model), name, number(value), verdict)
                lines.append(f"| {' | '.join(cells)} |")
        yield "\n".join(lines)
        yield f"{caption(facts.results)}."
    for name, tables in facts.probes.items():
        yield f"### {name}"
        yield tables
    if not facts.results and not facts.probes:
        yield "Nothing was measured of these weights, or the results were not beside them."
