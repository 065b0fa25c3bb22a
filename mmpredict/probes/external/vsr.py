"""VSR, visual spatial reasoning (Liu et al. 2023, TACL): is a caption true of a picture?

Layout: `splits/{random,zeroshot}/test.jsonl` (image, image_link, caption, label 0 or 1, relation,
...) and `images/`. Beside accuracy stand one for each relation and, where the authors'
`rel_meta_category_dict.txt` lies in the folder or in `analysis_scripts/`, one for each of its
categories. A relation that the file names twice belongs to the later category, as in their script.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpredict.probes.external.bench import (
    Answers,
    Bench,
    BenchError,
    faults_of,
    grades,
    mean_of,
    means_by,
    missing_files,
)
from mmpredict.probes.external.tables import listing, need_folder, read_lines, read_rows
from mmpredict.probes.items import Evidence, Files, Item, Suite

NEEDS = ("image", "caption", "label", "relation")
SPLITS = ("random", "zeroshot")
CATEGORIES = "rel_meta_category_dict.txt"


def load(root: Path, part: str = "") -> Bench:
    """`part` is random or zeroshot; both if empty."""
    root = need_folder(root)
    base = root if (root / "splits").is_dir() else root / "data"
    names = [n for n in SPLITS if (base / "splits" / n).is_dir() and part in ("", n)]
    if not names:
        raise BenchError(f"{root} has no splits/{part or 'random, zeroshot'}; {listing(root)}")
    images = need_folder(base, "images", "trainval2017")
    categories = _categories(root)
    items: list[Item] = []
    sources: dict[str, Files] = {}
    for name in names:
        path = base / "splits" / name / "test.jsonl"
        for number, row in enumerate(read_rows(path, NEEDS)):
            if row["label"] not in (0, 1):
                raise BenchError(f"{path}, row {number + 1}: label {row['label']!r} is not 0 or 1")
            sources[row["image"]] = Files(images=(str(images / row["image"]),))
            items.append(
                Item(
                    id=f"{name}/{number:05d}",
                    family=name,
                    score="mc",
                    evidence=(Evidence(row["image"]),),
                    variants=("video",),
                    question=f"{row['caption']} True or false?",
                    choices=("True", "False"),
                    answer=0 if row["label"] else 1,
                    cluster=row["image"],
                    split="test",
                    condition={
                        "relation": row["relation"],
                        "category": categories.get(row["relation"], ""),
                    },
                )
            )
    lost = sorted({str(i.condition["relation"]) for i in items if not i.condition["category"]})
    notes = (f"no category for {len(lost)} relations: {', '.join(lost)}",)
    return Bench(
        "vsr",
        Suite("vsr", tuple(items), sources),
        metric,
        faults_of(items, missing_files(sources)),
        notes if lost else (),
    )


def metric(items: Sequence[Item], answers: Answers) -> dict[str, float]:
    """Accuracy of each split, relation and category."""
    values = grades(items, answers)
    found: dict[str, float] = {}
    for split in dict.fromkeys(item.family for item in items):
        part = [item for item in items if item.family == split]
        found[f"{split}_accuracy"] = mean_of(values[item.id] for item in part)
        for key in ("relation", "category"):
            by_key = means_by(part, values, lambda item, k=key: str(item.condition[k]))
            found |= {f"{split}_{key}_{name}": value for name, value in by_key.items()}
    return found


def _categories(root: Path) -> dict[str, str]:
    """Relation -> category."""
    paths = [root / CATEGORIES, root / "analysis_scripts" / CATEGORIES]
    found: dict[str, str] = {}
    for path in [path for path in paths if path.is_file()][:1]:
        for line in filter(str.strip, read_lines(path)):
            category, colon, relations = line.partition(":")
            if not colon:
                raise BenchError(f"{path}: {line!r} is not <category>: <relation>, <relation>")
            found |= {relation.strip(): category.strip() for relation in relations.split(",")}
    return found
