"""Small query chunks: the rows of the tests must be cut as the long rows of a run are."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmpredict.model.attention.QUERY_CHUNK", 16)
