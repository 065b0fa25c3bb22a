"""Matched sets: four takes of a scene, two starts crossed with two ends; two of them break a law.

In: a kind and a seed. Out: takes, which of them are possible, and the moment up to which takes with
the same start are alike, bit for bit. Every start and every end (every picture and every sound, for
the video and for the sound) occurs as often in a possible take as in an impossible one, so that
nothing but their connection tells: the quadruplets of IntPhys (Riochet et al. 2018). What a screen
hides when the world is swapped shows in no pixel by more than one grey level: the painter rounds
what is under the screen, too, and where bystanders meet, whose last digits then differ, a draw in
which they would be more than _SAME_M apart is refused.

In full view the law itself forbids that (something solid and what goes through it are both plain to
see), and the plot says what is matched instead. There mere change tells, too: a jump is a change,
and where the target moves alike in possible and impossible takes, it passes before a block or a
support in the impossible ones only, whose contrast with it is not that of the wall. So these sets
measure whether a model is surprised by what is odd, not what it knows; the audit reports them
apart, and what is known is measured out of sight.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .condition import SPLITS, Condition
from .families import Casting, DoesNotFit
from .set_parts import SECONDS, VARIANTS, Draft, Plot
from .sets_heard import av_sync, sound_dir, sound_event
from .sets_held import gravity, pick_up, solidity
from .sets_seen import continuity, permanence, shape_constancy
from .stage import is_held_out_place, random_for
from .take import Take

_PLOTS: dict[str, Plot] = {
    "permanence": permanence,
    "shape_constancy": shape_constancy,
    "continuity": continuity,
    "solidity": solidity,
    "gravity": gravity,
    "pick_up": pick_up,
    "sound_event": sound_event,
    "av_sync": av_sync,
    "sound_dir": sound_dir,
}
SET_KINDS = tuple(_PLOTS)
POSSIBLE = (True, False, False, True)
_ATTEMPTS = 20000  # scenes of many things (test_size) seldom suit: some sets take thousands


@dataclass(frozen=True)
class MatchedSet:
    """Four takes of one scene.

    Args:
        kind: one of SET_KINDS.
        takes: start A end A, start A end B, start B end A, start B end B.
        possible: of each, whether the laws hold in it.
        cut_s: takes with the same start have the same frames up to it and the same samples before
            it.
        target: number of the object of the first take that all is about.
        condition: what may matter: "occluded", "moving", "plot".
    """

    kind: str
    takes: tuple[Take, Take, Take, Take]
    possible: tuple[bool, bool, bool, bool]
    cut_s: float
    target: int
    condition: dict[str, str | float | bool]


def matched_set(
    kind: str, seed: int, *, split: str = "test_iid", occluded: bool | None = None
) -> MatchedSet:
    """Draw a set; a pure function of its arguments. Draws that do not suit are drawn anew.

    Args:
        seed: number of the set.
        split: one of SPLITS; its rules for colours, counts, speeds and places hold.
        occluded: whether what decides is hidden by a screen; None: by the seed, half and half.
    """
    if kind not in _PLOTS:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(SET_KINDS)}")
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not one of {', '.join(SPLITS)}")
    key = f"set/{kind}/{split}/{seed}"
    if occluded is None:
        occluded = bool(random_for("occluded", key).random() < 0.5)
    rng = random_for("matched set", key, occluded)
    variant = int(rng.integers(VARIANTS))  # drawn once: variants that seldom suit come as often
    for _ in range(_ATTEMPTS):
        cast = Casting(rng, Condition(seconds=SECONDS), split)
        try:
            draft = _PLOTS[kind](cast, occluded, variant)
        except DoesNotFit:
            continue
        if _in_region(draft) == (split == "test_layout"):
            return _finished(kind, key, draft, occluded)
    raise ValueError(f"no set {key} (occluded={occluded}) after {_ATTEMPTS} attempts")


def _in_region(draft: Draft) -> bool:
    """Whether an object of any take starts where only those of test_layout may."""
    stages = [take.stage for take in draft.takes]
    return any(is_held_out_place(o.lane, o.x) for stage in stages for o in stage.objects)


def _finished(kind: str, key: str, draft: Draft, occluded: bool) -> MatchedSet:
    takes = tuple(replace(take, key=key, family=kind) for take in draft.takes)
    condition = {"occluded": occluded, **draft.condition}
    return MatchedSet(kind, takes, POSSIBLE, draft.cut_s, draft.target, condition)
