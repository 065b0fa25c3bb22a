"""SpartQA (Mirzaee et al. 2021, NAACL): questions about a told scene of blocks and shapes.

Layout: `{"data": [{story: [text], questions: [{q_type, question, answer: [...],
candidate_answers: [...]}]}]}`. FB asks for blocks, FR for relations, CO for one of two objects, YN
for yes, no or don't know (DK). Answers are candidates, or their numbers (FR, CO).

The published accuracy wants the whole set of answers. A question with one right answer is asked as
a choice among its candidates, which is easier than the open set; one with none or several is asked
candidate by candidate, yes or no, and is right if all of these are. YN has a macro F1 as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmpredict.probes.external.agreement import macro_f1
from mmpredict.probes.external.bench import (
    Answers,
    Bench,
    BenchError,
    all_right,
    grades,
    mean_of,
)
from mmpredict.probes.external.tables import check_columns, listing, need_folder, read_json
from mmpredict.probes.items import Evidence, Item, Suite

TYPES = ("FB", "FR", "CO", "YN")
YES_NO = ("Yes", "No", "DK")
NEEDS = ("q_type", "question", "answer", "candidate_answers")


def load(root: Path, part: str = "") -> Bench:
    """`root` is a file or a folder with test.json or human_test.json; `part` a type."""
    root = Path(root)
    names = ("test.json", "human_test.json", "unseen_test.json")
    paths = [root] if root.is_file() else [root / n for n in names if (root / n).is_file()]
    if not paths:
        raise BenchError(f"{need_folder(root)} has none of {', '.join(names)}; {listing(root)}")
    items: list[Item] = []
    for path in paths:
        whole = read_json(path)
        if not isinstance(whole, dict) or "data" not in whole:
            raise BenchError(f'{path}: expected {{"data": [{{story, questions}}]}}')
        for number, entry in enumerate(whole["data"]):
            check_columns(path, entry, ("story", "questions"), f", entry {number}")
            for k, question in enumerate(entry["questions"]):
                where = f"{path.stem}/{number}/{k}"
                check_columns(path, question, NEEDS, f", {where}")
                if part in ("", question["q_type"]):
                    items += _items(path, where, tuple(entry["story"]), question)
    return Bench("spartqa", Suite("spartqa", tuple(items)), metric)


def metric(items: Sequence[Item], answers: Answers) -> dict[str, float]:
    """Accuracy of each type, and the macro F1 of YN; files apart where there are several."""
    values = grades(items, answers)
    found: dict[str, float] = {}
    files = list(dict.fromkeys(item.group.split("/")[0] for item in items))
    for file in files:
        prefix = f"{file}_" if len(files) > 1 else ""
        for kind in TYPES:
            part = [i for i in items if i.family == kind and i.group.split("/")[0] == file]
            if part:
                right = all_right(part, values, lambda item: item.group)
                found[f"{prefix}{kind}_accuracy"] = mean_of(right.values())
            if part and kind == "YN":
                said = [_said(answers[item.id]) for item in part]
                truth = [item.answer for item in part]
                found[f"{prefix}YN_macro_f1"] = macro_f1(said, truth, range(len(YES_NO)))
    return found


def _said(row: Sequence[float]) -> int:
    """The one choice that is likelier than all others; -1 where several are."""
    best = max(row)
    return row.index(best) if list(row).count(best) == 1 else -1


def _items(path: Path, where: str, story: tuple[str, ...], row: dict[str, Any]) -> list[Item]:
    if row["q_type"] not in TYPES:
        raise BenchError(f"{path}, {where}: q_type {row['q_type']!r} is none of {', '.join(TYPES)}")
    candidates = YES_NO if row["q_type"] == "YN" else tuple(map(str, row["candidate_answers"]))
    right = [_number(path, where, candidates, answer) for answer in row["answer"]]
    if len(right) == 1:
        return [_item(where, story, row, row["question"], candidates, right[0])]
    if row["q_type"] == "YN":
        raise BenchError(f"{path}, {where}: YN has the answers {row['answer']}; needs one")
    return [
        _item(
            f"{where}/{k}",
            story,
            row,
            f"{row['question']} {candidate}?",
            ("yes", "no"),
            0 if k in right else 1,
        )
        for k, candidate in enumerate(candidates)
    ]


def _number(path: Path, where: str, candidates: Sequence[str], answer: Any) -> int:
    """Of the candidate that an answer names, by its number or in words."""
    if isinstance(answer, int) and 0 <= answer < len(candidates):
        return answer
    if str(answer) in candidates:
        return candidates.index(str(answer))
    raise BenchError(f"{path}, {where}: answer {answer!r} is none of the candidates {candidates}")


def _item(  # noqa: PLR0913 - what makes a question
    name: str,
    story: tuple[str, ...],
    row: dict[str, Any],
    question: str,
    choices: tuple[str, ...],
    answer: int,
) -> Item:
    group = "/".join(name.split("/")[:3])
    return Item(
        id=name,
        family=row["q_type"],
        score="mc",
        evidence=(Evidence(told=story),),
        variants=("text",),
        question=question,
        choices=choices,
        answer=answer,
        chance=1 / len(choices),
        cluster="/".join(name.split("/")[:2]),
        group=group,
        split="test",
    )
