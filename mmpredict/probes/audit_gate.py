"""The learnability gate: can what is asked be had from what is given at all?

In: items to learn from and items to be judged by, of other scenes. Out: the score per family of a
small network that is given the evidence: the true state (an oracle's view), or what an eye and an
ear make of pixels and waveforms (`audit_senses`), which have learnt from third scenes. A family
below the gate is one whose score cannot be read as a model's failing at that size and that amount
of learning.

Of a pair of captions each context is asked by itself which caption fits, of a matched set each clip
whether it is possible; the numbers are then graded as those of any scorer.

Shapes: N asks, Q choices, E evidence tokens, X their width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from .audit_reader import Reader, Row, as_row, frame_numbers
from .audit_senses import Perceived, Senses, learn_senses
from .audit_views import VIEWS, View, as_view, state, told
from .grading import grade
from .items import Evidence, Item, Suite

GATE = 0.9
_LEARNT = 0.01  # mean loss from which more steps teach nothing
_BATCH = 64
_RATE = 2e-3
_MEASURED = 1000  # rows whose tokens give mean and deviation
_CLIP_CHOICES = ("possible", "impossible")


@dataclass(frozen=True)
class Gate:
    """How much the gate may cost.

    Args:
        view: "state" gives the truth, "pixels" what is made out in pictures of `size` px and heard
            with both ears.
        families: that are tried; () all.
        scenes: of every kind to learn from, and a third as many matched sets of a kind.
        steps: of the optimiser for each family at most, 64 asks at a time; fewer where the loss is
            gone before.
        size: px, a multiple of 32.
        sense_steps: of the optimisers of eye and ear, once for all families.
        dim: of the reader.
    """

    view: str = "state"
    families: tuple[str, ...] = ()
    scenes: int = 300
    steps: int = 1000
    size: int = 32
    sense_steps: int = 6000
    dim: int = 64

    def __post_init__(self) -> None:
        if self.view not in VIEWS:
            raise ValueError(f"view={self.view!r} is not one of {', '.join(VIEWS)}")


@dataclass(frozen=True)
class _Ask:
    """One choice to be made in view of one evidence."""

    evidence: Evidence
    text: str
    choices: tuple[str, ...]
    answer: int


def gate_scores(
    learn: Suite, judge: Suite, gate: Gate, *, practice: Suite | None = None, seed: int = 0
) -> dict[str, tuple[float, int]]:
    """Score of each family on scenes that were not learnt from, and how many items it is of.

    Words alone are no evidence for pixels: families that show nothing have a state alone.

    Args:
        practice: whose takes eye and ear learn from; needed for pixels, and of other scenes, so
            that they see as badly when the reader learns as when it is judged.
    """
    senses = None
    if gate.view == "pixels":
        if practice is None:
            raise ValueError("view='pixels' needs scenes to practise eye and ear on")
        takes = practice.sources.values()
        senses = learn_senses(takes, size=gate.size, steps=gate.sense_steps, seed=seed)
    views = [_Views(suite, senses) for suite in (learn, judge)]
    found = {}
    for family in gate.families or learn.families:
        items = [[i for i in suite.items if i.family == family] for suite in (learn, judge)]
        if senses is not None:
            items = [[i for i in some if i.evidence[0].source] for some in items]
        if not all(items):
            continue
        asks = [[ask for item in some for ask in _asks(item)] for some in items]
        frames = frame_numbers([text for ask in asks[0] for text in (ask.text, *ask.choices)])
        learnt, judged = (_rows(some, view, frames) for some, view in zip(asks, views, strict=True))
        scores = _judged(_learnt(learnt, len(frames), gate, seed), items[1], judged)
        found[family] = (sum(scores) / len(scores), len(scores))
    return found


def _asks(item: Item) -> list[_Ask]:
    if item.score == "voe":
        marked = zip(item.evidence, item.possible, strict=True)
        return [_Ask(e, "", _CLIP_CHOICES, int(not possible)) for e, possible in marked]
    if item.score == "minpair":
        return [_Ask(e, "", item.choices, k) for k, e in enumerate(item.evidence)]
    return [_Ask(item.evidence[0], item.question, item.choices, item.answer)]


class _Views:
    """What a suite's evidence shows; the same is looked at once."""

    def __init__(self, suite: Suite, senses: Senses | None) -> None:
        self.suite, self.senses = suite, senses
        self.perceived: dict[str, Perceived] = {}
        self.views: dict[tuple[str, float | None, tuple[str, ...]], View] = {}

    def of(self, evidence: Evidence) -> View:
        key = evidence.source, evidence.until_s, () if evidence.source else evidence.told
        if key not in self.views:
            self.views[key] = self._made(evidence)
        return self.views[key]

    def _made(self, evidence: Evidence) -> View:
        source = evidence.source
        if not source:
            return told(evidence.told)
        take = self.suite.sources[source]
        if self.senses is None:
            return as_view(state(take, evidence.until_s))
        if source not in self.perceived:
            self.perceived[source] = self.senses.perceive(take)
        return as_view(self.perceived[source].known(evidence.until_s))


def _rows(asks: Sequence[_Ask], views: _Views, frames: Mapping[str, int]) -> list[Row]:
    return [
        as_row(ask.text, ask.choices, ask.answer, view=views.of(ask.evidence), frames=frames)
        for ask in asks
    ]


def _learnt(rows: Sequence[Row], num_frames: int, gate: Gate, seed: int) -> Reader:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokens_EX = torch.cat([row.tokens_EX for row in rows[:_MEASURED]])
        model = Reader(tokens_EX, rows[0].plain, num_frames=num_frames, dim=gate.dim)
    optimiser = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, _RATE, total_steps=gate.steps, pct_start=0.1
    )
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    mean_loss = 1.0
    for _ in range(gate.steps):
        while len(order) < _BATCH:  # every ask once before any comes again
            order += torch.randperm(len(rows), generator=generator).tolist()
        chosen, order = [rows[k] for k in order[:_BATCH]], order[_BATCH:]
        loss = functional.cross_entropy(model(chosen), torch.tensor([r.answer for r in chosen]))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        mean_loss += 0.05 * (loss.item() - mean_loss)
        if mean_loss < _LEARNT:
            break
    return model.eval()


def _judged(model: Reader, items: Sequence[Item], rows: Sequence[Row]) -> list[float]:
    numbers: list[list[float]] = []
    with torch.no_grad():
        for start in range(0, len(rows), _BATCH):
            said_NQ = model(rows[start : start + _BATCH]).log_softmax(1)
            numbers += [[x for x in said if x > -torch.inf] for said in said_NQ.tolist()]
    scores, at = [], 0
    for item in items:
        count = len(_asks(item))
        scores.append(grade(item, _joined(item, numbers[at : at + count])).score)
        at += count
    return scores


def _joined(item: Item, numbers: Sequence[list[float]]) -> list[float]:
    """What a scorer says of an item, from what was said of its asks."""
    if item.score == "voe":
        return [broken - lawful for lawful, broken in numbers]
    return [number for part in numbers for number in part]
