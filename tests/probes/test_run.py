"""A suite that is asked: rows in its order, the same in every run and in every company."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmpredict.probes import run as run_room
from mmpredict.probes.items import VARIANTS, Files, Suite
from mmpredict.probes.run import ModelScorer, run_suite
from mmpredict.probes.shares import Job, _shares, run_in_shares
from mmpredict.schema import UserError
from mmpredict.world import Take
from tests.generate.small import make_model
from tests.probes.small_suite import choice, suite


@pytest.fixture(scope="module")
def model():
    return make_model("audio", "video", "text")


def ask(model, asked: Suite, variants=VARIANTS):
    predictor, codecs = model
    scorer = ModelScorer(predictor, codecs, asked.sources, variants=variants)
    return run_suite(scorer, asked, variants)


@pytest.fixture(scope="module")
def asked(model):
    return ask(model, suite(2))


def test_every_item_in_every_form_that_it_has(asked):
    items = suite(2).items
    want = [
        (item.id, variant) for item in items for variant in VARIANTS if variant in item.variants
    ]
    assert [(row["id"], row["variant"]) for row in asked.rows] == want
    assert asked.errors == ()
    for row in asked.rows:
        assert 0 <= row["score"] <= 1 and row["score"] == row["scores"][row["rule"]]
        assert set(row["numbers"]) == set(row["scores"]) and row["error"] == ""
    rules = {row["kind"]: set(row["scores"]) for row in asked.rows if row["variant"] != "video"}
    assert rules["mc"] == {"sum", "pmi", "per_token"} == rules["minpair"] == rules["numeric"]
    assert {"prediction", "prediction/max", "latent/area", "latent/audio"} <= rules["voe"]


def test_two_runs_write_the_same_bytes(model, asked, tmp_path):
    asked.write(tmp_path / "a.jsonl")
    ask(model, suite(2)).write(tmp_path / "b.jsonl")
    written = (tmp_path / "a.jsonl").read_bytes()
    assert written == (tmp_path / "b.jsonl").read_bytes()
    lines = [json.loads(line) for line in written.splitlines()]
    assert lines == json.loads(json.dumps(asked.rows))


def numbers_of(run) -> dict:
    return {(row["id"], row["variant"]): row["numbers"] for row in run.rows}


def alike(one: dict, two: dict) -> bool:
    return all(
        values == pytest.approx(two[key][rule], abs=1e-4)
        for key, numbers in one.items()
        for rule, values in numbers.items()
    )


def test_the_same_alone_and_in_any_order(model, asked):
    whole, items = numbers_of(asked), suite(2).items
    turned = ask(model, replace(suite(2), items=items[::-1]))
    assert alike(whole, numbers_of(turned)) and len(turned.rows) == len(asked.rows)
    for item in items[::3]:
        alone = numbers_of(ask(model, replace(suite(2), items=(item,))))
        assert alone and alike(alone, whole)


def test_every_take_is_filmed_once(model, monkeypatch):
    films, record = [], Take.record
    monkeypatch.setattr(Take, "record", lambda take, film: films.append(1) or record(take, film))
    ask(model, suite(2))
    assert len(films) == 3


def test_an_unreadable_file_is_an_error_of_its_items_alone(model, tmp_path):
    bad = choice(0, "where?", ("here", "there"), id="bad", variants=("video", "text"))
    good = choice(0, "where?", ("here", "there"), id="good", variants=("video",))
    gone = Files(str(tmp_path / "gone.mp4"))
    takes = suite(1).sources
    bad = replace(bad, evidence=(replace(bad.evidence[0], source="gone"),))
    run = ask(model, Suite("files", (bad, good), {**takes, "gone": gone}))
    by = {(row["id"], row["variant"]): row for row in run.rows}
    assert by["bad", "video"]["score"] is None and "gone.mp4" in by["bad", "video"]["error"]
    assert by["bad", "video"]["numbers"] == {} and by["bad", "text"]["error"] == ""
    assert by["good", "video"]["score"] is not None
    assert len(run.errors) == 1 and run.errors[0].startswith("bad, video: source 'gone'")


def test_a_model_that_says_nan_is_an_error_and_no_score(tmp_path):
    predictor, codecs = make_model("video", "text")
    with torch.no_grad():
        predictor.trunk.norm.weight.fill_(math.nan)
    run = ask((predictor, codecs), suite(1), ["video"])
    assert all(row["score"] is None and "finite" in row["error"] for row in run.rows)
    run.write(tmp_path / "rows.jsonl")


def test_what_cannot_be_asked_at_all(model):
    with pytest.raises(UserError, match="no item of suite 'small' has evidence audio; .*have text"):
        only = tuple(item for item in suite(1).items if item.score == "minpair")
        ask(model, replace(suite(1), items=only), ["audio"])
    lacks = make_model("video")
    with pytest.raises(UserError, match="needs text; this checkpoint has only video"):
        ask(lacks, suite(1), ["video"])
    only = tuple(item for item in suite(1).items if item.score == "voe")
    assert ask(lacks, replace(suite(1), items=only), ["video"]).rows[0]["score"] in (0, 0.5, 1)


def test_progress_and_curves(model):
    predictor, codecs = model
    seen: list[tuple[int, int]] = []
    asked, variants = suite(2), ("video", "video+audio")
    scorer = ModelScorer(predictor, codecs, asked.sources, variants=variants)
    run = run_suite(scorer, asked, variants, progress=lambda n, of: seen.append((n, of)))
    assert seen[-1] == (len(run.rows), len(run.rows)) and seen == sorted(seen)
    assert set(run.curves) == {("permanence/0", "video"), ("permanence/0", "video+audio")}
    (video,), _ = run.curves["permanence/0", "video"]
    assert video.times_s[0] == 0.125 and len(video.prediction) == 15  # the first has no past
    row = next(r for r in run.rows if r["id"] == "permanence/0" and r["variant"] == "video")
    late = [s for t, s in zip(video.times_s, video.prediction, strict=True) if t >= 1.5]
    assert row["numbers"]["prediction"][0] == pytest.approx(sum(late) / len(late), rel=1e-5)


@pytest.mark.slow
def test_several_processes_say_the_same(model):
    predictor, codecs = model
    asked, variants = suite(3), ("text", "video")
    job = Job(predictor, codecs, variants)
    alone, shared = (run_in_shares(job, asked, workers=n) for n in (1, 2))
    assert shared.rows == alone.rows and shared.suite_sha == alone.suite_sha
    assert shared.curves == alone.curves and list(shared.curves)


def test_shares_are_whole_scenes_and_together_all():
    asked = suite(4)
    parts = _shares(asked, ("text", "video"), 3)
    assert len(parts) == 3
    assert sorted(i.id for p in parts for i in p.items) == sorted(i.id for i in asked.items)
    homes = [{item.evidence[0].source for item in part.items} for part in parts]
    assert all(not (a - {""}) & b for a in homes for b in homes if a is not b)


def test_what_is_too_long_is_an_error_and_does_not_hang(model, monkeypatch):
    monkeypatch.setattr(run_room, "MOST_POSITIONS", 20)
    only = ask(model, replace(suite(1), items=suite(1).items[:1]), ("text", "video+audio"))
    errors = {row["variant"]: row["error"] for row in only.rows}
    assert "takes 28 positions, at most 20" in errors["video+audio"]  # 4 frames of 4, 12 chunks
    assert "at most 20" in errors["text"]  # of letters


PARENT = """
import os, signal, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from mmpredict.probes.shares import leave_with_parent

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=leave_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 60)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_processes_leave_with_the_one_that_started_them(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT, encoding="utf-8")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    worker = Path(f"/proc/{int(done.stdout)}")
    deadline = time.monotonic() + 20
    while worker.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not worker.exists()
