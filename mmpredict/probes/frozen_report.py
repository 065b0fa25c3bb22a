"""The frozen probes as a page to read. In: the plain results. Out: Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_UNTRAINED = "untrained"


def table_of(plain: Mapping[str, Any]) -> str:
    """What was found, with every control beside every number."""
    about, targets = plain["about"], plain["targets"]
    lines = [f"**{flag}**\n" for flag in plain["flags"]]
    lines += [
        f"Probes were fitted on {about['train_scenes']} scenes, layers chosen on "
        f"{about['dev_scenes']}, and {about['test_scenes']} others asked once. Score: R2, or "
        "balanced accuracy of classes; intervals are 95 %, by resampling scenes.\n",
        _scores(targets, "linear"),
        _scores(targets, "attentive"),
        "In the world's own units:\n",
        _measures(targets),
        "More of the linear probe: its rank, the number of labels, bits of the online code, and "
        "new pairs of colour and shape:\n",
        _curves(targets),
        *(f"- left out of {name}: {e['left_out']}" for name, e in targets.items() if e["left_out"]),
        *(f"- not asked: {name}: {why}" for name, why in plain["skipped"].items()),
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([_row(head), _row(["---"] * len(head)), *map(_row, rows)]) + "\n"


def _interval(plain: Sequence[float] | None) -> str:
    return "-" if plain is None else f"{plain[0]:.2f} [{plain[1]:.2f}, {plain[2]:.2f}]"


def _scores(targets: Mapping[str, Mapping[str, Any]], readout: str) -> str:
    """One row per target: the score beside everything that it is held against."""
    mine = {name: e for name, e in targets.items() if readout in e["readouts"]}
    if not mine:
        return ""
    first = next(iter(mine.values()))["readouts"][readout]
    others = [name for name in first["baselines"] if not name.startswith(_UNTRAINED)]
    temporal = list(first["temporal"])
    head = [f"{readout} probe", "layer", "score", "chance", *others, _UNTRAINED, *temporal]
    head += ["control task", "selectivity", "permuted", "oracle", "may be said"]
    rows = []
    for name, e in mine.items():
        found = e["readouts"][readout]
        inits = [
            b["score"] for other, b in found["baselines"].items() if other.startswith(_UNTRAINED)
        ]
        spread = f"{min(inits):.2f}" + (f"..{max(inits):.2f}" if len(inits) > 1 else "")
        rows.append(
            [
                name,
                f"{found['layer']}, {found['pooling']}",
                _interval(found["score"]),
                f"{e['chance']:.2f}",
                *(f"{found['baselines'][other]['score']:.2f}" for other in others),
                spread,
                *(f"{found['temporal'][other]['score']:.2f}" for other in temporal),
                f"{found['control']:.2f}",
                _interval(found["selectivity"]),
                f"{e['permuted'][0]:.2f}" if readout == "linear" else "-",
                f"{e['oracle']:.2f}" if readout == "linear" else "-",
                found["claim"],
            ]
        )
    return _table(head, rows)


_WORDS = {
    "mae": "mean error {:.2f} {unit}",
    "mae_of_mean": "(of the train mean {:.2f})",
    "d1": "within 25 % in {:.2f}",
    "abs_rel": "relative error {:.2f}",
    "angular_error_deg": "mean angle {:.0f} deg",
    "angular_error_of_mean_deg": "(of the train mean {:.0f})",
    "accuracy": "accuracy {:.2f}",
    "accuracy_of_majority": "(of the commonest {:.2f})",
    "macro_f1": "macro F1 {:.2f}",
}


def _measures(targets: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, e in targets.items():
        cells = [name, f"{e['meaning']}", str(e["rows"]["test"])]
        for readout in ("linear", "attentive"):
            found = e["readouts"].get(readout)
            words = (
                []
                if found is None
                else [
                    _WORDS[key].format(value, unit=e["unit"])
                    for key, value in found["measures"].items()
                ]
            )
            cells.append(", ".join(words) or "-")
        rows.append(cells)
    return _table(["target", "meaning", "test rows", "linear", "attentive"], rows)


def _curves(targets: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, e in targets.items():
        linear = e["readouts"]["linear"]
        codes = [
            f"{who} {code['bits']:.0f} bits, x {code['compression']:.2f}"
            for who, code in e["mdl"].items()
            if code
        ]
        rows.append(
            [
                name,
                " ".join(f"{rank}: {score:.2f}" for rank, score in e["ranks"].items()),
                " ".join(f"{count}: {score:.2f}" for count, score in e["samples"].items()),
                "; ".join(codes),
                _interval(linear["comp"]),
                _interval(linear["gap"]),
            ]
        )
    head = ["target", "by rank", "by labels", "online code", "new pairs", "lost there"]
    return _table(head, rows)
