"""Which tensors of one predictor another one can begin with. In: a new predictor, and the weights,
streams and vocabulary of an old one. Out: a Plan: what is taken, by name, and what is not.

Rows that belong to streams follow the stream's name, rows that belong to words the bytes of the
word, and what belongs to places of a frame is stretched to the new grid: shapes alone would put
weights silently where they mean something else.

Shapes: S streams, V vocabulary, P positions per block, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from mmpredict.model import Predictor
from mmpredict.model.layers import StreamNorm
from mmpredict.schema import Layout, StreamSpec
from mmpredict.tokens import Codecs, TextTokens

STATISTICS = "embed.standardise."  # buffers of mean and deviation, by stream
OF_PLACES = ("queries.{}.place", "heads.{}.no_past.z_PZ")  # (P, D): one row for each patch


@dataclass(frozen=True)
class Plan:
    """What a new predictor takes of an old one.

    Args:
        tensors: by name, those that change in the new predictor.
        taken: names of those that are the old ones bit by bit.
        partly: name -> which rows of it are new.
        anew: names that the old one has not.
        reshaped: name -> (old shape, new shape): begun anew.
        left: names of the old one that have no place.
        share: of the values that the old one could be expected to give, those that it gives.
        new_statistics: streams whose mean and deviation come from the data.
    """

    tensors: dict[str, Tensor] = field(repr=False)
    taken: tuple[str, ...] = ()
    partly: dict[str, str] = field(default_factory=dict)
    anew: tuple[str, ...] = ()
    reshaped: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    share: float = 1.0
    new_statistics: tuple[str, ...] = ()

    @property
    def not_whole(self) -> tuple[str, ...]:
        """Names whose values are not those of the old one, or not all of them."""
        return (*self.anew, *self.partly, *self.reshaped)


@dataclass(frozen=True)
class Carried:
    """The old side.

    Args:
        state: weights of a predictor, by name.
        codecs: its encoders; they say its streams.
    """

    state: Mapping[str, Tensor]
    codecs: Codecs

    @property
    def layout(self) -> Layout:
        return self.codecs.layout

    def plan(self, predictor: Predictor, codecs: Codecs) -> Plan:
        """What `predictor`, on the streams of `codecs`, takes; nothing is changed."""
        return _Planner(self, predictor, codecs).plan()


class _Planner:
    """Walks over the new predictor's tensors once."""

    def __init__(self, old: Carried, predictor: Predictor, codecs: Codecs) -> None:
        self.old, self.predictor, self.codecs = old, predictor, codecs
        self.new_state = predictor.state_dict()
        self.old_specs = {spec.name: spec for spec in old.layout.streams}
        self.new_specs = {spec.name: spec for spec in predictor.layout.streams}
        gains = (n for n, m in predictor.named_modules() if isinstance(m, StreamNorm))
        self.by_stream = {"embed.stream.weight", "next_stream.weight", "next_stream.bias"}
        self.by_stream |= {f"{name}.weight" for name in gains}
        words = [s.name for s in predictor.layout.streams if s.is_discrete]
        self.by_word = {f"embed.tables.{n}.weight": n for n in words}
        self.by_word |= {f"heads.{n}.weight": n for n in words}
        self.by_place = {form.format(n): n for n in self.new_specs for form in OF_PLACES}

    def plan(self) -> Plan:
        tensors: dict[str, Tensor] = {}
        taken, partly, anew, reshaped = [], {}, [], {}
        others = self._streams_with_other_values()
        for name, new in self.new_state.items():
            old = self.old.state.get(name)
            if old is None:
                anew.append(name)
            elif name.startswith(STATISTICS) and _stream(name) in others:
                partly[name] = "of the new data"
            else:
                found, said = self._carry(name, old, new)
                if found is None:
                    reshaped[name] = (list(old.shape), list(new.shape))
                    continue
                tensors[name] = found
                if said:
                    partly[name] = said
                else:
                    taken.append(name)
        left = tuple(sorted(set(self.old.state) - set(self.new_state)))
        statistics = {_stream(n) for n in [*anew, *reshaped, *partly] if n.startswith(STATISTICS)}
        return Plan(
            tensors,
            tuple(taken),
            partly,
            tuple(anew),
            reshaped,
            left,
            self._share(tensors),
            tuple(sorted(statistics)),
        )

    def _streams_with_other_values(self) -> set[str]:
        """Streams of sound whose numbers mean something else now, although they are as many."""
        old, new = self.old.codecs.audio, self.codecs.audio
        return {"audio"} if old is not None and new is not None and old != new else set()

    def _carry(self, name: str, old: Tensor, new: Tensor) -> tuple[Tensor | None, str]:
        """The new tensor, and which of its rows are new; (None, "") where nothing fits."""
        if name in self.by_stream:
            return self._rows(old, new, list(self.old_specs), list(self.new_specs), "streams")
        if name in self.by_word:
            return self._words(name, old, new)
        if name in self.by_place and old.shape != new.shape and old.shape[1:] == new.shape[1:]:
            stream = self.by_place[name]
            grids = _grid(self.old_specs[stream]), _grid(self.new_specs[stream])
            return _stretched(old, *grids).to(new), f"stretched from {grids[0]} to {grids[1]}"
        return (old, "") if old.shape == new.shape else (None, "")

    def _words(self, name: str, old: Tensor, new: Tensor) -> tuple[Tensor | None, str]:
        texts = self.old.codecs.text, self.codecs.text
        if self.by_word[name] != "text" or None in texts or texts[0] == texts[1]:
            return (old, "") if old.shape == new.shape else (None, "")
        return self._rows(old, new, pieces(texts[0]), pieces(texts[1]), "pieces of text")

    def _rows(
        self, old: Tensor, new: Tensor, before: Sequence, after: Sequence, what: str
    ) -> tuple[Tensor | None, str]:
        """Rows by what they stand for; those that are not known keep their own beginning."""
        if old.shape[1:] != new.shape[1:] or (len(before), len(after)) != (len(old), len(new)):
            return None, ""
        place = {key: index for index, key in enumerate(before) if key is not None}
        pairs = [(i, place[key]) for i, key in enumerate(after) if key in place]
        if not pairs:
            return None, ""
        to, at = (torch.tensor(side) for side in zip(*pairs, strict=True))
        found = new.detach().clone()
        found[to] = old[at].to(found)
        missing = len(after) - len(pairs)
        return found, f"{missing} of {len(after)} {what} are new" if missing else ""

    def _share(self, tensors: Mapping[str, Tensor]) -> float:
        """By number of values, over all parameters but those of streams that the old one lacks."""
        given = expected = 0
        known = dict(self.predictor.named_parameters())
        for name, parameter in known.items():
            owner = _owner(name, self.new_specs)
            if owner is not None and owner not in self.old_specs:
                continue
            expected += parameter.numel()
            given += parameter.numel() if name in tensors else 0
        return given / max(1, expected)


