"""Who knows everything, who says the same of everything, and who has it all backwards."""

from __future__ import annotations

from mmpredict.probes.external import Bench
from mmpredict.probes.external.bench import worst
from mmpredict.probes.grading import mean_relative_accuracy
from mmpredict.probes.items import Item


def right(item: Item) -> list[float]:
    if item.score == "numeric":
        return [mean_relative_accuracy(float(c), item.numeric) for c in item.choices]
    return [-v for v in worst(item)]


def flat(item: Item) -> list[float]:
    return [0.25] * len(worst(item))


def answers(bench: Bench, scorer=right) -> dict[str, list[float]]:
    return {item.id: scorer(item) for item in bench.asked}
