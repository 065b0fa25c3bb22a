"""IntPhys, IntPhys 2, InfLevel, GRASP: sets of clips, scored by surprise."""

from __future__ import annotations

import csv
import json
import shutil
import zipfile
from itertools import product

import numpy as np
import pytest

from mmpredict.probes.external import BenchError, load_bench
from mmpredict.probes.external.inflevel import four_comparisons, permutation_p

from . import layouts
from .scorers import answers, flat

TOLERANCE = 1e-9


def plain_intphys(submitted, reference):
    """The two errors of the challenge's score.py, written anew: a tie in the sums is no error, and
    the absolute error is 1 - the area under the curve, by counting pairs."""
    errors = 0
    pairs = []
    for scene, marks in reference.items():
        sums = [0.0, 0.0]
        for movie, mark in marks.items():
            sums[mark] += submitted[scene][movie]
        errors += sums[1] < sums[0]
    good = [submitted[s][m] for s, marks in reference.items() for m, k in marks.items() if k]
    bad = [submitted[s][m] for s, marks in reference.items() for m, k in marks.items() if not k]
    for a, b in product(good, bad):
        pairs.append(1.0 if a > b else 0.5 if a == b else 0.0)
    return errors / len(reference), 1 - sum(pairs) / len(pairs)


def test_intphys_by_hand(tmp_path):
    """O1: possible 1, 3; O2: 3, 4; O3: 1, 2. Surprise; the less, the more plausible."""
    bench = load_bench("intphys", layouts.intphys(tmp_path))
    ids = [item.id for item in bench.suite.items]
    assert ids == ["O1/0001_O1_dev_occluded_static_nobj1", "O2/0001", "O3/0001"]
    assert bench.suite.items[1].possible == (False, False, True, True)
    said = dict(zip(ids, ([1, 4, 2, 3], [1, 2, 1, 2], [5, 5, 1, 2]), strict=True))
    scored = bench.score(said)
    assert scored["O1_relative_error"] == 0  # 1 + 2 < 4 + 3
    assert scored["O1_absolute_error"] == 0
    assert scored["O2_relative_error"] == 0.5  # 3 against 3
    assert scored["O2_relative_error_official"] == 0  # a tie counts as right
    assert scored["O2_relative_error_strict"] == 1  # or as wrong
    assert scored["O2_absolute_error"] == 0.5
    assert scored["O3_relative_error"] == scored["O3_absolute_error"] == 1
    assert scored["relative_error"] == pytest.approx(1.5 / 3, abs=TOLERANCE)
    assert scored["absolute_error"] == pytest.approx(1.5 / 3, abs=TOLERANCE)
    assert scored["O1_occluded_relative_error"] == 0
    assert not any("visible" in key for key in scored)  # the others' names say nothing of it


def test_intphys_as_the_challenge_scores_it(tmp_path):
    bench = load_bench("intphys", layouts.intphys(tmp_path))
    generator = np.random.default_rng(3)
    for _ in range(20):
        said = {i.id: generator.integers(0, 4, 4).tolist() for i in bench.suite.items}
        scored = bench.score(said)
        for item in bench.suite.items:
            movies = range(4)
            submitted = {item.id: {m: -said[item.id][m] for m in movies}}
            reference = {item.id: {m: int(item.possible[m]) for m in movies}}
            relative, absolute = plain_intphys(submitted, reference)
            assert abs(scored[f"{item.family}_relative_error_official"] - relative) < TOLERANCE
            assert abs(scored[f"{item.family}_absolute_error"] - absolute) < TOLERANCE


def test_a_constant_model_gets_what_each_scorer_makes_of_ties(tmp_path):
    bench = load_bench("intphys", layouts.intphys(tmp_path))
    scored = bench.score(answers(bench, flat))
    assert scored["relative_error_official"] == 0  # the challenge: 100 % right
    assert scored["relative_error_strict"] == 1  # a strict sign on losses: 0 %
    assert scored["relative_error"] == scored["absolute_error"] == 0.5


def test_intphys_answer_zip(tmp_path):
    bench = load_bench("intphys", layouts.intphys(tmp_path / "data"))
    assert bench.notes == ("1 scenes have no status.json: exported, not scored",)
    (secret,) = bench.unlabelled.items
    # a scene of dev has the same name; its pictures are others
    assert secret.id in {item.id for item in bench.suite.items}
    assert "/test/" in bench.unlabelled.sources["O2/0001/1"].images[0]
    assert "/dev/" in bench.suite.sources["O2/0001/1"].images[0]
    (path,) = bench.export("answer", {secret.id: [3.0, 1.0, 2.0, 5.0]}, tmp_path / "out")
    lines = zipfile.ZipFile(path).read("answer.txt").decode().splitlines()
    assert lines == [
        "O2/0001/1 0.5000000000",
        "O2/0001/2 1.0000000000",
        "O2/0001/3 0.7500000000",
        "O2/0001/4 0.0000000000",
    ]
    with pytest.raises(BenchError, match="1 have no answer"):
        bench.export("answer", {}, tmp_path / "out")
    with pytest.raises(BenchError, match="no export 'tsv'; there is answer"):
        bench.export("tsv", {}, tmp_path / "out")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ({"header": {"possible_": True}}, "found header; header: possible_"),
        ({"header": {"is_possible": "yes"}}, "no true or false at header.is_possible"),
        ({"header": {"is_possible": False}}, "a set has two possible movies of four"),
        (None, "3 of 4 movies have a status.json"),
    ],
)
def test_intphys_damage_is_named(tmp_path, status, message):
    layouts.intphys(tmp_path)
    path = tmp_path / "dev" / "O2" / "0001" / "3" / "status.json"
    path.unlink() if status is None else path.write_text(json.dumps(status))
    with pytest.raises(BenchError, match=message):
        load_bench("intphys", tmp_path)


