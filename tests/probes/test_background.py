"""What is withheld is silent or grey, and sound goes on under question and answer."""

from __future__ import annotations

import pytest
import torch

from mmpredict.probes.background import GREY, Background
from mmpredict.probes.evidence import Footage
from mmpredict.probes.items import Evidence
from mmpredict.probes.likelihood import Ask, Likelihood
from mmpredict.probes.surprise import curves
from mmpredict.schema import Modality
from tests.generate.small import make_codecs, make_model
from tests.probes.small_suite import take

ALL = ("audio", "video", "text")


@pytest.mark.parametrize(
    ("variant", "blank"),
    [("video+audio", set()), ("video", {0}), ("audio", {1}), ("text", {0, 1})],
)
def test_withheld_streams_are_blank_and_have_the_times_of_real_ones(variant, blank):
    codecs = make_codecs(*ALL)
    footage = Footage({"a": take()}, codecs)
    real = {t.modality: t for t in footage.shown(Evidence("a", 0.5), "video+audio").streams}
    shown = footage.shown(Evidence("a", 0.5, ("a ball",)), variant)
    assert shown.blank == blank
    for tokens in shown.streams:
        if tokens.modality == Modality.TEXT:
            continue
        assert tokens.end_s.tolist() == pytest.approx(real[tokens.modality].end_s.tolist())
        same = torch.equal(tokens.contents, real[tokens.modality].contents)
        assert same == (tokens.modality not in blank)
    for tokens in shown.streams:
        if tokens.modality in blank and tokens.modality == Modality.VIDEO:
            assert bool((tokens.contents == GREY).all())
        elif tokens.modality in blank:
            assert float(tokens.contents.float().std(0).max()) == 0  # one sound, again and again


def test_sound_goes_on_at_its_own_rate_and_pictures_only_where_there_is_no_sound():
    codecs = make_codecs(*ALL)
    shown = Footage({"a": take()}, codecs).shown(Evidence("a", 0.5), "video+audio")
    more = shown.background.after(shown.streams, 0.5, 0.75)
    assert more.modality == Modality.AUDIO
    last_s, period_s = float(shown.streams[0].end_s[-1]), codecs.layout[Modality.AUDIO].period_s
    want = [last_s + period_s * n for n in range(1, 50) if last_s + period_s * n <= 0.75 + 1e-9]
    assert more.end_s.tolist() == pytest.approx([t for t in want if t > 0.5])
    mute = make_codecs("video", "text")
    shown = Footage({"a": take()}, mute).shown(Evidence("a", 0.5), "video")
    more = shown.background.after(shown.streams, 0.5, 0.8)
    assert more.end_s.tolist() == [0.5, 0.625, 0.75]
    for block in more.contents:
        assert torch.equal(block, shown.streams[0].contents[-1])


def test_no_block_is_lost_or_doubled_where_two_spans_meet():
    background = Background(make_codecs("video", "text"))
    spans = [(0.0, 0.25), (0.25, 0.5), (0.5, 1.0)]
    parts = [background.after([], *span).end_s.tolist() for span in spans]
    assert sum(parts, []) == background.after([], 0.0, 1.0).end_s.tolist()
    assert len(sum(parts, [])) == 8


def test_it_may_be_absent_and_that_is_another_question():
    model, codecs = make_model(*ALL)
    asks = [Ask("where?", ("left",))]
    said = {
        withheld: Likelihood(model, codecs).said(
            Footage({"a": take()}, codecs, withheld=withheld).shown(Evidence("a", 0.5), "video"),
            asks,
        )[0][0]
        for withheld in ("blank", "absent")
    }
    assert said["blank"].tokens == said["absent"].tokens
    assert abs(said["blank"].log_p - said["absent"].log_p) > 1e-3


def test_blank_streams_have_no_surprise():
    model, codecs = make_model(*ALL)
    footage = Footage({str(n): take(n) for n in range(2)}, codecs)
    clips = [footage.shown(Evidence(str(n)), "video") for n in range(2)]
    for of_clip in curves(model, clips, seed=0):
        assert [curve.stream for curve in of_clip] == ["video"]


def test_what_has_no_clock_has_no_background():
    shown = Footage({}, make_codecs(*ALL)).shown(Evidence("", None, ("a ball",)), "text")
    assert [t.modality for t in shown.streams] == [Modality.TEXT] and shown.background is None
