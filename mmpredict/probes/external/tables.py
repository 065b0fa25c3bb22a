"""Files of rows, as benchmarks are published: JSON, JSONL, CSV, TSV, Parquet. In: a path and the
columns that are needed. Out: rows as dicts; extra columns stay, missing ones are named."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmpredict.probes.external.bench import BenchError

ROW_FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_MAX_CELL = 2**31 - 1  # pictures stand in cells as base64; the default limit is 131 072


def read_rows(
    path: str | Path, needs: Iterable[str], aliases: Mapping[str, Sequence[str]] | None = None
) -> list[dict[str, Any]]:
    """All rows of a file.

    Args:
        path: its suffix says what it is.
        needs: columns that every row must have.
        aliases: for a column, other spellings that are in use; renamed to the column.

    Raises:
        BenchError: the file is missing, empty or not understood, or a column is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise BenchError(f"{path} is missing; it should have the columns {', '.join(needs)}")
    try:
        rows = _READERS[path.suffix](path)
    except KeyError:
        raise BenchError(f"{path}: not one of {', '.join(ROW_FILES)}") from None
    except (ValueError, csv.Error) as error:
        raise BenchError(f"{path}: {error}") from error
    if not rows:
        raise BenchError(f"{path} has no rows")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise BenchError(f"{path}, row {number}: {str(row)[:60]!r} is not a set of columns")
        for column, spellings in (aliases or {}).items():
            found = [s for s in spellings if s in row]
            if column not in row and found:
                row[column] = row[found[0]]
        check_columns(path, row, needs, f", row {number}")
    return rows


def check_columns(
    path: str | Path, row: Mapping[str, Any], needs: Iterable[str], where: str = ""
) -> None:
    """Raise BenchError that names file, columns found and columns expected."""
    needs = list(needs)
    lacks = [column for column in needs if column not in row]
    if lacks:
        raise BenchError(
            f"{path}{where}: no {', '.join(lacks)}; found {', '.join(map(str, row)) or 'nothing'}; "
            f"expected {', '.join(needs)}"
        )


def columns_of(path: Path) -> list[str]:
    """The head of a CSV file; [] of an empty one."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return next(csv.reader(file), [])


def read_json(path: str | Path) -> Any:
    """A whole JSON file.

    Raises:
        BenchError: it is missing or no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise BenchError(f"{path} is missing") from None
    except ValueError as error:
        raise BenchError(f"{path}: {error}") from error


def read_lines(path: str | Path) -> list[str]:
    """Lines of a text file without their ends; CRLF too.

    Raises:
        BenchError: it is missing.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise BenchError(f"{path} is missing") from None
    except ValueError as error:
        raise BenchError(f"{path}: {error}") from error


def need_folder(root: str | Path, *names: str) -> Path:
    """The first of some folders below a root that is there; the root itself if no names.

    Raises:
        BenchError: none is; says what is there.
    """
    root = Path(root)
    if not root.is_dir():
        raise BenchError(f"{root} is no folder")
    for name in names:
        if (root / name).is_dir():
            return root / name
    if names:
        raise BenchError(f"{root} has no {' or '.join(names)}; it has {listing(root)}")
    return root


def listing(folder: Path) -> str:
    """What a folder holds, in few words."""
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    return (", ".join(names[:8]) + (", ..." if len(names) > 8 else "")) or "nothing"


def row_files(folder: Path) -> list[Path]:
    """Files of rows below a folder, by name."""
    return sorted(p for p in folder.rglob("*") if p.suffix in ROW_FILES and p.is_file())


def _read_jsonl(path: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    return rows


def _read_json_rows(path: Path) -> list[Any]:
    whole = read_json(path)
    if not isinstance(whole, list):
        raise ValueError(f"holds a {type(whole).__name__}, not a list of rows")
    return whole


def _read_separated(path: Path, delimiter: str) -> list[dict[str, Any]]:
    before = csv.field_size_limit(_MAX_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter=delimiter, strict=True))
    finally:
        csv.field_size_limit(before)
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise ValueError(f"row {number} has another number of cells than the head")
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise BenchError(
            f"{path} is Parquet, which needs pyarrow: pip install 'mmpredict[parquet]'"
        ) from None
    return parquet.read_table(path).to_pylist()


_READERS = {
    ".jsonl": _read_jsonl,
    ".json": _read_json_rows,
    ".csv": lambda path: _read_separated(path, ","),
    ".tsv": lambda path: _read_separated(path, "\t"),
    ".parquet": _read_parquet,
}
