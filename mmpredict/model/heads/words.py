"""The head of a stream of ids: logits over its vocabulary.

Shapes: M blocks of one id, Z condition width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmpredict.model.heads.condition import check_guidance
from mmpredict.model.heads.picking import Chance, guided, pick
from mmpredict.schema import IdsPrediction


class SoftmaxHead(nn.Module):
    """Logits over a vocabulary, as a rule tied to its embedding table.

    Args:
        table: the stream's embedding.
        tied: write with the table that is read with; False for one of its own, at first equal.
        scaled: divide by sqrt(Z), for a table of N(0, 1); False for one of N(0, 1/Z), as language
            models have.
        drop_condition: share of ids whose past is withheld while training.
        name: of the stream, for messages.
    """

    def __init__(
        self,
        table: nn.Embedding,
        *,
        tied: bool = True,
        scaled: bool = True,
        drop_condition: float = 0.0,
        name: str = "text",
    ) -> None:
        super().__init__()
        self.weight = table.weight if tied else nn.Parameter(table.weight.detach().clone())
        self.scale = table.weight.shape[1] ** -0.5 if scaled else 1.0
        self.drop_condition, self.name = drop_condition, name
        if drop_condition > 0:
            self.no_past_Z = nn.Parameter(0.02 * torch.randn(table.weight.shape[1]))

    def forward(
        self, z_MZ: Tensor, targets_M: Tensor, generator: torch.Generator | None = None
    ) -> IdsPrediction:
        if self.training and self.drop_condition > 0:
            chance_M = torch.rand(len(z_MZ), generator=generator, device=z_MZ.device)
            gone_M1 = (chance_M < self.drop_condition)[:, None]
            z_MZ = torch.where(gone_M1, self.no_past_Z.to(z_MZ.dtype), z_MZ)
        return IdsPrediction(self.logits(z_MZ), targets_M)

    def logits(self, z_MZ: Tensor, *, guidance: float = 1.0) -> Tensor:
        """(M, V) float32."""
        check_guidance(guidance, self.name, learned=self.drop_condition > 0)
        logits_MV = (z_MZ @ self.weight.T.to(z_MZ.dtype) * self.scale).float()
        if guidance == 1:
            return logits_MV
        null_1V = self.logits(self.no_past_Z.to(z_MZ.dtype)[None])
        return guided(logits_MV, null_1V, guidance)

    @torch.no_grad()
    def sample(
        self,
        z_MZ: Tensor,
        *,
        temperature: float = 1.0,
        min_p: float = 0.0,
        guidance: float = 1.0,
        generator: Chance = None,
    ) -> Tensor:
        """(M,) ids; see `pick`."""
        logits_MV = self.logits(z_MZ, guidance=guidance)
        return pick(logits_MV, temperature=temperature, min_p=min_p, generator=generator)
