"""Published benchmarks from the command line: answer files, readouts, generated videos."""

from __future__ import annotations

import csv
import json
import shutil
import zipfile
from pathlib import Path

import pytest

from mmpredict.media import read_clip
from mmpredict.probes.external import physics_iq
from tests.probes.external import layouts
from tests.probes.external.test_physics_iq import build
from tests.test_probe_verb import checkpoint, probe


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("run") / "a.ckpt", "audio", "video", "text")


def asked(ckpt: Path, name: str, root: Path, *words: object) -> int:
    here = ("--ckpt", ckpt, "--bench", name, "--root", root, "--out", root.parent / "out")
    return probe(*here, "--workers", 1, *words)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_scenes_without_marks_go_into_the_answer_file_alone(ckpt, tmp_path, capsys):
    root = layouts.intphys(tmp_path / "data")
    assert asked(ckpt, "intphys", root, "--export", tmp_path / "send") == 0
    said = capsys.readouterr().out
    assert f"wrote {tmp_path / 'send' / 'answer.zip'}" in said and "relative_error" in said
    with zipfile.ZipFile(tmp_path / "send" / "answer.zip") as archive:
        rows = [line.split() for line in archive.read("answer.txt").decode().splitlines()]
    assert [name for name, _ in rows] == [f"O2/0001/{k}" for k in range(1, 5)]
    assert all(0 <= float(value) <= 1 for _, value in rows)
    secret = lines(tmp_path / "out" / "per_item-unlabelled.jsonl")
    assert [row["id"] for row in secret] == ["O2/0001"]
    assert secret[0]["score"] is None and not secret[0]["scores"] and secret[0]["numbers"]
    marked = lines(tmp_path / "out" / "per_item.jsonl")
    assert len(marked) == 3 and all(row["score"] is not None for row in marked)
    # the answers are those that were said, turned round
    said_of = secret[0]["numbers"][secret[0]["rule"]]
    values = [float(value) for _, value in rows]
    order = sorted(range(4), key=lambda k: said_of[k])
    assert sorted(range(4), key=lambda k: -values[k]) == order or len(set(said_of)) < 4


def test_a_folder_of_unmarked_scenes_alone(ckpt, tmp_path, capsys):
    root = layouts.intphys(tmp_path / "data")
    shutil.rmtree(root / "dev")
    assert asked(ckpt, "intphys", root) == 2
    assert "--export DIR hands in 1 without labels" in capsys.readouterr().err
    assert asked(ckpt, "intphys", root, "--export", tmp_path / "send") == 0
    assert (tmp_path / "send" / "answer.zip").is_file()
    assert not (tmp_path / "out" / "results.json").exists()  # nothing was scored


def test_a_picture_that_cannot_be_read_stops_the_answer_file(ckpt, tmp_path, capsys):
    root = layouts.intphys(tmp_path / "data")
    broken = root / "test" / "O2" / "0001" / "3" / "scene" / "scene_001.png"
    broken.write_bytes(b"rubbish")
    assert asked(ckpt, "intphys", root, "--export", tmp_path / "send") == 2
    err = capsys.readouterr().err
    assert "nothing written, 1 of 1 have no answer" in err and str(broken) in err
    assert not (tmp_path / "send").exists()
    assert len(lines(tmp_path / "out" / "per_item.jsonl")) == 3  # the others were asked


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("intphys2", ["intphys2_heldout.jsonl"]),
        ("inflevel", ["lab_continuity.tsv", "lab_gravity.tsv", "sim_solidity.tsv"]),
        ("mvp", ["mvp_intuitive_physics.jsonl", "mvp_temporal_reasoning.jsonl"]),
    ],
)
def test_what_the_other_servers_take(ckpt, tmp_path, name, files):
    root = layouts.BUILDERS[name](tmp_path / "data")
    assert asked(ckpt, name, root, "--export", tmp_path / "send") == 0
    written = sorted(path.name for path in (tmp_path / "send").iterdir())
    assert len(written) == len(files) and written[0].split("_")[0] == files[0].split("_")[0]
    if name == "intphys2":
        rows = lines(tmp_path / "send" / files[0])
        assert [row["row_id"] for row in rows] == ["h0", "h1", "h2"]
        assert {type(row["model_answer"]) for row in rows} == {bool}
    if name == "inflevel":
        assert written == files
        text = (tmp_path / "send" / files[0]).read_text(encoding="utf-8").splitlines()
        assert text[0].split("\t")[-1] == "score" and len(text) == 5


