"""What the gate's reader is given. In: what an item shows or tells, and until when. Out: a `Known`,
what is known of it, and its tokens, and which object each of them is.

One token for each object: what it is and where it is, how it moves, whether it is seen and held
and on and in what it is at the last pictures; one for each sound until then: from where, when, how
hard and of what.

    state   the truth; chains of words are solved into places
    pixels  the same as an eye and an ear make it out of pictures and waveforms (`audit_senses`)

Shapes: E tokens, X their width, T pictures, N objects, K kinds, R what an object may be on or in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmpredict.world import COLOURS, MATERIALS, SHAPES, Event, Film, Recording, Take

VIEWS = ("state", "pixels")
PICTURES = 16  # the last ones at FPS
FPS = 8.0
_PER_PICTURE = 7  # x, y, z, two speeds, seen, held
_LINKS = 3  # pictures of which supports and containers are told
MOST_OBJECTS = 20
_KIND = len(COLOURS) + len(SHAPES) + len(MATERIALS)
_SOUND = 6
_SIZE = 2
_PLAIN = _SIZE + 3 + 2  # columns: the size, the last place and speed
_FAR_M = 5.0  # what is not there at all stands much farther off
UNTOLD = -3  # of what it is on or in: it is not known
_TURNED = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "above": (0.0, 1.0), "below": (0.0, -1.0)}


@dataclass(frozen=True)
class View:
    """Tokens (E, X), and of each the name of its object, "red ball"; "" where it has none. The
    first `plain` columns are sizes, places and speeds as they are, m and m/s."""

    tokens_EX: Tensor
    names: tuple[str, ...]
    plain: int = 0


@dataclass(frozen=True)
class Sound:
    """One that is heard: seconds after the last picture (so below 0), from where, how hard, and
    the shares of belief in each of MATERIALS."""

    after_s: float
    place: tuple[float, float, float]
    impulse: float
    materials: tuple[float, ...]


@dataclass(frozen=True)
class Known:
    """What is known of objects at PICTURES pictures, and of sounds.

    Args:
        names: "red ball", different for every object.
        materials_NM: shares of belief.
        size_N2: width and height, m.
        place_TN3, speed_TN2: m and m/s.
        seen_TN, held_TN: 0 to 1.
        support_TN, container_TN: number of an object, below 0 the codes of `Truth`, or
            UNTOLD.
        sounds: in any order.
    """

    names: tuple[str, ...]
    materials_NM: Tensor
    size_N2: Tensor
    place_TN3: Tensor
    speed_TN2: Tensor
    seen_TN: Tensor
    held_TN: Tensor
    support_TN: Tensor
    container_TN: Tensor
    sounds: tuple[Sound, ...]


def last_pictures(times_s: Sequence[float], until_s: float | None) -> Tensor:
    """(PICTURES,) numbers of the last pictures until then; the first again where there are less."""
    until = float("inf") if until_s is None else until_s
    shown = sum(time < until - 1e-9 for time in times_s)
    return torch.arange(shown - PICTURES, shown).clamp(0)


def state(take: Take, until_s: float | None) -> Known:
    """The truth of a take at its last pictures, and what is heard until then."""
    recording = take.record(Film((32, 32), fps=FPS, frames=False, sound=False))
    truth = recording.truth
    chosen_T = last_pictures(truth.times_s.tolist(), until_s)
    until = float("inf") if until_s is None else until_s
    last_s = float(truth.times_s[chosen_T[-1]])
    one = torch.eye(len(MATERIALS))
    return Known(
        truth.names,
        one[truth.material_N],
        truth.size_N2,
        truth.position_TN3[chosen_T],
        truth.velocity_TN3[chosen_T, :, :2],
        truth.visible_TN[chosen_T],
        truth.held_TN[chosen_T].float(),
        truth.support_TN[chosen_T],
        truth.container_TN[chosen_T],
        tuple(
            Sound(event.time_s - last_s, event.position, event.impulse, tuple(one[m].tolist()))
            for event, m in heard(take, recording)
            if event.time_s < until
        ),
    )


def heard(take: Take, recording: Recording) -> list[tuple[Event, int]]:
    """All that sounds, and the number of the material that it sounds of."""
    if take.mirror or not (take.sounds or take.knocks or take.heard == "other"):
        materials_N = recording.truth.material_N.tolist()
        return [(e, materials_N[e.a]) for e in recording.truth.events if e.impulse > 0]
    is_others = take.heard == "other" and not take.heard_from_s
    play = (Take(take.other, take.key) if is_others else take).play()
    specs = (*play.stage.objects, *play.voices)
    events = play.history.events if play.sounding is None else play.sounding
    return [(e, MATERIALS.index(specs[e.a].material)) for e in events if e.impulse > 0]


def as_view(known: Known) -> View:
    """One token for each object, and for each sound."""
    rows = [_object_row(known, n) for n in range(len(known.names))]
    rows += [_sound_row(sound) for sound in known.sounds]
    if not rows:  # nothing is made out: one token that says nothing
        rows = [torch.zeros(width())]
    return View(torch.stack(rows), known.names + ("",) * (len(rows) - len(known.names)), _PLAIN)


def _object_row(known: Known, n: int) -> Tensor:
    one = torch.eye(MOST_OBJECTS)
    place_T3 = known.place_TN3[:, n].clamp(-_FAR_M, _FAR_M)
    speed_T2 = known.speed_TN2[:, n]
    parts = [
        known.size_N2[n],
        place_T3[-1],
        speed_T2[-1],
        _kind(known.names[n], known.materials_NM[n]),
        one[n],
        # What rests says its place once.
        (place_T3[:-1] - place_T3[-1]).flatten(),
        speed_T2[:-1].flatten(),
        known.seen_TN[:, n],
        known.held_TN[:, n],
    ]
    for t in torch.linspace(0, PICTURES - 1, _LINKS).round().long().tolist():
        parts += [
            one[int(links[t, n]) - UNTOLD] for links in (known.support_TN, known.container_TN)
        ]
    return torch.cat([*parts, torch.zeros(_SOUND)])


def _kind(name: str, materials_M: Tensor) -> Tensor:
    colour, shape = name.split()
    one = (
        torch.eye(len(COLOURS))[COLOURS.index(colour)],
        torch.eye(len(SHAPES))[SHAPES.index(shape)],
    )
    return torch.cat([*one, materials_M])


def _sound_row(sound: Sound) -> Tensor:
    row = torch.zeros(width())
    start = _PLAIN + len(COLOURS) + len(SHAPES)
    row[start : start + len(MATERIALS)] = torch.tensor(sound.materials)
    row[-_SOUND:] = torch.tensor([1.0, *sound.place, sound.after_s, sound.impulse])
    return row


def width() -> int:
    """X."""
    fixed = _SIZE + _KIND + MOST_OBJECTS + _SOUND
    return fixed + PICTURES * _PER_PICTURE + 2 * _LINKS * MOST_OBJECTS


def told(lines: Sequence[str]) -> View:
    """Things in the places that follow from the lines; see `told_places`."""
    places = told_places(lines)
    rows = []
    for n, (name, (x, y)) in enumerate(places.items()):
        row = torch.zeros(width())
        row[_SIZE : _SIZE + 2] = torch.tensor([x, y])
        row[_PLAIN : _PLAIN + _KIND] = _kind(name, torch.eye(len(MATERIALS))[0])
        row[_PLAIN + _KIND + n] = 1
        rows.append(row)
    return View(torch.stack(rows), tuple(places), _PLAIN)


def told_places(lines: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Where things are, in steps to the right and up, if lines like "the red ball is left of the
    blue box" hold; the first thing is at (0, 0).

    Raises:
        ValueError: the lines do not hang together.
    """
    facts = []
    for line in lines:
        one, rest = line.split(" is ")
        side, two = rest.replace(" of ", " ").split(" the ")
        facts.append((one.removeprefix("the "), _TURNED[side], two))
    places = {facts[0][0]: (0.0, 0.0)}
    for _ in facts:
        for one, (dx, dy), two in facts:
            if two in places:
                places.setdefault(one, (places[two][0] + dx, places[two][1] + dy))
            elif one in places:
                places.setdefault(two, (places[one][0] - dx, places[one][1] - dy))
    lost = sorted({name for one, _, two in facts for name in (one, two)} - set(places))
    if lost:
        raise ValueError(f"nothing tells where {', '.join(lost)} are: {list(lines)}")
    return places
