"""Laws that are broken: permanence, shape_constancy, continuity, solidity, gravity, pick_up,
sound_event, av_sync and sound_dir as violations of expectation.

In: a kind and a number. Out: the takes of a matched set and one item about them. The families are
called "permanence_voe" and so on: a surprise is no answer, and is not averaged with answers.
"""

from __future__ import annotations

from mmpredict.world import Take
from mmpredict.world.sets import SET_KINDS, matched_set

from ..items import Evidence, Item

HEARD_KINDS = ("sound_event", "av_sync", "sound_dir")  # the breach is in the sound
FAMILIES = tuple(f"{kind}_voe" for kind in SET_KINDS)


def voe_set(kind: str, number: int, split: str, seed: int) -> tuple[dict[str, Take], Item]:
    """One matched set: its four takes by name, and the item."""
    found = matched_set(kind, seed * 1_000_000 + number, split=split)
    name = f"set/{kind}/{split}/{seed}/{number}"
    sources = {f"{name}/{k}": take for k, take in enumerate(found.takes)}
    item = Item(
        id=f"{kind}_voe/{number}",
        family=f"{kind}_voe",
        score="voe",
        evidence=tuple(Evidence(source) for source in sources),
        variants=("video+audio",) if kind in HEARD_KINDS else ("video",),
        possible=found.possible,
        cut_s=found.cut_s,
        cluster=name,
        group=name,
        split=split,
        template=f"{kind}_voe",
        condition=dict(found.condition),
    )
    return sources, item
