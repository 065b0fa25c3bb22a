"""Several ranks, each with its own share of a batch: as if one had seen it all.

In: what a rank's predictor says of its rows. Out: a factor on each stream's loss, by which the
mean over the ranks becomes the mean over all their blocks; and a loss that reaches every parameter,
also those of streams that this rank's rows lack, so that the sum of gradients waits for nobody.

Asking torch to look for unused parameters walks the graph in every step; here it is walked once for
each set of streams that a rank meets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mmpredict.schema import Batch, IdsPrediction, Layout, Prediction

NEXT_STREAM = "next_stream"


class Ranks:
    """What the ranks have to agree on in a step; on the hosts, no device is waited for.

    Args:
        layout: the streams.
        module: what is trained.
    """

    def __init__(self, layout: Layout, module: nn.Module) -> None:
        self.names = [spec.name for spec in layout.streams] + [NEXT_STREAM]
        self.layout, self.module = layout, module
        self.group = dist.new_group(backend="gloo")
        self._unused: dict[Any, list[int]] = {}  # by what a batch holds: numbers of parameters

    def factors(self, prediction: Prediction) -> dict[str, float]:
        """Of each stream, and of the choice of the next: this rank's blocks over the mean of all
        ranks' blocks."""
        own = torch.tensor([float(count) for count in self._counts(prediction)])
        every = own.clone()
        dist.all_reduce(every, group=self.group)
        shares = own * dist.get_world_size() / every.clamp(min=1)
        return dict(zip(self.names, shares.tolist(), strict=True))

    def average_apart(self, parameters: Iterable[nn.Parameter]) -> None:
        """The mean over the ranks of the gradients of what stands beside FSDP2's shards: nobody
        else takes it. All have a gradient (`reaching_all`)."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if gradients and any(isinstance(part, FSDPModule) for part in self.module.children()):
            whole = torch.stack(gradients)
            dist.all_reduce(whole)
            for gradient, mean in zip(gradients, whole / dist.get_world_size(), strict=True):
                gradient.copy_(mean)

    def _counts(self, prediction: Prediction) -> list[int]:
        counts = []
        for spec in self.layout.streams:
            said = prediction.streams.get(spec.modality)
            if said is None:
                counts.append(0)
            else:
                ids = isinstance(said, IdsPrediction)
                counts.append(len(said.targets_M if ids else said.targets_MPD))
        turns = prediction.next_stream
        return [*counts, 0 if turns is None else len(turns.targets_M)]

    def reaching_all(self, total: Tensor, prediction: Prediction, batch: Batch) -> Tensor:
        """The same loss, with a gradient of 0 for the parameters that it does not depend on."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        held = (
            frozenset(prediction.streams),
            frozenset(prediction.latents),
            prediction.next_stream is None,
            frozenset(batch.contents),
        )
        if held not in self._unused:
            used = reached(total)
            self._unused[held] = [n for n, p in enumerate(parameters) if id(p) not in used]
        # What FSDP2 keeps in parts between two layers belongs to the trunk, which is always used.
        missing = [parameters[n] for n in self._unused[held]]
        missing = [p for p in missing if not isinstance(p, DTensor)]
        if not missing:
            return total
        nothing = 0.0 * torch.stack([p.flatten()[0].float() for p in missing]).sum()
        return total.to(nothing.device) + nothing


def reached(total: Tensor) -> set[int]:
    """Identities of the parameters that a loss depends on."""
    found: set[int] = set()
    seen: set[Any] = set()
    nodes = [total.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        nodes.extend(next_node for next_node, _ in node.next_functions)
    return found
