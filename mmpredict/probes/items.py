"""The contract of this room: what is asked, of which evidence, and what is right.

A suite is a list of items and the takes (plain descriptions of what is filmed) or files that they
show. It is written as JSONL, so that every item can be read, shared and asked again: the first line
says what the suite is, then come the sources, then the items.

Kinds of items (`score`):
    mc       which choice follows the question, given the evidence
    numeric  as mc; the choices are numbers and the nearer the better (`numeric` is the truth)
    minpair  two contexts and two statements: each statement fits one context (EWoK)
    voe      clips alike up to `cut_s`; some then break a law, and should surprise
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from mmpredict.world import WORLD_VERSION, Take

VARIANTS = ("text", "audio", "video", "video+audio")  # what of the evidence is given
KINDS = ("mc", "numeric", "minpair", "voe")
_FORMAT = 1


class ItemError(ValueError):
    """An item or a file of items is wrong; says which and how."""


@dataclass(frozen=True)
class Files:
    """Pictures and sound from somebody's folder.

    Args:
        video, audio: files; either may be missing.
        images: pictures that are shown one after another.
        start_s, end_s: what of the video and the sound is used; None to its end.
    """

    video: str = ""
    audio: str = ""
    images: tuple[str, ...] = ()
    start_s: float = 0.0
    end_s: float | None = None

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)

    def seen_from(self, root: str) -> Files:
        """With paths that begin at a folder; those elsewhere stay."""

        def short(path: str) -> str:
            inside = path and Path(path).is_relative_to(root)
            return Path(path).relative_to(root).as_posix() if inside else path

        images = tuple(map(short, self.images))
        return replace(self, video=short(self.video), audio=short(self.audio), images=images)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Files:
        return cls(**{**plain, "images": tuple(plain.get("images", ()))})


Source = Take | Files


@dataclass(frozen=True)
class Evidence:
    """What is shown or told before the question.

    Args:
        source: name of one of the suite's sources; "" where nothing is shown.
        until_s: frames that begin and sound that ends by then are given; None: all.
        told: the same in words, line by line, for the variant "text".
    """

    source: str = ""
    until_s: float | None = None
    told: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """One question with one right answer.

    Args:
        id: unique in the suite.
        family: "left_right", "pick_up" and so on.
        score: see the head of this file.
        evidence: one; two of a minpair (the context of each statement); the clips of a voe set.
        variants: which forms of evidence can answer it, of VARIANTS.
        question: "" where a choice is a statement of its own.
        choices: answers or statements; empty for voe.
        answer: number of the right choice.
        numeric: the true number (numeric).
        possible: of each clip, whether the laws hold in it (voe).
        cut_s: up to here the clips of a set are alike, bit for bit (voe).
        chance: score of a guess.
        cluster: the scene; items of one scene are not independent, and are resampled together.
        group: items that are right only all together (a mirrored pair, a 2 x 2 set).
        split: of the world: "test_iid", "test_comp", ...
        template: which wording, "left_right/0".
        paraphrase: whether the wording never occurs in training.
        condition: what else may matter, for tables ("hidden": True).
    """

    id: str
    family: str
    score: Literal["mc", "numeric", "minpair", "voe"]
    evidence: tuple[Evidence, ...]
    variants: tuple[str, ...]
    question: str = ""
    choices: tuple[str, ...] = ()
    answer: int = 0
    numeric: float | None = None
    possible: tuple[bool, ...] = ()
    cut_s: float | None = None
    chance: float = 0.5
    cluster: str = ""
    group: str = ""
    split: str = "test_iid"
    template: str = ""
    paraphrase: bool = False
    condition: Mapping[str, str | float | int | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = self._wrong()
        if wrong:
            raise ItemError(f"item {self.id!r}: {wrong}")

    def _wrong(self) -> str:  # noqa: C901 - one law after another
        """What is wrong; "" if nothing."""
        if not self.id or not self.family or not self.cluster:
            return "needs an id, a family and a cluster"
        if self.score not in KINDS:
            return f"score={self.score!r} is not one of {', '.join(KINDS)}"
        unknown = [variant for variant in self.variants if variant not in VARIANTS]
        if unknown or not self.variants:
            return f"variants={self.variants} must be one or more of {', '.join(VARIANTS)}"
        if not 0 <= self.chance < 1:
            return f"chance={self.chance} must be from 0 to below 1"
        if self.score == "voe":
            if len(self.possible) != len(self.evidence) or len(set(self.possible)) != 2:
                return (
                    f"{len(self.evidence)} clips with possible={self.possible}: needs one mark per "
                    "clip, and clips of both kinds"
                )
            return "" if self.cut_s is not None else "a voe set needs cut_s"
        if len(set(self.choices)) != len(self.choices) or len(self.choices) < 2:
            return f"choices={self.choices} must be two or more different ones"
        if not 0 <= self.answer < len(self.choices):
            return f"answer={self.answer} is none of the {len(self.choices)} choices"
        if self.score == "minpair":
            fits = len(self.evidence) == 2 == len(self.choices) and self.answer == 0
            return "" if fits else "a minpair has 2 contexts, 2 choices in their order, answer 0"
        if self.score == "numeric" and self.numeric is None:
            return "a numeric item needs the true number"
        return "" if len(self.evidence) == 1 else f"{len(self.evidence)} evidences; needs one"

    def to_plain(self) -> dict[str, Any]:
        """Without what has its default."""
        plain = asdict(self)
        defaults = {f.name: f.default for f in fields(self)}
        empty = ((), {}, None, "")
        return {k: v for k, v in plain.items() if v != defaults[k] and v not in empty}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Item:
        known = {f.name for f in fields(cls)}
        unknown, lacks = sorted(set(plain) - known), sorted(_REQUIRED - set(plain))
        if unknown or lacks:
            raise ItemError(
                f"item {plain.get('id', '?')!r}: unknown {unknown or 'nothing'}, missing "
                f"{lacks or 'nothing'}; expected {', '.join(f.name for f in fields(cls))}"
            )
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        values["evidence"] = tuple(
            Evidence(**{**e, "told": tuple(e.get("told", ()))}) for e in plain["evidence"]
        )
        return cls(**values)


_REQUIRED = {"id", "family", "score", "evidence", "variants", "cluster"}


@dataclass(frozen=True)
class Suite:
    """Items and what they show.

    Args:
        name: "spatial", "smoke", or of a benchmark.
        items: with different ids.
        sources: by name.
        world_version: of the world that the takes are of.
        root: folder that holds the files, if they lie in one; the sum does not depend on it.
    """

    name: str
    items: tuple[Item, ...]
    sources: Mapping[str, Source] = field(default_factory=dict)
    world_version: str = WORLD_VERSION
    root: str = ""

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for item in self.items:
            if item.id in seen:
                raise ItemError(f"suite {self.name!r} has two items {item.id!r}")
            seen.add(item.id)
            for evidence in item.evidence:
                if evidence.source and evidence.source not in self.sources:
                    raise ItemError(f"item {item.id!r} shows {evidence.source!r}, which is nowhere")

    @property
    def sha(self) -> str:
        """Of all lines, paths as seen from the root: results of different suites are never
        compared."""
        digest = hashlib.sha256()
        for line in self._lines(self.root):
            digest.update(line.encode())
        return digest.hexdigest()

    @property
    def families(self) -> tuple[str, ...]:
        """In the order in which they come first."""
        return tuple(dict.fromkeys(item.family for item in self.items))

    def _lines(self, root: str = "") -> Iterable[str]:
        for name, source in sorted(self.sources.items()):
            kind = "take" if isinstance(source, Take) else "files"
            if root and isinstance(source, Files):
                source = source.seen_from(root)
            yield _line({"source": name, kind: source.to_plain()})
        for item in self.items:
            yield _line(item.to_plain())

    def write(self, path: str | Path) -> None:
        """As JSONL."""
        head = {
            "suite": self.name,
            "format": _FORMAT,
            "world_version": self.world_version,
            "sha": self.sha,
            "items": len(self.items),
            **({"root": self.root} if self.root else {}),
        }
        with Path(path).open("w", encoding="utf-8", newline="\n") as file:
            file.write(_line(head))
            file.writelines(self._lines())

    @classmethod
    def read(cls, path: str | Path) -> Suite:
        """Read what `write` wrote; every line is checked.

        Raises:
            ItemError: with the file and the line.
            FileNotFoundError: there is no such file.
        """
        head, sources, items = None, {}, []
        with Path(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    plain = json.loads(line)
                    if head is None:
                        head = _checked_head(plain)
                    elif "source" in plain:
                        kind = Take if "take" in plain else Files
                        sources[plain["source"]] = kind.from_plain(
                            plain.get("take") or plain["files"]
                        )
                    else:
                        items.append(Item.from_plain(plain))
                except (ValueError, TypeError, KeyError) as error:
                    raise ItemError(f"{path}, line {number}: {error}") from error
        if head is None:
            raise ItemError(f"{path} is empty; a suite begins with a line that names it")
        root = head.get("root", "")
        suite = cls(head["suite"], tuple(items), sources, head["world_version"], root)
        if suite.sha != head["sha"]:
            raise ItemError(
                f"{path} was changed or cut: its {len(items)} items have the sum {suite.sha[:12]}, "
                f"its first line says {head['items']} items and {head['sha'][:12]}"
            )
        return suite


def _checked_head(plain: Mapping[str, Any]) -> Mapping[str, Any]:
    lacks = sorted({"suite", "format", "world_version", "sha", "items"} - set(plain))
    if lacks:
        raise ItemError(f"the first line must name the suite; it lacks {', '.join(lacks)}")
    if plain["format"] != _FORMAT:
        raise ItemError(f"format {plain['format']}; this version reads format {_FORMAT}")
    if plain["world_version"] != WORLD_VERSION:
        raise ItemError(
            f"items of world version {plain['world_version']}; this is version {WORLD_VERSION}, "
            "whose scenes look and sound otherwise: results would not compare. Make the items anew"
        )
    return plain


def _line(plain: Mapping[str, Any]) -> str:
    return json.dumps(plain, ensure_ascii=False, sort_keys=True, separators=(",", ":")) + "\n"