def _stream(name: str) -> str:
    return name.removeprefix(STATISTICS).split(".")[0]


def _owner(name: str, streams: Mapping[str, StreamSpec]) -> str | None:
    """The stream that a parameter belongs to alone."""
    return next((part for part in name.split(".") if part in streams), None)


def _grid(spec: StreamSpec) -> tuple[int, int]:
    return spec.rows, spec.cols


def _stretched(old_PD: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """(P, D) of one grid of patches as that of another, by straight lines between neighbours."""
    grid = old_PD.float().T.unflatten(1, before)[None]
    return F.interpolate(grid, size=after, mode="bilinear")[0].flatten(1).T


def pieces(text: TextTokens) -> list[bytes | str | None]:
    """What each id of a vocabulary stands for: its bytes; "end"; None for an id without a word."""
    size = text.spec.vocab_size
    found: list[bytes | str | None] = [None] * size
    if text.kind == "bytes":
        found[:256] = [bytes([value]) for value in range(256)]
    else:
        byte_of = _byte_of_letter()
        for word, number in text.tokenizer.get_vocab(with_added_tokens=True).items():
            known = all(letter in byte_of for letter in word)
            raw = bytes(byte_of[letter] for letter in word) if known else word.encode()
            if number < size:
                found[number] = raw
    found[text.end_id] = "end"
    return found


def _byte_of_letter() -> dict[str, int]:
    """Byte-level vocabularies write every byte as one visible letter: printable Latin-1 as itself,
    the others in order from U+0100 up (Radford et al. 2019)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in plain]
    letters = {chr(value): value for value in plain}
    return letters | {chr(0x100 + n): value for n, value in enumerate(others)}
