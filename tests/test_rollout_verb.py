"""`mmpredict rollout`: prompts of every kind, files on disk, clear words for mistakes."""

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmpredict import rollout_verb
from mmpredict.generate import Rollout, write_rollout
from mmpredict.generate.series import read_table
from mmpredict.media import read_clip, write_clip, write_srt, write_wav
from mmpredict.rollout_verb import add_arguments, read_prompt
from mmpredict.schema import TextPiece
from mmpredict.training.checkpoint import describe
from tests.generate.small import make_codecs, make_model, make_prompt


def checkpoint(path, *names: str):
    """A file as training writes it."""
    model, codecs = make_model(*names)
    state = {f"predictor.{key}": value for key, value in model.state_dict().items()}
    torch.save({"mmpredict": describe(model, codecs, 128), "state_dict": state}, path)
    return path


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return rollout_verb.run(parser.parse_args([str(word) for word in words]))


def test_options_are_read_without_torch():
    code = (
        "import sys, argparse, mmpredict.rollout_verb as verb\n"
        "verb.add_arguments(argparse.ArgumentParser())\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_video_file_and_text_go_on_and_are_written(tmp_path, capsys):
    film = tmp_path / "film.mp4"
    write_clip(film, make_prompt("audio", "video"))
    ckpt = checkpoint(tmp_path / "a.ckpt", "audio", "video", "text")
    out = tmp_path / "out" / "x.mp4"
    words = ("--ckpt", ckpt, "--prompt", film, "--prompt", "a ball", "--out", out)
    assert run(*words, "--seconds", "0.5", "--steps", "2") == 0
    said = capsys.readouterr().out.splitlines()
    written = [line.removeprefix("wrote ") for line in said if line.startswith("wrote ")]
    assert written == [str(out.with_suffix(s)) for s in (".mp4", ".wav", ".txt", ".png")]
    assert any(line.startswith("text: ") for line in said)
    # Half of 128 positions are 1.125 s at 57 positions a second; the film has 1 s.
    assert len(read_clip(out).times_s) >= 12
    assert (tmp_path / "out" / "x.txt").read_text(encoding="utf-8").startswith("a ball\n")


def test_same_seed_same_files_other_seed_differs(tmp_path):
    ckpt = checkpoint(tmp_path / "a.ckpt", "audio")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_wav(tmp_path / "p.wav", make_prompt("audio").waveform_CS, 8000)
        prompt = ("--ckpt", ckpt, "--prompt", tmp_path / "p.wav", "--seed", seed)
        run(*prompt, "--seconds", "0.2", "--steps", "2", "--out", tmp_path / f"{name}.wav")
    a, b, c = ((tmp_path / f"{name}.wav").read_bytes() for name in "abc")
    assert a == b != c


def test_several_futures_have_numbered_files_each_that_of_its_seed(tmp_path, capsys):
    ckpt = checkpoint(tmp_path / "a.ckpt", "audio")
    write_wav(tmp_path / "p.wav", make_prompt("audio").waveform_CS, 8000)
    words = ("--ckpt", ckpt, "--prompt", tmp_path / "p.wav", "--seconds", "0.2", "--steps", "2")
    run(*words, "--futures", "2", "--seed", "3", "--out", tmp_path / "x.wav")
    said = capsys.readouterr().out.splitlines()
    names = ("x-1.wav", "x-1.png", "x-2.wav", "x-2.png")
    assert said == [f"wrote {tmp_path / name}" for name in names]
    run(*words, "--seed", "4", "--out", tmp_path / "y.wav")
    one, two, alone = ((tmp_path / name).read_bytes() for name in ("x-1.wav", "x-2.wav", "y.wav"))
    assert one != two
    apart = read_clip(tmp_path / "x-2.wav").waveform_CS - read_clip(tmp_path / "y.wav").waveform_CS
    assert two == alone or apart.abs().max() < 1e-3


def test_streams_chooses_what_goes_on(tmp_path, capsys):
    ckpt = checkpoint(tmp_path / "a.ckpt", "audio", "video", "text")
    out = ("--out", tmp_path / "x", "--seconds", "0.25", "--steps", "1")
    run("--ckpt", ckpt, "--prompt", "a ball", "--streams", "video, audio", *out)
    assert "text: " not in capsys.readouterr().out
    with pytest.raises(ValueError, match="smell; this model has audio, video, text"):
        run("--ckpt", ckpt, "--prompt", "a ball", "--streams", "smell", *out)


def test_video_to_text(tmp_path, capsys):
    film = tmp_path / "film.mp4"
    write_clip(film, make_prompt("video"))
    ckpt = checkpoint(tmp_path / "a.ckpt", "audio", "video", "text")
    words = ("--prompt", film, "--streams", "text", "--prompt_seconds", "0.5")
    run("--ckpt", ckpt, *words, "--out", tmp_path / "x.txt")
    assert "text: [  0.500 -   0.500]" in capsys.readouterr().out


def test_prompts_of_files_and_texts_are_joined(tmp_path):
    codecs = make_codecs("audio", "video", "text")
    prompt = make_prompt("audio", "video")
    write_clip(tmp_path / "film.mp4", replace(prompt, waveform_CS=None, sample_rate=None))
    write_wav(tmp_path / "sound.wav", prompt.waveform_CS, 8000)
    late = (TextPiece("soon", 0.0, 0.25), TextPiece("late", 0.5, 0.9))
    write_srt(tmp_path / "said.srt", late)
    items = ["what is left/right here?", *(str(tmp_path / n) for n in ("film.mp4", "sound.wav"))]
    clip = read_prompt([*items, str(tmp_path / "said.srt")], codecs, 0.5)
    assert len(clip.frames_TCHW) == 4 and clip.waveform_CS.shape == (2, 4000)
    assert [piece.text for piece in clip.texts] == ["what is left/right here?", "soon"]
    with pytest.raises(ValueError, match="has sound, and so has an earlier prompt"):
        read_prompt([items[2], items[2]], codecs, 0.5)


@pytest.mark.parametrize(
    ("names", "prompt", "error", "words"),
    [
        (("video",), "missing.mp4", FileNotFoundError, "missing.mp4 looks like a path"),
        (("video",), "some/where", FileNotFoundError, "some/where looks like a path"),
        (("text",), "  ", ValueError, "--prompt is empty"),
        (("audio", "video"), "a ball", ValueError, "this checkpoint has only audio, video"),
        (("text",), "tone.wav", ValueError, "this checkpoint has only text"),
        (("video",), "tone.wav", ValueError, "no video stream"),
        (("video",), "./odd.xyz", ValueError, "not of a known kind: .mp4"),
        (("text",), "late.srt", ValueError, r"no text within its first 1.00 s"),
        (("video",), "a.action.csv", ValueError, "is of action, this checkpoint has video"),
        (("action",), "narrow.csv", ValueError, "has 1 values per vector, .* takes 3"),
        (("action",), "late.csv", ValueError, "no vector within its first 1.00 s"),
        (("action",), "missing.csv", FileNotFoundError, "missing.csv looks like a path"),
    ],
)
def test_bad_prompts_are_named(tmp_path, monkeypatch, names, prompt, error, words):
    monkeypatch.chdir(tmp_path)
    write_wav("tone.wav", make_prompt("audio").waveform_CS, 8000)
    write_srt("late.srt", (TextPiece("late", 2.0, 3.0),))
    (tmp_path / "odd.xyz").write_text("x", encoding="utf-8")
    three = "seconds,action_0,action_1,action_2\n"
    Path("a.action.csv").write_text(three + "0,1,2,3\n", encoding="utf-8")
    Path("narrow.csv").write_text("seconds,action_0\n0,1\n", encoding="utf-8")
    Path("late.csv").write_text(three + "2,1,2,3\n", encoding="utf-8")
    with pytest.raises(error, match=words):
        read_prompt([prompt], make_codecs(*names), 1.0)


def test_vectors_go_on_from_their_table(tmp_path, capsys):
    write_rollout(Rollout(make_prompt("action"), 1.0), tmp_path / "given.csv")
    ckpt = checkpoint(tmp_path / "a.ckpt", "action")
    words = ("--ckpt", ckpt, "--prompt", tmp_path / "given.action.csv", "--seconds", "0.5")
    assert run(*words, "--out", tmp_path / "new.png", "--prompt_seconds", "0.5") == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [f"wrote {tmp_path / n}" for n in ("new.action.csv", "new.png")]
    name, series = read_table(tmp_path / "new.action.csv")
    assert name == "action" and len(series.times_s) == 16
    given = make_prompt("action").series["action"]
    assert torch.equal(series.values_TD[:8], given.values_TD[:8])
    assert not torch.equal(series.values_TD[8:], given.values_TD[8:])


def test_prompt_seconds_must_be_positive(tmp_path):
    ckpt = checkpoint(tmp_path / "a.ckpt", "text")
    with pytest.raises(ValueError, match="--prompt_seconds -1.0 must be above 0"):
        run("--ckpt", ckpt, "--prompt", "a", "--out", tmp_path / "x", "--prompt_seconds", "-1")
