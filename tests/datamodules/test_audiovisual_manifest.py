"""Manifests: spans of files with captions and weights, on the file's clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from datamodules import AudioVisual
from mmpredict.media import Limits, MediaInfo, probe
from mmpredict.schema import Batch
from mmpredict.sequence import separate
from tests.datamodules.small import (
    STREAMS,
    TEXT,
    VIDEO,
    WORDS,
    all_documents,
    codecs,
    loading,
    same,
    text_of,
    write_sounds,
    write_video,
)

SPLITS = ("train", "val", "test")


def write_rows(folder: Path, *rows: dict[str, object]) -> Path:
    path = folder / "list.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def manifest_data(path: Path, *streams: str, **options: object) -> AudioVisual:
    how = {"clip_seconds": 0.5, "loading": loading()} | codecs(*streams or STREAMS)
    data = AudioVisual(str(path), **how | options)
    data.setup()
    return data


def spans(data: AudioVisual) -> list[tuple[str, float, float]]:
    """(file, start, end) of all documents, in order of name and time."""
    return sorted(
        (documents.find(n)[0].path.name, window.start_s, round(window.end_s, 6))
        for documents in map(data.documents, SPLITS)
        for n in range(len(documents))
        if (window := documents.window(0, n))
    )


def write_files(root: Path) -> None:
    for name in "abcd":
        write_video(root / f"{name}.mp4", 4.0, ord(name))


def test_spans_are_cut_into_windows(tmp_path):
    write_files(tmp_path)
    rows = [
        {"path": "a.mp4", "start": 0.7, "end": 1.5},
        {"path": "b.mp4", "end": 0.4},
        {"path": "c.mp4", "start": 3.0},
        {"path": "a.mp4", "start": 2.0, "end": 2.6},
        {"path": "d.mp4", "start": 1.0, "end": 1.1},
    ]
    data = manifest_data(write_rows(tmp_path, *rows))
    assert spans(data) == [
        ("a.mp4", 0.7, 1.2),
        ("a.mp4", 1.2, 1.5),
        ("a.mp4", 2.0, 2.5),
        ("b.mp4", 0.0, 0.4),
        ("c.mp4", 3.0, 3.5),
        ("c.mp4", 3.5, 4.0),
        ("d.mp4", 1.0, 1.1),
    ]
    of_a = {s for s in SPLITS for x in data.documents(s).sources if x.path.name == "a.mp4"}
    assert len(of_a) == 1, "a file is in one split"
    assert data.skip_log.num_sources == 4 and not data.skip_log.reasons


def test_a_whole_file_is_what_it_is_in_a_folder(tmp_path):
    write_files(tmp_path)
    (tmp_path / "a.txt").write_text("one two three four five six")
    folder = manifest_data(tmp_path)
    listed = manifest_data(write_rows(tmp_path, *({"path": f"{n}.mp4"} for n in "abcd")))
    for split in SPLITS:
        mine, theirs = (all_documents(data.documents(split)) for data in (folder, listed))
        assert len(mine) == len(theirs) and all(map(same, mine, theirs))


def test_nothing_beyond_a_span_is_read(tmp_path):
    """The frames of a span are those of the whole file at that time, and no more."""
    write_files(tmp_path)
    whole = manifest_data(tmp_path / "a.mp4", "video", clip_seconds=4.0)
    frames = whole.documents("train").document(0, 0).contents[VIDEO].reshape(32, 4, -1)
    rows = [{"path": f"{name}.mp4", "start": 1.0, "end": 1.75} for name in "abcd"]
    data = manifest_data(write_rows(tmp_path, *rows), "video")
    [split] = [s for s in SPLITS if data.documents(s).sources[0].path.name == "a.mp4"]
    documents = data.documents(split)
    found = [row.contents[VIDEO] for row in documents.read(0, [0, 1])]
    assert torch.equal(torch.cat(found).reshape(6, 4, -1), frames[8:14])


def test_captions_stand_at_their_times_and_texts_are_spread_over_the_span(tmp_path):
    write_files(tmp_path)
    (tmp_path / "a.txt").write_text("not this")
    (tmp_path / "d.txt").write_text("aaaa bbbb cccc dddd eeee ffff gggg hhhh")
    cue = {"text": "cut here", "start": 0.0, "end": 2.0}
    rows = [
        {"path": "a.mp4", "start": 1.0, "end": 3.0, "captions": [cue], "speaker": "Eve"},
        {"path": "b.mp4", "start": 1.0, "end": 2.0, "text": "left right"},
        {"path": "c.mp4", "start": 1.0, "end": 2.0},
        {"path": "d.mp4", "start": 1.0, "end": 2.0},
    ]
    data = manifest_data(write_rows(tmp_path, *rows))
    said: dict[str, list[tuple[str, float]]] = {}
    for split in SPLITS:
        documents = data.documents(split)
        for n, row in enumerate(all_documents(documents)):
            window = documents.window(0, n)
            words = said.setdefault(documents.find(n)[0].path.name, [])
            [tokens] = [t for t in separate(row, data.layout) if t.modality == TEXT] or [None]
            if tokens is not None:
                [text] = text_of([row])
                words.append((text, round(tokens.end_s[-1].item() + window.start_s, 3)))
    # "Eve: cut here" takes 2 s by its 13 letters; "here" alone ends after the span has begun.
    assert said["a.mp4"] == [("cut", round(2.0 * 8 / 13, 3)), ("here", 2.0)]
    assert said["b.mp4"] == [("left", 1.4), ("right", 2.0)]
    assert said["c.mp4"] == []
    assert [text for text, _ in said["d.mp4"]] == ["cccc", "dddd"], "spread over the whole file"
    assert WORDS.end_id == 256


def test_weights_say_how_often(tmp_path):
    write_files(tmp_path)
    rows = [
        {"path": "a.mp4", "weight": 3},
        {"path": "b.mp4", "end": 1.0, "weight": 0.5},
        {"path": "c.mp4"},
        {"path": "d.mp4", "weight": 0},
    ]
    data = manifest_data(write_rows(tmp_path, *rows))
    found = {}
    for split in SPLITS:
        documents = data.documents(split)
        weights = documents.weights()
        for n in range(len(documents)):
            weight = 1.0 if weights is None else weights[n].item()
            found.setdefault(documents.find(n)[0].path.name, set()).add(weight)
    assert found == {"a.mp4": {3.0}, "b.mp4": {0.5}, "c.mp4": {1.0}}
    assert manifest_data(write_rows(tmp_path, *rows[2:3])).documents("train").weights() is None


def test_each_file_is_looked_at_once(tmp_path, monkeypatch):
    write_files(tmp_path)
    looked = []

    def looked_at(path: Path, limits: Limits) -> MediaInfo:
        looked.append(path)
        return probe(path, limits)

    monkeypatch.setattr("datamodules.files.headers.probe", looked_at)
    rows = [{"path": f"{n}.mp4", "start": k, "end": k + 1} for k in range(4) for n in "abcd"]
    manifest_data(write_rows(tmp_path, *rows))
    assert sorted(path.name for path in looked) == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]


@pytest.mark.parametrize("span", [{"start": 4}, {"start": 3, "end": 4.8}, {"start": 9, "end": 10}])
def test_a_span_outside_its_file_is_refused_by_its_line(tmp_path, span):
    write_files(tmp_path)
    rows = [{"path": "b.mp4"}, {"path": "a.mp4", **span}]
    with pytest.raises(ValueError) as refusal:
        manifest_data(write_rows(tmp_path, *rows))
    for part in ("list.jsonl: line 2", f"{span['start']} to", "a.mp4, which is 4.00 s long"):
        assert part in str(refusal.value)


def test_a_span_may_end_a_little_late(tmp_path):
    write_files(tmp_path)
    data = manifest_data(write_rows(tmp_path, {"path": "a.mp4", "start": 3.5, "end": 4.2}))
    assert {span[1:] for span in spans(data)} == {(3.5, 4.0)}


def test_missing_and_broken_files_are_named(tmp_path):
    write_files(tmp_path)
    (tmp_path / "broken.mp4").write_text("no video")
    names = ["a.mp4", "b.mp4", "gone.mp4", "c.mp4", "broken.mp4", "gone.mp4", "d.mp4"]
    data = manifest_data(write_rows(tmp_path, *({"path": name} for name in names)))
    bad = {Path(source).name: kind for source, kind in data.skip_log.kinds.items()}
    assert bad == {"gone.mp4": "missing", "broken.mp4": "unreadable"}
    assert data.skip_log.num_sources == 6
    assert all(isinstance(r, Batch) for s in SPLITS for r in all_documents(data.documents(s)))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"file": "a.mp4"}], "line 1"),
        ([{"path": "a.mp4", "weight": 0}], "names no file"),
        ([{"text": "a text file, no manifest"}], "line 1"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path, rows, words):
    write_files(tmp_path)
    with pytest.raises(ValueError, match=words):
        manifest_data(write_rows(tmp_path, *rows))


def test_many_spans_of_one_file_hold_out_its_end(tmp_path):
    write_files(tmp_path)
    rows = [{"path": "a.mp4", "start": s, "end": s + 0.5} for s in (3.0, 0.0, 1.0, 2.0, 0.5, 2.5)]
    data = manifest_data(write_rows(tmp_path, *rows))
    starts = {
        s: [data.documents(s).window(0, n).start_s for n in range(len(data.documents(s)))]
        for s in SPLITS
    }
    assert starts == {"train": [0.0, 0.5, 1.0, 2.0], "val": [2.5], "test": [3.0]}


def test_the_fingerprint_tells_the_manifest_and_its_files(tmp_path):
    write_sounds(tmp_path / "in", 3, 0.5)
    (tmp_path / "in" / "s01.txt").write_text("words")
    rows = [{"path": f"in/s{n:02d}.wav"} for n in range(3)]
    path = write_rows(tmp_path, *rows)
    before = manifest_data(path).fingerprint()
    assert set(before) == {"list.jsonl", "in/s00.wav", "in/s01.wav", "in/s02.wav", "in/s01.txt"}
    rows[0]["weight"] = 2
    write_rows(tmp_path, *rows)
    after = manifest_data(path).fingerprint()
    assert {name for name in after if after[name] != before[name]} == {"list.jsonl"}
