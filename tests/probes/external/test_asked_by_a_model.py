"""A small untrained checkpoint is asked all benchmarks, from the folder to the published score."""

from __future__ import annotations

import math

import pytest

from mmpredict.probes.external import load_bench
from mmpredict.probes.run import ModelScorer, run_suite
from tests.generate.small import make_model

from .layouts import BUILDERS


@pytest.fixture(scope="module")
def checkpoint():
    return make_model("audio", "video", "text")


@pytest.mark.parametrize("name", BUILDERS)
def test_from_folder_to_score(name, checkpoint, tmp_path):
    bench = load_bench(name, BUILDERS[name](tmp_path))
    variants = tuple(dict.fromkeys(v for item in bench.suite.items for v in item.variants))
    scorer = ModelScorer(*checkpoint, bench.suite.sources, variants=variants)
    run = run_suite(scorer, bench.suite, variants)
    scored = bench.score_rows(run.rows)
    assert scored["items"] == len(run.rows)
    assert scored["data_errors"] == len(bench.faults) == len(run.errors)
    figures = {k: v for k, v in scored.items() if k not in ("items", "data_errors", "tasks", "l1")}
    assert figures and all(-1 <= v <= 1 for v in figures.values() if not math.isnan(v))


def test_a_file_that_fails_while_asked_is_named_and_counts(checkpoint, tmp_path):
    bench = load_bench("grasp:level2", BUILDERS["grasp"](tmp_path))
    (tmp_path / "level2" / "P_Gravity" / "2.mp4").write_bytes(b"rubbish")
    assert bench.faults == {}
    scorer = ModelScorer(*checkpoint, bench.suite.sources, variants=("video",))
    run = run_suite(scorer, bench.suite, ("video",))
    assert len(run.errors) == 1 and "2.mp4" in run.errors[0]
    scored = bench.score_rows(run.rows)
    assert scored["data_errors"] == 1 and scored["level2/Gravity_accuracy"] <= 0.5
