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
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmpredict.model.compiled import for_any_number
from mmpredict.model.config import PredictorConfig
from mmpredict.model.embed import Embed, Seen
from mmpredict.model.heads import ids_head, values_head
from mmpredict.model.latent import Latent
from mmpredict.model.trunk import Trunk
from mmpredict.schema import (
    TICK_S,
    Batch,
    IdsPrediction,
    LatentPrediction,
    Layout,
    Prediction,
    Statistics,
    StreamSpec,
    UserError,
    ValuesPrediction,
)


class Query(nn.Module):
    """What is asked: which stream, which place in the block, how long after its previous block."""

    def __init__(self, spec: StreamSpec, dim: int) -> None:
        super().__init__()
        self.stream = nn.Parameter(torch.zeros(dim))
        self.place = nn.Parameter(torch.zeros(spec.positions_per_block, dim))
        self.delay = nn.Linear(16, dim, bias=False)

    def forward(self, delay_s_M: Tensor) -> Tensor:
        """(M..., D) of blocks, to be added to `place`."""
        octaves = 2.0 ** torch.arange(-4, 4, device=delay_s_M.device) * math.pi
        angle = delay_s_M[..., None].float() * octaves
        return self.stream + self.delay(torch.cat([angle.sin(), angle.cos()], -1))


def join(
    query: Query, from_any: nn.Linear, z_same_MPZ: Tensor, z_any: Tensor, delay_s_MP: Tensor
) -> Tensor:
    """z of blocks of values: what the trunk makes of the stream's own last block, slot by slot, and
    of the last position of any stream, and what is asked. Of the latter two, one for all positions
    of a block (M, 1) is enough."""
    return z_same_MPZ + query.place + (from_any(z_any) + query(delay_s_MP))


def join_found(  # noqa: PLR0913 - all that a step has found of the past
    query: Query,
    from_any: nn.Linear,
    found_MPZ: Tensor,
    known_M1: Tensor,
    start_Z: Tensor,
    z_any_M1Z: Tensor,
    delay_s_M1: Tensor,
) -> Tensor:
    """`join`, with `start` for blocks that are the first of their stream."""
    z_same_MPZ = torch.where(known_M1[..., None], found_MPZ, start_Z.to(found_MPZ.dtype))
    return join(query, from_any, z_same_MPZ, z_any_M1Z, delay_s_M1)


