"""Rows from files: what is wrong is named with file, row, columns found and columns expected."""

from __future__ import annotations

import sys

import pytest

from mmpredict.probes.external import BenchError
from mmpredict.probes.external.tables import need_folder, read_json, read_lines, read_rows


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'x,caption\r\n1,"caf\u00e9, ""old"""\r\n'),
        ("a.tsv", 'x\tcaption\n1\tcaf\u00e9, "old"\n'),
        ("a.jsonl", '\ufeff{"x": "1", "caption": "caf\u00e9, \\"old\\""}\r\n\r\n'),
        ("a.json", '[{"x": "1", "caption": "caf\u00e9, \\"old\\""}]'),
    ],
)
def test_all_forms_give_the_same_rows(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode())
    rows = read_rows(tmp_path / name, ("caption",), {"number": ("n", "x")})
    assert rows == [{"x": "1", "caption": 'caf\u00e9, "old"', "number": "1"}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "x,y\n1,2\n", r"a.csv, row 1: no caption; found x, y; expected caption, x"),
        ("a.csv", "caption,x\n1,2,3\n", "row 1 has another number of cells than the head"),
        ("a.csv", "caption,x\n1\n", "row 1 has another number of cells than the head"),
        ("a.csv", "caption,x\n", "has no rows"),
        ("a.csv", 'caption,x\n"1" 2,3\n', "a.csv: "),
        ("a.jsonl", '{"caption": 1, "x": 2}\n{"x": 2}\n', "row 2: no caption; found x"),
        ("a.jsonl", '{"caption": 1}\n{', "line 2: "),
        ("a.jsonl", "3\n", "row 1: '3' is not a set of columns"),
        ("a.json", '{"caption": 1}', "holds a dict, not a list of rows"),
        ("a.json", "\x00", "a.json: "),
        ("a.txt", "", r"not one of \.jsonl"),
    ],
)
def test_damage_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(BenchError, match=message):
        read_rows(tmp_path / name, ("caption", "x"))


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(BenchError, match="b.csv is missing; it should have the columns x"):
        read_rows(tmp_path / "b.csv", ("x",))
    for reader in (read_json, read_lines):
        with pytest.raises(BenchError, match="b.json is missing"):
            reader(tmp_path / "b.json")
    (tmp_path / "videos").mkdir()
    with pytest.raises(BenchError, match="has no images or pics; it has videos"):
        need_folder(tmp_path, "images", "pics")
    with pytest.raises(BenchError, match="is no folder"):
        need_folder(tmp_path / "nothing")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(BenchError, match="latin: .*can't decode"):
        read_lines(tmp_path / "latin")


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BenchError, match=r"needs pyarrow: pip install 'mmpredict\[parquet\]'"):
        read_rows(tmp_path / "a.parquet", ("x",))


def test_large_cells_are_read(tmp_path):
    """The standard limit of a cell is 131 072 characters; it is the same afterwards."""
    import csv

    before = csv.field_size_limit()
    (tmp_path / "a.tsv").write_text("x\n" + "A" * 200_000 + "\n")
    assert len(read_rows(tmp_path / "a.tsv", ("x",))[0]["x"]) == 200_000
    assert csv.field_size_limit() == before
