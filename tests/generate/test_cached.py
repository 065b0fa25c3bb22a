"""A rollout that reads every position once says what the training path says of the whole row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmpredict.generate import futures as room
from mmpredict.generate import rollout, rollouts
from mmpredict.generate.past import Past
from mmpredict.model import Predictor
from mmpredict.model.fast_weights import FastWeightsConfig
from mmpredict.model.rotary import RotaryConfig
from mmpredict.schema import Batch, Clip, StreamSpec, TextPiece
from tests.generate.recomputed import Recomputed
from tests.generate.small import make_model, make_prompt

ALL = ("audio", "video", "text", "state", "action")
MEMORY = FastWeightsConfig(every=1, num_heads=2, key_dim=8, value_dim=8)
SETTINGS = {
    "plain": {"depth": 2},
    "grouped": {"depth": 2, "num_kv_heads": 1, "qk_norm": False, "qkv_bias": True},
    "diagonal": {"norm_text": False, "rotary": RotaryConfig(axes="diagonal")},
    "window": {"depth": 2, "window": 7, "num_kv_heads": 1},
    "memory": {"depth": 2, "fast_weights": MEMORY},
    "window and memory": {"depth": 2, "window": 6, "fast_weights": MEMORY},
    "experts": {"depth": 2, "experts": "ffn", "horizons": (1, 2)},
}


class Compared(Past):
    """A Past that is compared with the training path at every question."""

    questions = 0
    ragged = False

    def __init__(self, predictor: Predictor, context_length: int) -> None:
        super().__init__(predictor, context_length)
        self.twin = Recomputed(predictor, context_length)

    def read(self, piece: Batch) -> None:
        super().read(piece)
        self.twin.read(piece)

    def trim(self, row: int, count: int) -> None:
        super().trim(row, count)
        self.twin.trim(row, count)

    def spread(self, count: int) -> None:
        super().spread(count)
        self.twin.spread(count)

    def add(self, spec: StreamSpec, contents, ends_s, **where) -> None:
        super().add(spec, contents, ends_s, **where)
        self.twin.add(spec, contents, ends_s, **where)
        Compared.ragged |= len(set(self.cache.lengths)) > 1

    def _same(self, cached: torch.Tensor | None, anew: torch.Tensor | None):
        Compared.questions += 1
        assert (cached is None) == (anew is None)
        if cached is not None:
            torch.testing.assert_close(cached, anew, atol=5e-5, rtol=1e-4)
        return cached

    def turns(self):
        return self._same(super().turns(), self.twin.turns())

    def condition(self, spec: StreamSpec, end_s: float):
        return self._same(super().condition(spec, end_s), self.twin.condition(spec, end_s))

    def previous(self, spec: StreamSpec):
        return self._same(super().previous(spec), self.twin.previous(spec))


@pytest.fixture
def compared(monkeypatch):
    monkeypatch.setattr(room, "Past", Compared)
    monkeypatch.setattr(Compared, "questions", 0)
    monkeypatch.setattr(Compared, "ragged", False)
    yield
    assert Compared.questions > 3


def ragged(*names: str, seed: int = 0) -> Clip:
    """A prompt whose streams end at different times; some may be missing."""
    g = torch.Generator().manual_seed(seed)
    kept = [name for name in names if torch.rand((), generator=g) < 0.8]
    parts = {}
    for name in kept:
        seconds = 0.25 + 0.5 * float(torch.rand((), generator=g))
        one = make_prompt(name, seconds=seconds)
        if name == "text":
            late = 0.3 + 0.5 * float(torch.rand((), generator=g))
            texts = (TextPiece("so"), TextPiece("a ball", 0.1, 0.6), TextPiece("up", late, late))
            parts["texts"] = tuple(sorted(texts, key=lambda t: t.end_s or 0.0))
        elif one.series:
            parts.setdefault("series", {}).update(one.series)
        else:
            fields = ("frames_TCHW", "times_s", "waveform_CS", "sample_rate")
            parts |= {f: getattr(one, f) for f in fields if getattr(one, f) is not None}
    return Clip(**parts)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("context_length", [1024, 40])
def test_every_answer_is_that_of_the_training_path(compared, settings, context_length):
    """With futures that say more and less, and a context that is full again and again."""
    model, codecs = make_model(*ALL, **settings)
    prompt, size = make_prompt(*ALL, seconds=0.75), {"steps": 1, "max_text_run": 2}
    results = rollouts(
        model, codecs, prompt, futures=2, seconds=0.16, context_length=context_length, **size
    )
    assert Compared.ragged, "rows must be of different lengths, or this tests little"
    full = context_length == 40 and "window" not in settings
    assert all(bool(result.notices) == full for result in results)


@pytest.mark.parametrize("seed", range(6))
def test_prompts_whose_streams_end_at_different_times(compared, seed):
    settings = list(SETTINGS.values())[seed]
    model, codecs = make_model(*ALL, **settings)
    prompt = ragged(*ALL, seed=seed)
    rollouts(model, codecs, prompt, futures=2, seconds=0.1, steps=1, max_text_run=1)
    rollout(model, codecs, prompt, seconds=0.05, steps=1, context_length=40, max_text_run=1)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("video",), "flow"),
        (("audio", "text"), "flow"),
        (("text",), "flow"),
        (("action", "text"), "regression"),
        (("video", "action"), "gmm"),
    ],
)
def test_streams_alone_and_kinds_of_heads(compared, names, kind):
    model, codecs = make_model(*names, kind=kind, depth=2)
    size = {"seconds": 0.2, "steps": 2, "max_tokens": 8, "futures": 2, "max_text_run": 2}
    rollouts(model, codecs, make_prompt(*names, seconds=0.5), context_length=20, **size)
    rollouts(model, codecs, Clip(), **size)


def test_text_alone_far_beyond_the_context(compared):
    for settings in ({"depth": 2}, SETTINGS["window and memory"]):
        model, codecs = make_model("text", **settings)
        prompt = Clip(texts=(TextPiece("a ball rolls " * 2),))
        result = rollout(model, codecs, prompt, seconds=0, max_tokens=20, context_length=12)
        assert len(result.tokens[0].contents) == 20


def made(results) -> list[dict[int, torch.Tensor]]:
    return [{t.modality: t.contents.double() for t in result.tokens} for result in results]


def close(one: dict, other: dict) -> bool:
    """Ids equal; values to what a last bit can do to a rounded block that is read again."""
    if one.keys() != other.keys():
        return False
    return all(
        a.shape == other[m].shape and (a - other[m]).abs().max() <= (0 if m == 2 else 1)
        for m, a in one.items()
    )


@pytest.mark.parametrize("still", [True, False])
def test_the_result_is_that_of_the_training_path(monkeypatch, still):
    model, codecs = make_model(*ALL, depth=2, num_kv_heads=1)
    chance = {"temperature": 0.0, "text_temperature": 0.0} if still else {}
    arguments = (model, codecs, make_prompt(*ALL))
    size = {"seconds": 0.2, "steps": 2, "max_text_run": 2, "futures": 2, **chance}
    cached = rollouts(*arguments, **size)
    monkeypatch.setattr(room, "Past", Recomputed)
    anew = rollouts(*arguments, **size)
    assert all(close(a, b) for a, b in zip(made(cached), made(anew), strict=True))
    assert close(*made(cached)) == still  # without chance all futures are the same


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_future_does_not_depend_on_how_many_others_there_are(settings):
    model, codecs = make_model(*ALL, **settings)
    arguments = (model, codecs, make_prompt(*ALL, seconds=0.5))
    size = {"seconds": 0.3, "steps": 1, "max_text_run": 2, "context_length": 60}
    together = made(rollouts(*arguments, futures=3, seed=5, **size))
    alone = made(rollout(*arguments, seed=seed, **size) for seed in (5, 6, 7))
    assert all(close(a, b) for a, b in zip(together, alone, strict=True))
    again = made(rollouts(*arguments, futures=3, seed=5, **size))
    pairs = zip(together, again, strict=True)
    assert all(torch.equal(a[m], b[m]) for a, b in pairs for m in a)
    assert not close(together[0], together[1])


def test_the_order_of_the_streams_of_a_prompt_has_no_say():
    model, codecs = make_model(*ALL, depth=2)
    prompt = make_prompt(*ALL)
    turned = replace(prompt, series=dict(reversed(prompt.series.items())))
    size = {"seconds": 0.2, "steps": 1, "max_text_run": 2}
    (a,), (b,) = (
        made([rollout(model, codecs, prompt, **size)]),
        made([rollout(model, codecs, turned, **size)]),
    )
    assert all(torch.equal(a[m], b[m]) for m in a)


@pytest.mark.parametrize("memory", [None, MEMORY])
def test_memory_does_not_grow_with_a_window(monkeypatch, memory):
    """However long the rollout: the same buffers, of the same size, and nothing beside them."""
    seen = []

    class Watched(Past):
        def flush(self) -> None:
            super().flush()
            buffers = [x for layer in self.cache.layers for x in (layer.keys, layer.values)]
            blocks = sum(map(len, self._fed))
            places = tuple(x.data_ptr() for x in buffers)
            seen.append((places, self.cache.num_bytes, blocks, max(self.cache.lengths)))

    monkeypatch.setattr(room, "Past", Watched)
    model, codecs = make_model("action", "text", window=8, fast_weights=memory, depth=2)
    monkeypatch.setattr("mmpredict.generate.past.READ_AT_ONCE", 16)
    rollout(model, codecs, make_prompt("action"), seconds=8.0, steps=1, max_text_run=3)
    places, sizes, blocks, lengths = zip(*seen, strict=True)
    assert len(seen) > 150 and len(set(places[1:])) == 1 and len(set(sizes)) == 1
    assert not any(blocks[1:]) and max(lengths) <= 7 + 16


def test_futures_share_what_the_prompt_was_read_for(monkeypatch):
    """The trunk reads the prompt once, however many futures there are."""
    model, codecs = make_model("video", "action", depth=2)
    read = []
    extend = model.trunk.extend

    def counted(x_BND, *rest, **named):
        read.append(x_BND.shape[0] * x_BND.shape[1])
        return extend(x_BND, *rest, **named)

    monkeypatch.setattr(model.trunk, "extend", counted)
    rollouts(model, codecs, make_prompt("video", "action"), futures=5, seconds=0.125, steps=1)
    assert read[0] == 8 * 4 + 16 and sum(read[1:]) == 5 * (4 + 2)


def test_values_that_are_made_can_be_trained_on():
    """They are no tensors of the inference mode."""
    model, codecs = make_model("action")
    (tokens,) = rollout(model, codecs, make_prompt("action"), seconds=0.2, steps=1).tokens
    weight = torch.ones(3, requires_grad=True)
    (tokens.contents * weight).sum().backward()
    assert weight.grad is not None


def test_guidance_acts_where_it_was_learned(monkeypatch):
    model, codecs = make_model("video", "action", drop={"video": 0.1})
    prompt = make_prompt("video", "action")
    size = {"seconds": 0.25, "steps": 2}
    plain, guided = (rollout(model, codecs, prompt, guidance=w, **size) for w in (1.0, 3.0))
    assert guided.notices == ("guidance has no hold on action: its head was trained without it",)
    assert not torch.equal(plain.clip.frames_TCHW, guided.clip.frames_TCHW)
    with pytest.raises(ValueError, match="guidance=2 needs a head .* of action none was"):
        rollout(model, codecs, prompt, guidance=2.0, streams={"action"}, **size)
    with pytest.raises(ValueError, match="futures=0 must be at least 1"):
        rollouts(model, codecs, prompt, futures=0, **size)
