"""GRASP (Jassim et al. 2024, arXiv 2311.09048): what is seen (level 1) and what may happen (level
2), in videos of a simulator.

Layout: `level2/P_<Concept>/<k>.mp4` and `level2/IP_<Concept>/<k>.mp4`, a pair for each k;
`level1/<Scene><Label>/<k>.mp4`, and `level1/<N>ObjectOrdering/<k>.txt` with the objects from left
to right. Level 2 is scored by surprise on pairs, as others do; level 1 as yes and no to a true and
to a false statement, in our words. The authors draw the false one at random; here it is the next
label of the scene (of an ordering: the same turned by one), so that two runs agree.
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
from mmpredict.probes.external.tables import listing, need_folder, read_lines
from mmpredict.probes.items import Evidence, Files, Item, Suite

# scene of level 1 -> statement about the label
STATEMENTS = {
    "Movement": "the ball is {}",
    "RelationalPosition": "the ball is on the {} side of the barrier",
    "Direction": "the ball rolls {}",
    "Shape": "there is a {} on the table",
    "Color": "the ball is {}",
}
MOVEMENT = {"true": "moving", "false": "not moving"}
ORDERING = "ObjectOrdering"
COUNTS = {"Two": 2, "Three": 3, "Four": 4}


def load(root: Path, part: str = "") -> Bench:
    """`part` is level1 or level2; both if they are there and `part` is empty."""
    root = need_folder(root)
    base = root if any((root / f"level{k}").is_dir() for k in (1, 2)) else root / "videos"
    items: list[Item] = []
    sources: dict[str, Files] = {}
    for name, reader in (("level1", _level1), ("level2", _level2)):
        if (base / name).is_dir() and part in ("", name):
            found, files = reader(base / name)
            items += found
            sources |= files
    if not items:
        raise BenchError(f"{root} has no videos in {part or 'level1, level2'}; {listing(root)}")
    return Bench(
        "grasp",
        Suite("grasp", tuple(items), sources),
        metric,
        faults_of(items, missing_files(sources)),
    )


def metric(items: Sequence[Item], answers: Answers) -> dict[str, float]:
    """Accuracy of each concept and scene, and their mean on each level."""
    values = grades(items, answers)
    found = {f"{n}_accuracy": v for n, v in means_by(items, values, lambda i: i.family).items()}
    for level in ("level1", "level2"):
        of_level = [v for name, v in found.items() if name.startswith(level)]
        if of_level:
            found[f"{level}_mean"] = mean_of(of_level)
    return found


def _level2(folder: Path) -> tuple[list[Item], dict[str, Files]]:
    items, sources = [], {}
    concepts = {p.name.split("_", 1)[1] for p in folder.iterdir() if p.name[:2] in ("P_", "IP")}
    for concept in sorted(concepts):
        both = [folder / f"{kind}_{concept}" for kind in ("P", "IP")]
        numbers = [{path.name for path in home.glob("*.mp4")} for home in both]
        if numbers[0] != numbers[1] or not numbers[0]:
            alone = sorted(numbers[0] ^ numbers[1])
            raise BenchError(
                f"{both[0]} and {both[1]} must have the same videos; {len(numbers[0])} and "
                f"{len(numbers[1])} found, without a partner: {', '.join(alone[:5]) or 'none'}"
            )
        for name in sorted(numbers[0], key=_by_number):
            pair = [f"{home.name}/{Path(name).stem}" for home in both]
            sources |= {
                n: Files(video=str(home / name)) for n, home in zip(pair, both, strict=True)
            }
            items.append(
                Item(
                    id=f"level2/{concept}/{Path(name).stem}",
                    family=f"level2/{concept}",
                    score="voe",
                    evidence=tuple(map(Evidence, pair)),
                    variants=("video",),
                    possible=(True, False),
                    cut_s=0.0,
                    cluster=f"level2/{concept}/{Path(name).stem}",
                    split="test",
                )
            )
    return items, sources


def _level1(folder: Path) -> tuple[list[Item], dict[str, Files]]:
    items: list[Item] = []
    sources: dict[str, Files] = {}
    homes = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    for home in homes:
        scene = next((s for s in STATEMENTS if home.name.startswith(s)), "")
        if not scene and not home.name.endswith(ORDERING):
            raise BenchError(
                f"{home}: expected <Scene><Label> with a scene of {', '.join(STATEMENTS)}, or "
                f"{', '.join(n + ORDERING for n in COUNTS)}"
            )
        family = scene or home.name
        labels = sorted(
            h.name[len(scene) :].lower() for h in homes if scene and h.name.startswith(scene)
        )
        for video in sorted(home.glob("*.mp4"), key=lambda p: _by_number(p.name)):
            true, false = (
                _labels(scene, home, labels) if scene else _orders(video.with_suffix(".txt"))
            )
            source = f"{home.name}/{video.stem}"
            sources[source] = Files(video=str(video))
            items += [
                _judgement(source, family, true, holds=True),
                _judgement(source, family, false, holds=False),
            ]
    return items, sources


def _labels(scene: str, home: Path, labels: Sequence[str]) -> tuple[str, str]:
    own = home.name[len(scene) :].lower()
    if len(labels) < 2:
        raise BenchError(f"{home}: {scene} has only the label {own!r}; a false one needs another")
    other = labels[(labels.index(own) + 1) % len(labels)]
    words = MOVEMENT if scene == "Movement" else {}
    return tuple(STATEMENTS[scene].format(words.get(v, v)) for v in (own, other))


def _orders(path: Path) -> tuple[str, str]:
    """The true order and one that is not; the files repeat earlier labels, the last ones count."""
    count = next((n for name, n in COUNTS.items() if path.parent.name.startswith(name)), 0)
    lines = read_lines(path)
    things = lines[0].split(",")[-count:] if lines and count else []
    if len(things) != count or len(set(things)) < 2:
        raise BenchError(f"{path}: expected {count} objects with commas, got {lines[:1]}")
    told = "from left to right there are {}"
    turned = things[1:] + things[:1]
    return told.format(", ".join(things)), told.format(", ".join(turned))


def _judgement(source: str, family: str, statement: str, *, holds: bool) -> Item:
    return Item(
        id=f"level1/{source}/{'true' if holds else 'false'}",
        family=f"level1/{family}",
        score="mc",
        evidence=(Evidence(source),),
        variants=("video",),
        question=f"Is it so that {statement}?",
        choices=("yes", "no"),
        answer=0 if holds else 1,
        cluster=f"level1/{source}",
        group=f"level1/{source}",
        split="test",
    )


def _by_number(name: str) -> tuple[int, str]:
    stem = Path(name).stem
    return (int(stem) if stem.isdigit() else -1, name)
