"""Laws of frames that go through a timm network: its own features, no leak, frozen is frozen,
weights from a file or a checkpoint and never from elsewhere unasked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mmpredict.model import Predictor, PredictorConfig
from mmpredict.model.config import ContextNoise
from mmpredict.model.frame_encoder import FrameEncoder, FrameEncoderConfig
from mmpredict.schema import StreamSpec, UserError
from mmpredict.tokens import Codecs, Patches
from mmpredict.tokens.video import patchify, unpatchify
from mmpredict.training.checkpoint import PREFIX, describe, load_predictor
from tests.builders import AUDIO, TEXT, VIDEO, blocks_of, generator
from tests.model.with_frames import (
    BATCH_NORMS,
    CONVNET,
    FRAMES,
    LAYOUT,
    VIT,
    document,
    frame_tokens,
    predictor,
)

NETWORKS = pytest.mark.parametrize("config", [VIT, CONVNET, BATCH_NORMS], ids=lambda c: c.name)


def network(config: FrameEncoderConfig) -> nn.Module:
    """timm's own, with running statistics that are not those of a new network."""
    arguments = {"img_size": config.size, **config.args} if config.name == "test_vit" else {}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = timm.create_model(config.name, **arguments).eval()
    for name, buffer in made.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0, generator=generator(1))
    return made


def weights_file(path: Path, made: nn.Module) -> str:
    state = {name: tensor.contiguous() for name, tensor in made.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


def read(config: FrameEncoderConfig, path: Path) -> FrameEncoder:
    encoder = FrameEncoder(FRAMES, replace(config, weights=weights_file(path, network(config))))
    encoder.read_weights()
    return encoder


def timms_features(config: FrameEncoderConfig, values_MPW: Tensor) -> Tensor:
    """What timm makes of the frames by its own preparation and its own calls, pooled."""
    made = network(config)
    prepared = timm.data.resolve_model_data_config(made)
    pixels = unpatchify(values_MPW, 4, (8, 12)).float() / 255
    pixels = F.interpolate(pixels, config.size, mode="bicubic", antialias=True)
    mean, std = (torch.tensor(prepared[name])[:, None, None] for name in ("mean", "std"))
    pixels = (pixels - mean) / std
    if config.name == "test_vit":
        tokens = made.forward_features(pixels)[:, made.num_prefix_tokens :]
        map_ = tokens.mT.unflatten(2, (2, 3))
    else:
        map_ = made.forward_features(pixels)
    return F.adaptive_avg_pool2d(map_, (2, 3)).flatten(2).mT


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    "config", [VIT, replace(CONVNET, layer=-1), BATCH_NORMS], ids=lambda c: c.name
)
def test_features_are_timms_own_with_weights_from_a_file(tmp_path, config, suffix):
    values = frame_tokens(3).contents
    with torch.no_grad():
        ours = read(config, tmp_path / f"w{suffix}")(values)
        theirs = timms_features(config, values)
    assert ours.shape == (3, 6, theirs.shape[-1])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_an_earlier_layer_is_that_layers_output(tmp_path):
    values = frame_tokens(2).contents
    with torch.no_grad():
        encoder = read(CONVNET, tmp_path / "w.pth")
        whole = network(CONVNET)
        stages = whole.forward_intermediates(encoder.frames(values), intermediates_only=True)
        expected = F.adaptive_avg_pool2d(stages[2], (2, 3)).flatten(2).mT
        torch.testing.assert_close(encoder(values), expected, atol=1e-5, rtol=1e-5)
    # What lies behind it is gone: no weight without a gradient.
    encoder(values).square().sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []


