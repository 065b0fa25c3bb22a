"""Matched pairs: one scene filmed twice, bit for bit the same up to a cut; then one breaks a law.

In: a scene and a kind of breach. Out: the ordinary recording and the impossible one. Nothing is
painted over: the physics runs with the breach in it and is filmed again, or the same events are
heard otherwise. This is the violation-of-expectation test of infants and models (Baillargeon 1985;
Riochet et al. 2018, IntPhys); pairs that share their past measure surprise about the breach alone.

Shapes: T frames, N objects, K entries of the physics log, S samples, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import torch
from torch import Tensor

from .condition import Condition
from .families import FAMILIES
from .physics import STEP_HZ, Breach, Motion, simulate, wall_x
from .render import render
from .scene import Film, Recording, Scene, draw_scene
from .sound import synthesise
from .stage import FLOOR, NONE, Stage, random_for
from .truth import Event, History, read_history

VIDEO_KINDS = ("teleport", "vanish", "wrong_turn")
SOUND_KINDS = ("silent_impact", "phantom_sound", "late_sound")
KINDS = VIDEO_KINDS + SOUND_KINDS

MIDDLE = (0.35, 0.65)  # shares of the clip between which the law breaks
MOST_REFUSED = 1000  # about one scene in 15 suits the most demanding kind
MARGIN_S = 0.01  # the cut is so long before the breach: rustling fades in over 8 ms
DELAY_S = (0.2, 0.3)  # of a late sound
JUMP_M = (0.8, 1.5)  # of a teleport
KNOCK = 1.5  # m/s: change of speed that a phantom sound tells of
_GRID_S = 0.125  # breaches seen, not heard, fall on moments of this grid
_TALL_M = 0.4  # what breaks a law for the eye is at least so high: 3 px of 32 in the furthest lane
_FAST = 0.6  # m/s: and moves at least so fast
_ALONE_S = 0.25  # and meets nothing for so long before and after
_SEEN = 0.9  # share of it that must be seen, in a picture of _SHOT_PX, while it happens
_SHOT_PX = 64
_QUIET_S = (0.2, 0.45)  # no other impact so long before and after one that is silenced or late
_LOUDER = 3.0  # and it is so many times louder (RMS) than all else in the _HEARD_S after it
_HEARD_S = 0.1
_HEARD_HZ = 16000
_NOWHERE = (60.0, 60.0)  # m: far outside; what vanishes falls there unseen and unheard


class Unsuitable(ValueError):
    """The scene has no moment at which this breach would be plain to see or hear; says why."""


@dataclass(frozen=True)
class Pair:
    """Two recordings of one scene.

    Args:
        kind: one of KINDS.
        possible: the scene's ordinary recording, whole.
        impossible: the same up to `cut_s`. Its text is what was said before the cut; it has no
            questions. What vanished stands far outside in its truth, with visibility 0.
        cut_s: frames up to it and samples before it are the same, bit for bit.
        breach_s: when the law breaks (a late sound: when it should have been heard).
        target: number of the object that it happens to.
        frames_T: bool, which frames differ; none where only the sound does.
        samples: first and last + 1 of the samples that differ; (0, 0) where none do.
    """

    kind: str
    possible: Recording
    impossible: Recording
    cut_s: float
    breach_s: float
    target: int
    frames_T: Tensor
    samples: tuple[int, int]


@dataclass(frozen=True)
class _Play:
    """A scene, played by the laws."""

    scene: Scene
    stage: Stage
    motion: Motion
    history: History
    rng: np.random.Generator

    def seen(self, motion: Motion) -> np.ndarray:
        """(T, N) share of each object that is seen, on a grid of _GRID_S, in a small picture."""
        times_T = np.arange(round(self.stage.seconds / _GRID_S)) * _GRID_S
        size = (_SHOT_PX, _SHOT_PX)
        return render(self.stage, motion, times_T, size, self.scene.key, paints=False)[1]

    def strikes(self) -> list[Event]:
        return [event for event in self.history.events if event.impulse > 0]

    def shuffled(self, candidates: list) -> list:
        return [candidates[k] for k in self.rng.permutation(len(candidates))]


def matched_pair(
    scene: Scene,
    kind: str,
    *,
    size: int | tuple[int, int] = 64,
    fps: float = 8.0,
    sample_rate: int = 16000,
    channels: int = 2,
) -> Pair:
    """Film a scene as it is, and with one law broken; a pure function of its arguments.

    teleport: a moving object jumps. vanish: it is gone. wrong_turn: it turns back with nothing to
    turn it. silent_impact: an impact is not heard. phantom_sound: one is heard, and nothing met.
    late_sound: one is heard DELAY_S too late. When and to whom does not depend on how it is filmed.

    Raises:
        Unsuitable: where the scene offers nothing of this kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(KINDS)}")
    film = Film((size, size) if isinstance(size, int) else size, fps, sample_rate, channels)
    stage = scene.stage()
    motion = simulate(stage)
    rng = random_for("counterfactual", kind, scene.key)
    play = _Play(scene, stage, motion, read_history(stage, motion), rng)
    if kind in VIDEO_KINDS:
        breach, broken = _find_breach(play, kind)
        history = _without_ghost(read_history(stage, broken), breach, kind)
        breach_s, target = breach.step / STEP_HZ, breach.target
        impossible = scene.film(stage, broken, history, film)
    else:
        breach_s, target, sounding = _find_sound(play, kind)
        impossible = scene.film(stage, motion, play.history, film, sounding=sounding)
    possible = scene.film(stage, motion, play.history, film)
    return _paired(kind, possible, impossible, (breach_s, target))


