"""What the gate's reader is given. In: what an item shows or tells, and until when. Out: tokens,
and which object each of them is.

    state   one token for each object: what it is and where it is, how it moves, whether it is seen
            and held and on and in what it is at the last pictures; one for each sound until then:
            from where, when, how hard and of what. Chains of words are solved into places.
    pixels  one token for each patch of some pictures and for each 40 ms of sound of both ears

Shapes: E tokens, X their width, T pictures, N objects, C colour channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mmpredict.world import COLOURS, MATERIALS, SHAPES, Event, Film, Recording, Take, Truth

VIEWS = ("state", "pixels")
STATE_PICTURES = 16  # the last ones at _FPS
_FPS = 8.0
_PER_PICTURE = 7  # x, y, z, two speeds, seen, held
_LINKS = 3  # pictures of which supports and containers are told
_OBJECTS = 20
_KIND = len(COLOURS) + len(SHAPES) + len(MATERIALS)
_SOUND = 6
_SIZE = 2
_PLAIN = _SIZE + 3 + 2  # columns: the size, the last place and speed
_FAR_M = 5.0  # what is not there at all stands much farther off
_PATCH = 8
_CHUNK_S = 0.04
_BANDS = 32
_TURNED = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "above": (0.0, 1.0), "below": (0.0, -1.0)}


@dataclass(frozen=True)
class View:
    """Tokens (E, X), and of each the name of its object, "red ball"; "" where it has none. The
    first `plain` columns are sizes, places and speeds as they are, m and m/s."""

    tokens_EX: Tensor
    names: tuple[str, ...]
    plain: int = 0


def state(take: Take, until_s: float | None) -> View:
    """The truth of a take at its last pictures, and what is heard until then."""
    recording = take.record(Film((32, 32), fps=_FPS, frames=False, sound=False))
    truth = recording.truth
    until = float("inf") if until_s is None else until_s
    shown = int((truth.times_s < until - 1e-9).sum())
    chosen_T = torch.arange(shown - STATE_PICTURES, shown).clamp(0)
    rows = [_object_row(truth, n, chosen_T) for n in range(len(truth.names))]
    last_s = float(truth.times_s[shown - 1])
    for event, material in _heard(take, recording):
        if event.impulse > 0 and event.time_s < until:
            rows.append(_sound_row(event, material, last_s))
    silent = ("",) * (len(rows) - len(truth.names))
    return View(torch.stack(rows), truth.names + silent, _PLAIN)


def _object_row(truth: Truth, n: int, chosen_T: Tensor) -> Tensor:
    one = torch.eye(_OBJECTS)
    places_T3 = truth.position_TN3[chosen_T, n].clamp(-_FAR_M, _FAR_M)
    speeds_T2 = truth.velocity_TN3[chosen_T, n, :2]
    parts = [truth.size_N2[n], places_T3[-1], speeds_T2[-1]]
    parts += [_kind(int(truth.colour_N[n]), int(truth.shape_N[n]), int(truth.material_N[n]))]
    parts += [
        one[n],
        # What rests says its place once.
        (places_T3[:-1] - places_T3[-1]).flatten(),
        speeds_T2[:-1].flatten(),
        truth.visible_TN[chosen_T, n],
        truth.held_TN[chosen_T, n].float(),
    ]
    for t in chosen_T[torch.linspace(0, len(chosen_T) - 1, _LINKS).round().long()].tolist():
        parts += [one[int(links[t, n]) + 3] for links in (truth.support_TN, truth.container_TN)]
    return torch.cat([*parts, torch.zeros(_SOUND)])


def _kind(colour: int, shape: int, material: int) -> Tensor:
    parts = ((colour, COLOURS), (shape, SHAPES), (material, MATERIALS))
    return torch.cat([torch.eye(len(names))[k] for k, names in parts])


def _sound_row(event: Event, material: int, last_s: float) -> Tensor:
    row = torch.zeros(state_width())
    row[_PLAIN + len(COLOURS) + len(SHAPES) + material] = 1
    row[-_SOUND:] = torch.tensor([1.0, *event.position, event.time_s - last_s, event.impulse])
    return row


def state_width() -> int:
    """X of the state."""
    fixed = _SIZE + _KIND + _OBJECTS + _SOUND
    return fixed + STATE_PICTURES * _PER_PICTURE + 2 * _LINKS * _OBJECTS


def _heard(take: Take, recording: Recording) -> list[tuple[Event, int]]:
    """All that sounds, and of which material it sounds."""
    if take.mirror or not (take.sounds or take.knocks or take.heard == "other"):
        materials_N = recording.truth.material_N.tolist()
        return [(e, materials_N[e.a]) for e in recording.truth.events if e.impulse > 0]
    is_others = take.heard == "other" and not take.heard_from_s
    play = (Take(take.other, take.key) if is_others else take).play()
    specs = (*play.stage.objects, *play.voices)
    events = play.history.events if play.sounding is None else play.sounding
    return [(e, MATERIALS.index(specs[e.a].material)) for e in events if e.impulse > 0]


def told(lines: Sequence[str]) -> View:
    """Things in the places that follow from the lines; see `told_places`."""
    places = told_places(lines)
    rows = []
    for n, (name, (x, y)) in enumerate(places.items()):
        colour, shape = name.split()
        row = torch.zeros(state_width())
        row[_SIZE : _SIZE + 2] = torch.tensor([x, y])
        row[_PLAIN : _PLAIN + _KIND] = _kind(COLOURS.index(colour), SHAPES.index(shape), 0)
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


def pixels(take: Take, until_s: float | None, *, size: int, pictures: int) -> View:
    """Pictures, spread over what is shown with the last one included, and log spectra."""
    clip = take.record(Film((size, size), fps=_FPS, sample_rate=16000)).clip
    until = float("inf") if until_s is None else until_s
    shown = int((clip.times_s < until - 1e-9).sum())
    chosen = torch.linspace(0, shown - 1, pictures).round().long()
    frames = clip.frames_TCHW[chosen].float() / 127.5 - 1
    patches = frames.unfold(2, _PATCH, _PATCH).unfold(3, _PATCH, _PATCH)
    T, C, H, W = patches.shape[:4]
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(T * H * W, -1)
    where = _where(T, H, W)
    size_S = round(_CHUNK_S * clip.sample_rate)
    end = clip.waveform_CS.shape[1] if until_s is None else round(until_s * clip.sample_rate)
    count = max(1, end // size_S)
    chunks = clip.waveform_CS[:, : count * size_S].unflatten(1, (count, size_S))
    power = torch.fft.rfft(chunks).abs().square()[..., : _BANDS * 8]
    bands = power.unflatten(2, (_BANDS, -1)).mean(3).add(1e-6).log() / 5 + 1
    sound = torch.cat([bands[0], bands[1], (bands[0] - bands[1]) * 3], 1)
    out = torch.zeros(len(patches) + count, patches.shape[1] + where.shape[1] + sound.shape[1] + 1)
    out[: len(patches), : patches.shape[1]] = patches
    out[: len(patches), patches.shape[1] : patches.shape[1] + where.shape[1]] = where
    out[len(patches) :, -sound.shape[1] - 1 : -1] = sound
    out[len(patches) :, -1] = torch.linspace(0, 1, count)
    return View(out, ("",) * len(out))


def _where(T: int, H: int, W: int) -> Tensor:
    """(T H W, T + H + W) which picture, row and column a patch is of."""
    grid = torch.stack(
        torch.meshgrid(torch.arange(T), torch.arange(H), torch.arange(W), indexing="ij"), -1
    )
    t, y, x = grid.reshape(-1, 3).T
    parts = functional.one_hot(t, T), functional.one_hot(y, H), functional.one_hot(x, W)
    return torch.cat(parts, 1).float()
