"""Law: what a survey promises of a file is what a run gets from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from mmpredict.media import MediaError, read_clip, write_srt
from mmpredict.media.cutting import Cut
from mmpredict.schema import TextPiece
from mmpredict.survey import source as survey_module
from mmpredict.survey.folder import survey_folder
from mmpredict.survey.source import FileSurvey, survey_file, survey_text
from tests.survey.films import PLAN, RATE, film, sound, tone

CAPTIONS = (TextPiece("one two three", 0.2, 1.4), TextPiece("four", 1.6, 1.9))


def kinds(found: FileSurvey) -> set[str]:
    return {odd.kind for odd in found.odd}


def encoded(path: Path, windows: Cut) -> dict[str, int]:
    """Tokens of a file's windows, by reading and encoding them."""
    counts = {"audio": 0, "video": 0}
    for window in windows:
        clip = read_clip(
            path,
            start_s=window.start_s,
            duration_s=window.duration_s,
            fps=5.0,
            size=(16, 16),
            sample_rate=RATE,
            channels=1,
        )
        for tokens in PLAN.codecs.encode(clip):
            name = PLAN.codecs.layout[tokens.modality].name
            counts[name] += (
                tokens.contents.shape[0] * PLAN.codecs.layout[tokens.modality].positions_per_block
            )
    return {name: count for name, count in counts.items() if count}


@pytest.mark.parametrize("seconds", [0.5, 1.0, 2.3, 2.9, 3.1])
@pytest.mark.parametrize("made", ["both", "picture", "sound", "late", "short", "slow"])
def test_tokens_are_those_of_the_encoders(made, seconds, tmp_path):
    path = tmp_path / "a.mp4"
    if made == "sound":
        path = sound(tmp_path / "a.wav", seconds)
    else:
        options = {
            "both": {},
            "picture": {"sound_s": 0},
            "late": {"late_s": 0.12},
            "short": {"sound_s": seconds / 2},
            "slow": {"fps": 4.0},  # below the rate of the encoder: frames are repeated
        }[made]
        film(path, seconds, **options)
    found = survey_file(path, PLAN)
    assert found.tokens == encoded(path, Cut(*found.span_s, PLAN.clip_seconds))
    assert found.documents == len(Cut(*found.span_s, PLAN.clip_seconds))
    assert found.lost == () and found.refused is None and found.read_cpu_s > 0
    assert ("frame rate below the recipe's" in kinds(found)) == (made == "slow")


def test_a_folder_gives_what_the_datamodule_takes(tmp_path):
    """Every document of every split, text included."""
    from datamodules import AudioVisual, Loading

    for number in range(4):
        film(tmp_path / f"{number}.mp4", 1.3 + number, late_s=0.1 * number)
        if number % 2:
            write_srt(tmp_path / f"{number}.srt", CAPTIONS)
    (tmp_path / "2.txt").write_text("words without times, which are spread", encoding="utf-8")
    sound(tmp_path / "s.wav", 3.6)
    codecs = PLAN.codecs
    module = AudioVisual(
        str(tmp_path),
        codecs.audio,
        codecs.video,
        codecs.text,
        clip_seconds=1.0,
        loading=Loading(context_length=256),
    )
    module.setup()
    counts: dict[str, int] = {}
    documents = 0
    for split in ("train", "val", "test"):
        of_split = module.documents(split)
        documents += len(of_split)
        for index in range(len(of_split)):
            row = of_split.document(0, index)
            for modality, contents in row.contents.items():
                name = module.layout[modality].name
                counts[name] = counts.get(name, 0) + len(contents)
    found = survey_folder(tmp_path, PLAN)
    assert found.documents == documents
    assert found.tokens == counts
    assert found.steps == sum(counts.values()) / (64 * 2)


