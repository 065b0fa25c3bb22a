"""The trunk, position by position with a cache, is the trunk on the whole row."""

from __future__ import annotations

import pytest
import torch

from mmpredict.model import PredictorConfig
from mmpredict.model.fast_weights import FastWeightsConfig
from mmpredict.model.norm import RMSNorm
from mmpredict.model.rotary import RotaryConfig, rotary_table, rotate
from mmpredict.model.stepping import Turner, Unit
from mmpredict.model.trunk import Trunk
from mmpredict.schema import Layout, StreamSpec, Tokens
from mmpredict.sequence import interleave

LAYOUT = Layout(
    (
        StreamSpec(0, "audio", width=3, period_s=0.04, fills_period=True),
        StreamSpec(1, "video", width=4, rows=2, cols=2, period_s=0.125),
        StreamSpec(2, "text", vocab_size=11),
    )
)
MEMORY = FastWeightsConfig(every=2, num_heads=2, key_dim=8, value_dim=8, chunk=4)
SETTINGS = {
    "plain": {},
    "grouped": {"num_kv_heads": 1, "qkv_bias": True},
    "plain heads": {"qk_norm": False, "head_dim": 24},
    "window": {"window": 5, "num_kv_heads": 2},
    "memory": {"fast_weights": MEMORY, "window": 3},
    "experts": {"experts": "ffn"},
}


def make_row():
    """Chunks, frames and words of half a second, and a vector for each position."""
    g = torch.Generator().manual_seed(0)
    streams = [
        Tokens(0, torch.randn(12, 1, 3, generator=g), 0.04 * torch.arange(1, 13).double()),
        Tokens(1, torch.randn(4, 4, 4, generator=g), 0.125 * torch.arange(4).double()),
        Tokens(2, torch.randint(11, (9,), generator=g), torch.linspace(0, 0.4, 9).double()),
    ]
    row = interleave(streams, LAYOUT)
    return row, torch.randn(1, row.modality.shape[1], 32, generator=g, dtype=torch.float64)


def make_trunk(**settings) -> Trunk:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = Trunk(LAYOUT, PredictorConfig(dim=32, depth=2, num_heads=4, **settings)).double()
        for parameter in trunk.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return trunk


def blocks_of(row) -> list[tuple[int, int]]:
    """(stream, positions) of each block."""
    first = row.block_id[0].diff(prepend=torch.tensor([-1])) != 0
    return [(m, LAYOUT[m].positions_per_block) for m in row.modality[0][first].tolist()]


def read(trunk, cache, row, x, blocks, start):
    """Some blocks from position `start` on."""
    stop = start + sum(size for _, size in blocks)
    hidden = trunk.extend(
        x[:, start:stop],
        row.positions[:, start:stop].expand(len(x), -1, -1),
        cache,
        blocks=[size for _, size in blocks],
        streams=[LAYOUT.streams.index(LAYOUT[m]) for m, _ in blocks],
    )
    return hidden, stop


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("at_once", [1, 3, 100])
@torch.inference_mode()
def test_blocks_in_any_portions_are_the_whole_row(settings, at_once):
    trunk, (row, x) = make_trunk(**settings), make_row()
    whole = trunk(x, row)
    length = x.shape[1]
    cache = trunk.new_cache(1, length if at_once == 100 or not trunk.config.window else 16)
    blocks, parts, start = blocks_of(row), [], 0
    for k in range(0, len(blocks), at_once):
        hidden, start = read(trunk, cache, row, x, blocks[k : k + at_once], start)
        parts.append(hidden)
    # Positions turn in float32, memories are float32.
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@torch.inference_mode()
def test_rows_of_different_lengths_do_not_touch_each_other(settings):
    """Two rows from one prefix; now the one waits, now the other."""
    trunk, (row, x) = make_trunk(**settings), make_row()
    blocks = blocks_of(row)
    single = [(k, m) for k, (m, size) in enumerate(blocks) if size == 1][6:]
    begin = single[0][0]
    prefix, start = trunk.new_cache(1, 64), sum(size for _, size in blocks[:begin])
    read(trunk, prefix, row, x, blocks[:begin], 0)
    both, alone = prefix.spread(2), [prefix.spread(1), prefix.spread(1)]
    generator = torch.Generator().manual_seed(1)
    for k, live in enumerate([(True, True), (True, False), (False, True), (True, False)] * 3):
        new = torch.randn(2, 1, 32, generator=generator, dtype=torch.float64)
        position = row.positions[:, start + k : start + k + 1].clone()
        together = trunk.extend(new, position.expand(2, -1, -1), both, streams=(0,), live=live)
        for index in range(2):
            if live[index]:
                own = trunk.extend(new[index : index + 1], position, alone[index], streams=(0,))
                torch.testing.assert_close(together[index], own[0], atol=1e-5, rtol=1e-5)
    assert both.lengths == [alone[0].lengths[0], alone[1].lengths[0]]
    assert both.lengths[0] != both.lengths[1] or trunk.config.window


