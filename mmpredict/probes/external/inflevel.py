"""InfLevel (Weihs et al. 2022): continuity, solidity and gravity, filmed in a lab or simulated.

Layout: `inflevel_lab/<event>/<camera>__<event>__<cover>__<object>__<trial>[__<LR|RL>].mp4`;
`inflevel_sim` names the object before the cover and has no direction. A set is four trials of one
camera, cover, object and direction, two of them possible.

The metric is the mean over the four comparisons of a possible with an impossible trial, ties half.
Sets with missing trials are skipped by the authors' evaluator too; here they are counted in the
notes. The authors allow no training on these videos, not even of a linear probe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mmpredict.probes.external.bench import (
    Answers,
    Bench,
    BenchError,
    asked_answers,
    faults_of,
    mean_of,
    missing_files,
)
from mmpredict.probes.external.tables import listing, need_folder
from mmpredict.probes.items import Evidence, Files, Item, Suite

EVENTS = ("continuity", "solidity", "gravity")
# event -> possible and impossible trials
REAL = {"continuity": ("vv", "ii"), "solidity": ("ui", "cv"), "gravity": ("ui", "cv")}
MAGIC = {"continuity": ("iv", "vi"), "solidity": ("uv", "ci"), "gravity": ("uv", "ci")}
REFUSAL = (
    "InfLevel is for evaluation only: its authors allow no training on it, linear probes included. "
    "Ask it zero-shot"
)
ROUNDS = 1000


def load(root: Path, part: str = "") -> Bench:
    """`part` is lab or sim; both if they are there and `part` is empty."""
    root = need_folder(root)
    homes = [root] if root.name in ("inflevel_lab", "inflevel_sim") else []
    homes += [root / name for name in ("inflevel_lab", "inflevel_sim") if (root / name).is_dir()]
    homes = [home for home in homes if part in ("", home.name.removeprefix("inflevel_"))]
    if not homes:
        raise BenchError(
            f"{root} has no inflevel_lab or inflevel_sim (part {part!r}), which order the names of "
            f"cover and object differently; it has {listing(root)}"
        )
    items: list[Item] = []
    sources: dict[str, Files] = {}
    notes: list[str] = []
    for home in homes:
        for event in EVENTS:
            if (home / event).is_dir():
                sets, lacks = _sets(home, event)
                items += [_item(home, event, key, trials) for key, trials in sets.items()]
                names = {_name(path): path for trials in sets.values() for path in trials.values()}
                sources |= {name: Files(video=str(path)) for name, path in names.items()}
                if lacks:
                    notes.append(f"{home.name}/{event}: {lacks} sets lack a trial and are left out")
    if not items:
        raise BenchError(f"{root} has no whole set of trials in {', '.join(EVENTS)}")
    return Bench(
        "inflevel",
        Suite("inflevel", tuple(items), sources),
        metric,
        faults_of(items, missing_files(sources)),
        tuple(notes),
        exports={"tsv": write_scores},
        training_refused=REFUSAL,
    )


def metric(items: Sequence[Item], answers: Answers) -> dict[str, float]:
    """Accuracy of each part and event, with the p of a permutation within sets (two-sided)."""
    found: dict[str, float] = {}
    for family in dict.fromkeys(item.family for item in items):
        rows = np.array([[-v for v in answers[i.id]] for i in items if i.family == family])
        found[f"{family}_accuracy"] = four_comparisons(rows)
        found[f"{family}_p"], found[f"{family}_p_one_sided"] = permutation_p(rows)
    found["accuracy"] = mean_of(v for k, v in found.items() if k.endswith("_accuracy"))
    return found


def four_comparisons(plausible_N4: np.ndarray) -> float:
    """Share of comparisons of possible (columns 0, 1) with impossible (2, 3) that are won."""
    real, magic = plausible_N4[:, :2, None], plausible_N4[:, None, 2:]
    return float(((real > magic) + 0.5 * (real == magic)).mean())


def permutation_p(plausible_N4: np.ndarray, rounds: int = ROUNDS) -> tuple[float, float]:
    """Two-sided and one-sided p of the accuracy if the four trials of every set were exchanged."""
    generator = np.random.default_rng(0)
    seen = four_comparisons(plausible_N4)
    null = np.array(
        [four_comparisons(generator.permuted(plausible_N4, axis=1)) for _ in range(rounds)]
    )
    two_sided = (np.abs(null - 0.5) >= abs(seen - 0.5)).mean()
    return float(two_sided), float((null >= seen).mean())


def write_scores(bench: Bench, answers: Answers, out: Path) -> list[Path]:
    """A TSV for each part and event, as the authors' evaluator.py reads it."""
    asked_answers(bench.asked, answers, bench.name)
    paths = []
    for family in bench.suite.families:
        path = out / f"{family.replace('/', '_')}.tsv"
        of_family = [i for i in bench.asked if i.family == family]
        directed = any(item.condition["dir"] for item in of_family)
        with path.open("w", encoding="utf-8", newline="\n") as file:
            columns = ["camera_loc", "cover", "obj", "trial_type"]
            file.write("\t".join([*columns, *["dir"] * directed, "score"]) + "\n")
            for item in of_family:
                event = family.split("/")[1]
                trials = REAL[event] + MAGIC[event]
                for trial, surprise in zip(trials, answers[item.id], strict=True):
                    cells = [item.condition[k] for k in ("camera", "cover", "obj")] + [trial]
                    cells += [item.condition["dir"]] * directed + [repr(-surprise)]
                    file.write("\t".join(map(str, cells)) + "\n")
        paths.append(path)
    return paths


def _sets(home: Path, event: str) -> tuple[dict[tuple[str, ...], dict[str, Path]], int]:
    """Whole sets by (camera, cover, object, direction), and how many lack a trial."""
    sets: dict[tuple[str, ...], dict[str, Path]] = {}
    for path in sorted((home / event).glob("*.mp4")):
        parts = path.stem.split("__")
        if len(parts) not in (5, 6) or parts[1] != event:
            raise BenchError(
                f"{path}: expected <camera>__{event}__<name>__<name>__<trial>[__<LR|RL>].mp4"
            )
        camera, _, first, second, trial = parts[:5]
        if trial not in REAL[event] + MAGIC[event]:
            raise BenchError(f"{path}: trial {trial!r} is none of {REAL[event] + MAGIC[event]}")
        cover, thing = (first, second) if home.name == "inflevel_lab" else (second, first)
        key = (camera, cover, thing, parts[5] if len(parts) == 6 else "")
        sets.setdefault(key, {})[trial] = path
    whole = {key: trials for key, trials in sets.items() if len(trials) == 4}
    return whole, len(sets) - len(whole)


def _name(path: Path) -> str:
    return "/".join(path.with_suffix("").parts[-3:])


def _item(home: Path, event: str, key: tuple[str, ...], trials: Mapping[str, Path]) -> Item:
    home_name = home.name.removeprefix("inflevel_")
    return Item(
        id=f"{home_name}/{event}/" + "__".join(filter(None, key)),
        family=f"{home_name}/{event}",
        score="voe",
        evidence=tuple(Evidence(_name(trials[t])) for t in REAL[event] + MAGIC[event]),
        variants=("video",),
        possible=(True, True, False, False),
        cut_s=0.0,
        cluster=f"{home_name}/{event}/" + "__".join(key[:3]),
        split="test",
        condition=dict(zip(("camera", "cover", "obj", "dir"), key, strict=True)),
    )
