"""Four tiny trainings go as they went when their losses were written down (tests/faults/golden.py).

A failure means that a change of the code changed what is trained. If that is meant, say so in the
change and renew the files: python -m tests.faults.golden
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import golden, runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Files as the golden ones, made now."""
    out = tmp_path_factory.mktemp("golden")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.golden", "--out", str(out)],
        cwd=runs.ROOT,
        env=os.environ | golden.ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=4 * runs.LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", golden.RECIPES)
def test_the_losses_are_those_that_were_kept(name, trained):
    wanted, new = golden.read(name), golden.read(name, trained)
    got = new["batches"]
    assert len(got) == len(wanted["batches"]) >= golden.STEPS
    same_machine = wanted["machine"] == new["machine"]
    for number, ((documents, loss), (want_documents, want)) in enumerate(
        zip(got, wanted["batches"], strict=True)
    ):
        where = f"{name}, batch {number}: {float.fromhex(loss)}, not {float.fromhex(want)}"
        if same_machine:
            assert documents == want_documents, f"{name}, batch {number}: other documents"
            assert loss == want, where
        else:
            near = {"rel_tol": golden.NEAR, "abs_tol": 0.0}
            assert math.isclose(float.fromhex(loss), float.fromhex(want), **near), where


@pytest.mark.parametrize("name", golden.RECIPES)
def test_what_was_kept_is_a_training(name):
    """Twenty steps, finite, each on other documents, and better at the end than at the start."""
    batches = golden.read(name)["batches"]
    losses = [float.fromhex(loss) for _, loss in batches]
    # Of two batches a step; the last step of an epoch may have one.
    steps = range(golden.STEPS * 2 - 4, golden.STEPS * 2 + 1) if name == "text" else [golden.STEPS]
    assert len(losses) in steps
    assert all(map(math.isfinite, losses))
    assert sum(losses[-4:]) < sum(losses[:4])
    assert len({str(documents) for documents, _ in batches}) >= 10
    assert len(set(losses)) == len(losses)
