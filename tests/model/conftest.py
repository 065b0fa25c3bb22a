"""Small pieces: the rows of the tests must be cut as the long rows of a run are."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmpredict.model.pieces.QUERY_CHUNK", 16)
    monkeypatch.setattr("mmpredict.model.pieces.KEY_GRID", 8)
