"""The gate's reader: a small network that is given the evidence and a question with its choices.

In: rows: a question, its choices and what is shown (`audit_views`), as tensors. Out: a number for
each choice. It is no reader of language: a sentence without the things that it names is a frame,
"is # left or right of #?", and a frame is one token.

It looks in two ways, and their numbers are added up. Attention over all finds what goes with what;
but it averages, and so can neither count nor measure well. `Measure` sums up what is marked, takes
differences of the things that are named, products and quotients of these. Where the choices are
numbers it alone says one, and the nearest is chosen.

Shapes: N rows, Q choices, S things that a question or a choice names, E evidence tokens, X their
width, M marks, P plain numbers, D width, L tokens in all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmpredict.world import COLOURS, SHAPES

from .audit_views import View

_ASKED = 3  # things that a question names
_OFFERED = 2  # things that a choice names
_MOST_CHOICES = 10
_ALIKE = _ASKED  # the mark of all of a colour or a shape, where no thing is named
_FIRST = _ASKED + 1  # mark of the first thing that the first choice names
_SECOND = _FIRST + _MOST_CHOICES
_MARKS = _SECOND + _MOST_CHOICES
_STILL = 0.1  # least deviation of a column
_LEAST = 0.2  # below a line
_PAD, _UNKNOWN = 0, 1  # frames
_NAME = re.compile(rf"(?:the |an? )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")


@dataclass(frozen=True)
class Row:
    """One question in view of one evidence.

    Args:
        frame, frames_Q: of the question and of the choices.
        values_Q: of choices that are numbers; else NaN.
        asked_S2, offered_QS2: colour and shape of what they name, from 1; 0 where there is none.
        tokens_EX, plain: what is shown.
        marks_EM: which of the named things a token's object is, and whether all of its colour or
            shape are meant. Who "the red ball" is must not be what the gate fails to learn.
        answer: number of the right choice.
    """

    frame: int
    frames_Q: Tensor
    values_Q: Tensor
    asked_S2: Tensor
    offered_QS2: Tensor
    tokens_EX: Tensor
    plain: int
    marks_EM: Tensor
    answer: int


def frame_of(text: str) -> str:
    """The text without the things that it names."""
    return _NAME.sub("#", text)


def frame_numbers(texts: Sequence[str]) -> dict[str, int]:
    """A number for every frame of these texts."""
    return {frame: k + 2 for k, frame in enumerate(sorted({frame_of(text) for text in texts}))}


def as_row(
    question: str, choices: Sequence[str], answer: int, *, view: View, frames: Mapping[str, int]
) -> Row:
    """As tensors; a pair of captions has no question, and the first one names what it is about."""
    asked = _named(question or choices[0])
    offered = [_named(choice) for choice in choices]
    marks_EM = torch.zeros(len(view.names), _MARKS)
    for e, name in enumerate(view.names):
        if not name:
            continue
        if name in asked[:_ASKED]:
            marks_EM[e, asked.index(name)] = 1
        elif not asked:
            marks_EM[e, _ALIKE] = float(any(word in question for word in name.split()))
        for q, names in enumerate(offered):
            if name in names[:_OFFERED]:
                marks_EM[e, (_FIRST, _SECOND)[names.index(name)] + q] = 1
    return Row(
        frames.get(frame_of(question), _UNKNOWN),
        torch.tensor([frames.get(frame_of(choice), _UNKNOWN) for choice in choices]),
        torch.tensor([float(c) if c.isdigit() else torch.nan for c in choices]),
        _numbers(asked, _ASKED),
        torch.stack([_numbers(names, _OFFERED) for names in offered]),
        view.tokens_EX,
        view.plain,
        marks_EM,
        answer,
    )


def _named(text: str) -> list[str]:
    """What is named, in its order, each once."""
    return list(dict.fromkeys(f"{colour} {shape}" for colour, shape in _NAME.findall(text)))


def _numbers(names: Sequence[str], count: int) -> Tensor:
    found_S2 = torch.zeros(count, 2, dtype=torch.long)
    for k, name in enumerate(names[:count]):
        colour, shape = name.split()
        found_S2[k] = torch.tensor([1 + COLOURS.index(colour), 1 + SHAPES.index(shape)])
    return found_S2


class Measure(nn.Module):
    """Counts and measures: the plain numbers of what is named, their differences, products and
    quotients of these; how many are alike.

    Args:
        plain: P.
        dim: D.
    """

    def __init__(self, plain: int, dim: int) -> None:
        super().__init__()
        count = 6 * plain
        self.sharpness = nn.Parameter(torch.zeros(()))
        self.one, self.two, self.over = (nn.Linear(count, dim) for _ in range(3))
        self.head = nn.Sequential(
            nn.Linear(count + 4 * dim + 1, 2 * dim),
            nn.GELU(),
            nn.Linear(2 * dim, dim),
            nn.GELU(),
            nn.Linear(dim, 1),
        )

    def forward(
        self, plain_NEP: Tensor, marks_NEM: Tensor, frames_NLD: Tensor, values_NQ: Tensor
    ) -> Tensor:
        """(N, Q) from what is shown, which of it is marked, the frames of the question and of the
        choices, and what the choices are as numbers."""
        num = frames_NLD.shape[1] - 1
        marked_NMP = marks_NEM.transpose(1, 2) @ plain_NEP
        a, b, c = marked_NMP[:, :_ASKED].unbind(1)
        first, second = (marked_NMP[:, start : start + num] for start in (_FIRST, _SECOND))
        asked_NP = torch.cat([a, a - b, c - a], 1)
        asked_NQP = asked_NP[:, None].expand(-1, num, -1)
        named = torch.cat([asked_NQP, first, first - first.mean(1, True), first - second], 2)
        one = self.one(named)
        products = [one * self.two(named), one / (self.over(named).abs() + _LEAST)]
        alike_N1 = marks_NEM[..., _ALIKE : _ALIKE + 1].sum(1)
        whole = torch.cat([alike_N1, frames_NLD[:, 0]], 1)[:, None].expand(-1, num, -1)
        number_NQ = ~values_NQ.isnan()
        frames_NQD = frames_NLD[:, 1:].masked_fill(number_NQ[..., None], 0)
        said_NQ = self.head(torch.cat([named, *products, whole, frames_NQD], 2))[..., 0]
        said_number_NQ = values_NQ.nanmean(1, True) + 2 * said_NQ
        off_NQ = (said_number_NQ - values_NQ).nan_to_num()
        return torch.where(number_NQ, -self.sharpness.exp() * off_NQ.square(), said_NQ)


class Reader(nn.Module):
    """Attention over question, choices and evidence, and `Measure`.

    Args:
        tokens_EX: such as will be shown.
        plain: how many of their first columns are plain numbers.
        num_frames: that are known.
        dim: D.
    """

    def __init__(self, tokens_EX: Tensor, plain: int, *, num_frames: int, dim: int) -> None:
        super().__init__()
        width, self.plain = tokens_EX.shape[1], plain
        # A centimetre of size must count as much as a metre of place.
        self.register_buffer("mean_X", tokens_EX.mean(0))
        self.register_buffer("deviation_X", tokens_EX.std(0).clamp_min(_STILL))
        self.evidence = nn.Linear(width, dim)
        self.frames = nn.Embedding(num_frames + 2, dim, padding_idx=_PAD)
        self.colours = nn.Embedding(1 + len(COLOURS), dim, padding_idx=0)
        self.shapes = nn.Embedding(1 + len(SHAPES), dim, padding_idx=0)
        self.asked = nn.Embedding(_ASKED, dim)
        self.second = nn.Linear(dim, dim, bias=False)
        self.marks = nn.Linear(_FIRST, dim, bias=False)
        self.owners = nn.Embedding(_MOST_CHOICES, dim)
        layer = nn.TransformerEncoderLayer(
            dim, 4, 2 * dim, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.trunk = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 1))
        self.measure = Measure(plain, dim)

    def forward(self, rows: Sequence[Row]) -> Tensor:
        """(N, Q) a number for each choice; -inf where there is none."""
        frames_NQ = pad_sequence([row.frames_Q for row in rows], batch_first=True)
        tokens_NEX = pad_sequence([row.tokens_EX for row in rows], batch_first=True)
        marks_NEM = pad_sequence([row.marks_EM for row in rows], batch_first=True)
        sizes_N1 = torch.tensor([[len(row.tokens_EX)] for row in rows])
        lacks_NE = torch.arange(tokens_NEX.shape[1]) >= sizes_N1
        tokens_NEX = (tokens_NEX - self.mean_X) / self.deviation_X
        asking_N1 = torch.tensor([[row.frame] for row in rows])
        frames_NLD = self.frames(torch.cat([asking_N1, frames_NQ], 1))
        none_NQ = frames_NQ == _PAD
        values_NQ = pad_sequence([row.values_Q for row in rows], True, torch.nan)
        plain_NEP = tokens_NEX[..., : self.plain]
        said_NQ = self.measure(plain_NEP, marks_NEM, frames_NLD, values_NQ)
        if values_NQ.isnan()[~none_NQ].any():
            said_NQ = said_NQ + self._looked(rows, frames_NLD, tokens_NEX, marks_NEM, lacks_NE)
        return said_NQ.masked_fill(none_NQ, -torch.inf)

    def _looked(
        self,
        rows: Sequence[Row],
        frames_NLD: Tensor,
        tokens_NEX: Tensor,
        marks_NEM: Tensor,
        lacks_NE: Tensor,
    ) -> Tensor:
        """(N, Q) what attention says."""
        num = frames_NLD.shape[1] - 1
        asked_NSD = self._things(torch.stack([row.asked_S2 for row in rows]))
        offered_NQSD = self._things(
            pad_sequence([row.offered_QS2 for row in rows], batch_first=True)
        )
        choices_NQD = frames_NLD[:, 1:] + self.owners.weight[:num] + offered_NQSD[:, :, 0]
        choices_NQD = choices_NQD + self.second(offered_NQSD[:, :, 1])
        x_NED = self.evidence(tokens_NEX) + self.marks(marks_NEM[..., :_FIRST])
        x_NED = x_NED + marks_NEM[..., _FIRST:_SECOND] @ self.owners.weight
        parts = [choices_NQD, frames_NLD[:, :1], asked_NSD + self.asked.weight, x_NED]
        none_NQ = pad_sequence([row.frames_Q for row in rows], batch_first=True) == _PAD
        lacks_NS = torch.zeros(len(rows), 1 + _ASKED, dtype=torch.bool)
        lacks_NL = torch.cat([none_NQ, lacks_NS, lacks_NE], 1)
        x_NLD = self.trunk(torch.cat(parts, 1), src_key_padding_mask=lacks_NL)
        return self.head(x_NLD[:, :num])[..., 0]

    def _things(self, numbers_2: Tensor) -> Tensor:
        return self.colours(numbers_2[..., 0]) + self.shapes(numbers_2[..., 1])
