"""What the tests of the rollout start from."""

import pytest
import torch

from mmpredict.model import Predictor
from mmpredict.tokens import Codecs
from tests.generate.small import make_model


@pytest.fixture(autouse=True)
def _one_thread():
    """A rollout is thousands of tiny steps; a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def all_three() -> tuple[Predictor, Codecs]:
    return make_model("audio", "video", "text")
