"""MVP, What'sUp, VSR, bAbI, StepGame, SpartQA, EWoK, CLEVRER, Physion, CATER: questions."""

from __future__ import annotations

import json

import pytest
import torch

from mmpredict.probes.external import BenchError, load_bench
from mmpredict.probes.external.agreement import average_precision, cohens_kappa, macro_f1
from mmpredict.probes.external.cater import distance, mean_average_precision, places, readout_score
from mmpredict.probes.external.clevrer import motion
from mmpredict.probes.external.physion import readout

from . import layouts
from .scorers import answers, flat, right

TOLERANCE = 1e-9
WIN, LOSE = [1.0, 0.0], [0.0, 1.0]


def said(bench, *rows):
    return dict(zip([item.id for item in bench.suite.items], rows, strict=True))


def test_mvp_by_hand(tmp_path):
    """Two pairs: one right and one wrong; both right."""
    bench = load_bench("mvp", layouts.mvp(tmp_path / "data"))
    numbers = said(bench, WIN, WIN, WIN, LOSE)
    scored = bench.score(numbers)
    assert scored["intuitive_physics_single_accuracy"] == 0.5
    assert scored["intuitive_physics_pair_accuracy"] == 0
    assert scored["temporal_reasoning_pair_accuracy"] == 1
    assert scored["single_accuracy"] == 0.75 and scored["pair_accuracy"] == 0.5
    paths = bench.export("leaderboard", numbers, tmp_path / "out")
    assert [path.name for path in paths] == [
        "mvp_intuitive_physics.jsonl",
        "mvp_temporal_reasoning.jsonl",
    ]
    first, second = (json.loads(line) for line in paths[1].read_text("utf-8").splitlines())
    assert first["row_id"] == "temporal_reasoning_7_0"
    assert second["model_answer"] == "no \u2013 it stays"


def test_mvp_pairs_and_candidates(tmp_path):
    layouts.mvp(tmp_path)
    path = tmp_path / "intuitive_physics" / "full.jsonl"
    lines = path.read_text("utf-8").splitlines()
    path.write_text(lines[0], "utf-8")
    with pytest.raises(BenchError, match=r"pairs need two rows each.*intuitive_physics_7 \(1\)"):
        load_bench("mvp", tmp_path)
    path.write_text("\n".join([lines[0], lines[1].replace('"answer": "no', '"answer": "na')]))
    with pytest.raises(BenchError, match="is not among the candidates"):
        load_bench("mvp", tmp_path)
    path.write_text("\n".join([lines[0], "{nonsense"]), "utf-8")
    with pytest.raises(BenchError, match="full.jsonl: line 2"):
        load_bench("mvp", tmp_path)


def plain_whatsup(rows):
    """Individual, pair and set of the paper for (object pair, preposition, right or not)."""
    table = {}
    for pair, preposition, correct in rows:
        table.setdefault(pair, {})[preposition] = correct
    pairs = sum(row["left"] and row["right"] for row in table.values()) + sum(
        row["on"] and row["under"] for row in table.values()
    )
    whole = sum(all(row.values()) for row in table.values())
    return sum(r[2] for r in rows) / len(rows), pairs / (len(rows) / 2), whole / (len(rows) / 4)


@pytest.mark.parametrize("wrong", [(), (0,), (0, 1), (0, 2), (3,), (0, 1, 2, 3)])
def test_whatsup_as_the_paper_scores_it(tmp_path, wrong):
    bench = load_bench("whatsup:A", layouts.whatsup(tmp_path))
    numbers = {
        item.id: [0, 1, 0, 0] if k in wrong else [1, 0, 0, 0]
        for k, item in enumerate(bench.suite.items)
    }
    scored = bench.score(numbers)
    names = ("left", "right", "on", "under")
    plain = plain_whatsup([("mug", name, k not in wrong) for k, name in enumerate(names)])
    got = [scored[f"A_{key}"] for key in ("accuracy", "pair_accuracy", "set_accuracy")]
    assert got == pytest.approx(plain, abs=TOLERANCE)


