"""`mmpredict probe`: files on disk, clear words for mistakes, and an exit code that tells."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmpredict import cli
from mmpredict.probes import suites
from mmpredict.probes.items import Files, Suite
from mmpredict.training.checkpoint import describe
from tests.generate.small import make_model
from tests.probes.small_suite import suite

FILES = ("results.json", "per_item.jsonl", "table.md")


@pytest.fixture(autouse=True)
def _small_suites(monkeypatch):
    """The suites of the world have tests of their own."""
    monkeypatch.setattr(suites, "build_suite", lambda name, **_: replace(suite(2), name=name))


def checkpoint(path: Path, *names: str) -> Path:
    """A file as training writes it."""
    model, codecs = make_model(*names)
    state = {f"predictor.{key}": value for key, value in model.state_dict().items()}
    torch.save({"mmpredict": describe(model, codecs, 128), "state_dict": state}, path)
    return path


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("run") / "a.ckpt", "audio", "video", "text")


def probe(*words: object) -> int:
    return cli.main(["probe", *map(str, words)])


def test_options_are_read_without_torch():
    code = (
        "import sys, argparse, mmpredict.probe_verb as verb\n"
        "verb.add_arguments(argparse.ArgumentParser())\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_suite_is_asked_and_written_twice_alike(ckpt, tmp_path, capsys):
    everybody = [
        w for name in ("majority", "blind", "untrained", ckpt) for w in ("--baseline", name)
    ]
    for out in ("a", "b"):
        assert probe("--ckpt", ckpt, "--out", tmp_path / out, *everybody) == 0
    said = capsys.readouterr()
    assert "answers" in said.err and f"wrote {tmp_path / 'b' / 'table.md'}" in said.out
    for name in (*FILES, "per_item-blind.jsonl", "per_item-untrained.jsonl", "per_item-3.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    results = json.loads((tmp_path / "a" / "results.json").read_text(encoding="utf-8"))
    assert results["about"]["suite"] == "smoke" and len(results["about"]["ckpt_sha"]) == 64
    assert list(results["variants"]) == ["text", "audio", "video", "video+audio"]
    left = results["variants"]["video"]["families"]["left_right"]
    assert set(left["baselines"]) == {"majority", "blind", "untrained", str(ckpt)}
    assert left["baselines"][str(ckpt)]["more"] == 0
    lines = (tmp_path / "a" / "per_item.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["family"] for line in lines} > {"left_right", "permanence"}
    table = (tmp_path / "a" / "table.md").read_text(encoding="utf-8")
    assert "| left_right |" in table and table in said.out


def test_the_blind_see_nothing(ckpt, tmp_path):
    probe("--ckpt", ckpt, "--out", tmp_path, "--evidence", "video,audio", "--baseline", "blind")
    lines = (tmp_path / "per_item-blind.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    by = {(row["id"], row["variant"]): row["numbers"] for row in rows}
    mc = [row["id"] for row in rows if row["kind"] == "mc"]
    assert mc and all(by[name, "video"] == by[name, "audio"] for name in mc)
    shown = (tmp_path / "per_item.jsonl").read_text(encoding="utf-8").splitlines()
    other = {(r["id"], r["variant"]): r["numbers"] for r in map(json.loads, shown)}
    assert all(other[name, "video"] != by[name, "video"] for name in mc)


def test_items_of_a_file(ckpt, tmp_path, capsys):
    suite(1).write(tmp_path / "items.jsonl")
    words = ("--ckpt", ckpt, "--items", tmp_path / "items.jsonl", "--baseline", "none")
    kept = tmp_path / "kept.jsonl"
    assert probe(*words, "--evidence", "text", "--out", tmp_path / "o", "--write_items", kept) == 0
    assert kept.read_bytes() == (tmp_path / "items.jsonl").read_bytes()
    results = json.loads((tmp_path / "o" / "results.json").read_text(encoding="utf-8"))
    assert list(results["variants"]) == ["text"] and results["about"]["suite"] == "small"
    assert results["about"]["suite_sha"] == suite(1).sha
    capsys.readouterr()
    lines = (tmp_path / "items.jsonl").read_text(encoding="utf-8")
    old = lines.replace('"world_version":"1"', '"world_version":"0"')
    (tmp_path / "old.jsonl").write_text(old, encoding="utf-8")
    assert probe("--ckpt", ckpt, "--items", tmp_path / "old.jsonl") == 2
    assert "items of world version 0; this is version 1" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_named_and_the_rest_is_asked(ckpt, tmp_path, capsys):
    small = suite(1)
    gone = Files(str(tmp_path / "gone.mp4"))
    broken = Suite("small", small.items, {**small.sources, "scene 0": gone})
    broken.write(tmp_path / "items.jsonl")
    words = ("--items", tmp_path / "items.jsonl", "--out", tmp_path, "--baseline", "none")
    assert probe("--ckpt", ckpt, *words, "--evidence", "text,video") == 2
    said = capsys.readouterr()
    assert "could not be asked" in said.err and "gone.mp4" in said.err
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["variants"]["video"]["families"]["left_right"]["errors"] == 3
    assert results["variants"]["text"]["families"]["left_right"]["errors"] == 0


def test_power_needs_no_checkpoint(capsys):
    assert probe("--power") == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line.split() for line in lines if line.startswith("left_right"))
    assert row[1:3] == ["6", "2"] and float(row[3]) < float(row[4])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--ckpt FILE is missing"),
        (("--ckpt", "nowhere.ckpt"), "'nowhere.ckpt' does not exist"),
        (("--ckpt", "https://x/a.ckpt"), "is a URL"),
        (("--ckpt", "{ckpt}", "--evidence", "smell"), "--evidence 'smell': take some of text"),
        (("--ckpt", "{ckpt}", "--evidence", ","), "--evidence ',': take some of text"),
        (("--ckpt", "{ckpt}", "--suite", "big"), "invalid choice: 'big'"),
        (("--ckpt", "{ckpt}", "--baseline", "nobody"), "'nobody' does not exist"),
        (("--ckpt", "{ckpt}", "--items", "nowhere.jsonl"), "'nowhere.jsonl' does not exist"),
        (("--ckpt", "{ckpt}", "--bench", "intphys"), "go together"),
        (("--ckpt", "{ckpt}", "--bench", "x", "--root", "nowhere"), "is not a folder"),
        (("--ckpt", "{ckpt}", "--scenes", "0"), "--scenes 0 must be at least 1"),
        (("--ckpt", "{narrow}", "--evidence", "text,video"), "only audio, text: ask with --evid"),
        (
            ("--ckpt", "{ckpt}", "--bench", "nonsense", "--root", "{here}"),
            "no benchmark 'nonsense'",
        ),
    ],
)
def test_mistakes_are_named(ckpt, tmp_path, capsys, words, said):
    names = {"ckpt": ckpt, "here": tmp_path, "narrow": ""}
    if "{narrow}" in words:
        names["narrow"] = checkpoint(tmp_path / "narrow.ckpt", "audio", "text")
    assert probe(*(word.format(**names) for word in words)) == 2
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err


def test_a_published_benchmark_is_read_and_scored(ckpt, tmp_path, capsys):
    root = tmp_path / "ewok"
    root.mkdir()
    row = {
        "Domain": "spatial-relations",
        "Context1": "the ball is left of the box.",
        "Context2": "the box is left of the ball.",
        "Target1": "the ball is on the left.",
        "Target2": "the box is on the left.",
    }
    (root / "spatial-relations.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    words = ("--bench", "ewok", "--root", root, "--out", tmp_path / "o")
    code = probe("--ckpt", ckpt, *words)
    said = capsys.readouterr()
    assert code == 0, said.err
    results = json.loads((tmp_path / "o" / "results.json").read_text(encoding="utf-8"))
    assert {"registered", "sum", "pmi"} <= set(results["metric"]["text"])
    assert "text, registered: " in said.out