def draw_pairs(
    kind: str,
    *,
    split: str,
    seed: int = 0,
    families: tuple[str, ...] = FAMILIES,
    condition: Condition | None = None,
    film: Film | None = None,
) -> Iterator[Pair]:
    """Pairs of one kind for ever: the scenes of a split in order, without the unsuitable ones.

    Args:
        film: size, rates and ears; frames and sound are always filmed.

    Raises:
        Unsuitable: when MOST_REFUSED scenes in a row offer nothing.
    """
    film = film or Film((64, 64))
    refused = 0
    for index in count():
        scene = draw_scene(index, split=split, seed=seed, families=families, condition=condition)
        try:
            yield matched_pair(
                scene,
                kind,
                size=film.height_width,
                fps=film.fps,
                sample_rate=film.sample_rate,
                channels=film.channels,
            )
        except Unsuitable as error:
            refused += 1
            if refused >= MOST_REFUSED:
                raise Unsuitable(
                    f"none of {refused} scenes in a row is suitable for {kind}; take other "
                    f"families or another condition. The last one: {error}"
                ) from error
        else:
            refused = 0


def _paired(
    kind: str, possible: Recording, impossible: Recording, breach: tuple[float, int]
) -> Pair:
    """Both recordings with where they differ; the law of the module is checked here."""
    cut_s = breach[0] - MARGIN_S
    one, two = possible.clip, impossible.clip
    said = tuple(piece for piece in one.texts if piece.end_s <= cut_s)
    two = replace(two, texts=said, name=f"{two.name}/{kind}")
    frames_T = (one.frames_TCHW != two.frames_TCHW).flatten(1).any(1)
    differs_S = (one.waveform_CS != two.waveform_CS).any(0).nonzero()[:, 0]
    if not len(differs_S) and not frames_T.any():
        raise Unsuitable(f"{two.name}: at this size and rate the breach leaves no trace")
    samples = (int(differs_S[0]), int(differs_S[-1]) + 1) if len(differs_S) else (0, 0)
    early = bool((frames_T & (one.times_s <= cut_s)).any())
    if early or (len(differs_S) and samples[0] < cut_s * one.sample_rate):
        raise Unsuitable(f"{two.name}: the clips differ before the cut at {cut_s:.3f} s")
    impossible = replace(impossible, clip=two, questions=())
    return Pair(kind, possible, impossible, cut_s, breach[0], breach[1], frames_T, samples)


# What is seen.


