"""Laws of `PackedLoader` on random settings: one sequence of rows, whole epochs, exact resumes.

A seed makes documents (runs, known lengths, weights, holes, long ones, mixtures) and a run that is
stopped, goes on with other ranks and rows, fetches ahead and leaves epochs early.
"""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from collections.abc import Iterator
from itertools import count

import pytest
import torch

from datamodules import Documents, PackedLoader, Skipped
from datamodules.feed.draws import Drawn
from datamodules.feed.plan import keys_of
from mmpredict.schema import Batch, Layout, StreamSpec
from mmpredict.sequence import split_blocks, unpack
from tests.datamodules.small import TEXT, Numbered, loader

GLOBAL_ROWS, STEPS = 4, 9
Row = list[tuple[int, int]]  # which document, how much of it


class Hollow(Numbered):
    """Documents told apart by `first`; some cannot be read, some are wanted more often."""

    def __init__(self, draw: random.Random, first: int, longest: int, *, known: bool) -> None:
        lengths = [draw.randint(1, longest) for _ in range(1000)]
        size = draw.choice([1, 2, 3, 7, 23, 60])
        super().__init__(size, lengths.__getitem__, run=draw.choice([0, 0, 1, 4, 9]), known=known)
        holes = draw.random() < 0.5
        self.holes = {n: draw.random() < 0.5 for n in range(1, size) if draw.random() < 0.2 * holes}
        self.first = first
        self.shares = draw.choices([0.0, 0.5, 1.0, 2.0], k=size) if draw.random() < 0.3 else None

    def weights(self) -> torch.Tensor | None:
        return torch.tensor(self.shares) if self.shares and sum(self.shares) else None

    def document(self, epoch: int, index: int) -> Batch | Skipped:
        if index in self.holes:
            return Skipped(f"file-{index}", "a hole", harmless=self.holes[index])
        row = super().document(epoch, index)
        row.contents[TEXT] += self.first
        return row


class Setting:
    """Documents and settings of a run, all from a seed."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        known, many = draw.random() < 0.4, draw.choice([1, 1, 2, 3])
        longest = draw.choice([5, 14, 40, 40])
        parts = [Hollow(draw, 100_000 * n, longest, known=known) for n in range(many)]
        self.documents: Documents = parts[0]
        if len(parts) > 1:
            size = draw.choice([5, 17, 50])
            shares = [1.0, 2.0, 1.5][: len(parts)]
            self.documents = Drawn(parts, shares, size=size, seed=1, spread=3)
        self.options = {
            "seed": draw.randint(0, 9),
            "open_rows": draw.choice([1, 3, 16]),
            "too_long": draw.choice(["cut", "split", "split"]),
            "budget": {"text": 10} if draw.random() < 0.5 and longest < 10 else {},
            "shuffle_runs": draw.choice([1, 3, 16]),
            "substitute": draw.random() < 0.5,
            "layout": Layout((StreamSpec(modality=TEXT, name="text", vocab_size=10),)),
        }

    def loader(self, **options: object) -> PackedLoader:
        made = loader(self.documents, **self.options, **options)
        made.skip_log.num_sources = 10**6  # what may be skipped is another law
        return made

    def expected(self, epoch: int, places: int | None = None) -> Counter[tuple[int, int]]:
        """What the first places of an epoch hold, read without the loader."""
        found: Counter[tuple[int, int]] = Counter()
        order = self.documents.order(self.options["seed"], epoch, self.options["shuffle_runs"])
        for number in order[:places].tolist():
            row = self.documents.document(epoch, number)
            if isinstance(row, Batch):
                split = self.options["too_long"] == "split"
                lengths = [p.num_tokens for p in split_blocks(row, 16)] if split else [16]
                name = int(row.contents[TEXT][0])
                found.update((name, min(row.num_tokens, length)) for length in lengths)
        return found


def rows_of(batch: Batch) -> list[Row]:
    return [[(int(d.contents[TEXT][0]), d.num_tokens) for d in row] for row in unpack(batch)]


def fetched_ahead(batches: PackedLoader) -> Iterator[Batch]:
    """As a trainer does: the next batch is fetched before one is used, within an epoch."""
    while True:
        epoch = iter(batches)
        ahead = next(epoch)
        for batch in epoch:
            yield ahead
            ahead = batch
        yield ahead


def broken_up(setting: Setting, draw: random.Random, steps: int) -> list[Row]:
    """The rows of so many batches, with a stop, a resume or an early end at every turn."""
    seen, position, done = list[Row](), None, [0]
    while len(seen) < steps * GLOBAL_ROWS:
        ranks = draw.choice([1, 1, 2])
        rows = draw.choice([n for n in (1, 2, 4) if n >= ranks]) // ranks
        share = {"rows": rows, "world_size": ranks, "consumed": lambda: done[0]}
        loaders = [setting.loader(rank=rank, **share) for rank in range(ranks)]
        for one in loaders if position else []:
            one.resume(position)
        for _ in range(draw.randint(1, 4)):  # epochs that are left early
            iterators = [fetched_ahead(one) for one in loaders]
            for _ in range(draw.randint(0, 4)):
                seen += [row for it in iterators for row in rows_of(next(it))]
                done[0] += 1
        plain = [json.dumps(one.position()) for one in loaders]
        assert len(set(plain)) == 1, "the ranks agree on where they are"
        torch.save(json.loads(plain[0]), file := io.BytesIO())
        position = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        assert all(len(one._positions) < 9 and len(one._plans) <= 2 for one in loaders)
    return seen[: steps * GLOBAL_ROWS]


@pytest.mark.parametrize("seed", range(32))
def test_one_sequence_of_rows_and_whole_epochs_however_a_run_is_broken_up(seed):
    setting = Setting(seed)
    batches = setting.loader(rows=GLOBAL_ROWS)
    stream = (batch for _ in count() for batch in batches)  # epoch after epoch
    straight = [row for _ in range(STEPS) for row in rows_of(next(stream))]
    assert broken_up(setting, random.Random(seed), STEPS) == straight
    if setting.options["substitute"]:
        return
    seen, position = Counter(piece for row in straight for piece in row), batches.position()
    held = setting.expected(position["epoch"], position["place"])
    for epoch in range(position["epoch"]):
        held += setting.expected(epoch)
    assert not seen - held, "nothing came that no epoch holds, or too often"
    spots = [(epoch, batches.plan(epoch).number(place)) for epoch, place, _ in keys_of(position)]
    waiting = [spot for spot in spots if isinstance(setting.documents.document(*spot), Batch)]
    assert (held - seen).total() == len(waiting), "what did not come stands in an open row"
