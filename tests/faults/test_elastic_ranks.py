"""F24: several processes. The same run again from its checkpoint, sharded or not; and the same
documents in the same order however many processes share them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmpredict.training.checkpoint import check_hash, newest, read
from tests.faults import runs

DDP = {"devices": 2, "strategy": "ddp"}
FSDP2 = {
    "devices": 2,
    "strategy": {
        "class_path": "pytorch_lightning.strategies.ModelParallelStrategy",
        "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1},
    },
}


def settings(steps: int, how: dict[str, Any], rows: int = 1) -> dict:
    """A run without validations in several processes; `rows` of each."""
    recipe = runs.recipe(steps)
    recipe["trainer"] |= how | {"limit_val_batches": 0, "num_sanity_val_steps": 0}
    recipe["trainer"]["callbacks"][1]["init_args"]["every_n_train_steps"] = 3
    recipe["data"]["init_args"]["loading"] |= {"workers": 0, "rows": rows}
    return recipe


def documents(folder: Path, ranks: int) -> dict[int, list[float]]:
    """By step, sums over all ranks: of every stream, what the global batch holds."""
    logs = [runs.batches_of(folder, f"spy.jsonl.{r}" if r else "spy.jsonl") for r in range(ranks)]
    assert all(log.keys() == logs[0].keys() for log in logs)
    parts = {step: [log[step][1] for log in logs] for step in logs[0]}
    return {step: [round(sum(p), 2) for p in zip(*own, strict=True)] for step, own in parts.items()}


@pytest.mark.slow
def test_two_processes_go_on_exactly_and_one_process_with_the_same_documents(tmp_path: Path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    runs.fit(whole, settings=settings(6, DDP))
    runs.fit(broken, settings=settings(3, DDP))
    for name in ("spy.jsonl", "spy.jsonl.1"):
        assert sorted(runs.batches_of(broken, name)) == [1, 2, 3]
    saved = runs.checkpoint(broken / "run/ckpt/last.ckpt")
    assert len(saved["randomness"]) == 2 and check_hash(broken / "run/ckpt/last.ckpt")
    alone = tmp_path / "alone"  # the same checkpoint, one process with two rows
    alone.mkdir()
    (broken / "run").rename(alone / "run")
    runs.fit(alone, "--ckpt_path", "last", settings=settings(6, {}, rows=2))
    expected = documents(whole, ranks=2)
    assert documents(alone, ranks=1) == {n: expected[n] for n in (4, 5, 6)}


@pytest.mark.slow
@pytest.mark.parametrize("how", [DDP, FSDP2], ids=["ddp", "fsdp2"])
def test_several_processes_resume_bit_by_bit(tmp_path: Path, how: dict[str, Any]):
    """Losses of each rank; the decay of the learning rate is over the same steps in both."""
    runs.fit(tmp_path, settings=settings(6, how))
    ckpt = tmp_path / "run" / "ckpt"
    logs = {name: runs.batches_of(tmp_path, name) for name in ("spy.jsonl", "spy.jsonl.1")}
    assert all(sorted(log) == list(range(1, 7)) for log in logs.values())
    assert newest(ckpt) == (ckpt / "last.ckpt", []) and check_hash(ckpt / "previous.ckpt")
    assert read(ckpt / "previous.ckpt")["global_step"] == 3
    for name in logs:
        (tmp_path / name).unlink()
    from_three = ("--ckpt_path", "run/ckpt/previous.ckpt")
    runs.fit(tmp_path, *from_three, settings=settings(6, how))
    for name, log in logs.items():
        assert runs.batches_of(tmp_path, name) == {n: log[n] for n in (4, 5, 6)}


@pytest.mark.slow
def test_one_process_becomes_two_with_the_same_documents(tmp_path: Path):
    whole, more = tmp_path / "whole", tmp_path / "more"
    for folder, steps in ((whole, 6), (more, 3)):
        code, said = runs.warm(folder, settings=settings(steps, {}, rows=2)).finish()
        assert code == 0, said[-2000:]
    (more / "spy.jsonl").unlink()
    runs.fit(more, "--ckpt_path", "last", settings=settings(6, DDP))
    expected = documents(whole, ranks=1)
    found = documents(more, ranks=2)
    assert found.keys() == {4, 5, 6}
    for step in found:
        assert found[step] == pytest.approx(expected[step], abs=0.02)


def test_a_sharded_checkpoint_holds_tensors_and_plain_types(tmp_path: Path):
    """Its other half, meta.pt, is opened like any checkpoint."""
    folder = tmp_path / "last.ckpt"
    folder.mkdir()
    torch.save({"global_step": 3, "loops": {}}, folder / "meta.pt")
    assert read(folder) == {"global_step": 3, "loops": {}}