def _find_breach(play: _Play, kind: str) -> tuple[Breach, Motion]:
    """A breach that is plain to see, and the motion with it."""
    candidates = play.shuffled(_breakable(play))
    for step, n in candidates:
        breach = _breach(play, kind, step, n)
        if breach is None:
            continue
        motion = simulate(play.stage, breach)
        if kind == "vanish":
            return breach, motion
        frame = round(step / STEP_HZ / _GRID_S)
        if play.seen(motion)[frame + 1 : frame + 3, n].min() >= _SEEN:
            return breach, motion
    raise Unsuitable(
        f"{play.scene.name} is unsuitable for {kind}: of {len(candidates)} moments at which an "
        f"object of {_TALL_M} m or more moves freely at {_FAST} m/s or more in full view, in the "
        "middle of the clip, none leaves it in view afterwards"
    )


def _breakable(play: _Play) -> list[tuple[int, int]]:
    """(step, object) at which an object moves freely in full view."""
    seconds, seen_TN = play.stage.seconds, play.seen(play.motion)
    first, last = (round(share * seconds / _GRID_S) for share in MIDDLE)
    found = []
    for n, spec in enumerate(play.stage.objects):
        if spec.height < _TALL_M or _is_bound(play.stage, n):
            continue
        for frame in range(first, min(last, len(seen_TN) - 3) + 1):
            step = round(frame * _GRID_S * STEP_HZ)
            in_view = seen_TN[frame - 2 : frame + 3, n].min() >= _SEEN
            fast = abs(play.motion.state_KN6[step, n, 3]) >= _FAST
            if in_view and fast and _is_free(play, step, n):
                found.append((step, n))
    return found


def _is_bound(stage: Stage, n: int) -> bool:
    held = stage.hand is not None and stage.hand.target == n
    return held or any(n in (string.upper, string.lower) for string in stage.strings)


def _is_free(play: _Play, step: int, n: int) -> bool:
    """It carries nothing, is in nothing, and meets nothing but the floor for a while."""
    history, contacts = play.history, play.motion.contacts
    around = slice(max(0, step - 1), step + 2)
    container_KN = history.container_KN[around]
    if (container_KN[:, n] != NONE).any() or (container_KN == n).any():
        return False
    if (history.support_KN[around] == n).any():
        return False
    near_E = np.abs(contacts.step_E - step) <= _ALONE_S * STEP_HZ
    mine_E = near_E & ((contacts.a_E == n) | (contacts.b_E == n))
    return bool((contacts.b_E[mine_E] == FLOOR).all())


def _breach(play: _Play, kind: str, step: int, n: int) -> Breach | None:
    """What the kind does to this object; None where it has no room."""
    if kind == "vanish":
        return Breach(step, n, place=_NOWHERE)
    x, y, _, vx, vy, _ = play.motion.state_KN6[step, n]
    if kind == "wrong_turn":
        return Breach(step, n, velocity=(float(-vx), float(vy)))
    side = -1 if play.rng.random() < 0.5 else 1
    jump = play.rng.uniform(*JUMP_M)
    for new_x in (x + side * jump, x - side * jump):
        if _has_room(play, step, n, float(new_x)):
            return Breach(step, n, place=(float(new_x), float(y)))
    return None


def _has_room(play: _Play, step: int, n: int, x: float) -> bool:
    """Whether the object fits in there and goes on for a while before it meets anything."""
    objects, state_N6 = play.stage.objects, play.motion.state_KN6[step]
    mine = objects[n]
    ahead = x + state_N6[n, 3] * _ALONE_S
    low, high = min(x, ahead) - mine.width / 2, max(x, ahead) + mine.width / 2
    if max(-low, high) > wall_x(mine.z) - 0.02:
        return False
    others = [m for m, spec in enumerate(objects) if m != n and spec.lane == mine.lane]
    for m in others:
        reach = max(objects[m].width, objects[m].height) / 2 + 0.1
        if low - reach < state_N6[m, 0] < high + reach:
            return False
    return True


def _without_ghost(history: History, breach: Breach, kind: str) -> History:
    """What vanished falls for ever, far away; nobody is told."""
    if kind != "vanish":
        return history
    after_s = breach.step / STEP_HZ
    events = [e for e in history.events if breach.target not in (e.a, e.b) or e.time_s <= after_s]
    return replace(history, events=tuple(events))


# What is heard.


