"""The table and the page show every number of results.json and nothing else."""

import re

from mmpredict.probes import page, table
from mmpredict.probes.summary import summarise
from tests.probes.test_summary import rows


def results() -> dict:
    mine = [row | {"variant": v} for v in ("text", "video") for row in rows(0.9)]
    mine += [row | {"variant": "video"} for row in rows(0.5, family="<pick>&up", scenes=10)]
    mine += [row | {"score": None, "error": "gone"} for row in rows(0.5, family="broken", scenes=1)]
    untrained = [row | {"variant": "video"} for row in rows(0.5, seed=1)]
    about = {"suite": "small", "suite_sha": "0" * 64, "world_version": "1", "model": "none"}
    return {"about": about, "variants": summarise(mine, {"untrained": untrained})}


def test_markdown_has_a_row_for_every_family_and_all_rows_have_the_same_cells():
    found = results()
    lines = table.markdown(found).splitlines()
    rows_of = [line for line in lines if line.startswith("|")]
    for variant in found["variants"].values():
        for family in variant["families"]:
            assert any(line.startswith(f"| {family} |") for line in rows_of)
    per_table = re.findall(r"(?:^\|.*\n)+", table.markdown(found), re.M)
    assert len(per_table) == 2
    for one in per_table:
        assert len({line.count("|") for line in one.splitlines()}) == 1
    score = found["variants"]["video"]["families"]["left_right"]["score"]
    assert f"{score:.3f}" in table.markdown(found)
    assert "could not be asked" in table.markdown(found)


def test_page_is_escaped_and_shows_points_chance_and_baselines():
    found = results()
    text = page.section(found)
    assert "<pick>" not in text and "&lt;pick&gt;&amp;up" in text
    assert text.count("<circle") == 2 + 3  # the legend's two, and three families with a score
    assert text.count(">x<") == 1  # the mark of the only baseline, where it was asked
    assert "above chance and untrained" in text


def test_points_stand_where_the_numbers_are():
    found = results()
    entry = found["variants"]["text"]["families"]["left_right"]
    x = page.LEFT + (page.WIDTH - page.LEFT) * entry["score"]
    assert f'cx="{x}"' in page.plot({"text": found["variants"]["text"]})
