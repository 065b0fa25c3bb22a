"""A second set of weights that follows the trained one slowly. In: a module's parameters, after
every optimiser step. Out: the same parameters with averaged values, while scores are taken.

Lightning's own EMAWeightAveraging was not taken: it averages on the host unless told the device,
asks the device for a number at every step, copies the whole LightningModule, and gives the averaged
weights back only after the closing scores were taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """average <- decay * average + (1 - decay) * weights, after every optimiser step.

    The first average is the weights themselves.

    Args:
        module: its parameters that require gradients are averaged, where they are.
        decay: share of the average that is kept; 0.999 remembers about 1000 steps.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = [p for p in module.parameters() if p.requires_grad]
        self.other = [p.detach().clone() for p in self.weights]
        place = {id(p): index for index, p in enumerate(self.weights)}
        every = module.named_parameters(remove_duplicate=False)  # a tied table has several names
        self.places = {name: place[id(p)] for name, p in every if p.requires_grad}
        self.depth = 0  # how often `shown` was entered; above 0 the module holds the average

    @torch.no_grad()
    def update(self, bad: Tensor | None = None) -> None:
        """Take the weights of a step in; no number leaves the device.

        Args:
            bad: 0-d, 1 where the step was skipped: the average then stays as it is.
        """
        if bad is None:
            torch._foreach_lerp_(self.other, self.weights, 1 - self.decay)
        else:
            share = (1 - self.decay) * (1 - bad)
            torch._foreach_lerp_(self.other, self.weights, [share] * len(self.other))

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The module holds the averaged weights inside."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def enter(self) -> None:
        """Put the average into the module; may be nested."""
        self.depth += 1
        if self.depth == 1:
            self._swap()

    def leave(self) -> None:
        """Undo one `enter`."""
        self.depth -= 1
        if self.depth == 0:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, other in zip(self.weights, self.other, strict=True):
            kept = weight.detach().clone()
            weight.copy_(other)
            other.copy_(kept)

    def running(self) -> dict[str, Tensor]:
        """The weights that are being trained, by name, whichever the module holds."""
        return self._named(self.other if self.depth else self.weights)

    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights by name, whichever the module holds."""
        return self._named(self.weights if self.depth else self.other)

    def _named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        return {name: tensors[place].detach() for name, place in self.places.items()}

    @torch.no_grad()
    def load(self, averaged: Mapping[str, Tensor]) -> None:
        """Go on from a saved average."""
        for name, tensor in self.averaged().items():
            tensor.copy_(averaged[name])
