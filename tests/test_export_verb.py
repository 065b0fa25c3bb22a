"""`mmpredict export`: a run's checkpoint to a folder with a card that says what was measured."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

import mmpredict
from mmpredict import cli
from mmpredict.training.checkpoint import PREFIX, describe
from tests.generate.small import make_model

RESULTS = {
    "audio": {"energy_score": 0.125, "baselines": {"last_spectrum": {"energy_score": 0.5}}},
    "text": {"nats_per_token": 2.5, "baselines": {"unigram": 2.0}},
    "seconds": 12.0,
    "held_out_scenes": 8,
}
CONFIG = """\
seed_everything: 7
trainer: {max_steps: 20, accumulate_grad_batches: 2}
run_dir: /home/somebody/secret
data: {class_path: datamodules.World, init_args: {loading: {rows: 3}}}
"""
PROBE = {
    "about": {"suite": "smoke", "suite_sha": "s" * 64, "world_version": "1", "model": "last.ckpt"},
    "variants": {
        "video": {
            "families": {
                "left_right": {
                    "score": 0.875,
                    "interval": [0.8, 0.9],
                    "n": 16,
                    "errors": 0,
                    "clusters": 8,
                    "chance": 0.5,
                    "baselines": {},
                    "claim": "above chance",
                    "group": None,
                    "tie_rate": 0.0,
                }
            },
            "macro": None,
        }
    },
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as a training leaves it; its weights are averaged ones."""
    return make_run(tmp_path / "run")


def make_run(folder: Path, *, step: int = 20) -> Path:
    model, codecs = make_model("audio", "text")
    state = {f"{PREFIX}{name}": tensor for name, tensor in model.state_dict().items()}
    checkpoint = {
        "state_dict": state | {"log_variances.text": torch.zeros(())},
        "running_weights": {name: tensor + 1 for name, tensor in state.items()},
        "mmpredict": describe(model, codecs, 128),
        "global_step": step,
    }
    (folder / "ckpt").mkdir(parents=True)
    torch.save(checkpoint, folder / "ckpt" / "last.ckpt")
    (folder / "results.json").write_text(json.dumps(RESULTS))
    (folder / "config.yaml").write_text(CONFIG)
    start = {"cpu": "Some CPU", "gpus": [], "versions": {"torch": "2.11.0"}}
    (folder / "env.json").write_text(json.dumps({"starts": [{}, start]}))
    return folder


def export(run: Path, out: Path, *words: str) -> int:
    return cli.main(["export", "--ckpt", str(run / "ckpt/last.ckpt"), "--out", str(out), *words])


def test_the_scored_weights_are_exported_bit_for_bit(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(run, out) == 0
    names = {"model.safetensors", "config.json", "recipe.yaml", "README.md"}
    assert {path.name for path in out.iterdir()} == names
    assert "mmpredict.load(" in capsys.readouterr().out
    ours = make_model("audio", "text")[0].state_dict()  # the average, not what was running
    theirs = mmpredict.load(out).predictor.state_dict()
    straight = mmpredict.load(run / "ckpt/last.ckpt").predictor.state_dict()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]) and torch.equal(tensor, straight[name])


def test_the_card_has_the_measured_numbers_with_their_baselines(run, tmp_path):
    assert export(run, tmp_path / "out") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| audio | energy score | 0.125 | last spectrum | 0.500 | better by 75 % |" in card
    assert "| text | nats per token | 2.50 | unigram | 2.00 | worse by 25 % |" in card
    for words in (
        *("datamodules.World", "steps: 20", "seed: 7", "3 rows; 2 batch", "Some CPU"),
        *("128 positions", "8 held-out documents", "Licence", "Limits", "time: 12 s"),
    ):
        assert words in card
    assert "license:" not in card  # left to the user


def test_the_recipe_is_one_that_others_can_use(run, tmp_path, capsys):
    assert export(run, tmp_path / "out") == 0
    recipe = (tmp_path / "out" / "recipe.yaml").read_text()
    assert "somebody" not in recipe and "max_steps: 20" in recipe
    config = run / "config.yaml"
    config.write_text(CONFIG + "other: /home/somebody/films\n")
    assert export(run, tmp_path / "two") == 0
    assert "paths of this machine: /home/somebody/films" in capsys.readouterr().out


