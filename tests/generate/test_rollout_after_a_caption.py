"""What is said after a caption stands at its end, to the last bit of its time."""

from __future__ import annotations

import pytest
import torch

from mmpredict.generate import rollout
from mmpredict.schema import Clip, TextPiece

from .small import make_model


@pytest.mark.parametrize("end_s", [0.1, 0.24, 0.25, 0.7])  # only one of them is a float32
def test_words_after_a_caption(end_s):
    model, codecs = make_model("video", "text")
    frame = torch.full((1, 3, 16, 16), 100, dtype=torch.uint8)
    prompt = Clip(frame, torch.zeros(1).double(), texts=(TextPiece("what is it?", 0.06, end_s),))
    gone_on = rollout(model, codecs, prompt, seconds=1.0, streams=("text",), max_tokens=3)
    (said,) = gone_on.tokens
    assert bool((said.end_s >= end_s).all())
