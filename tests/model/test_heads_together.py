"""Laws that every head for blocks of values keeps."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from mmpredict.model import HeadConfig
from mmpredict.model.fsq import FsqConfig
from mmpredict.model.heads import ids_head, values_head
from mmpredict.objectives.losses import LossWeights, next_loss
from mmpredict.schema import Layout, Prediction, StreamSpec
from tests.builders import generator
from tests.model.heads_small import CHUNK, FRAME, KINDS, inputs, new_head

BOTH = pytest.mark.parametrize("spec", [FRAME, CHUNK], ids=["frame", "chunk"])
EACH = pytest.mark.parametrize("kind", KINDS)


def loss_of(head: torch.nn.Module, spec: StreamSpec, *, mean: float = 1.0) -> torch.Tensor:
    said = Prediction({spec.modality: head(*inputs(spec), generator(3))}, None)
    return next_loss(said, Layout((spec,)), LossWeights(mean=mean)).total


@BOTH
@EACH
def test_shapes_and_types(spec: StreamSpec, kind: str):
    head = new_head(spec, kind)
    z, previous, targets = inputs(spec)
    said = head(z, previous, targets, generator(1))
    assert said.mean_MPD.shape == targets.shape and said.targets_MPD is targets
    assert torch.equal(said.mean_MPD, head.mean(z, previous))
    assert head.sample(z, previous, draws=3).shape == (3, *targets.shape)
    for score in (head.surprise, head.nats):
        value = score(z, previous, targets, generator(1))
        assert value.shape == (len(z),) and value.dtype == torch.float32


@BOTH
@EACH
def test_a_block_alone_is_scored_and_drawn_as_among_others(spec: StreamSpec, kind: str):
    """What is said of block m depends on its own z and previous block alone."""
    head = new_head(spec, kind).eval()
    z, previous, targets = inputs(spec)
    some = slice(2, 4)
    for score in (head.surprise, head.nats):
        whole = score(z, previous, targets, generator(1))
        part = score(z[some], previous[some], targets[some], generator(1))
        torch.testing.assert_close(part, whole[some], rtol=1e-4, atol=1e-4)
    cold = head.sample(z, previous, temperature=0)
    torch.testing.assert_close(head.sample(z[some], previous[some], temperature=0), cold[:, some])
    torch.testing.assert_close(head.mean(z[some], previous[some]), cold.new_tensor(0) + head.mean(
        z, previous)[some])  # fmt: skip


@BOTH
@EACH
def test_draws_are_fixed_by_the_generator(spec: StreamSpec, kind: str):
    head = new_head(spec, kind)
    z, previous, targets = inputs(spec)
    once = head.sample(z, previous, draws=2, generator=generator(0))
    again = head.sample(z, previous, draws=2, generator=generator(0))
    other = head.sample(z, previous, draws=2, generator=generator(1))
    assert torch.equal(once, again)
    assert (kind == "regression") == torch.equal(once, other)
    assert (kind == "regression") == torch.equal(once[0], once[1])
    one, two = (head(z, previous, targets, generator(5)) for _ in range(2))
    for field, value in vars(one).items():
        assert value is getattr(two, field) or torch.equal(value, getattr(two, field))
    for score in (head.surprise, head.nats):
        first, second = (score(z, previous, targets, generator(4)) for _ in range(2))
        assert torch.equal(first, second)


@BOTH
@EACH
def test_temperature_zero_leaves_nothing_to_chance(spec: StreamSpec, kind: str):
    head = new_head(spec, kind)
    z, previous, _ = inputs(spec)
    one = head.sample(z, previous, draws=2, temperature=0, generator=generator(0))
    two = head.sample(z, previous, draws=2, temperature=0, generator=generator(1))
    assert torch.equal(one, two) and torch.equal(one[0], one[1])


@EACH
def test_every_head_starts_its_mean_at_the_last_block(kind: str):
    sizes = {} if kind == "regression" else {"dim": 32}
    sizes |= {"codes": FsqConfig(dim=16)} if kind == "fsq" else {}
    z, previous, _ = inputs(FRAME)
    head = values_head(FRAME, 16, HeadConfig(kind=kind, **sizes))
    assert torch.equal(head.mean(z, previous), previous)


@EACH
def test_the_mean_is_taught_by_its_own_error_alone(kind: str):
    """With weights.mean = 0 a head learns, but its regression does not."""
    head = new_head(FRAME, kind)
    loss_of(head, FRAME, mean=0.0).backward()
    moved = [p.grad is not None and bool(p.grad.any()) for p in head.block_mean.parameters()]
    assert any(moved) == (kind == "regression")
    if kind != "regression":
        others = [p for n, p in head.named_parameters() if not n.startswith("block_mean")]
        assert any(p.grad is not None and p.grad.any() for p in others)
    head.zero_grad()
    loss_of(head, FRAME).backward()
    assert all(p.grad is not None and p.grad.any() for p in head.block_mean.parameters())


@EACH
def test_every_parameter_is_used(kind: str):
    """One that is not would stop training on several devices."""
    guidable = {"drop_condition": 0.5} if kind in ("flow", "fsq") else {}
    head = new_head(FRAME, kind, **guidable)
    loss_of(head, FRAME).backward()
    idle = [n for n, p in head.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


@BOTH
@EACH
def test_bfloat16_autocast_stays_close_and_finite(spec: StreamSpec, kind: str):
    head = new_head(spec, kind)
    z, previous, targets = inputs(spec)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(head, spec)
        loss.backward()
        sampled = head.sample(z, previous, draws=2, generator=generator(0))
        nats = head.nats(z, previous, targets, generator(1))
        surprise = head.surprise(z, previous, targets, generator(1))
    for value in (loss, sampled, nats, surprise):
        assert value.dtype == torch.float32 and value.isfinite().all()
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)
    torch.testing.assert_close(loss, loss_of(head, spec), rtol=0.05, atol=0.05)


@EACH
def test_extreme_values_do_not_break_the_loss(kind: str):
    """A block a hundred deviations away costs much, but costs a number."""
    head = new_head(FRAME, kind)
    z, previous, targets = inputs(FRAME)
    said = Prediction({1: head(z, previous, 100 * targets, generator(3))}, None)
    loss = next_loss(said, Layout((FRAME,)), LossWeights()).total
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)


def test_settings_that_a_kind_does_not_read_are_refused():
    for settings, named in (
        ({"kind": "regression", "dim": 64}, "dim=64"),
        ({"kind": "gmm", "drop_condition": 0.1}, "drop_condition=0.1"),
        ({"kind": "flow", "components": 3}, "components=3"),
        ({"kind": "flow", "tokenizer": "x.ckpt"}, "tokenizer='x.ckpt'"),
        ({"kind": "softmax", "depth": 3}, "depth=3"),
    ):
        with pytest.raises(ValueError, match=f"does not read {named}"):
            HeadConfig(**settings)
    with pytest.raises(ValueError, match="none of flow"):
        HeadConfig(kind="flwo")
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        HeadConfig(drop_condition=1.0)
    with pytest.raises(ValueError, match="mean_depth=-1"):
        HeadConfig(mean_depth=-1)
    with pytest.raises(ValueError, match="needs tokenizer"):
        HeadConfig(kind="fsq")


def test_a_head_of_the_wrong_kind_for_its_stream_is_refused():
    words = StreamSpec(modality=2, name="text", vocab_size=7)
    table = torch.nn.Embedding(7, 16)
    with pytest.raises(ValueError, match="softmax"):
        ids_head(words, table, HeadConfig(kind="flow"))
    with pytest.raises(ValueError, match="for ids"):
        values_head(FRAME, 16, HeadConfig(kind="softmax"))
    assert ids_head(words, table).drop_condition == 0


@EACH
def test_a_config_survives_plain_types(kind: str):
    config = new_head(FRAME, kind).config
    plain = asdict(config)
    if plain["codes"] is not None:
        plain["codes"] = FsqConfig(**plain["codes"])
    assert HeadConfig(**plain) == config
