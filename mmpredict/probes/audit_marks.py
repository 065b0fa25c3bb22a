"""What of a suite may give answers away but its words: repeated scenes, places and templates of
answers, and sets whose breach a frame difference tells.

In: a suite. Out: numbers with what they should be.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mmpredict.world import Film, Recording, Take

from .grading import grade
from .items import Item, Suite

_FILM = Film((32, 32), fps=8.0, sample_rate=16000)
_CHUNK_S = 0.04


def state_hash(take: Take) -> str:
    """Of all that decides what happens, to the millimetre; not of how it is painted."""
    plain = take.to_plain()
    del plain["key"]
    plain.pop("family", None)
    return hashlib.sha256(repr(_rounded(plain)).encode()).hexdigest()


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {k: _rounded(value[k]) for k in sorted(value)}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return round(value, 3) if isinstance(value, float) else value


def repeated(suite: Suite, others: Iterable[Suite]) -> tuple[int, int]:
    """How many scenes are in the suite twice, and how many in one of the others as well.

    Takes of one cluster may be alike up to their sound or their question.
    """
    clusters = {e.source: item.cluster for item in suite.items for e in item.evidence}
    owners: dict[str, set[str]] = defaultdict(set)
    for name, source in suite.sources.items():
        if isinstance(source, Take):
            owners[state_hash(source)].add(clusters.get(name, name))
    twice = sum(len(found) > 1 for found in owners.values())
    elsewhere = {
        state_hash(source)
        for other in others
        for source in other.sources.values()
        if isinstance(source, Take)
    }
    return twice, len(owners.keys() & elsewhere)


def position_p(items: Sequence[Item]) -> float:
    """p of a chi-square test that the right answer stands at every place equally often."""
    least = 1.0
    by_length: dict[int, Counter[int]] = defaultdict(Counter)
    for item in items:
        by_length[len(item.choices)][item.answer] += 1
    for length, counts in by_length.items():
        expected = sum(counts.values()) / length
        chi = sum((counts[k] - expected) ** 2 / expected for k in range(length))
        least = min(least, _tail(chi, length - 1))
    return least


def template_p(items: Sequence[Item]) -> float:
    """p of a chi-square test that template and answer are independent. The answer is its words, or,
    where the choices are things, which of those that the question names."""
    counts: Counter[tuple[str, str]] = Counter()
    for item in items:
        counts[item.template, _label(item)] += 1
    templates, labels = {t for t, _ in counts}, {a for _, a in counts}
    total = sum(counts.values())
    by_template, by_label = Counter(), Counter()
    for (template, label), n in counts.items():
        by_template[template] += n
        by_label[label] += n
    chi = 0.0
    for template in templates:
        for label in labels:
            expected = by_template[template] * by_label[label] / total
            chi += (counts[template, label] - expected) ** 2 / expected
    return _tail(chi, (len(templates) - 1) * (len(labels) - 1))


def cells(items: Sequence[Item]) -> int:
    """How many pairs of a template and an answer the test of `template_p` counts."""
    return len({item.template for item in items}) * len({_label(item) for item in items})


def _label(item: Item) -> str:
    right = item.choices[item.answer]
    if not right.startswith("the ") or right not in item.question:
        return right if not right.startswith("the ") else "a thing"
    place = item.question.index(right)
    before = sum(c in item.question[:place] for c in item.choices)
    return f"named {before}"


def _tail(chi: float, freedom: int) -> float:
    if freedom < 1:
        return 1.0
    half = torch.tensor(freedom / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half, torch.tensor(chi / 2, dtype=torch.float64)))


def change_scores(suite: Suite, items: Sequence[Item]) -> list[float]:
    """The score of surprise by change alone on voe sets: the error of copying the last picture, or,
    where the breach is heard, the last spectrum, in the mean after the cut."""
    scores = []
    for item in items:
        is_heard = "video" not in item.variants
        surprise = []
        for evidence in item.evidence:
            recording = suite.sources[evidence.source].record(_FILM)
            change = _sound_change if is_heard else _picture_change
            surprise.append(change(recording, float(item.cut_s)))
        scores.append(grade(item, surprise).score)
    return scores


def _picture_change(recording: Recording, cut_s: float) -> float:
    frames = recording.clip.frames_TCHW.float()
    error_T = (frames[1:] - frames[:-1]).square().flatten(1).mean(1)
    return float(error_T[recording.clip.times_s[1:] > cut_s].mean())


def _sound_change(recording: Recording, cut_s: float) -> float:
    rate = recording.clip.sample_rate
    size = round(_CHUNK_S * rate)
    wave = recording.clip.waveform_CS
    chunks: Tensor = wave[:, : wave.shape[1] // size * size].unflatten(1, (-1, size))
    level = torch.fft.rfft(chunks).abs().add(1e-3).log()  # (C, K, frequencies)
    error_K = (level[:, 1:] - level[:, :-1]).square().mean((0, 2))
    ends_K = torch.arange(2, chunks.shape[1] + 1) * _CHUNK_S
    after = error_K[ends_K > cut_s]
    return float(after.mean()) if len(after) else math.nan
