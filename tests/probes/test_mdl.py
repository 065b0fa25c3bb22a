"""Laws of the code length: it tells what can be learnt from little from what cannot."""

import math

import torch

from mmpredict.probes.mdl import binned, block_ends, online_codelength, scene_order


def planted(rows: int, noise: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 16, generator=g)
    labels = (x[:, :4] + noise * torch.randn(rows, 4, generator=g)).argmax(1)
    return x, labels, torch.arange(rows) // 4


def test_planted_labels_are_told_in_fewer_bits_than_random_ones():
    x, labels, scenes = planted(1200, 0.1)
    learnt = online_codelength(x, labels, scenes, 4)
    mixed = labels[torch.randperm(1200, generator=torch.Generator().manual_seed(1))]
    random = online_codelength(x, mixed, scenes, 4)
    assert learnt.uniform_bits == 1200 * 2
    assert learnt.compression > 2.5
    assert 0.9 < random.compression < 1.01  # nothing is saved, and learning noise costs a little


def test_a_code_is_longer_where_more_labels_are_needed_to_learn():
    x, labels, scenes = planted(1200, 0.1)
    g = torch.Generator().manual_seed(1)
    hidden = torch.cat([0.15 * x[:, :4], 3 * torch.randn(1200, 60, generator=g)], 1)
    easy = online_codelength(x[:, :4], labels, scenes, 4)
    assert online_codelength(hidden, labels, scenes, 4).bits > 1.1 * easy.bits


def test_the_first_block_costs_the_uniform_code():
    x, labels, scenes = planted(8, 0.1)
    alone = online_codelength(x, labels, torch.zeros(8), 4)  # one scene, one block
    assert alone.bits == alone.uniform_bits == 8 * math.log2(4)


def test_blocks_end_with_scenes_and_the_order_keeps_them_together():
    scenes = torch.arange(400) // 7
    order = scene_order(scenes, 3)
    assert sorted(order.tolist()) == list(range(400))
    shuffled = scenes[order]
    assert int((shuffled[1:] != shuffled[:-1]).sum()) == len(torch.unique(scenes)) - 1
    ends = block_ends(shuffled)
    assert ends[-1] == 400 and ends == sorted(set(ends))
    assert all(shuffled[end - 1] != shuffled[end] for end in ends[:-1])


def test_bins_are_equally_full():
    values = torch.rand(800, 1, generator=torch.Generator().manual_seed(0)) ** 3
    counts = torch.bincount(binned(values, values))
    assert len(counts) == 8 and counts.min() >= 99 and counts.max() <= 101
