"""The code head: says the codes of a frozen tokenizer, position after position, group after group.

Shapes: M blocks, P positions per block, G groups of codes per position, V codes of a group,
D values per position, Z condition width, W width of the head, R random draws, N = R M blocks that
are being drawn (twice as many under guidance).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmpredict.model.block_layer import BlockLayer
from mmpredict.model.fsq import BlockTokenizer, FsqConfig, read_tokenizer
from mmpredict.model.heads.causal_block import CausalBlock
from mmpredict.model.heads.condition import check_guidance, no_past
from mmpredict.model.heads.config import HeadConfig
from mmpredict.model.heads.density import DEQUANTISATION, gaussian_nats, noised_alike
from mmpredict.model.heads.picking import Chance, guided, pick
from mmpredict.model.heads.regression import BlockMean
from mmpredict.schema import StreamSpec, ValuesPrediction


class CodeHead(nn.Module):
    """Next-code prediction: a causal transformer over the positions, and at each position a small
    network that says its codes one after the other. The codes of the previous block come in
    beside z, so that what stands still is easily said again.

    Args:
        spec: the stream.
        z_dim: Z.
        config: sizes, and the tokenizer; `self.config` has its sizes in the place of its file.
    """

    def __init__(self, spec: StreamSpec, z_dim: int, config: HeadConfig) -> None:
        super().__init__()
        self.name = spec.name
        self.tokenizer, self.config = _tokenizer(spec, config)
        G, V, dim = self.tokenizer.config.codes_per_position, self.tokenizer.num_codes, config.dim
        self.groups, self.num_codes = G, V
        self.block_mean = BlockMean(spec, z_dim, config)
        self.no_past = no_past(spec, z_dim, config.drop_condition)
        self.reader = CausalBlock(spec, z_dim, dim, config.depth)
        self.code = nn.Embedding(G * V, dim)
        self.previous_code = nn.Embedding(G * V, dim)
        self.group_GW = nn.Parameter(0.02 * torch.randn(G, dim))
        self.within = BlockLayer(dim, 1)
        self.to_logits = nn.Parameter(torch.zeros(G, dim, V))
        self.bias_GV = nn.Parameter(torch.zeros(G, V))

    def mean(self, z_MPZ: Tensor, previous_MPD: Tensor) -> Tensor:
        """(M, P, D): the regression."""
        return self.block_mean(z_MPZ, previous_MPD)[0]

    def check_statistics(self, mean_D: Tensor, std_D: Tensor) -> None:
        """Raise ValueError where the tokenizer was trained in other units, or not at all."""
        self.tokenizer.check_statistics(mean_D, std_D, self.name)

    def forward(
        self,
        z_MPZ: Tensor,
        previous_MPD: Tensor,
        targets_MPD: Tensor,
        generator: torch.Generator | None = None,
    ) -> ValuesPrediction:
        """Prediction of known blocks, for a loss: nats per code at each position."""
        if self.no_past is not None and self.training:
            z_MPZ, previous_MPD = self.no_past.withhold(z_MPZ, previous_MPD, generator)
        mean_MPD = self.mean(z_MPZ, previous_MPD)
        codes_MPG = self.tokenizer.encode(targets_MPD)
        condition = self.condition(z_MPZ, previous_MPD, mean_MPD)
        nats_MP = self.code_nats(condition, codes_MPG).mean(-1)
        return ValuesPrediction(mean_MPD, targets_MPD, nats_MP=nats_MP)

    def condition(self, z_MPZ: Tensor, previous_MPD: Tensor, mean_MPD: Tensor) -> Tensor:
        """(M, P, W): what each position is told before its block begins."""
        before = self._embed(self.previous_code, self.tokenizer.encode(previous_MPD)).sum(2)
        return self.reader.condition(z_MPZ, mean_MPD) + before

    def _embed(self, table: nn.Embedding, codes_G: Tensor) -> Tensor:
        """(..., G, W) of codes (..., G), sized so that their sum does not grow with G."""
        offset_G = torch.arange(self.groups, device=codes_G.device) * self.num_codes
        return table(codes_G + offset_G) * self.groups**-0.5

    def code_nats(self, condition_MPW: Tensor, codes_MPG: Tensor) -> Tensor:
        """(M, P, G) nats of each code, given all before it."""
        code_MPGW = self._embed(self.code, codes_MPG)
        h_MPW = self.reader(condition_MPW, code_MPGW.sum(2))
        before_MPGW = code_MPGW.cumsum(2) - code_MPGW
        logits = self._logits(h_MPW[:, :, None] + before_MPGW, slice(None))
        return F.cross_entropy(logits.flatten(0, 2), codes_MPG.flatten(), reduction="none").view_as(
            codes_MPG
        )

    def _logits(self, h_GW: Tensor, groups: slice) -> Tensor:
        """(..., G, V) float32 of the groups in `groups`."""
        h_GW = self.within(h_GW + self.group_GW[groups])
        logits = torch.einsum("...gw,gwv->...gv", h_GW, self.to_logits[groups].to(h_GW.dtype))
        return logits.float() + self.bias_GV[groups]

    @torch.no_grad()
    def sample(  # noqa: PLR0913 - one interface for all heads
        self,
        z_MPZ: Tensor,
        previous_MPD: Tensor,
        *,
        draws: int = 1,
        steps: int = 10,
        temperature: float = 1.0,
        min_p: float = 0.0,
        guidance: float = 1.0,
        generator: Chance = None,
    ) -> Tensor:
        """(R, M, P, D) samples, code after code (`steps` has nothing to act on); see `pick`."""
        check_guidance(guidance, self.name, learned=self.no_past is not None)
        pasts = [(z_MPZ, previous_MPD)]
        if guidance != 1:
            pasts.append(self.no_past(z_MPZ, previous_MPD))
        conditions = [self.condition(z, before, self.mean(z, before)) for z, before in pasts]
        condition = torch.cat([c.expand(draws, *c.shape).flatten(0, 1) for c in conditions])
        caches = self.reader.new_caches(len(condition))
        codes: list[Tensor] = []
        said_W = None
        for place in range(condition.shape[1]):
            h_W = self.reader.extend(condition, said_W, caches, place)
            said_W = torch.zeros_like(h_W)
            for group in range(self.groups):
                logits_V = self._logits((h_W + said_W)[:, None], slice(group, group + 1))[:, 0]
                if guidance != 1:
                    logits_V = guided(*logits_V.chunk(2), guidance)
                code_N = pick(logits_V, temperature=temperature, min_p=min_p, generator=generator)
                codes.append(code_N)
                said = self.code(code_N + group * self.num_codes) * self.groups**-0.5
                said_W = said_W + said.repeat(len(pasts), 1)
        codes_NPG = torch.stack(codes, dim=1).unflatten(1, (-1, self.groups))
        return self.tokenizer.decode(codes_NPG).view(draws, *previous_MPD.shape)

    @torch.no_grad()
    def surprise(
        self,
        z_MPZ: Tensor,
        previous_MPD: Tensor,
        targets_MPD: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(M,) nats per value."""
        return self.nats(z_MPZ, previous_MPD, targets_MPD, generator) / targets_MPD[0].numel()

    @torch.no_grad()
    def nats(
        self,
        z_MPZ: Tensor,
        previous_MPD: Tensor,
        targets_MPD: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(M,) nats of the block with dequantisation noise: a bound from above.

        -log p(x) <= -log p(codes of x) - log N(x; decoded codes, the tokenizer's mean squared error
        value by value + DEQUANTISATION^2): exact over the codes, Gaussian in what they lose.
        """
        mean_MPD = self.mean(z_MPZ, previous_MPD)
        codes_MPG = self.tokenizer.encode(targets_MPD)
        condition = self.condition(z_MPZ, previous_MPD, mean_MPD)
        nats_M = self.code_nats(condition, codes_MPG).sum((1, 2))
        x_MPD = noised_alike(targets_MPD, generator)
        variance_D = self.tokenizer.error.value_D + DEQUANTISATION**2
        lost = gaussian_nats(x_MPD, self.tokenizer.decode(codes_MPG), variance_D)
        return nats_M + lost.sum((1, 2))


def _tokenizer(spec: StreamSpec, config: HeadConfig) -> tuple[BlockTokenizer, HeadConfig]:
    """The frozen tokenizer, and the config that needs no file any more."""
    state = None
    sizes: FsqConfig | None = config.codes
    if config.tokenizer:
        sizes, state = read_tokenizer(config.tokenizer, spec)
    tokenizer = BlockTokenizer(spec, sizes)
    if state is not None:
        try:
            tokenizer.load_state_dict(state)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(
                f"tokenizer {config.tokenizer} does not fit this version ({reason}); train it anew "
                "with recipes/fsq_tokenizer.yaml"
            ) from error
    return tokenizer.requires_grad_(False), replace(config, tokenizer="", codes=tokenizer.config)
