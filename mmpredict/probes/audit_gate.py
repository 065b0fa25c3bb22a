"""The learnability gate: can what is asked be had from what is given at all?

In: items to learn from and items to be judged by, of other scenes. Out: the score per family of a
small network that is given the evidence: the true state at the last pictures (an oracle's view), or
the pixels and spectra themselves. A family below the gate is one whose score cannot be read as a
model's failing at that size and that amount of learning.

Shapes: I items, C choices of an item, E evidence tokens, W words, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmpredict.world import COLOURS, SHAPES, Film, Recording

from .grading import grade
from .items import Item, Suite

GATE = 0.9
VIEWS = ("state", "pixels")
_FRAMES = 4  # spread over what is shown, the last one included
_PATCH = 8
_CHUNK_S = 0.04
_BANDS = 32
_STATE_WIDTH = 94  # of a token of the state; those of pixels are wider
_MENTIONS = 3  # objects that a question names


@dataclass(frozen=True)
class Gate:
    """How much the gate may cost.

    Args:
        view: "state" gives the truth, "pixels" pictures of `size` px and log spectra of both ears.
        families: that are tried; () all that have choices.
        scenes: rooms to learn from; the other kinds of scenes in proportion.
        steps: of the optimiser for each family, 64 items at a time.
        size: px.
    """

    view: str = "state"
    families: tuple[str, ...] = ()
    scenes: int = 300
    steps: int = 400
    size: int = 32
    dim: int = 96

    def __post_init__(self) -> None:
        if self.view not in VIEWS:
            raise ValueError(f"view={self.view!r} is not one of {', '.join(VIEWS)}")


class Reader(nn.Module):
    """Words look at the evidence: two layers of attention over both, then a number per choice."""

    def __init__(self, width: int, num_words: int, dim: int) -> None:
        super().__init__()
        self.evidence = nn.Linear(width, dim)
        self.words = nn.Embedding(num_words, dim, padding_idx=0)
        self.places = nn.Embedding(64, dim)
        layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, 0.0, "gelu", batch_first=True)
        self.trunk = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(dim, 1)

    def forward(self, evidence_NEX: Tensor, lacks_NE: Tensor, words_NW: Tensor) -> Tensor:
        """(N,) a number for each question with one of its choices."""
        places_W = torch.arange(words_NW.shape[1])
        words_NWD = self.words(words_NW) + self.places(places_W)
        x_NLD = torch.cat([words_NWD, self.evidence(evidence_NEX)], 1)
        lacks_NL = torch.cat([words_NW == 0, lacks_NE], 1)
        return self.head(self.trunk(x_NLD, src_key_padding_mask=lacks_NL)[:, 0])[:, 0]


def gate_scores(
    learn: Suite, judge: Suite, gate: Gate, *, seed: int = 0
) -> dict[str, tuple[float, int]]:
    """Score of each family on scenes that were not learnt from, and how many items it is of."""
    found = {}
    shown: dict[tuple[str, float | None, str], Tensor] = {}
    for family in gate.families or learn.families:
        ours = [
            [i for i in suite.items if i.family == family and i.score in ("mc", "numeric")]
            for suite in (learn, judge)
        ]
        ours = [[i for i in items if i.variants != ("text",)] for items in ours]
        if not all(ours):
            continue
        sets = []
        for suite, items in zip((learn, judge), ours, strict=True):
            sets.append([_shown(suite, item, gate, shown) for item in items])
        model, words = _learnt(ours[0], sets[0], gate, seed)
        scores = _judged(model, words, ours[1], sets[1])
        found[family] = (sum(scores) / len(scores), len(scores))
    return found


def _shown(suite: Suite, item: Item, gate: Gate, memory: dict) -> Tensor:
    """(E, X) what an item shows, filmed once for all that ask of it."""
    evidence = item.evidence[0]
    key = f"{suite.name}/{evidence.source}", evidence.until_s
    if key not in memory:
        film = Film((gate.size, gate.size), fps=8.0, sample_rate=16000)
        recording = suite.sources[evidence.source].record(film)
        view = _state if gate.view == "state" else _pixels
        memory[key] = view(recording, evidence.until_s)
    return memory[key]


def _chosen(recording: Recording, until_s: float | None) -> list[int]:
    times_T = recording.truth.times_s
    count = len(times_T) if until_s is None else int((times_T < until_s - 1e-9).sum())
    return torch.linspace(0, count - 1, _FRAMES).round().long().tolist()


def _state(recording: Recording, until_s: float | None) -> Tensor:
    """One token for each object and picture: what it is, where it is, how it moves, on and in
    what; and for each sound until then the object, the place and the strength of it."""
    truth, rows = recording.truth, []
    names = torch.eye(20)
    for place, t in enumerate(_chosen(recording, until_s)):
        for n in range(len(truth.names)):
            kind = torch.cat(
                [
                    functional.one_hot(truth.colour_N[n], 8),
                    functional.one_hot(truth.shape_N[n], 5),
                    functional.one_hot(truth.material_N[n], 3),
                ]
            )
            links = [truth.support_TN[t, n], truth.container_TN[t, n]]
            known = [names[int(k) + 3] for k in links]  # FLOOR -1, NONE -2
            numbers = torch.cat(
                [truth.position_TN3[t, n], truth.velocity_TN3[t, n, :2], truth.size_N2[n]]
            )
            flags = torch.stack([truth.visible_TN[t, n], truth.held_TN[t, n].float()])
            mark = torch.zeros(_FRAMES + 1)
            mark[place] = 1
            rows.append(torch.cat([kind, names[n], *known, numbers, flags, mark, torch.zeros(4)]))
    for event in truth.events:
        if event.impulse > 0 and (until_s is None or event.time_s < until_s):
            rows.append(_event_row(truth, event, names, len(rows[0])))
    return torch.stack(rows)


def _event_row(truth: object, event: object, names: Tensor, width: int) -> Tensor:
    row = torch.zeros(width)
    row[16:36] = names[event.a]
    row[36:56] = names[event.b + 5]
    row[: 8 + 5 + 3] = torch.cat(
        [
            functional.one_hot(truth.colour_N[event.a], 8),
            functional.one_hot(truth.shape_N[event.a], 5),
            functional.one_hot(truth.material_N[event.a], 3),
        ]
    )
    row[-5] = 1
    row[-4:] = torch.tensor([*event.position, event.time_s])
    return row


def _pixels(recording: Recording, until_s: float | None) -> Tensor:
    """One token for each patch of four pictures and for each 40 ms of sound of both ears."""
    clip = recording.clip
    frames = clip.frames_TCHW[_chosen(recording, until_s)].float() / 127.5 - 1
    patches = frames.unfold(2, _PATCH, _PATCH).unfold(3, _PATCH, _PATCH)
    T, C, H, W = patches.shape[:4]
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(T * H * W, -1)
    where = _where(T, H, W)
    size = round(_CHUNK_S * clip.sample_rate)
    end = clip.waveform_CS.shape[1] if until_s is None else round(until_s * clip.sample_rate)
    count = max(1, end // size)
    chunks = clip.waveform_CS[:, : count * size].unflatten(1, (count, size))
    power = torch.fft.rfft(chunks).abs().square()[..., : _BANDS * 8]
    bands = power.unflatten(2, (_BANDS, -1)).mean(3).add(1e-6).log() / 5 + 1
    sound = bands.permute(1, 0, 2).reshape(count, -1)
    width = patches.shape[1] + where.shape[1] + sound.shape[1] + 1
    out = torch.zeros(len(patches) + count, width)
    out[: len(patches), : patches.shape[1]] = patches
    out[: len(patches), patches.shape[1] : patches.shape[1] + where.shape[1]] = where
    out[len(patches) :, -sound.shape[1] - 1 : -1] = sound
    out[len(patches) :, -1] = torch.linspace(0, 1, count)
    return out


def _where(T: int, H: int, W: int) -> Tensor:
    """(T H W, T + H + W) which picture, row and column a patch is of."""
    grid = torch.stack(
        torch.meshgrid(torch.arange(T), torch.arange(H), torch.arange(W), indexing="ij"), -1
    )
    t, y, x = grid.reshape(-1, 3).T
    parts = functional.one_hot(t, T), functional.one_hot(y, H), functional.one_hot(x, W)
    return torch.cat(parts, 1).float()


def _spell(items: Sequence[Item]) -> dict[str, int]:
    found = sorted({w for item in items for c in item.choices for w in _text(item, c)})
    return {word: k + 2 for k, word in enumerate(found)}


def _text(item: Item, choice: str) -> list[str]:
    return ["[", *choice.split(), "]", *item.question.replace("?", " ?").split()]


def _batch(
    items: Sequence[Item], shown: Sequence[Tensor], words: Mapping[str, int]
) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Padded evidence, its gaps and words, one row for each choice; and how many an item has."""
    texts = [[words.get(w, 1) for w in _text(i, c)] for i in items for c in i.choices]
    lengths = [len(item.choices) for item in items]
    longest = max(map(len, shown))
    rows, lacks = [], []
    for item, one in zip(items, shown, strict=True):
        for choice in item.choices:
            said = torch.cat([one, _named(one, item.question, choice)], 1)
            rows.append(functional.pad(said, (0, 0, 0, longest - len(one))))
            lacks.append(torch.arange(longest) >= len(one))
    most = max(map(len, texts))
    words_NW = torch.tensor([t + [0] * (most - len(t)) for t in texts])
    return torch.stack(rows), torch.stack(lacks), words_NW, lengths