def test_whatsup_a_constant_model_is_a_guess(tmp_path):
    """The first option is always right, so that an argmax over ties gives 100 %."""
    bench = load_bench("whatsup", layouts.whatsup(tmp_path))
    assert {item.answer for item in bench.suite.items} == {0}
    scored = bench.score(answers(bench, flat))
    assert scored["A_accuracy"] == 0.25 and scored["A_pair_accuracy"] == 0.0625
    assert scored["B_set_accuracy"] == 0.25**4
    assert scored["coco_qa_two_obj_accuracy"] == scored["vg_qa_one_obj_accuracy"] == 0.5
    assert scored["coco_qa_two_obj_left"] == 0.5 and scored["vg_qa_one_obj_top"] == 0.5
    assert scored["B_in-front"] == 0.25


def test_whatsup_a_set_that_lacks_a_picture_cannot_be_right(tmp_path):
    """Three of four: one pair is whole; shares are of N/2 and N/4 as published."""
    layouts.whatsup(tmp_path)
    path = tmp_path / "controlled_images_dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:3]))
    bench = load_bench("whatsup:A", tmp_path)
    scored = bench.score(answers(bench))
    assert scored["A_pair_accuracy"] == pytest.approx(1 / 1.5, abs=TOLERANCE)
    assert scored["A_set_accuracy"] == 0


def test_whatsup_names_and_options(tmp_path):
    layouts.whatsup(tmp_path)
    path = tmp_path / "controlled_images_dataset.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([{"image": rows[0]["image_path"], "caption_options": []}]))
    with pytest.raises(BenchError, match=r"row 0: no image_path; found image, caption_options"):
        load_bench("whatsup", tmp_path)
    rows[1]["image_path"] = "data/controlled_images/mug_beside_table.jpeg"
    path.write_text(json.dumps(rows))
    with pytest.raises(BenchError, match="mug_beside_table.jpeg' is not <object>_<preposition>_"):
        load_bench("whatsup", tmp_path)


def test_vsr_counts_a_missing_picture_as_wrong(tmp_path):
    """Labels 1, 0, 1, 0; the last picture is not there."""
    bench = load_bench("vsr:zeroshot", layouts.vsr(tmp_path))
    last = bench.suite.items[3].id
    assert list(bench.faults) == [last] and "000000000003.jpg is missing" in bench.faults[last]
    scored = bench.score(answers(bench))
    assert scored["zeroshot_accuracy"] == 0.75 and scored["data_errors"] == 1
    assert scored["zeroshot_relation_left of"] == 0.5
    # a relation in two categories belongs to the later one, as in the authors' script
    assert scored["zeroshot_category_Unallocated"] == 1
    assert scored["zeroshot_category_Projective"] == 0.5
    assert bench.notes == ()
    assert [i.choices[i.answer] for i in bench.suite.items] == ["True", "False", "True", "False"]
    third = load_bench("vsr", tmp_path).suite.items[2]
    assert third.question == "The caf\u00e9, old, is among the cow. True or false?"


def test_vsr_without_categories_says_so(tmp_path):
    layouts.vsr(tmp_path)
    (tmp_path / "analysis_scripts" / "rel_meta_category_dict.txt").unlink()
    bench = load_bench("vsr", tmp_path)
    assert bench.notes == ("no category for 3 relations: among, left of, touching",)
    path = tmp_path / "splits" / "zeroshot" / "test.jsonl"
    path.write_text(path.read_text("utf-8").replace('"label": 0', '"label": 2'), "utf-8")
    with pytest.raises(BenchError, match="row 2: label 2 is not 0 or 1"):
        load_bench("vsr", tmp_path)


def test_babi_stories_and_clusters(tmp_path):
    bench = load_bench("babi", layouts.babi(tmp_path))
    first, second, third, path = bench.suite.items
    assert first.cluster == second.cluster != third.cluster
    assert first.evidence[0].told[1] == "Caf\u00e9, the square, is above it."
    assert third.evidence[0].told == ("The red sphere is below the box.",)
    assert (first.choices[first.answer], path.choices[path.answer]) == ("yes", "s,e")
    assert len(path.choices) == 12 and "n,s" not in path.choices and "n,n" in path.choices
    scored = bench.score(said(bench, WIN, LOSE, LOSE, right(path)))
    assert scored["qa17_accuracy"] == pytest.approx(2 / 3, abs=TOLERANCE)
    assert scored["accuracy"] == pytest.approx(5 / 6, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Is it?\tyes\t1", "line 1: 'Is it.*is not '<number> <sentence>'"),
        ("1 Is it?\tperhaps\t1", "line 1: answer 'perhaps' is none of yes, no"),
        ("1 Is it?\t\t1", "line 1: a question needs an answer"),
    ],
)
def test_babi_damage_is_named(tmp_path, line, message):
    layouts.put(tmp_path / "qa17_positional-reasoning_test.txt", line)
    with pytest.raises(BenchError, match=message):
        load_bench("babi", tmp_path)


