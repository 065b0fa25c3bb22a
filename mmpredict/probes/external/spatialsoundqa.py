"""SpatialSoundQA (Zheng et al. 2024, BAT, arXiv 2402.01591): what sounds, from where, how far.

Layout: rows (audio_id, reverb_id, audio_id2, reverb_id2, question_id, question_type, question,
answer) as JSONL or as {"data": [...]}; sounds `<audio_id>.wav` below the folder or `audioset/`,
responses of rooms `<reverb_id>` (npy, one row an ear) below `mp3d_reverb/binaural/`, `reverb/
binaural/` or `binaural/`. A scene is the first channel at 32 kHz and -14 dBFS, convolved with both
ears' responses, cut or filled to 10 s; two sources are averaged. Scenes are rendered once, to
`rendered/` in the folder, 2.5 MB each.

Scored are exact answers for each question type, chosen among those that occur in the file; types
with more than 64 answers (lists of classes) are left out and named. `doa_errors` and
`distance_accuracy` score what an estimator says of angles and metres.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmpredict.media import MediaError, read_clip, write_wav
from mmpredict.probes.external.bench import (
    Answers,
    Bench,
    BenchError,
    faults_of,
    grades,
    mean_of,
    means_by,
)
from mmpredict.probes.external.tables import (
    check_columns,
    listing,
    need_folder,
    read_json,
    read_rows,
)
from mmpredict.probes.items import Evidence, Files, Item, Suite

RATE, SECONDS, LEVEL_DB = 32_000, 10, -14.0
MOST = 64  # answers to choose from
NEEDS = (
    "audio_id",
    "reverb_id",
    "audio_id2",
    "reverb_id2",
    "question_id",
    "question_type",
    "question",
    "answer",
)
ROOMS = ("mp3d_reverb/binaural", "reverb/binaural", "binaural")


def load(root: Path, part: str = "") -> Bench:
    """`part` is a question type; all if empty."""
    root = need_folder(root)
    rows = _rows(root)
    answers = {
        kind: tuple(sorted({str(r["answer"]) for r in rows if r["question_type"] == kind}))
        for kind in dict.fromkeys(row["question_type"] for row in rows)
    }
    usable = {kind for kind, words in answers.items() if 2 <= len(words) <= MOST}
    left_out = [f"{kind} ({len(answers[kind])} answers)" for kind in answers if kind not in usable]
    items: list[Item] = []
    sources: dict[str, Files] = {}
    bad: dict[str, str] = {}
    for number, row in enumerate(rows):
        kind = row["question_type"]
        if kind not in usable or part not in ("", kind):
            continue
        name = "+".join(str(row[key]).replace("/", "_") for key in NEEDS[:4] if row[key])
        items.append(_item(f"{kind}/{row['question_id']}/{number}", row, name, answers[kind]))
        if name not in sources:
            path = root / "rendered" / f"{name}.wav"
            sources[name] = Files(audio=str(path))
            try:
                if not path.is_file():
                    scene = rendered(root, row)
                    path.parent.mkdir(exist_ok=True)
                    write_wav(path, scene, RATE)
            except (MediaError, OSError, ValueError) as error:
                bad[name] = str(error)
    return Bench(
        "spatialsoundqa",
        Suite("spatialsoundqa", tuple(items), sources),
        metric,
        faults_of(items, bad),
        (f"left out, as their answers are no short list: {', '.join(left_out)}",)
        if left_out
        else (),
    )


def metric(items: Sequence[Item], answers: Answers) -> dict[str, float]:
    """Share of exact answers of each question type, and the mean over types."""
    by_type = means_by(items, grades(items, answers), lambda item: item.family)
    return {
        **{f"{k}_accuracy": v for k, v in by_type.items()},
        "accuracy": mean_of(by_type.values()),
    }


def doa_errors(
    said: Sequence[tuple[float, float]], truth: Sequence[tuple[float, float]]
) -> dict[str, float]:
    """Angles between directions (azimuth, elevation), in degrees: their mean, and the share of
    those above 20 degrees (ER20)."""
    angles = [_angle(a, b) for a, b in zip(said, truth, strict=True)]
    return {"doa_mae": mean_of(angles), "er20": mean_of(float(a > 20) for a in angles)}


def distance_accuracy(said: Sequence[float], truth: Sequence[float], within: float = 0.5) -> float:
    """Share of distances that are at most `within` metres off."""
    return mean_of(float(abs(a - b) <= within) for a, b in zip(said, truth, strict=True))


def rendered(root: Path, row: dict[str, Any]) -> torch.Tensor:
    """(2, S) what the two ears hear.

    Raises:
        MediaError, BenchError: a sound or a response is missing or damaged.
    """
    scene = _source(root, row["audio_id"], row["reverb_id"])
    if row["audio_id2"] and row["reverb_id2"]:
        scene = (scene + _source(root, row["audio_id2"], row["reverb_id2"])) / 2
    return scene.float()


def _source(root: Path, sound: str, room: str) -> torch.Tensor:
    paths = [root / f"{sound}.wav", root / "audioset" / f"{sound}.wav"]
    clip = read_clip(
        next((p for p in paths if p.is_file()), paths[0]), sample_rate=RATE, frames=False
    )
    dry = clip.waveform_CS[0].double()
    loud = dry.square().mean().sqrt()
    if loud > 0:
        dry = dry * 10 ** (LEVEL_DB / 20) / loud
    folder = need_folder(root, *ROOMS)
    response = torch.from_numpy(np.load(folder / room, allow_pickle=False)).double()
    if response.ndim != 2 or len(response) != 2:
        raise BenchError(f"{folder / room}: shape {tuple(response.shape)} is not (2, samples)")
    length = len(dry) + response.shape[1] - 1
    spectrum = torch.fft.rfft(dry, length) * torch.fft.rfft(response, length)
    heard = torch.fft.irfft(spectrum, length)[:, : RATE * SECONDS]
    return torch.nn.functional.pad(heard, (0, RATE * SECONDS - heard.shape[1]))


def _angle(first: tuple[float, float], second: tuple[float, float]) -> float:
    (a, e), (b, f) = (tuple(map(math.radians, pair)) for pair in (first, second))
    cosine = math.sin(e) * math.sin(f) + math.cos(e) * math.cos(f) * math.cos(a - b)
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


def _rows(root: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    paths = [p for p in sorted(root.rglob("*.json*")) if "rendered" not in p.parts]
    for path in paths:
        whole = read_json(path) if path.suffix == ".json" else read_rows(path, NEEDS)
        rows = whole.get("data") if isinstance(whole, dict) else whole
        if not isinstance(rows, list):
            raise BenchError(f'{path}: expected rows, or {{"data": [rows]}}')
        for number, row in enumerate(rows):
            check_columns(path, row, NEEDS, f", row {number}")
        found += rows
    if not found:
        raise BenchError(f"{root} has no JSON or JSONL with questions; it has {listing(root)}")
    return found


def _item(name: str, row: dict[str, Any], source: str, choices: tuple[str, ...]) -> Item:
    return Item(
        id=name,
        family=row["question_type"],
        score="mc",
        evidence=(Evidence(source),),
        variants=("audio",),
        question=row["question"],
        choices=choices,
        answer=choices.index(str(row["answer"])),
        chance=1 / len(choices),
        cluster=source,
        split="test",
    )
