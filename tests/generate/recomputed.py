"""What a rollout's Past says, computed anew at each step by the path of the training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmpredict.model import Predictor
from mmpredict.schema import Batch, StreamSpec, Tokens
from mmpredict.sequence import blocks_between, interleave, separate


class Recomputed:
    """In the place of `mmpredict.generate.past.Past`, without anything kept.

    At each question the blocks so far and one blank block are laid in a row as for the training,
    and `Predictor.hidden`, `condition`, `previous` and `predict_next_stream` do the rest.
    """

    def __init__(self, predictor: Predictor, context_length: int) -> None:
        self.predictor, self.layout = predictor, predictor.layout
        self.blocks: list[list[Tokens]] = [[]]
        self.cuts: list[list[int]] = [
            [0]
        ]  # blocks at which the sight began, one time after another

    @property
    def num_rows(self) -> int:
        return len(self.blocks)

    def read(self, piece: Batch) -> None:
        streams = {tokens.modality: iter(_each(tokens)) for tokens in separate(piece, self.layout)}
        first_L = piece.block_id[0].diff(prepend=torch.tensor([-1])) != 0
        for modality in piece.modality[0][first_L].tolist():
            block = next(streams[modality])
            for blocks in self.blocks:
                blocks.append(block)

    def trim(self, row: int, count: int) -> None:
        self.cuts[row].append(self.cuts[row][-1] + count)

    def flush(self) -> None:
        pass

    def spread(self, count: int) -> None:
        self.blocks = [list(self.blocks[0]) for _ in range(count)]
        self.cuts = [list(self.cuts[0]) for _ in range(count)]

    def add(
        self,
        spec: StreamSpec,
        contents: Tensor,
        ends_s: Sequence[float],
        *,
        seconds: Sequence[float],
        live: Sequence[bool] | None = None,
    ) -> None:
        for row, blocks in enumerate(self.blocks):
            if live is None or live[row]:
                end_s = torch.tensor([ends_s[row]], dtype=torch.float64)
                blocks.append(Tokens(spec.modality, contents[row : row + 1].clone(), end_s))

    def turns(self) -> Tensor | None:
        if not self.blocks[0]:
            return None
        spec = self.layout.streams[-1]
        said = [self.predictor.predict_next_stream(*self._row(n, spec)) for n in self._all()]
        return torch.cat([turns.logits_MV[-1:] for turns in said])

    def condition(self, spec: StreamSpec, end_s: float) -> Tensor:
        rows = [self._row(n, spec, end_s) for n in self._all()]
        return torch.cat([self.predictor.condition(*row, spec.modality)[-1:] for row in rows])

    def previous(self, spec: StreamSpec) -> Tensor:
        batches = [self._row(n, spec)[0] for n in self._all()]
        return torch.cat([self.predictor.previous(b, spec.modality)[-1:] for b in batches])

    def _all(self) -> range:
        return range(self.num_rows)

    def _row(
        self, number: int, spec: StreamSpec, end_s: float | None = None
    ) -> tuple[Batch, Tensor]:
        """What is in sight of a row, with a blank block at its end, and the trunk's view of it."""
        blocks, cuts = self.blocks[number], self.cuts[number]
        latest = max((float(b.end_s.nan_to_num(-1e9)) for b in blocks), default=-1e9)
        if end_s is None or spec.is_discrete:
            end_s = latest + 1 if latest > -1e9 or not spec.is_discrete else float("nan")
        shape = (1,) if spec.is_discrete else (1, spec.positions_per_block, spec.width)
        dtype = torch.int64 if spec.is_discrete else spec.dtype
        asked = Tokens(
            spec.modality, torch.zeros(shape, dtype=dtype), torch.tensor([end_s]).double()
        )
        whole = interleave(_together([*blocks, asked]), self.layout)
        order = whole.modality[0][whole.block_id[0].diff(prepend=torch.tensor([-1])) != 0].tolist()
        assert order == [*(b.modality for b in blocks), spec.modality], "grown in another order"
        states = None
        for start, stop in zip(cuts, cuts[1:], strict=False):
            if self.predictor.config.fast_weights is not None:
                _, states = self._read(blocks_between(whole, start, stop - 1), states)
        batch = blocks_between(whole, cuts[-1], len(blocks))
        if states is None:
            return batch, self.predictor.hidden(batch)
        return batch, self._read(batch, states)[0]

    def _read(self, batch: Batch, states: list | None) -> tuple[Tensor, list]:
        """The trunk written out, with memories that go on from `states`."""
        trunk = self.predictor.trunk
        x, rows, after = self.predictor.embed(batch), trunk.rows(batch), []
        for number, layer in enumerate(trunk.layers):
            x = x + layer.attention(layer._norm("attention", x, rows), rows.sight, rows.table)
            state = None
            if layer.memory is not None:
                first_BL = torch.zeros_like(rows.first_BL)
                before = None if states is None else states[number]
                y, state = layer.memory(layer._norm("memory", x, rows), first_BL, before)
                x = x + y
            after.append(state)
            x = x + layer.fed_forward(x, rows)
        return trunk.norm(x), after


def _each(tokens: Tokens) -> list[Tokens]:
    pairs = zip(tokens.contents.split(1), tokens.end_s.split(1), strict=True)
    return [Tokens(tokens.modality, *pair) for pair in pairs]


def _together(blocks: list[Tokens]) -> list[Tokens]:
    streams: dict[int, list[Tokens]] = {}
    for block in blocks:
        streams.setdefault(int(block.modality), []).append(block)
    return [
        Tokens(m, torch.cat([b.contents for b in bs]), torch.cat([b.end_s for b in bs]))
        for m, bs in streams.items()
    ]
