"""What is said of an answer is what the model's own forward says of the whole row."""

from __future__ import annotations

import pytest
import torch

from mmpredict.model.fast_weights import FastWeightsConfig
from mmpredict.objectives import token_nll
from mmpredict.probes import likelihood
from mmpredict.probes.evidence import (
    Footage,
    Shown,
    question_and_answer,
    spoken,
    with_background,
    words,
)
from mmpredict.probes.items import Evidence
from mmpredict.probes.likelihood import Ask, Likelihood
from mmpredict.schema import Modality, Tokens
from mmpredict.sequence import interleave
from tests.generate.small import make_model
from tests.probes.small_suite import take

MEMORY = FastWeightsConfig(every=1, num_heads=2, key_dim=8, value_dim=8, chunk=4)
SETTINGS = {
    "plain": {},
    "window": {"window": 24},
    "grouped": {"num_kv_heads": 1, "depth": 2},
    "experts": {"experts": "ffn"},
    "memory": {"fast_weights": MEMORY},
    "memory and window": {"fast_weights": MEMORY, "window": 24, "depth": 2},
}
ASKS = [
    Ask("is it left?", ("yes", "no", "it is not there at all")),
    Ask("where is it?", ("left", "right")),
    Ask("", ("the ball rolls", "a")),
    Ask("is it left?", ("perhaps",)),
]


def shown_in(codecs, variant: str) -> Shown:
    if variant == "nothing":
        return Shown((), None)
    footage = Footage({"a": take()}, codecs)
    timed = variant != "told without times"
    told = Evidence("a", 0.5 if timed else None, ("a red ball", "it rolls left"))
    return footage.shown(told, variant if timed else "text")


def joined(parts: list[Tokens]) -> Tokens:
    contents, end_s = (torch.cat([getattr(t, n) for t in parts]) for n in ("contents", "end_s"))
    return Tokens(parts[0].modality, contents, end_s)


def from_forward(model, codecs, shown: Shown, question: str, statement: str) -> float:
    """log P of a statement by the path of the training: the whole row at once."""
    asked, said = question_and_answer(shown, question, statement)
    told = [t for t in shown.streams if t.modality == Modality.TEXT]
    others = [t for t in shown.streams if t.modality != Modality.TEXT]
    tokens = words(codecs, [*asked, said])
    if shown.background is not None:
        more = shown.background.after(shown.streams, shown.end_s, float(tokens.end_s[-1]))
        before = [t for t in others if t.modality == more.modality]
        others = [t for t in others if t.modality != more.modality]
        others.append(joined([*before, more]))
    row = interleave([*others, joined([*told, tokens])], codecs.layout)
    with torch.no_grad():
        prediction = model(row).streams[Modality.TEXT]
    count = len(words(codecs, [said]).contents)
    return -float(token_nll(prediction)[-count:].double().sum())


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(
    "variant", ["video+audio", "video", "text", "told without times", "nothing"]
)
def test_equal_to_forward_on_the_whole_row(settings, variant):
    model, codecs = make_model("audio", "video", "text", **settings)
    shown = shown_in(codecs, variant)
    said = Likelihood(model, codecs).said(shown, ASKS)
    for ask, of_ask in zip(ASKS, said, strict=True):
        for statement, got in zip(ask.statements, of_ask, strict=True):
            want = from_forward(model, codecs, shown, ask.question, statement)
            assert got.log_p == pytest.approx(want, abs=1e-4)
            assert got.tokens == len(statement) + 1


@pytest.mark.parametrize("settings", [{}, {"fast_weights": MEMORY}], ids=["tree", "spread"])
def test_alone_together_and_in_any_order(settings, monkeypatch):
    model, codecs = make_model("video", "text", **settings)
    shown = shown_in(codecs, "video")
    together = Likelihood(model, codecs).said(shown, ASKS)
    turned = Likelihood(model, codecs).said(shown, ASKS[::-1])[::-1]
    alone = [Likelihood(model, codecs).said(shown, [ask])[0] for ask in ASKS]
    monkeypatch.setattr(likelihood, "ROOM", 1)
    in_portions = Likelihood(model, codecs).said(shown, ASKS)
    for other in (turned, alone, in_portions):
        for one, two in zip(together, other, strict=True):
            apart = [abs(a.log_p - b.log_p) for a, b in zip(one, two, strict=True)]
            assert max(apart) < 1e-4


def test_evidence_and_question_matter():
    model, codecs = make_model("video", "text")
    likelihoods, shown = Likelihood(model, codecs), shown_in(codecs, "video")
    with_both = likelihoods.said(shown, [Ask("where?", ("left",))])[0][0].log_p
    nothing = Footage({}, codecs).nothing(shown.end_s)
    without = likelihoods.said(nothing, [Ask("where?", ("left",))])[0][0].log_p
    unasked = likelihoods.said(shown, [Ask("", ("left",))])[0][0].log_p
    assert len({round(x, 3) for x in (with_both, without, unasked)}) == 3


def test_rules_and_which_of_them_counts():
    model, codecs = make_model("video", "text")
    asker, shown = Likelihood(model, codecs), shown_in(codecs, "video")
    same, differ = asker.numbers(shown, [Ask("is it?", ("yes", "not")), Ask("", ("a", "the"))])
    assert next(iter(same)) == "sum" and next(iter(differ)) == "pmi"
    said = asker.said(shown, [Ask("", ("a", "the"))])[0]
    per_token = [said[0].log_p / 2, said[1].log_p / 4]
    assert differ["per_token"] == pytest.approx(per_token)
    neutral = [asker.neutral(s, shown).log_p for s in ("a", "the")]
    assert differ["pmi"] == pytest.approx([s.log_p - n for s, n in zip(said, neutral, strict=True)])


@pytest.mark.parametrize("variant", ["video", "told without times"])
def test_the_neutral_prompt_stands_in_place_of_evidence_and_question(variant):
    model, codecs = make_model("video", "text")
    asked = shown_in(codecs, variant)
    (piece,) = spoken([likelihood.NEUTRAL], None if asked.end_s is None else 0.0)
    neutral = with_background((words(codecs, [piece]),), piece.end_s, asked.background)
    want = from_forward(model, codecs, neutral, "", "left")
    asker = Likelihood(model, codecs)
    assert asker.neutral("left", asked).log_p == pytest.approx(want, abs=1e-4)
    assert asker.neutral("left", asked) is asker.neutral("left", asked)
