"""From a folder to shards by `mmpredict prepare`, and from there to the rows of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules import AudioVisual, Skipped
from datamodules.shards import Shards
from mmpredict import cli
from mmpredict.shards import Store, verify
from mmpredict.tokens import MelChunks, Patches, TextTokens
from tests.datamodules.small import (
    FPS,
    RATE,
    SIZE,
    VIDEO,
    all_documents,
    loading,
    same,
    write_sound,
    write_video,
)
from tests.datamodules.test_webdataset import picture
from tests.shards.test_store import damage

SPLITS = ("train", "val", "test")
RUN = {
    "audio": MelChunks(sample_rate=RATE, channels=1),
    "video": Patches(size=SIZE, patch=8, fps=FPS),
    "text": TextTokens(),
    "clip_seconds": 0.5,
}
AS_THE_RUN = "--size 16 --fps 8 --sample_rate 8000 --channels 1 --clip_seconds 0.5 --workers 1"


def folder(root: Path) -> Path:
    for n in range(4):
        write_video(root / f"v{n}.mp4", 1.3, n)
        write_sound(root / f"s{n}.wav", 0.8, n)
        (root / f"v{n}.txt").write_text(f"words of video {n}")
        (root / f"i{n}.png").write_bytes(picture(n))
        (root / f"i{n}.txt").write_text(f"picture {n}")
        (root / f"t{n}.txt").write_text(f"a text of its own {n}")
    return root


def prepared(tmp_path: Path, form: str) -> Path:
    source, out = folder(tmp_path / "folder"), tmp_path / "shards"
    words = ["prepare", str(source), "--out", str(out), f"--{form}", *AS_THE_RUN.split()]
    assert cli.main(words) == 0
    return out


def rows_of(data: Shards | AudioVisual) -> list[object]:
    data.setup()
    rows = [row for split in SPLITS for row in all_documents(data.documents(split))]
    assert not any(isinstance(row, Skipped) for row in rows)
    return sorted(rows, key=lambda row: [(m, x.sum().item()) for m, x in row.contents.items()])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["keep", "raw", "encode"])
def test_shards_of_a_folder_are_that_folder(tmp_path, form):
    """Kept: bit by bit the rows of AudioVisual. Raw: all but the sound's last bits. Every length in
    the index is exact. A flipped bit is found by `inspect --verify`, which names the member."""
    out = prepared(tmp_path, form)
    data = Shards(str(out), **RUN, loading=loading())
    rows = rows_of(data)
    truth = rows_of(AudioVisual(str(tmp_path / "folder"), **RUN, loading=loading()))
    assert len(rows) == len(truth) == 4 * 3 + 4 * 2 + 4 + 4
    if form == "keep":
        assert all(map(same, rows, truth))
    shapes = [sorted((m, tuple(x.shape)) for m, x in row.contents.items()) for row in rows]
    expected = [sorted((m, tuple(x.shape)) for m, x in row.contents.items()) for row in truth]
    assert sorted(shapes) == sorted(expected)
    if form == "raw":
        frames = [
            sorted(x.sum().item() for row in some for m, x in row.contents.items() if m == VIDEO)
            for some in (rows, truth)
        ]
        assert frames[0] == frames[1]
    for documents in map(data.documents, SPLITS) if form != "keep" else ():
        for index, row in enumerate(all_documents(documents)):
            assert documents.length(0, index) == row.modality.shape[1]
    assert verify(out) == []
    store = Store(out)
    sample = store.index.samples[2]
    damage(store, sample, sample.members[-1].suffix, 77)
    (damaged,) = verify(out)
    assert damaged.member == store.name(sample, sample.members[-1].suffix)
    assert cli.main(["inspect", str(out), "--verify"]) == 1