class Found(torch.autograd.Function):
    """Rows of a matrix at two lists of places. Their gradients are added into one matrix; autograd
    would fill one for each, and then add them up."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(one, other)
        ctx.rows = len(x_ND)
        return x_ND[one], x_ND[other]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        of_x = grads[0].new_zeros(ctx.rows, grads[0].shape[-1])
        for places, grad in zip(ctx.saved_tensors, grads, strict=True):
            of_x.index_put_((places,), grad, accumulate=True)
        return of_x, None, None


class Predictor(nn.Module):
    """Embed -> trunk -> heads.

    Args:
        layout: the streams.
        config: sizes.
    """

    def __init__(self, layout: Layout, config: PredictorConfig) -> None:
        super().__init__()
        config.check_streams(layout)
        self.layout = layout
        self.config = config
        dim = config.dim
        self.embed = Embed(layout, config)
        self.trunk = Trunk(layout, config)
        # What stands in for a missing prev_same and prev_any.
        self.starts = nn.ParameterDict({s.name: torch.zeros(2, dim) for s in layout.streams})
        continuous = [s for s in layout.streams if not s.is_discrete]
        self.queries = nn.ModuleDict({s.name: Query(s, dim) for s in continuous})
        if continuous:
            self.from_any = nn.Linear(dim, dim, bias=False)
        self._init_weights()  # before the heads: they begin at 0 on purpose
        self.heads = nn.ModuleDict()
        for spec in layout.streams:
            head = config.heads.get(spec.name)
            if spec.is_discrete:
                table = self.embed.tables[spec.name]
                self.heads[spec.name] = ids_head(
                    spec, table, head, tied=config.tie_text, scaled=config.norm_text
                )
            else:
                self.heads[spec.name] = values_head(spec, dim, head)
        # A head on a tokenizer knows its sizes now, and needs its file no more.
        known = {s.name: self.heads[s.name].config for s in continuous if s.name in config.heads}
        self.config = replace(config, heads={**config.heads, **known})
        self.latents = nn.ModuleDict()
        for spec in continuous:
            if spec.name in config.latent:
                own = self.embed.encoders[spec.name] if spec.name in config.encoders else None
                self.latents[spec.name] = Latent(spec, dim, config.latent[spec.name], own)
        self.next_stream = nn.Linear(dim, len(layout.streams))
        self.run_join = join_found

    def _init_weights(self) -> None:
        """Linear maps N(0, 1/sqrt(fan in)); the two that end a residual branch smaller by sqrt(2
        depth); id tables N(0, 1) (their RMSNorm and the head's scale undo the size), or without
        norms N(0, 1/dim)."""
        for name, module in self.named_modules():
            if ".memory." in name or ".backbone." in name:  # have a beginning of their own
                continue
            if isinstance(module, nn.Linear):
                ends_branch = name.endswith(("o_proj", "down_proj"))
                scale = math.sqrt(2 * self.config.depth) if ends_branch else 1.0
                nn.init.normal_(module.weight, std=module.in_features**-0.5 / scale)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, Query):
                nn.init.normal_(module.place, std=0.02)
        nn.init.normal_(self.embed.stream.weight, std=0.5)
        if not self.config.norm_text:
            for table in self.embed.tables.values():
                nn.init.normal_(table.weight, std=self.config.dim**-0.5)

    def read_weights(self) -> None:
        """Read the weights that the encoders' settings name, unless a checkpoint brought them."""
        for name, encoder in self.embed.encoders.items():
            if encoder.lacks_weights:
                encoder.read_weights()
                if name in self.latents:
                    self.latents[name].begin_at(encoder)
        for latent in self.latents.values():
            latent.target.read_weights()

    def follow_encoders(self, bad: Tensor | None = None) -> None:
        """Targets that follow a trained encoder take their step; after every optimiser step, but
        where `bad` (0-d) is 1."""
        for name, latent in self.latents.items():
            if name in self.embed.encoders:
                latent.follow(self.embed.encoders[name], bad)

    def compile_layers(self) -> None:
        """Compile what the time goes into: the trunk's layers for the shapes that come, and the
        ways in and out of blocks of values for any number of them."""
        self.trunk.compile_layers()
        self.embed.compile_layers()
        self.run_join = for_any_number(join_found, {2: 0, 3: 0, 5: 0, 6: 0})
        for head in self.heads.values():
            if hasattr(head, "compile_layers"):
                head.compile_layers()

    def set_statistics(self, statistics: Statistics) -> None:
        """Take over mean and deviation of the continuous streams; ValueError where a head stands on
        a tokenizer that was trained in other units."""
        self.embed.set_statistics(statistics)
        for name, scale in self.embed.standardise.items():
            if hasattr(self.heads[name], "check_statistics"):
                self.heads[name].check_statistics(scale.mean, scale.std)

    def check(self, batch: Batch) -> None:
        """Raise UserError where a batch (on the host) holds what would spoil the training: values
        that are not finite, or documents longer than the rotary range."""
        for modality, contents in batch.contents.items():
            if contents.dtype.is_floating_point and not contents.isfinite().all():
                bad = int((~contents.isfinite()).any(dim=-1).sum())
                raise UserError(
                    f"{bad} of {len(contents)} positions of stream {self.layout[modality].name} "
                    "hold NaN or infinite values; `mmpredict inspect` names the files"
                )
        seconds = float(batch.positions[..., 0].max())
        longest = self.config.rotary.range_ticks
        if seconds / TICK_S >= longest:
            raise UserError(
                f"a document reaches position {seconds / TICK_S:.0f} (ticks of {TICK_S} s), the "
                f"rotary positions of this model {longest}; cut documents shorter, or raise "
                "predictor.rotary.base or max_ticks"
            )

    def hidden(self, batch: Batch, seen: Mapping[int, Seen] | None = None) -> Tensor:
        """(B, L, D): the trunk's view of every position, of its own and earlier blocks only."""
        return self.trunk(self.embed(batch, seen), batch)

    def condition(
        self,
        batch: Batch,
        hidden_BLD: Tensor,
        modality: int,
        ahead: int = 1,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """All that a stream's head sees of the past: z (M, P, Z), of ids (M, 1, Z).

        Args:
            ahead: how many blocks of the stream before block m the view ends: z is what is said of
                m when the `ahead - 1` blocks of its stream before it have not come yet.
            chosen: numbers of the blocks of the stream that are asked for; None for all.
        """
        spec = self.layout[modality]
        start_2Z = self.starts[spec.name]
        mine_MP = self._places(batch, modality)
        then_MP = mine_MP.roll(ahead - 1, 0)  # what block m - ahead + 1 saw of the past
        if chosen is not None:
            mine_MP, then_MP = mine_MP[chosen], then_MP[chosen]
        first_M1 = then_MP[:, :1]  # all positions of a block see the same of other streams
        row_M1 = first_M1 - first_M1 % batch.modality.shape[1]
        any_M1 = batch.prev_any.flatten()[first_M1]
        hidden_ND = hidden_BLD.flatten(0, 1)
        where_any_M1 = row_M1 + any_M1.clamp(min=0)
        start_Z = start_2Z[1].to(hidden_ND.dtype)
        if spec.is_discrete:
            return torch.where(any_M1[..., None] >= 0, hidden_ND[where_any_M1], start_Z)
        same_MP = row_M1 + batch.prev_same.flatten()[then_MP].clamp(min=0)
        found_any, found_MPZ = Found.apply(hidden_ND, where_any_M1, same_MP)
        z_any = torch.where(any_M1[..., None] >= 0, found_any, start_Z)
        known_M1 = batch.prev_same.flatten()[first_M1] >= 0  # a block's positions begin together
        end_N = batch.end_s.flatten()
        since_M1 = end_N[mine_MP[:, :1]] - end_N[same_MP[:, :1]]
        delay_M1 = torch.where(known_M1, since_M1, 0.0).float()
        of_stream = (self.queries[spec.name], self.from_any)
        return self.run_join(*of_stream, found_MPZ, known_M1, start_2Z[0], z_any, delay_M1)

    def join(
        self, spec: StreamSpec, z_same_MPZ: Tensor, z_any: Tensor, delay_s_MP: Tensor
    ) -> Tensor:
        """As the function of this name, for a stream."""
        return join(self.queries[spec.name], self.from_any, z_same_MPZ, z_any, delay_s_MP)

    def previous(
        self,
        batch: Batch,
        modality: int,
        seen: Seen | None = None,
        ahead: int = 1,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """(M, P, D) standardised: of each block of a continuous stream (or of those in `chosen`),
        the block of the stream that stands `ahead` blocks before it; 0 if none.

        The blocks of a stream follow each other in its contents, so this is the contents moved on,
        cut where a document begins.
        """
        values = self.embed.values(batch, modality) if seen is None else seen.seen_MPW
        known_M = self.has_previous(batch, modality, ahead)
        if chosen is None:
            moved = values.roll(ahead, 0)
        else:  # below 0 counts from the end, as `roll` does
            moved, known_M = values[chosen - ahead], known_M[chosen]
        return moved.masked_fill_(~known_M[:, None, None], 0.0)  # a copy in either case

    def has_previous(self, batch: Batch, modality: int, ahead: int = 1) -> Tensor:
        """(M,) bool: there are `ahead` blocks of the stream before it in its document."""
        firsts_M = self._places(batch, modality)[:, 0]
        follows_M = batch.prev_same.flatten()[firsts_M] >= 0
        found_M = follows_M
        for back in range(1, ahead):
            found_M = found_M & follows_M.roll(back)
        return found_M

    def counted(self, batch: Batch, modality: int) -> Tensor:
        """(M,) bool: the block counts in the loss."""
        return batch.loss_mask.flatten()[self._places(batch, modality)[:, 0]]

    def _places(self, batch: Batch, modality: int) -> Tensor:
        """(M, P) row * L + column of each block's positions."""
        per_block = self.layout[modality].positions_per_block
        return batch.placed().places.positions[modality].unflatten(0, (-1, per_block))

    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> Prediction:
        """What is said of every counted block; noise comes from `generator`."""
        batch = batch.placed()
        seen = self.embed.see(batch, generator)
        hidden_BLD = self.hidden(batch, seen)
        streams: dict[int, IdsPrediction | ValuesPrediction] = {}
        latents: dict[int, LatentPrediction] = {}
        for spec in self.layout.streams:
            if spec.modality not in batch.contents:
                continue
            if not spec.is_discrete:
                z, previous, targets = self.asked(batch, hidden_BLD, spec, seen[spec.modality])
                if len(targets):
                    said = self.heads[spec.name](z, previous, targets, generator)
                    streams[spec.modality] = said
                if len(targets) and spec.name in self.latents:
                    features = self.features(batch, spec, seen[spec.modality])
                    latents[spec.modality] = self.latents[spec.name](z, features)
                continue
            counted_M = batch.places.counted[spec.modality]
            z_MZ = self.condition(batch, hidden_BLD, spec.modality, chosen=counted_M)[:, 0]
            if len(z_MZ):
                ids = batch.contents[spec.modality][counted_M]
                streams[spec.modality] = self.heads[spec.name](z_MZ, ids, generator)
        return Prediction(streams, self.predict_next_stream(batch, hidden_BLD), latents)

    def asked(
        self, batch: Batch, hidden_BLD: Tensor, spec: StreamSpec, seen: Seen
    ) -> tuple[Tensor, Tensor, Tensor]:
        """z, previous block and target of every counted block, for one horizon after the other."""
        parts = []
        for ahead in self.config.horizons:
            chosen = self.chosen(batch, spec.modality, ahead)
            z = self.condition(batch, hidden_BLD, spec.modality, ahead, chosen)
            previous = self.previous(batch, spec.modality, seen, ahead, chosen)
            parts.append((z, previous, seen.clean_MPW[chosen]))
        if len(parts) == 1:
            return parts[0]
        z, previous, targets = (torch.cat(part) for part in zip(*parts, strict=True))
        return z, previous, targets

    def chosen(self, batch: Batch, modality: int, ahead: int) -> Tensor:
        """(M,) int64: the blocks that are asked for `ahead` blocks ahead."""
        places = batch.placed().places
        counted_M = places.counted[modality]
        if ahead == 1:
            return counted_M
        far = torch.from_numpy(np.flatnonzero(places.nth[modality].numpy() >= ahead))  # on the host
        return counted_M[far.to(counted_M.device, non_blocking=True)]

    def features(self, batch: Batch, spec: StreamSpec, seen: Seen) -> Tensor:
        """(M, P, F) target features of the blocks of `asked`, in its order; each frame is looked
        at once."""
        values = self.embed.standardise[spec.name].inverse(seen.clean_MPW)
        features_MPF = self.latents[spec.name].targets(values)
        chosen = [self.chosen(batch, spec.modality, ahead) for ahead in self.config.horizons]
        return torch.cat([features_MPF[c] for c in chosen])

    def predict_next_stream(self, batch: Batch, hidden_BLD: Tensor) -> IdsPrediction | None:
        """Whose turn is next, at the last position before every counted block."""
        turns_T = batch.placed().places.turns
        if not len(turns_T):
            return None
        followers = batch.modality.flatten()[turns_T + 1]
        is_stream = [followers == spec.modality for spec in self.layout.streams]
        targets = torch.stack(is_stream, -1).int().argmax(-1)
        logits = self.next_stream(hidden_BLD.flatten(0, 1)[turns_T]).float()
        return IdsPrediction(logits, targets)
