"""Every recipe carries its passport, is short, passes the check, and builds what it names."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pytorch_lightning import LightningDataModule, LightningModule

from mmpredict import cli, command_line, lightning_cli, recipe_files
from mmpredict.recipe_check import Check
from mmpredict.tokens import MelChunks, Patches

MAX_RECIPE_LINES = 60
PASSPORT = ("What", "Run", "Cost", "Expect")
RECIPES = recipe_files.shipped_recipes()
each_recipe = pytest.mark.parametrize("path", RECIPES, ids=recipe_files.recipe_name)


def command_for(path: Path, *words: str) -> command_line.Command:
    return command_line.parse("fit", ["--config", str(path), *allowed(path), *words])


def allowed(path: Path) -> list[str]:
    """The packages that the recipe's own command allows."""
    words = recipe_files.head(path)["Run"].split()
    return [w for k, n in enumerate(words) if n == "--allow-import" for w in words[k : k + 2]]


def test_there_are_recipes():
    assert {"quickstart", "smoke"} <= {recipe_files.recipe_name(path) for path in RECIPES}


@each_recipe
def test_passport_and_length(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    head = recipe_files.head(path)
    assert [word for word in PASSPORT if not head.get(word)] == []
    assert path.name in head["Run"], "the command must be this recipe's"
    assert len(lines) <= MAX_RECIPE_LINES


@each_recipe
def test_recipe_passes_the_check(path):
    assert [str(problem) for problem in Check(command_for(path)).run()] == []


@each_recipe
def test_an_injected_typo_is_caught(path, tmp_path, capsys):
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings["data"].setdefault("init_args", {})["vidoe"] = {"size": 32}
    broken = tmp_path / path.name
    broken.write_text(yaml.safe_dump(settings))
    assert cli.main(["fit", "--config", str(broken), *allowed(path)]) == 2
    assert "unknown key `vidoe` in data" in capsys.readouterr().err


@each_recipe
def test_recipe_builds(path, tmp_path, monkeypatch):
    """Data, model, callbacks and trainer are built by the real parser; nothing is trained."""
    monkeypatch.chdir(tmp_path)
    if recipe_files.recipe_name(path) == "lerobot":  # its model is built for what the robot has
        pytest.importorskip("pyarrow")
        from tests.datamodules.lerobot_files import CAMERAS, Dataset

        Dataset(cameras=CAMERAS[:1]).write(tmp_path / "lerobot")
    if recipe_files.recipe_name(path) == "fsq":  # its heads stand on trained tokenizers
        from datamodules import World
        from tests.model.heads_small import write_tokenizers

        data = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]["init_args"]
        video, audio = Patches(**data["video"]), MelChunks(**data["audio"])
        layout = World(video=video, audio=audio, text=None).layout
        write_tokenizers(tmp_path / "runs/fsq_tokenizer/ckpt/last.ckpt", layout.streams)
    if recipe_files.recipe_name(path) == "from_llm":  # begins with a folder made beforehand
        from tests.model.llama_folder import write_llama

        write_llama(tmp_path / "smollm2")
    command = command_for(path, "--run_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu")
    lightning_cli.trust(command.trusted)
    built = lightning_cli.TrainerCLI(command, lightning_cli.FirstBatch(), run=False)
    assert isinstance(built.model, LightningModule)
    assert isinstance(built.datamodule, LightningDataModule)
    assert built.trainer.default_root_dir == str(tmp_path / "run")
