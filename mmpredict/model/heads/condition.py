"""What a head knows of the past, withheld now and then while training, and guidance by it.

A head that has learned to speak with and without the past can be asked to say more of what the
past makes likely: said = null + guidance (said - null), classifier-free guidance (Ho & Salimans
2022).

Shapes: M blocks, P positions, D values, Z condition width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmpredict.schema import StreamSpec


class NoPast(nn.Module):
    """Learned stand-ins for z and for the previous block.

    Args:
        spec: the stream.
        z_dim: Z.
        share: of the blocks whose past is withheld while training.
    """

    def __init__(self, spec: StreamSpec, z_dim: int, share: float) -> None:
        super().__init__()
        self.share = share
        self.z_PZ = nn.Parameter(0.02 * torch.randn(spec.positions_per_block, z_dim))
        self.previous_D = nn.Parameter(torch.zeros(spec.width))

    def forward(self, z_MPZ: Tensor, previous_MPD: Tensor) -> tuple[Tensor, Tensor]:
        """The stand-ins, as many as there are blocks."""
        z = self.z_PZ.to(z_MPZ.dtype).expand_as(z_MPZ)
        return z, self.previous_D.to(previous_MPD.dtype).expand_as(previous_MPD)

    def withhold(
        self, z_MPZ: Tensor, previous_MPD: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """The past of most blocks, the stand-ins for the others."""
        chance_M = torch.rand(len(z_MPZ), generator=generator, device=z_MPZ.device)
        gone_M11 = (chance_M < self.share)[:, None, None]
        z, previous = self(z_MPZ, previous_MPD)
        return torch.where(gone_M11, z, z_MPZ), torch.where(gone_M11, previous, previous_MPD)


def no_past(spec: StreamSpec, z_dim: int, share: float) -> NoPast | None:
    """None where nothing is ever withheld."""
    return NoPast(spec, z_dim, share) if share > 0 else None


def check_guidance(guidance: float, name: str, *, learned: bool) -> None:
    """Raise ValueError where guidance is asked of a head that has not learned what it takes."""
    if guidance != 1 and not learned:
        raise ValueError(
            f"guidance={guidance:g} needs a head that was trained with the past withheld; the head "
            f"of {name} was not: train with predictor.heads.{name}.drop_condition=0.1, or leave "
            "guidance at 1"
        )


def refuse_guidance(guidance: float, name: str, kind: str) -> None:
    """Raise ValueError for a kind of head that cannot be guided."""
    if guidance != 1:
        raise ValueError(
            f"guidance={guidance:g}: a head of kind {kind} ({name}) cannot be guided; leave it at "
            "1, or use kind flow or fsq"
        )
