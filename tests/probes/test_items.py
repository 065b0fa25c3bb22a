"""A suite comes back from its file as it was, and what is wrong with a file is said by line."""

import json
from pathlib import Path

import pytest

from mmpredict.probes.items import Evidence, Files, Item, ItemError, Suite
from mmpredict.world import Take, draw_scene


def suite() -> Suite:
    scenes = [draw_scene(k, split="test_iid") for k in range(5)]  # one of each family
    takes = {f"s{k}": Take(scene.stage(), scene.key) for k, scene in enumerate(scenes)}
    files = {"clip": Files(video="a, b.mp4", images=("x.png",), end_s=2.0)}
    told = Evidence("s0", 1.0, ("the ball is red", 'it is "left"\n'))
    items = (
        Item("a", "left_right", "mc", (told,), ("text", "video"), question="where?",
             choices=("left", "right"), answer=0, cluster="s0", condition={"hidden": False}),
        Item("b", "gravity", "voe", (Evidence("s1"), Evidence("s2")), ("video",),
             possible=(True, False), cut_s=0.5, cluster="s1"),
        Item("c", "distance", "numeric", (Evidence("clip"),), ("video",), choices=("1", "2"),
             answer=1, numeric=2.5, chance=0.0, cluster="clip", paraphrase=True),
    )  # fmt: skip
    return Suite("small", items, takes | files)


def test_round_trip(tmp_path: Path):
    suite().write(tmp_path / "items.jsonl")
    back = Suite.read(tmp_path / "items.jsonl")
    assert back == suite()
    assert back.sha == suite().sha
    assert back.families == ("left_right", "gravity", "distance")


def edited(path: Path, line: int, **fields: object) -> Path:
    lines = path.read_text().splitlines()
    lines[line] = json.dumps(json.loads(lines[line]) | fields)
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("line", "fields", "why"),
    [
        (0, {"world_version": "0"}, r"line 1: items of world version 0; this is version"),
        (0, {"format": 99}, "line 1: format 99"),
        (-1, {"kolour": 1}, r"line 10: item 'c': unknown \['kolour'\]"),
        (-1, {"score": "often"}, "line 10: item 'c': score='often'"),
        (-1, {"numeric": 2.6}, "changed or cut"),
    ],
)
def test_wrong_files(tmp_path: Path, line: int, fields: dict[str, object], why: str):
    suite().write(tmp_path / "items.jsonl")
    with pytest.raises(ItemError, match=why):
        Suite.read(edited(tmp_path / "items.jsonl", line, **fields))


def test_a_file_that_is_cut_or_empty(tmp_path: Path):
    path = tmp_path / "items.jsonl"
    suite().write(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    with pytest.raises(ItemError, match="changed or cut: its 2 items"):
        Suite.read(path)
    path.write_text("".join(lines)[:-30])
    with pytest.raises(ItemError, match="line 10"):
        Suite.read(path)
    path.write_text("")
    with pytest.raises(ItemError, match="empty"):
        Suite.read(path)


def test_two_items_of_one_name_and_sources_that_are_nowhere():
    whole = suite()
    with pytest.raises(ItemError, match="two items 'a'"):
        Suite("x", (*whole.items, whole.items[0]), whole.sources)
    with pytest.raises(ItemError, match="shows 's0', which is nowhere"):
        Suite("x", whole.items)
