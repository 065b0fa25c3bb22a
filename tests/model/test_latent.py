"""Laws of features said ahead: what the targets are, that nothing reaches them, that a copy follows
its encoder as it is written, and that no target is seen before it is said."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmpredict.model.frame_encoder import FrameEncoderConfig
from mmpredict.model.latent import LatentConfig
from mmpredict.objectives.latent import latent_loss
from tests.builders import VIDEO, blocks_of, generator
from tests.model.with_frames import VIT, document, frame_tokens, predictor

FROZEN = LatentConfig(
    encoder=FrameEncoderConfig("test_convnext", size=32, layer=-2, frozen=True), depth=0
)
EMA = LatentConfig(target="ema", decay=0.9)
EACH = pytest.mark.parametrize("latent", [FROZEN, EMA], ids=["frozen", "ema"])


@EACH
def test_targets_are_the_encoders_features_normed_position_by_position(latent):
    model, batch = predictor(VIT, latent), document()
    said = model(batch, generator(0)).latents[VIDEO]
    values = batch.contents[VIDEO].unflatten(0, (-1, 6))
    features = model.latents["video"].target(values)
    normed = (features - features.mean(-1, keepdim=True)) / (
        features.var(-1, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    assert said.said_MPF.shape == said.targets_MPF.shape == features.shape
    torch.testing.assert_close(said.targets_MPF, normed, atol=2e-4, rtol=1e-3)


@EACH
def test_no_gradient_reaches_the_target(latent):
    model = predictor(VIT, latent).train()
    said = model(document(), generator(0)).latents[VIDEO]
    assert not said.targets_MPF.requires_grad
    latent_loss(said).backward()
    assert all(p.grad is None for p in model.latents["video"].target.parameters())
    # It reaches the trunk, the stream's own encoder, and what says the features.
    for part in (model.trunk, model.embed.encoders, model.latents["video"].say):
        assert all(float(p.grad.abs().sum()) > 0 for p in part.parameters())


def test_a_frozen_target_does_not_move_while_all_else_does():
    model = predictor(None, FROZEN).train()
    before = {n: p.clone() for n, p in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for seed in range(2):
        optimizer.zero_grad()
        latent_loss(model(document(seed=seed)).latents[VIDEO]).backward()
        optimizer.step()
        model.follow_encoders()
    after = model.state_dict()
    still = {n for n in before if ".target." in n}
    assert still and all(torch.equal(before[n], after[n]) for n in still)
    assert all(not torch.equal(before[n], after[n]) for n in before if ".say." in n)


def test_a_copy_begins_equal_and_follows_as_by_hand():
    model = predictor(VIT, EMA).train()
    own, latent = model.embed.encoders["video"].backbone, model.latents["video"]
    copies = list(latent.target.backbone.parameters())
    expected = [p.detach().clone() for p in own.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(copies, expected, strict=True))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for seed in range(3):
        optimizer.zero_grad()
        latent_loss(model(document(seed=seed)).latents[VIDEO]).backward()
        optimizer.step()
        model.follow_encoders()
        expected = [
            0.9 * e + 0.1 * p.detach() for e, p in zip(expected, own.parameters(), strict=True)
        ]
    for copy, by_hand, weight in zip(copies, expected, own.parameters(), strict=True):
        torch.testing.assert_close(copy, by_hand, atol=1e-6, rtol=1e-5)
        assert not torch.equal(copy, weight)
    assert not any(part.training for part in latent.target.backbone.modules())


def test_a_copy_begins_at_weights_that_were_read(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(99)
        saved = predictor(VIT).embed.encoders["video"].backbone.state_dict()
    saved = {name: tensor + 0.01 for name, tensor in saved.items()}
    torch.save(saved, tmp_path / "w.pth")
    model = predictor(replace(VIT, weights=str(tmp_path / "w.pth")), EMA)
    model.read_weights()
    target = model.latents["video"].target.backbone
    assert all(torch.equal(tensor, saved[name]) for name, tensor in target.state_dict().items())
    with torch.no_grad():  # and not again: a trained copy is not thrown away
        target.pos_embed.add_(1.0)
    model.read_weights()
    assert torch.equal(target.pos_embed, saved["pos_embed"] + 1.0)


@EACH
def test_what_is_said_of_a_block_does_not_see_it(latent):
    model, batch = predictor(VIT, latent), document(blocks=4)
    frames = batch.contents[VIDEO].float().requires_grad_()
    batch = replace(batch, contents={**batch.contents, VIDEO: frames})
    said = model(batch, generator(0)).latents[VIDEO].said_MPF
    _, blocks = blocks_of(batch, VIDEO)
    for i, block in enumerate(blocks.tolist()):
        (gradient,) = torch.autograd.grad(said[i].square().sum(), frames, retain_graph=True)
        reached = gradient.unflatten(0, (-1, 6)).abs().amax((1, 2)) > 0
        assert torch.equal(reached, blocks < block), i


def test_features_stand_beside_their_own_blocks_at_every_horizon():
    """The same blocks in the same order as the values, though each frame is looked at once."""
    model, batch = predictor(None, FROZEN, horizons=(1, 2)), document(blocks=4)
    looks = []
    model.latents["video"].target.register_forward_pre_hook(lambda _, x: looks.append(len(x[0])))
    said = model(batch, generator(0))
    assert looks == [4]
    values = said.streams[VIDEO].targets_MPD
    assert len(values) == 4 + 2  # two blocks ahead begin with the third frame
    pixels = model.embed.standardise["video"].inverse(values)
    expected = model.latents["video"].targets(pixels)
    torch.testing.assert_close(said.latents[VIDEO].targets_MPF, expected, atol=1e-4, rtol=1e-4)


def test_features_of_known_motion_are_learned():
    """Frames that repeat each other: what comes next can be said, and it is."""
    model = predictor(None, FROZEN).train()
    batch = document(blocks=4)
    same = frame_tokens(1).contents.repeat(4, 1, 1).flatten(0, 1)
    batch = replace(batch, contents={**batch.contents, VIDEO: same})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)

    def loss() -> Tensor:
        return latent_loss(model(batch).latents[VIDEO])

    before = loss().item()
    for _ in range(30):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.3 * before


def test_streams_without_a_latent_say_none():
    assert predictor(VIT)(document(), generator(0)).latents == {}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target": "slow"}, "neither 'frozen' nor 'ema'"),
        ({}, "needs latent.encoder"),
        ({"encoder": VIT}, "set frozen: true"),
        ({"target": "ema", "encoder": VIT}, "leave latent.encoder out"),
        ({"target": "ema", "decay": 1.0}, "decay=1.0"),
        ({"target": "ema", "depth": -1}, "depth=-1"),
    ],
)
def test_wrong_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        LatentConfig(**settings)


def test_a_copy_needs_a_trained_encoder():
    for encoder, why in ((None, "missing"), (replace(VIT, frozen=True), "frozen")):
        with pytest.raises(ValueError, match=f"latent.video: target ema .* is {why}"):
            predictor(encoder, EMA)
