"""Subtitle tracks inside films: the text of a file that has none beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from datamodules import AudioVisual
from mmpredict.media import write_clip
from mmpredict.schema import TextPiece
from tests.datamodules.small import STREAMS, all_documents, codecs, loading, recording, text_of

CUES = (TextPiece("hello there", 0.2, 0.9), TextPiece("and good bye", 1.1, 1.8))


def write_film(path: Path) -> Path:
    write_clip(path, replace(recording(2.0), texts=CUES))
    return path


def said(root: Path, *streams: str, **options: object) -> list[tuple[float, str]]:
    """(start of the window, text) of all documents with text."""
    data = AudioVisual(
        str(root), **codecs(*streams), clip_seconds=0.5, loading=loading(), **options
    )
    data.setup()
    found = []
    for documents in map(data.documents, ("train", "val", "test")):
        for n, row in enumerate(all_documents(documents)):
            found += [(documents.window(0, n).start_s, text) for text in text_of([row])]
    return found


@pytest.mark.parametrize("streams", [STREAMS, ("text",)], ids=["all", "text"])
@pytest.mark.parametrize("random_start", [False, True])
def test_a_track_is_the_text_of_its_film(tmp_path, streams, random_start):
    write_film(tmp_path / "a.mp4")
    found = said(tmp_path, *streams, random_start=random_start)
    assert " ".join(text for _, text in found).split() == "hello there and good bye".split()
    if not random_start:
        assert found == [(0.5, "hello there"), (1.0, "and"), (1.5, "good bye")]


def test_a_text_beside_the_film_comes_first(tmp_path):
    write_film(tmp_path / "a.mp4").with_suffix(".txt").write_text("what stands beside")
    assert " ".join(text for _, text in said(tmp_path, *STREAMS)) == "what stands beside"


def test_a_manifest_has_it_too(tmp_path):
    write_film(tmp_path / "a.mp4")
    (tmp_path / "list.jsonl").write_text('{"path": "a.mp4", "start": 0.75}\n')
    found = said(tmp_path / "list.jsonl", *STREAMS)
    assert found == [(0.75, "there"), (1.25, "and good"), (1.75, "bye")]
