"""Law: a manifest row becomes exactly what it says, or an error that names its line and the
remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmpredict.media import ManifestRow, MediaError, read_manifest
from mmpredict.schema import TextPiece


def write(folder: Path, *rows) -> Path:
    path = folder / "list.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_row_with_only_a_path(tmp_path):
    assert read_manifest(write(tmp_path, {"path": "sub/a.mp4"})) == [
        ManifestRow(tmp_path / "sub" / "a.mp4", line=1)
    ]
    assert read_manifest(write(tmp_path)) == []


def test_a_row_with_everything(tmp_path):
    row = {
        "path": "./x/../a.mp4",
        "start": 1,
        "end": 2.5,
        "text": " A walk. ",
        "captions": [
            {"text": "Hello", "start": 1.2, "end": 2},
            {"text": "Hi", "start": 2, "end": 2, "speaker": "Ben"},
        ],
        "speaker": "Anna",
        "weight": 0,
        "id": "walk-1",
    }
    texts = (
        TextPiece("Anna: A walk."),
        TextPiece("Anna: Hello", 1.2, 2.0),
        TextPiece("Ben: Hi", 2.0, 2.0),
    )
    found = read_manifest(write(tmp_path, "", row, " "))
    assert found == [ManifestRow(tmp_path / "a.mp4", 1.0, 2.5, texts, 0.0, "walk-1", 2)]


def test_lines_may_carry_a_mark_and_odd_separators(tmp_path):
    path = tmp_path / "list.jsonl"
    rows = '\ufeff{"path": "a.mp4", "text": "one\u2028two\\u0000"}\r\n{"path": "b.mp4"}\r\n'
    path.write_bytes(rows.encode())
    first, second = read_manifest(path)
    assert first.texts == (TextPiece("one\u2028two\0"),) and second.line == 2


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1/a.mp4",
        "HTTPS://host/a.mp4",
        "file:///etc/passwd",
        "file://host/a.mp4",
        "concat:a.mp4|b.mp4",
        "pipe:0",
        "pipe:cat a.mp4",
        "data:video/mp4;base64,AAAA",
        "subfile,,start,0,end,9,,:a.mp4",
        "s3://bucket/a.mp4",
        "c:\\films\\a.mp4",
        "../a.mp4",
        "sub/../../a.mp4",
        "..",
        "~/a.mp4",
        "a\0.mp4",
        "",
    ],
)
def test_only_local_files_of_the_folder_or_absolute_ones(address, tmp_path):
    path = write(tmp_path, {"path": "a.mp4"}, {"path": address})
    if address.startswith("subfile"):  # no scheme before its first comma: a file of an odd name
        assert read_manifest(path)[1].path == tmp_path / address
        return
    with pytest.raises(MediaError, match="line 2: ") as caught:
        read_manifest(path)
    assert len(str(caught.value).splitlines()) == 1


def test_absolute_paths_and_odd_names_are_kept(tmp_path):
    names = ["/data/a.mp4", "/data/../b.mp4", "12:30.mp4", "./talk: one.mp4", "..a.mp4", "%03d.png"]
    rows = read_manifest(write(tmp_path, *({"path": name} for name in names)))
    assert [row.path for row in rows[:2]] == [Path("/data/a.mp4"), Path("/data/../b.mp4")]
    assert [row.path.name for row in rows[2:]] == ["12:30.mp4", "talk: one.mp4", *names[4:]]
    assert all(row.path.parent == tmp_path for row in rows[2:])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"file": "a.mp4"}, r"unknown key .file.*Known: path, start"),
        ({"path": "a", "strat": 1}, 'did you mean "start"'),
        ({"path": "a", "caption": []}, 'did you mean "captions"'),
        ({"path": "a", "captions": [{"text": "x", "strt": 1}]}, r"captions.0.: unknown key .strt"),
        ({"text": "x"}, '"path" is missing'),
        ({"path": 3}, '"path" is 3; it must be a text'),
        ({"path": "a", "start": -1}, '"start" is -1; it must be 0 or more'),
        ({"path": "a", "start": "1"}, '"start" is .1.; it must be a number'),
        ({"path": "a", "start": True}, '"start" is True; it must be a number'),
        ({"path": "a", "start": 2, "end": 2}, '"end" is 2 s, not after "start" at 2 s'),
        ({"path": "a", "end": 0}, '"end" is 0 s, not after'),
        ({"path": "a", "weight": -0.5}, '"weight" is -0.5; it must be 0 or more'),
        ('{"path": "a", "weight": NaN}', "not JSON: NaN is no number"),
        ('{"path": "a", "weight": 1e999}', '"weight" is inf; it must be 0 or more'),
        ('{"path": "a", "path": "b"}', "a key stands twice"),
        ({"path": "a", "text": "  "}, '"text" is .* it must be a text that is not blank'),
        ({"path": "a", "speaker": 7}, '"speaker" is 7'),
        ({"path": "a", "captions": {}}, '"captions" is {}; expected'),
        ({"path": "a", "captions": ["x"]}, r"captions.0. is 'x'; expected"),
        ({"path": "a", "captions": [{"start": 0, "end": 1}]}, r'captions.0.: "text" is missing'),
        ({"path": "a", "captions": [{"text": "x"}]}, r'captions.0.: "start" is missing; a caption'),
        ({"path": "a", "captions": [{"text": "x", "start": 0}]}, '"end" is missing'),
        (
            {"path": "a", "captions": [{"text": "x", "start": 2, "end": 1}]},
            "ends at 1 s, before its start at 2 s",
        ),
        ("a.mp4", "not JSON"),
        ("[1]", "expected an object like"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_wrong_row_is_named_with_its_line(row, reason, tmp_path):
    with pytest.raises(MediaError, match="line 2: .*" + reason):
        read_manifest(write(tmp_path, {"path": "ok.mp4"}, row))


def test_ids_are_given_once(tmp_path):
    path = write(tmp_path, {"path": "a", "id": "x"}, {"path": "b"}, {"path": "c", "id": "x"})
    with pytest.raises(MediaError, match="line 3: id 'x' is that of line 1 too"):
        read_manifest(path)


def test_a_manifest_that_is_no_text_is_named(tmp_path):
    (tmp_path / "list.jsonl").write_bytes(b'{"path": "caf\xe9"}')
    with pytest.raises(MediaError, match="line 1: not utf-8: byte 0xe9 at 13"):
        read_manifest(tmp_path / "list.jsonl")
    with pytest.raises(MediaError, match="no such file"):
        read_manifest(tmp_path / "missing.jsonl")


def test_a_long_line_is_read_whole(tmp_path):
    words = "word " * 200_000
    (row,) = read_manifest(write(tmp_path, {"path": "a.mp4", "text": words}))
    assert row.texts[0].text == words.strip()
