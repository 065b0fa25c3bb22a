"""What frozen probes decode, as labels of rows. In: the truth of scenes. Out: a Table.

A row is one moment of one scene, and one object that is named there ("where is the red ball?"), or
no object (what is asked of the whole scene). Labels that do not hold at a row (the direction of
what stands still) are absent: NaN of values, -1 of classes.

Shapes: R rows, M moments, C values or one, K names (types: colour x shape), F numbers of the state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmpredict.schema import UserError
from mmpredict.world import COLOURS, NONE, SHAPES, Truth

NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
SEEN = 0.2  # share of its pixels from which an object counts as seen
HIDDEN = 0.02  # and up to which it is hidden
MOVING = 0.3  # m/s from which a direction of motion holds
HEARD_S = 0.25  # how long after a contact its direction is asked
CELLS = 4  # the picture's grid of the control task is so many cells wide and high
_CELL_HEIGHT = 0.5  # m
_SUPPORTS = ("nothing", "floor", *SHAPES)
_EVENTS = {
    **{kind: kind for kind in ("hit", "land", "bounce", "wall", "fall", "enter", "hide", "appear")},
    **dict.fromkeys(("grab", "lift", "carry", "release"), "hand"),
}
_NEXT = ("none", *dict.fromkeys(_EVENTS.values()))


@dataclass(frozen=True)
class Target:
    """One thing to decode.

    Args:
        name: "x", "support".
        kind: "value" (R2) or "class" (balanced accuracy).
        of: a named object, or the scene.
        reads: the stream whose blocks are read at the moment.
        classes: their names.
        columns: values per row (2 of a direction).
        unit: of the values.
        meaning: one line for tables.
    """

    name: str
    kind: Literal["value", "class"]
    of: Literal["object", "scene"] = "object"
    reads: Literal["video", "audio"] = "video"
    classes: tuple[str, ...] = ()
    columns: int = 1
    unit: str = ""
    meaning: str = ""


TARGETS = (
    Target("x", "value", unit="m", meaning="right of the middle"),
    Target("y", "value", unit="m", meaning="height"),
    Target("z", "value", unit="m", meaning="depth"),
    Target("speed", "value", unit="m/s", meaning="how fast it moves"),
    Target("heading", "value", columns=2, unit="deg", meaning="where it moves to, if it moves"),
    Target("ttc", "value", unit="s", meaning="time to its next contact, if one comes"),
    Target("visible", "class", classes=("hidden", "visible"), meaning="can it be seen"),
    Target("support", "class", classes=_SUPPORTS, meaning="what it stands on"),
    Target("container", "class", classes=("none", *COLOURS), meaning="the cup it is in"),
    Target("hidden_position", "value", columns=2, unit="m", meaning="x and y while it is hidden"),
    Target(
        "count",
        "class",
        of="scene",
        classes=tuple(map(str, range(9))),
        meaning="how many objects can be seen",
    ),
    Target(
        "azimuth",
        "value",
        of="scene",
        reads="audio",
        unit="deg",
        meaning="direction of the last contact that was heard",
    ),
    Target("next_event", "class", of="scene", classes=_NEXT, meaning="what happens next"),
)


def targets_named(names: Sequence[str]) -> tuple[Target, ...]:
    """Those of TARGETS, in the order of the names."""
    known = {target.name: target for target in TARGETS}
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise UserError(f"targets {unknown or '()'}: give one or more of {', '.join(known)}")
    return tuple(known[name] for name in dict.fromkeys(names))


@dataclass(frozen=True)
class Table:
    """Rows of labels.

    Args:
        moment_R: number of the row's moment; features have one vector for each moment.
        scene_R: number of its scene: rows of a scene are not independent.
        name_R: number of the object's name in NAMES; -1 where the scene is asked about.
        type_R: colour x shape x cell of the picture: what the control task is a function of.
        labels: per target, (R, C) float32 or (R,) int64.
        state_RF: the truth as numbers, from which everything can be decoded.
    """

    moment_R: Tensor
    scene_R: Tensor
    name_R: Tensor
    type_R: Tensor
    labels: Mapping[str, Tensor]
    state_RF: Tensor

    def __len__(self) -> int:
        return len(self.moment_R)

    def valid(self, target: Target) -> Tensor:
        """(R,) bool: rows at which the target holds."""
        labels = self.labels[target.name]
        return labels >= 0 if target.kind == "class" else ~labels.isnan().any(1)


def read_table(truths: Sequence[Truth], moments: Sequence[int]) -> Table:
    """Label the same moments (numbers of frames) of every scene."""
    rows: list[dict] = []
    for scene, truth in enumerate(truths):
        for nth, frame in enumerate(moments):
            place = {"moment": scene * len(moments) + nth, "scene": scene}
            rows += [place | row for row in _rows_at(truth, frame)]
    labels = {}
    for target in TARGETS:
        absent = -1 if target.kind == "class" else [math.nan] * target.columns
        values = [row["labels"].get(target.name, absent) for row in rows]
        labels[target.name] = torch.tensor(
            values, dtype=torch.int64 if target.kind == "class" else torch.float32
        )
    columns = {
        f"{name}_R": torch.tensor([row[name] for row in rows])
        for name in ("moment", "scene", "name", "type")
    }
    return Table(**columns, labels=labels, state_RF=_state(labels, columns["name_R"]))


def _rows_at(truth: Truth, frame: int) -> list[dict]:
    """One row per object that has been seen by now, and one of the scene."""
    time_s = float(truth.times_s[frame])
    seen_N = truth.visible_TN[: frame + 1].amax(0) > SEEN
    rows = []
    for n in seen_N.nonzero()[:, 0].tolist():
        name = int(truth.colour_N[n]) * len(SHAPES) + int(truth.shape_N[n])
        kind = name * CELLS**2 + _cell(*truth.position_TN3[frame, n].tolist())
        labels = _of_object(truth, frame, n, time_s)
        rows.append({"name": name, "type": kind, "labels": labels})
    first = rows[0]["type"] if rows else 0
    scene, sounding = _of_scene(truth, frame, time_s)
    if sounding is not None:  # the control task of what is heard is about what sounds
        n, place = sounding
        name = int(truth.colour_N[n]) * len(SHAPES) + int(truth.shape_N[n])
        heard = name * CELLS**2 + _cell(*place)
        rows.append({"name": -1, "type": heard, "labels": {"azimuth": scene.pop("azimuth")}})
    rows.append({"name": -1, "type": first, "labels": scene})
    return rows


def _cell(x: float, y: float, z: float) -> int:
    """Which of CELLS x CELLS parts of the view it is in."""
    across = math.floor((x / z + 0.5) * CELLS)
    up = math.floor(y / _CELL_HEIGHT)
    return min(max(across, 0), CELLS - 1) * CELLS + min(max(up, 0), CELLS - 1)


def _of_object(truth: Truth, frame: int, n: int, time_s: float) -> dict[str, list[float] | int]:
    x, y, z = truth.position_TN3[frame, n].tolist()
    vx, vy, _ = truth.velocity_TN3[frame, n].tolist()
    speed, visible = math.hypot(vx, vy), float(truth.visible_TN[frame, n])
    support, cup = int(truth.support_TN[frame, n]), int(truth.container_TN[frame, n])
    stands_on = 0 if support == NONE else 1
    if support >= 0:
        stands_on = 2 + int(truth.shape_N[support])
    labels: dict[str, list[float] | int] = {
        **{"x": [x], "y": [y], "z": [z], "speed": [speed]},
        "visible": int(visible > HIDDEN),
        "support": stands_on,
        "container": 0 if cup < 0 else 1 + int(truth.colour_N[cup]),
    }
    if speed > MOVING:
        labels["heading"] = [vy / speed, vx / speed]  # sine, cosine
    contacts = [e.time_s for e in truth.events if e.impulse > 0 and n in (e.a, e.b)]
    coming = [t - time_s for t in contacts if t > time_s]
    if coming:
        labels["ttc"] = [min(coming)]
    if visible <= HIDDEN:
        labels["hidden_position"] = [x, y]
    return labels


def _of_scene(
    truth: Truth, frame: int, time_s: float
) -> tuple[dict[str, list[float] | int], tuple[int, tuple[float, float, float]] | None]:
    """Labels of a moment, and what was heard last: an object and where."""
    coming = [e for e in truth.events if e.time_s > time_s and e.kind in _EVENTS]
    labels: dict[str, list[float] | int] = {
        "count": int((truth.visible_TN[frame] > SEEN).sum()),
        "next_event": _NEXT.index(_EVENTS[coming[0].kind]) if coming else 0,
    }
    heard = [e for e in truth.events if e.impulse > 0 and 0 <= time_s - e.time_s < HEARD_S]
    if not heard:
        return labels, None
    x, _, z = heard[-1].position
    labels["azimuth"] = [math.degrees(math.atan2(x, z))]
    return labels, (heard[-1].a, heard[-1].position)


def _state(labels: Mapping[str, Tensor], name_R: Tensor) -> Tensor:
    """(R, F): all labels side by side, classes one-hot, absent ones 0, and which object it is."""
    parts = [torch.nn.functional.one_hot(name_R + 1, len(NAMES) + 1).float()]
    for target in TARGETS:
        values = labels[target.name]
        if target.kind == "value":
            parts.append(values.nan_to_num(0.0))
        else:
            parts.append(torch.nn.functional.one_hot(values + 1, len(target.classes) + 1).float())
    return torch.cat(parts, 1)