def _named(evidence_EX: Tensor, question: str, choice: str) -> Tensor:
    """(E, _MENTIONS + 1) which mention in the question a token's object is, and whether the choice
    names it. Who "the red ball" is must not be what the gate fails to learn. 0 for pixels, whose
    tokens name nothing."""
    marks = torch.zeros(len(evidence_EX), _MENTIONS + 1)
    if evidence_EX.shape[1] != _STATE_WIDTH:
        return marks
    names = [
        f"{COLOURS[int(row[:8].argmax())]} {SHAPES[int(row[8:13].argmax())]}" for row in evidence_EX
    ]
    order = sorted((n for n in set(names) if n in question), key=question.index)[:_MENTIONS]
    for row, name in enumerate(names):
        if name in order:
            marks[row, order.index(name)] = 1
        marks[row, -1] = name in choice
    return marks


def _learnt(
    items: Sequence[Item], shown: Sequence[Tensor], gate: Gate, seed: int
) -> tuple[Reader, dict[str, int]]:
    words = _spell(items)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Reader(shown[0].shape[1] + _MENTIONS + 1, len(words) + 2, gate.dim)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=gate.steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(gate.steps):
        chosen = torch.randint(len(items), (64,), generator=generator).tolist()
        ours = [items[k] for k in chosen]
        *inputs, lengths = _batch(ours, [shown[k] for k in chosen], words)
        parts = model(*inputs).split(lengths)
        losses = [
            functional.cross_entropy(part[None], torch.tensor([item.answer]))
            for part, item in zip(parts, ours, strict=True)
        ]
        optimiser.zero_grad()
        torch.stack(losses).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return model.eval(), words


def _judged(
    model: Reader, words: Mapping[str, int], items: Sequence[Item], shown: Sequence[Tensor]
) -> list[float]:
    scores = []
    with torch.no_grad():
        for start in range(0, len(items), 64):
            ours = items[start : start + 64]
            *inputs, lengths = _batch(ours, shown[start : start + 64], words)
            parts = model(*inputs).split(lengths)
            scores += [grade(i, p.tolist()).score for i, p in zip(ours, parts, strict=True)]
    return scores
