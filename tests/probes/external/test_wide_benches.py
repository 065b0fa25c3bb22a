"""VLMEvalKit's tables, VSI-Bench, SpatialSoundQA."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from mmpredict.media import read_clip
from mmpredict.probes.external import BenchError, load_bench
from mmpredict.probes.external.spatialsoundqa import distance_accuracy, doa_errors
from mmpredict.probes.grading import mean_relative_accuracy

from . import layouts
from .scorers import answers, flat, right

TOLERANCE = 1e-9


def test_tsv_pictures_and_groups(tmp_path):
    """Of AA the plain row is right, the turned one wrong, both mirrored ones right."""
    bench = load_bench("vlmevalkit_tsv:3DSRBench", layouts.vlmevalkit_tsv(tmp_path))
    first, turned, *_, pictures = bench.suite.items
    sources = bench.suite.sources
    assert sources[turned.id].images == sources[first.id].images  # its cell names row 0
    assert len(sources[pictures.id].images) == 2 and bench.examined().faults == {}
    numbers = answers(bench)
    numbers[turned.id] = [-v for v in numbers[turned.id]]
    scored = bench.score(numbers)
    assert scored["3DSRBench_accuracy"] == 1  # of rows that are neither turned nor mirrored
    assert scored["3DSRBench_circular"] == 0.5  # AA is lost, BB won
    assert scored["3DSRBench_flip"] == 1
    assert scored["3DSRBench_circular_flip"] == 0.5
    assert scored["3DSRBench_place"] == scored["3DSRBench_order"] == 1


def test_tsv_yes_and_no_and_copies_by_index(tmp_path):
    bench = load_bench("vlmevalkit_tsv:YesNo", layouts.vlmevalkit_tsv(tmp_path))
    first, copy = bench.suite.items
    assert first.choices == ("yes", "no") and (first.answer, copy.answer) == (0, 1)
    assert first.group == copy.group == "YesNo/15"
    scored = bench.score({first.id: right(first), copy.id: [1.0, 0.0]})
    assert scored["YesNo_accuracy"] == 1 and scored["YesNo_circular"] == 0


def test_tsv_damage_is_counted_or_named(tmp_path):
    layouts.vlmevalkit_tsv(tmp_path)
    path = tmp_path / "3DSRBench.tsv"
    text = path.read_text("utf-8")
    path.write_text(text.replace("1\t0\t", "1\t77\t", 1), "utf-8")
    bench = load_bench("vlmevalkit_tsv:3DSRBench", tmp_path)
    assert "image refers to row 77, which is not there" in bench.faults["3DSRBench/1"]
    assert bench.score(answers(bench))["3DSRBench_circular"] == 0.5
    lines = text.splitlines()
    bad = lines[0] + "\n" + "\t".join(["0", "!" * 99, *lines[1].split("\t")[2:]])
    path.write_text(bad, "utf-8")
    assert "not base64" in load_bench("vlmevalkit_tsv:3DSRBench", tmp_path).faults["3DSRBench/0"]
    path.write_text("\n".join([*lines, lines[1]]), "utf-8")
    with pytest.raises(BenchError, match="6 rows have only 5 different indexes"):
        load_bench("vlmevalkit_tsv", tmp_path)
    path.write_text(text.replace("\tA\tplace", "\tG\tplace"), "utf-8")
    with pytest.raises(BenchError, match=r"row 0: answer 'G' is none of \['left', 'right'\]"):
        load_bench("vlmevalkit_tsv", tmp_path)


def plain_mra(said: float, truth: float) -> float:
    """1/10 of the thresholds .50, .55 ... .95 at which the relative error is below 1 - t."""
    count = 0
    for t in range(50, 100, 5):
        count += 100 * abs(said - truth) < (100 - t) * abs(truth)
    return count / 10


def test_vsi_by_hand(tmp_path):
    """Counts 4, 5, 10, 0, chosen from 0, 4, 5, 10: 5 said for 4 errs by .25, so five of the ten
    thresholds hold with a strict sign (.50 to .70), six if equal is enough (.75)."""
    bench = load_bench("vsibench", layouts.vsibench(tmp_path))
    counts = [item for item in bench.suite.items if item.family == "object_counting"]
    assert counts[0].choices == ("0", "4", "5", "10")
    numbers = answers(bench)
    numbers[counts[0].id] = [0, 0, 1, 0]
    scored = bench.score(numbers)
    assert mean_relative_accuracy(5, 4) == plain_mra(5, 4) == 0.5
    assert scored["object_counting_accuracy"] == pytest.approx((0.5 + 3) / 4, abs=TOLERANCE)
    assert scored["tasks"] == 3 and scored["ceiling"] == 1
    assert scored["overall"] == pytest.approx((2 + 3.5 / 4) / 3, abs=TOLERANCE)
    assert scored["overall_or_equal"] == pytest.approx((2 + 3.6 / 4) / 3, abs=TOLERANCE)
    # of 0 dogs everything but 0 is wholly wrong, and nothing is divided by it
    numbers[counts[3].id] = [0, 1, 0, 0]
    worse = bench.score(numbers)
    assert worse["object_counting_accuracy"] == pytest.approx(2.5 / 4, abs=TOLERANCE)
    assert all(math.isfinite(value) for value in worse.values())


def test_vsi_direction_is_one_task_of_three_degrees(tmp_path):
    bench = load_bench("vsibench", layouts.vsibench(tmp_path))
    hard = next(i for i in bench.suite.items if i.family.endswith("hard"))
    assert hard.choices == ("front-left", "back", "right") and hard.answer == 2
    numbers = answers(bench)
    numbers[hard.id] = [1, 0, 0]
    scored = bench.score(numbers)
    assert scored["object_rel_direction_accuracy"] == 0.5
    assert scored["overall"] == pytest.approx((0.5 + 1 + 1) / 3, abs=TOLERANCE)
    assert bench.score(answers(bench, flat))["object_rel_direction_hard_accuracy"] == 1 / 3


def test_vsi_many_numbers_are_thinned_and_the_ceiling_says_so(tmp_path):
    layouts.vsibench(tmp_path)
    path = tmp_path / "test.jsonl"
    row = json.loads(path.read_text("utf-8").splitlines()[3])
    rows = [{**row, "id": k, "ground_truth": str(k + 1)} for k in range(200)]
    path.write_text("\n".join(map(json.dumps, rows)))
    bench = load_bench("vsibench", tmp_path)
    assert {len(item.choices) for item in bench.suite.items} == {32}
    scored = bench.score(answers(bench))
    assert 0.8 < scored["ceiling"] < 1
    assert scored["object_counting_accuracy"] == pytest.approx(scored["ceiling"], abs=TOLERANCE)


def test_vsi_unknown_type_and_option(tmp_path):
    layouts.vsibench(tmp_path)
    path = tmp_path / "test.jsonl"
    text = path.read_text("utf-8")
    path.write_text(text.replace("obj_appearance_order", "obj_order"), "utf-8")
    with pytest.raises(BenchError, match="unknown question_type obj_order"):
        load_bench("vsibench", tmp_path)
    path.write_text(text.replace('"ground_truth": "C"', '"ground_truth": "D"'), "utf-8")
    with pytest.raises(BenchError, match="ground_truth 'D' is none of the options"):
        load_bench("vsibench", tmp_path)


def test_sound_scenes_are_rendered_for_two_ears(tmp_path):
    """The response of room 0 gives the left ear the sound at once and the right ear a quarter of
    it 20 samples later; -14 dBFS before that."""
    bench = load_bench("spatialsoundqa", layouts.spatialsoundqa(tmp_path))
    assert bench.faults == {} and "CLASSIFICATION (1 answers)" in bench.notes[0]
    first = bench.suite.items[0]
    clip = read_clip(bench.suite.sources[first.evidence[0].source].audio)
    left, right_ = clip.waveform_CS.double().numpy()
    assert clip.waveform_CS.shape == (2, 320_000) and clip.sample_rate == 32_000
    second = slice(4_000, 28_000)  # of the one second that sounds
    level = 20 * np.log10(np.sqrt(np.mean(left[second] ** 2)))
    assert level == pytest.approx(-14, abs=0.1)
    assert np.abs(right_[4_020:28_020] - 0.25 * left[second]).max() < 1e-3
    assert np.abs(left[40_000:]).max() < 1e-3


def test_two_sources_are_averaged(tmp_path):
    bench = load_bench("spatialsoundqa", layouts.spatialsoundqa(tmp_path))
    names = [item.evidence[0].source for item in bench.suite.items]
    one, other, both, _ = (read_clip(bench.suite.sources[name].audio).waveform_CS for name in names)
    assert (both - (one + other) / 2).abs().max() < 1e-3


def test_a_missing_sound_counts_as_wrong(tmp_path):
    layouts.spatialsoundqa(tmp_path)
    (tmp_path / "audioset" / "eval" / "b.wav").unlink()
    bench = load_bench("spatialsoundqa", tmp_path)
    assert len(bench.faults) == 3 and all("b.wav" in why for why in bench.faults.values())
    assert bench.score(answers(bench))["accuracy"] == 0.25


def test_directions_and_distances_by_hand():
    """(azimuth, elevation): 90 degrees apart on the horizon; the pole and the horizon; the same."""
    said, truth = [(0, 0), (10, 90), (30, 30)], [(90, 0), (200, 80), (30, 30)]
    errors = doa_errors(said, truth)
    assert errors["doa_mae"] == pytest.approx((90 + 10 + 0) / 3, abs=1e-6)
    assert errors["er20"] == pytest.approx(1 / 3, abs=TOLERANCE)
    assert distance_accuracy([1.0, 2.0, 3.0], [1.5, 2.6, 3.0]) == pytest.approx(2 / 3)
