"""Real clips that `examples/fetch_real_clips.py` has fetched; they are no part of the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from datamodules import AudioVisual, Skipped
from tests.datamodules.small import STREAMS, VIDEO, codecs, loading, same

FOLDER = Path(os.environ.get("MMPREDICT_REAL_CLIPS", "~/.cache/mmpredict/real_clips")).expanduser()
MAX_WINDOWS = 12  # of a split, to stay quick


@pytest.mark.skipif(not FOLDER.is_dir(), reason="run examples/fetch_real_clips.py first")
def test_real_clips_become_documents():
    """Speech, film and silent clips side by side; 2 s are 64 patches and 50 chunks of sound."""
    data = AudioVisual(str(FOLDER), **codecs(*STREAMS), clip_seconds=2.0, loading=loading())
    data.setup()
    for split in ("train", "val", "test"):
        documents = data.documents(split)
        indices = range(min(MAX_WINDOWS, len(documents)))
        rows = documents.read(0, indices)
        assert all(map(same, rows, (documents.document(0, n) for n in indices)))
        read = [row for row in rows if not isinstance(row, Skipped)]
        assert len(read) > len(rows) / 2
        assert all(row.modality.shape[1] <= data.loading.context_length for row in read)
        frames = [row.contents[VIDEO] for row in read if VIDEO in row.contents]
        assert all(frame.float().std() > 5 for frame in frames), "a picture, not one colour"
        for index, row in zip(indices, rows, strict=True):
            source, window = documents.find(index)[0], documents.window(0, index)
            if isinstance(row, Skipped) or window is None or not source.info.has_video:
                continue
            assert window.is_last or len(row.contents[VIDEO]) == 64
    assert not data.skip_log.reasons
    assert sum(len(data.documents(s)) for s in ("train", "val", "test")) >= 3
    batch = next(iter(data.val_dataloader()))
    assert batch.num_tokens > 0