def test_the_predictor_embeds_what_timm_makes_of_the_pixels(tmp_path):
    """Standardised and back: the network sees the pixels themselves."""
    path = weights_file(tmp_path / "w.pth", network(VIT))
    model = predictor(replace(VIT, weights=path)).eval()
    model.read_weights()
    batch, seen = document(), []
    model.embed.linear["video"].register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        model.embed(batch)
        theirs = timms_features(VIT, frame_tokens(3).contents)
    torch.testing.assert_close(seen[0], theirs, atol=1e-4, rtol=1e-4)


@NETWORKS
def test_nothing_passes_from_frame_to_frame_while_training(tmp_path, config):
    """Also with batch norms, whose own training mode would mix them."""
    trained = replace(config, frozen=False)
    encoder = read(trained, tmp_path / "w.pth").train()
    values = frame_tokens(4).contents.float().requires_grad_()
    features = encoder(values)
    (gradient,) = torch.autograd.grad(features[2].square().sum(), values)
    assert bool(gradient[2].any())
    others = gradient[[0, 1, 3]]
    assert torch.equal(others, torch.zeros_like(others))
    alone = encoder(values[2:3])
    torch.testing.assert_close(features[2:3], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [VIT, CONVNET], ids=lambda c: c.name)
def test_what_is_said_of_a_block_does_not_see_its_frame_or_later_ones(config):
    model, batch = predictor(config), document(blocks=4)
    frames = batch.contents[VIDEO].float().requires_grad_()
    batch = replace(batch, contents={**batch.contents, VIDEO: frames})
    hidden = model.hidden(batch)
    _, frame_blocks = blocks_of(batch, VIDEO)
    found = 0
    for modality in (AUDIO, VIDEO, TEXT):
        z = model.condition(batch, hidden, modality)
        for i, block in enumerate(blocks_of(batch, modality)[1].tolist()):
            (gradient,) = torch.autograd.grad(z[i].square().sum(), frames, retain_graph=True)
            reached = gradient.unflatten(0, (-1, 6)).abs().amax((1, 2)) > 0
            assert torch.equal(reached, frame_blocks < block), (modality, i)
            found += int(reached.sum())
    assert found > 10


def test_noise_on_the_past_is_what_the_network_sees():
    model = predictor(VIT, context_noise=ContextNoise(share=1.0, sigma=0.5)).train()
    batch, shown = document(), []
    model.embed.encoders["video"].register_forward_pre_hook(lambda _, x: shown.append(x[0]))
    seen = model.embed.see(batch, generator(0))
    model.embed(batch, seen)
    clean = batch.contents[VIDEO].unflatten(0, (-1, 6)).float()
    noise = (shown[0] - clean) / 74.0
    expected = seen[VIDEO].seen_MPW - seen[VIDEO].clean_MPW
    assert bool((expected.flatten(1).std(1) > 0.01).any())
    torch.testing.assert_close(noise, expected, atol=1e-4, rtol=1e-3)


def steps(model, count: int = 3) -> None:
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for seed in range(count):
        said = model(document(seed=seed), generator(seed)).streams[VIDEO]
        optimizer.zero_grad()
        F.mse_loss(said.mean_MPD, said.targets_MPD).backward()
        optimizer.step()


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def moved(before: dict[str, Tensor], module: nn.Module) -> list[str]:
    after = module.state_dict()
    return [name for name in before if not torch.equal(before[name], after[name])]


def test_frozen_stays_frozen():
    model = predictor(BATCH_NORMS)
    encoder = model.embed.encoders["video"]
    before, linear = state_of(encoder), state_of(model.embed.linear["video"])
    steps(model)
    assert moved(before, encoder) == []
    assert moved(linear, model.embed.linear["video"])  # the map behind it learns
    assert not any(p.requires_grad for p in encoder.parameters())
    assert model.training and not any(part.training for part in encoder.backbone.modules())


