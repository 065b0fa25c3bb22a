"""How likely a checkpoint finds each answer. In: what is shown, questions and statements. Out: a
number per statement, the higher the likelier, by three rules.

    sum        log P(statement | what is shown, question), its end included
    per_token  the same per token
    pmi        sum - log P(statement | NEUTRAL), so that rare words are no handicap (PROBES 2.4)

While question and answers are said, what goes on goes on (`background`).

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
from mmpredict.probes.evidence import Shown, question_and_answer, spoken, with_background, words
from mmpredict.schema import Batch, Layout, Modality, Tokens
from mmpredict.sequence import interleave
from mmpredict.tokens import Codecs

NEUTRAL = "Answer:"  # stands in place of evidence and question
ROOM = 1024  # positions of branches that are read with a row at once


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
    questions: dict[str, int]  # -> branch
    statements: dict[tuple[str, str], _Statement]

    @property
    def num_positions(self) -> int:
        return sum(len(branch) for branch in self.branches)


@dataclass(frozen=True)
class _Statement:
    """Where a statement stands in a tree.

    Args:
        branch: its number.
        ids: of its tokens, END included.
        before: which position of the branch comes before each; -1 for what the branch follows.
    """

    branch: int
    ids: tuple[int, ...]
    before: tuple[int, ...]


class Likelihood:
    """Asks a predictor.

    Args:
        predictor: in evaluation mode.
        codecs: its encoders, with text.
    """

    def __init__(self, predictor: Predictor, codecs: Codecs) -> None:
        self.predictor, self.codecs = predictor, codecs
        self.spec = predictor.layout[Modality.TEXT]
        self._neutral: dict[tuple[str, bool, bool], Said] = {}

    def said(self, shown: Shown, asks: Sequence[Ask]) -> list[list[Said]]:
        """log P of every statement after what is shown and its question; the evidence is read once
        for all that fits into `ROOM`."""
        row = interleave(list(shown.streams), self.codecs.layout) if shown.streams else None
        found: dict[tuple[str, str], Said] = {}
        tree = _Tree([], {}, {})
        wanted = dict.fromkeys((ask.question, s) for ask in asks for s in ask.statements)
        ruler = _ruler_after(row, self.codecs.layout)
        for question, statement in wanted:
            if tree.num_positions >= ROOM:
                found |= self._read(row, tree)
                tree = _Tree([], {}, {})
            self._grow(tree, shown, ruler, (question, statement))
        found |= self._read(row, tree)
        return [[found[ask.question, s] for s in ask.statements] for ask in asks]

    def neutral(self, statement: str, shown: Shown) -> Said:
        """log P of a statement after NEUTRAL alone, over the background of what is shown."""
        timed, background = shown.end_s is not None, shown.background
        key = statement, timed, background is None
        if key not in self._neutral:
            (piece,) = spoken([NEUTRAL], 0.0 if timed else None)
            alone = with_background((words(self.codecs, [piece]),), piece.end_s, background)
            self._neutral[key] = self.said(alone, [Ask("", (statement,))])[0][0]
        return self._neutral[key]

    def numbers(self, shown: Shown, asks: Sequence[Ask]) -> list[dict[str, list[float]]]:
        """Per ask, a number per statement by each rule; the rule that counts comes first."""
        found = []
        for ask, said in zip(asks, self.said(shown, asks), strict=True):
            neutral = [self.neutral(s, shown).log_p for s in ask.statements]
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
        parent, ruler, since_s = -1, _copy(ruler), shown.end_s
        if asked:
            tokens = words(self.codecs, asked)
            question = self._branch(tokens, tokens.end_s[-1:], shown, ruler, since_s)
            parent = tree.questions.setdefault(pair[0], len(tree.branches))
            tree.branches += [question] if parent == len(tree.branches) else []
            since_s = asked[-1].end_s
        tokens = words(self.codecs, [said])
        fed = replace(tokens, contents=tokens.contents[:-1], end_s=tokens.end_s[:-1])
        # Nobody looks at the last token.
        branch = self._branch(fed, tokens.end_s[-1:], shown, ruler, since_s)
        places = [] if branch.row is None else branch.row.modality[0].tolist()
        own = [n for n, modality in enumerate(places) if modality == self.spec.modality]
        before = tuple(place - 1 for place in [*own, len(branch)])
        ids = tuple(tokens.contents.tolist())
        tree.statements[pair] = _Statement(len(tree.branches), ids, before)
        tree.branches.append(replace(branch, parent=parent))

    def _branch(
        self,
        tokens: Tokens,
        stop_s: Tensor,
        shown: Shown,
        ruler: Ruler,
        since_s: float | None,
    ) -> Branch:
        """Words, and what goes on between `since_s` and the end of their last."""
        streams = [tokens]
        if since_s is not None and shown.background is not None:
            more = shown.background.after(shown.streams, since_s, float(stop_s))
            streams += [] if more is None else [more]
        if not any(len(t.end_s) for t in streams):
            return Branch(None, ())
        row = interleave(streams, self.codecs.layout)
        return Branch(row, tuple(_placed(ruler, row, self.codecs.layout)))

    @torch.no_grad()
    def _read(self, row: Batch | None, tree: _Tree) -> dict[tuple[str, str], Said]:
        model = self.predictor
        views = read_branches(model, row, tree.branches)
        start_D = model.starts[self.spec.name][1] if views.row_D is None else views.row_D
        z_parts: list[Tensor] = []
        for statement in tree.statements.values():
            parent = tree.branches[statement.branch].parent
            above_D = start_D if parent < 0 else views.branches[parent][-1]
            # Place -1 is the first of these.
            z_ND = torch.cat([above_D[None], views.branches[statement.branch]])
            z_parts.append(z_ND[[place + 1 for place in statement.before]])
        ids = [i for statement in tree.statements.values() for i in statement.ids]
        log_p = self._log_p(torch.cat(z_parts), ids)
        found, start = {}, 0
        for pair, statement in tree.statements.items():
            stop = start + len(statement.ids)
            found[pair] = Said(sum(log_p[start:stop]), len(statement.ids))
            start = stop
        return found

    def _log_p(self, z_TD: Tensor, ids: Sequence[int]) -> list[float]:
        """Of each token, in float32; sums are taken in Python's own precision."""
        logits_TV = self.predictor.heads[self.spec.name].logits(z_TD).float()
        ids_T1 = torch.tensor(ids, device=logits_TV.device)[:, None]
        return logits_TV.log_softmax(-1).gather(1, ids_T1)[:, 0].tolist()


def _ruler_after(row: Batch | None, layout: Layout) -> Ruler:
    """Where the next block stands on the time axis, after a row."""
    ruler = Ruler()
    if row is not None:
        _placed(ruler, row, layout)
    return ruler


def _placed(ruler: Ruler, row: Batch, layout: Layout) -> list[float]:
    """Where each position of a row stands on the time axis, if it follows what was placed."""
    modality_L, end_L, seconds = row.modality[0].tolist(), row.end_s[0].tolist(), []
    while len(seconds) < len(modality_L):
        spec = layout[modality_L[len(seconds)]]
        place = ruler.place(spec, end_L[len(seconds)])
        seconds += [place] * spec.positions_per_block
    return seconds


def _copy(ruler: Ruler) -> Ruler:
    return replace(ruler, latest_id_s=dict(ruler.latest_id_s))
