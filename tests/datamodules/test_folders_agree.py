"""Law: what is trained on, prepared and inspected is the same folder: same files, same texts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from datamodules.files.finding import Wanted, find
from datamodules.files.recordings import Recording, TextFile
from mmpredict.media import Limits
from mmpredict.shards.index import read_index
from mmpredict.shards.sources import find_sources
from mmpredict.survey.folder import survey_folder
from tests.datamodules.small import write_image, write_sound, write_video
from tests.shards.prepared import RAW, prepared
from tests.survey.films import PLAN

SRT = "1\n00:00:00,000 --> 00:00:00,400\nhello you\n\n2\n00:00:00,500 --> 00:00:00,900\nthere\n"
EVERYTHING = Wanted(
    video=True, audio=True, text=True, clip_seconds=1.0, passage_bytes=10_000, limits=Limits()
)


def make_folder(root: Path) -> Path:
    """Covers, languages, lone texts of every kind, folders, broken and unknown files."""
    (root / "sub" / ".hidden").mkdir(parents=True)
    for folder in (root, root / "sub"):
        write_video(folder / "a.mp4", 1.0)
        write_image(folder / "a.png", 10)  # its cover
        write_image(folder / "p.png", 20)
        write_sound(folder / "s.wav", 1.0)
        (folder / "a.de.srt").write_text(SRT)
        (folder / "p.txt").write_text("a picture")
        (folder / "s.TXT").write_text("a sound")
        (folder / "s.json").write_text("[]")
        (folder / "lone.srt").write_text(SRT)
        (folder / "lone.part2.vtt").write_text("WEBVTT\n\n" + SRT)
        (folder / "lone.json").write_text("{}")
        (folder / "lone.txt").write_text("words")
        (folder / "lone.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
        (folder / "broken.mkv").write_bytes(b"no film" * 100)
        (folder / "table.xlsx").write_bytes(b"?")
    write_sound(root / "sub" / ".hidden" / "x.wav", 1.0)
    (root / "again").symlink_to(root)
    (root / "gone.wav").symlink_to(root / "nowhere")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("agree") / "in")


def test_fit_prepare_and_inspect_agree_on_what_a_folder_holds(folder, tmp_path):
    trained = find(folder, EVERYTHING)
    fit = {s.path: s.texts for s in trained.sources if isinstance(s, Recording)}
    fit |= {Path(skip.source): None for skip in trained.skipped}
    fit_texts = {s.path for s in trained.sources if isinstance(s, TextFile)}
    assert not trained.unused and len(fit) == 8 and len(fit_texts) == 8

    findings = find_sources(folder, tmp_path / "out")
    media = {s.path: s.beside for s in findings.sources if s.kind != "text"}
    assert media == fit
    assert {s.path for s in findings.sources if s.kind == "text"} == fit_texts

    survey = survey_folder(folder, PLAN)
    assert {Path(file.path) for file in survey.files} == fit.keys()
    assert {Path(text.path) for text in survey.texts_alone} == fit_texts
    texts = {Path(f.path): Path(f.text.path) for f in survey.files if f.text is not None}
    assert texts == {path: text for path, text in fit.items() if text is not None}
    assert survey.other_files == findings.left_alone
    assert {folder / name for name, _ in survey.skipped} == {
        Path(skip.source) for skip in trained.skipped
    }

    summary = prepared(folder, tmp_path / "out", RAW)
    stored = {folder / source.path for source in read_index(tmp_path / "out").sources}
    assert stored | {folder / skip.path for skip in summary.skipped} == fit.keys() | fit_texts
    assert {(folder / skip.path, skip.kind) for skip in summary.skipped} == {
        (Path(skip.source), skip.kind) for skip in trained.skipped
    }


@pytest.mark.parametrize("name", ["a.mp4", "a.png", "p.png", "lone.txt", "lone.srt"])
def test_they_agree_on_a_file_that_is_asked_for(folder, tmp_path, name):
    [source] = find(folder / name, EVERYTHING).sources
    [found] = find_sources(folder / name, tmp_path / "out").sources
    assert found.path == source.path == folder / name
    assert found.beside == getattr(source, "texts", None)


def test_lone_subtitles_are_prepared_as_plain_text(folder, tmp_path):
    prepared(folder / "lone.srt", tmp_path / "out", RAW)
    [sample] = read_index(tmp_path / "out").samples
    [text] = find(folder / "lone.srt", EVERYTHING).sources
    assert text.passages() == ["hello you\nthere"]
    codec = RAW.codecs().text
    assert sample.tokens == {"text": len(codec.ids_of("hello you\nthere")[0]) + 1}
    assert sample.duration_s == 0 and math.isfinite(sample.weight)
