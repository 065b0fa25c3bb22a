"""What `--ckpt_path` names: a file, a folder, or `last`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmpredict import cli
from mmpredict.training.checkpoint_io import write
from mmpredict.training.saving import Checkpoints, path_of


def trainer(folder: Path, *callbacks: object) -> SimpleNamespace:
    return SimpleNamespace(default_root_dir=folder, callbacks=list(callbacks))


def saved(path: Path, step: int = 1) -> Path:
    write({"global_step": step, "state_dict": {"w": torch.zeros(300)}}, path)
    return path


def test_last_is_of_this_run(tmp_path: Path, capsys):
    last = saved(tmp_path / "ckpt" / "last.ckpt")
    assert path_of("last", trainer(tmp_path), starts=True) == str(last)
    elsewhere = saved(tmp_path / "kept" / "last.ckpt")
    ours = Checkpoints(tmp_path / "kept")
    assert path_of("last", trainer(tmp_path, ours), starts=False) == str(elsewhere)
    assert path_of(str(tmp_path), trainer(tmp_path / "other"), starts=True) == str(last)
    assert path_of(None, trainer(tmp_path), starts=True) is None


def test_one_command_starts_and_restarts_but_measures_nothing_that_is_not_there(
    tmp_path: Path, capsys
):
    assert path_of("last", trainer(tmp_path), starts=True) is None
    assert "begins at step 0" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="no whole checkpoint"):
        path_of("last", trainer(tmp_path), starts=False)


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(tmp_path: Path):
    last = saved(tmp_path / "ckpt" / "last.ckpt")
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(FileNotFoundError, match=r"last\.ckpt"):
        path_of("last", trainer(tmp_path), starts=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ckpt_path", "last"], "name the run with --run_dir DIR"),
        (["--ckpt_path", "."], "is a folder without checkpoints"),
        (["--ckpt_path", "gone.ckpt"], "does not exist"),
    ],
)
def test_what_cannot_be_resumed_is_said_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, words: list[str], said: str
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["fit", "--config", "quickstart", *words]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())
