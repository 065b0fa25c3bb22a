"""F1, F2: a run is killed without warning, at any moment, and goes on as if nothing had been."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from mmpredict.training.checkpoint import check_hash, newest
from tests.faults import runs

STEPS, KILLS = 60, 20


def settings(steps: int, every: int = 3) -> dict:
    """Saves often, validates seldom: what is drawn after a validation costs more than the steps."""
    recipe = runs.recipe(steps)
    recipe["trainer"]["val_check_interval"] = 20
    recipe["trainer"]["callbacks"][1]["init_args"]["every_n_train_steps"] = every
    recipe["data"]["init_args"]["loading"]["workers"] = 0
    return recipe


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("clean")
    code, said = runs.warm(folder, settings=settings(STEPS)).finish()
    assert code == 0, said[-3000:]
    return folder


@pytest.mark.slow
def test_killed_twenty_times_it_ends_as_the_undisturbed_run(tmp_path: Path, clean: Path):
    """Every second kill falls into a save: it comes as soon as a .part file is seen. The others
    fall anywhere in the 0 to 4 steps after the first step of a start."""
    draw, inside = random.Random(0), 0
    ckpt = tmp_path / "run" / "ckpt"

    def saving() -> bool:
        return any(ckpt.glob("*.part"))

    for kill in range(KILLS):
        target = lines(tmp_path) + 1 + (0 if kill % 2 else draw.randint(0, 4))
        run = runs.warm(tmp_path, "--ckpt_path", "last", settings=settings(STEPS))
        assert runs.wait_until(lambda t=target: lines(tmp_path) >= t, run)
        if kill % 2:
            runs.wait_until(saving, run)
        else:
            time.sleep(draw.uniform(0, 0.05))
        run.kill()
        code, said = run.finish()
        assert code == -signal.SIGKILL, said[-3000:]
        inside += saving()
        assert newest(ckpt)[1] == [] or not ckpt.is_dir()  # a kill damages nothing
    code, said = runs.warm(tmp_path, "--ckpt_path", "last", settings=settings(STEPS)).finish()
    assert code == 0, said[-3000:]
    assert inside >= KILLS // 4
    ended, expected = (runs.checkpoint(f / "run/ckpt/last.ckpt") for f in (tmp_path, clean))
    assert ended["global_step"] == expected["global_step"] == STEPS
    assert runs.differing(ended, expected) == []
    assert runs.batches_of(tmp_path) == runs.batches_of(clean)
    assert sorted(runs.batches_of(clean)) == list(range(1, STEPS + 1))
    assert not list(ckpt.glob("*.part"))


def lines(folder: Path) -> int:
    """Batches that were written down so far, repeated ones included."""
    path = folder / "spy.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def test_killed_in_a_save_with_temporary_files_on_another_disk(tmp_path: Path):
    """F2: nothing goes through $TMPDIR; what was saved before stays whole, the rest is swept."""
    elsewhere = {"TMPDIR": "/dev/shm"} if Path("/dev/shm").is_dir() else {}
    ckpt = tmp_path / "run" / "ckpt"
    run = runs.warm(tmp_path, settings=settings(20), env=elsewhere)
    assert runs.wait_until((ckpt / "previous.ckpt").is_file, run)
    assert runs.wait_until(lambda: any(ckpt.glob("*.ckpt.part")), run)
    run.kill()
    assert run.finish()[0] == -signal.SIGKILL
    found, damaged = newest(ckpt)
    assert found is not None and check_hash(found) and not damaged
    reached = runs.checkpoint(found)["global_step"]
    (ckpt / "next.ckpt.part").write_bytes(b"half of it")  # wherever the kill fell
    more = ("--ckpt_path", "last", "--trainer.max_steps", str(reached + 1))
    code, said = runs.warm(tmp_path, *more, settings=settings(20), env=elsewhere).finish()
    assert code == 0 and "removed next.ckpt.part" in said
    assert not list(ckpt.glob("*.part"))
    assert runs.checkpoint(ckpt / "last.ckpt")["global_step"] == reached + 1
