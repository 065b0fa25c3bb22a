"""What a checkpoint was made with beside what this run asks for. In: both. Out: words.

The command line wins over the recipe, and the recipe over the checkpoint; what differs is said.
Weights that do not fit are refused with the settings that are to blame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
import yaml
from pytorch_lightning import LightningModule

from mmpredict.schema import UserError

OF_ONE_RUN = ("run_dir", "ckpt_path", "init_from", "init_least", "trainer.default_root_dir")
SHOWN = 12  # differences in a note
ROWS = 5  # of the table in an error, which has eight lines at most
NOTHING = "not set"
WORDS = 60  # letters of a value


def differences(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted names whose values are not the same in two nested mappings."""
    left, right = dict(_leaves(old)), dict(_leaves(new))
    return {
        name: (left.get(name, NOTHING), right.get(name, NOTHING))
        for name in sorted(left.keys() | right.keys())
        if left.get(name, NOTHING) != right.get(name, NOTHING)
    }


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no mapping. `init_args` is no part of the name, as on the command line;
    what stands in a class_path by itself goes with the class."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            part = "" if key == "init_args" else str(key)
            yield from _leaves(inner, ".".join(filter(None, (name, part))))
    elif name:
        yield name, list(value) if isinstance(value, tuple) else value


def settings_note(old: str, new: str) -> str:
    """One line on the settings that differ between the recipe in a checkpoint and this run's; empty
    if none does."""
    try:
        changed = differences(yaml.safe_load(old), yaml.safe_load(new))
    except yaml.YAMLError as error:
        return f"note: the recipe in the checkpoint cannot be read: {str(error).splitlines()[0]}"
    rows = [_row(name, pair) for name, pair in changed.items() if name not in OF_ONE_RUN]
    if not rows:
        return ""
    more = [f"{len(rows) - SHOWN} more"] if len(rows) > SHOWN else []
    return "note: this run's settings, not the checkpoint's: " + "; ".join(rows[:SHOWN] + more)


def _row(name: str, pair: tuple[Any, Any]) -> str:
    """name old -> new; what is long is cut."""
    old, new = (text if len(text) <= WORDS else f"{text[:WORDS]}..." for text in map(str, pair))
    return f"{name} {old} -> {new}"


def check_architecture(module: LightningModule, checkpoint: Mapping[str, Any]) -> None:
    """Refuse weights that have no place in `module.predictor`, before any is loaded.

    Raises:
        UserError: names the settings that differ, and the way to begin a new run with them.
    """
    theirs = checkpoint.get("state_dict") or {}
    if not theirs:  # of a sharded run, whose weights its strategy reads
        return
    ours = module.state_dict()
    wrong = [n for n in ours.keys() & theirs.keys() if _shape(ours[n]) != _shape(theirs[n])]
    if module.strict_loading:
        wrong += sorted(ours.keys() ^ theirs.keys())
    if not wrong:
        return
    about = checkpoint.get("mmpredict") or {}
    codecs = getattr(getattr(module.trainer, "datamodule", None), "codecs", None)
    here: dict[str, Any] = {"predictor": asdict(module.predictor.config)}
    here |= {} if codecs is None else {"data": codecs.to_plain()}
    there = {"predictor": about.get("predictor"), "data": about.get("codecs")}
    changed = differences({key: there[key] for key in here}, here)
    rows = [_row(name, pair) for name, pair in changed.items() if not name.endswith("vocabulary")]
    rows = rows or [f"tensors without a counterpart: {', '.join(sorted(wrong)[:3])}"]
    more = [f"{len(rows) - ROWS + 1} more settings"] if len(rows) > ROWS else []
    table = [*rows[: ROWS - len(more)], *more]
    raise UserError(
        "\n  ".join(
            [
                f"the checkpoint is of another architecture ({len(wrong)} tensors do not fit):",
                *table,
                "take its settings to go on with it (left: the checkpoint's), or begin a new run "
                "with what fits of its weights: --init_from CKPT in the place of --ckpt_path",
            ]
        )
    )


def _shape(tensor: Any) -> torch.Size | None:
    return getattr(tensor, "shape", None)
