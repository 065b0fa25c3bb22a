"""Hand-made items over takes of the world: a few of every kind, for the tests of asking."""

from __future__ import annotations

from mmpredict.probes.items import Evidence, Item, Suite
from mmpredict.world import Take, draw_scene

UNTIL_S = 0.5


def take(index: int = 0) -> Take:
    """One of the world's own scenes, cut short."""
    scene = draw_scene(index, split="test_iid")
    return Take(scene.stage(), scene.key, scene.family)


def choice(index: int, question: str, choices: tuple[str, ...], answer: int = 0, **more) -> Item:
    """A question about scene `index`, with all four forms of evidence."""
    told = ("here is a red ball and a blue box", "the red ball rolls left")
    name = "".join(word[0] for word in question.split())
    settings = {
        "id": f"left_right/{index}/{name}/{answer}",
        "family": "left_right",
        "score": "mc",
        "evidence": (Evidence(f"scene {index}", UNTIL_S, told),),
        "variants": ("text", "audio", "video", "video+audio"),
        "chance": 1 / len(choices),
        "cluster": f"scene {index}",
    }
    return Item(question=question, choices=choices, answer=answer, **{**settings, **more})


def suite(scenes: int = 2) -> Suite:
    """Choices, a number, a pair of statements and a set of clips for each scene."""
    items: list[Item] = []
    for n in range(scenes):
        left = ("left", "right", "in the middle")
        items += [
            choice(n, "is the red ball left of the box?", ("yes", "no"), n % 2),
            choice(n, "where is the red ball?", left, n % 3),
            choice(n, "where is the blue box?", left, (n + 1) % 3),
            _number(n),
            _pair(n),
            _clips(n),
        ]
    return Suite("small", tuple(items), {f"scene {n}": take(n) for n in range(scenes + 1)})


def _number(n: int) -> Item:
    # chance: the mean over the choices of the relative accuracy of 1, 2, 4, the truth being 2
    return choice(
        n,
        "how many balls are there?",
        ("1", "2", "4"),
        1,
        id=f"counting/{n}",
        family="counting",
        score="numeric",
        numeric=2.0,
        chance=1 / 3,
    )


def _pair(n: int) -> Item:
    contexts = (
        Evidence("", UNTIL_S, ("the ball is left of the box",)),
        Evidence("", UNTIL_S, ("the box is left of the ball",)),
    )
    return Item(
        f"minpair/{n}",
        "caption_minpair",
        "minpair",
        contexts,
        ("text",),
        choices=("the ball is on the left", "the box is on the left"),
        cluster=f"scene {n}",
    )


def _clips(n: int) -> Item:
    shown = (Evidence(f"scene {n}"), Evidence(f"scene {n + 1}"))
    return Item(
        f"permanence/{n}",
        "permanence",
        "voe",
        shown,
        ("audio", "video", "video+audio"),
        possible=(True, False),
        cut_s=1.5,
        cluster=f"scene {n}",
    )
