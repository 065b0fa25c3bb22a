"""What'sUp (Kamath et al. 2023, EMNLP): which caption fits a picture, where the captions differ in
the preposition.

Layout, all in one folder: `controlled_images_dataset.json` (A) and `controlled_clevr_dataset.json`
(B), lists of {image_path, caption_options[4]}; `{coco,vg}_qa_{one,two}_obj.json`, lists of
[image_id, true, false] with pictures in `val2017/` and `vg_images/`. The first option is always the
right one.

A and B also score pairs (left and right, on and under, in front and behind) and sets of four, as
shares of N/2 and N/4. The authors' argmax takes the first option among equals, which is the right
one: a model that says the same of everything gets 100 %. Here it gets what a guess gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
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
from mmpredict.probes.external.tables import check_columns, listing, need_folder, read_json
from mmpredict.probes.items import Evidence, Files, Item, Suite

CONTROLLED = {"A": "controlled_images_dataset.json", "B": "controlled_clevr_dataset.json"}
QA = {
    f"{name}_{count}_obj": (f"{name}_{count}_obj.json", folder)
    for name, folder in (("coco_qa", "val2017"), ("vg_qa", "vg_images"))
    for count in ("one", "two")
}
# the second part of a picture's name -> the pair that it belongs to
AXIS = {"left": "x", "right": "x", "on": "y", "under": "y", "in-front": "z", "behind": "z"}
OF_TWO = ("left of", "right of", "above", "below", "front of", "behind")


def load(root: Path, part: str = "") -> Bench:
    """`part` is A, B, coco_qa, vg_qa (both counts of objects) or one of their files' names."""
    root = need_folder(root)
    items: list[Item] = []
    sources: dict[str, Files] = {}
    for name, file in CONTROLLED.items():
        if (root / file).is_file() and part in ("", name):
            found, files = _controlled(root, name, root / file)
            items += found
            sources |= files
    for name, (file, folder) in QA.items():
        if (root / file).is_file() and name.startswith(part):
            found, files = _qa(root / folder, name, root / file)
            items += found
            sources |= files
    if not items:
        expected = ", ".join([*CONTROLLED.values(), *(file for file, _ in QA.values())])
        raise BenchError(
            f"{root} has nothing of {part or 'any part'}; expected {expected}; {listing(root)}"
        )
    return Bench(
        "whatsup",
        Suite("whatsup", tuple(items), sources),
        metric,
        faults_of(items, missing_files(sources)),
    )


def metric(items: Sequence[Item], answers: Answers) -> dict[str, float]:
    """Individual accuracy of each part and preposition; of A and B, pairs and sets."""
    values = grades(items, answers)
    found: dict[str, float] = {}
    for family in dict.fromkeys(item.family for item in items):
        part = [item for item in items if item.family == family]
        found[f"{family}_accuracy"] = mean_of(values[item.id] for item in part)
        for name, value in means_by(part, values, _preposition).items():
            found[f"{family}_{name}"] = value
        if family in CONTROLLED:
            pairs = _whole(part, values, _pair, 2)
            found[f"{family}_pair_accuracy"] = pairs / (len(part) / 2)
            found[f"{family}_set_accuracy"] = _whole(part, values, _set, 4) / (len(part) / 4)
    return found


def _whole(items: Sequence[Item], values: dict[str, float], key: Any, size: int) -> float:
    """Sum over the groups that have all their members; others cannot be right."""
    counts = means_by(items, dict.fromkeys(values, 1.0), key)
    sizes = {name: sum(key(item) == name for item in items) for name in counts}
    return sum(v for name, v in all_right(items, values, key).items() if sizes[name] == size)


def _preposition(item: Item) -> str:
    return str(item.condition["preposition"])


def _pair(item: Item) -> str:
    return f"{item.group}/{AXIS[_preposition(item)]}"


def _set(item: Item) -> str:
    return item.group


def _controlled(root: Path, name: str, path: Path) -> tuple[list[Item], dict[str, Files]]:
    items, sources = [], {}
    for number, row in enumerate(read_json(path)):
        check_columns(path, row, ("image_path", "caption_options"), f", row {number}")
        image = PurePosixPath(row["image_path"])
        parts = image.stem.split("_")
        if len(parts) < 3 or parts[1] not in AXIS:
            raise BenchError(
                f"{path}, row {number}: {image.name!r} is not <object>_<preposition>_<object> with "
                f"{', '.join(AXIS)}"
            )
        source = f"{name}/{image.name}"
        # the lists were written with the authors' data folder in front
        inside = image.relative_to("data") if image.parts[0] == "data" else image
        sources[source] = Files(images=(str(root / inside),))
        items.append(
            _item(
                f"{name}/{number:04d}",
                source,
                tuple(row["caption_options"]),
                preposition=parts[1],
                group=f"{name}/{parts[0]}/{parts[-1]}",
            )
        )
    return items, sources


def _qa(folder: Path, name: str, path: Path) -> tuple[list[Item], dict[str, Files]]:
    items, sources = [], {}
    for number, row in enumerate(read_json(path)):
        if not isinstance(row, list) or len(row) < 3:
            raise BenchError(f"{path}, row {number}: {row!r} is not [image_id, true, false]")
        image_id, true, false = row[:3]
        file = f"{str(image_id).zfill(12)}.jpg" if name.startswith("coco") else f"{image_id}.jpg"
        source = f"{name}/{file}"
        sources[source] = Files(images=(str(folder / file),))
        word = true.split()[-1].rstrip(".")
        if name.endswith("two_obj"):
            word = next((w.split()[0] for w in OF_TWO if w in true), "top")
        items.append(
            _item(f"{name}/{number:04d}", source, (true, false), preposition=word, group="")
        )
    return items, sources


def _item(
    name: str, source: str, choices: tuple[str, ...], *, preposition: str, group: str
) -> Item:
    return Item(
        id=name,
        family=name.split("/")[0],
        score="mc",
        evidence=(Evidence(source),),
        variants=("video",),
        choices=choices,
        chance=1 / len(choices),
        cluster=group or source,
        group=group,
        split="test",
        condition={"preposition": preposition},
    )
