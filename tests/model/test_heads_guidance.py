"""Laws of picking and of guidance: one rule for words, codes and flows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmpredict.model import HeadConfig
from mmpredict.model.heads import ids_head, pick
from mmpredict.model.heads.flow import FlowHead
from mmpredict.objectives.losses import flow_matching
from mmpredict.schema import StreamSpec
from tests.builders import generator
from tests.model.heads_small import CHUNK, FRAME, NUMBER, Z, inputs, new_head

WORDS = StreamSpec(modality=2, name="text", vocab_size=11)
GUIDED = pytest.mark.parametrize("kind", ["flow", "fsq"])


def words_head(share: float = 0.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return ids_head(
            WORDS, nn.Embedding(11, Z), HeadConfig(kind="softmax", drop_condition=share)
        )


def test_ids_are_drawn_with_their_chances():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    ids = pick(logits.expand(20000, 4), generator=generator(0))
    found = torch.bincount(ids, minlength=4) / 20000
    torch.testing.assert_close(found, logits.exp(), atol=0.01, rtol=0)
    hot = pick(logits.expand(20000, 4), temperature=2.0, generator=generator(0))
    found = torch.bincount(hot, minlength=4) / 20000
    torch.testing.assert_close(found, (logits / 2).softmax(-1), atol=0.01, rtol=0)


def test_pick_draws_what_multinomial_would():
    logits = torch.randn(50, 11, generator=generator(1))
    mine = pick(logits, generator=generator(2))
    theirs = torch.multinomial(logits.softmax(-1), 1, generator=generator(2))[:, 0]
    assert torch.equal(mine, theirs)


def test_min_p_leaves_out_what_is_unlikely_beside_the_best():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(2000, 4)
    for min_p, kept in ((0.0, 4), (0.2, 3), (0.5, 2), (1.0, 1)):
        assert int(pick(logits, min_p=min_p, generator=generator(0)).max()) == kept - 1
    assert torch.equal(pick(logits, temperature=0), torch.zeros(2000, dtype=torch.int64))


@GUIDED
@pytest.mark.parametrize("spec", [FRAME, CHUNK], ids=["frame", "chunk"])
def test_guidance_of_one_is_no_guidance(kind: str, spec: StreamSpec):
    head = new_head(spec, kind, drop_condition=0.3)
    z, previous, _ = inputs(spec)
    plain = head.sample(z, previous, draws=2, generator=generator(0))
    same = head.sample(z, previous, draws=2, guidance=1.0, generator=generator(0))
    more = head.sample(z, previous, draws=2, guidance=2.5, generator=generator(0))
    assert torch.equal(plain, same) and not torch.equal(plain, more)


@GUIDED
def test_guidance_of_zero_forgets_the_past(kind: str):
    """null + 0 (said - null): every block is drawn alike, whatever came before."""
    head = new_head(FRAME, kind, drop_condition=0.3)
    z, previous, _ = inputs(FRAME)
    blind = head.sample(z, previous, temperature=0, guidance=0.0)
    torch.testing.assert_close(blind, blind[:, :1].expand_as(blind), atol=1e-5, rtol=1e-5)


def test_guided_flow_steps_are_the_formula():
    head = new_head(FRAME, "flow", drop_condition=0.3)
    z, previous, _ = inputs(FRAME)
    noise = torch.randn(1, *previous.shape, generator=generator(0))
    level = torch.zeros(1, len(z))
    with torch.no_grad():
        said = head.denoise(noise, level, head.outlook(z, previous))
        null = head.denoise(noise, level, head.outlook(*head.no_past(z, previous)))
    one_step = head.sample(z, previous, steps=1, guidance=3.0, generator=generator(0))
    torch.testing.assert_close(one_step, null + 3 * (said - null))


def test_words_are_guided_by_logits():
    head = words_head(0.2)
    z = torch.randn(4, Z, generator=generator(1))
    said, null = head.logits(z), head.logits(head.no_past_Z[None])
    torch.testing.assert_close(head.logits(z, guidance=2.0), null + 2 * (said - null))
    assert torch.equal(head.logits(z), head.logits(z, guidance=1.0))
    cold = head.sample(z, temperature=0, guidance=2.0)
    assert torch.equal(cold, head.logits(z, guidance=2.0).argmax(-1))


def test_guidance_that_was_not_learned_is_refused():
    z, previous, _ = inputs(FRAME)
    for kind in ("flow", "fsq"):
        with pytest.raises(ValueError, match="heads.video.drop_condition=0.1"):
            new_head(FRAME, kind).sample(z, previous, guidance=2.0)
    for kind in ("gmm", "regression"):
        with pytest.raises(ValueError, match=f"kind {kind} .* cannot be guided"):
            new_head(FRAME, kind).sample(z, previous, guidance=2.0)
    with pytest.raises(ValueError, match="heads.text.drop_condition=0.1"):
        words_head().sample(z[0], guidance=0.5)


@GUIDED
def test_the_past_is_withheld_while_training_only(kind: str):
    """From the named share of blocks, z and previous block together."""
    head = new_head(FRAME, kind, drop_condition=0.5)
    z, previous, targets = inputs(FRAME, blocks=400)
    blind = head.mean(*head.no_past(z, previous))
    said = head(z, previous, targets, generator(1)).mean_MPD
    gone = (said == blind).flatten(1).all(1)
    assert 0.4 < float(gone.float().mean()) < 0.6
    assert torch.equal(said[~gone], head.mean(z, previous)[~gone])
    calm = head.eval()(z, previous, targets, generator(1)).mean_MPD
    assert torch.equal(calm, head.mean(z, previous))


def test_words_past_is_withheld_while_training_only():
    head = words_head(0.5)
    z, ids = torch.randn(400, Z, generator=generator(1)), torch.zeros(400, dtype=torch.int64)
    null = head.logits(head.no_past_Z[None])
    said = head(z, ids, generator(1)).logits_MV
    gone = torch.isclose(said, null, atol=1e-5).all(1)
    assert 0.4 < float(gone.float().mean()) < 0.6
    torch.testing.assert_close(said[~gone], head.logits(z)[~gone])
    torch.testing.assert_close(head.eval()(z, ids).logits_MV, head.logits(z))


def test_guidance_makes_samples_more_alike_what_the_past_says():
    """The past tells a side of two; guided samples stand further on it than the side itself."""
    torch.manual_seed(0)
    head = FlowHead(NUMBER, Z, HeadConfig(dim=32, depth=1, drop_condition=0.3))
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    g = generator(6)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1.0, 2 * (1 - step / 200))
        side = torch.randint(2, (256, 1, 1), generator=g) * 2.0 - 1
        noise = torch.randn(256, 1, 1, generator=g)
        said = head(side.expand(256, 1, Z), torch.zeros(256, 1, 1), 0.5 * side + noise, g)
        loss = flow_matching(said) + (said.mean_MPD - said.targets_MPD).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    z, previous = torch.ones(1, 1, Z), torch.zeros(1, 1, 1)
    means = [
        float(head.sample(z, previous, draws=2000, guidance=w, generator=generator(1)).mean())
        for w in (0.0, 1.0, 3.0)
    ]
    assert abs(means[0]) < 0.2 and abs(means[1] - 0.5) < 0.2 and means[2] > 0.9
