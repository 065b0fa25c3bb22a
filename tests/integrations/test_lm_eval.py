"""The three methods that lm-evaluation-harness calls, with stand-ins for its requests."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from mmpredict.integrations.lm_eval import LM, MMPredictLM
from mmpredict.integrations.texts import Texts
from mmpredict.model.fast_weights import FastWeightsConfig
from mmpredict.objectives import token_nll
from mmpredict.schema import Clip, Modality, TextPiece, UserError
from mmpredict.sequence import interleave
from mmpredict.training.checkpoint import describe
from tests.generate.small import make_model

MEMORY = FastWeightsConfig(every=1, num_heads=2, key_dim=8, value_dim=8, chunk=4)


@dataclass(frozen=True)
class Asked:
    """As much of an Instance as is read."""

    args: tuple


def make(*names: str, length: int = 64, **settings) -> MMPredictLM:
    model, codecs = make_model(*(names or ("text",)), **settings)
    return MMPredictLM(texts=Texts(model, codecs, length))


def from_forward(lm: MMPredictLM, text: str) -> tuple[list[float], list[bool]]:
    """log P of each token by the path of the training, and whether it is the likeliest."""
    codecs, model = lm.texts.codecs, lm.texts.predictor
    tokens = codecs.text.encode(Clip(texts=(TextPiece(text),)))
    with torch.no_grad():
        said = model(interleave([tokens], codecs.layout)).streams[Modality.TEXT]
    likeliest = said.logits_MV.argmax(-1) == said.targets_M
    return (-token_nll(said)[:-1].double()).tolist(), likeliest[:-1].tolist()


@pytest.mark.parametrize("settings", [{}, {"window": 24}, {"fast_weights": MEMORY}], ids=str)
@pytest.mark.parametrize("names", [("text",), ("audio", "video", "text")], ids=str)
def test_loglikelihood_is_that_of_the_whole_row(names, settings):
    lm = make(*names, **settings)
    requests = [Asked(("the ball is ", "red")), Asked(("", "a caf\u00e9")), Asked(("a", " b"))]
    for (log_p, _), request in zip(lm.loglikelihood(requests), requests, strict=True):
        context, continuation = request.args
        of_all, _ = from_forward(lm, context + continuation)
        own = len(of_all) - len(lm.texts.ids(context.rstrip(" ")))
        assert log_p == pytest.approx(sum(of_all[-own:]), abs=1e-4)


def test_greedy_is_whether_every_token_is_the_likeliest():
    """Of an untrained model that is pushed towards "a", and then towards "b"."""
    lm = make()
    head = lm.texts.predictor.heads["text"]
    flags = set()
    for letter in "ab":
        push_in = torch.zeros(257)
        push_in[ord(letter)] = 30.0
        plain = head.logits
        head.logits = lambda z, plain=plain, push=push_in, **more: plain(z, **more) + push
        for text in ("aa", "bb", "ab"):
            ((_, greedy),) = lm.loglikelihood([Asked(("", text))])
            assert greedy == all(c == letter for c in text)
            flags.add(greedy)
        assert lm.generate_until([Asked(("x", {"max_gen_toks": 3}))]) == [letter * 3]
        del head.logits
    assert flags == {True, False}
    for text in ("the ball", "caf\u00e9"):
        assert lm.loglikelihood([Asked(("", text))])[0][1] == all(from_forward(lm, text)[1])


def test_the_end_of_a_piece_is_not_scored():
    """All continuations of one byte share a distribution: their chances sum to 1 at most."""
    lm = make()
    every = [chr(k) for k in range(128)]
    total = sum(math.exp(p) for p, _ in lm.loglikelihood([Asked(("ab", c)) for c in every]))
    assert 0.2 < total <= 1.0 + 1e-5


def test_rolling_scores_each_token_once():
    """A short text at once; a long one in windows: the sum of what each window adds."""
    lm = make(length=16)
    short, long_ = "twelve bytes", "a text of thirty-eight bytes, or more!"
    first, second = lm.loglikelihood_rolling([Asked((short,)), Asked((long_,))])
    assert first == pytest.approx(sum(from_forward(lm, short)[0]), abs=1e-4)
    by_window = sum(from_forward(lm, long_[:16])[0]) + sum(from_forward(lm, long_[16:32])[0])
    rest = len(long_) - 32
    by_window += sum(from_forward(lm, long_[-16:])[0][-rest:])
    assert second == pytest.approx(by_window, abs=1e-4)


def test_a_long_context_is_cut_on_the_left():
    lm = make(length=16)
    long_, cut = "x" * 100 + "0123456789", "3456789"
    (a, _), (b, _) = lm.loglikelihood(
        [Asked((long_, " nine bytes"[:9])), Asked((cut, " nine byt"))]
    )
    assert a == pytest.approx(b, abs=1e-5)
    with pytest.raises(UserError, match="17 tokens is longer than the 16"):
        lm.loglikelihood([Asked(("a", "b" * 17))])


def test_generation_stops_at_the_first_stop_text():
    lm = make()
    (whole,) = lm.generate_until([Asked(("the ball is", {"max_gen_toks": 12}))])
    assert len(lm.texts.ids(whole)) <= 12 * 3 and whole
    stop = whole[1]
    (cut,) = lm.generate_until([Asked(("the ball is", {"until": stop, "max_gen_toks": 12}))])
    assert cut == whole[: whole.index(stop)]
    with pytest.raises(UserError, match="cannot draw with top_p"):
        lm.generate_until([Asked(("a", {"do_sample": True, "top_p": 0.5}))])
    with pytest.raises(UserError, match="empty context"):
        lm.generate_until([Asked(("", {}))])


def test_what_cannot_be_asked():
    lm = make()
    with pytest.raises(UserError, match="3 arguments, expected 2: pictures and sound"):
        lm.loglikelihood([Asked(("a", "b", {"visual": []}))])
    model, codecs = make_model("video")
    with pytest.raises(UserError, match="no text stream, only video"):
        Texts(model, codecs, 64)
    with pytest.raises(UserError, match="one at a time"):
        MMPredictLM(texts=lm.texts, batch_size=8)


def test_from_a_checkpoint_file(tmp_path):
    model, codecs = make_model("text")
    state = {f"predictor.{k}": v for k, v in model.state_dict().items()}
    about = describe(model, codecs, 32)
    torch.save({"mmpredict": about, "state_dict": state}, tmp_path / "last.ckpt")
    lm = MMPredictLM(checkpoint=str(tmp_path / "last.ckpt"))
    assert lm.texts.context_length == 32
    direct = MMPredictLM(texts=Texts(model, codecs, 32))
    request = [Asked(("the ball is ", "red"))]
    assert lm.loglikelihood(request) == direct.loglikelihood(request)
    assert (
        MMPredictLM(checkpoint=str(tmp_path / "last.ckpt"), max_length=9).texts.context_length == 9
    )


def test_with_the_harness_itself():
    pytest.importorskip("lm_eval.api.model")
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    assert issubclass(MMPredictLM, LM) and get_model("mmpredict") is MMPredictLM
    lm = make()
    ask = Instance("loglikelihood", {}, ("the ball is", " red"), 0)
    assert lm.loglikelihood([ask]) == lm.loglikelihood([Asked(("the ball is", " red"))])
    assert (lm.rank, lm.world_size) == (0, 1)
