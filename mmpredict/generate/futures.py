"""Futures of one prompt: rows that grow side by side, block by block, each with its own chance.

One step of a future asks whether text is next, draws its token, or draws the block that the clock
asks for. All futures take a step together where they do the same; a future that has nothing to say
waits. What one future draws depends on its own seed alone, not on how many others there are.

Shapes: B futures, P positions of a block, W values per position, Z condition width, V vocabulary,
S streams.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mmpredict.generate.past import Past, slides
from mmpredict.generate.row import Row
from mmpredict.model import Predictor
from mmpredict.model.heads import pick
from mmpredict.schema import Modality, StreamSpec, Tokens
from mmpredict.sequence import blocks_between, interleave


@dataclass(frozen=True)
class Sampling:
    """How blocks are drawn; see `rollouts`."""

    temperature: float = 1.0
    text_temperature: float = 0.7
    min_p: float = 0.05
    steps: int = 10
    guidance: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and self.text_temperature >= 0):
            raise ValueError(
                f"temperature={self.temperature} and text_temperature={self.text_temperature} "
                "must be 0 or more"
            )
        if self.steps < 1 or not 0 <= self.min_p <= 1:
            raise ValueError(
                f"steps={self.steps} must be 1 or more, min_p={self.min_p} between 0 and 1"
            )
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance={self.guidance} must be a finite number; 1 is without")


def can_be_guided(predictor: Predictor, spec: StreamSpec) -> bool:
    """Whether the head of a stream has learned to speak without the past."""
    config = predictor.config.heads.get(spec.name)
    return config is not None and config.drop_condition > 0


class Made(NamedTuple):
    """A new block: row `row` of the tensor."""

    contents: Tensor
    row: int
    end_s: float


class Futures:
    """Rows that go on from one prompt.

    Args:
        predictor: says what comes next.
        prompt: encoded streams by modality.
        context_length: positions that the predictor sees.
        sampling: how to draw; the n-th future is drawn with seed + n.
        count: how many futures.
    """

    def __init__(
        self,
        predictor: Predictor,
        prompt: dict[int, Tokens],
        context_length: int,
        sampling: Sampling,
        *,
        count: int = 1,
    ) -> None:
        self.predictor, self.layout, self.sampling = predictor, predictor.layout, sampling
        self.count = count
        self._prompt = [tokens for tokens in prompt.values() if len(tokens.contents)]
        self._prompt_row = interleave(self._prompt, self.layout) if self._prompt else None
        if self._prompt_row is not None:
            predictor.check(self._prompt_row)
        self._read = 0  # blocks of the prompt
        limit = None if slides(predictor, context_length) else context_length
        self.rows = [Row(self.layout, prompt, limit)]
        self._past = Past(predictor, context_length)
        device = predictor.trunk.norm.weight.device
        self._dice = [torch.Generator(device).manual_seed(sampling.seed + n) for n in range(count)]
        self._made: list[dict[int, list[Made]]] = [{} for _ in range(count)]

    @property
    def inside_prompt(self) -> bool:
        """Whether blocks of the prompt follow the one that was asked for."""
        return self._prompt_row is not None

    def made(self, row: int) -> dict[int, Tokens]:
        """What was added to a future, by modality, on the host."""
        made = {}
        for modality, blocks in sorted(self._made[row].items()):
            contents = torch.stack([block.contents[block.row] for block in blocks]).cpu()
            end_s = torch.tensor([block.end_s for block in blocks], dtype=torch.float64)
            # The clone is a tensor like any other, not one of the inference mode.
            made[modality] = Tokens(modality, contents.clone(), end_s)
        return made

    def wait_until(self, time_s: float) -> None:
        """Text that comes next has at least this time."""
        for row in self.rows:
            row.wait_until(time_s)

    def ask(self, spec: StreamSpec, end_s: float, rows: Sequence[int] | None = None) -> None:
        """The next question is of a block of this stream that ends then (NaN: untimed).

        What of the prompt stands before it is read, and room is made for it in these rows.
        """
        if self.inside_prompt:
            self._read_prompt(spec, end_s)
        for index, row in enumerate(self.rows):
            count = row.make_room(spec, end_s) if rows is None or index in rows else 0
            if count:
                self._past.trim(index, count)
        self._past.flush()
        if len(self.rows) < self.count:
            self._past.spread(self.count)
            self.rows = [self.rows[0].copy() for _ in range(self.count)]

    def _read_prompt(self, spec: StreamSpec, end_s: float) -> None:
        """Read the blocks of the prompt that stand before one that ends then."""
        asked = interleave(_with_blank(self._prompt, spec, end_s), self.layout)
        before = int(asked.block_id[asked.modality == spec.modality][-1])
        last = int(self._prompt_row.block_id[0, -1])
        if before > self._read:
            piece = blocks_between(self._prompt_row, self._read, before - 1)
            self._past.read(piece)
            for index, row in enumerate(self.rows):
                for count in row.read(piece):
                    self._past.trim(index, count)
            self._read = before
        if before > last:
            self._prompt_row = None

    def text_is_next(self, due: StreamSpec, rows: Sequence[int]) -> list[int]:
        """Those of these rows in which text comes before the block that was asked for, as the
        predictor has it.

        Of the other streams only the one whose turn it is by the clock can be next, so the choice
        is between these two. Inside the prompt nothing is to be decided.
        """
        turns_BS = self._past.turns()
        if turns_BS is None or self.inside_prompt or not rows:
            return []
        index = self.predictor.embed.index
        text = self.layout[Modality.TEXT]
        pair_B2 = turns_BS[list(rows)][:, [index[text.name], index[due.name]]]
        share_B = pair_B2.softmax(-1)[:, 0]
        if self.sampling.text_temperature == 0:
            speaks = share_B > 0.5
        else:
            chance = [torch.rand((), generator=d, device=d.device) for d in self._dice_of(rows)]
            speaks = torch.stack(chance) < share_B
        return [row for row, on in zip(rows, speaks.tolist(), strict=True) if on]

    def add_text(self, rows: Sequence[int]) -> Tensor:
        """Draw a text token in each of these rows and put it at their ends; (B,) ids."""
        spec, sampling = self.layout[Modality.TEXT], self.sampling
        z_BZ = self._past.condition(spec, math.nan)[:, 0]
        everyone = len(rows) == len(self.rows)
        logits_V = self.predictor.heads[spec.name].logits(
            z_BZ if everyone else z_BZ[list(rows)], guidance=self._guidance(spec)
        )
        ids_B = pick(
            logits_V,
            temperature=sampling.text_temperature,
            min_p=sampling.min_p,
            generator=self._dice_of(rows),
        )
        live = None
        if not everyone:
            live = [False] * len(self.rows)
            for row in rows:
                live[row] = True
            chosen = torch.tensor(rows, device=ids_B.device)
            ids_B = ids_B.new_zeros(len(self.rows)).index_copy(0, chosen, ids_B)
        self._add(spec, ids_B, [row.text_end_s for row in self.rows], live)
        return ids_B

    def add_values(self, spec: StreamSpec, end_s: float) -> None:
        """Draw the block that was asked for, in every row."""
        model, sampling = self.predictor, self.sampling
        block_BPW = model.heads[spec.name].sample(
            self._past.condition(spec, end_s),
            self._past.previous(spec),
            steps=sampling.steps,
            temperature=sampling.temperature,
            min_p=sampling.min_p,
            guidance=self._guidance(spec),
            generator=self._dice_of(range(len(self.rows))),
        )[0]
        values_BPW = model.embed.standardise[spec.name].inverse(block_BPW).float()
        if spec.value_range is not None:
            values_BPW = values_BPW.clamp(*spec.value_range)
        if not spec.dtype.is_floating_point:
            values_BPW = values_BPW.round()
        self._add(spec, values_BPW.to(spec.dtype), [end_s] * len(self.rows), None)

    def _add(
        self, spec: StreamSpec, contents: Tensor, ends_s: list[float], live: list[bool] | None
    ) -> None:
        seconds = [0.0] * len(self.rows)  # of rows that wait, any will do
        for index, (row, end_s) in enumerate(zip(self.rows, ends_s, strict=True)):
            if live is None or live[index]:
                seconds[index] = row.add(spec, end_s)
                made = self._made[index].setdefault(spec.modality, [])
                made.append(Made(contents, index, end_s))
        self._past.add(spec, contents, ends_s, seconds=seconds, live=live)

    def _guidance(self, spec: StreamSpec) -> float:
        return self.sampling.guidance if can_be_guided(self.predictor, spec) else 1.0

    def _dice_of(self, rows: Sequence[int]) -> list[torch.Generator]:
        return [self._dice[row] for row in rows]


def blank(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Contents of a block that is not there yet; any others would do."""
    return torch.zeros(shape, dtype=dtype)


def _with_blank(streams: Sequence[Tokens], spec: StreamSpec, end_s: float) -> list[Tokens]:
    """The streams, and at the end of one of them a block without contents."""
    shape = (1,) if spec.is_discrete else (1, spec.positions_per_block, spec.width)
    dtype = torch.int64 if spec.is_discrete else spec.dtype
    added = Tokens(spec.modality, blank(shape, dtype), torch.tensor([end_s], dtype=torch.float64))
    before = [tokens for tokens in streams if tokens.modality == spec.modality]
    if before:
        contents = torch.cat([before[0].contents, added.contents.to(before[0].contents.dtype)])
        ends = torch.cat([before[0].end_s, added.end_s])
        added = Tokens(spec.modality, contents, ends)
    return [*(t for t in streams if t.modality != spec.modality), added]
