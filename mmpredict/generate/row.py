"""The row of a rollout: what stands so far, what the predictor expects next, and drawing it.

One pass of the trunk answers all questions at a step: whether text is next, which token it would
be, and the block that the clock asks for. The prefix is computed anew at each step.

Shapes: B rows (1), L positions, M blocks (1), P positions of a block, D values or trunk width,
Z condition width, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmpredict.model import Predictor
from mmpredict.schema import Batch, Modality, StreamSpec, Tokens
from mmpredict.sequence import blocks_between, interleave

SLACK_S = 1e-6  # times closer than this are the same, as in sequence.interleave


@dataclass(frozen=True)
class Sampling:
    """How blocks are drawn; see `rollout`."""

    temperature: float
    text_temperature: float
    min_p: float
    steps: int
    seed: int

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.text_temperature < 0:
            raise ValueError(
                f"temperature={self.temperature} and text_temperature={self.text_temperature} "
                "must be 0 or more"
            )
        if self.steps < 1 or not 0 <= self.min_p <= 1:
            raise ValueError(
                f"steps={self.steps} must be 1 or more, min_p={self.min_p} between 0 and 1"
            )


@dataclass(frozen=True)
class View:
    """The trunk's view at a step.

    Args:
        spec, end_s: the block that was asked for.
        batch: one row whose last block is the placeholder.
        hidden_BLD: (1, L, D), the trunk's output.
        at_end: False if blocks of the prompt stand behind the placeholder (they were cut off).
    """

    spec: StreamSpec
    end_s: float
    batch: Batch
    hidden_BLD: Tensor
    at_end: bool


class Row:
    """Grows block by block.

    Args:
        predictor: says what comes next.
        prompt: encoded streams by modality.
        context_length: positions that the predictor sees.
        sampling: how to draw.
    """

    def __init__(
        self,
        predictor: Predictor,
        prompt: dict[int, Tokens],
        context_length: int,
        sampling: Sampling,
    ) -> None:
        self.predictor, self.layout = predictor, predictor.layout
        self.context_length, self.sampling = context_length, sampling
        self.device = next(predictor.parameters()).device
        self.notices: list[str] = []
        self._seen = {int(m): tokens for m, tokens in prompt.items() if len(tokens.contents)}
        self._made: dict[int, list[Tokens]] = {}
        self._noise = torch.Generator(self.device).manual_seed(sampling.seed)
        self._dice = torch.Generator().manual_seed(sampling.seed)
        times = [float(t.end_s.nan_to_num(-math.inf).max()) for t in self._seen.values()]
        latest = max(times, default=-math.inf)
        self.now_s = None if latest == -math.inf else latest  # when the latest block ends

    def made(self) -> dict[int, Tokens]:
        """What was added, by modality."""
        made = {}
        for modality, blocks in sorted(self._made.items()):
            contents = torch.cat([block.contents for block in blocks])
            made[modality] = Tokens(modality, contents, torch.cat([b.end_s for b in blocks]))
        return made

    @property
    def text_end_s(self) -> float:
        """When text ends that stands at the end of the row; NaN if the row has no times.

        Blocks of series stand behind text of the same time: text that comes after one is later.
        """
        if self.now_s is None:
            return float("nan")
        behind = [
            float(tokens.end_s[-1])
            for modality, tokens in self._seen.items()
            if modality > Modality.TEXT
        ]
        latest = max(behind, default=-math.inf)
        return self.now_s + 2 * SLACK_S if latest > self.now_s - SLACK_S else self.now_s

    def wait_until(self, time_s: float) -> None:
        """Text that comes next has at least this time, if the row has times at all."""
        if self.now_s is not None:
            self.now_s = max(self.now_s, time_s)

    def look(self, spec: StreamSpec, end_s: float) -> View:
        """Ask for a block of a stream at a time; NaN for text without a time."""
        shape = () if spec.is_discrete else (spec.positions_per_block, spec.width)
        placeholder = blank((1, *shape), torch.int64 if spec.is_discrete else spec.dtype)
        asked = Tokens(spec.modality, placeholder, torch.tensor([end_s], dtype=torch.float64))
        row = interleave(list(_appended(self._seen, asked).values()), self.layout)
        number_L = row.block_id[0]
        last = int(number_L[row.modality[0] == spec.modality][-1])
        excess = int((number_L <= last).sum()) - self.context_length
        first = int(number_L[excess - 1]) + 1 if excess > 0 else 0
        if first and not self.notices:
            when = "" if math.isnan(end_s) else f" from {end_s:.2f} s on"
            self.notices.append(
                f"the context of {self.context_length} positions is full{when}: "
                "the oldest blocks are out of sight"
            )
        batch = blocks_between(row, first, last).to(self.device)
        return View(spec, end_s, batch, self.predictor.hidden(batch), last == int(number_L[-1]))

    def text_is_next(self, view: View) -> bool:
        """Whether text comes before the block that was asked for, as the predictor has it.

        Of the other streams only the one whose turn it is by the clock can be next, so the choice
        is between these two. Inside the prompt nothing is to be decided.
        """
        turns = self.predictor.predict_next_stream(view.batch, view.hidden_BLD)
        if turns is None or not view.at_end:
            return False
        numbers = [spec.modality for spec in self.layout.streams]
        pair = [numbers.index(Modality.TEXT), numbers.index(view.spec.modality)]
        text_share = float(turns.logits_MV[-1, pair].softmax(0)[0])
        if self.sampling.text_temperature == 0:
            return text_share > 0.5
        return float(torch.rand((), generator=self._dice)) < text_share

    def add_text(self, view: View) -> int:
        """Draw a text token, put it at the end of the row and return its id."""
        head = self.predictor.heads[self.layout[Modality.TEXT].name]
        logits_V = head.logits(self.text_condition(view)[:, 0])[0].cpu()
        token = self._pick(logits_V)
        self._add(Modality.TEXT, torch.tensor([token]), self.text_end_s)
        return token

    def text_condition(self, view: View) -> Tensor:
        """z (1, 1, Z) of text at the end of the row.

        For text, z is the trunk's view of the last position, whoever else is asked for; so it needs
        no placeholder of its own.
        """
        if view.spec.modality == Modality.TEXT:
            return self.predictor.condition(view.batch, view.hidden_BLD, Modality.TEXT)[-1:]
        return view.hidden_BLD[:, -1 - view.spec.positions_per_block, None]

    def add_values(self, view: View) -> None:
        """Draw the block that was asked for and put it in the row."""
        model, spec, sampling = self.predictor, view.spec, self.sampling
        z_MPZ = model.condition(view.batch, view.hidden_BLD, spec.modality)[-1:]
        previous_MPD = model.previous(view.batch, spec.modality)[-1:]
        block_MPD = model.heads[spec.name].sample(
            z_MPZ,
            previous_MPD,
            steps=sampling.steps,
            temperature=sampling.temperature,
            generator=self._noise,
        )[0]
        values = model.embed.standardise[spec.name].inverse(block_MPD).float().cpu()
        if spec.value_range is not None:
            values = values.clamp(*spec.value_range)
        values = values if spec.dtype.is_floating_point else values.round()
        self._add(spec.modality, values.to(spec.dtype), view.end_s)

    def _pick(self, logits_V: Tensor) -> int:
        """An id by min-p sampling (Nguyen et al. 2024)."""
        if self.sampling.text_temperature == 0:
            return int(logits_V.argmax())
        share_V = (logits_V / self.sampling.text_temperature).softmax(0)
        share_V = torch.where(share_V >= self.sampling.min_p * share_V.max(), share_V, 0.0)
        return int(torch.multinomial(share_V, 1, generator=self._dice))

    def _add(self, modality: int, contents: Tensor, end_s: float) -> None:
        block = Tokens(int(modality), contents, torch.tensor([end_s], dtype=torch.float64))
        self._seen = _appended(self._seen, block)
        self._made.setdefault(block.modality, []).append(block)
        if not math.isnan(end_s):
            self.now_s = end_s if self.now_s is None else max(self.now_s, end_s)


def blank(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Contents of a placeholder; any others would do."""
    return torch.zeros(shape, dtype=dtype)


def _appended(streams: dict[int, Tokens], block: Tokens) -> dict[int, Tokens]:
    before = streams.get(block.modality)
    if before is None:
        return {**streams, block.modality: block}
    contents = torch.cat([before.contents, block.contents.to(before.contents.dtype)])
    both = Tokens(block.modality, contents, torch.cat([before.end_s, block.end_s]))
    return {**streams, block.modality: both}
