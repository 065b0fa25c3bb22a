"""The gate's ear: what sounded when, from where, how hard, and of what.

In: waveforms of both ears; to learn, also what is true of them. Out: `Sound`s. The spectra of both
ears in hops of 20 ms go through convolutions; every hop says whether a sound begins in it. Of a
waveform that ends nothing later is heard: what is given is cut first.

Shapes: C ears, S samples, H hops, B stretches, V columns of a hop, F numbers said of a hop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmpredict.world import MATERIALS, Event

HOP_S = 0.02
_BANDS = 32
_FLOOR = 1e-6
_COLUMNS = 3 * _BANDS
_PLACE, _IMPULSE, _LATE, _ONSET = 3, 3, 4, 5  # columns of what is said: x, y, z come first
_SAID = _ONSET + 1 + len(MATERIALS)
_SURE = 0.5
_BATCH = 16
_RATE = 3e-3


@dataclass(frozen=True)
class Heard:
    """One sound: when it began, from where, how hard, and the shares of belief in each of
    MATERIALS."""

    time_s: float
    place: tuple[float, float, float]
    impulse: float
    materials: tuple[float, ...]


@dataclass(frozen=True)
class Hearing:
    """One waveform and what is right of it.

    Args:
        spectra_HV: of `spectra`.
        right_HF: place, impulse, part of the hop before the sound begins, whether it begins,
            material.
    """

    spectra_HV: Tensor
    right_HF: Tensor


def spectra(waveform_CS: Tensor, sample_rate: int, until_s: float | None = None) -> Tensor:
    """(H, V) log power of the left and right ear in bands, and their difference."""
    hop_S = round(HOP_S * sample_rate)
    end = waveform_CS.shape[1] if until_s is None else round(until_s * sample_rate)
    count = max(1, min(end, waveform_CS.shape[1]) // hop_S)
    hops = waveform_CS[:, : count * hop_S].unflatten(1, (count, hop_S))
    power = torch.fft.rfft(hops * torch.hann_window(hop_S)).abs().square()
    wide = power.shape[2] // _BANDS
    bands = power[..., : _BANDS * wide].unflatten(2, (_BANDS, wide)).mean(3)
    bands = bands.add(_FLOOR).log() / 5 + 1
    return torch.cat([bands[0], bands[1], 3 * (bands[0] - bands[1])], 1)


def hearing(spectra_HV: Tensor, events: Sequence[tuple[Event, int]]) -> Hearing:
    """With what sounds (`audit_views.heard`); of two in one hop the harder one is meant."""
    right_HF = torch.zeros(len(spectra_HV), _SAID)
    for event, material in sorted(events, key=lambda pair: pair[0].impulse):
        hop = int(event.time_s / HOP_S)
        if hop < len(right_HF):
            late = event.time_s / HOP_S - hop
            right_HF[hop] = torch.tensor([*event.position, event.impulse, late, 1.0, 0, 0, 0])
            right_HF[hop, _ONSET + 1 + material] = 1
    return Hearing(spectra_HV, right_HF)


class Ear(nn.Module):
    """Convolutions over time.

    Args:
        dim: width.
    """

    def __init__(self, *, dim: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(_COLUMNS, dim, 5, padding=2),
            nn.GELU(),
            nn.Conv1d(dim, dim, 5, padding=2),
            nn.GELU(),
            nn.Conv1d(dim, dim, 3, padding=1),
            nn.GELU(),
            nn.Conv1d(dim, _SAID, 1),
        )

    def forward(self, spectra_BHV: Tensor) -> Tensor:
        """(B, H, F)."""
        return self.layers(spectra_BHV.transpose(1, 2)).transpose(1, 2)

    @torch.no_grad()
    def listen(self, spectra_HV: Tensor) -> list[Heard]:
        """What is made out; of neighbours the surest."""
        said_HF = self(spectra_HV[None])[0]
        sure_H = said_HF[:, _ONSET].sigmoid()
        around_H = functional.max_pool1d(sure_H[None], 3, stride=1, padding=1)[0]
        found = []
        for h in ((sure_H >= _SURE) & (sure_H == around_H)).nonzero()[:, 0].tolist():
            said = said_HF[h]
            x, y, z = said[:_PLACE].tolist()
            materials = tuple(said[_ONSET + 1 :].softmax(0).tolist())
            time_s = (h + float(said[_LATE].clamp(0, 1))) * HOP_S
            found.append(Heard(time_s, (x, y, z), float(said[_IMPULSE]), materials))
        return found


def learn_ear(given: Sequence[Hearing], *, steps: int, seed: int = 0) -> Ear:
    """An ear that has heard so many batches of 16 waveforms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ear = Ear()
    optimiser = torch.optim.AdamW(ear.parameters(), lr=_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, _RATE, total_steps=steps, pct_start=0.1
    )
    for _ in range(steps):
        drawn = torch.randint(len(given), (_BATCH,), generator=generator).tolist()
        loss = _loss(ear, [given[k] for k in drawn])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(ear.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return ear.eval()


def _loss(ear: Ear, some: Sequence[Hearing]) -> Tensor:
    least = min(len(one.spectra_HV) for one in some)
    spectra_BHV = torch.stack([one.spectra_HV[:least] for one in some])
    right = torch.stack([one.right_HF[:least] for one in some])
    said = ear(spectra_BHV)
    begins = right[..., _ONSET]
    onset = functional.binary_cross_entropy_with_logits(
        said[..., _ONSET], begins, reduction="sum"
    ) / max(1.0, float(begins.sum()))
    said, right = said[begins > 0], right[begins > 0]
    numbers = (said[:, :_ONSET] - right[:, :_ONSET]).abs().sum(1)
    material = functional.cross_entropy(
        said[:, _ONSET + 1 :], right[:, _ONSET + 1 :], reduction="none"
    )
    return onset + (numbers + material).mean().nan_to_num()
