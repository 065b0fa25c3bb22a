"""A readout finds what is in the input, nothing where labels are shuffled, and refuses leaks."""

from dataclasses import replace

import pytest
import torch

from mmpredict.model import Predictor, PredictorConfig
from mmpredict.probes.item_readout import ask_readout
from mmpredict.probes.items import Evidence, Item, Suite
from mmpredict.schema import UserError
from mmpredict.tokens import Codecs, MelChunks, Patches, TextTokens
from mmpredict.world import Take
from mmpredict.world.stage import ObjectSpec, Stage

CODECS = Codecs(video=Patches(16, 8, 4), audio=MelChunks(8000, 2), text=TextTokens())
SIDES = ("left", "right")


def suite(part: str, count: int) -> Suite:
    """A white ball rests on one side of a dark room."""
    takes, items = {}, []
    for n in range(count):
        right = n % 2
        x = (0.9 if right else -0.9) + 0.01 * n + (0.003 if part == "dev" else 0)
        ball = ObjectSpec("white", "ball", "wood", 0.6, 0.6, 0, x, 0.3)
        name = f"{part} {n}"
        takes[name] = Take(Stage((ball,), 1.0), name)
        choices = SIDES if n % 3 else SIDES[::-1]
        items.append(
            Item(name, "left_right", "mc", (Evidence(name, 1.0),), ("video", "video+audio"),
                 question="where is the white ball?", choices=choices,
                 answer=choices.index(SIDES[right]), cluster=name)
        )  # fmt: skip
    return Suite(part, tuple(items), takes)


def suites() -> dict[str, Suite]:
    return {"train": suite("train", 18), "dev": suite("dev", 16), "test": suite("test", 16)}


def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(CODECS.layout, PredictorConfig(dim=16, depth=1, num_heads=2)).eval()


def mean(rows: list[dict]) -> float:
    return sum(row["score"] for row in rows) / len(rows)


def test_what_is_plain_is_found_and_controls_are_at_chance():
    found = ask_readout(predictor(), CODECS, suites(), ["video"])
    assert {name: len(rows) for name, rows in found.items()} == dict.fromkeys(
        ("model", "untrained", "raw input", "majority", "permuted labels"), 16
    )
    assert mean(found["raw input"]) > 0.9
    assert mean(found["model"]) > 0.9  # one layer of random weights keeps a white ball's place
    assert mean(found["majority"]) == pytest.approx(0.5)
    assert 0.1 < mean(found["permuted labels"]) < 0.9
    again = ask_readout(predictor(), CODECS, suites(), ["video"])
    assert again == found


def test_a_scene_in_two_parts_is_refused():
    parts = suites()
    with pytest.raises(UserError, match="train and test share 18 scenes"):
        ask_readout(predictor(), CODECS, parts | {"test": parts["train"]}, ["video"])


def test_few_items_and_missing_parts_are_refused():
    parts = suites()
    with pytest.raises(UserError, match=r"\{'dev': 4\} items; a readout needs at least 16"):
        ask_readout(predictor(), CODECS, parts | {"dev": suite("dev", 4)}, ["video"])
    with pytest.raises(UserError, match=r"missing: \['dev'\]"):
        ask_readout(predictor(), CODECS, {k: parts[k] for k in ("train", "test")}, ["video"])


def test_what_cannot_be_shown_is_named():
    parts = suites()
    lost = parts["test"].items[3]
    broken = replace(lost, evidence=(Evidence(lost.evidence[0].source, 0.0),))
    items = tuple(broken if item is lost else item for item in parts["test"].items)
    parts["test"] = Suite("test", items, parts["test"].sources)
    rows = ask_readout(predictor(), CODECS, parts, ["video+audio"])["model"]
    bad = [row for row in rows if row["error"]]
    assert [row["id"] for row in bad] == [lost.id]
    assert bad[0]["score"] is None and "has no video up to 0.0 s" in bad[0]["error"]
