"""What an eye and an ear make of a take: the `Known` of pictures and sound alone.

In: takes to learn from, with their truth; then takes to be read, of which only pictures and
waveforms are looked at. Out: what is known at a moment, in the same form as the truth
(`audit_views`), so that one reader serves both. A thing is there if some picture shows it plainly;
while it is not seen it is remembered where it was, its size is that of all pictures that show it,
its speed that of the line through the last places.

Shapes: T pictures, K names, N objects that are made out, C ears, S samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmpredict.world import Film, Recording, Take

from .audit_ear import HOP_S, Ear, hearing, learn_ear, spectra
from .audit_eye import NAMES, Eye, Glance, learn_eye, lessons
from .audit_views import FPS, MOST_OBJECTS, UNTOLD, Known, Sound, heard, last_pictures

_PICTURES_LEARNT = 6  # of a take
_SURE = 0.5
_LINE = 4  # places that a speed is taken from


@dataclass(frozen=True)
class Senses:
    """Both, learnt.

    Args:
        size: of the pictures that the eye reads, px.
    """

    eye: Eye
    ear: Ear
    size: int

    def perceive(self, take: Take) -> Perceived:
        """Look at all pictures of a take; its sound is kept as spectra."""
        clip = _filmed(take, self.size).clip
        spectra_HV = spectra(clip.waveform_CS, clip.sample_rate)
        return Perceived(self, clip.times_s.tolist(), self.eye.look(clip.frames_TCHW), spectra_HV)


@dataclass(frozen=True)
class Perceived:
    """A take as it was looked at, of which any beginning can be asked for."""

    senses: Senses
    times_s: list[float]
    glance: Glance
    spectra_HV: Tensor

    def known(self, until_s: float | None) -> Known:
        """What is known of what is shown and heard until then."""
        chosen_T = last_pictures(self.times_s, until_s)
        sure_TK = self.glance.there_BK[chosen_T]
        there_TK = sure_TK >= _SURE
        names_N = sure_TK.amax(0).topk(MOST_OBJECTS).indices.sort().values
        names_N = names_N[there_TK[:, names_N].any(0)]
        there_TN = there_TK[:, names_N]
        source_TN = _remembered(there_TN)
        place_TN3 = _taken(self.glance.place_BK3[chosen_T][:, names_N], source_TN)
        weight_TN1 = there_TN.float()[..., None]
        belief_N1 = weight_TN1.sum(0)
        size_BK2, materials_BKM = self.glance.size_BK2, self.glance.materials_BKM
        return Known(
            names=tuple(NAMES[k] for k in names_N.tolist()),
            materials_NM=(materials_BKM[chosen_T][:, names_N] * weight_TN1).sum(0) / belief_N1,
            size_N2=(size_BK2[chosen_T][:, names_N] * weight_TN1).sum(0) / belief_N1,
            place_TN3=place_TN3,
            speed_TN2=_speeds(place_TN3[..., :2], there_TN, chosen_T),
            seen_TN=self.glance.seen_BK[chosen_T][:, names_N] * there_TN,
            held_TN=_taken(self.glance.held_BK[chosen_T][:, names_N, None], source_TN)[..., 0],
            support_TN=torch.full(there_TN.shape, UNTOLD),
            container_TN=torch.full(there_TN.shape, UNTOLD),
            sounds=self._sounds(until_s, self.times_s[int(chosen_T[-1])]),
        )

    def _sounds(self, until_s: float | None, last_s: float) -> tuple[Sound, ...]:
        end = None if until_s is None else max(1, int(until_s / HOP_S + 1e-9))
        found = self.senses.ear.listen(self.spectra_HV[:end])
        return tuple(Sound(h.time_s - last_s, h.place, h.impulse, h.materials) for h in found)


def _filmed(take: Take, size: int) -> Recording:
    return take.record(Film((size, size), fps=FPS))


def _remembered(there_TN: Tensor) -> Tensor:
    """(T, N) number of the picture that tells of each: the last one that shows it, before the first
    such one that."""
    numbers_T1 = torch.arange(len(there_TN))[:, None]
    last_TN = torch.where(there_TN, numbers_T1, -1).cummax(0).values
    first_N = torch.where(there_TN, numbers_T1, len(there_TN) - 1).amin(0)
    return torch.where(last_TN >= 0, last_TN, first_N)


def _taken(values_TNF: Tensor, source_TN: Tensor) -> Tensor:
    """Of each object what its source picture says."""
    return values_TNF.gather(0, source_TN[..., None].expand(-1, -1, values_TNF.shape[2]))


def _speeds(place_TN2: Tensor, there_TN: Tensor, chosen_T: Tensor) -> Tensor:
    """(T, N, 2) m/s: slopes of the lines through the last places that were seen; 0 for one."""
    times_T = chosen_T / FPS
    speeds = torch.zeros_like(place_TN2)
    for n in range(place_TN2.shape[1]):
        seen = [
            t
            for t in there_TN[:, n].nonzero()[:, 0].tolist()
            if t == 0 or chosen_T[t] > chosen_T[t - 1]
        ]
        for t in range(len(place_TN2)):
            line = torch.tensor([k for k in seen if k <= t][-_LINE:], dtype=torch.long)
            if len(line) < 2:
                continue
            away_T = times_T[line] - times_T[line].mean()
            places = place_TN2[line, n]
            speeds[t, n] = (away_T[:, None] * (places - places.mean(0))).sum(
                0
            ) / away_T.square().sum()
    return speeds


def learn_senses(takes: Iterable[Take], *, size: int, steps: int, seed: int = 0) -> Senses:
    """Eye and ear that have learnt from takes and their truth.

    Args:
        size: of the pictures, px; a multiple of 32.
        steps: of each; 32 pictures or 16 waveforms at a time.
    """
    seen, listened = [], []
    for k, take in enumerate(takes):
        recording = _filmed(take, size)
        clip = recording.clip
        seen.append(lessons(recording, _PICTURES_LEARNT, seed=seed + k))
        told = spectra(clip.waveform_CS, clip.sample_rate)
        listened.append(hearing(told, heard(take, recording)))
    eye = learn_eye(seen, steps=steps, seed=seed)
    return Senses(eye, learn_ear(listened, steps=steps, seed=seed), size)