def test_a_trained_network_learns_and_its_batch_norms_keep_their_statistics(tmp_path):
    config = replace(BATCH_NORMS, frozen=False)
    path = weights_file(tmp_path / "w.pth", network(config))
    model = predictor(replace(config, weights=path))
    model.read_weights()
    encoder = model.embed.encoders["video"]
    before = state_of(encoder)
    steps(model)
    changed = set(moved(before, encoder))
    parameters = {name for name, _ in encoder.named_parameters()}
    assert parameters <= changed, sorted(parameters - changed)
    assert not changed - parameters  # running means and variances, the mean and the deviation


def test_batch_norms_from_scratch_are_refused():
    with pytest.raises(ValueError, match="batch norms.*take a network without them"):
        FrameEncoder(FRAMES, replace(BATCH_NORMS, frozen=False))


def test_weights_that_are_named_must_come():
    model = predictor(replace(VIT, weights="/nowhere/vit.pth"))  # building reads nothing
    with pytest.raises(RuntimeError, match="read_weights"):
        model(document())
    with pytest.raises(UserError, match="test_vit: weights /nowhere/vit.pth does not exist"):
        model.read_weights()


def broken_files(folder: Path) -> dict[str, tuple[str, str]]:
    good = network(VIT).state_dict()
    lacking = {name: tensor for name, tensor in good.items() if "blocks.2." not in name}
    shorter = good | {"norm.weight": good["norm.weight"][:-1]}
    garbage = folder / "garbage.pth"
    garbage.write_bytes(b"not a file of weights")
    found = {"garbage": (str(garbage), "cannot be read")}
    for name, state, said in (
        ("other", network(CONVNET).state_dict(), "lacks .* also holds stem.*check name and args"),
        ("lacking", lacking, "lacks blocks.2.* and 8 more"),
        ("extra", good | {"decoder.weight": torch.zeros(2)}, "also holds decoder.weight"),
        ("shape", shorter, "norm.weight.*63.*64"),
    ):
        torch.save(state, folder / f"{name}.pth")
        found[name] = (str(folder / f"{name}.pth"), said)
    return found


@pytest.mark.parametrize("kind", ["garbage", "other", "lacking", "extra", "shape"])
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path, kind):
    path, said = broken_files(tmp_path)[kind]
    encoder = FrameEncoder(FRAMES, replace(VIT, weights=path))
    before = state_of(encoder)
    with pytest.raises(UserError, match=said) as caught:
        encoder.read_weights()
    assert path in str(caught.value) and len(str(caught.value)) < 600
    assert moved(before, encoder) == [] and encoder.lacks_weights


def test_positions_of_another_frame_size_are_resampled_as_timm_does(tmp_path):
    made = timm.create_model("test_vit", img_size=64, patch_size=8)
    config = replace(VIT, weights=weights_file(tmp_path / "w.pth", made))
    encoder = FrameEncoder(FRAMES, config)
    encoder.read_weights()
    theirs = timm.layers.resample_abs_pos_embed(
        made.pos_embed, (2, 3), num_prefix_tokens=made.num_prefix_tokens
    )
    torch.testing.assert_close(encoder.backbone.pos_embed, theirs)