def test_stepgame_in_both_forms(tmp_path):
    bench = load_bench("stepgame", layouts.stepgame(tmp_path / "a"))
    numbers = answers(bench)
    wrong = next(item.id for item in bench.suite.items if item.family == "k10")
    numbers[wrong] = [-v for v in numbers[wrong]]
    scored = bench.score(numbers)
    assert [k for k in scored if k.startswith("k")] == ["k1_accuracy", "k10_accuracy"]
    assert (scored["k1_accuracy"], scored["k10_accuracy"], scored["accuracy"]) == (1, 0.5, 0.75)
    path = tmp_path / "a" / "TrainVersion" / "qa1_test.json"
    layouts.put(path.with_name("qa2_test.json"), path.read_text())
    more = load_bench("stepgame", tmp_path / "a")
    hops = [key for key in more.score(answers(more)) if key.startswith("k")]
    assert hops == ["k1_accuracy", "k2_accuracy", "k10_accuracy"]
    rows = load_bench("stepgame", layouts.stepgame_rows(tmp_path / "b"))
    assert [item.family for item in rows.suite.items] == ["k1", "k1", "k10"]
    path.write_text(path.read_text().replace("overlap", "beside"))
    with pytest.raises(BenchError, match="label 'beside' is none of left, right"):
        load_bench("stepgame", tmp_path / "a")


