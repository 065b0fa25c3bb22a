"""Laws of the controls: they catch probes that learn the task, labels that leak, and big words."""

import pytest
import torch

from mmpredict.probes.controls import (
    claim,
    control_labels,
    leaks,
    permuted_labels,
    raw_pixels,
    raw_sound,
    untrained,
)
from mmpredict.probes.frozen_score import weighted_hits
from mmpredict.probes.readouts import logistic, ridge
from mmpredict.probes.stats import Interval
from mmpredict.schema import Clip
from tests.generate.small import make_model

TYPES, WIDE = 160, 256


def typed_scenes(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random features of each type, a little noise, and a label that is linear in them."""
    g = torch.Generator().manual_seed(seed)
    codes = torch.randn(TYPES, WIDE, generator=torch.Generator().manual_seed(50))
    types = torch.randint(TYPES, (rows,), generator=g)
    x = codes[types] + 0.1 * torch.randn(rows, WIDE, generator=g)
    real = (x[:, :4] + 0.8 * torch.randn(rows, 4, generator=g)).argmax(1)
    return x, types, real


def accuracy(labels: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> float:
    fitted = logistic((x["train"], labels["train"]), (x["dev"], labels["dev"]), 4)
    return float(weighted_hits(fitted(x["test"]).argmax(1), labels["test"]).mean())


def test_a_control_by_type_is_learnt_by_heart_and_one_by_scene_proves_nothing():
    """Random features hold the type, so a probe learns any function of it: selectivity is negative.
    With a random label per scene every probe is at chance, and any task looks selective."""
    sizes = {"train": 2000, "dev": 400, "test": 600}
    drawn = {part: typed_scenes(n, s) for s, (part, n) in enumerate(sizes.items())}
    x, types, real = ({part: d[k] for part, d in drawn.items()} for k in range(3))
    by_type = control_labels(real, types, seed=3)
    start, scenes = 0, {}
    for part, count in sizes.items():  # every row a scene of its own
        scenes[part] = torch.arange(start, start + count)
        start += count
    by_scene = control_labels(real, scenes, seed=3)
    score, typed, random = accuracy(real, x), accuracy(by_type, x), accuracy(by_scene, x)
    assert 0.45 < score < 0.9
    assert typed > 0.95
    assert abs(random - 0.25) < 0.06
    assert score - typed < 0 < score - random


def test_control_labels_are_a_function_of_the_type_with_the_histogram_of_the_labels():
    g = torch.Generator().manual_seed(0)
    types = {p: torch.randint(400, (3000,), generator=g) for p in ("train", "test")}
    truth = {p: (torch.rand(3000, generator=g) < 0.2).long() for p in types}
    control = control_labels(truth, types, seed=1)
    of_type = {}
    for part in types:
        for kind, label in zip(types[part].tolist(), control[part].tolist(), strict=True):
            assert of_type.setdefault(kind, label) == label
    assert abs(float(control["train"].float().mean()) - 0.2) < 0.06
    assert not torch.equal(control["train"], truth["train"])


def test_permuted_labels_are_at_chance_and_a_leak_is_noticed():
    g = torch.Generator().manual_seed(0)
    x, noise = torch.randn(900, 10, generator=g), torch.randn(900, 1, generator=g)
    y = x[:, :1] + 0.1 * noise
    parts = {"train": slice(0, 500), "dev": slice(500, 600), "test": slice(600, 900)}
    truth = permuted_labels({part: y[here] for part, here in parts.items()}, seed=4)
    assert torch.equal(truth["test"], y[600:])
    assert torch.equal(truth["train"].sort(0).values, y[:500].sort(0).values)
    fitted = ridge((x[:500], truth["train"]), (x[500:600], truth["dev"]))
    r2 = 1 - (fitted(x[600:]) - y[600:]).square().mean() / y[600:].square().mean()
    assert abs(float(r2)) < 0.05
    assert not leaks(Interval(0.02, -0.05, 0.09), 0.0)
    assert not leaks(Interval(0.40, 0.30, 0.50), 0.25)  # above chance, but once in 40 by luck
    assert leaks(Interval(0.50, 0.40, 0.60), 0.25)


def test_words_follow_from_the_intervals():
    above, below = Interval(0.2, 0.1, 0.3), Interval(0.05, -0.02, 0.12)
    score = Interval(0.6, 0.5, 0.7)
    both = {"raw pixels": above, "untrained": above}
    assert claim(score, 0.0, both, above) == "encodes"
    assert claim(score, 0.5, both, above) == "not decodable"
    assert claim(score, 0.0, {**both, "untrained": below}, above) == (
        "decodable, not above untrained"
    )
    assert claim(score, 0.0, both, below) == "decodable, not above the control task"


def test_an_untrained_model_has_fresh_weights_and_the_datas_statistics():
    model, _ = make_model("video", "audio", "text")
    first, again, other = untrained(model, 0), untrained(model, 0), untrained(model, 1)
    weights = [dict(m.named_parameters()) for m in (model, first, again, other)]
    name = "trunk.layers.0.attention.o_proj.weight"
    assert torch.equal(weights[1][name], weights[2][name])
    assert not torch.equal(weights[1][name], weights[3][name])
    assert not torch.equal(weights[3][name], weights[0][name])
    assert torch.equal(first.embed.standardise["video"].mean, model.embed.standardise["video"].mean)
    assert not first.training


def test_raw_pixels_hold_the_frame_and_what_changed():
    frames = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    frames[2, 0, 8:16, 24:32] = 255  # red, second row of cells, last column, in frame 2 alone
    features = raw_pixels([Clip(frames_TCHW=frames, times_s=torch.arange(4.0))], (1, 2))
    values = features.values_MSD[0].float()
    assert values.shape == (2, 16, 2 * 3 * 16)
    assert not values[0].any()
    assert values[1].any(1).nonzero().flatten().tolist() == [7]
    assert torch.equal(values[1, 7, :48], values[1, 7, 48:])  # all of it is new
    assert features.places_S3[7].tolist() == pytest.approx([-0.25, 0.75, 1.0])


def test_raw_sound_tells_the_ears_apart_by_level_and_by_time():
    noise = torch.randn(8000, generator=torch.Generator().manual_seed(0)) * 0.1

    def heard(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        clip = Clip(waveform_CS=torch.stack([left, right]), sample_rate=16000)
        return raw_sound([clip], (0.4,)).values_MSD[0][0, 0].float()

    even, loud_left = heard(noise, noise), heard(noise, 0.1 * noise)
    ild = slice(48, 72)
    assert even[ild].abs().max() < 1e-3
    assert loud_left[ild].mean() == pytest.approx(4.6, abs=0.2)  # log of 100 in power
    itd = slice(72, None)
    assert int(even[itd].argmax()) == 12
    later = heard(noise, noise.roll(8))
    assert int(later[itd].argmax()) == 12 - 8
