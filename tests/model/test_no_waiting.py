"""A step asks the device for nothing: no number is read back, no shape depends on values there.

On a GPU torch itself watches; on a CPU the operations that would wait are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmpredict.model.config import ContextNoise
from mmpredict.objectives import LossWeights, next_loss
from tests.builders import LAYOUT, generator, packed_rows, predictor

WAITING = {
    "aten._local_scalar_dense.default",
    "aten.nonzero.default",
    "aten.masked_select.default",
    "aten._unique2.default",
    "aten.repeat_interleave.Tensor",
    "aten.is_nonzero.default",
    "aten.equal.default",
}
OPTIONS = {
    "plain": {},
    "far horizons": {"horizons": (1, 2)},
    "experts": {"experts": "ffn"},
    "context noise": {"context_noise": ContextNoise(share=0.5)},
    "regression": {"kind": "regression"},
    "gmm": {"kind": "gmm"},
}


class Watch(TorchDispatchMode):
    """Refuses what would make a GPU's host wait."""

    supports_higher_order_operators = True  # FlexAttention is one, and is run as it is

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = str(func)
        by_mask = name.startswith("aten.index.Tensor") and any(
            x is not None and x.dtype == torch.bool for x in args[1]
        )
        assert name not in WAITING and not by_mask, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_no_operation_of_a_forward_pass_waits(options: dict):
    model = predictor(attention="flex", num_heads=1, **options).train()
    batch = packed_rows().placed()
    with torch.no_grad(), Watch():
        said = model(batch, generator(0))
        losses = next_loss(said, LAYOUT, LossWeights())
    assert losses.total.isfinite()


def test_the_watch_sees_what_waits():
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Watch():
        torch.ones(1).item()
    with pytest.raises(AssertionError, match="index.Tensor waits"), Watch():
        torch.ones(3)[torch.ones(3, dtype=torch.bool)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_step_on_a_gpu_does_not_wait(options: dict):
    model = predictor(num_heads=1, **options).train().cuda()
    batch = packed_rows().pin_memory().to("cuda", non_blocking=True)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        next_loss(model(batch), LAYOUT, LossWeights()).total.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # compiles
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