def test_parquet_rows(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    layouts.stepgame_rows(tmp_path)
    path = tmp_path / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test-00000.parquet")
    assert len(load_bench("stepgame", tmp_path).suite.items) == 3


def test_spartqa_by_hand(tmp_path):
    bench = load_bench("spartqa", layouts.spartqa(tmp_path))
    numbers = answers(bench)
    # of the blocks with a square A, C are said, as is right; of those with a star one is said
    star = [i.id for i in bench.suite.items if i.group == "test/0/2"]
    assert len(star) == 3 and all(bench.suite.items[0].id != name for name in star)
    numbers[star[0]] = WIN
    # yes/no: "Is it below?" is answered with yes
    below = next(i.id for i in bench.suite.items if i.question == "Is it below?")
    numbers[below] = [1.0, 0.0, 0.0]
    scored = bench.score(numbers)
    assert scored["FB_accuracy"] == pytest.approx(2 / 3, abs=TOLERANCE)
    assert scored["FR_accuracy"] == scored["CO_accuracy"] == 1
    assert scored["YN_accuracy"] == 0.5
    # yes: said 2, true 1, both 1 -> 2/3; no: 0; DK: 0
    assert scored["YN_macro_f1"] == pytest.approx(2 / 9, abs=TOLERANCE)


def test_spartqa_answers_that_are_no_candidates(tmp_path):
    layouts.spartqa(tmp_path)
    path = tmp_path / "test.json"
    path.write_text(path.read_text().replace('["B"]', '["Z"]'))
    with pytest.raises(BenchError, match="answer 'Z' is none of the candidates"):
        load_bench("spartqa", tmp_path)


def test_ewok_by_hand(tmp_path):
    """Numbers: both targets after context 1, then after context 2."""
    bench = load_bench("ewok", layouts.ewok(tmp_path))
    assert bench.suite.families == ("physical-dynamics", "spatial-relations")
    both, one, tie = [-1, -3, -2, -2], [-1, -3, -2, -3.5], [-1, -1, -1, -1]
    scored = bench.score(said(bench, both, one, tie))
    assert scored["physical-dynamics_accuracy"] == 1
    assert scored["spatial-relations_accuracy"] == 0.5  # one of two, and a tie
    assert scored["accuracy"] == pytest.approx(2 / 3, abs=TOLERANCE) and scored["macro"] == 0.75
    assert scored["accuracy_strict"] == 0.5
    assert len(load_bench("ewok:spatial-relations", tmp_path).suite.items) == 2


def test_ewok_missing_column(tmp_path):
    layouts.ewok(tmp_path)
    path = tmp_path / "spatial-relations.jsonl"
    path.write_text(path.read_text("utf-8").replace("Target2", "target_2"), "utf-8")
    message = "spatial-relations.jsonl, row 1: no Target2; found Domain.*target_2.*expected Domain"
    with pytest.raises(BenchError, match=message):
        load_bench("ewok", tmp_path)


def test_clevrer_by_hand(tmp_path):
    """Explanatory: wrong, correct, wrong; predictive: none is correct; counterfactual: both are."""
    bench = load_bench("clevrer", layouts.clevrer(tmp_path))
    numbers = answers(bench)
    rows = {item.id: item for item in bench.suite.items}
    right_words = [rows[f"10000/1/{k}"].choices[rows[f"10000/1/{k}"].answer] for k in range(3)]
    assert right_words == ["no", "yes", "no"]
    assert rows["10000/2/0"].question == "What, then? The caf\u00e9, 0?"
    numbers["10000/1/0"] = WIN  # an option too many
    scored = bench.score(numbers)
    assert scored["descriptive_accuracy"] == 1
    assert scored["explanatory_per_option"] == pytest.approx(2 / 3, abs=TOLERANCE)
    assert scored["explanatory_per_question"] == 0
    assert scored["predictive_per_question"] == scored["counterfactual_per_question"] == 1
    assert scored["per_option"] == pytest.approx(6 / 7, abs=TOLERANCE)
    assert scored["per_question"] == pytest.approx(2 / 3, abs=TOLERANCE)
    assert bench.score(answers(bench, flat))["predictive_per_question"] == 0.25


def test_clevrer_motion(tmp_path):
    layouts.clevrer(tmp_path)
    path = tmp_path / "annotation_validation" / "annotation_10000.json"
    assert motion(path) == {
        0: [(0.0, (1.0, 2.0, 0.2), (0.5, 0.0, 0.0)), (5.0, (2.0, 2.0, 0.2), (0.5, 0.0, 0.0))]
    }
    path.write_text(path.read_text().replace("motion_trajectory", "motion"))
    with pytest.raises(BenchError, match="no motion_trajectory; found scene_index"):
        motion(path)


def test_clevrer_test_questions_have_no_answers(tmp_path):
    layouts.clevrer(tmp_path)
    path = tmp_path / "validation.json"
    path.write_text(path.read_text().replace('"answer": "correct"', '"Answer": "correct"'))
    with pytest.raises(BenchError, match="test set has no answers.: no answer; found choice_id"):
        load_bench("clevrer", tmp_path)


def test_physion_by_hand(tmp_path):
    """Labels True, False, True; people right with 0.9, 0.2, 0.7: they say True, True, True."""
    bench = load_bench("physion", layouts.physion(tmp_path))
    assert bench.notes == ("1 clips have no label: pilot_drop_9999",)
    said_of = {item.id: item.choices[item.answer] for item in bench.suite.items}
    assert [said_of[f"pilot_collide_000{k}"] for k in range(3)] == ["yes", "no", "yes"]
    assert list(bench.faults) == ["pilot_drop_0003"]  # a label without a clip counts as wrong
    scored = bench.score(answers(bench))
    assert scored["collide_accuracy"] == 1 and scored["drop_accuracy"] == 0.75
    assert scored["accuracy"] == 0.875 and scored["data_errors"] == 1
    one = load_bench("physion:collide", tmp_path)
    numbers = said(one, WIN, LOSE, WIN)
    # one judge says T F T, people T T T: agreement 2/3, by chance 2/3
    assert one.score(numbers)["kappa_people"] == pytest.approx(0, abs=TOLERANCE)


def test_physion_readout(tmp_path):
    """Features that carry the outcome are read out; a table of noise is not."""
    bench = load_bench("physion", layouts.physion(tmp_path))
    labels = bench.labels_for_training()
    assert sorted(set(labels.split.values())) == ["test", "train"] and labels.classes == 2
    generator = torch.Generator().manual_seed(0)
    features = {}
    for name, (label,) in labels.labels.items():
        row = torch.randn(6, generator=generator)
        row[0] = 4.0 * label + 0.1 * row[0]
        features[name] = row
    scored = readout(bench, features)
    assert scored["collide_accuracy"] == 1 and scored["drop_accuracy"] == 0.75
    turned = {n: f.clone() for n, f in features.items()}
    for name, row in turned.items():
        row[0] = row[0] if labels.split[name] == "train" else 4.0 - row[0]
    assert readout(bench, turned)["collide_accuracy"] == 0
    del features["pilot_drop_0000"]
    with pytest.raises(BenchError, match="1 clips have no features, first 'pilot_drop_0000'"):
        readout(bench, features)


def test_physion_without_readout_clips(tmp_path):
    layouts.physion(tmp_path)
    (tmp_path / "readout_labels.csv").unlink()
    bench = load_bench("physion", tmp_path)
    features = {name: torch.ones(2) for name in bench.labels_for_training().labels}
    with pytest.raises(BenchError, match="collide has 0 readout clips, needs 4 of each"):
        readout(bench, features)


def plain_average_precision(scores, labels):
    """Precision at every hit, averaged; for scores without ties."""
    order = sorted(range(len(scores)), key=lambda k: scores[k], reverse=True)
    hits = [sum(labels[j] for j in order[: k + 1]) / (k + 1) for k in range(len(order))]
    return sum(h for h, k in zip(hits, order, strict=True) if labels[k]) / sum(labels)


def test_average_precision_kappa_and_f1():
    assert average_precision([3, 2, 1], [True, False, True]) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([1, 1, 1, 1], [True, False, False, False]) == 0.25
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        scores = torch.rand(9, generator=generator).tolist()
        labels = [True, *(torch.rand(8, generator=generator) < 0.4).tolist()]
        plain = plain_average_precision(scores, labels)
        assert abs(average_precision(scores, labels) - plain) < TOLERANCE
    assert cohens_kappa([1, 1, 0, 0], [1, 0, 0, 0]) == pytest.approx(0.5, abs=TOLERANCE)
    assert cohens_kappa([1, 0], [1, 0]) == 1 and cohens_kappa([1, 0], [0, 1]) == -1
    assert macro_f1([0, 0, 1], [0, 1, 1], range(3)) == pytest.approx(4 / 9, abs=TOLERANCE)


def test_cater_places_by_hand():
    """Cells of a 6 x 6 grid: 0 is a corner, 35 the opposite one, 7 its inner neighbour."""
    assert (distance(0, 35, 6), distance(0, 7, 6), distance(14, 14, 6)) == (10, 2, 0)
    assert distance(1, 6, 6) == 2 and distance(1, 18, 6) == 4
    first = [float(k == 0) for k in range(36)]
    ranked = [float(-k) for k in range(36)]
    scored = places([first, first, ranked], [0, 35, 4], 6)
    assert scored["top1"] == pytest.approx(1 / 3, abs=TOLERANCE)
    # 35 is tied with 34 others for places 2 to 5; 4 is the fifth
    assert scored["top5"] == pytest.approx((1 + 4 / 35 + 1) / 3, abs=TOLERANCE)
    assert scored["l1"] == pytest.approx((0 + 10 + 4) / 3, abs=TOLERANCE)
    flat_row = places([[0.0] * 36], [0], 6)
    assert flat_row["top1"] == pytest.approx(1 / 36) and flat_row["top5"] == pytest.approx(5 / 36)


def test_cater_tasks(tmp_path):
    layouts.cater(tmp_path)
    actions = load_bench("cater", tmp_path)
    assert [i.answer for i in actions.suite.items[:4]] == [0, 1, 1, 0]  # classes 0, 3, 13
    where = load_bench("cater:localize", tmp_path)
    item = where.suite.items[0]
    assert item.choices[item.answer] == "row 6, column 6"
    assert where.score(answers(where)) | {} == {
        "top1": 1,
        "top5": 1,
        "l1": 0,
        "items": 2,
        "data_errors": 0,
    }
    orders = load_bench("cater:actions_order_uniq", tmp_path)
    assert orders.suite.items == () and "use the readout" in orders.notes[0]
    labels = orders.labels_for_training()
    scores = {
        name: [float(k in shown) for k in range(301)] for name, shown in labels.labels.items()
    }
    assert readout_score(orders, scores) == {"mAP": 1}
    assert mean_average_precision([[1, 0], [0, 1]], [(0,), (0,)]) == 1
    with pytest.raises(BenchError, match="2 clips lack 301 scores"):
        readout_score(orders, {})


def test_cater_damage_is_named(tmp_path):
    layouts.cater(tmp_path)
    path = tmp_path / "lists" / "localize" / "val.txt"
    for line in ("video.avi 36", "video.avi", "video.avi a,b"):
        path.write_text(line)
        with pytest.raises(BenchError, match="val.txt, line 1: .* classes from 0 to 35"):
            load_bench("cater:localize", tmp_path)
