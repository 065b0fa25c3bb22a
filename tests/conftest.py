"""What every test starts from: one thread, float32, no window system, no files left behind."""

from __future__ import annotations

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """At toy sizes two threads wait for each other most of the time."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _clean_process(tmp_path, monkeypatch):
    """Leave no dtype, precision, process group or run folder behind for the next test."""
    monkeypatch.delenv("MMPREDICT_RUN_DIR", raising=False)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")  # a run by command sets "medium"
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os.environ.pop("MMPREDICT_RUN_DIR", None)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
