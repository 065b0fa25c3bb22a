"""One thread: at these sizes two of them wait for each other most of the time. Small query chunks:
the rows of the tests must be cut as the long rows of a run are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmpredict.model.attention.QUERY_CHUNK", 16)
