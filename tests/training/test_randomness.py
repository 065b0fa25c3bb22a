"""Random states: in and out of a checkpoint, per rank."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from mmpredict.training.randomness import restore, states

CPU = torch.device("cpu")


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def drawn() -> list[float]:
    """Of every generator; odd numbers of normal ones leave a second half waiting."""
    own = [random.random(), random.gauss(0, 1), float(np.random.rand()), float(np.random.randn())]
    return own + torch.randn(3).tolist() + torch.rand(2).tolist()


def test_every_generator_goes_on_where_it_was(tmp_path: Path):
    seed(1)
    drawn()
    torch.save([states(CPU)], tmp_path / "x")
    expected = [drawn(), drawn()]
    seed(2)
    restore(torch.load(tmp_path / "x", weights_only=True), 0, CPU)
    assert [drawn(), drawn()] == expected


def test_each_rank_has_its_own_and_a_new_one_draws_differently():
    kept = []
    for rank in range(2):
        seed(rank)
        kept.append(states(CPU))
    found = []
    for rank in range(4):
        restore(kept, rank, CPU)
        found.append(drawn())
    assert all(found[a] != found[b] for a in range(4) for b in range(a))
    restore(kept, 3, CPU)
    assert drawn() == found[3]


@pytest.mark.gpu
def test_a_gpu_goes_on_where_it_was():
    device = torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(1)
    kept = states(device)
    expected = torch.randn(5, device=device)
    restore([kept], 0, device)
    assert torch.equal(torch.randn(5, device=device), expected)
