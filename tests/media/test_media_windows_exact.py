"""Law: what reading does to be quick changes no bit, takes no memory and skips no frame that is
shown."""

from __future__ import annotations

import gc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import Interpolation, VideoReformatter

from mmpredict.media import read_clip, read_windows, reader
from mmpredict.media.video import PictureShaper

FLAGS = Interpolation.AREA | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "nv12", "gray", "gray16le")
FORMATS += ("rgb24", "bgr24", "rgba", "gbrp", "yuva420p", "rgb48le", "rgb565le", "monow", "rgb8")
SIZES = ((48, 64), (96, 128), (17, 29), (95, 33), (49, 60), (40, 62), (160, 200), (7, 5))


def picture(seed: int = 0) -> np.ndarray:
    chance = np.random.default_rng(seed)
    blocks = np.kron(chance.integers(0, 256, (12, 16, 3)), np.ones((8, 8, 1)))
    return np.clip(blocks + chance.normal(0, 20, blocks.shape), 0, 255).astype(np.uint8)


def shaped(frame: av.VideoFrame, size: tuple[int, int] | None) -> np.ndarray:
    found = []

    def room(height: int, width: int) -> np.ndarray:
        found.append(np.full((3, height, width), 77, np.uint8))
        return found[0]

    PictureShaper(size, 1.0).shape(frame, room)
    return found[0]


@pytest.mark.parametrize("pixels", FORMATS)
def test_planes_hold_the_bits_of_packed_pixels(pixels):
    frame = av.VideoFrame.from_ndarray(picture(), format="rgb24").reformat(format=pixels)
    for height, width in SIZES:
        scale = max(height / 96, width / 128)
        covering = max(height, round(96 * scale)), max(width, round(128 * scale))
        packed = VideoReformatter().reformat(
            frame, covering[1], covering[0], "rgb24", interpolation=FLAGS, threads=1
        )
        top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
        wanted = packed.to_ndarray()[top : top + height, left : left + width].transpose(2, 0, 1)
        assert np.array_equal(shaped(frame, (height, width)), wanted)
    assert shaped(frame, None).shape == (3, 96, 128)


def test_colours_keep_their_full_resolution():
    """Against the mean of 4x4 squares of the full frame; half the chroma resolution is 5 off."""
    frame = av.VideoFrame.from_ndarray(picture(), format="rgb24").reformat(format="yuv444p")
    full = frame.reformat(
        format="rgb24", interpolation=Interpolation.BICUBIC | FLAGS & ~Interpolation.AREA
    ).to_ndarray()
    boxes = full.reshape(24, 4, 32, 4, 3).mean((1, 3)).transpose(2, 0, 1)
    assert np.abs(shaped(frame, (24, 32)) - boxes).mean() < 0.5


def write(path: Path, times_s: list[float], options: dict[str, str]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        base = stream.codec_context.time_base = Fraction(1, 90_000)
        x = np.arange(64) + np.arange(48)[:, None]
        for number, time_s in enumerate(times_s):
            waves = [128 + 100 * np.sin(x / (5 + k) + number * (k + 1) / 3) for k in range(3)]
            frame = av.VideoFrame.from_ndarray(np.stack(waves, -1).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(time_s / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


B_FRAMES = {"bf": "5", "b_strategy": "0", "g": "250", "sc_threshold": "0"}


@pytest.mark.parametrize("shift", range(6))  # so that each kind of frame comes before the pause
@pytest.mark.parametrize("pyramid", ["none", "normal"])
def test_no_frame_that_is_shown_is_left_out_on_the_way(shift, pyramid, tmp_path):
    last = 60 + shift
    times_s = [k / 30 for k in range(last)] + [last / 30 + 4.0 + k / 30 for k in range(60)]
    path = write(tmp_path / "clip.mp4", times_s, B_FRAMES | {"b-pyramid": pyramid})
    whole = read_clip(path, fps=30.0)
    for start_s in (2.1, 3.7, 5.9, 6.5, 7.0):
        window = read_clip(path, start_s=start_s, duration_s=0.3, fps=30.0)
        first = round(start_s * 30)
        assert torch.equal(window.frames_TCHW, whole.frames_TCHW[first : first + 9])
        (together,) = read_windows(path, start_s, 0.3, 1, fps=30.0)
        assert torch.equal(together.frames_TCHW, window.frames_TCHW)


def test_frames_nobody_needs_are_not_decoded(tmp_path, monkeypatch):
    path = write(tmp_path / "clip.mp4", [k / 30 for k in range(240)], B_FRAMES)
    counts = {}
    real = reader.decoded
    for sparsely in (True, False):
        count = []
        monkeypatch.setattr(reader, "ATTEMPTS", ((0.4, sparsely),))
        monkeypatch.setattr(reader, "decoded", lambda *a, c=count: c.extend(f := real(*a)) or f)
        clip = read_clip(path, start_s=6.5, duration_s=0.5)
        counts[sparsely] = len(count), clip
    assert counts[True][0] < 0.6 * counts[False][0]
    assert torch.equal(counts[True][1].frames_TCHW, counts[False][1].frames_TCHW)


def test_a_clip_owns_no_more_memory_than_its_frames(tmp_path):
    path = write(tmp_path / "clip.mp4", [k / 30 for k in range(90)], B_FRAMES)
    clips = [read_clip(path), read_clip(path, start_s=2.5, duration_s=9.0, fps=30.0)]
    clips += read_windows(path, 0.1, 0.7, 5, fps=30.0)[:-1]
    for clip in clips:
        stored = clip.frames_TCHW.untyped_storage().nbytes()
        assert stored == clip.frames_TCHW.numel()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc on this system")
def test_memory_stays_flat_over_many_windows(tmp_path):
    path = write(tmp_path / "clip.mp4", [k / 30 for k in range(240)], B_FRAMES)
    sizes = []
    for turn in range(120):
        found = read_windows(path, (turn % 5) / 10, 0.7, 10, fps=30.0, size=(32, 32))
        assert len(found) == 10
        del found
        if turn in (40, 119):
            gc.collect()
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]))  # pages in memory
    assert sizes[1] < 1.05 * sizes[0]
