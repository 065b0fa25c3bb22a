"""Laws of the trunk's parts: rotations, grouped queries, masks, standardising, options."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch

from mmpredict.model import HeadConfig, Predictor, PredictorConfig
from mmpredict.model.attention import Attention, AttentionConfig
from mmpredict.model.config import ContextNoise
from mmpredict.model.embed import Standardise
from mmpredict.model.fast_weights import FastWeightsConfig
from mmpredict.model.rotary import Llama3Scaling, RotaryConfig, rotary_table, rotate
from mmpredict.model.sight import look
from mmpredict.schema import TICK_S, Statistics, UserError
from tests.builders import (
    AUDIO,
    LAYOUT,
    TEXT,
    VIDEO,
    document,
    generator,
    packed_rows,
    predictor,
)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_scores_depend_on_the_distance_along_each_axis_alone(axis: int):
    q, k = torch.randn(2, 1, 1, 1, 16, generator=generator(0))
    unit = torch.tensor([TICK_S, 1.0, 1.0])[axis]

    def score(of_q: float, of_k: float, shift: float = 0.0) -> float:
        places = torch.full((1, 2, 3), shift)
        places[0, 0, axis], places[0, 1, axis] = of_q * unit, of_k * unit
        cos, sin = rotary_table(places, 16)
        turned_q = rotate(q, (cos[:, :, :1], sin[:, :, :1]))
        turned_k = rotate(k, (cos[:, :, 1:], sin[:, :, 1:]))
        return float((turned_q * turned_k).sum())

    assert score(3, 1) == pytest.approx(score(9, 7), abs=1e-5)
    assert score(3, 1) != pytest.approx(score(1, 3), abs=1e-3)
    assert score(3, 1) == pytest.approx(score(3, 1, shift=4.0), abs=1e-4)  # the other axes
    assert score(2, 2) == pytest.approx(float((q * k).sum()), abs=1e-5)


def test_each_axis_turns_pairs_of_its_own():
    places = torch.eye(3)[None] * torch.tensor([TICK_S, 1.0, 1.0])  # one unit along each axis
    _, sin = rotary_table(places, 32)
    turned = sin[0, 0] != 0
    assert turned.sum(0).tolist() == [1] * 16  # every pair by one axis
    assert turned.sum(1).tolist() == [8, 4, 4]
    for axis in range(3):  # each has fast and slow pairs
        pairs = turned[axis].nonzero()[:, 0]
        assert int(pairs.min()) < 4 and int(pairs.max()) >= 12


@pytest.mark.parametrize("shift_s", [0.04, 3.0, -1.7])
def test_only_distances_in_time_matter(shift_s: float):
    model = predictor()
    batch = packed_rows()
    by_doc = shift_s * batch.doc_id[..., None] * torch.tensor([1.0, 0.0, 0.0])
    moved = replace(batch, positions=batch.positions + by_doc)
    stretched = replace(batch, positions=batch.positions * torch.tensor([1.5, 1.0, 1.0]))
    with torch.no_grad():
        hidden, shifted = model.hidden(batch), model.hidden(moved)
        torch.testing.assert_close(hidden, shifted, atol=1e-4, rtol=1e-4)
        for modality in (AUDIO, VIDEO, TEXT):
            a, b = (model.condition(x, model.hidden(x), modality) for x in (batch, moved))
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        assert float((hidden - model.hidden(stretched)).abs().max()) > 1e-2


def test_rows_and_columns_are_told_apart():
    model, batch = predictor(), document({VIDEO})
    turned = replace(batch, positions=batch.positions[..., [0, 2, 1]])
    with torch.no_grad():
        assert float((model.hidden(batch) - model.hidden(turned)).abs().max()) > 1e-2


def test_the_delay_since_the_last_own_block_is_asked_about():
    model, batch = predictor(), document({VIDEO}, blocks=(0, 2, 0))
    later = batch.end_s.clone()
    later[0, 6:] += 1.0
    with torch.no_grad():
        hidden = model.hidden(batch)
        a = model.condition(batch, hidden, VIDEO)
        b = model.condition(replace(batch, end_s=later), hidden, VIDEO)
    assert torch.equal(a[0], b[0]) and float((a[1] - b[1]).abs().min(0).values.max()) > 1e-2


@pytest.mark.parametrize("qk_norm", [True, False])
def test_grouped_queries_are_repeated_keys_and_values(qk_norm: bool):
    grouped = Attention(32, AttentionConfig(4, 2, qk_norm=qk_norm))
    full = Attention(32, AttentionConfig(4, 4, qk_norm=qk_norm))
    state = grouped.state_dict()
    for name in ("k_proj.weight", "v_proj.weight"):
        heads = state[name].unflatten(0, (2, 8))
        state[name] = heads.repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(state)
    batch = packed_rows()
    x = torch.randn(*batch.modality.shape, 32, generator=generator(0))
    sight, table = look(batch.doc_id, batch.block_id), rotary_table(batch.positions, 8)
    a, b = grouped(x, sight, table), full(x, sight, table)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"num_kv_heads": 1},
        {"qk_norm": False},
        {"hidden": 48},
        {"head_dim": 24},
        {"qkv_bias": True},
        {"experts": "ffn"},
    ],
)
def test_options_build_and_learn(options: dict):
    batch = packed_rows()
    model = predictor(**options)
    said = model(batch, generator(0))
    said.streams[TEXT].logits_MV.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.trunk.parameters())
    default = predictor()
    changed = sum(p.numel() for p in model.parameters()) != sum(
        p.numel() for p in default.parameters()
    )
    assert changed


def test_text_alone_is_turned_as_in_a_language_model():
    """On the diagonal every pair of text turns by the token's number times its frequency."""
    batch = document({TEXT}, timed="none", blocks=(0, 0, 9))
    cos, sin = rotary_table(batch.positions, 16, RotaryConfig(base=500.0, axes="diagonal"))
    angle = torch.arange(9)[:, None] * 500.0 ** (-torch.arange(8) / 8)
    torch.testing.assert_close(cos[0, 0], angle.cos())
    torch.testing.assert_close(sin[0, 0], angle.sin())


