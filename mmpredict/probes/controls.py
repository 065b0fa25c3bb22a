"""What a probe's number must be held against, and the words that may then be used.

A high score alone says little: pixels decode much, untrained networks decode much, and a probe may
learn the task itself. In: labels, models, clips. Out: control labels, untrained models, raw
features, claims.

Shapes: R rows, T frames, C channels, H W pixels, S samples, M moments, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpredict.model import Predictor
from mmpredict.probes.features import CELLS_A_SIDE, Features
from mmpredict.probes.stats import Interval
from mmpredict.schema import Clip
from mmpredict.tokens import Codecs

PIXELS = 16
_BANDS = 24  # of the raw sound
_LAGS = 12  # samples of 16 kHz on either side: the ears are 10.5 samples apart
_HEARD_S = 0.25
_QUIET = 1e-9


def control_labels(
    truth: Mapping[str, Tensor], types: Mapping[str, Tensor], *, seed: int = 0
) -> dict[str, Tensor]:
    """The control task of Hewitt & Liang (2019, section 2): a random function of the row's type.

    Types come back in other scenes, so that a probe can learn the function by heart; a random
    label per scene could be learnt by nobody, and would flatter any probe. Labels are drawn from
    those of the train rows, so their histogram is the same.

    Args:
        truth: per part ("train", ...) the real labels.
        types: per part (R,) the type of each row.
    """
    real = truth["train"]
    highest = max(int(t.max()) for t in types.values() if len(t))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(real), (highest + 1,), generator=generator)
    return {part: real[drawn[types[part]]] for part in truth}


def permuted_labels(truth: Mapping[str, Tensor], *, seed: int = 0) -> dict[str, Tensor]:
    """Train and dev labels dealt out anew; the test labels stay. Whatever is decoded then has
    leaked."""
    generator = torch.Generator().manual_seed(seed)
    return {
        part: labels[torch.randperm(len(labels), generator=generator)]
        if part in ("train", "dev")
        else labels
        for part, labels in truth.items()
    }


def untrained(predictor: Predictor, seed: int) -> Predictor:
    """The same architecture with fresh weights; the data's mean and deviation are kept, as they
    were measured and not learnt."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = Predictor(predictor.layout, predictor.config)
    for name, scale in predictor.embed.standardise.items():
        fresh.embed.standardise[name].load_state_dict(scale.state_dict())
    device = next(predictor.parameters()).device
    return fresh.to(device).eval()


def raw_pixels(clips: Sequence[Clip], moments: Sequence[int]) -> Features:
    """16 x 16 pixels of the frame at each moment and of the one before it, in the places that the
    model's own features have (4 x 4 cells), so that the same probes read them."""
    side = PIXELS // CELLS_A_SIDE
    found = []
    for clip in clips:
        frames = [clip.frames_TCHW[max(0, m - back)] for m in moments for back in (0, 1)]
        small = F.adaptive_avg_pool2d(torch.stack(frames).float() / 255, PIXELS)
        cells = F.pixel_unshuffle(small, side)  # (2 M, 3 * side^2, 4, 4)
        found.append(cells.flatten(2).transpose(1, 2).unflatten(0, (-1, 2)))
    values = torch.cat(found)  # (M, 2, 16, D)
    values_MSD = torch.cat([values[:, 0], values[:, 0] - values[:, 1]], -1)
    centres = (torch.arange(CELLS_A_SIDE) + 0.5) * 2 / CELLS_A_SIDE - 1
    grid = torch.cartesian_prod(centres, centres)
    places_S3 = torch.cat([grid, torch.ones(len(grid), 1)], 1)
    slots = {"video": slice(0, len(grid))}
    return Features(("raw",), [values_MSD.half()], slots, places_S3)


def raw_sound(clips: Sequence[Clip], times_s: Sequence[float]) -> Features:
    """Log-mel level of each ear, their difference by band (ILD), and how well the ears agree at
    each lag (ITD), over the quarter second before each moment."""
    found = []
    for clip in clips:
        for time_s in times_s:
            stop = max(1, round(time_s * clip.sample_rate))
            start = max(0, stop - round(_HEARD_S * clip.sample_rate))
            found.append(_heard(clip.waveform_CS[:, start:stop], clip.sample_rate))
    values = torch.stack(found)[:, None]
    return Features(("raw",), [values.half()], {"audio": slice(0, 1)}, torch.zeros(1, 3))


def _heard(waveform_CS: Tensor, sample_rate: int) -> Tensor:
    """(F,) of one piece of sound."""
    power_CB = torch.fft.rfft(waveform_CS).abs().square() / waveform_CS.shape[1]
    edges = torch.logspace(0, 1, _BANDS + 1) - 1  # denser below
    edges = (edges / edges[-1] * (power_CB.shape[1] - 1)).long()
    bands = [power_CB[:, a : max(b, a + 1)].mean(1) for a, b in zip(edges, edges[1:], strict=False)]
    level_CB = (torch.stack(bands, 1) + _QUIET).log()
    if len(waveform_CS) == 1:
        return level_CB[0]
    left, right = waveform_CS.double()
    size = (left.norm() * right.norm()).clamp(min=_QUIET)
    reach = max(1, round(_LAGS * sample_rate / 16000))
    spectrum = torch.fft.rfft(left, 2 * len(left)) * torch.fft.rfft(right, 2 * len(left)).conj()
    agree = torch.fft.irfft(spectrum, 2 * len(left)).roll(reach)[: 2 * reach + 1] / size
    return torch.cat([level_CB.flatten(), level_CB[0] - level_CB[1], agree.float()])


def claim(
    score: Interval,
    chance: float,
    above: Mapping[str, Interval],
    selectivity: Interval,
) -> str:
    """What may be said of a score; the words follow from the intervals alone (PROBES 2.5).

    Args:
        score: on the test scenes.
        chance: score of a guess.
        above: per baseline (raw, untrained, text-only), how much higher the score is, paired.
        selectivity: how much higher than on the control task, paired.
    """
    if score.low <= chance:
        return "not decodable"
    not_above = [name for name, apart in above.items() if apart.low <= 0]
    if not_above:
        return f"decodable, not above {', '.join(not_above)}"
    if selectivity.low <= 0:
        return "decodable, not above the control task"
    return "encodes"


def leaks(permuted: Interval, chance: float) -> bool:
    """Whether labels that were dealt out anew are decoded: by twice the interval's reach above
    chance, so that one of many targets does not cry wolf (1 in 20 000 by luck)."""
    reach = max(permuted.estimate - permuted.low, permuted.high - permuted.estimate)
    return permuted.estimate - chance > 2 * reach


def text_only_scenes_fit(text_only: Codecs, codecs: Codecs) -> bool:
    """Whether another model can be shown the very same clip."""
    return text_only.video == codecs.video and text_only.audio == codecs.audio
