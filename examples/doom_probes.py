"""Spatial probes in a world that nobody here made: clips of ViZDoom with its own depth, labels and
poses as truth. In: how many clips. Out: a folder of clips and items, for

    python examples/doom_probes.py --out doom --clips 400          (needs mmpredict[doom], OpenAL)
    mmpredict probe --ckpt CKPT --items doom/test.jsonl --readout doom/train.jsonl

Families, asked at the last frame of a clip of two seconds:
    left_right      is a thing in view on the left or on the right half of the picture
    nearer_farther  which of two things in view is nearer, by the distance in the map
    count           how many monsters are in view, 0 to 3
    sound_dir       does the only monster of the map sound from the left or from the right

Every clip comes with its mirror image, ears exchanged, so that left and right are as frequent and
mirrored clips have mirrored answers; the two form a group. Of nearer_farther the names change
places in the image; of count, clips are left out until all answers are equally frequent.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datamodules import Doom  # noqa: E402
from datamodules.base import Skipped  # noqa: E402
from datamodules.games.doom_truth import MONSTER, DoomTruth  # noqa: E402
from datamodules.games.episodes import words  # noqa: E402
from mmpredict.media import write_clip, write_wav  # noqa: E402
from mmpredict.probes.items import Evidence, Files, Item, Suite  # noqa: E402
from mmpredict.schema import Clip  # noqa: E402
from mmpredict.tokens import MelChunks, Patches  # noqa: E402

SCREEN = (120, 160)
FPS = 8.0
SECONDS = 2.0
SCENARIOS = ("basic_audio", "take_cover", "defend_the_center", "deadly_corridor", "freedoom2:MAP01")
IN_VIEW = 40  # of the screen's 19,200 pixels
OFF_CENTRE = 0.08  # of the width: nearer to the middle is neither left nor right
NEARER = 1.25  # times as far, at least
MOST_COUNTED = 3
HEARD_AT = (0.15, 2.99)  # radians to the side, between ahead and behind
SEEN, HEARD = ("video", "video+audio"), ("audio", "video+audio")
SPLITS = {"train": "train", "dev": "val", "test": "test"}


@dataclass(frozen=True)
class Thing:
    """In view at the last frame: its name, the middle of its box (0 left to 1 right), distance."""

    name: str
    x: float
    distance: float
    is_monster: bool


def things(truth: DoomTruth) -> list[Thing]:
    """What the last frame shows plainly."""
    objects, last, found = truth.objects, len(truth.times_s) - 1, []
    for k in (objects.frame_K == last).nonzero()[:, 0].tolist():
        if int(objects.pixels_K[k]) >= IN_VIEW:
            left, _, right, _ = objects.box_K4[k].tolist()
            kind = int(objects.name_K[k])
            is_monster = objects.categories[kind] == MONSTER
            name = "the " + words(objects.names[kind]).lower()
            x = (left + right) / 2 / SCREEN[1]
            found.append(Thing(name, x, float(objects.distance_K[k]), is_monster))
    return found


def only_monster(truth: DoomTruth) -> float | None:
    """Azimuth of the only monster of the map, radians, positive to the left; None if there are more
    or none, or if it is straight ahead or behind."""
    objects, last = truth.objects, len(truth.times_s) - 1
    mine = [
        k
        for k in (objects.frame_K == last).nonzero()[:, 0].tolist()
        if objects.categories[int(objects.name_K[k])] == MONSTER
    ]
    if len(mine) != 1:
        return None
    azimuth = float(objects.azimuth_K[mine[0]])
    return azimuth if HEARD_AT[0] < abs(azimuth) < HEARD_AT[1] else None


def mirrored(clip: Clip) -> Clip:
    """Left and right exchanged, for eyes and ears."""
    return replace(
        clip, frames_TCHW=clip.frames_TCHW.flip(-1), waveform_CS=clip.waveform_CS.flip(0)
    )


@dataclass(frozen=True)
class Asked:
    """A question about a clip; `n` tells those of one family apart."""

    family: str
    n: int
    text: str
    choices: tuple[str, ...]
    answer: int
    variants: tuple[str, ...] = SEEN


def questions(truth: DoomTruth, *, flip: bool) -> Iterator[Asked]:
    """All questions about a clip, or about its mirror image."""
    sides = ("left", "right")
    seen = things(truth)
    names = [thing.name for thing in seen]
    single = [thing for thing in seen if names.count(thing.name) == 1]
    for n, thing in enumerate(single):
        if abs(thing.x - 0.5) >= OFF_CENTRE:
            is_right = (thing.x > 0.5) != flip
            yield Asked("left_right", n, f"is {thing.name} left or right?", sides, int(is_right))
    for n, (one, two) in enumerate(combinations(single, 2)):
        near, far = sorted((one, two), key=lambda thing: thing.distance)
        if far.distance >= NEARER * near.distance:
            pair = (two.name, one.name) if flip else (one.name, two.name)
            text = f"which is nearer {pair[0]} or {pair[1]}?"
            yield Asked("nearer_farther", n, text, pair, pair.index(near.name))
    count = sum(thing.is_monster for thing in seen)
    if count <= MOST_COUNTED:
        numbers = tuple(str(k) for k in range(MOST_COUNTED + 1))
        yield Asked("count", 0, "how many monsters are there?", numbers, count)
    azimuth = only_monster(truth)
    if azimuth is not None:
        is_right = (azimuth < 0) != flip
        text = "from which side comes the sound?"
        yield Asked("sound_dir", 0, text, sides, int(is_right), HEARD)


def ask(truth: DoomTruth, source: str, split: str) -> Iterator[Item]:
    """Items about a clip and about its mirror image, the source `source`-m."""
    for name in (source, f"{source}-m"):
        for asked in questions(truth, flip=name != source):
            yield Item(
                id=f"{asked.family}/{name}/{asked.n}",
                family=asked.family,
                score="mc",
                evidence=(Evidence(name),),
                variants=asked.variants,
                question=asked.text,
                choices=asked.choices,
                answer=asked.answer,
                chance=1 / len(asked.choices),
                cluster=source,
                group=f"{asked.family}/{source}/{asked.n}",
                split=split,
                template=f"{asked.family}/0",
            )


def balanced(items: list[Item], dice: random.Random) -> list[Item]:
    """Whole groups are left out until every answer of a family is equally frequent."""
    kept: list[Item] = []
    for family in dict.fromkeys(item.family for item in items):
        by_answer: dict[int, list[str]] = defaultdict(list)
        mine = [item for item in items if item.family == family]
        if family != "count":  # mirror images balance the others
            kept += mine
            continue
        for item in mine:
            if item.group not in by_answer[item.answer]:
                by_answer[item.answer].append(item.group)
        most = min(len(groups) for groups in by_answer.values())
        chosen = {g for groups in by_answer.values() for g in dice.sample(sorted(groups), most)}
        kept += [item for item in mine if item.group in chosen]
    return kept


def written(clip: Clip, path: Path) -> Files:
    """Frames and sound in files of their own: what an mp4 does to sound would touch its sides."""
    video, audio = f"{path}.mp4", f"{path}.wav"
    write_clip(video, replace(clip, waveform_CS=None, sample_rate=None), fps=FPS)
    write_wav(audio, clip.waveform_CS, clip.sample_rate)
    return Files(video=video, audio=audio, end_s=SECONDS)


def record(out: Path, split: str, clips: int, seed: int) -> Suite:
    """Play, write the clips, and ask."""
    data = Doom(
        audio=MelChunks(sample_rate=16000, channels=2),
        video=Patches(size=SCREEN, patch=40, fps=FPS),
        text=None,
        scenarios=SCENARIOS,
        clip_seconds=SECONDS,
        train_clips=clips,
        val_clips=clips,
        test_clips=clips,
        repeat=True,
        seed=seed,
    )
    data.setup("fit")
    items: list[Item] = []
    sources: dict[str, Files] = {}
    (out / split).mkdir(parents=True, exist_ok=True)
    for index in range(clips):
        stretch = data.stretch(SPLITS[split], 0, index, truth=True)
        if isinstance(stretch, Skipped):
            print(f"left out: {stretch.reason}")
            continue
        name = f"{split}/{index:05d}"
        found = list(ask(stretch.truth, name, split))
        items += found
        clip = replace(data.clip(stretch), texts=())
        for source, shown in ((name, clip), (f"{name}-m", mirrored(clip))):
            sources[source] = written(shown, out / source)
        print(f"\r{split}: {index + 1} of {clips} clips, {len(items)} items", end="", flush=True)
    print()
    kept = balanced(items, random.Random(seed))
    used = {e.source for item in kept for e in item.evidence}
    return Suite("doom", tuple(kept), {k: v for k, v in sources.items() if k in used})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder for clips and items")
    parser.add_argument("--clips", type=int, default=400, help="per split (default 400)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out = arguments.out.resolve()
    for split in SPLITS:
        suite = record(out, split, arguments.clips, arguments.seed)
        suite.write(out / f"{split}.jsonl")
        counts = {f: sum(i.family == f for i in suite.items) for f in suite.families}
        print(f"wrote {out / split}.jsonl: {counts}")


if __name__ == "__main__":
    main()