def test_bad_documents_are_those_that_cannot_be_read(tmp_path):
    path = tmp_path / "a.mkv"
    packets = _flac(path, 4.0)
    data = bytearray(path.read_bytes())
    for at_s in (1.5, 3.4):
        content = min(packets, key=lambda packet: abs(packet[0] - at_s))[1]
        at = data.find(content)
        data[at : at + len(content)] = bytes(len(content))
    path.write_bytes(data)
    found = survey_file(path, PLAN, decode=True)
    bad = []
    for window in Cut(*found.span_s, 1.0):
        start_s, duration_s = window.start_s, window.duration_s
        try:
            read_clip(path, start_s=start_s, duration_s=duration_s, sample_rate=RATE, channels=1)
        except MediaError:
            bad.append(start_s)
    assert {1.0, 3.0} <= set(bad) < {0.0, 1.0, 2.0, 3.0}
    assert [lost.start_s for lost in found.lost] == bad
    assert found.documents == 4 - len(bad) and found.refused is None


def _flac(path: Path, seconds: float) -> list[tuple[float, bytes]]:
    """A sound, and its packets with their times."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=RATE)
        stream.layout = "mono"
        noise = np.random.default_rng(0).integers(-9000, 9000, (1, round(seconds * RATE)))
        for at in range(0, noise.shape[1], 400):
            frame = av.AudioFrame.from_ndarray(
                noise[:, at : at + 400].astype(np.int16), "s16", "mono"
            )
            frame.sample_rate, frame.pts = RATE, at
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        return [(float(p.pts * p.time_base), bytes(p)) for p in container.demux(audio=0) if p.size]


def test_what_lies_behind_the_end_is_lost_by_name(tmp_path, monkeypatch):
    path = sound(tmp_path / "a.wav", 2.0)
    real = survey_module.probe
    monkeypatch.setattr(
        survey_module, "probe", lambda *args: replace(real(*args), duration_s=4.0)
    )  # a header that lies
    found = survey_file(path, PLAN)
    assert [lost.start_s for lost in found.lost] == [2.0, 3.0]
    assert all("2.00 s" in lost.reason for lost in found.lost)
    assert found.documents == 2 and found.tokens == {"audio": 50}


def test_the_last_document_goes_to_the_end_wherever_that_is(tmp_path, monkeypatch):
    path = sound(tmp_path / "a.wav", 2.0)
    real = survey_module.probe
    monkeypatch.setattr(
        survey_module, "probe", lambda *args: replace(real(*args), duration_s=1.7)
    )  # a header that claims too little
    found = survey_file(path, PLAN)
    assert found.documents == 2 and found.tokens == {"audio": 50}


def test_late_silent_and_short_are_noted(tmp_path):
    assert "late sound" in kinds(survey_file(film(tmp_path / "a.mp4", late_s=0.3), PLAN))
    assert "late sound" not in kinds(survey_file(film(tmp_path / "b.mp4", late_s=0.03), PLAN))
    assert "silent sound track" in kinds(survey_file(sound(tmp_path / "c.wav", silent=True), PLAN))
    apart = survey_file(film(tmp_path / "d.mp4", 3.0, sound_s=1.0), PLAN)
    assert "picture and sound end apart" in kinds(apart)


def test_text_beside_and_inside(tmp_path):
    path = film(tmp_path / "a.mp4", texts=CAPTIONS)
    own = survey_file(path, PLAN)
    assert own.text.path == str(path) and own.text.timed == own.text.pieces == 2
    assert own.tokens["text"] == len("one two three") + 1 + len("four") + 1
    write_srt(tmp_path / "a.srt", [*CAPTIONS, TextPiece("late", 5.0, 6.0)])
    beside = survey_file(path, PLAN)
    assert beside.text.path.endswith("a.srt") and beside.text.beyond == 1
    assert "text beyond the end" in kinds(beside)
    (tmp_path / "a.srt").write_text("no cue here")
    broken = survey_file(path, PLAN)
    assert "a.srt: line 1: no cue" in broken.refused and broken.documents == 0
    alone = survey_text(tmp_path / "a.srt", PLAN.codecs.text)
    assert alone.error and not alone.pieces


def test_a_recipe_without_a_stream_leaves_it_out(tmp_path):
    path = film(tmp_path / "a.mp4")
    only_sound = replace(PLAN, codecs=replace(PLAN.codecs, video=None))
    assert set(survey_file(path, only_sound).tokens) == {"audio"}
    only_picture = replace(PLAN, codecs=replace(PLAN.codecs, audio=None))
    wav = sound(tmp_path / "a.wav")
    assert survey_file(wav, only_picture).refused == "has no stream that the recipe uses"


def test_folders_are_added_up_and_one_bad_file_stops_nothing(tmp_path, monkeypatch):
    for number in range(3):
        film(tmp_path / f"{number}.mp4", sound_s=0 if number else None)
    (tmp_path / "deep").mkdir()
    sound(tmp_path / "deep" / "s.wav", silent=True)
    (tmp_path / "bad.mp4").write_bytes(b"\0" * 999)
    (tmp_path / "alone.txt").write_text("hello")
    (tmp_path / "paper.pdf").write_bytes(b"x")
    (tmp_path / ".hidden.mp4").write_bytes(b"x")
    told: list[tuple[int, int, str]] = []
    found = survey_folder(tmp_path, PLAN, progress=lambda *args: told.append(args))
    assert found.found == 5 and [number for number, *_ in told] == [0, 1, 2, 3, 4]
    counts = {name: kind.files for name, kind in found.kinds.items() if kind.files}
    assert counts == {"video": 3, "sound": 1, "unreadable": 1}
    assert found.kinds["video"].seconds == pytest.approx(6.0, abs=0.2)
    assert found.kinds["video"].frames == 60
    assert found.pictures == {"32x32": 3} and found.frame_rates == {"10": 3}
    assert found.missing["without sound: video"] == 2
    assert found.missing["with a silent track: sound"] == 1
    assert [name for name, _ in found.skipped] == ["bad.mp4"]
    assert [text.characters for text in found.texts_alone] == [5]
    assert found.other_files == {".pdf": 1}
    assert [name for name, _ in found.odd["silent sound track"]] == ["deep/s.wav"]

    real = survey_module.examine

    def stumble(path, **options):
        if path.name == "1.mp4":
            raise RuntimeError("a bug of ours")
        return real(path, **options)

    monkeypatch.setattr(survey_module, "examine", stumble)
    again = survey_folder(tmp_path, PLAN)
    assert dict(again.skipped)["1.mp4"] == "cannot be inspected: a bug of ours (RuntimeError)"
    assert again.documents == found.documents - 2


def test_a_limit_looks_at_files_from_everywhere(tmp_path):
    for number in range(9):
        sound(tmp_path / f"{number}.wav", 0.5)
    found = survey_folder(tmp_path, PLAN, limit=3)
    assert found.found == 9 and [Path(file.path).stem for file in found.files] == ["0", "3", "6"]
    assert len(survey_folder(tmp_path, PLAN, limit=100).files) == 9


def test_rows_of_a_manifest(tmp_path):
    film(tmp_path / "a.mp4", 4.0)
    rows = [
        {"path": "a.mp4", "start": 0.5, "end": 2.5, "text": "hello there"},
        {"path": "a.mp4", "start": 3, "captions": [{"text": "bye", "start": 3.2, "end": 3.6}]},
        {"path": "a.mp4", "weight": 0},
        {"path": "a.mp4", "start": 1, "end": 9},
        {"path": "gone.mp4"},
    ]
    manifest = tmp_path / "list.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    found = survey_folder(manifest, PLAN)
    by_name = {file.name: file for file in found.files}
    assert len(by_name) == 5
    assert by_name["a.mp4#0.5-2.5"].documents == 2 and by_name["a.mp4#3-"].documents == 1
    assert by_name["a.mp4#0.5-2.5"].tokens["video"] == 2 * 5 * 4
    assert by_name["a.mp4#0.5-2.5"].tokens["text"] == len("hello") + 1 + len("there") + 1
    assert by_name["a.mp4#3-"].tokens["text"] == 4
    assert dict(found.skipped) == {
        "a.mp4": "its weight is 0",
        "a.mp4#1-9": "its span goes to 9 s, the file to 4.00 s",
        "gone.mp4": "no such file",
    }
    assert found.kinds["video"].files == 1  # one file, however many rows
    assert found.kinds["video"].seconds == pytest.approx(3.0, abs=0.05)


def test_silence_is_measured_where_the_sound_is(tmp_path):
    from mmpredict.media import write_wav

    write_wav(tmp_path / "a.wav", tone(2.0, start_s=1.2), RATE)
    found = survey_file(tmp_path / "a.wav", PLAN)
    assert found.facts.audio.silent_share == pytest.approx(0.6)
