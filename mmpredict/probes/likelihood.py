"""How likely a checkpoint finds each answer. In: what is shown, questions and statements. Out: a
number per statement, the higher the likelier, by three rules.

    sum        log P(statement | what is shown, question), its end included
    per_token  the same per token
    pmi        sum - log P(statement | NEUTRAL), so that rare words are no handicap (PROBES 2.4)

Which of them counts was fixed before any result: `pmi` where the statements of an item differ in
their number of tokens, `sum` where they do not. Equal to `Predictor.forward` on the whole row, the
same alone and in a batch (tests/probes/test_likelihood.py).

Shapes: T tokens of all statements, V vocabulary, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmpredict.generate.row import Ruler
from mmpredict.model import Predictor
from mmpredict.probes.branches import Branch, read_branches
from mmpredict.probes.evidence import Shown, question_and_answer, spoken, words
from mmpredict.schema import Batch, Layout, Modality, TextPiece
from mmpredict.sequence import interleave
from mmpredict.tokens import Codecs

NEUTRAL = "Answer:"  # stands in place of evidence and question
ROOM = 1024  # words of branches that are read with a row at once


@dataclass(frozen=True)
class Ask:
    """A question ("" for none) and what may follow it."""

    question: str
    statements: tuple[str, ...]


@dataclass(frozen=True)
class Said:
    """log P of a statement, in nats, and its tokens, END included."""

    log_p: float
    tokens: int


@dataclass
class _Tree:
    """Branches to read, and what is scored: statement -> tokens of its own."""

    branches: list[Branch]
    statements: dict[tuple[str, str], tuple[int, int, tuple[int, ...]]]  # parent, own number, ids

    @property
    def num_words(self) -> int:
        return sum(len(branch.ids) for branch in self.branches)


class Likelihood:
    """Asks a predictor.

    Args:
        predictor: in evaluation mode.
        codecs: its encoders, with text.
    """

    def __init__(self, predictor: Predictor, codecs: Codecs) -> None:
        self.predictor, self.codecs = predictor, codecs
        self.spec = predictor.layout[Modality.TEXT]
        self._neutral: dict[tuple[str, bool], Said] = {}

    def said(self, shown: Shown, asks: Sequence[Ask]) -> list[list[Said]]:
        """log P of every statement after what is shown and its question; the evidence is read once
        for all that fits into `ROOM`."""
        row = interleave(list(shown.streams), self.codecs.layout) if shown.streams else None
        found: dict[tuple[str, str], Said] = {}
        tree = _Tree([], {})
        wanted = dict.fromkeys((ask.question, s) for ask in asks for s in ask.statements)
        ruler = _ruler_after(row, self.codecs.layout)
        for question, statement in wanted:
            if tree.num_words >= ROOM:
                found |= self._read(row, tree)
                tree = _Tree([], {})
            self._grow(tree, shown, ruler, (question, statement))
        found |= self._read(row, tree)
        return [[found[ask.question, s] for s in ask.statements] for ask in asks]

    def neutral(self, statement: str, *, timed: bool) -> Said:
        """log P of a statement after NEUTRAL alone."""
        if (statement, timed) not in self._neutral:
            (piece,) = spoken([NEUTRAL], 0.0 if timed else None)
            shown = Shown((words(self.codecs, [piece]),), piece.end_s)
            self._neutral[statement, timed] = self.said(shown, [Ask("", (statement,))])[0][0]
        return self._neutral[statement, timed]

    def numbers(self, shown: Shown, asks: Sequence[Ask]) -> list[dict[str, list[float]]]:
        """Per ask, a number per statement by each rule; the rule that counts comes first."""
        timed = shown.end_s is not None
        found = []
        for ask, said in zip(asks, self.said(shown, asks), strict=True):
            neutral = [self.neutral(s, timed=timed).log_p for s in ask.statements]
            by_rule = {
                "sum": [s.log_p for s in said],
                "pmi": [s.log_p - n for s, n in zip(said, neutral, strict=True)],
                "per_token": [s.log_p / s.tokens for s in said],
            }
            registered = "sum" if len({s.tokens for s in said}) == 1 else "pmi"
            found.append({registered: by_rule[registered], **by_rule})
        return found

    def _grow(self, tree: _Tree, shown: Shown, ruler: Ruler, pair: tuple[str, str]) -> None:
        """Add a statement after its question; items with the same question share its branch."""
        asked, said = question_and_answer(shown, *pair)
        parent, ruler = -1, _copy(ruler)
        if asked:
            question = self._branch(asked[0], ruler)
            known = [n for n, b in enumerate(tree.branches) if b == question]
            parent = known[0] if known else len(tree.branches)
            tree.branches += [] if known else [question]
        branch = self._branch(said, ruler)
        tree.statements[pair] = parent, len(tree.branches), branch.ids
        # Nobody looks at the last token.
        fed = replace(branch, ids=branch.ids[:-1], seconds=branch.seconds[:-1], parent=parent)
        tree.branches.append(fed)

    def _branch(self, piece: TextPiece, ruler: Ruler) -> Branch:
        tokens = words(self.codecs, [piece])
        seconds = tuple(ruler.place(self.spec, end_s) for end_s in tokens.end_s.tolist())
        return Branch(tuple(tokens.contents.tolist()), seconds)

    @torch.no_grad()
    def _read(self, row: Batch | None, tree: _Tree) -> dict[tuple[str, str], Said]:
        model = self.predictor
        views = read_branches(model, row, tree.branches, self.spec)
        start_D = model.starts[self.spec.name][1] if views.row_D is None else views.row_D
        z_parts: list[Tensor] = []
        for parent, number, _ in tree.statements.values():
            before_D = start_D if parent < 0 else views.branches[parent][-1]
            z_parts += [before_D[None], views.branches[number]]
        ids = [i for _, _, own in tree.statements.values() for i in own]
        log_p = self._log_p(torch.cat(z_parts), ids)
        found, start = {}, 0
        for pair, (_, _, own) in tree.statements.items():
            found[pair] = Said(sum(log_p[start : start + len(own)]), len(own))
            start += len(own)
        return found

    def _log_p(self, z_TD: Tensor, ids: Sequence[int]) -> list[float]:
        """Of each token, in float32; sums are taken in Python's own precision."""
        logits_TV = self.predictor.heads[self.spec.name].logits(z_TD).float()
        ids_T1 = torch.tensor(ids, device=logits_TV.device)[:, None]
        return logits_TV.log_softmax(-1).gather(1, ids_T1)[:, 0].tolist()


def _ruler_after(row: Batch | None, layout: Layout) -> Ruler:
    """Where the next word stands on the time axis, after a row."""
    ruler, start = Ruler(), 0
    if row is None:
        return ruler
    modality_L, end_L = row.modality[0].tolist(), row.end_s[0].tolist()
    while start < len(modality_L):
        spec = layout[modality_L[start]]
        ruler.place(spec, end_L[start])
        start += spec.positions_per_block
    return ruler


def _copy(ruler: Ruler) -> Ruler:
    return replace(ruler, latest_id_s=dict(ruler.latest_id_s))