class Hub:
    """timm's ways to weights that lie elsewhere, cut, or leading to a network of the tests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tried, self.holds = 0, None
        for way in ("load_state_dict_from_hf", "load_state_dict_from_url", "download_cached_file"):
            monkeypatch.setattr(f"timm.models._builder.{way}", self)

    def __call__(self, *_: object, **__: object) -> dict[str, Tensor]:
        self.tried += 1
        if self.holds is None:
            raise OSError("no route to host")
        return self.holds.state_dict()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(monkeypatch)


def test_without_a_network_the_remedy_is_named(hub):
    model = predictor(replace(VIT, pretrained=True))
    assert hub.tried == 0  # building fetches nothing
    with pytest.raises(UserError, match="test_vit.*no route to host.*weights: FILE"):
        model.read_weights()
    assert hub.tried


def test_pretrained_weights_come_by_timms_own_path(hub):
    hub.holds = network(VIT)
    encoder = FrameEncoder(FRAMES, replace(VIT, pretrained=True))
    encoder.read_weights()
    values = frame_tokens(2).contents
    with torch.no_grad():
        torch.testing.assert_close(encoder(values), timms_features(VIT, values))


@pytest.mark.parametrize("source", ["pretrained", "weights"])
def test_a_checkpoint_needs_neither_file_nor_network(tmp_path, source, hub):
    codecs = Codecs(video=Patches(size=(8, 12), patch=4, fps=8))
    path = weights_file(tmp_path / "w.pth", network(VIT))
    named = {"weights": path} if source == "weights" else {"pretrained": True}
    encoder = replace(VIT, frozen=True, **named)
    sizes = {"dim": 32, "depth": 1, "num_heads": 2, "encoders": {"video": encoder}}
    model = Predictor(codecs.layout, PredictorConfig(**sizes)).eval()
    hub.holds = network(VIT)
    model.read_weights()
    state = {f"{PREFIX}{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save(
        {"mmpredict": describe(model, codecs, 64), "state_dict": state}, tmp_path / "last.ckpt"
    )

    Path(path).unlink()
    hub.tried, hub.holds = 0, None
    again, _, _ = load_predictor(tmp_path / "last.ckpt")
    again.read_weights()  # nothing is left to read
    assert hub.tried == 0
    assert again.config == model.config  # where the weights once came from is still known
    values = frame_tokens(2).contents
    with torch.no_grad():
        features = [m.embed.encoders["video"](values) for m in (model, again)]
        torch.testing.assert_close(features[1], timms_features(VIT, values))
    assert torch.equal(*features)


def test_the_predictors_own_beginning_leaves_the_network_alone():
    """timm's initialisation stays: 0.02 for its linear maps, not 1/sqrt(fan in)."""
    weight = predictor(VIT).embed.encoders["video"].backbone.blocks[0].attn.qkv.weight
    assert 0.01 < float(weight.detach().std()) < 0.04


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "test_vti"}, "no network 'test_vti'; did you mean test_vit"),
        ({"name": "hf-hub:timm/test_vit"}, "no network"),
        ({"name": "test_vit", "pretrained": True, "weights": "x.pth"}, "give one"),
        ({"name": "test_vit", "size": 0}, "size=0"),
        ({"name": "test_vit", "size": 20}, "20"),
        ({"name": "test_convnext", "size": 32, "layer": 9}, "no layer 9"),
        ({"name": "test_vit", "size": 32, "args": {"colour": 3}}, "colour"),
    ],
)
def test_wrong_settings_are_refused_with_the_remedy(settings, said):
    with pytest.raises(ValueError, match=said):
        FrameEncoder(FRAMES, FrameEncoderConfig(**settings))


def test_only_frames_of_patches_have_encoders():
    with pytest.raises(ValueError, match="square RGB patches.*sound has 3 values"):
        FrameEncoder(StreamSpec(0, "sound", width=3), VIT)
    with pytest.raises(ValueError, match="predictor.encoders names .'film'.; this run has"):
        PredictorConfig(encoders={"film": VIT}).check_streams(LAYOUT)


def test_a_real_picture():
    cbook = pytest.importorskip("matplotlib.cbook")
    from matplotlib.image import imread

    try:
        pixels = imread(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    except FileNotFoundError:
        pytest.skip("matplotlib came without its sample picture")
    picture = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    shifted = torch.stack([picture[:, y : y + 480, 16:496] for y in (0, 60, 120)])
    spec = replace(FRAMES, width=3 * 48**2, rows=10, cols=10)
    encoder = FrameEncoder(spec, replace(VIT, size=80, args={"patch_size": 8}))
    with torch.no_grad():
        features = encoder(patchify(shifted, 48))
    assert features.shape == (3, 100, 64) and bool(features.isfinite().all())
    assert float((features[0] - features[1]).abs().mean()) > 1e-3