def test_intphys_movie_without_pictures(tmp_path):
    layouts.intphys(tmp_path)
    for path in (tmp_path / "dev" / "O2" / "0001" / "3" / "scene").iterdir():
        path.unlink()
    with pytest.raises(BenchError, match="has no pictures"):
        load_bench("intphys", tmp_path)


@pytest.mark.parametrize(
    ("spelling", "style"),
    [("filename", "{}"), ("name", "{}.mp4"), ("file_name", "Videos/{}.mp4")],
)
def test_intphys2_in_all_spellings(tmp_path, spelling, style):
    bench = load_bench("intphys2", layouts.intphys2(tmp_path, spelling, style))
    assert bench.faults == {}
    assert [item.id for item in bench.suite.items] == [
        "Debug/3/1",
        "Debug/3/2",
        "Main/3/1",
        "Main/3/2",
    ]
    scored = bench.score(
        {"Debug/3/1": [1, 2], "Debug/3/2": [2, 1], "Main/3/1": [1, 1], "Main/3/2": [0, 3]}
    )
    assert scored["Debug_accuracy"] == scored["Debug_accuracy_strict"] == 0.5
    assert scored["Main_accuracy"] == 0.75 and scored["Main_accuracy_strict"] == 0.5
    assert scored["Main_condition_immutability"] == 0.75  # immutability_texture belongs to it
    assert scored["Main_difficulty_hard"] == 0.75 and scored["Debug_difficulty_easy"] == 0.5
    assert scored["Main_camera_moving"] == 0.75 and scored["Debug_camera_fixed"] == 0.5


