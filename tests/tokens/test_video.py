"""Frames and patches: an exact round trip, and nothing moves in space or time."""

from __future__ import annotations

import pytest
import torch

from mmpredict.schema import Clip, Modality, Tokens
from mmpredict.tokens import Patches
from mmpredict.tokens.video import patchify, unpatchify
from tests.builders import generator


@pytest.mark.parametrize(
    ("shape", "patch"),
    [
        ((3, 1, 8, 12), 4),
        ((1, 5, 9, 3), 3),
        ((2, 3, 7, 35), 7),
        ((2, 2, 6, 10), 1),
        ((0, 3, 4, 4), 2),
    ],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16])
def test_patchify_round_trip(shape: tuple[int, ...], patch: int, dtype: torch.dtype):
    frames = torch.randint(256, shape, generator=generator(0)).to(dtype)
    patches = patchify(frames, patch)
    T, C, H, W = shape
    assert patches.shape == (T, H // patch * (W // patch), C * patch * patch)
    if T:
        assert torch.equal(unpatchify(patches, patch, (H, W)), frames)


def test_patches_stand_in_reading_order():
    frames = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    patches = patchify(frames, 2)
    assert torch.equal(patches[1, 0], frames[1, :, :2, :2].flatten())
    assert torch.equal(patches[0, 1], frames[0, :, :2, 2:4].flatten())  # the second is to the right
    assert torch.equal(patches[0, 3], frames[0, :, 2:, :2].flatten())  # the second row comes after


def test_patchify_names_the_numbers():
    with pytest.raises(ValueError, match="10x12, not a multiple of patch=4"):
        patchify(torch.zeros(1, 3, 10, 12), 4)


@pytest.mark.parametrize("size", [8, (4, 12)])
def test_codec_round_trip_is_exact(size: int | tuple[int, int]):
    codec = Patches(size=size, patch=4)
    frames = torch.randint(256, (3, 3, *codec.height_width), generator=generator(1)).to(torch.uint8)
    times = torch.tensor([0.0, 1 / 30, 0.1], dtype=torch.float64)
    tokens = codec.encode(Clip(frames_TCHW=frames, times_s=times))
    assert tokens.modality == Modality.VIDEO and tokens.contents.dtype == torch.uint8
    assert tokens.contents.shape[1:] == (codec.spec.positions_per_block, codec.spec.width)
    clip = codec.decode(tokens)
    assert torch.equal(clip.frames_TCHW, frames) and torch.equal(clip.times_s, times)


def test_predicted_values_are_rounded_and_clipped():
    codec = Patches(size=2, patch=1)
    values = torch.tensor([-3.0, 0.6, 254.6, 300.0])[None, :, None].expand(1, 4, 3)
    frames = codec.decode(Tokens(Modality.VIDEO, values, torch.zeros(1).double())).frames_TCHW
    assert frames.dtype == torch.uint8
    assert frames[0, 0].flatten().tolist() == [0, 1, 255, 255]


def test_values_of_one_colour_share_their_statistics():
    codec = Patches(size=4, patch=2)
    frames = torch.arange(3, dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    tokens = codec.encode(Clip(frames_TCHW=frames, times_s=torch.zeros(1).double()))
    assert torch.equal(tokens.contents[0, 0].long(), codec.groups_D)


def test_errors_name_the_numbers():
    with pytest.raises(ValueError, match="video.size=10 .* video.patch=4; take size 8"):
        Patches(size=10, patch=4)
    with pytest.raises(ValueError, match="video.size=2 .*take size 4"):
        Patches(size=2, patch=4)
    with pytest.raises(ValueError, match="video.patch=0"):
        Patches(patch=0)
    clip = Clip(
        frames_TCHW=torch.zeros(1, 3, 8, 4, dtype=torch.uint8), times_s=torch.zeros(1), name="a.mp4"
    )
    with pytest.raises(
        ValueError, match=r"a.mp4: frames are \(3, 8, 4\), the model takes \(3, 8, 8\)"
    ):
        Patches(size=8).encode(clip)


def test_a_clip_without_frames_has_no_tokens():
    assert Patches().encode(Clip()) is None
    empty = Clip(frames_TCHW=torch.zeros(0, 3, 32, 32, dtype=torch.uint8), times_s=torch.zeros(0))
    assert Patches().encode(empty) is None
