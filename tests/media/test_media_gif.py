"""Law: a gif is a video in which each frame has its own delay, as browsers play it."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import torch

from mmpredict.media import Limits, MediaBytes, MediaError, list_folder, probe, read_clip

PALETTE = bytes([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
HEAD = b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0x81, 0, 0) + PALETTE


def image(colour, *, at=(0, 0), size=(4, 4)):
    """One colour, packed without compression: a clear code before every third pixel."""
    codes, bits = [], 0
    for number in range(size[0] * size[1]):
        if number % 2 == 0:
            codes.append(4)
        codes.append(colour)
    codes.append(5)
    for position, code in enumerate(codes):
        bits |= code << (3 * position)
    packed = bits.to_bytes((3 * len(codes) + 7) // 8, "little")
    place = struct.pack("<HHHHB", *at, *size, 0)
    return b"\x2c" + place + b"\x02" + bytes([len(packed)]) + packed + b"\0"


def frame(colour, delay, *, flags=0, clear=0, **place):
    control = b"\x21\xf9\x04" + struct.pack("<BHB", flags, delay, clear) + b"\0"
    return control + image(colour, **place)


def gif(*frames):
    loop = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"
    return MediaBytes("a.gif", HEAD + loop + b"".join(frames) + b"\x3b")


def test_every_frame_has_its_own_delay():
    source = gif(frame(1, 10), frame(2, 50), frame(3, 20))
    info = probe(source)
    assert (info.width, info.height, info.has_audio, info.still) == (4, 4, False, False)
    assert info.duration_s == pytest.approx(0.8) and info.video_start_s == 0.0
    clip = read_clip(source)
    assert clip.times_s.tolist() == pytest.approx([0.0, 0.1, 0.6])
    assert clip.frames_TCHW[:, :, 0, 0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    grid = read_clip(source, fps=10.0)
    assert grid.frames_TCHW[:, :, 0, 0].argmax(1).tolist() == [0, 1, 1, 1, 1, 1, 2, 2]


def test_delays_of_nothing_are_a_tenth_of_a_second():
    clip = read_clip(gif(frame(1, 0), frame(2, 1), frame(3, 2), frame(1, 3)))
    assert clip.times_s.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.22])
    assert probe(gif(frame(1, 0), frame(2, 1), frame(3, 2))).duration_s == pytest.approx(0.22)
    assert probe(gif(image(1))).duration_s == pytest.approx(0.1)  # no delay given at all


def test_windows_equal_slices_of_the_whole():
    source = gif(*(frame(1 + k % 3, 7 + 5 * (k % 4)) for k in range(40)))
    whole = read_clip(source, fps=20.0)
    assert len(whole.frames_TCHW) == pytest.approx(20 * probe(source).duration_s, abs=1)
    for start in (0.4, 2.5, 4.0):
        window = read_clip(source, start_s=start, duration_s=0.5, fps=20.0)
        first = round(start * 20)
        assert torch.equal(window.frames_TCHW, whole.frames_TCHW[first : first + 10])


def test_partial_frames_build_on_those_before_and_clear_parts_are_white():
    source = gif(frame(1, 10), frame(2, 10, at=(0, 0), size=(2, 2)), frame(3, 10, flags=1, clear=3))
    first, second, third = read_clip(source).frames_TCHW.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(second[:2, :2], np.broadcast_to([0, 255, 0], (2, 2, 3)))
    assert np.array_equal(second[2:], first[2:]) and np.array_equal(third, second)
    alone = read_clip(gif(frame(3, 10, flags=1, clear=3))).frames_TCHW
    assert (alone == 255).all()


def test_what_a_frame_leaves_behind_is_as_in_a_viewer():
    pillow = pytest.importorskip("PIL.Image")
    small = {"at": (1, 1), "size": (2, 2)}
    keep, clear, restore = 1 << 2, 2 << 2, 3 << 2
    source = gif(
        frame(1, 10, flags=keep),
        frame(2, 10, flags=restore, **small),
        frame(3, 10, flags=clear, at=(0, 0), size=(2, 2)),
        frame(2, 10, flags=keep, at=(2, 2), size=(2, 2)),
    )
    shown = pillow.open(io.BytesIO(source.data))
    for number, found in enumerate(read_clip(source).frames_TCHW.permute(0, 2, 3, 1).numpy()):
        shown.seek(number)
        seen = pillow.new("RGBA", shown.size, "white")
        seen.alpha_composite(shown.convert("RGBA"))
        assert np.array_equal(np.asarray(seen.convert("RGB")), found), number


def test_limits_are_held_against_the_blocks():
    source = gif(*(frame(1, 10) for _ in range(50)))
    for name, limit in (("max_frames", 20), ("max_duration_s", 2.0), ("max_pixels", 15)):
        with pytest.raises(MediaError, match=f"Limits.{name}"):
            probe(source, Limits(**{name: limit}))


def test_a_gif_that_breaks_off_is_refused():
    whole = gif(frame(1, 10), frame(2, 10)).data
    assert probe(MediaBytes("a.gif", whole[:-1])).duration_s == 0.2  # only the end mark is missing
    for data, reason in (
        (whole[:10], "in its header"),
        (whole[:-9], "after 1 whole frames"),
        (HEAD + b"\x3b", "without a picture"),
        (HEAD + frame(1, 10) + b"\x77", "no gif block"),
    ):
        for look in (probe, read_clip):
            with pytest.raises(MediaError, match=reason):
                look(MediaBytes("a.gif", data))


def test_a_folder_lists_gifs(tmp_path):
    (tmp_path / "a.gif").write_bytes(gif(frame(1, 10)).data)
    assert list(list_folder(tmp_path).media) == [tmp_path / "a.gif"]
