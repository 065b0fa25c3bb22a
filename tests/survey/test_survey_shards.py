"""The survey of shards adds up what was written into them, and pages fit any terminal."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import torch

from mmpredict.media import MediaError
from mmpredict.schema import Clip, Series, TextPiece
from mmpredict.shards.verify import verify
from mmpredict.survey.folder import survey_folder
from mmpredict.survey.page_file import file_page
from mmpredict.survey.page_folder import folder_page
from mmpredict.survey.page_rows import many, printed, row, size, span
from mmpredict.survey.page_shards import shards_page, tar_page, verify_page
from mmpredict.survey.source import survey_file
from mmpredict.survey.stored import ShardsSurvey, TarSurvey, survey_shards
from tests.shards.stored import of_clip, of_file, write_store
from tests.survey.films import PLAN, film, sound


def both(count: int) -> Clip:
    """Frames, sound, text and a series; 1 s."""
    return Clip(
        frames_TCHW=torch.zeros(5, 3, 16, 16, dtype=torch.uint8),
        times_s=torch.arange(5).double() / 5,
        waveform_CS=torch.zeros(1, 8000),
        sample_rate=8000,
        texts=(TextPiece("x" * count),),
        series={"action": Series(torch.zeros(5, 2), torch.arange(5).double() / 5)},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards: raw, encoded, kept, and text alone."""
    items = [
        of_clip(both(3), "raw"),
        of_clip(both(4), "encoded"),
        of_clip(Clip(texts=(TextPiece("alone"),)), "raw"),
        of_file(film(tmp_path / "a.mp4", 2.0)),
    ]
    splits = ["train", "train", "val", None]
    return write_store(
        tmp_path / "s", items, per_shard=3, splits=splits, codecs=PLAN.codecs, sources=[0, 0, 1, 2]
    )


def test_what_was_written_is_added_up(folder):
    found = survey_shards(folder)
    assert isinstance(found, ShardsSurvey)
    assert (found.samples, len(found.shards), found.sources) == (4, 2, 3)
    assert found.bytes == sum(path.stat().st_size for path in folder.glob("*.tar"))
    assert found.members == sum(len(_members(path)) for path in folder.glob("*.tar"))
    assert found.forms == {"raw": 2, "encoded": 1, "keep": 1}
    assert found.splits == {"train": 2, "val": 1, "by hash": 1}
    assert found.streams == {"video": 3, "audio": 3, "text": 3, "series action": 2}
    assert found.characters == 3 + 4 + 5
    assert found.frames == 5 + 5 + 20 and found.sound_s == pytest.approx(4.0, abs=0.05)
    assert found.tokens == {"video": 40, "audio": 50, "text": 3 + 4 + 5 + 3}
    assert survey_shards(folder / "index.jsonl") == found


def _members(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return tar.getnames()


def test_one_shard_of_a_folder(folder):
    second = survey_shards(folder / "000001.tar")
    assert (second.shard, second.samples, second.sources) == ("000001.tar", 1, 1)
    assert second.forms == {"keep": 1}
    assert second.members == len(_members(folder / "000001.tar"))


def test_a_tar_without_an_index_is_listed_and_a_hostile_one_refused(tmp_path):
    for name in ("a/1.jpg", "a/1.txt", "2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a/1.jpg", "a/1.txt", "2.jpg"):
            tar.add(tmp_path / name, name)
    found = survey_shards(tmp_path / "x.tar")
    assert isinstance(found, TarSurvey)
    assert (found.samples, found.members) == (2, 3)
    assert found.suffixes == {".jpg": (2, 10), ".txt": (1, 5)}
    assert any(".jpg" in line and "2 members" in line for line in tar_page(found))
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        tar.add(tmp_path / "2.jpg", "../up.jpg")
    with pytest.raises(MediaError):
        survey_shards(tmp_path / "bad.tar")


def test_pages_are_narrow_and_harmless(folder, tmp_path):
    media = tmp_path / ("long" * 40)
    media.mkdir()
    odd = media / "line\nend \x1b[31m\udcff.mp4"
    film(media / "plain.mp4", late_s=0.3, texts=(TextPiece("hello", 0.0, 0.5),)).rename(odd)
    sound(media / f"{'w' * 200}.wav", silent=True)
    (media / f"{'bad ' * 40}.mp4").write_bytes(b"\0" * 99)
    found = survey_shards(folder)
    damaged = folder / "000000.tar"
    damaged.write_bytes(damaged.read_bytes()[:-2000])
    pages = [
        file_page(survey_file(odd, PLAN, decode=True), PLAN),
        folder_page(survey_folder(media, PLAN), PLAN),
        shards_page(found) + verify_page(found, verify(folder), show_all=False),
    ]
    for page in pages:
        text = printed(page)
        assert all(len(line) <= 100 for line in text.split("\n")[1:])  # the first is a path
        assert "\x1b" not in text and text.encode()
    assert "late sound" in printed(pages[1]) and "000000.tar" in printed(pages[2])


def test_words_and_numbers():
    assert many(1, "file") == "1 file" and many(2000, "sound without text") == (
        "2,000 sounds without text"
    )
    assert [size(n) for n in (7, 999, 1000, 12_345_678, 10**12)] == [
        "7 bytes",
        "999 bytes",
        "1 kB",
        "12.3 MB",
        "1 TB",
    ]
    assert span(3.14) == "3.1 s" and span(3661.2) == "1:01:01 h"
    assert row("label", "") == ["  label"]