@torch.inference_mode()
def test_a_row_of_a_cache_is_written_through_it():
    trunk, (row, x) = make_trunk(fast_weights=MEMORY), make_row()
    blocks = blocks_of(row)
    cache = trunk.new_cache(1, 64).spread(3)
    part = cache.row(1)
    read(trunk, part, row, x, blocks, 0)
    cache.lengths[1] = part.lengths[0]
    assert cache.lengths == [0, x.shape[1], 0]
    for layer in cache.layers:
        assert layer.keys[1].any() and not layer.keys[0].any() and not layer.keys[2].any()
        assert layer.state is None or (layer.state[1].any() and not layer.state[0].any())


def test_a_full_cache_says_so():
    trunk, (row, x) = make_trunk(), make_row()
    with pytest.raises(ValueError, match="room for 10 positions; row 0 holds 10 .* 4 more do not"):
        with torch.inference_mode():
            cache, blocks = trunk.new_cache(1, 10), blocks_of(row)
            start = 0
            for block in blocks:
                _, start = read(trunk, cache, row, x, [block], start)


def test_under_autocast_products_and_cache_have_its_dtype():
    trunk, (row, x) = make_trunk().float(), make_row()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        cache = trunk.new_cache(1, 64)
        hidden, _ = read(trunk, cache, row, x.float(), blocks_of(row), 0)
        whole = trunk(x.float(), row)
    assert cache.dtype == torch.bfloat16 and hidden.dtype == torch.float32
    assert (hidden - whole).abs().mean() < 2e-2


@torch.inference_mode()
def test_a_new_cache_has_the_weights_as_they_are_now():
    """A training goes on between two rollouts; by any way that weights are written."""
    trunk, (row, x) = make_trunk(), make_row()
    read(trunk, trunk.new_cache(1, 64), row, x, blocks_of(row), 0)
    for parameter in trunk.parameters():
        parameter.data.mul_(1.25)
    hidden, _ = read(trunk, trunk.new_cache(1, 64), row, x, blocks_of(row), 0)
    torch.testing.assert_close(hidden, trunk(x, row), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [0.0, 1e-4, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_unit_with_its_gain_is_the_norm(size, dtype):
    """Also where eps has a say."""
    generator = torch.Generator().manual_seed(0)
    norm = RMSNorm(24, 1e-6).to(dtype)
    torch.nn.init.normal_(norm.weight, generator=generator)
    x_RD = size * torch.randn(5, 24, generator=generator, dtype=dtype)
    unit = Unit(norm)
    torch.testing.assert_close(unit(x_RD) * unit.gain, norm(x_RD).detach())


@pytest.mark.parametrize("axes", ["separate", "diagonal"])
def test_turns_are_the_rotation(axes):
    generator, config = torch.Generator().manual_seed(0), RotaryConfig(axes=axes)
    positions_BN3 = 7 * torch.rand(2, 3, 3, generator=generator)
    kept, x_BNXE = positions_BN3.clone(), torch.randn(2, 3, 5, 16, generator=generator)
    table = rotary_table(positions_BN3, 16, config)
    want = rotate(x_BNXE.transpose(1, 2), table).transpose(1, 2)
    Turner(16, config, torch.float32, positions_BN3.device)(positions_BN3).turn_(x_BNXE)
    torch.testing.assert_close(x_BNXE, want)
    assert torch.equal(positions_BN3, kept)
