"""EWoK (Ivanova et al. 2024, arXiv 2405.09605): two contexts, two statements, each fits one.

Layout: rows with Domain, Context1, Context2, Target1, Target2 as JSONL, CSV or Parquet, one file a
domain or all in one. An item is 1 where both statements are likelier after their own context, 0.5
where one is; a domain's score is the mean of its items. The authors ask not to spread the texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpredict.probes.external.bench import Answers, Bench, BenchError, grades, mean_of, means_by
from mmpredict.probes.external.tables import listing, need_folder, read_rows, row_files
from mmpredict.probes.items import Evidence, Item, Suite

TEXTS = ("Context1", "Context2", "Target1", "Target2")
REFUSAL = "the terms of EWoK ask for an explicit acknowledgement of any training; it is not offered"


def load(root: Path, part: str = "") -> Bench:
    """`part` is a domain ("spatial-relations"); all if empty."""
    root = Path(root)
    paths = [root] if root.is_file() else row_files(need_folder(root))
    if not paths:
        raise BenchError(f"{root} has no JSONL, CSV or Parquet; it has {listing(root)}")
    items: list[Item] = []
    for path in paths:
        for number, row in enumerate(read_rows(path, ("Domain", *TEXTS))):
            if part in ("", row["Domain"]):
                items.append(_item(f"{path.stem}/{number:05d}", path, row))
    if not items:
        raise BenchError(f"{root}: no rows of the domain {part!r}")
    return Bench("ewok", Suite("ewok", tuple(items)), metric, training_refused=REFUSAL)


def metric(items: Sequence[Item], answers: Answers) -> dict[str, float]:
    """Mean of each domain; over all items (`accuracy`) and over domains (`macro`).

    A tie is a guess; `accuracy_strict` counts it as wrong, as a strict sign does.
    """
    by_domain = means_by(items, values := grades(items, answers), lambda item: item.family)
    found = {f"{domain}_accuracy": value for domain, value in by_domain.items()}
    strict = []
    for item in items:
        first, second, third, fourth = answers[item.id]
        strict.append(((first > third) + (fourth > second)) / 2)
    return {
        **found,
        "accuracy": mean_of(values.values()),
        "macro": mean_of(by_domain.values()),
        "accuracy_strict": mean_of(strict),
    }


def _item(name: str, path: Path, row: dict[str, str]) -> Item:
    first, second, *targets = (str(row[column]) for column in TEXTS)
    if targets[0] == targets[1]:
        raise BenchError(f"{path}, {name}: both targets are {targets[0]!r}")
    return Item(
        id=name,
        family=row["Domain"],
        score="minpair",
        evidence=(Evidence(told=(first,)), Evidence(told=(second,))),
        variants=("text",),
        choices=tuple(targets),
        cluster=name,
        split="test",
    )
