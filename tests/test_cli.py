"""The front door: what a user sees when something is wrong, and how fast.

The laws: a mistake is answered in at most eight lines with file, line and remedy, and exit code 2;
nothing that a recipe names is imported before it is allowed; torch is not loaded to say any of it.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mmpredict import cli, command_line, recipe_files, recipe_show, run_folder, signatures
from mmpredict.recipe_check import Check

GOOD = """\
# What:   a recipe for these tests
seed_everything: 0
trainer:
  max_steps: 2
  accelerator: cpu
model:
  class_path: mmpredict.training.Pretrain
  init_args:
    predictor: {dim: 32}
    lr: 2.0e-3
data:
  class_path: datamodules.World
  init_args:
    video: {size: 32, patch: 4}
    text: null
"""
MAX_LINES = 8
# Goal: 0.5 s of CPU. The limit leaves room for a busy machine; loading torch takes some 3 s.
MAX_CPU_S = 1.0


def mistaken(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, f"{old!r} must stand once in the recipe"
    return GOOD.replace(old, new)


def said(text: str, tmp_path, monkeypatch, capsys, *words: str) -> str:
    """The message for a recipe, after checking its form and that it ended with code 2."""
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text(text, encoding="utf-8")
    code = cli.main(["fit", "--config", "bad.yaml", *words])
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert 1 <= len(err.splitlines()) <= MAX_LINES
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("old", "new", "line", "hint"),
    [
        ("trainer:", "trianer:", 3, "did you mean `trainer`"),
        ("seed_everything", "seed_everthing", 2, "did you mean `seed_everything`"),
        ("  max_steps: 2", "  max_step: 2", 4, "did you mean `max_steps`"),
        ("    lr: 2.0e-3", "    lrr: 2.0e-3", 10, "did you mean `lr`"),
        ("  init_args:\n    predictor", "  initargs:\n    predictor", 8, "unknown key `initargs`"),
        ("{dim: 32}", "{dimm: 32}", 9, "did you mean `dim`"),
        ("patch: 4", "pacth: 4", 14, "did you mean `patch`"),
        ("training.Pretrain", "training.Pretrian", 7, "did you mean `mmpredict.training.Pretrain`"),
        ("datamodules.World", "datamodules.Wrld", 12, "did you mean `datamodules.World`"),
        (
            "mmpredict.training.",
            "mmpredict.trainin.",
            7,
            "did you mean `mmpredict.training.Pretrain`",
        ),
        ("max_steps: 2", "max_steps: many", 4, "trainer.max_steps expects int, got 'many'"),
        ("max_steps: 2", "max_steps: [2]", 4, "trainer.max_steps expects int, got a list"),
        ("lr: 2.0e-3", "lr: null", 10, "model.lr expects float, got null"),
        ("{dim: 32}", "{dim: 32.5}", 9, "model.predictor.dim expects int, got 32.5"),
        ("{dim: 32}", "7", 9, "model.predictor expects a mapping (PredictorConfig), got 7"),
        ("  max_steps: 2", "  max_steps: 2\n  max_steps: 3", 5, "is there twice"),
        ("{dim: 32}", "{dim: 32", 10, "not valid YAML"),
        ("{dim: 32}", "!!python/object/apply:os.system [x]", 9, "plain values only"),
        ("datamodules.World", "os.system", 12, "--allow-import os"),
        ("mmpredict.training.Pretrain", "mmpredict.cli.sys.exit", 7, "there is no `sys`"),
        ("trainer:", "layout: 3\ntrainer:", 3, "unknown key `layout` at the top level"),
        ("    lr: 2.0e-3", "    layout: 3", 10, "unknown key `layout` in model"),
        ("trainer:", "max_steps: 3\ntrainer:", 3, "did you mean `trainer.max_steps`"),
        ("  accelerator: cpu", "  callbacks: [{class_path: EarlyStoping}]", 5, "EarlyStopping"),
    ],
)
def test_mistakes_in_a_recipe(old, new, line, hint, tmp_path, monkeypatch, capsys):
    message = said(mistaken(old, new), tmp_path, monkeypatch, capsys)
    assert message.startswith(f"bad.yaml:{line}: ")
    assert hint in message


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--trainer.max_epoch", "3"], "did you mean `max_epochs`"),
        (["--model.lrr", "1"], "--model.lrr: unknown key `lrr` in model (Pretrain)"),
        (["--model.init_args.predictor.dpth=3"], "did you mean `depth`"),
        (["--trainer.max_steps", "x"], "expects int, got 'x'"),
        (["--data.video.size", "[a, b]"], "data.video.size"),
        (["--trainer.max_steps"], "needs a value"),
        (["--trainer.max_steps", "--model.lr"], "needs a value"),
        (["trainer.max_steps=3"], "settings are written --key value"),
        (["--ckpt_path", "none.ckpt"], "checkpoint 'none.ckpt' does not exist"),
        (["--ckpt_path", "https://host/x.ckpt"], "is a URL"),
        (["--ckpt_path", "."], "is a folder"),
        (["--config", "quikstart_"], "no such file"),
        (["--model", "mmpredict.training.Pretran"], "did you mean `mmpredict.training.Pretrain`"),
        (["--weights_only", "false"], "unknown key `weights_only`"),
    ],
)
def test_mistakes_on_the_command_line(words, hint, tmp_path, monkeypatch, capsys):
    assert hint in said(GOOD, tmp_path, monkeypatch, capsys, *words)


def test_a_binary_file_is_not_a_recipe(tmp_path, capsys):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\x00\xff\xfe")
    assert cli.main(["fit", "--config", str(path)]) == 2
    assert "not UTF-8 text" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[" * 20_000, "a: &a [x,x]\nb: &b [*a,*a]\n" + "c: [*b]\n"])
def test_deep_nesting_and_aliases_are_harmless(text, tmp_path, capsys):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert cli.main(["fit", "--config", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) <= MAX_LINES


def test_an_alias_bomb_is_refused(tmp_path, capsys):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for i in range(1, 9):
        lines.append(f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 9) + "]")
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    assert cli.main(["fit", "--config", str(path)]) == 2
    assert "aliases" in capsys.readouterr().err


def test_unknown_verb(capsys):
    assert cli.main(["fitt"]) == 2
    message = capsys.readouterr().err
    assert "did you mean `fit`" in message and "rollout" in message
    assert cli.main(["--config", "x", "fit"]) == 2
    assert "the verb comes first" in capsys.readouterr().err


def test_no_recipe_at_all(capsys):
    assert cli.main(["fit"]) == 2
    assert "--config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ([], "required"),
        (["--ckpt", "x.ckpt", "--prompt", "p", "--out", "o.mp4"], "does not exist"),
        (["--ckpt", "s3://b/x.ckpt", "--prompt", "p", "--out", "o.mp4"], "URL"),
        (["--ckpt", __file__, "--prompt", "p", "--out", "o.mp4", "--seconds", "-1"], "above 0"),
        (
            ["--ckpt", __file__, "--prompt", "p", "--out", "o.mp4", "--tmperature", "1"],
            "tmperature",
        ),
    ],
)
def test_mistakes_of_rollout(words, hint, capsys):
    assert cli.main(["rollout", *words]) == 2
    message = capsys.readouterr().err
    assert hint in message
    assert len(message.splitlines()) <= MAX_LINES


def test_a_foreign_class_is_refused_before_it_is_imported(tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "foreign.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Data: ...\n")
    recipe = tmp_path / "x.yaml"
    recipe.write_text(mistaken("datamodules.World", "foreign.Data"))
    done = front_door(["fit", "--config", str(recipe)], tmp_path)
    assert done.returncode == 2
    assert "--allow-import foreign" in done.stderr
    assert not canary.exists()


def front_door(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, which says at its end whether torch was loaded."""
    code = (
        "import sys; from mmpredict.cli import main; code = main(sys.argv[1:]);"
        "print('torch loaded' if 'torch' in sys.modules else 'light'); sys.exit(code)"
    )
    search = [str(folder), str(Path(__file__).resolve().parent.parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(search)}
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["recipes"],
        ["fit", "--help"],
        ["fit", "--config", "bad.yaml"],
        ["show", "good.yaml"],
        ["ftt"],
    ],
    ids=" ".join,
)
def test_the_front_door_is_fast_and_loads_no_torch(words, tmp_path):
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "bad.yaml").write_text(mistaken("    lr: 2.0e-3", "    lrr: 2.0e-3"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = front_door(words, tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert done.stdout.splitlines()[-1] == "light", done.stderr
    assert spent_s < MAX_CPU_S


def command(tmp_path: Path, *words: str, text: str = GOOD) -> command_line.Command:
    path = tmp_path / "good.yaml"
    path.write_text(text)
    return command_line.parse("fit", ["--config", str(path), *words])


def test_the_good_recipe_is_good(tmp_path):
    assert Check(command(tmp_path)).run() == []


def test_the_command_line_wins_wherever_it_stands(tmp_path):
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    asked = command_line.parse("fit", ["--trainer.max_steps=9", "--config", str(path)])
    assert asked.tree.value["trainer"].value["max_steps"].value == "9"
    assert asked.trainer_words()[-1] == "--trainer.max_steps=9"


def test_short_form_leaves_out_init_args(tmp_path):
    asked = command(tmp_path, "--model.lr", "0.5", "--model.predictor.depth=3")
    arguments = asked.tree.value["model"].value["init_args"].value
    assert arguments["lr"].value == "0.5"
    assert arguments["predictor"].value["depth"].origin == "--model.predictor.depth"
    assert Check(asked).run() == []


def test_a_callback_can_be_added_and_set_on_the_command_line(tmp_path):
    words = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
    assert Check(command(tmp_path, *words)).run() == []
    (problem,) = Check(command(tmp_path, words[0], "--trainer.callbacks.moniter=x")).run()
    assert "did you mean `monitor`" in str(problem)
    (problem,) = Check(command(tmp_path, "--trainer.max_steps.x=3")).run()
    assert "trainer.max_steps expects int, got a mapping" in str(problem)


def test_recipes_merge_in_order(tmp_path):
    over = tmp_path / "over.yaml"
    over.write_text("trainer: {max_steps: 7}\n")
    asked = command(tmp_path, "--config", str(over))
    trainer = asked.tree.value["trainer"].value
    assert trainer["max_steps"].value == "7" and trainer["max_steps"].origin.endswith("over.yaml:1")
    assert trainer["accelerator"].value == "cpu"
    assert asked.name == "over"


def test_pretrain_is_the_default_model(tmp_path):
    asked = command(tmp_path, text=mistaken("  class_path: mmpredict.training.Pretrain\n", ""))
    assert asked.uses_default_model
    assert Check(asked).run() == []


def test_null_drops_a_stream_and_an_option_is_checked_inside(tmp_path):
    assert Check(command(tmp_path, "--data.audio", "null")).run() == []
    assert len(Check(command(tmp_path, "--data.audio.nonsense", "3")).run()) == 1


def test_show_prints_a_recipe_with_origins(tmp_path):
    asked = command(tmp_path, "--model.lr=0.25")
    assert Check(asked).run() == []
    lines = recipe_show.show(asked)
    text = "\n".join(lines)
    shown = yaml.safe_load(text)
    assert shown["model"]["init_args"]["lr"] == 0.25
    assert shown["model"]["init_args"]["predictor"]["dim"] == 32
    assert any("dim: 32" in line and "good.yaml:9" in line for line in lines)
    assert any("lr: 0.25" in line and "--model.lr" in line for line in lines)
    assert any("depth:" in line and "default of PredictorConfig" in line for line in lines)
    again = tmp_path / "again.yaml"
    again.write_text(text)
    assert Check(command_line.parse("fit", ["--config", str(again)])).run() == []


def test_recipes_are_found_by_name_from_any_folder(tmp_path, monkeypatch):
    shipped = recipe_files.shipped_recipes()
    if not shipped:
        pytest.skip("no recipes yet")
    monkeypatch.chdir(tmp_path)
    name = recipe_files.recipe_name(shipped[0])
    for spelling in (name, f"{name}.yaml", f"recipes/{name}.yaml"):
        assert recipe_files.locate(spelling) == shipped[0]


def test_recipes_lists_one_line_each(capsys):
    assert cli.main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(recipe_files.shipped_recipes())
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines)


def test_signatures_follow_re_exports_and_bases():
    trainer = signatures.find("pytorch_lightning.Trainer")
    assert {"max_steps", "callbacks"} <= signatures.signature(trainer).parameters.keys()
    adam = signatures.find("torch.optim.AdamW")
    assert str(signatures.signature(adam).parameters["amsgrad"].kind) == "bool"
    assert signatures.find("torch.optim.NoSuch") is None


def test_run_folder_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = run_folder.choose(None, "my recipe/../x", "a: 1")
    second = run_folder.choose(None, "my recipe/../x", "a: 1")
    assert first != second and first.is_dir() and second.is_dir()
    assert first.parent.parent == Path("runs")
    assert first.parent.name == "my-recipe-..-x"
    assert run_folder.safe_name("../..") == "-.."
    assert run_folder.choose("there/it/is", "x", "") == Path("there/it/is")
    with pytest.raises(NotADirectoryError, match="is a file"):
        Path("file").write_text("")
        run_folder.choose("file", "x", "")


def test_ranks_started_from_outside_need_a_run_dir(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--run_dir"):
        run_folder.choose(None, "x", "")


def test_a_reader_that_leaves_early_is_no_crash():
    """`mmpredict show smoke | head -1`: the pipe closes while there is more to print."""
    command = [sys.executable, "-m", "mmpredict", "show", "smoke"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(timeout=60) == 128 + 13
    assert said == b""
