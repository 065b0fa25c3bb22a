"""The suites: which scenes are built, which families ask of them, and how many items are kept.

In: a name, a split, a seed. Out: a `Suite`, the same to the bit for the same arguments; physics is
played, nothing is painted. One take serves many families, so that few clips have to be read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mmpredict.world import SPLITS

from .families import (
    amounts,
    breaches,
    captions,
    drops,
    hands,
    races,
    relations,
    rooms,
    screens,
    sounds,
    words,
)
from .families.draft import Draft, balanced, common_labels, finish
from .families.shot import Shot
from .items import Item, Source, Suite


@dataclass(frozen=True)
class Sizes:
    """How many scenes of every kind a suite has.

    Args:
        rooms: things at rest; one evidence each.
        mirrored: one in so many rooms is shown mirrored as well.
        hands, drops, screens, races, knocks, blinds: two evidences each.
        words: chains of words; nothing is shown.
        sets: matched sets of every kind; four evidences each.
    """

    rooms: int
    hands: int
    drops: int
    screens: int
    races: int
    knocks: int
    blinds: int
    words: int
    sets: int
    mirrored: int = 5


# PROBES 2.6: 1000 scenes x 4 items show 3 points between two models (power .9), 100 x 4 show 10.
# A matched set gives one score: 120 of a kind show .15 from one half (22 would show .35), and are
# what a model of nano's size can be asked in half of 25 minutes on two cores.
# `smoke` cannot resolve less than 7 points in the mean of all families, and far more in one.
SIZES = {
    "spatial": Sizes(1000, 144, 60, 80, 80, 90, 50, 1000, 120),
    "smoke": Sizes(30, 12, 3, 4, 4, 6, 4, 30, 3),
}
SIDES = ("left", "right", "behind")
_LEAST_ROOMS = 5


def build_suite(
    name: str, *, split: str = "test_iid", scenes: int | None = None, seed: int = 0
) -> Suite:
    """Build a suite of the embedded world; a pure function of its arguments.

    Args:
        name: "spatial" or "smoke".
        split: of the world: "test_iid", "test_comp", "test_size", "test_speed", "test_layout"; or
            "train", "dev" for what is learnt from or chosen by.
        scenes: number of rooms; all other numbers change with it. None: as the name says.
        seed: another seed is another set of scenes.

    Raises:
        ValueError: unknown name or split, or too few scenes.
    """
    if name not in SIZES:
        raise ValueError(f"suite {name!r} is not one of {', '.join(SIZES)}")
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not one of {', '.join(SPLITS)}")
    return _build(name, _scaled(SIZES[name], scenes), split, seed)


def supervised_split(
    name: str,
    *,
    split: str = "train",
    scenes: int | None = None,
    seed: int = 1,
    even: bool = False,
) -> Suite:
    """Items of the same families on scenes to learn from ("train") or to choose by ("dev"), for
    supervised readers of the evidence.

    Args:
        name, scenes, seed: as of `build_suite`.
        even: as many scenes of every kind as rooms, and a third as many matched sets of a kind;
            else the suite's own shares, without matched sets.
    """
    if split not in ("train", "dev"):
        raise ValueError(f"split={split!r}: to learn from take 'train', to choose by 'dev'")
    if name not in SIZES:
        raise ValueError(f"suite {name!r} is not one of {', '.join(SIZES)}")
    sizes = replace(_scaled(SIZES[name], scenes), sets=0)
    if even:
        rooms = sizes.rooms
        sizes = Sizes(*[rooms] * 8, sets=max(1, rooms // 3), mirrored=sizes.mirrored)
    return _build(f"{name}/{split}", sizes, split, seed)


def _scaled(sizes: Sizes, rooms: int | None) -> Sizes:
    """The same shares for another number of rooms."""
    if rooms is None:
        return sizes
    if rooms < _LEAST_ROOMS:
        raise ValueError(
            f"scenes={rooms} is too few to ask anything of; use {_LEAST_ROOMS} or more"
        )
    share = rooms / sizes.rooms
    names = ("rooms", "hands", "drops", "screens", "races", "knocks", "blinds", "words", "sets")
    return replace(sizes, **{n: max(1, round(getattr(sizes, n) * share)) for n in names})


def _build(name: str, sizes: Sizes, split: str, seed: int) -> Suite:
    sources: dict[str, Source] = {}
    items: list[Item] = []
    for shots, found in (
        _rooms(sizes, split, seed),
        _actions(sizes, split, seed),
        _sounds(sizes, split, seed),
    ):
        sources |= {shot.source: shot.take for shot in shots}
        items += found
    told = [draft for k in range(sizes.words) for draft in words.text_transfer(k, split, seed)]
    items += finish(balanced(told, 4, words.LABELS), split)
    for kind in breaches.SET_KINDS:
        for k in range(sizes.sets):
            takes, item = breaches.voe_set(kind, k, split, seed)
            sources |= takes
            items.append(item)
    used = {evidence.source for item in items for evidence in item.evidence}
    return Suite(name, tuple(items), {k: v for k, v in sources.items() if k in used})


def _rooms(sizes: Sizes, split: str, seed: int) -> tuple[list[Shot], list[Item]]:
    scenes = [
        rooms.build_room(k, split, seed, mirrored=k % sizes.mirrored == 0)
        for k in range(sizes.rooms)
    ]
    firsts = [shots[0] for shots in scenes]
    every = [shot for shots in scenes for shot in shots]
    drafts = [draft for shot in every for draft in relations.left_right(shot)]
    for shot in firsts:
        drafts += relations.above_below(shot) + relations.between(shot)
        drafts += relations.nearer_farther(shot) + amounts.size_order(shot)
    turned = [draft for shot in every for draft in relations.rel_direction(shot)]
    drafts += balanced(turned, 4, SIDES)
    apart = [draft for shot in firsts for draft in amounts.distance(shot)]
    drafts += _numbers(apart)
    counted = [draft for shot in firsts for draft in amounts.counting(shot, split)]
    drafts += balanced(counted, 2, amounts.counting_labels(split))
    items = finish(drafts, split)
    return every, items + [item for shots in scenes for item in captions.of_rooms(shots)]


def _numbers(drafts: list[Draft]) -> list[Draft]:
    """Only numbers that are right often enough are asked for; the whole scale is offered."""
    return balanced(drafts, 4, common_labels(drafts))


def _actions(sizes: Sizes, split: str, seed: int) -> tuple[list[Shot], list[Item]]:
    taken = [hands.build_hand(k, split, seed) for k in range(sizes.hands)]
    dropped = [drops.build_drop(k, split, seed) for k in range(sizes.drops)]
    hidden = [screens.build_screen(k, split, seed) for k in range(sizes.screens)]
    raced = [races.build_race(k, split, seed) for k in range(sizes.races)]
    drafts: list[Draft] = []
    for shot in (shot for shots in taken for shot in shots):
        drafts += hands.pick_up(shot) + hands.containment(shot) + hands.standing(shot)
    for shot in (shot for shots in dropped for shot in shots):
        drafts += drops.landing(shot)
    for shot in (shot for shots in hidden for shot in shots):
        drafts += screens.permanence(shot) + screens.appearance_order(shot)
    speeds: list[Draft] = []
    frames: list[Draft] = []
    for shot in (shot for shots in raced for shot in shots):
        drafts += races.velocity(shot) + races.ttc(shot)
        speeds += races.speed_class(shot)
        frames += races.ttc_frames(shot)
    for numbers in (speeds, frames):
        drafts += _numbers(numbers)
    items = finish(drafts, split)
    items += [item for shots in taken for item in captions.of_hands(shots)]
    items += [item for shots in hidden for item in captions.of_screens(shots)]
    every = [
        shot for scenes in (taken, dropped, hidden, raced) for shots in scenes for shot in shots
    ]
    return every, items


def _sounds(sizes: Sizes, split: str, seed: int) -> tuple[list[Shot], list[Item]]:
    knocked = [sounds.build_knock(k, split, seed) for k in range(sizes.knocks)]
    blind = [sounds.build_blind(k, split, seed) for k in range(sizes.blinds)]
    drafts: list[Draft] = []
    for shot in (shot for shots in knocked for shot in shots):
        drafts += sounds.sound_dir(shot) + sounds.sound_event(shot)
    for shot in (shot for shots in blind for shot in shots):
        drafts += sounds.which_hit(shot)
    every = [shot for scenes in (knocked, blind) for shots in scenes for shot in shots]
    return every, finish(drafts, split)
