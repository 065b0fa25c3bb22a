"""What is in a checkpoint: tensors and plain types, whatever wrote it, and all that a run needs."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from mmpredict.training import checkpoint_io
from mmpredict.training.checkpoint import description, load_predictor, read
from tests.training.test_pretrain import pretrain, trainer, world

PLAIN = (dict, OrderedDict, list, tuple, str, int, float, bool, bytes, type(None))


def foreign(thing: Any, path: str = "") -> list[str]:
    """Where something stands that is neither a tensor nor a plain type."""
    if type(thing) in (torch.Tensor, torch.nn.Parameter):
        return []
    if type(thing) not in PLAIN:
        return [f"{path}: {type(thing).__name__}"]
    if isinstance(thing, dict):
        return [f for key, value in thing.items() for f in foreign(value, f"{path}.{key}")]
    if isinstance(thing, list | tuple):
        return [f for n, value in enumerate(thing) for f in foreign(value, f"{path}.{n}")]
    return []


def test_a_foreign_type_would_be_found():
    assert foreign({"a": [torch.zeros(1), Path("x")]}) == [".a.1: PosixPath"]


def test_all_three_streams_with_an_average_are_plain(tmp_path: Path):
    data = world()
    model = pretrain(data, ema=0.9)
    run = trainer(tmp_path, 1, plugins=[checkpoint_io.VerifiedCheckpointIO()])
    run.fit(model, datamodule=data)
    run.save_checkpoint(tmp_path / "x.ckpt")
    found = read(tmp_path / "x.ckpt")
    assert foreign(found) == []
    assert {"state_dict", "optimizer_states", "lr_schedulers", "World", "mmpredict"} <= found.keys()


@pytest.mark.parametrize(
    ("about", "error"),
    [
        (None, "was not written by mmpredict"),
        ({"format": 1}, "format 1.*train anew"),
        ({"format": 99}, "format 99.*install a newer"),
    ],
)
def test_what_this_version_cannot_use_is_named(tmp_path: Path, about: Any, error: str):
    content = {"state_dict": {}} | ({} if about is None else {"mmpredict": about})
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=error):
        description(read(tmp_path / "x.ckpt"), tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"x\.ckpt"):
        load_predictor(tmp_path / "x.ckpt")


def test_a_file_without_a_dict_is_no_checkpoint(tmp_path: Path):
    torch.save([1, 2], tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="holds a list"):
        read(tmp_path / "x.ckpt")
