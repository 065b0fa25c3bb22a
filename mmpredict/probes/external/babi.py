"""bAbI tasks 17, 18 and 19 (Weston et al. 2015): positions, sizes and ways, in words.

Layout: `tasks_1-20_v1-2/{en,en-10k}/qa17_*_test.txt`. Lines are `N sentence` and `N question<tab>
answer<tab>support`; N starts at 1 again with every story. Questions of one story are not
independent (task 17 asks eight of each): the story is the cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from mmpredict.probes.external.bench import (
    Answers,
    Bench,
    BenchError,
    grades,
    mean_of,
    means_by,
)
from mmpredict.probes.external.tables import listing, need_folder, read_lines
from mmpredict.probes.items import Evidence, Item, Suite

TASKS = ("qa17", "qa18", "qa19")
_BACK = {"n": "s", "s": "n", "e": "w", "w": "e"}
PATHS = tuple(f"{a},{b}" for a, b in product("nsew", repeat=2) if b != _BACK[a])
CHOICES = {"qa17": ("yes", "no"), "qa18": ("yes", "no"), "qa19": PATHS}


@dataclass(frozen=True)
class Asked:
    """A question after the sentences of its story so far."""

    story: int
    line: int
    told: tuple[str, ...]
    question: str
    answer: str


def load(root: Path, part: str = "") -> Bench:
    """`part` is qa17, qa18 or qa19, or en or en-10k; by default all tasks of en."""
    root = need_folder(root)
    if part not in ("", "en", "en-10k", *TASKS):
        raise BenchError(f"bAbI has no part {part!r}; there are en, en-10k, {', '.join(TASKS)}")
    language = part if part in ("en", "en-10k") else "en"
    tasks = (part,) if part in TASKS else TASKS
    homes = [root / "tasks_1-20_v1-2" / language, root / language, root]
    items: list[Item] = []
    for task in tasks:
        paths = [p for home in homes for p in sorted(home.glob(f"{task}_*_test.txt"))]
        if paths:
            items += [_item(task, paths[0], asked) for asked in stories(paths[0])]
    if not items:
        raise BenchError(
            f"{root} has no {tasks[0]}_*_test.txt, nor in {language}/ or tasks_1-20_v1-2/"
            f"{language}/; it has {listing(root)}"
        )
    return Bench("babi", Suite("babi", tuple(items)), metric)


def metric(items: Sequence[Item], answers: Answers) -> dict[str, float]:
    """Share of right answers of each task, and their mean."""
    by_task = means_by(items, grades(items, answers), lambda item: item.family)
    found = {f"{task}_accuracy": value for task, value in by_task.items()}
    return {**found, "accuracy": mean_of(found.values())}


def stories(path: Path) -> Iterator[Asked]:
    """Questions of a file in bAbI's form.

    Raises:
        BenchError: a line has no number, or a question no answer.
    """
    story, told = 0, []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        count, _, rest = line.strip().partition(" ")
        if not count.isdigit() or not rest:
            raise BenchError(f"{path}, line {number}: {line[:60]!r} is not '<number> <sentence>'")
        if count == "1":
            story, told = story + 1, []
        if "\t" not in rest:
            told.append(rest.strip())
            continue
        question, answer, *_ = (cell.strip() for cell in rest.split("\t"))
        if not question or not answer:
            raise BenchError(f"{path}, line {number}: a question needs an answer after a tab")
        yield Asked(story, number, tuple(told), question, answer)


def _item(task: str, path: Path, asked: Asked) -> Item:
    choices = CHOICES[task]
    if asked.answer not in choices:
        raise BenchError(
            f"{path}, line {asked.line}: answer {asked.answer!r} is none of {', '.join(choices)}"
        )
    return Item(
        id=f"{task}/{asked.line:05d}",
        family=task,
        score="mc",
        evidence=(Evidence(told=asked.told),),
        variants=("text",),
        question=asked.question,
        choices=choices,
        answer=choices.index(asked.answer),
        chance=1 / len(choices),
        cluster=f"{task}/{asked.story}",
        split="test",
    )
