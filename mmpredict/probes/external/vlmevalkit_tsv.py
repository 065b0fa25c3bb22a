"""Tables in the form of VLMEvalKit: one reader for EmbSpatial, RoboSpatial, 3DSRBench, MMSI,
OmniSpatial, BLINK and others that are spread as such a TSV.

Layout: `<name>.tsv` with index, question, answer and either A, B, C ... or options, or neither
where the answer is yes or no; a picture as base64 in `image` (or the index of the row that has it,
or a list), or files in `image_path` or `video`. Pictures are unpacked to `images/<name>/` beside
the table, as VLMEvalKit does.

Scored is accuracy, for each category too. Rows that belong together (qid `X`, `X-flip`, `X-1` of
3DSRBench; indexes that differ by a million) are also scored together: `circular` wants all orders
of the options right, `flip` the mirrored picture too, `circular_flip` all of them.
"""

from __future__ import annotations

import ast
import base64
import binascii
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmpredict.probes.external.bench import (
    Answers,
    Bench,
    BenchError,
    all_right,
    faults_of,
    grades,
    mean_of,
    means_by,
    missing_files,
)
from mmpredict.probes.external.tables import check_columns, listing, need_folder, read_rows
from mmpredict.probes.items import Evidence, Files, Item, Suite

LETTERS = "ABCDEFGHIJ"
ROTATION = 1_000_000  # indexes of rotated copies are this much more
SHORT = 64  # a cell this short is the index of another row, not a picture
SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg"}
_QID = re.compile(r"(?P<base>.+?)(?P<flip>-flip)?(?P<turn>-\d+)?")


def load(root: Path, part: str = "") -> Bench:
    """`part` is the name of a table; all if empty."""
    root = need_folder(root)
    paths = [path for path in sorted(root.glob("*.tsv")) if part in ("", path.stem)]
    if not paths:
        raise BenchError(f"{root} has no {part or '*'}.tsv; it has {listing(root)}")
    items: list[Item] = []
    sources: dict[str, Files] = {}
    broken: dict[str, str] = {}
    for path in paths:
        table = read_rows(path, ("index", "question", "answer"))
        rows = {str(row["index"]): row for row in table}
        if len(rows) < len(table):
            raise BenchError(f"{path}: {len(table)} rows have only {len(rows)} different indexes")
        for index, row in rows.items():
            source = f"{path.stem}/{index}"
            items.append(_item(path, index, row, source))
            try:
                sources[source] = _files(path, index, rows)
            except ValueError as error:
                sources[source] = Files()
                broken[source] = f"{path}, row {index}: {error}"
    bad = {**missing_files(sources), **broken}
    return Bench(
        "vlmevalkit_tsv", Suite("tsv", tuple(items), sources), metric, faults_of(items, bad)
    )


def metric(items: Sequence[Item], answers: Answers) -> dict[str, float]:
    """Accuracy of each table and category; of groups of rows where there are any."""
    values = grades(items, answers)
    found: dict[str, float] = {}
    for table in dict.fromkeys(item.id.split("/")[0] for item in items):
        part = [item for item in items if item.id.split("/")[0] == table]
        plain = [i for i in part if not i.condition["flip"] and not i.condition["turn"]]
        found[f"{table}_accuracy"] = mean_of(values[item.id] for item in plain)
        for name, value in means_by(plain, values, lambda item: item.family).items():
            found[f"{table}_{name}"] = value
        turned = any(item.condition["turn"] for item in part)
        flipped = any(item.condition["flip"] for item in part)
        wanted = {"circular": turned, "flip": flipped, "circular_flip": turned and flipped}
        for name in [name for name, there in wanted.items() if there]:
            of = [
                i
                for i in part
                if (name != "circular" or not i.condition["flip"])
                and (name != "flip" or not i.condition["turn"])
            ]
            found[f"{table}_{name}"] = mean_of(all_right(of, values, _group).values())
    return found


