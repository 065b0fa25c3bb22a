"""F21: checkpoints of earlier versions load, or say what to do. Each change of the format adds a
file to fixtures/ (python -m tests.faults.test_old NAME makes one of the format of today)."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mmpredict.schema import Batch
from mmpredict.training.checkpoint import FORMAT, load_predictor, read
from tests.faults import runs

FIXTURES = Path(__file__).parent / "fixtures"
OLD = sorted(path.name.removesuffix(".ckpt.gz") for path in FIXTURES.glob("*.ckpt.gz"))
LIMIT = 300_000  # bytes of a fixture


def settings(steps: int) -> dict[str, Any]:
    """All three streams, an average, fast weights; as small as can be."""
    recipe = runs.recipe(steps)
    recipe["trainer"] |= {"limit_val_batches": 0, "num_sanity_val_steps": 0}
    own = recipe["model"]["init_args"]
    head = {"dim": 8, "depth": 1, "draws": 1}
    own["predictor"] = {
        "dim": 8,
        "depth": 1,
        "num_heads": 1,
        "hidden": 16,
        "fast_weights": {"every": 1, "num_heads": 1, "key_dim": 4, "value_dim": 4},
        "heads": {"audio": head, "video": head},
    }
    own["ema"] = 0.9
    recipe["data"]["init_args"]["video"] = {"size": 16, "patch": 4, "fps": 8}
    recipe["data"]["init_args"]["loading"]["context_length"] = 1024
    return recipe


def unpacked(name: str, folder: Path) -> Path:
    path = folder / "old.ckpt"
    path.write_bytes(gzip.decompress((FIXTURES / f"{name}.ckpt.gz").read_bytes()))
    return path


def surprise(path: Path) -> list[float]:
    """What the predictor makes of one document: a number for each position."""
    from mmpredict.schema import Tokens
    from mmpredict.sequence import interleave

    predictor, codecs, _ = load_predictor(path)
    ids = torch.tensor(list(b"the red ball rolls left"))
    words = Tokens(2, ids, torch.full(ids.shape, float("nan")).double())
    g = torch.Generator().manual_seed(0)
    spec = codecs.layout[1]
    shape = (3, spec.positions_per_block, spec.width)
    frames = torch.randint(256, shape, generator=g).to(torch.uint8)
    batch: Batch = interleave([Tokens(1, frames, torch.arange(3).double()), words], codecs.layout)
    with torch.no_grad():
        hidden = predictor.hidden(batch)
    weights = torch.linspace(-1, 1, hidden.shape[-1])
    return [round(float(x), 4) for x in (hidden @ weights).flatten()]


def make(name: str) -> None:
    """Write a fixture of today's format, and what its predictor says."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        runs.fit(Path(folder), settings=settings(3))
        last = Path(folder) / "run/ckpt/last.ckpt"
        (FIXTURES / f"{name}.ckpt.gz").write_bytes(gzip.compress(last.read_bytes(), 9, mtime=0))
        (FIXTURES / f"{name}.json").write_text(json.dumps(surprise(last)) + "\n")


def test_there_is_a_fixture_of_this_format_and_none_is_large():
    assert any(name.startswith(f"format-{FORMAT}") for name in OLD)
    assert all(path.stat().st_size < LIMIT for path in FIXTURES.iterdir())


@pytest.mark.parametrize("name", OLD)
def test_an_old_checkpoint_predicts_what_it_did(tmp_path: Path, name: str):
    path = unpacked(name, tmp_path)
    expected = json.loads((FIXTURES / f"{name}.json").read_text())
    assert surprise(path) == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert read(path)["global_step"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", OLD)
def test_an_old_run_goes_on(tmp_path: Path, name: str):
    path = unpacked(name, tmp_path)
    code, said = runs.warm(tmp_path, "--ckpt_path", str(path), settings=settings(5)).finish()
    assert code == 0, said[-3000:]
    assert sorted(runs.batches_of(tmp_path)) == [4, 5]


@pytest.mark.parametrize(("number", "remedy"), [(1, "train anew"), (FORMAT + 1, "install a newer")])
def test_another_format_names_the_way_out(tmp_path: Path, number: int, remedy: str):
    path = unpacked(OLD[0], tmp_path)
    content = torch.load(path, weights_only=True)
    content["mmpredict"]["format"] = number
    torch.save(content, path)
    with pytest.raises(ValueError, match=f"format {number}.*{remedy}"):
        load_predictor(path)


if __name__ == "__main__":
    make(sys.argv[1])