def _find_sound(play: _Play, kind: str) -> tuple[float, int, tuple[Event, ...]]:
    """When, from which object, and all events as they are heard."""
    events = play.history.events
    if kind == "phantom_sound":
        candidates = [_phantom(play, step, n) for step, n in _quiet_moments(play)]
        changed = [(e.time_s, e.a, (*events, e)) for e in candidates]
    else:
        changed = []
        for event in _plain_strikes(play):
            late = replace(event, time_s=event.time_s + play.rng.uniform(*DELAY_S))
            heard = replace(event, impulse=0.0) if kind == "silent_impact" else late
            sounding = tuple(heard if e is event else e for e in events)
            changed.append((event.time_s, event.a, sounding))
    for time_s, target, sounding in play.shuffled(changed):
        if _is_heard(play, time_s, sounding):
            return time_s, target, sounding
    what = "moment of quiet around an object in view" if kind == "phantom_sound" else "impact"
    raise Unsuitable(
        f"{play.scene.name} is unsuitable for {kind}: of {len(changed)} candidates in the middle "
        f"of the clip, no {what} in view, alone for {_QUIET_S[0]:g} s before and {_QUIET_S[1]:g} s "
        f"after and {_LOUDER:g} times louder than all else"
    )


def _plain_strikes(play: _Play) -> list[Event]:
    """Impacts in the middle of the clip, in view, with no other impact near them."""
    strikes, seen_TN = play.strikes(), play.seen(play.motion)
    low, high = (share * play.stage.seconds for share in MIDDLE)
    before_s, after_s = _QUIET_S
    found = []
    for event in strikes:
        apart = [e.time_s - event.time_s for e in strikes if e is not event]
        alone = not any(-before_s < s < after_s for s in apart)
        if low <= event.time_s <= high and alone and _in_view(seen_TN, event.time_s, event.a):
            found.append(event)
    return found


def _in_view(seen_TN: np.ndarray, time_s: float, n: int) -> bool:
    frame = int(time_s / _GRID_S)
    return bool(seen_TN[max(0, frame - 1) : frame + 3, n].min() >= _SEEN)


def _quiet_moments(play: _Play) -> list[tuple[int, int]]:
    """(step, object) at which an object in view has met nothing for a while, nor will."""
    strikes, seen_TN = play.strikes(), play.seen(play.motion)
    contacts = play.motion.contacts
    low, high = (round(share * play.stage.seconds * STEP_HZ) for share in MIDDLE)
    found = []
    for step in range(low, high + 1, 6):
        time_s = step / STEP_HZ
        if any(-_QUIET_S[0] < e.time_s - time_s < _QUIET_S[1] for e in strikes):
            continue
        near_E = np.abs(contacts.step_E - step) <= _ALONE_S * STEP_HZ
        new_E = near_E & contacts.first_E
        meets = set(contacts.a_E[new_E].tolist()) | set(contacts.b_E[new_E].tolist())
        for n in range(len(play.stage.objects)):
            if n not in meets and _in_view(seen_TN, time_s, n):
                found.append((step, n))
    return found


def _phantom(play: _Play, step: int, n: int) -> Event:
    """A knock on the floor that did not happen."""
    x, y = play.motion.state_KN6[step, n, :2]
    place = (float(x), float(y), play.stage.objects[n].z)
    impulse = KNOCK * float(play.motion.mass_N[n])
    return Event(step / STEP_HZ, "bounce", n, FLOOR, place, impulse)


def _is_heard(play: _Play, time_s: float, sounding: tuple[Event, ...]) -> bool:
    """Whether the changed sound stands out from all else just after `time_s`."""
    scene, stage = play.scene, play.stage

    def window(events: tuple[Event, ...]) -> Tensor:
        sound = synthesise(
            stage,
            play.motion,
            events,
            scene.key,
            sample_rate=_HEARD_HZ,
            room_tone_db=scene.condition.room_tone_db,
        )
        start = round(time_s * _HEARD_HZ)
        return torch.from_numpy(sound[:, start : start + round(_HEARD_S * _HEARD_HZ)])

    true, changed = window(play.history.events), window(sounding)
    # Of the two, one has the impact just here and the other all else.
    rest = min(float(true.square().mean()), float(changed.square().mean()))
    return float((true - changed).square().mean()) > _LOUDER**2 * rest
