"""The one causal predictor: embeds all streams, reads them in one trunk, and says what comes next
in each.

What a target may see is decided here: z of block b is read from trunk positions of earlier blocks
only, so its gradient with respect to any input of block b or later is exactly 0
(tests/model/test_causality.py).

Shapes: B rows, L positions, N positions of one stream, M its counted blocks, P positions per block,
Z width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmpredict.model.attention import Block, attention_mask, attention_spans, rotary_table
from mmpredict.model.embed import Embed
from mmpredict.model.heads import HeadConfig, SoftmaxHead, ValuesHead
from mmpredict.schema import Batch, IdsPrediction, Layout, Prediction, StreamSpec, ValuesPrediction


@dataclass(frozen=True)
class PredictorConfig:
    """Size and shape of the predictor.

    Args:
        dim: width of the trunk; a multiple of 8 * num_heads.
        depth: layers.
        num_heads: query heads.
        num_kv_heads: key/value heads; 0 for as many as query heads.
        hidden: inner width of the feed-forward; 0 for 8/3 dim, rounded to 64.
        qk_norm: normalise queries and keys (stable; costs a little).
        heads: per continuous stream name a HeadConfig; others take the default.
    """

    dim: int = 128
    depth: int = 6
    num_heads: int = 4
    num_kv_heads: int = 0
    hidden: int = 0
    qk_norm: bool = True
    heads: dict[str, HeadConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dim % (8 * self.num_heads):
            raise ValueError(
                f"predictor.dim={self.dim} is not a multiple of 8 * num_heads={8 * self.num_heads} "
                "(rotary pairs are shared out in fours); change dim or num_heads"
            )
        if self.num_kv_heads and self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"predictor.num_heads={self.num_heads} is not a multiple of "
                f"num_kv_heads={self.num_kv_heads}"
            )


class Query(nn.Module):
    """What is asked: which stream, which place in the block, how long after its previous block."""

    def __init__(self, spec: StreamSpec, dim: int) -> None:
        super().__init__()
        self.stream = nn.Parameter(torch.zeros(dim))
        self.place = nn.Parameter(torch.zeros(spec.positions_per_block, dim))
        self.delay = nn.Linear(16, dim, bias=False)

    def forward(self, delay_s_MP: Tensor) -> Tensor:
        octaves = 2.0 ** torch.arange(-4, 4, device=delay_s_MP.device) * math.pi
        angle = delay_s_MP[..., None].float() * octaves
        return self.stream + self.place + self.delay(torch.cat([angle.sin(), angle.cos()], -1))


class Predictor(nn.Module):
    """Embed -> trunk -> heads.

    Args:
        layout: the streams.
        config: sizes.
    """

    def __init__(self, layout: Layout, config: PredictorConfig) -> None:
        super().__init__()
        self.layout = layout
        self.config = config
        dim = config.dim
        hidden = config.hidden or 64 * max(1, round(dim * 8 / 3 / 64))
        unknown = set(config.heads) - {s.name for s in layout.streams if not s.is_discrete}
        if unknown:
            raise ValueError(
                f"predictor.heads names {sorted(unknown)}; the continuous streams of this run are "
                f"{[s.name for s in layout.streams if not s.is_discrete]}"
            )
        self.embed = Embed(layout, dim)
        self.blocks = nn.ModuleList(
            Block(
                dim,
                config.num_heads,
                config.num_kv_heads or config.num_heads,
                hidden,
                config.qk_norm,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.RMSNorm(dim)
        # What stands in for a missing prev_same and prev_any.
        self.starts = nn.ParameterDict({s.name: torch.zeros(2, dim) for s in layout.streams})
        continuous = [s for s in layout.streams if not s.is_discrete]
        self.queries = nn.ModuleDict({s.name: Query(s, dim) for s in continuous})
        if continuous:
            self.from_any = nn.Linear(dim, dim, bias=False)
        self._init_weights()  # before the heads: they begin at 0 on purpose
        self.heads = nn.ModuleDict()
        for spec in layout.streams:
            if spec.is_discrete:
                self.heads[spec.name] = SoftmaxHead(self.embed.tables[spec.name])
            else:
                head = config.heads.get(spec.name, HeadConfig())
                self.heads[spec.name] = ValuesHead(spec, dim, head)
        self.next_stream = nn.Linear(dim, len(layout.streams))

    def _init_weights(self) -> None:
        """Linear maps N(0, 1/sqrt(fan in)); the two that end a residual branch smaller by sqrt(2
        depth); id tables N(0, 1) (their RMSNorm and the head's scale undo the size)."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                ends_branch = name.endswith(("o_proj", "down_proj"))
                scale = math.sqrt(2 * self.config.depth) if ends_branch else 1.0
                nn.init.normal_(module.weight, std=module.in_features**-0.5 / scale)
            elif isinstance(module, Query):
                nn.init.normal_(module.place, std=0.02)
        nn.init.normal_(self.embed.stream.weight, std=0.5)

    def hidden(self, batch: Batch) -> Tensor:
        """(B, L, D): the trunk's view of every position, of its own and earlier blocks only."""
        x_BLD = self.embed(batch)
        mask = attention_mask(batch)
        if mask.device.type == "cpu":
            mask = attention_spans(mask)
        table = rotary_table(batch.positions, self.config.dim // self.config.num_heads)
        for block in self.blocks:
            x_BLD = block(x_BLD, mask, table)
        return self.norm(x_BLD)

    def condition(self, batch: Batch, hidden_BLD: Tensor, modality: int) -> Tensor:
        """All that a stream's head sees of the past: z (M, P, Z), of ids (M, 1, Z)."""
        spec = self.layout[modality]
        start_2Z = self.starts[spec.name]
        mine = (batch.modality == modality).nonzero(as_tuple=True)
        row, any_N, same_N = mine[0], batch.prev_any[mine], batch.prev_same[mine]

        def look(index_N: Tensor, start: Tensor) -> Tensor:
            found = hidden_BLD[row, index_N.clamp(min=0)]
            return torch.where(index_N[:, None] >= 0, found, start.to(found.dtype))

        per_block = spec.positions_per_block
        z_any = look(any_N, start_2Z[1]).unflatten(0, (-1, per_block))
        if spec.is_discrete:
            return z_any
        z_same = look(same_N, start_2Z[0]).unflatten(0, (-1, per_block))
        since_N = batch.end_s[mine] - batch.end_s[row, same_N.clamp(min=0)]
        delay_MP = torch.where(same_N >= 0, since_N, 0.0).float().unflatten(0, (-1, per_block))
        return z_same + self.from_any(z_any) + self.queries[spec.name](delay_MP)

    def previous(self, batch: Batch, modality: int) -> Tensor:
        """(M, P, D) standardised: the previous block of each block of a continuous stream; 0 if
        none.

        The blocks of a stream follow each other in its contents, so this is the contents moved on
        by one block, cut where a document begins.
        """
        values_MPD = self.embed.values(batch, modality)
        moved = torch.roll(values_MPD, 1, dims=0)
        return torch.where(self.has_previous(batch, modality)[:, None, None], moved, 0.0)

    def has_previous(self, batch: Batch, modality: int) -> Tensor:
        """(M,) bool: the block is not the first of its stream in its document."""
        per_block = self.layout[modality].positions_per_block
        return batch.prev_same[batch.modality == modality][::per_block] >= 0

    def counted(self, batch: Batch, modality: int) -> Tensor:
        """(M,) bool: the block counts in the loss."""
        per_block = self.layout[modality].positions_per_block
        return batch.loss_mask[batch.modality == modality][::per_block]

    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> Prediction:
        """What is said of every counted block; noise for the flow heads comes from `generator`."""
        hidden_BLD = self.hidden(batch)
        streams: dict[int, IdsPrediction | ValuesPrediction] = {}
        for spec in self.layout.streams:
            if spec.modality not in batch.contents:
                continue
            counted = self.counted(batch, spec.modality)
            z_MPZ = self.condition(batch, hidden_BLD, spec.modality)[counted]
            if not len(z_MPZ):
                continue
            head = self.heads[spec.name]
            if spec.is_discrete:
                streams[spec.modality] = head(z_MPZ[:, 0], batch.contents[spec.modality][counted])
            else:
                targets = self.embed.values(batch, spec.modality)[counted]
                previous = self.previous(batch, spec.modality)[counted]
                streams[spec.modality] = head(z_MPZ, previous, targets, generator)
        return Prediction(streams, self.predict_next_stream(batch, hidden_BLD))

    def predict_next_stream(self, batch: Batch, hidden_BLD: Tensor) -> IdsPrediction | None:
        """Whose turn is next, at the last position before every counted block."""
        last = torch.zeros_like(batch.loss_mask)
        last[:, :-1] = (
            (batch.block_id[:, :-1] != batch.block_id[:, 1:])
            & (batch.doc_id[:, :-1] == batch.doc_id[:, 1:])
            & batch.loss_mask[:, 1:]  # False in padding
        )
        followers = batch.modality[:, 1:][last[:, :-1]]
        if not len(followers):
            return None
        numbers = torch.tensor([s.modality for s in self.layout.streams], device=followers.device)
        targets = (followers[:, None] == numbers).int().argmax(dim=1)
        return IdsPrediction(self.next_stream(hidden_BLD[last]).float(), targets)
