"""F3, F4: disks that are full, and files that are not what was written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mmpredict.training.checkpoint import check_hash, newest
from tests.faults import runs


def settings(steps: int) -> dict:
    """Without validations: nothing is drawn."""
    recipe = runs.recipe(steps)
    recipe["trainer"]["limit_val_batches"] = 0
    recipe["trainer"]["callbacks"][1]["init_args"]["every_n_train_steps"] = 2
    return recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of 4 steps: last.ckpt of step 4, previous.ckpt of step 2."""
    folder = tmp_path_factory.mktemp("trained")
    code, said = runs.warm(folder, settings=settings(4)).finish()
    assert code == 0, said[-3000:]
    return folder


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


def go_on(folder: Path, *more: str, steps: int = 8, **options) -> tuple[int, str]:
    words = ("--ckpt_path", "last", *more)
    return runs.warm(folder, *words, settings=settings(steps), **options).finish()


@pytest.mark.slow
def test_a_disk_that_is_full_costs_no_checkpoint_and_not_the_run(copied: Path):
    ckpt = copied / "run" / "ckpt"
    before = (ckpt / "last.ckpt").read_bytes()
    code, said = go_on(copied, limit_bytes=len(before) - 1000)
    assert code == 0, said[-3000:]
    assert max(runs.batches_of(copied)) == 8  # it went on to its end
    assert said.count("could not be written") == 1 and "last.ckpt stays" in said
    assert "the weights of step 8 are not saved" in said
    assert (ckpt / "last.ckpt").read_bytes() == before and check_hash(ckpt / "last.ckpt")
    assert {p.name for p in ckpt.glob("*.ckpt*")} == {
        f"{name}.ckpt{ending}" for name in ("last", "previous") for ending in ("", ".sha256")
    }


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4000])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(copied: Path, damage):
    ckpt = copied / "run" / "ckpt"
    damage(ckpt / "last.ckpt")
    (copied / "spy.jsonl").unlink()
    code, said = go_on(copied)
    assert code == 0, said[-3000:]
    assert said.count("passed over") == 1 and "last.ckpt is damaged" in said
    assert min(runs.batches_of(copied)) == 3  # from previous.ckpt, of step 2
    assert (ckpt / "last.ckpt.damaged").is_file()  # it did not push the whole one out
    assert newest(ckpt) == (ckpt / "last.ckpt", [])
    assert runs.checkpoint(ckpt / "last.ckpt")["global_step"] == 8


@pytest.mark.slow
def test_without_any_whole_checkpoint_nothing_is_begun_and_nothing_written(copied: Path):
    ckpt = copied / "run" / "ckpt"
    for name in ("last", "previous"):
        cut(ckpt / f"{name}.ckpt")
    before = {p: p.read_bytes() for p in ckpt.iterdir()}
    code, said = go_on(copied)
    assert code == 2 and len(said.strip().splitlines()) <= 8
    assert "last.ckpt" in said and "previous.ckpt" in said
    assert {p: p.read_bytes() for p in ckpt.iterdir()} == before
