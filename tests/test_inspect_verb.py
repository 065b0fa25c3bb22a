"""`mmpredict inspect`: every kind of PATH, exit codes, and clear words for mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmpredict import cli
from mmpredict.inspect_verb import plan_of
from mmpredict.training.checkpoint import describe
from tests.generate.small import make_codecs, make_model
from tests.shards.stored import of_file, write_store
from tests.survey.films import film, sound

RECIPE = """
seed_everything: 0
data:
  class_path: datamodules.AudioVisual
  init_args:
    root: ./media
    video: {size: [16, 32], patch: 8, fps: 4}
    audio: null
    text: {kind: bpe, vocab_size: 300}
    clip_seconds: 5.0e-1
    loading: {context_length: 128, rows: 3}
"""


def inspect(*words: object) -> int:
    return cli.main(["inspect", *map(str, words)])


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two kept films in one shard."""
    items = [of_file(film(tmp_path / f"{name}.mp4", 1.0)) for name in "ab"]
    return write_store(tmp_path / "shards", items)


def test_options_are_read_without_torch():
    code = (
        "import sys, argparse, mmpredict.inspect_verb as verb\n"
        "verb.add_arguments(argparse.ArgumentParser())\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_file_is_told_and_written_as_json(tmp_path, capsys):
    path = film(tmp_path / "a.mp4", 2.0, late_s=0.3)
    assert inspect(path, "--json", tmp_path / "a.json", "--decode") == 0
    said = capsys.readouterr().out
    for words in ("h264 32x32", "10 a second, constant", "20 frames, 20 decoded", "late sound"):
        assert words in said
    figures = json.loads((tmp_path / "a.json").read_text())
    assert figures["kind"] == "video" and figures["what"] == "media"
    assert figures["facts"]["video"]["decoded_frames"] == 20
    assert figures["facts"]["audio"]["start_s"] > 0.1


def test_figures_that_json_does_not_know_become_null(tmp_path):
    path = sound(tmp_path / "a.wav", silent=True)
    assert inspect(path, "--json", tmp_path / "a.json") == 0
    figures = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert figures["facts"]["audio"]["peak_db"] is None  # of digital silence: minus infinity


def test_a_folder_a_manifest_and_a_text(tmp_path, capsys):
    film(tmp_path / "a.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 99)
    (tmp_path / "a.txt").write_text("a caption")
    (tmp_path / "m.jsonl").write_text('{"path": "a.mp4", "end": 1.0}\n')
    (tmp_path / "t.jsonl").write_text('{"text": "no manifest"}\n')
    assert inspect(tmp_path) == 0
    said = capsys.readouterr().out
    assert "broken.mp4: " in said and "2 files of media" in said
    assert inspect(tmp_path / "m.jsonl") == 0
    assert "1 row of a manifest" in capsys.readouterr().out
    assert inspect(tmp_path / "t.jsonl") == 0
    assert "1 piece, 11 characters" in capsys.readouterr().out
    assert inspect(tmp_path / "broken.mp4") == 0  # it was inspected, and says what is wrong
    assert "skipped     the whole file" in capsys.readouterr().out


def test_long_lists_are_cut_unless_all_are_wanted(tmp_path, capsys):
    for number in range(23):
        (tmp_path / f"{number:02d}.mp4").write_bytes(b"\0" * 99)
    assert inspect(tmp_path) == 0
    said = capsys.readouterr().out
    assert "19.mp4" in said and "20.mp4" not in said and "and 3 more (--all names them)" in said
    assert inspect(tmp_path, "--all") == 0
    assert "22.mp4" in capsys.readouterr().out


def test_shards_are_verified(shards, tmp_path, capsys):
    assert inspect(shards) == 0
    assert "2 samples in 4 members" in capsys.readouterr().out
    assert inspect(shards, "--verify") == 0
    assert "all 4 members intact" in capsys.readouterr().out
    path = shards / "000000.tar"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert inspect(shards, "--verify", "--json", tmp_path / "a.json") == 1
    assert "000000.tar!k0001" in capsys.readouterr().out
    damage = json.loads((tmp_path / "a.json").read_text())["damage"]
    assert len(damage) == 1 and "k0001" in damage[0][0]
    assert inspect(path, "--verify") == 1  # one shard alone


def test_a_checkpoint_says_what_it_is(tmp_path, capsys):
    model, _ = make_model("audio", "video", "text")
    codecs = make_codecs("audio", "video", "text")
    state = {f"predictor.{key}": value for key, value in model.state_dict().items()}
    about = describe(model, codecs, 128)
    content = {"mmpredict": about, "state_dict": state, "global_step": 7, "epoch": 1}
    position = {"epoch": 3, "place": 42, "packer": {"rows": [[[3, 1]]]}, "ready": []}
    sources = {"digests": torch.zeros(16, dtype=torch.uint8)}
    data = {"position": position, "sources": sources, "settings": {"seed": "0"}}
    torch.save({**content, "AudioVisual": data}, tmp_path / "a.ckpt")
    assert inspect(tmp_path / "a.ckpt", "--json", tmp_path / "a.json") == 0
    said = capsys.readouterr().out
    for words in ("7 steps", "128 positions", "epoch 3, next_place 42", "sources 2"):
        assert words in said
    figures = json.loads((tmp_path / "a.json").read_text())
    assert figures["parameters"] == sum(v.numel() for v in state.values() if v.is_floating_point())
    assert set(figures["streams"]) == {"audio", "video", "text"}
    (tmp_path / "b.ckpt").write_bytes(b"no checkpoint")
    assert inspect(tmp_path / "b.ckpt") == 2


def test_a_recipe_says_what_is_counted(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(RECIPE)
    plan = plan_of(str(tmp_path / "r.yaml"))
    assert plan.codecs.audio is None and plan.codecs.video.height_width == (16, 32)
    assert (plan.clip_seconds, plan.context_length, plan.rows) == (0.5, 128, 3)
    assert plan.longest == 2 * 2 * 4
    path = film(tmp_path / "a.mp4", 2.0)
    assert inspect(path, "--config", tmp_path / "r.yaml") == 0
    said = capsys.readouterr().out
    assert "4 documents of up to 0.5 s" in said and "tokens      video 64\n" in said
    (tmp_path / "r.yaml").write_text(RECIPE.replace("patch: 8", "pach: 8"))
    assert inspect(path, "--config", tmp_path / "r.yaml") == 2
    assert "pach" in capsys.readouterr().err
    assert inspect(path, "--config", "quickstrat") == 2
    assert "did you mean `quickstart`" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["media_folder", "quickstart", "mixture", "text", "smoke"])
def test_shipped_recipes_can_be_counted_with(name):
    assert plan_of(name).longest >= 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("missing.mp4",), "does not exist"),
        (("a.xyz",), "not read"),
        (("r.yaml",), "`mmpredict show`"),
        (("a.wav", "--verify"), "only shards have"),
        (("a.wav", "--limit", "3"), "folders"),
        (("a.wav", "--limit", "0"), "1 or more"),
        (("a.wav", "--json", "no/such/folder.json"), "does not exist"),
        (("empty",), "no media or text"),
        (("tars",), "inspect them one by one"),
        (("a.tar", "--verify"), "no index"),
        (("pipe://x",), "not an address"),
    ],
)
def test_mistakes_are_answered_with_a_remedy_and_2(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sound(tmp_path / "a.wav", 0.1)
    (tmp_path / "a.xyz").write_text("?")
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "empty").mkdir()
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "x.tar").write_bytes(b"")
    (tmp_path / "a.tar").write_bytes(b"\0" * 10_240)
    assert inspect(*words) == 2
    assert said in capsys.readouterr().err
