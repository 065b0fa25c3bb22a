"""Muon for matrices and AdamW for the rest, as one optimiser.

In: groups of parameters. Out: a torch Optimizer; its groups, state and state dict are those of both
parts side by side, so that schedules, clipping, accumulation and checkpoints need not know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

MOMENTUM = "momentum_buffer"  # in the state that torch's Muon keeps


class MuonAdamW(Optimizer):
    """Moves hidden matrices along orthogonalised momentum, everything else by AdamW.

    Muon (Jordan et al. 2024): B <- mu B + (1 - mu) G; U = the orthogonal matrix near
    (1 - mu) G + mu B, by five Newton-Schulz steps in bfloat16; W <- (1 - lr wd) W - a lr U, with
    a = 0.2 sqrt(max(rows, columns)), which gives the update the size of AdamW's (Liu et al. 2025,
    arXiv 2502.16982), so that both parts share one learning rate.

    Args:
        muon_groups: groups of 2-D parameters, in torch's form.
        adamw: the optimiser of the rest.
        lr: of the Muon groups that do not name their own.
        momentum: mu.
    """

    def __init__(
        self,
        muon_groups: list[dict[str, Any]],
        adamw: AdamW,
        *,
        lr: float,
        momentum: float = 0.95,
    ) -> None:
        muon = Muon(muon_groups, lr=lr, momentum=momentum, adjust_lr_fn="match_rms_adamw")
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._muon, self._adamw = muon, adamw
        self._share()

    def _share(self) -> None:
        """Both parts work on this optimiser's own groups and state, also after they were loaded."""
        count = len(self._muon.param_groups)
        self._muon.param_groups = self.param_groups[:count]
        self._adamw.param_groups = self.param_groups[count:]
        self._muon.state = self._adamw.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both parts."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf = getattr(self, "found_inf", None)
        if found_inf is None:
            self._muon.step()
        else:
            self._adamw.found_inf = found_inf
            self._move_hidden_unless(found_inf > 0)
        self._adamw.step()
        return loss

    def _move_hidden_unless(self, bad: Tensor) -> None:
        """Muon's step; where `bad` is True all is as before, and nobody had to wait to know."""
        hidden = [p for g in self._muon.param_groups for p in g["params"] if p.grad is not None]
        weights = [p.detach().clone() for p in hidden]
        momenta = [self.state[p].get(MOMENTUM, torch.zeros_like(p)).clone() for p in hidden]
        self._muon.step()
        for p, weight, momentum in zip(hidden, weights, momenta, strict=True):
            p.copy_(torch.where(bad, weight, p))
            now = self.state[p][MOMENTUM]
            now.copy_(torch.where(bad, momentum, now))
