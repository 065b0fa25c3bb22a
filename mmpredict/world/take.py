"""A take: all that decides a clip, as plain data that can be written into a file and filmed again.

In: a stage, and what is changed against the laws while it plays. Out: a Recording. Three kinds of
change: breaches act inside of the physics; a second stage takes the place of the first at swaps, or
lends it its sound, or its sounds from a moment on; and single sounds are changed. A thing that
takes another colour or shape is a swap for a stage on which it has that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from .condition import Condition
from .mirror import mirror_motion, mirror_recording, mirror_stage
from .physics import Breach, simulate
from .questions import ask_questions
from .scene import Film, Play, Recording, film_play
from .splice import splice
from .stage import FLOOR, MATERIALS, HandSpec, Move, ObjectSpec, ScreenSpec, Stage, StringSpec
from .truth import Event, History, read_history

KNOCK = 1.5  # m/s: change of speed that a knock tells of


@dataclass(frozen=True)
class Resound:
    """One sound is heard otherwise than it was made.

    Args:
        event: number among the events of the take's truth (before any swap).
        silent: it is not heard.
        delay_s: so much later; below 0, earlier.
        material: what its object seems to be made of, one of MATERIALS; "" leaves it.
        size: how large its object sounds, m; 0 leaves it.
    """

    event: int
    silent: bool = False
    delay_s: float = 0.0
    material: str = ""
    size: float = 0.0

    def __post_init__(self) -> None:
        if self.material and self.material not in MATERIALS:
            raise ValueError(f"material={self.material!r} is not one of {', '.join(MATERIALS)}")


@dataclass(frozen=True)
class Knock:
    """A knock on the floor that nothing makes, heard from where an object is."""

    time_s: float
    target: int
    speed: float = KNOCK


@dataclass(frozen=True)
class Take:
    """What is filmed.

    Args:
        stage: what stands there.
        key: what the choices of painting and noise depend on; takes of one set share it.
        family: for the clip's name.
        breaches: of the laws, on `stage`.
        other: a second stage, where the laws hold.
        swaps_s: at each of these times the world is swapped for the other one, and back.
        heard: "other": the sound is that of the other stage; "own": that of what is seen.
        heard_from_s: of the sound of the other stage, only what begins from here on; 0: all.
        sounds: which sounds are changed.
        knocks: which sounds are added.
        ears: "swapped" exchanges them, "mono" gives both the mean.
        mirror: all is filmed left and right exchanged.
    """

    stage: Stage
    key: str
    family: str = "roll_and_bounce"
    breaches: tuple[Breach, ...] = ()
    other: Stage | None = None
    swaps_s: tuple[float, ...] = ()
    heard: Literal["own", "other"] = "own"
    heard_from_s: float = 0.0
    sounds: tuple[Resound, ...] = ()
    knocks: tuple[Knock, ...] = ()
    ears: Literal["own", "swapped", "mono"] = "own"
    mirror: bool = False

    def __post_init__(self) -> None:
        if self.heard not in ("own", "other") or self.ears not in ("own", "swapped", "mono"):
            raise ValueError(
                f"heard={self.heard!r} must be own or other, "
                f"ears={self.ears!r} own, swapped or mono"
            )
        if (self.other is None) == bool(self.swaps_s or self.heard == "other"):
            raise ValueError("a second stage goes with swaps_s or heard='other', and they with it")
        if self.heard_from_s and (self.heard != "other" or self.swaps_s or self.heard_from_s < 0):
            raise ValueError(
                f"heard_from_s={self.heard_from_s} is above 0 and goes with heard='other', not "
                "with swaps_s"
            )
        if self.other is not None and self.other.seconds != self.stage.seconds:
            raise ValueError(f"stages of {self.stage.seconds} s and {self.other.seconds} s")
        if list(self.swaps_s) != sorted(set(self.swaps_s)):
            raise ValueError(f"swaps_s={self.swaps_s} must rise")

    @property
    def lawful(self) -> bool:
        """Whether nothing is changed."""
        changed = (self.breaches, self.other, self.sounds, self.knocks, self.ears != "own")
        return not any(changed)

    def play(self) -> Play:
        """What happens on the first stage, as it is seen: mirrored, if the take is."""
        play = self._play()
        if not self.mirror:
            return play
        stage, motion = mirror_stage(play.stage), mirror_motion(play.motion)
        return Play(stage, motion, read_history(stage, motion))

    def record(self, film: Film) -> Recording:
        """Play and film it; a pure function of the take and the film.

        Questions come with a lawful take alone: elsewhere their answers are no facts.
        """
        play = self._play()
        recording = self._film(play, film)
        if self.other is not None:
            recording = self._with_other(recording, film)
        recording = _with_ears(recording, self.ears)
        questions = recording.questions if self.lawful else ()
        if self.mirror:
            if self.lawful:
                seen = self.play()
                questions = ask_questions(seen.stage, seen.motion, seen.history, self.key)
            return mirror_recording(recording, questions)
        return replace(recording, questions=questions)

    def mirrored(self) -> Take:
        """Left and right exchanged: the flipped picture, swapped ears and mirrored truth, exactly.

        `stage` stays as it is; `play` and `record` show it mirrored.
        """
        return replace(self, mirror=not self.mirror)

    def _play(self) -> Play:
        """What happens, not mirrored, with the sounds changed."""
        motion = simulate(self.stage, *self.breaches)
        history = read_history(self.stage, motion)
        play = Play(self.stage, motion, history)
        if not self.sounds and not self.knocks and not self.heard_from_s:
            return play
        events, voices = list(history.events), []
        for change in self.sounds:
            event = _heard(history, change)
            if change.material or change.size:
                voices.append(_voice(self.stage.objects[event.a], change))
                event = replace(event, a=len(self.stage.objects) + len(voices) - 1)
            events[change.event] = event
        events += [_knock_event(play, knock) for knock in self.knocks]
        if self.heard_from_s:
            events = [event for event in events if event.time_s < self.heard_from_s]
            for event in self._others_sounds():
                first = len(self.stage.objects) + len(voices)
                struck = [n for n in (event.a, event.b) if n >= 0]
                voices += [self.other.objects[n] for n in struck]
                b = first + 1 if event.b >= 0 else event.b
                events.append(replace(event, a=first, b=b))
        return replace(play, sounding=tuple(events), voices=tuple(voices))

    def _others_sounds(self) -> list[Event]:
        """What sounds on the other stage from `heard_from_s` on."""
        history = read_history(self.other, simulate(self.other))
        return [e for e in history.events if e.impulse > 0 and e.time_s >= self.heard_from_s]

    def _film(self, play: Play, film: Film) -> Recording:
        condition = Condition(seconds=play.stage.seconds, speech="none")
        return film_play(play, film, condition, self.key, f"take/{self.family}/{self.key}")

    def _with_other(self, recording: Recording, film: Film) -> Recording:
        if self.heard_from_s:
            return recording  # only its sounds are of the other one: see `_play`
        motion = simulate(self.other)
        play = Play(self.other, motion, read_history(self.other, motion))
        two = self._film(play, film)
        sound = two.clip.waveform_CS
        if self.swaps_s:
            recording = splice(recording, two, self.swaps_s)
        if self.heard == "other":
            recording = replace(recording, clip=replace(recording.clip, waveform_CS=sound))
        return recording

    def to_plain(self) -> dict[str, Any]:
        """As JSON can hold it, without what has its default."""
        plain = asdict(self)
        defaults = {f.name: f.default for f in fields(self)}
        return {name: value for name, value in plain.items() if value != defaults[name]}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Take:
        """What `to_plain` wrote, also after it has been through JSON."""
        values = dict(plain)
        values["stage"] = _stage(plain["stage"])
        if plain.get("other"):
            values["other"] = _stage(plain["other"])
        if "swaps_s" in plain:
            values["swaps_s"] = tuple(plain["swaps_s"])
        if "breaches" in plain:
            values["breaches"] = tuple(_breach(b) for b in plain["breaches"])
        for name, kind in (("sounds", Resound), ("knocks", Knock)):
            if name in plain:
                values[name] = tuple(kind(**change) for change in plain[name])
        return cls(**values)


def _heard(history: History, change: Resound) -> Event:
    """The event as it is heard."""
    events = history.events
    if not 0 <= change.event < len(events) or events[change.event].impulse <= 0:
        loud = [k for k, event in enumerate(events) if event.impulse > 0]
        raise ValueError(f"event {change.event} makes no sound; these do: {loud}")
    event = events[change.event]
    impulse = 0.0 if change.silent else event.impulse
    return replace(event, time_s=event.time_s + change.delay_s, impulse=impulse)


def _voice(spec: ObjectSpec, change: Resound) -> ObjectSpec:
    """A thing that rings as the object is to sound."""
    material = change.material or spec.material
    size = change.size or spec.width
    return replace(spec, material=material, width=size, height=spec.height * size / spec.width)


def _knock_event(play: Play, knock: Knock) -> Event:
    state_N6 = play.motion.at(np.array([knock.time_s]))[0]
    x, y = state_N6[knock.target, :2].tolist()
    place = (x, y, play.stage.objects[knock.target].z)
    impulse = knock.speed * float(play.motion.mass_N[knock.target])
    return Event(knock.time_s, "bounce", knock.target, FLOOR, place, impulse)


def _with_ears(recording: Recording, ears: str) -> Recording:
    sound = recording.clip.waveform_CS
    if sound is None or ears == "own":
        return recording
    sound = sound.flip(0) if ears == "swapped" else sound.mean(0, keepdim=True).expand_as(sound)
    return replace(recording, clip=replace(recording.clip, waveform_CS=sound.contiguous()))


def _breach(plain: Mapping[str, Any]) -> Breach:
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
    return Breach(**values)


def _stage(plain: Mapping[str, Any]) -> Stage:
    values = dict(plain)
    values["objects"] = tuple(ObjectSpec(**o) for o in plain["objects"])
    values["strings"] = tuple(StringSpec(**s) for s in plain.get("strings", ()))
    values["more_screens"] = tuple(ScreenSpec(**s) for s in plain.get("more_screens", ()))
    if plain.get("screen"):
        values["screen"] = ScreenSpec(**plain["screen"])
    if plain.get("hand"):
        moves = tuple(Move(**m) for m in plain["hand"]["moves"])
        values["hand"] = HandSpec(**{**plain["hand"], "moves": moves})
    return Stage(**values)
