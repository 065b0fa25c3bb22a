"""Surprise is that of the heads on the model's own forward, by itself and in a set."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmpredict.model.latent import LatentConfig
from mmpredict.probes import surprise
from mmpredict.probes.evidence import Footage, Shown
from mmpredict.probes.items import Evidence
from mmpredict.schema import Modality
from mmpredict.sequence import interleave
from tests.generate.small import make_model
from tests.model import with_frames
from tests.probes.small_suite import take

CUT_S = 1.0


def clips(codecs, variant: str, count: int = 3) -> list[Shown]:
    footage = Footage({str(n): take(n) for n in range(count)}, codecs)
    return [footage.shown(Evidence(str(n)), variant) for n in range(count)]


@pytest.mark.parametrize("kind", ["flow", "regression", "gmm"])
def test_equal_to_the_heads_on_the_whole_row(kind):
    model, codecs = make_model("audio", "video", "text", kind=kind)
    shown = clips(codecs, "video+audio", 2)
    found = surprise.curves(model, shown, seed=5)
    for clip, curves in zip(shown, found, strict=True):
        row = interleave(list(clip.streams), codecs.layout)
        with torch.no_grad():
            hidden = model.hidden(row)
        for curve in curves:
            modality = int(Modality[curve.stream.upper()])
            keep = model.has_previous(row, modality)
            z = model.condition(row, hidden, modality)[keep]
            before = model.previous(row, modality)[keep]
            truth = model.embed.values(row, modality)[keep]
            noise = torch.Generator().manual_seed(5)
            want = model.heads[curve.stream].surprise(z, before, truth, noise)
            assert torch.tensor(curve.prediction) == pytest.approx(want, rel=1e-4, abs=1e-5)
            assert curve.unit == ("nats" if kind == "gmm" else "error")
            assert len(curve.times_s) == len(want) == len(curve.latent)


def test_alone_and_together_and_noise_in_common():
    model, codecs = make_model("video")
    one, two, three = clips(codecs, "video")
    together = surprise.curves(model, [one, two, one, three], seed=1)
    alone = [surprise.curves(model, [clip], seed=1)[0] for clip in (one, two, one, three)]
    for (a,), (b,) in zip(together, alone, strict=True):
        assert a.prediction == pytest.approx(b.prediction, abs=1e-4)
        assert a.latent == pytest.approx(b.latent, abs=1e-4)
    assert together[0][0].prediction == pytest.approx(together[2][0].prediction, abs=1e-6)
    other_noise = surprise.curves(model, [one], seed=2)[0][0]
    assert other_noise.prediction != pytest.approx(alone[0][0].prediction, abs=1e-4)
    assert other_noise.latent == pytest.approx(alone[0][0].latent)  # the mean has no noise


def test_only_what_follows_the_cut_counts():
    model, codecs = make_model("audio", "video")
    shown = clips(codecs, "video+audio", 2)
    whole = surprise.curves(model, shown, seed=0)
    cut = surprise.curves(model, shown, seed=0, from_s=CUT_S)
    assert min(cut[0][1].times_s) == CUT_S and len(cut[0][1].times_s) == 8
    before, after = (surprise.numbers(curves, CUT_S) for curves in (whole, cut))
    assert before.keys() == after.keys()
    for rule, values in before.items():
        assert values == pytest.approx(after[rule], abs=1e-4)


def test_aggregators_by_hand():
    def curve(stream: str, unit: str, *values: float) -> surprise.Curve:
        times = tuple(1.0 + 0.5 * n for n in range(len(values)))
        return surprise.Curve(stream, unit, times, values, tuple(2 * v for v in values))

    video, sound = curve("video", "error", 9, 1, 3), curve("audio", "error", 9, 5, 7)
    found = surprise.numbers([[sound, video]], 1.5)
    assert found["prediction/video"] == [2] and found["prediction/audio"] == [6]
    assert found["prediction"] == [8] and found["prediction/max"] == [10]
    assert found["prediction/area"] == [8 * 0.5] and found["latent"] == [16]
    assert next(iter(found)) == "prediction"
    other_unit = replace(sound, unit="nats")
    assert surprise.numbers([[other_unit, video]], 1.5)["prediction"] == [2]
    with pytest.raises(ValueError, match="nothing from the cut at 3.0 s"):
        surprise.numbers([[video]], 3.0)


def test_a_broken_clip_surprises_a_model_that_copies_the_last_frame():
    """An untrained regression head says the last frame again: what stands still surprises less
    than what is cut to another scene."""
    model, codecs = make_model("video", kind="regression")
    with torch.no_grad():
        model.heads["video"].block_mean.to_mean.weight.zero_()
    one, two = (clip.streams[0] for clip in clips(codecs, "video", 2))
    swapped = torch.cat([one.contents[:8], two.contents[8:]])
    broken = Shown((replace(one, contents=swapped),), 2.0)
    found = surprise.curves(model, [Shown((one,), 2.0), broken], seed=0, from_s=CUT_S)
    for values in surprise.numbers(found, CUT_S).values():
        assert values[1] > values[0]


def test_features_of_a_latent_auxiliary_are_those_that_count():
    model = with_frames.predictor(with_frames.VIT, LatentConfig(target="ema", decay=0.9)).eval()
    shown = Shown((with_frames.frame_tokens(4),), 0.5)
    (curve,) = surprise.curves(model, [shown], seed=0)[0]
    row = interleave(list(shown.streams), with_frames.LAYOUT)
    with torch.no_grad():
        said = model(row).latents[int(Modality.VIDEO)]
    want = (said.said_MPF - said.targets_MPF).abs().mean((1, 2))[1:]
    assert torch.tensor(curve.latent) == pytest.approx(want, rel=1e-4, abs=1e-5)