def _group(item: Item) -> str:
    return item.group


def _item(path: Path, index: str, row: dict[str, Any], source: str) -> Item:
    choices, answer = _choices(path, index, row)
    if row.get("qid"):
        match = _QID.fullmatch(str(row["qid"]))
        base, flip, turn = match["base"], bool(match["flip"]), bool(match["turn"])
    else:
        number = int(index) if index.isdigit() else 0
        base, flip, turn = str(number % ROTATION) if number else index, False, number >= ROTATION
    return Item(
        id=source,
        family=str(row.get("category") or path.stem),
        score="mc",
        evidence=(Evidence(source),),
        variants=("video",),
        question=str(row["question"]),
        choices=choices,
        answer=answer,
        chance=1 / len(choices),
        cluster=f"{path.stem}/{base}",
        group=f"{path.stem}/{base}",
        split="test",
        condition={"flip": flip, "turn": turn},
    )


def _choices(path: Path, index: str, row: dict[str, Any]) -> tuple[tuple[str, ...], int]:
    """What there is to choose from, and which is right: a letter, or the words."""
    given = [str(row[letter]) for letter in LETTERS if row.get(letter) not in (None, "", "nan")]
    if not given and row.get("options"):
        given = [str(v) for v in _listed(row["options"])]
    answer = str(row["answer"]).strip()
    if not given and answer.lower() in ("yes", "no"):
        given, answer = ["yes", "no"], answer.lower()
    letter = answer.strip("().").upper()
    if len(letter) == 1 and letter in LETTERS[: len(given)]:
        return tuple(given), LETTERS.index(letter)
    if answer in given:
        return tuple(given), given.index(answer)
    check_columns(path, row, ("A", "B"), f", row {index}")
    raise BenchError(f"{path}, row {index}: answer {answer!r} is none of {given}")


def _files(path: Path, index: str, rows: dict[str, dict[str, Any]]) -> Files:
    row = rows[index]
    if row.get("video"):
        video = str(row["video"])
        names = [video, f"{video}.mp4", f"{path.stem}/{video}", f"{path.stem}/{video}.mp4"]
        places = [path.parent / name for name in names]
        return Files(video=str(next((p for p in places if p.is_file()), places[0])))
    if row.get("image_path"):
        homes = (path.parent, path.parent / "images" / path.stem)
        named = [[home / str(name) for home in homes] for name in _listed(row["image_path"])]
        found = [next((p for p in places if p.is_file()), places[0]) for places in named]
        return Files(images=tuple(map(str, found)))
    cell = str(row.get("image", ""))
    if 0 < len(cell) <= SHORT and cell != index:
        if cell not in rows:
            raise ValueError(f"image refers to row {cell}, which is not there")
        return _files(path, cell, rows)
    cells = _listed(cell)
    if not cell or not cells:
        raise ValueError("no picture in image, image_path or video")
    return Files(
        images=tuple(
            str(_unpacked(path.parent / "images" / path.stem / f"{index}_{k}", str(picture)))
            for k, picture in enumerate(cells)
        )
    )


def _unpacked(stem: Path, picture: str) -> Path:
    """The file of a picture that stands in a cell."""
    try:
        content = base64.b64decode(picture, validate=True)
    except binascii.Error as error:
        raise ValueError(f"the picture is not base64: {error}") from error
    suffix = next((s for magic, s in SUFFIXES.items() if content.startswith(magic)), "")
    if not suffix:
        raise ValueError(f"the picture is no PNG or JPEG, it begins with {content[:4]!r}")
    path = stem.with_suffix(suffix)
    if not path.is_file() or path.stat().st_size != len(content):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return path


def _listed(cell: Any) -> list[Any]:
    """A cell may hold one thing, or a list written out."""
    if isinstance(cell, list):
        return cell
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            return list(ast.literal_eval(cell))
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"{cell[:60]!r} is no list: {error}") from error
    return [cell]
