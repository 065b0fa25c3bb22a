"""Questions with answers from the truth: relations at a moment, and what happened until then.

Every question belongs to a family of the probes. Where the answer would hang on a hair (a gap below
the margins here) the question is not asked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .physics import STEP_HZ, Motion
from .stage import FLOOR, NONE, SHAPES, Stage, random_for
from .truth import History

_MARGIN_X = 0.35  # m between the middles for left and right
_MARGIN_Y = 0.4  # m for above and below
_MOVED = 0.2  # m from which an object has moved
_STILL = 0.03  # m up to which it has not
_SEEN_S = 0.125  # the last questions come this long before the end: a frame shows that moment
_PER_FAMILY = 2


@dataclass(frozen=True)
class Question:
    """A question with one right answer.

    Args:
        text: "is the red ball left or right of the blue box?"
        choices: the answers to choose from.
        answer: number of the right one.
        family: "left_right", "support" and so on.
        template: which wording, "left_right/0".
        time_s: when it is asked; it is about this moment or what happened before it.
        objects: numbers of the objects that it names.
    """

    text: str
    choices: tuple[str, ...]
    answer: int
    family: str
    template: str
    time_s: float
    objects: tuple[int, ...] = ()


class _Asker:
    """Collects the questions about one moment."""

    def __init__(
        self, stage: Stage, motion: Motion, history: History, entry: int, rng: np.random.Generator
    ) -> None:
        self.stage, self.motion, self.history, self.rng = stage, motion, history, rng
        self.entry, self.time_s = entry, entry / STEP_HZ
        self.events = [e for e in history.events if e.time_s <= self.time_s]
        self.xy_N2 = motion.state_KN6[entry, :, :2]
        self.support_N = history.support_KN[entry]
        self.container_N = history.container_KN[entry]
        self.names = [f"the {spec.name}" for spec in stage.objects]
        self.found: list[Question] = []

    def ask(
        self, family: str, texts: tuple[str, ...], right: str, wrong: list[str], *objects: int
    ) -> None:
        """Add a question, with one of several wordings and the choices in random order."""
        template = int(self.rng.integers(len(texts)))
        choices = [right, *dict.fromkeys(w for w in wrong if w != right)]
        order = self.rng.permutation(len(choices))
        shuffled = tuple(choices[k] for k in order)
        name = f"{family}/{template}"
        place = shuffled.index(right)
        self.found.append(
            Question(texts[template], shuffled, place, family, name, self.time_s, objects)
        )

    def pairs(self) -> list[tuple[int, int]]:
        count = len(self.names)
        found = [(a, b) for a in range(count) for b in range(count) if a != b]
        return [found[k] for k in self.rng.permutation(len(found))]


def ask_questions(
    stage: Stage, motion: Motion, history: History, seed: int
) -> tuple[Question, ...]:
    """Questions about the middle and about the end of a clip, at moments that 8 fps show."""
    rng = random_for("questions", seed)
    found: list[Question] = []
    for time_s in (round(stage.seconds / _SEEN_S / 2) * _SEEN_S, stage.seconds - _SEEN_S):
        asker = _Asker(stage, motion, history, round(time_s * STEP_HZ), rng)
        for about in (_ask_places, _ask_things, _ask_past, _ask_hand):
            about(asker)
        found += _thinned(asker)
    return tuple(found)


def _thinned(asker: _Asker) -> list[Question]:
    """At most two questions of each family, with different answers, in random order."""
    kept: list[Question] = []
    answers: dict[str, set[str]] = {}
    for k in asker.rng.permutation(len(asker.found)).tolist():
        question = asker.found[k]
        given = answers.setdefault(question.family, set())
        answer = question.choices[question.answer]
        if len(given) < _PER_FAMILY and answer not in given:
            given.add(answer)
            kept.append(question)
    return kept


def _is_left(stage: Stage, xy_N2: np.ndarray, a: int, b: int) -> bool | None:
    """Whether a is left of b in the world and in the picture; None where they are too close."""
    gap = xy_N2[b, 0] - xy_N2[a, 0]
    seen = xy_N2[b, 0] / stage.objects[b].z - xy_N2[a, 0] / stage.objects[a].z
    return bool(gap > 0) if abs(gap) > _MARGIN_X and gap * seen > 0 else None


def _is_above(stage: Stage, xy_N2: np.ndarray, a: int, b: int) -> bool | None:
    """Higher by a margin: whatever the depth."""
    gap = xy_N2[a, 1] - xy_N2[b, 1]
    return bool(gap > 0) if abs(gap) > _MARGIN_Y else None


def relations_at(stage: Stage, motion: Motion, history: History, entry: int) -> list[str]:
    """Sentences about how objects stand to each other, for the opening caption."""
    xy_N2, found = motion.state_KN6[entry, :, :2], []
    objects = stage.objects
    for a, one in enumerate(objects):
        for b, two in enumerate(objects):
            if a == b or history.hidden_KN[entry, [a, b]].any():
                continue
            if history.container_KN[entry, a] == b:
                found.append(f"the {one.name} is in the {two.name}")
            elif history.support_KN[entry, a] == b:
                found.append(f"the {one.name} is on the {two.name}")
            elif one.lane == two.lane and _is_above(stage, xy_N2, a, b):
                found.append(f"the {one.name} is above the {two.name}")
            elif (is_left := _is_left(stage, xy_N2, a, b)) is not None:
                side = "left" if is_left else "right"
                found.append(f"the {one.name} is {side} of the {two.name}")
            elif one.lane > two.lane:
                found.append(f"the {one.name} is behind the {two.name}")
    return found


def _ask_places(asker: _Asker) -> None:
    """left_right, above_below, nearer_farther."""
    stage, names = asker.stage, asker.names
    for a, b in asker.pairs():
        is_left = _is_left(stage, asker.xy_N2, a, b)
        if is_left is not None:
            texts = (
                f"is {names[a]} left or right of {names[b]}?",
                f"on which side of {names[b]} is {names[a]}?",
            )
            asker.ask("left_right", texts, "left" if is_left else "right", ["left", "right"], a, b)
        is_above = _is_above(stage, asker.xy_N2, a, b)
        if is_above is not None:
            texts = (
                f"is {names[a]} above or below {names[b]}?",
                f"{names[a]} is above or below {names[b]}?",
            )
            right = "above" if is_above else "below"
            asker.ask("above_below", texts, right, ["above", "below"], a, b)
        if a < b and stage.objects[a].lane != stage.objects[b].lane:
            nearer = a if stage.objects[a].lane < stage.objects[b].lane else b
            texts = (f"which is nearer {names[a]} or {names[b]}?",)
            asker.ask("nearer_farther", texts, names[nearer], [names[a], names[b]], a, b)
            texts = (f"which is behind {names[a]} or {names[b]}?",)
            asker.ask("nearer_farther", texts, names[a + b - nearer], [names[a], names[b]], a, b)


def _ask_things(asker: _Asker) -> None:
    """containment, support, counting, material, permanence."""
    stage, names = asker.stage, asker.names
    for n, spec in enumerate(stage.objects):
        if spec.shape == "cup":
            inside = np.flatnonzero(asker.container_N == n)
            right = names[int(inside[0])] if len(inside) else "nothing"
            others = [name for k, name in enumerate(names) if k != n]
            texts = (f"what is in {names[n]}?", f"what is inside {names[n]}?")
            asker.ask("containment", texts, right, [*others, "nothing"], n)
        below = int(asker.support_N[n])
        if below != NONE:
            right = "the floor" if below == FLOOR else names[below]
            others = [name for k, name in enumerate(names) if k != n]
            texts = (f"what is {names[n]} on?", f"on what does {names[n]} stand?")
            asker.ask("support", texts, right, [*others, "the floor"], n)
        texts = (f"what is {names[n]} made of?",)
        asker.ask("material", texts, spec.material, ["rubber", "wood", "metal"], n)
        if stage.screen and stage.screen.leave_s is None:
            right = "yes" if asker.history.hidden_KN[asker.entry, n] else "no"
            texts = (f"is {names[n]} hidden?", f"is {names[n]} hidden behind the screen?")
            asker.ask("permanence", texts, right, ["yes", "no"], n)
    shape = SHAPES[int(asker.rng.integers(len(SHAPES)))]
    if asker.rng.random() < 0.7:  # mostly of something that is there
        shape = stage.objects[int(asker.rng.integers(len(names)))].shape
    count = sum(spec.shape == shape for spec in stage.objects)
    numbers = [str(k) for k in range(7)]
    plural = {"box": "boxes"}.get(shape, f"{shape}s")
    asker.ask("counting", (f"how many {plural} are there?",), str(count), numbers)
    asker.ask("counting", ("how many things are there?",), str(len(names)), numbers)


def _ask_past(asker: _Asker) -> None:
    """moved, direction, which_hit, order."""
    names, yes_no = asker.names, ["yes", "no"]
    path_KN2 = asker.motion.state_KN6[: asker.entry + 1, :, :2]
    reach_N = np.abs(path_KN2 - path_KN2[0]).max((0, 2))
    for n in range(len(names)):
        if reach_N[n] > _MOVED or reach_N[n] < _STILL:
            right = "yes" if reach_N[n] > _MOVED else "no"
            texts = (f"did {names[n]} move?", f"has {names[n]} moved?")
            asker.ask("moved", texts, right, yes_no, n)
        went = path_KN2[-1, n, 0] - path_KN2[0, n, 0]
        if abs(went) > _MARGIN_X and abs(went) > 0.9 * np.ptp(path_KN2[:, n, 0]):
            texts = (f"which way did {names[n]} go?", f"did {names[n]} go left or right?")
            asker.ask("direction", texts, "left" if went < 0 else "right", ["left", "right"], n)
        hits = [e for e in asker.events if e.kind in ("hit", "land") and n in (e.a, e.b)]
        if not hits and reach_N[n] > _MOVED and asker.rng.random() < 0.3:
            text = (f"what did {names[n]} hit first?",)
            asker.ask("which_hit", text, "nothing", [*names[:n], *names[n + 1 :]], n)
        if hits:
            first = hits[0].b if hits[0].a == n else hits[0].a
            came = hits[0].a == n
            text = f"what did {names[n]} hit first?" if came else f"what hit {names[n]} first?"
            others = [name for k, name in enumerate(names) if k != n]
            asker.ask("which_hit", (text,), names[first], [*others, "nothing"], n)


def _ask_hand(asker: _Asker) -> None:
    """pick_up: what was lifted, what went with it, what fell."""
    hand, names = asker.stage.hand, asker.names
    lifts = [e for e in asker.events if e.kind in ("lift", "carry")]
    if hand is None or not lifts or asker.time_s < lifts[0].time_s + 0.5:
        return
    target, start = hand.target, round(lifts[0].time_s * STEP_HZ)
    asker.ask("pick_up", ("what did the hand take?", "what is in the hand?"), names[target], names)
    others = [k for k in range(len(names)) if k != target]
    wrong = [names[k] for k in others] + ["nothing"]
    fell = [e.a for e in asker.events if e.kind == "fall" and e.a != target and e.b >= 0]
    if len(set(fell)) <= 1:
        right = names[fell[0]] if fell else "nothing"
        verb = "lifted" if lifts[0].kind == "lift" else "moved"
        texts = (f"what falls when {names[target]} is {verb}?", f"what fell from {names[target]}?")
        if not fell or fell_from(asker, fell[0]) == target:
            asker.ask("pick_up", texts, right, wrong, target)
    linked = follows(asker.stage, asker.motion, asker.history, start, asker.entry)
    if len(linked) <= 1:
        right = names[linked[0]] if linked else "nothing"
        texts = (f"what moves with {names[target]}?", f"what goes with {names[target]}?")
        asker.ask("pick_up", texts, right, wrong, target)


def fell_from(asker: _Asker, n: int) -> int:
    """What the object stood on before it fell."""
    return next(e.b for e in asker.events if e.kind == "fall" and e.a == n)


def follows(stage: Stage, motion: Motion, history: History, start: int, entry: int) -> list[int]:
    """Objects on, in or under the lifted one that have come the same way as it."""
    target = stage.hand.target
    linked = set(np.flatnonzero(history.container_KN[entry] == target).tolist())
    linked |= set(np.flatnonzero(history.support_KN[entry] == target).tolist())
    linked |= {string.lower for string in stage.strings if string.upper == target}
    went = motion.state_KN6[entry, :, :2] - motion.state_KN6[start, :, :2]
    return sorted(n for n in linked if np.abs(went[n] - went[target]).max() < 0.3)
