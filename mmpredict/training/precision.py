"""Which precision a run computes in where nobody said. In: what the machine has. Out: a value of
Trainer(precision=...).

Under bf16-mixed the weights, the residual stream, norms of fp32 inputs, losses, standardised
values, the flow head's preconditioning and rotary tables stay float32; matrix products take
bfloat16. fp16 is never chosen: on a CPU it is 25 times slower than bfloat16, and it overflows.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

HALF, FULL = "bf16-mixed", "32-true"
FP16 = ("16", "16-mixed", "16-true")


def best_precision(device_type: str) -> str:
    """`bf16-mixed` where the device multiplies bfloat16 faster than float32, else `32-true`."""
    return HALF if multiplies_bf16(device_type) else FULL


def multiplies_bf16(device_type: str) -> bool:
    """Whether matrix products of bfloat16 are in the hardware."""
    if device_type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type == "cpu" and bool({"avx512_bf16", "amx_bf16"} & cpu_flags())


def cpu_flags() -> set[str]:
    """Instruction sets of this processor as Linux names them; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    if platform.system() != "Linux" or not path.is_file():
        return set()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, values = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(values.split())
    return set()


def device_type(accelerator: Any) -> str:
    """The device that Trainer(accelerator=...) will take: `cuda`, `cpu`, `mps`, ..."""
    if accelerator in ("gpu", "cuda") or (accelerator in ("auto", None) and _has_gpu()):
        return "mps" if _has_mps() and not torch.cuda.is_available() else "cuda"
    return "cpu" if accelerator in ("auto", None) else str(accelerator)


def _has_gpu() -> bool:
    return torch.cuda.is_available() or _has_mps()


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def choose(trainer: dict[str, Any]) -> str | None:
    """The precision for these arguments of a Trainer; None where a plugin or strategy brings its
    own.

    Raises:
        ValueError: float16 on a CPU.
    """
    device, asked = device_type(trainer.get("accelerator")), trainer.get("precision")
    if device == "cpu" and str(asked) in FP16:
        raise ValueError(
            f"trainer.precision={asked} on a CPU: float16 is slower there than float32 and "
            f"overflows; take {best_precision('cpu')} or leave it out"
        )
    if asked is not None or trainer.get("plugins"):
        return asked
    return best_precision(device)