def test_intphys2_held_out(tmp_path):
    bench = load_bench("intphys2:HeldOut", layouts.intphys2(tmp_path / "data"))
    assert bench.suite.items == ()
    (item,) = bench.unlabelled.items
    (path,) = bench.export("heldout", {item.id: [0.3, 0.1, 0.2]}, tmp_path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [
        {"row_id": "h0", "model_answer": False},
        {"row_id": "h1", "model_answer": True},
        {"row_id": "h2", "model_answer": True},
    ]


def test_intphys2_missing_column_and_half_a_pair(tmp_path):
    layouts.intphys2(tmp_path)
    path = tmp_path / "Main" / "metadata.csv"
    text = path.read_text()
    path.write_text(text.replace("condition", "Condition", 1))
    with pytest.raises(BenchError, match=r"metadata.csv, row 1: no condition; found .*Condition"):
        load_bench("intphys2", tmp_path)
    path.write_text("\n".join(text.splitlines()[:-1]))
    with pytest.raises(BenchError, match="a pair needs both"):
        load_bench("intphys2", tmp_path)
    path.write_text(text.replace("2_Possible", "2_Perhaps"))
    with pytest.raises(BenchError, match="type '2_Perhaps' is not one of 1_Possible"):
        load_bench("intphys2", tmp_path)


def plain_inflevel(rows):
    """The evaluator's count, written anew: for each of two real and two magic trials, wins and half
    the ties, over four times the number of sets."""
    count = 0.0
    for row in rows:
        for real, magic in product(row[:2], row[2:]):
            count += 1.0 if real > magic else 0.5 if real == magic else 0.0
    return count / (4 * len(rows))


def test_inflevel_by_hand_and_as_its_evaluator(tmp_path):
    bench = load_bench("inflevel", layouts.inflevel(tmp_path))
    assert bench.suite.families == ("lab/continuity", "lab/gravity", "sim/solidity")
    assert bench.notes == ("inflevel_lab/gravity: 1 sets lack a trial and are left out",)
    first, second, third = bench.suite.items
    assert [e.source.split("__")[-2] for e in first.evidence] == ["vv", "ii", "iv", "vi"]
    assert [e.source.split("__")[-1] for e in second.evidence] == ["ui", "cv", "uv", "ci"]
    assert third.condition["cover"] == "Bowl_2" and third.condition["obj"] == "Apple_1"
    assert second.condition["cover"] == "bigbluecup" and second.condition["dir"] == ""
    said = {first.id: [1, 3, 2, 3], second.id: [1, 1, 2, 2], third.id: [2, 2, 1, 1]}
    scored = bench.score(said)
    # 1 < 2, 1 < 3, 3 > 2, 3 = 3
    assert scored["lab/continuity_accuracy"] == 2.5 / 4
    assert (scored["lab/gravity_accuracy"], scored["sim/solidity_accuracy"]) == (1, 0)
    assert scored["accuracy"] == pytest.approx((2.5 / 4 + 1) / 3, abs=TOLERANCE)
    generator = np.random.default_rng(0)
    for _ in range(20):
        rows = generator.integers(0, 5, (7, 4)).astype(float)
        assert abs(four_comparisons(rows) - plain_inflevel(rows)) < TOLERANCE


def test_inflevel_permutations(tmp_path):
    """A clear effect in many sets is not due to chance; none at all has p = 1."""
    effect = np.tile([1.0, 0.9, 0.1, 0.0], (20, 1))
    assert max(permutation_p(effect)) < 0.01
    assert permutation_p(np.ones((20, 4))) == (1.0, 1.0)
    two_sided, one_sided = permutation_p(effect[:, ::-1])
    assert two_sided < 0.01 and one_sided > 0.99


def test_inflevel_table(tmp_path):
    bench = load_bench("inflevel", layouts.inflevel(tmp_path / "data"))
    paths = bench.export("tsv", {i.id: [0.5, 1, 2, 3] for i in bench.suite.items}, tmp_path)
    assert [path.name for path in paths] == [
        "lab_continuity.tsv",
        "lab_gravity.tsv",
        "sim_solidity.tsv",
    ]
    rows = list(csv.DictReader(paths[0].open(), delimiter="\t"))
    assert list(rows[0]) == ["camera_loc", "cover", "obj", "trial_type", "dir", "score"]
    assert list(rows[0].values()) == ["center", "darkbluecup", "duck", "vv", "LR", "-0.5"]
    assert "dir" not in next(csv.DictReader(paths[2].open(), delimiter="\t"))


def test_inflevel_names(tmp_path):
    layouts.inflevel(tmp_path)
    stray = tmp_path / "inflevel_lab" / "gravity" / "center__gravity__cup__duck__xx.mp4"
    layouts.put_video(stray)
    with pytest.raises(BenchError, match="trial 'xx' is none of"):
        load_bench("inflevel", tmp_path)
    stray.rename(stray.with_name("center__cup__xx.mp4"))
    with pytest.raises(BenchError, match="expected <camera>__gravity__"):
        load_bench("inflevel", tmp_path)
    (tmp_path / "other").mkdir()
    with pytest.raises(BenchError, match="order the names of cover and object differently"):
        load_bench("inflevel", tmp_path / "other")


def test_grasp_by_hand(tmp_path):
    bench = load_bench("grasp:level2", layouts.grasp(tmp_path))
    assert [i.id for i in bench.suite.items][:2] == ["level2/Gravity/2", "level2/Gravity/10"]
    numbers = [[1, 2], [2, 2], [3, 2], [3, 2]]
    scored = bench.score(dict(zip([i.id for i in bench.suite.items], numbers, strict=True)))
    assert scored["level2/Gravity_accuracy"] == 0.75
    assert scored["level2/ObjectPermanence2_accuracy"] == 0
    assert scored["level2_mean"] == 0.375


def test_grasp_level1_has_a_true_and_a_false_statement(tmp_path):
    bench = load_bench("grasp:level1", layouts.grasp(tmp_path))
    asked = {item.id: (item.question, item.choices[item.answer]) for item in bench.suite.items}
    assert asked["level1/ColorRed/0/true"] == ("Is it so that the ball is red?", "yes")
    assert asked["level1/ColorRed/0/false"] == ("Is it so that the ball is black?", "no")
    # the file says cube,ball,cafe cup,ball: of two objects the last two count
    question, _ = asked["level1/TwoObjectOrdering/0/true"]
    assert question == "Is it so that from left to right there are caf\u00e9 cup, ball?"
    question, _ = asked["level1/TwoObjectOrdering/0/false"]
    assert question == "Is it so that from left to right there are ball, caf\u00e9 cup?"


def test_grasp_video_without_partner(tmp_path):
    layouts.grasp(tmp_path)
    (tmp_path / "level2" / "IP_Gravity" / "10.mp4").unlink()
    with pytest.raises(BenchError, match="2 and 1 found, without a partner: 10.mp4"):
        load_bench("grasp", tmp_path)


def test_a_set_that_cannot_be_read_is_the_worst_of_all_in_the_absolute_error_too(tmp_path):
    """Of O2, 0001 is all right; the possible movies of 0002 count as more surprising than all, the
    impossible ones as less: 4 of 16 pairs are won."""
    layouts.intphys(tmp_path)
    block = tmp_path / "dev" / "O2"
    shutil.copytree(block / "0001", block / "0002")
    (block / "0002" / "1" / "scene" / "scene_003.png").write_bytes(b"rubbish")
    bench = load_bench("intphys:O2", tmp_path / "dev").examined()
    assert list(bench.faults) == ["O2/0002"]
    scored = bench.score({"O2/0001": [1000, 1000, 0, 0]})
    assert scored["O2_absolute_error"] == 0.75
    assert scored["O2_relative_error"] == scored["O2_relative_error_official"] == 0.5