def test_on_the_diagonal_distances_still_decide():
    model = predictor(rotary=RotaryConfig(axes="diagonal"))
    batch = packed_rows()
    moved = replace(batch, positions=batch.positions + torch.tensor([2.0, 0.0, 0.0]))
    with torch.no_grad():
        torch.testing.assert_close(model.hidden(batch), model.hidden(moved), atol=1e-4, rtol=1e-4)


def test_activation_checkpoints_change_memory_and_nothing_else():
    batch, gradients = packed_rows(), []
    for switch in (False, True):
        model = predictor(checkpoint_activations=switch).train()
        model.hidden(batch).square().mean().backward()
        gradients.append([p.grad for p in model.trunk.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_experts_serve_their_own_stream_alone():
    model, batch = predictor(experts="ffn"), packed_rows()
    layer = model.trunk.layers[-1]
    with torch.no_grad():
        before = model.hidden(batch)
        layer.feed_forward.streams["text"].down_proj.weight.mul_(3.0)
        layer.feed_forward_norm.weight[1] *= 2.0  # video stands second in the layout
        after = model.hidden(batch)
    changed = (before != after).any(-1)
    assert torch.equal(changed, (batch.modality == TEXT) | (batch.modality == VIDEO))


def test_context_noise_reaches_the_past_and_never_the_target():
    noise = ContextNoise(share=1.0, sigma=0.5)
    model, batch = predictor(context_noise=noise).train(), packed_rows()
    seen = model.embed.see(batch, generator(3))
    clean = predictor().embed.see(batch)
    for modality in (AUDIO, VIDEO):
        assert torch.equal(seen[modality].clean_MPW, clean[modality].clean_MPW)
        apart = (seen[modality].seen_MPW - seen[modality].clean_MPW).flatten(1).norm(dim=1)
        assert bool((apart > 0).all()) and len(set(seen[modality].level_M.tolist())) > 1
        assert 1 <= int(seen[modality].level_M.min()) <= int(seen[modality].level_M.max()) <= 8
    said = model(batch, generator(3))
    assert torch.equal(said.streams[VIDEO].targets_MPD, clean[VIDEO].clean_MPW)
    quiet = model.eval()(batch, generator(3))
    twice = model(batch, generator(3))
    assert torch.equal(quiet.streams[VIDEO].mean_MPD, twice.streams[VIDEO].mean_MPD)
    assert not torch.equal(quiet.streams[VIDEO].mean_MPD, said.streams[VIDEO].mean_MPD)


def test_a_block_without_noise_is_seen_alike_in_training_and_after_it():
    model, batch = predictor(context_noise=ContextNoise(share=0.5)), packed_rows()
    with torch.no_grad():
        model.embed.level.weight[0] = 1.0
        seen = model.train().embed.see(batch, generator(3))
        x_train = model.embed(batch, seen)
        x_after = model.eval().embed(batch)
    for modality in (AUDIO, VIDEO):
        quiet_M = seen[modality].level_M == 0
        assert 0 < int(quiet_M.sum()) < len(quiet_M)
        mine = batch.modality == modality
        blocks = [x[mine].unflatten(0, (len(quiet_M), -1))[quiet_M] for x in (x_train, x_after)]
        torch.testing.assert_close(*blocks)


def test_a_far_horizon_is_what_the_same_block_would_be_asked_without_those_between():
    """z of two blocks ahead, from a row that lacks the block between them."""
    model = predictor()
    batch = document({AUDIO}, blocks=(4, 0, 0))
    shorter = {AUDIO: batch.contents[AUDIO][[0, 1, 3]]}
    kept = torch.tensor([0, 1, 3])
    cut = replace(
        batch.map(lambda x: x[:, kept] if x.ndim > 1 and x.shape[:2] == (1, 4) else x),
        contents=shorter,
        prev_same=torch.tensor([[-1, 0, 1]]),
        prev_any=torch.tensor([[-1, 0, 1]]),
        block_id=torch.tensor([[0, 1, 2]]),
    )
    with torch.no_grad():
        far = model.condition(batch, model.hidden(batch), AUDIO, ahead=2)
        near = model.condition(cut, model.hidden(cut), AUDIO)
        torch.testing.assert_close(far[3], near[2])
        assert torch.equal(model.previous(batch, AUDIO, ahead=2)[3], model.previous(cut, AUDIO)[2])
    assert model.has_previous(batch, AUDIO, 2).tolist() == [False, False, True, True]


def test_horizons_add_only_blocks_that_are_far_enough_in():
    batch = packed_rows()
    one, three = predictor(), predictor(horizons=(1, 2, 4))
    said, more = one(batch, generator(0)), three(batch, generator(0))
    for modality in (AUDIO, VIDEO):
        blocks = len(said.streams[modality].targets_MPD)
        enough = sum(
            int((one.has_previous(batch, modality, ahead) & one.counted(batch, modality)).sum())
            for ahead in (2, 4)
        )
        assert enough or modality == VIDEO
        assert len(more.streams[modality].targets_MPD) == blocks + enough
        torch.testing.assert_close(
            more.streams[modality].mean_MPD[:blocks], said.streams[modality].mean_MPD
        )


def test_batches_that_would_spoil_a_training_are_named():
    model, batch = predictor(), packed_rows()
    model.check(batch)
    broken = {m: x.clone() for m, x in batch.contents.items()}
    broken[AUDIO] = broken[AUDIO].float()
    broken[AUDIO][2, 1] = float("nan")
    with pytest.raises(UserError, match="1 of .* positions of stream audio hold NaN"):
        model.check(replace(batch, contents=broken))
    short = predictor(rotary=RotaryConfig(max_ticks=3))
    with pytest.raises(UserError, match="rotary positions of this model 3"):
        short.check(batch)


def test_settings_come_back_from_plain_types():
    config = PredictorConfig(
        dim=32,
        num_heads=2,
        rotary=RotaryConfig(scaling=Llama3Scaling(factor=4.0)),
        fast_weights=FastWeightsConfig(every=1),
        horizons=(1, 3),
        heads={"video": HeadConfig(dim=16)},
    )
    plain = json.loads(json.dumps(asdict(config)))
    assert PredictorConfig.from_plain(plain) == config
    with pytest.raises(ValueError, match="has no colour in this version"):
        PredictorConfig.from_plain(plain | {"colour": 1})


def test_norms_keep_scores_when_inputs_grow():
    attention = Attention(32, AttentionConfig(2))
    x = torch.randn(1, 5, 32, generator=generator(0))
    weights = []
    for scale in (1.0, 100.0):
        y = attention(scale * x) / scale
        weights.append(y)
    torch.testing.assert_close(*weights, atol=1e-4, rtol=1e-4)


def test_standardising_and_its_inverse_undo_each_other_and_are_saved():
    model = predictor()
    mean = {AUDIO: torch.tensor([-5.0, 0.0, 2.0]), VIDEO: torch.full((4,), 100.0)}
    std = {AUDIO: torch.tensor([2.0, 1.0, 0.0]), VIDEO: torch.full((4,), 50.0)}
    model.embed.set_statistics(Statistics(mean=mean, std=std))
    state = model.state_dict()
    assert torch.equal(state["embed.standardise.audio.mean"], mean[AUDIO])
    assert torch.equal(state["embed.standardise.video.std"], std[VIDEO])
    assert float(state["embed.standardise.audio.std"][2]) > 0  # a constant value divides by no 0
    fresh = predictor()
    fresh.load_state_dict(state)
    scale: Standardise = fresh.embed.standardise["video"]
    patches = torch.randint(256, (9, 4), generator=generator(0)).to(torch.uint8)
    assert torch.equal(scale.inverse(scale(patches)).round().to(torch.uint8), patches)
    flat = scale(patches)
    torch.testing.assert_close(flat, (patches.float() - 100) / 50)


def test_contents_land_on_their_positions():
    model, batch = predictor(), packed_rows()
    x = model.embed(batch)
    assert not x[batch.doc_id == 0].any()
    for modality, contents in batch.contents.items():
        one_by_one = []
        for row, column in (batch.modality == modality).nonzero().tolist():
            one_by_one.append(x[row, column])
        name = LAYOUT[modality].name
        if modality == TEXT:
            raw = model.embed.tables[name](contents)
        else:
            raw = model.embed.linear[name](model.embed.standardise[name](contents))
        expected = model.embed.norm[name](raw) + model.embed.stream.weight[modality]
        torch.testing.assert_close(torch.stack(one_by_one), expected)


def test_previous_blocks_are_those_of_the_own_document():
    model, batch = predictor(), packed_rows()
    for modality in (AUDIO, VIDEO):
        values, previous = model.embed.values(batch, modality), model.previous(batch, modality)
        rows, columns = (batch.modality == modality).nonzero(as_tuple=True)
        flat_previous, flat_values = previous.flatten(0, 1), values.flatten(0, 1)
        where = {(int(r), int(c)): i for i, (r, c) in enumerate(zip(rows, columns, strict=True))}
        for i, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
            source = int(batch.prev_same[row, column])
            expected = (
                flat_values[where[row, source]] if source >= 0 else torch.zeros_like(flat_values[0])
            )
            assert torch.equal(flat_previous[i], expected)


def test_the_model_is_a_pure_function_of_its_seed():
    a, b = predictor(), predictor()
    for (name, one), (_, other) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_sizes_that_do_not_fit_are_refused_with_numbers():
    with pytest.raises(ValueError, match="predictor.dim=20 .* 8 \\* num_heads=16"):
        PredictorConfig(dim=20, num_heads=2)
    with pytest.raises(ValueError, match="num_heads=4 .*num_kv_heads=3"):
        PredictorConfig(dim=32, num_heads=4, num_kv_heads=3)
    for horizons in ((), (2,), (1, 1)):
        with pytest.raises(ValueError, match="must hold 1"):
            PredictorConfig(horizons=horizons)
    with pytest.raises(ValueError, match="'smell'.*'audio', 'video'"):
        Predictor(LAYOUT, PredictorConfig(dim=32, num_heads=2, heads={"smell": HeadConfig()}))
