"""Events to words in time: an opening line, then what happens as it happens, and short dialogues.

A piece starts a moment after its event, lasts as long as it takes to say, and waits for the piece
before it; what would come too late, or run past the end of the clip, is said shorter or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..schema import TextPiece
from .condition import Condition
from .physics import STEP_HZ, Motion
from .questions import Question, relations_at
from .stage import FLOOR, NONE, WALL, Stage, random_for
from .truth import Event, History

WORD_S = 0.06  # time to say a word: fast, so that a clip of two seconds holds four lines
_REACTION_S = 0.06  # from an event to the first word
_PATIENCE_S = 0.6  # a line that would start later than this after its event is dropped
_PAUSE_S = 0.04
_PLAIN_START = 0.7  # share of clips that open with what is there, where something moves at once
_DIALOGUE = 0.6  # share of clips with a dialogue (if there is room) where both kinds are wanted

# {a} and {b} are "the red ball"; {way} is left or right. Long form first, short form last.
_LINES: dict[str, tuple[tuple[str, ...], ...]] = {
    "start_ball": (
        ("{a} rolls {way}", "{a} is rolling {way}", "{a} rolls to the {way}"),
        ("{a} rolls",),
    ),
    "start": (
        ("{a} slides {way}", "{a} is sliding {way}", "{a} slides to the {way}"),
        ("{a} slides",),
    ),
    "hit": (("{a} hits {b}", "{a} bumps into {b}", "{b} is hit by {a}"), ("a hit",)),
    "roll_hit": (
        ("{a} rolls {way} and hits {b}", "{a} rolls {way} and bumps into {b}"),
        ("{a} hits {b}",),
    ),
    "land": (("{a} lands on {b}", "{a} falls on {b}", "{a} comes down on {b}"), ("{a} lands",)),
    "bounce": (
        ("{a} bounces", "{a} bounces on the floor", "{a} hits the floor"),
        ("{a} bounces",),
    ),
    "drop": (
        ("{a} falls to the floor", "{a} hits the floor", "{a} lands on the floor"),
        ("{a} lands",),
    ),
    "wall": (("{a} hits the wall", "{a} bounces off the wall"), ("the wall",)),
    "fall": (("{a} falls", "{a} is falling", "{a} falls down"), ("{a} falls",)),
    "fall_off": (("{a} falls off {b}", "{a} falls from {b}"), ("{a} falls",)),
    "enter": (("{a} falls into {b}", "{a} goes into {b}", "{a} is now in {b}"), ("in it goes",)),
    "hide": (
        ("{a} goes behind the screen", "{a} is behind the screen", "{a} is hidden"),
        ("{a} is hidden",),
    ),
    "appear": (("{a} comes out", "{a} can be seen", "{a} is back"), ("{a} is back",)),
    "grab": (("a hand takes {a}", "the hand takes {a}", "a hand comes for {a}"), ("a hand",)),
    "lift": (
        ("the hand lifts {a}", "{a} is lifted", "the hand picks up {a}"),
        ("the hand lifts {a}",),
    ),
    "lift_with": (("the hand lifts {a} with {b}", "{b} goes up with {a}"), ("the hand lifts {a}",)),
    "carry": (("the hand moves {a} {way}", "{a} is moved {way}"), ("the hand moves {a}",)),
    "release": (("the hand lets go of {a}", "the hand drops {a}"), ("the hand lets go",)),
}
# What matters most is said when two lines compete.
_WEIGHT = {"enter": 3, "fall_off": 3, "lift": 3, "lift_with": 3, "hit": 2, "roll_hit": 2, "land": 2}
_WEIGHT |= {"release": 2, "hide": 2, "start": 2, "start_ball": 2, "carry": 2}


@dataclass(frozen=True)
class Line:
    """Something worth saying: ways to say it, longest first, and the moment it is about."""

    time_s: float
    ways: tuple[str, ...]
    weight: int = 1


def the(stage: Stage, n: int) -> str:
    """ "the red ball"; also the floor, the wall and what else is no object."""
    if n >= 0:
        return f"the {stage.objects[n].name}"
    return {FLOOR: "the floor", WALL: "the wall"}.get(n, "nothing")


def write_captions(
    stage: Stage,
    motion: Motion,
    history: History,
    questions: tuple[Question, ...],
    condition: Condition,
    seed: int,
) -> tuple[TextPiece, ...]:
    """Everything that is said in a clip, in order, without overlap."""
    if condition.speech == "none":
        return ()
    rng = random_for("captions", seed)
    pieces: list[TextPiece] = []
    if condition.speech in ("captions", "both"):
        lines = _event_lines(stage, motion, history, rng)
        opening = _opening(stage, motion, history, condition, rng)
        starts_at_once = any(line.time_s == 0 for line in lines)
        if not starts_at_once or rng.random() < _PLAIN_START:
            _say(pieces, opening, stage.seconds)
        for line in sorted(lines, key=lambda line: (-line.weight, line.time_s)):
            _say(pieces, line, stage.seconds)
    draw = rng.random()
    if condition.speech == "dialogue" or (condition.speech == "both" and draw < _DIALOGUE):
        _discuss(pieces, questions, stage.seconds, condition.speech == "dialogue", rng)
    return tuple(sorted(pieces, key=lambda piece: piece.start_s))


def _duration(text: str) -> float:
    return WORD_S * len(text.split())


def _free_from(pieces: list[TextPiece], start: float, length: float) -> float:
    """The first time from `start` on at which nothing else is said for `length` seconds."""
    for piece in sorted(pieces, key=lambda piece: piece.start_s):
        if piece.end_s + _PAUSE_S > start and piece.start_s - _PAUSE_S < start + length:
            start = piece.end_s + _PAUSE_S
    return start


def _piece(text: str, start: float, length: float) -> TextPiece:
    return TextPiece(text, round(start, 4), round(start + length, 4))


def _say(pieces: list[TextPiece], line: Line, seconds: float) -> None:
    """Say it at the first free time after the event; in shorter words if need be."""
    for text in line.ways:
        length = _duration(text)
        due = line.time_s + (_REACTION_S if line.time_s else 0.0)
        start = _free_from(pieces, due, length)
        if start + length <= seconds and start - due <= _PATIENCE_S:
            pieces.append(_piece(text, start, length))
            return


def _pick(rng: np.random.Generator, ways: tuple[str, ...]) -> str:
    return ways[int(rng.integers(len(ways)))]


def _opening(
    stage: Stage, motion: Motion, history: History, condition: Condition, rng: np.random.Generator
) -> Line:
    """Name what is there, or state one relation."""
    names = [f"a{'n' * (spec.colour == 'orange')} {spec.name}" for spec in stage.objects]
    # Every draw is made in any case, so that `relations` changes this line alone.
    order, (draw, pick, shown) = rng.permutation(len(names)), rng.random(3).tolist()
    relations = relations_at(stage, motion, history, 0)
    if relations and draw < condition.relations:
        return Line(0.0, (relations[int(pick * len(relations))], "look"), 4)
    visible = [k for k in order.tolist() if not history.hidden_KN[0, k]][:3]
    if not visible:
        return Line(0.0, ("a screen",), 4)
    listed = " and ".join(names[k] for k in visible[:2])
    if len(visible) > 2:
        listed = f"{names[visible[0]]} {names[visible[1]]} and {names[visible[2]]}"
    return Line(0.0, (f"here is {listed}" if shown < 0.25 else listed, names[visible[0]]), 4)


def _event_lines(
    stage: Stage, motion: Motion, history: History, rng: np.random.Generator
) -> list[Line]:
    """A line for every event, but only for the first of its kind between the same partners."""
    lines, said, touched = [], set(), set()
    for event in history.events:
        again = (event.kind, event.a, event.b) in said
        said.add((event.kind, event.a, event.b))
        draw = rng.random()
        if again or (event.impulse > 0 and _is_inside(history, event)):
            continue  # what knocks about in its cup has been said to be in it
        kind = _kind_of_line(stage, history, event)
        fresh = event.a not in touched and ("start", event.a, FLOOR) in said
        if kind == "hit" and fresh and stage.objects[event.a].shape == "ball" and draw < 0.5:
            kind = "roll_hit"
            name = the(stage, event.a)
            lines = [line for line in lines if line.time_s or not line.ways[0].startswith(name)]
        if event.impulse > 0:
            touched |= {event.a, event.b}
        fields = {"a": the(stage, event.a), "b": the(stage, _other(stage, event, kind, history))}
        fields["way"] = _way(stage, motion, event, kind)
        ways = tuple(_pick(rng, group).format(**fields) for group in _LINES[kind])
        lines.append(Line(event.time_s, ways, _WEIGHT.get(kind, 1)))
    return lines


def _is_inside(history: History, event: Event) -> bool:
    """Whether one partner of a contact is in the other."""
    entry = min(round(event.time_s * STEP_HZ), len(history.container_KN) - 1)
    within_N = history.container_KN[entry]
    return event.b >= 0 and bool(within_N[event.a] == event.b or within_N[event.b] == event.a)


def _kind_of_line(stage: Stage, history: History, event: Event) -> str:
    if event.kind == "start" and stage.objects[event.a].shape == "ball":
        return "start_ball"
    if event.kind == "fall" and event.b >= 0:
        return "fall_off"
    if event.kind == "bounce" and stage.objects[event.a].shape != "ball":
        return "drop"
    if event.kind == "lift" and loads(stage, history, event) != NONE:
        return "lift_with"
    return event.kind


def loads(stage: Stage, history: History, event: Event) -> int:
    """What is in, on or hung from the object that is lifted, shortly after: an object or NONE."""
    entry = min(round((event.time_s + 0.3) * STEP_HZ), len(history.support_KN) - 1)
    on = np.flatnonzero(history.support_KN[entry] == event.a)
    inside = np.flatnonzero(history.container_KN[entry] == event.a)
    hung = [string.lower for string in stage.strings if string.upper == event.a]
    for group in (inside.tolist(), on.tolist(), hung):
        if group:
            return int(group[0])
    return NONE


def _other(stage: Stage, event: Event, kind: str, history: History) -> int:
    return loads(stage, history, event) if kind == "lift_with" else event.b


def _way(stage: Stage, motion: Motion, event: Event, kind: str) -> str:
    """The way the event's object goes, or is carried; of a hit the way it came."""
    if kind == "carry":
        move = next(m for m in stage.hand.moves if abs(m.start_s - event.time_s) < 0.01)
        return "left" if move.dx < 0 else "right"
    if kind == "roll_hit":
        return "left" if stage.objects[event.a].vx < 0 else "right"
    entry = min(round((event.time_s + 0.02) * STEP_HZ), len(motion.state_KN6) - 1)
    return "left" if motion.state_KN6[entry, event.a, 3] < 0 else "right"


def _discuss(
    pieces: list[TextPiece],
    questions: tuple[Question, ...],
    seconds: float,
    many: bool,
    rng: np.random.Generator,
) -> None:
    """Add a question and its answer soon after the moment it is about; more where there is room."""
    for k in rng.permutation(len(questions)).tolist():
        question = questions[k]
        answer = question.choices[question.answer]
        asks, answers = _duration(question.text), _duration(answer)
        length = asks + _PAUSE_S + answers
        start = _free_from(pieces, question.time_s + _REACTION_S, length)
        if start + length <= seconds and start - question.time_s < _PATIENCE_S:
            pieces.append(_piece(question.text, start, asks))
            pieces.append(_piece(answer, start + asks + _PAUSE_S, answers))
            if not many:
                return
