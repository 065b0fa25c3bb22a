"""Law: a folder holds the same whoever asks; each medium has one text, and what is left alone is
counted."""

from __future__ import annotations

import os

import pytest

from mmpredict.media import list_folder, texts_beside

MEDIA = ["a.mp4", "b.wav", "c.png", "d.en.mp4", "e.mkv", "f.mp4", "f.png", ".h.mp4", "g.wav"]
TEXTS = ["a.txt", "a.srt", "b.en.srt", "b.de.srt", "b.fr-CA.vtt", "c.json", "d.en.srt"]
TEXTS += ["e.notalanguage.srt", "f.jsonl", ".g.srt", "e.TXT", "z.txt", "y.json", "x.srt"]
BESIDE = {
    "a.mp4": "a.srt",
    "b.wav": "b.de.srt",
    "c.png": "c.json",
    "d.en.mp4": "d.en.srt",
    "e.mkv": "e.TXT",
    "f.mp4": "f.jsonl",
    "g.wav": None,
}


def test_one_walk_finds_media_with_their_texts(tmp_path):
    for folder in (tmp_path, tmp_path / "below"):
        folder.mkdir(exist_ok=True)
        for name in MEDIA + TEXTS + ["table.xlsx", "README"]:
            (folder / name).touch()
    listing = list_folder(tmp_path)
    assert {path: beside and beside.name for path, beside in listing.media.items()} == {
        folder / name: beside
        for folder in (tmp_path, tmp_path / "below")
        for name, beside in BESIDE.items()
    }
    assert texts_beside(listing.media) == listing.media
    assert list(listing.media) == sorted(listing.media) and listing.texts == sorted(listing.texts)
    alone = ["e.notalanguage.srt", "x.srt", "z.txt"]
    assert [p.name for p in listing.texts] == alone * 2
    assert listing.others == {".xlsx": 2, "no suffix": 2, ".json": 2, "cover picture": 2}


def test_the_text_is_chosen_by_a_fixed_order(tmp_path):
    media = tmp_path / "clip[1].mp4"
    assert texts_beside([media]) == {media: None}
    (tmp_path / "clip[1]x.srt").touch()
    (tmp_path / "clip[1].part2.srt").touch()  # no language
    (tmp_path / "clip[1].en.srt").mkdir()
    assert texts_beside([media]) == {media: None}
    for name in (
        "clip[1].fr.txt",
        "clip[1].pt-BR.srt",
        "clip[1].de.srt",
        "clip[1].txt",
        "clip[1].vtt",
        "clip[1].srt",
    ):
        (tmp_path / name).touch()
        assert texts_beside([media]) == {media: tmp_path / name}  # each outranks those before it


def test_hidden_files_links_and_what_is_no_file_are_no_media(tmp_path):
    for name in ("b.MP4", "a/c.wav", "a/.hidden.mp4", ".trash/d.mp4", "a/b.webm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.wav")
    listing = list_folder(tmp_path)
    assert [str(p.relative_to(tmp_path)) for p in listing.media] == ["a/b.webm", "a/c.wav", "b.MP4"]
    assert listing.others == {"link to a folder": 1, "broken link or no file": 2}
    assert [p.name for p in list_folder(tmp_path, without=tmp_path / "a").media] == ["b.MP4"]
    with pytest.raises(ValueError, match="no such folder"):
        list_folder(tmp_path / "missing")


def test_a_file_that_is_asked_for_is_listed_whatever_lies_beside_it(tmp_path):
    for name in ("a.mp4", "a.png", "a.txt", ".b.wav", "a.json", "table.xlsx"):
        (tmp_path / name).touch()
    assert list_folder(tmp_path / "a.mp4").media == {tmp_path / "a.mp4": tmp_path / "a.json"}
    for name in ("a.png", ".b.wav"):
        assert list(list_folder(tmp_path / name).media) == [tmp_path / name]
    assert list_folder(tmp_path / "a.txt").texts == [tmp_path / "a.txt"]
    assert not list_folder(tmp_path / "table.xlsx")


def test_a_folder_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.wav").touch()
    real = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    listing = list_folder(tmp_path)
    assert listing.closed == {tmp_path / "closed": "Permission denied"}
    assert list(listing.media) == [tmp_path / "a.wav"]