def test_videos_are_generated_and_judged(ckpt, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(physics_iq, "SECONDS", 1)
    root = build(tmp_path / "data", made_shift=2)
    send = tmp_path / "send"
    assert asked(ckpt, "physics_iq", root, "--export", send) == 0
    with (send / "tasks.csv").open(encoding="utf-8") as file:
        names = [row["generated_video_name"] for row in csv.DictReader(file)]
    assert len(names) == 3
    for name in names:
        clip = read_clip(send / name, sound=False)
        assert len(clip.frames_TCHW) == 30  # at the rate of the real ones
        assert len(clip.frames_TCHW.flatten(1).unique(dim=0)) > 1
    first = (send / names[0]).read_bytes()
    assert asked(ckpt, "physics_iq", root, "--export", send) == 0
    assert (send / names[0]).read_bytes() == first
    capsys.readouterr()
    words = ("--bench", "physics_iq", "--root", root, "--judge", root / "made")
    assert probe(*words, "--out", tmp_path / "judged") == 0
    results = json.loads((tmp_path / "judged" / "results.json").read_text(encoding="utf-8"))
    assert results["metric"]["physics_iq"] == pytest.approx(100, abs=0.02)
    assert '"physics_iq"' in capsys.readouterr().out


def test_a_given_video_that_cannot_be_read_is_named(ckpt, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(physics_iq, "SECONDS", 1)
    root = build(tmp_path / "data", made_shift=2)
    given = sorted((root / "split-videos/conditioning-videos/30FPS").iterdir())
    given[1].write_bytes(b"rubbish")
    assert asked(ckpt, "physics_iq", root, "--export", tmp_path / "send") == 2
    err = capsys.readouterr().err
    assert "not generated: 0002_perspective-center" in err and str(given[1]) in err
    assert len(list((tmp_path / "send").glob("*.mp4"))) == 2


def test_a_readout_on_the_training_clips(ckpt, tmp_path, capsys):
    """The clips are all alike, so that nothing can be read out of them."""
    root = layouts.physion(tmp_path / "data")
    assert asked(ckpt, "physion", root, "--readout") == 2  # a label without a clip
    said = capsys.readouterr()
    assert "pilot_drop_0003" in said.err
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    found = results["readout"]["video"]
    assert list(found) == ["model", "permuted labels", "untrained", "raw input", "majority"]
    # two of three and one of three are right by any constant; the lost clip counts as wrong
    for of_one in found.values():
        assert 0 <= of_one["accuracy"] <= 1 and of_one["data_errors"] == 1
    rows = lines(tmp_path / "out" / "per_item.jsonl")
    assert len(rows) == 6 and all(len(row["scores"]) == 2 for row in rows)


def test_a_readout_finds_what_is_plain_to_see(ckpt, tmp_path):
    """Clips that turn out well are bright, the others dark."""
    root = layouts.physion(tmp_path / "data")
    bright, dark = layouts.mp4_bytes(), layouts.mp4_bytes(frames=1)
    with (root / "stimulus_names_and_labels.csv").open(encoding="utf-8", newline="") as file:
        outcome = {row["stim_ID"]: row["label"] == "True" for row in csv.DictReader(file)}
    with (root / "readout_labels.csv").open(encoding="utf-8", newline="") as file:
        outcome |= {r[""]: r["ground truth outcome"] == "True" for r in csv.DictReader(file)}
    for path in root.rglob("*.mp4"):
        name = path.stem.removesuffix("_img").removesuffix("-redyellow")
        if name in outcome:
            path.write_bytes(bright if outcome[name] else dark)
    asked(ckpt, "physion:collide", root, "--readout")
    found = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["readout"]
    assert found["video"]["model"]["collide_accuracy"] == 1
    assert found["video"]["raw input"]["collide_accuracy"] == 1


@pytest.mark.parametrize("task", ["localize", "actions_present"])
def test_places_and_several_actions_are_read_out(ckpt, tmp_path, task):
    root = layouts.cater(tmp_path / "data", train=12)
    assert asked(ckpt, f"cater:{task}", root, "--readout") == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["readout"]
    key = "top5" if task == "localize" else "mAP"
    assert all(0 <= one[key] <= 1 for one in found["video"].values())
    rows = lines(tmp_path / "out" / "per_item.jsonl")
    assert [len(row["scores"]) for row in rows] == [36 if task == "localize" else 14] * 2


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("babi", ("--export", "{send}"), "no server whose answer files"),
        ("babi", ("--readout",), "no labels for a probe"),
        ("inflevel", ("--readout",), "evaluation only"),
        ("physion", ("--readout", "{ckpt}", "{ckpt}"), "brings its own training clips"),
        ("cater", ("--readout",), "has 1 readout clips, needs 8 or more"),
        ("cater:actions_order_uniq", (), "--readout trains on its training clips"),
        ("babi", ("--judge", "{root}"), "--judge is for physics_iq"),
        ("babi", ("--judge", "{root}/none"), "is not a folder"),
        ("intphys", ("--export", "{ckpt}"), "is a file; give a folder"),
        ("intphys", ("--export", "{send}", "--readout"), "one at a time"),
    ],
)
def test_what_a_benchmark_has_not_is_said(ckpt, tmp_path, capsys, name, words, said):
    root = layouts.BUILDERS[name.partition(":")[0]](tmp_path / "data")
    places = {"send": tmp_path / "send", "root": root, "ckpt": ckpt}
    assert asked(ckpt, name, root, *(word.format(**places) for word in words)) == 2
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err and len(err.splitlines()) <= 8


def test_exports_need_a_benchmark_and_pictures(ckpt, tmp_path, capsys):
    assert probe("--ckpt", ckpt, "--export", tmp_path) == 2
    assert "--export DIR goes with --bench" in capsys.readouterr().err
    deaf = checkpoint(tmp_path / "deaf.ckpt", "audio", "text")
    root = build(tmp_path / "data", made_shift=2)
    assert asked(deaf, "physics_iq", root, "--export", tmp_path / "send") == 2
    assert "has only audio, text" in capsys.readouterr().err
    assert asked(ckpt, "physics_iq", root) == 2
    assert "--export DIR generates its 3 videos" in capsys.readouterr().err
