"""Laws of all adapters, on folders in the published layouts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmpredict.probes.external import BENCHES, BenchError, load_bench
from mmpredict.probes.items import Suite

from .layouts import BUILDERS
from .scorers import answers, flat, right

COUNTS = {  # items of each folder in `layouts`, counted by hand
    "intphys": 3,
    "intphys2": 4,
    "inflevel": 3,
    "grasp": 4 + 6,
    "mvp": 4,
    "whatsup": 4 + 4 + 2 + 1,
    "vsr": 4,
    "babi": 4,
    "stepgame": 4,
    "spartqa": 1 + 3 + 3 + 1 + 8 + 1 + 2,
    "ewok": 3,
    "clevrer": 1 + 3 + 2 + 2,
    "physion": 7,
    "cater": 2 * 14,
    "vlmevalkit_tsv": 5 + 2,
    "vsibench": 7,
    "spatialsoundqa": 4,
}
# published ceiling and chance of the headline
HEADLINES = {
    "intphys": ("relative_error", 0.0, 0.5),
    "intphys2": ("Main_accuracy", 1.0, 0.5),
    "inflevel": ("accuracy", 1.0, 0.5),
    "grasp": ("level2_mean", 1.0, 0.5),
    "mvp": ("pair_accuracy", 1.0, 0.25),
    "whatsup": ("A_set_accuracy", 1.0, 0.25**4),
    "babi": ("qa19_accuracy", 1.0, 1 / 12),
    "stepgame": ("k10_accuracy", 1.0, 1 / 9),
    "ewok": ("macro", 1.0, 0.5),
    "clevrer": ("per_option", 1.0, 0.5),
    "spartqa": ("YN_accuracy", 1.0, 1 / 3),
    "cater": ("mAP", 1.0, None),
    "vlmevalkit_tsv": ("3DSRBench_circular_flip", 1.0, (0.5**4 + 0.5) / 2),
    "vsibench": ("object_rel_direction_accuracy", 1.0, (1 / 2 + 1 / 3) / 2),
    "spatialsoundqa": ("accuracy", 1.0, 0.5),
}


@pytest.fixture(params=BUILDERS)
def name(request):
    return request.param


def test_count_and_names(name, tmp_path):
    bench = load_bench(name, BUILDERS[name](tmp_path))
    assert len(bench.suite.items) == COUNTS[name]
    assert bench.name == name
    for item in bench.asked:
        for evidence in item.evidence:
            assert evidence.source or evidence.told
    again = load_bench(name, tmp_path)
    assert again.suite.sha == bench.suite.sha


def test_the_sum_is_of_what_is_asked_not_of_where_it_lies(name, tmp_path):
    sums = [load_bench(name, BUILDERS[name](tmp_path / k)).suite.sha for k in ("here", "there/in")]
    assert sums[0] == sums[1]
    other = load_bench(name, tmp_path / "here").suite
    source = next(iter(other.sources), "")
    if source:
        renamed = replace(other.sources[source], video=str(tmp_path / "here" / "other.mp4"))
        assert replace(other, sources={**other.sources, source: renamed}).sha != sums[0]


def test_suite_is_written_and_read(name, tmp_path):
    suite = load_bench(name, BUILDERS[name](tmp_path / "data")).suite
    suite.write(tmp_path / "suite.jsonl")
    assert Suite.read(tmp_path / "suite.jsonl") == suite


@pytest.mark.parametrize("name", HEADLINES)
def test_oracle_is_the_ceiling_and_constant_is_chance(name, tmp_path):
    bench = load_bench(name, BUILDERS[name](tmp_path))
    key, ceiling, chance = HEADLINES[name]
    assert bench.score(answers(bench))[key] == pytest.approx(ceiling, abs=1e-12)
    if chance is not None:
        assert bench.score(answers(bench, flat))[key] == pytest.approx(chance, abs=1e-12)


def test_wrong_everywhere_is_the_floor(tmp_path):
    for name in HEADLINES.keys() - {"cater"}:
        bench = load_bench(name, BUILDERS[name](tmp_path / name))
        key, ceiling, _ = HEADLINES[name]
        backwards = bench.score(answers(bench, lambda item: [-v for v in right(item)]))
        assert backwards[key] == pytest.approx(1 - ceiling, abs=1e-12), name


def test_an_unreadable_file_counts_as_wrong_and_is_named(tmp_path):
    """Of every bench with files: one source becomes rubbish, its items count as wrong."""
    for name in ("intphys", "intphys2", "inflevel", "grasp", "mvp", "whatsup", "clevrer"):
        root = BUILDERS[name](tmp_path / name)
        bench = load_bench(name, root)
        item = bench.suite.items[0]
        source = bench.suite.sources[item.evidence[0].source]
        path = source.video or source.images[0]
        with open(path, "wb") as file:
            file.write(b"rubbish")
        assert load_bench(name, root).faults == {}  # it is there, as far as a listing shows
        examined = load_bench(name, root).examined()
        assert item.id in examined.faults and path in examined.faults[item.id]
        assert item not in examined.asked
        whole, broken = bench.score(answers(bench)), examined.score(answers(examined))
        assert broken["data_errors"] == len(examined.faults) > 0
        assert broken["items"] == whole["items"]
        assert broken != {**whole, "data_errors": broken["data_errors"]}, name
        with open(path, "wb"):
            pass
        assert "is empty" in load_bench(name, root).faults[item.id]


def test_faults_of_a_run_count_as_wrong(tmp_path):
    bench = load_bench("babi", BUILDERS["babi"](tmp_path))
    said = answers(bench)
    first = bench.suite.items[0].id
    assert bench.score(said)["qa17_accuracy"] == 1
    assert bench.score(said, {first: "broken"})["qa17_accuracy"] == pytest.approx(2 / 3)


def test_rows_of_a_run_are_scored_by_rule(tmp_path):
    bench = load_bench("babi", BUILDERS["babi"](tmp_path))
    rows = []
    for item in bench.suite.items:
        numbers = {"pmi": flat(item), "sum": right(item)}
        row = {"id": item.id, "variant": "text", "rule": "pmi", "numbers": numbers, "error": ""}
        rows.append(row)
    assert bench.score_rows(rows)["qa17_accuracy"] == 0.5
    assert bench.score_rows(rows, rule="sum")["qa17_accuracy"] == 1
    rows[0] = {**rows[0], "numbers": {}, "error": "source: cannot be read"}
    scored = bench.score_rows(rows, rule="sum")
    assert scored["qa17_accuracy"] == pytest.approx(2 / 3) and scored["data_errors"] == 1
    with pytest.raises(BenchError, match="one variant at a time"):
        bench.score_rows([*rows, {**rows[1], "variant": "video"}])
    with pytest.raises(BenchError, match="no rule 'x'"):
        bench.score_rows(rows, rule="x")


def test_answers_must_be_whole(tmp_path):
    bench = load_bench("babi", BUILDERS["babi"](tmp_path))
    said = answers(bench)
    first = bench.suite.items[0].id
    with pytest.raises(BenchError, match=f"1 of 4 items have no answer .{first}"):
        bench.score({k: v for k, v in said.items() if k != first})
    with pytest.raises(BenchError, match="1 answers are to no item .stranger"):
        bench.score({**said, "stranger": [0.0, 1.0]})
    for wrong in ([0.0], [float("nan"), 0.0]):
        with pytest.raises(BenchError, match="2 finite numbers"):
            bench.score({**said, first: wrong})


def test_unknown_bench_part_and_folder(name, tmp_path):
    with pytest.raises(BenchError, match="no benchmark 'nope'; there are intphys"):
        load_bench("nope", tmp_path)
    with pytest.raises(BenchError, match=str(tmp_path)):
        load_bench(name, tmp_path)  # empty
    with pytest.raises(BenchError):
        load_bench(name, tmp_path / "missing")
    with pytest.raises(BenchError):
        load_bench(f"{name}:no such part", BUILDERS[name](tmp_path / "data"))


def test_training_is_refused_where_the_authors_refuse_it(tmp_path):
    bench = load_bench("inflevel", BUILDERS["inflevel"](tmp_path / "i"))
    with pytest.raises(BenchError, match="evaluation only.*linear probes included"):
        bench.labels_for_training()
    for other in ("intphys2", "ewok", "babi"):
        with pytest.raises(BenchError):
            load_bench(other, BUILDERS[other](tmp_path / other)).labels_for_training()


def test_table_and_documentation_name_the_same(request):
    text = (request.config.rootpath / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for name in BENCHES:
        assert f"| `{name}`" in text, name
    assert "synthetic" in text
