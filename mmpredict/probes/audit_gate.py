"""The learnability gate: can what is asked be had from what is given at all?

In: items to learn from and items to be judged by, of other scenes. Out: the score per family of a
small network that is given the evidence: the true state (an oracle's view), or the pixels and
spectra themselves (`audit_views`). A family below the gate is one whose score cannot be read as a
model's failing at that size and that amount of learning.

Of a pair of captions each context is asked by itself which caption fits, of a matched set each clip
whether it is possible; the numbers are then graded as those of any scorer.

Shapes: N asks, Q choices, W words, E evidence tokens, X their width, D width, L = W + E.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from .audit_views import VIEWS, View, pixels, state, told
from .grading import grade
from .items import Evidence, Item, Suite

GATE = 0.9
_MENTIONS = 3  # objects that a question names
_MARKS = _MENTIONS + 1  # and whether it asks of all of a colour or a shape
_MOST_CHOICES = 10
_MOST_WORDS = 96
_GAP, _UNKNOWN, _OPEN = 0, 1, 2  # words: none, never seen, the beginning of a choice
_LEARNT = 0.003  # mean loss from which more steps teach nothing
_BATCH = 64
_MEASURED = 1000  # rows whose tokens give mean and deviation
_STILL = 0.1  # least deviation of a column
_CLIP_CHOICES = ("possible", "impossible")


@dataclass(frozen=True)
class Gate:
    """How much the gate may cost.

    Args:
        view: "state" gives the truth, "pixels" pictures of `size` px and log spectra of both ears.
        families: that are tried; () all.
        scenes: of every kind to learn from, and a third as many matched sets of a kind.
        steps: of the optimiser for each family at most, 64 asks at a time; fewer where the loss is
            gone before.
        size: px.
        pictures: of pixels, spread over what is shown.
        dim: of the reader.
    """

    view: str = "state"
    families: tuple[str, ...] = ()
    scenes: int = 300
    steps: int = 1000
    size: int = 32
    pictures: int = 4
    dim: int = 96

    def __post_init__(self) -> None:
        if self.view not in VIEWS:
            raise ValueError(f"view={self.view!r} is not one of {', '.join(VIEWS)}")


@dataclass(frozen=True)
class _Ask:
    """One choice to be made in view of one evidence."""

    evidence: Evidence
    text: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class _Row:
    """An ask as tensors.

    Args:
        words_W, owner_W: words of the question and the choices; whose each is, 0 the question's.
        tokens_EX: what is shown.
        marks_EM: which mention in the question a token's object is, whether all of its colour or
            its shape are meant, and which choices name it. Who "the red ball" is must not be what
            the gate fails to learn. 0 for pixels.
    """

    words_W: Tensor
    owner_W: Tensor
    tokens_EX: Tensor
    marks_EM: Tensor
    answer: int


class Reader(nn.Module):
    """Question and choices look at the evidence: layers of attention over all, then a number where
    each choice begins.

    Args:
        tokens_EX: such as will be shown.
        num_words: that are known, the three special ones included.
        dim: D.
    """

    def __init__(self, tokens_EX: Tensor, num_words: int, dim: int) -> None:
        super().__init__()
        width = tokens_EX.shape[1]
        # A centimetre of size must count as much as a metre of place.
        self.register_buffer("mean_X", tokens_EX.mean(0))
        self.register_buffer("deviation_X", tokens_EX.std(0).clamp_min(_STILL))
        self.evidence = nn.Linear(width, dim)
        self.words = nn.Embedding(num_words, dim, padding_idx=_GAP)
        self.places = nn.Embedding(_MOST_WORDS, dim)
        self.owners = nn.Embedding(1 + _MOST_CHOICES, dim)
        self.mentions = nn.Linear(_MARKS, dim, bias=False)
        layer = nn.TransformerEncoderLayer(
            dim, 4, 2 * dim, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.trunk = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 1))

    def forward(self, rows: Sequence[_Row]) -> Tensor:
        """(N, Q) a number for each choice; -inf where there is none."""
        words_NW = pad_sequence([row.words_W for row in rows], batch_first=True)
        owner_NW = pad_sequence([row.owner_W for row in rows], batch_first=True)
        tokens_NEX = pad_sequence([row.tokens_EX for row in rows], batch_first=True)
        marks_NEM = pad_sequence([row.marks_EM for row in rows], batch_first=True)
        sizes_N1 = torch.tensor([[len(row.tokens_EX)] for row in rows])
        lacks_NE = torch.arange(tokens_NEX.shape[1]) >= sizes_N1
        x_NWD = self.words(words_NW) + self.owners(owner_NW)
        x_NWD = x_NWD + self.places(torch.arange(words_NW.shape[1]))
        tokens_NEX = (tokens_NEX - self.mean_X) / self.deviation_X
        x_NED = self.evidence(tokens_NEX) + self.mentions(marks_NEM[..., :_MARKS])
        x_NED = x_NED + marks_NEM[..., _MARKS:] @ self.owners.weight[1:]
        lacks_NL = torch.cat([words_NW == _GAP, lacks_NE], 1)
        x_NLD = self.trunk(torch.cat([x_NWD, x_NED], 1), src_key_padding_mask=lacks_NL)
        said_NW = self.head(x_NLD[:, : words_NW.shape[1]])[..., 0]
        parts = [said[words == _OPEN] for said, words in zip(said_NW, words_NW, strict=True)]
        return pad_sequence(parts, batch_first=True, padding_value=-torch.inf)


def gate_scores(
    learn: Suite, judge: Suite, gate: Gate, *, seed: int = 0
) -> dict[str, tuple[float, int]]:
    """Score of each family on scenes that were not learnt from, and how many items it is of.

    Words alone are no evidence for pixels: families that show nothing have a state alone.
    """
    found = {}
    for family in gate.families or learn.families:
        items = [[i for i in suite.items if i.family == family] for suite in (learn, judge)]
        if gate.view == "pixels":
            items = [[i for i in some if i.evidence[0].source] for some in items]
        if not all(items):
            continue
        asks = [[ask for item in some for ask in _asks(item)] for some in items]
        views = [_views(s, some, gate) for s, some in zip((learn, judge), asks, strict=True)]
        words = _spell(asks[0])
        rows = [_row(a, v, words) for a, v in zip(asks[0], views[0], strict=True)]
        model = _learnt(rows, len(words) + 3, gate, seed)
        rows = [_row(a, v, words) for a, v in zip(asks[1], views[1], strict=True)]
        scores = _judged(model, items[1], rows)
        found[family] = (sum(scores) / len(scores), len(scores))
    return found


def _asks(item: Item) -> list[_Ask]:
    if item.score == "voe":
        marked = zip(item.evidence, item.possible, strict=True)
        return [_Ask(e, "", _CLIP_CHOICES, int(not possible)) for e, possible in marked]
    if item.score == "minpair":
        return [_Ask(e, "", item.choices, k) for k, e in enumerate(item.evidence)]
    return [_Ask(item.evidence[0], item.question, item.choices, item.answer)]


def _views(suite: Suite, asks: Sequence[_Ask], gate: Gate) -> list[View]:
    """What each ask shows, filmed once for all that show the same."""
    memory: dict[tuple[str, float | None, tuple[str, ...]], View] = {}
    keys = []
    for evidence in (ask.evidence for ask in asks):
        source, until_s = evidence.source, evidence.until_s
        key = source, until_s, () if source else evidence.told
        keys.append(key)
        if key in memory:
            continue
        if not source:
            memory[key] = told(evidence.told)
        elif gate.view == "state":
            memory[key] = state(suite.sources[source], until_s)
        else:
            take = suite.sources[source]
            memory[key] = pixels(take, until_s, size=gate.size, pictures=gate.pictures)
    return [memory[key] for key in keys]


def _spell(asks: Sequence[_Ask]) -> dict[str, int]:
    texts = {text for ask in asks for text in (ask.text, *ask.choices)}
    found = sorted({word for text in texts for word in _split(text)})
    return {word: k + 3 for k, word in enumerate(found)}


def _split(text: str) -> list[str]:
    return text.replace("?", " ?").split()


def _row(ask: _Ask, view: View, words: Mapping[str, int]) -> _Row:
    ids = [words.get(word, _UNKNOWN) for word in _split(ask.text)]
    owners = [0] * len(ids)
    for number, choice in enumerate(ask.choices):
        said = [words.get(word, _UNKNOWN) for word in _split(choice)]
        ids += [_OPEN, *said]
        owners += [number + 1] * (1 + len(said))
    marks_EM = torch.zeros(len(view.names), _MARKS + _MOST_CHOICES)
    asked = ask.text or ask.choices[0]
    order = sorted((n for n in set(view.names) if n and n in asked), key=asked.index)[:_MENTIONS]
    for e, name in enumerate(view.names):
        if name in order:
            marks_EM[e, order.index(name)] = 1
        elif not order:
            marks_EM[e, _MENTIONS] = float(any(word in asked for word in name.split()))
        for number, choice in enumerate(ask.choices):
            marks_EM[e, _MARKS + number] = float(bool(name) and name in choice)
    return _Row(torch.tensor(ids), torch.tensor(owners), view.tokens_EX, marks_EM, ask.answer)


def _learnt(rows: Sequence[_Row], num_words: int, gate: Gate, seed: int) -> Reader:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokens_EX = torch.cat([row.tokens_EX for row in rows[:_MEASURED]])
        model = Reader(tokens_EX, num_words, gate.dim)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 1e-3, total_steps=gate.steps, pct_start=0.1
    )
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    mean_loss = 1.0
    for _ in range(gate.steps):
        while len(order) < _BATCH:  # every ask once before any comes again
            order += torch.randperm(len(rows), generator=generator).tolist()
        chosen, order = [rows[k] for k in order[:_BATCH]], order[_BATCH:]
        loss = functional.cross_entropy(model(chosen), torch.tensor([r.answer for r in chosen]))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        mean_loss += 0.05 * (loss.item() - mean_loss)
        if mean_loss < _LEARNT:
            break
    return model.eval()


def _judged(model: Reader, items: Sequence[Item], rows: Sequence[_Row]) -> list[float]:
    numbers: list[list[float]] = []
    with torch.no_grad():
        for start in range(0, len(rows), _BATCH):
            said_NQ = model(rows[start : start + _BATCH]).log_softmax(1)
            numbers += [[x for x in said if x > -torch.inf] for said in said_NQ.tolist()]
    scores, at = [], 0
    for item in items:
        count = len(_asks(item))
        scores.append(grade(item, _joined(item, numbers[at : at + count])).score)
        at += count
    return scores


def _joined(item: Item, numbers: Sequence[list[float]]) -> list[float]:
    """What a scorer says of an item, from what was said of its asks."""
    if item.score == "voe":
        return [broken - lawful for lawful, broken in numbers]
    return [number for part in numbers for number in part]