@pytest.mark.parametrize("case", ["another step", "another file", "no results", "damaged"])
def test_scores_of_other_weights_are_left_out_and_named(case, tmp_path, capsys):
    run = make_run(tmp_path / "run", step=15 if case == "another step" else 20)
    ckpt, results = run / "ckpt" / "last.ckpt", run / "results.json"
    if case == "another file":
        ckpt = ckpt.rename(ckpt.with_name("previous.ckpt"))
    if case == "no results":
        results.unlink()
    if case == "damaged":
        results.write_text("{")
    assert cli.main(["export", "--ckpt", str(ckpt), "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "0.125" not in card and "Nothing was measured" in card
    assert "results.json" in capsys.readouterr().out


def test_probes_of_these_weights_are_in_the_card_and_others_are_not(run, tmp_path, capsys):
    sha = hashlib.sha256((run / "ckpt/last.ckpt").read_bytes()).hexdigest()
    mine = {"ckpt_sha": sha}
    for folder, about in (("probe-smoke", mine), ("probe-old", {"ckpt_sha": "0"})):
        place = run / "ckpt" / folder
        place.mkdir()
        results = PROBE | {"about": PROBE["about"] | about}
        (place / "results.json").write_text(json.dumps(results))
    assert export(run, tmp_path / "out") == 0
    strange = run / "probe-strange" / "results.json"
    strange.parent.mkdir()
    strange.write_text(json.dumps({"about": mine, "variants": {"video": {"families": 3}}}))
    assert export(run, tmp_path / "out", "--overwrite") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "### probe-smoke" in card and "0.875" in card and "probe-old" not in card
    printed = capsys.readouterr().out
    assert "probe-old" in printed and "probe-strange" in printed


def test_without_a_run_folder_the_card_says_what_is_not_known(run, tmp_path):
    alone = tmp_path / "alone" / "x.ckpt"
    alone.parent.mkdir()
    alone.write_bytes((run / "ckpt/last.ckpt").read_bytes())
    assert cli.main(["export", "--ckpt", str(alone), "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "data: not known" in card and "Nothing was measured" in card
    assert not (tmp_path / "out" / "recipe.yaml").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ckpt", "nowhere.ckpt"], "does not exist"),
        (["--ckpt", "https://x.example/last.ckpt"], "is a URL"),
        (["--push", "no-owner"], "OWNER/NAME"),
        (["--push", "../../etc"], "OWNER/NAME"),
        (["--public"], "--push"),
    ],
)
def test_mistakes_are_told_before_anything_is_read(words, said, run, tmp_path, capsys):
    assert export(run, tmp_path / "out", *words) == 2
    message = capsys.readouterr().err
    assert said in message and len(message.splitlines()) <= 8
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_and_a_damaged_checkpoint(run, tmp_path, capsys):
    assert export(run, tmp_path / "out") == 0
    card = (tmp_path / "out" / "README.md").read_bytes()
    assert export(run, tmp_path / "out") == 2
    assert "--overwrite" in capsys.readouterr().err
    ckpt = run / "ckpt" / "last.ckpt"
    ckpt.write_bytes(ckpt.read_bytes()[:1000])
    assert export(run, tmp_path / "out", "--overwrite") == 2
    assert "last.ckpt" in capsys.readouterr().err
    assert (tmp_path / "out" / "README.md").read_bytes() == card  # nothing written over
    assert cli.main(["export", "--ckpt", str(tmp_path / "out"), "--out", str(tmp_path / "b")]) == 2
    assert "is an export already" in capsys.readouterr().err


def test_hostile_weights_end_with_code_2(run, tmp_path, capsys):
    assert export(run, tmp_path / "out") == 0
    weights = tmp_path / "out" / "model.safetensors"
    weights.write_bytes(b"\xff" * 8 + weights.read_bytes()[8:])
    capsys.readouterr()
    words = ["--prompt", "a ball", "--out", str(tmp_path / "x.mp4")]
    assert cli.main(["rollout", "--ckpt", str(tmp_path / "out"), *words]) == 2
    assert "model.safetensors is damaged" in capsys.readouterr().err


def test_inspect_and_rollout_take_an_export(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(run, out) == 0
    capsys.readouterr()
    assert cli.main(["inspect", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "export," in printed and "128 positions" in printed and "trained" not in printed
    words = ["--prompt", "a ball", "--seconds", "0.2", "--out", str(tmp_path / "x.mp4")]
    assert cli.main(["rollout", "--ckpt", str(out), *words]) == 0
    assert (tmp_path / "x.wav").is_file()


def test_an_upload_that_fails_keeps_the_folder(run, tmp_path, monkeypatch, capsys):
    from mmpredict.exported import hub

    def no_network(*_: object, **__: object) -> str:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(hub, "push", no_network)
    assert export(run, tmp_path / "out", "--push", "somebody/model") == 2
    assert "no route to the hub" in capsys.readouterr().err
    assert mmpredict.load(tmp_path / "out").context_length == 128


def test_an_upload_is_private_unless_asked(run, tmp_path, monkeypatch, capsys):
    from mmpredict.exported import hub

    calls = []
    monkeypatch.setattr(hub, "push", lambda *a, **k: calls.append((a, k)) or "there")
    assert export(run, tmp_path / "a", "--push", "somebody/model") == 0
    assert export(run, tmp_path / "b", "--push", "somebody/model", "--public") == 0
    assert [k["private"] for _, k in calls] == [True, False]
    assert "uploaded to there" in capsys.readouterr().out
