"""What lmms-eval calls, with stand-ins for its requests and documents."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from mmpredict.integrations.lmms_eval import MMPredictLMMS, clip_of, lmms, manifest
from mmpredict.media import write_clip
from mmpredict.probes.evidence import Shown
from mmpredict.probes.likelihood import Ask, Likelihood
from mmpredict.schema import Clip, UserError
from tests.generate.small import make_codecs, make_model


@dataclass(frozen=True)
class Asked:
    args: tuple


class Picture:
    """As much of a PIL picture as is used, of one colour."""

    def __init__(self, width: int, height: int, shade: int = 100) -> None:
        self.width, self.height, self.shade = width, height, shade

    def convert(self, mode: str) -> Picture:
        assert mode == "RGB"
        return self

    def resize(self, size: tuple[int, int]) -> Picture:
        return Picture(*size, self.shade)

    def crop(self, box: tuple[int, int, int, int]) -> Picture:
        return Picture(box[2] - box[0], box[3] - box[1], self.shade)

    def tobytes(self) -> bytes:
        return bytes([self.shade]) * (3 * self.width * self.height)


def make(*names: str, docs=()) -> MMPredictLMMS:
    model, codecs = make_model(*(names or ("audio", "video", "text")))
    lm = MMPredictLMMS(loaded=(model, codecs, 256))
    lm.task_dict = {"task": {"test": list(docs)}}
    return lm


def answer_request(question: str, answer, doc: int = 0) -> Asked:
    return Asked((question, answer, lambda d: d["shown"], doc, "task", "test"))


def test_loss_is_that_of_the_probes_and_needs_the_picture():
    docs = [{"shown": [Picture(40, 20, 30)], "a": "yes"}, {"shown": [Picture(40, 20, 220)]}]
    lm = make(docs=docs)
    said = lm.loglikelihood(
        [
            answer_request("is it dark?", "yes"),
            answer_request("is it dark?", lambda doc: doc["a"]),
            answer_request("is it dark?", "yes", doc=1),
        ]
    )
    clip = clip_of(docs[0]["shown"], lm.codecs)
    shown = Shown(tuple(lm.codecs.encode(clip)), 0.0)
    expected = Likelihood(lm.predictor, lm.codecs).said(shown, [Ask("is it dark?", ("yes",))])
    assert said[0][0] == pytest.approx(-expected[0][0].log_p, abs=1e-5)
    assert said[0] == said[1] and said[0][0] > 0
    assert said[0][0] != pytest.approx(said[2][0], abs=1e-6)


def test_least_loss_is_the_likeliest_answer_and_greedy_is_what_is_generated():
    """Of a model that is pushed to say "a" three times and to stop."""
    lm = make(docs=[{"shown": [Picture(16, 16)]}])
    head, plain = lm.predictor.heads["text"], lm.predictor.heads["text"].logits
    counted = [0]

    def pushed(z, **more):
        logits = plain(z, **more)
        if len(logits) > 1:  # an answer is read at once: a, a, a, END
            spoken = torch.tensor([ord("a")] * 3 + [256])[: len(logits)]
            return logits + 30 * torch.nn.functional.one_hot(spoken, 257)
        counted[0] += 1
        logits[..., 256 if counted[0] % 4 == 0 else ord("a")] += 30
        return logits

    head.logits = pushed
    request = ("what is it?", {"max_new_tokens": 9}, lambda d: d["shown"], 0, "task", "test")
    assert lm.generate_until([Asked(request)]) == ["aaa"]
    until = (request[0], {"until": "aa"}, *request[2:])
    assert lm.generate_until([Asked(until)]) == [""]
    (good, is_greedy), (bad, is_not) = lm.loglikelihood(
        [answer_request("what is it?", "aaa"), answer_request("what is it?", "bbb")]
    )
    assert good < 1 < 60 < bad and is_greedy and not is_not


def test_without_pictures_only_the_words_count():
    lm = make("text", docs=[{"shown": []}, {"shown": None}])
    first, second = lm.loglikelihood([answer_request("is it?", "yes", k) for k in (0, 1)])
    assert first == second
    with pytest.raises(UserError, match="no stream for"):
        clip_of([Picture(8, 8)], lm.codecs)


def test_everything_that_can_be_shown(tmp_path):
    codecs = make_codecs("audio", "video", "text")
    clip = clip_of([Picture(99, 33), Picture(16, 48)], codecs)
    assert clip.frames_TCHW.shape == (2, 3, 16, 16) and clip.times_s.tolist() == [0.0, 0.125]
    frames = torch.full((8, 3, 32, 32), 120, dtype=torch.uint8)
    write_clip(tmp_path / "a.mp4", Clip(frames, torch.arange(8).double() / 16))
    sound = {"array": torch.zeros(4_000), "sampling_rate": 4_000}
    both = clip_of([str(tmp_path / "a.mp4"), sound], codecs)
    assert both.frames_TCHW.shape == (4, 3, 16, 16)
    assert both.waveform_CS.shape == (codecs.audio.channels, 8_000)
    for wrong in ([sound, sound], ["a", "b"], ["a", Picture(1, 1)], [3.5]):
        with pytest.raises(UserError, match="takes pictures or one video, and one sound"):
            clip_of(wrong, codecs)


def test_what_is_refused():
    model, codecs = make_model("video")
    with pytest.raises(UserError, match="no text stream"):
        MMPredictLMMS(loaded=(model, codecs, 64))
    lm = make("text")
    with pytest.raises(UserError, match="several rounds"):
        lm.generate_until_multi_round([])
    with pytest.raises(UserError, match="one at a time"):
        MMPredictLMMS(batch_size=4, loaded=(lm.predictor, lm.codecs, 64))


def test_with_the_harness_itself():
    pytest.importorskip("lmms_eval.api.model")
    assert issubclass(MMPredictLMMS, lmms)
    assert manifest().simple_class_path == "mmpredict.integrations.lmms_eval.MMPredictLMMS"
