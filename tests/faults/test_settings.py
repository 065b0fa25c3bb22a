"""A run that goes on with other settings: the command line wins over the recipe, the recipe over
the checkpoint, and what differs is said. What cannot go on is refused before anything is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from mmpredict.schema import UserError
from mmpredict.training.compared import check_architecture, differences, settings_note
from tests.faults import runs

pytestmark = pytest.mark.slow
STEPS = 6


def settings(**predictor) -> dict:
    """A tiny recipe without the spy, which is not needed here."""
    plain = runs.recipe(STEPS)
    plain["trainer"]["limit_val_batches"] = 0
    plain["trainer"]["num_sanity_val_steps"] = 0
    plain["model"]["init_args"]["lr"] = 0.002
    plain["model"]["init_args"]["predictor"] |= predictor
    return plain


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """A run of six steps that is over."""
    folder = tmp_path_factory.mktemp("first")
    code, said = runs.warm(folder, settings=settings()).finish()
    assert code == 0, said[-3000:]
    return folder


@pytest.fixture
def folder(first: Path, tmp_path: Path) -> Path:
    """The same run in a place of its own, to be gone on with."""
    shutil.copytree(first, tmp_path / "x")
    return tmp_path / "x"


def go_on(folder: Path, *words: str, code: int = 0, plain: dict | None = None) -> str:
    plain = settings() if plain is None else plain
    more = ("--ckpt_path", "run/ckpt/last.ckpt", *words)
    found, said = runs.warm(folder, *more, settings=plain).finish()
    assert found == code, said[-3000:]
    return said


def last(folder: Path) -> dict:
    return runs.checkpoint(folder / "run/ckpt/last.ckpt")


def note(said: str) -> str:
    (line,) = [line for line in said.splitlines() if "not the checkpoint's:" in line]
    return line


def test_the_command_line_wins_and_what_differs_is_said(folder):
    """The measured fault of the library: the checkpoint's rate was used in silence."""
    plain = settings()
    plain["model"]["init_args"]["weight_decay"] = 0.125
    words = ("--model.lr", "0.001", "--trainer.max_steps", "8")
    said = note(go_on(folder, *words, plain=plain))
    assert "model.lr 0.002 -> 0.001" in said
    assert f"trainer.max_steps {STEPS} -> 8" in said
    assert "model.weight_decay 0.05 -> 0.125" in said
    assert "data." not in said and "run_dir" not in said and "ckpt_path" not in said
    kept = last(folder)
    assert kept["global_step"] == 8
    group = kept["optimizer_states"][0]["param_groups"][0]
    assert group["initial_lr"] == 0.001 and group["weight_decay"] == 0.125
    config = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    assert config["model"]["init_args"]["lr"] == 0.001
    assert yaml.safe_load(kept["recipe"])["model"]["init_args"]["lr"] == 0.001


def test_the_same_settings_need_no_words(folder):
    assert "not the checkpoint's" not in go_on(folder)


def test_another_architecture_is_refused_with_a_table_and_the_way_on(folder):
    before = (folder / "run/ckpt/last.ckpt").read_bytes()
    said = go_on(folder, code=2, plain=settings(dim=48, depth=2, num_heads=3))
    error = said[said.index("error:") :].strip().splitlines()
    assert len(error) <= 8
    text = "\n".join(error)
    for words in ("predictor.dim 32 -> 48", "predictor.depth 1 -> 2", "--init_from"):
        assert words in text
    assert "Traceback" not in said
    assert (folder / "run/ckpt/last.ckpt").read_bytes() == before


def test_other_encoders_of_the_data_are_named(folder):
    said = go_on(folder, "--data.video.patch", "4", code=2)
    assert "data.video.patch 8 -> 4" in said and "--init_from" in said


def test_what_does_not_touch_the_weights_may_differ(folder):
    plain = settings(window=64)
    said = note(go_on(folder, "--trainer.max_steps", "7", plain=plain))
    assert "model.predictor.window 0 -> 64" in said


# -- the comparison itself -----------------------------------------------------------------------


def test_differences_are_named_as_on_the_command_line():
    old = {"model": {"class_path": "A", "init_args": {"lr": 1, "sizes": (1, 2)}}, "gone": {"x": 1}}
    new = {"model": {"class_path": "B", "init_args": {"lr": 1.0, "sizes": [1, 3]}}, "new": None}
    assert differences(old, new) == {
        "gone.x": (1, "not set"),
        "model.class_path": ("A", "B"),
        "model.sizes": ([1, 2], [1, 3]),
        "new": ("not set", None),
    }


def test_a_note_is_short_and_survives_a_damaged_recipe():
    assert settings_note("a: 1", "a: 1") == ""
    many = {f"k{i}": i for i in range(100)}
    said = settings_note("{}", yaml.safe_dump(many))
    assert len(said) < 600 and "88 more" in said
    assert "cannot be read" in settings_note("a: [", "a: 1")
    assert len(settings_note("a: b", "a: " + "x" * 9999)) < 300


def test_a_checkpoint_without_weights_in_it_is_left_to_its_strategy():
    check_architecture(None, {"state_dict": {}})
    with pytest.raises(AttributeError):  # and one with weights is looked at
        check_architecture(None, {"state_dict": {"x": 1}})
    assert issubclass(UserError, ValueError)
