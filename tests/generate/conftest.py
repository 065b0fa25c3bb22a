"""What the tests of the rollout start from."""

import pytest

from mmpredict.model import Predictor
from mmpredict.tokens import Codecs
from tests.generate.small import make_model


@pytest.fixture
def all_three() -> tuple[Predictor, Codecs]:
    return make_model("audio", "video", "text")
