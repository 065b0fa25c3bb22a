"""Law: an image is a video of one frame that looks as it does in a viewer, and nothing in it is
trusted."""

from __future__ import annotations

import io
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest

from mmpredict.media import (
    IMAGE_SUFFIXES,
    Limits,
    MediaBytes,
    MediaError,
    list_folder,
    probe,
    read_clip,
)

RED, GREEN, BLUE, WHITE = (220, 0, 0), (0, 220, 0), (0, 0, 220), (255, 255, 255)
PNG_MARK = b"\x89PNG\r\n\x1a\n"


def quarters(height=24, width=32):
    """Four colours, so that every turn and mirror shows."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2], picture[: height // 2, width // 2 :] = RED, GREEN
    picture[height // 2 :, : width // 2], picture[height // 2 :, width // 2 :] = BLUE, WHITE
    return picture


def encoded(picture, codec, pixel_format, source_format="rgb24", **options):
    """One picture as FFmpeg's encoder writes it: the whole file for png and jpg."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=source_format)
    frame = frame.reformat(format=pixel_format)
    context = av.CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt = frame.width, frame.height, pixel_format
    context.time_base, frame.pts = Fraction(1, 25), 0
    context.options = options
    return b"".join(bytes(p) for p in [*context.encode(frame), *context.encode(None)])


def png(picture, pixel_format="rgb24", source_format="rgb24", **options):
    return encoded(picture, "png", pixel_format, source_format, **options)


def jpg(picture):
    return encoded(picture, "mjpeg", "yuvj444p")


def chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def exif(orientation, order="<"):
    mark = b"II" if order == "<" else b"MM"
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return mark + struct.pack(order + "HIH", 42, 8, 1) + entry + bytes(4)


def with_exif(data, orientation, order="<"):
    block = exif(orientation, order)
    if data.startswith(PNG_MARK):
        return data[:33] + chunk(b"eXIf", block) + data[33:]
    segment = b"Exif\0\0" + block
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


def picture_of(data, **options):
    clip = read_clip(MediaBytes("picture.png", data), **options)
    assert clip.times_s.tolist() == [0.0] and clip.waveform_CS is None
    return clip.frames_TCHW[0].permute(1, 2, 0).numpy()


def refusal(data, **options):
    with pytest.raises(MediaError) as caught:
        read_clip(MediaBytes("picture.png", data), **options)
    with pytest.raises(MediaError):
        probe(MediaBytes("picture.png", data), options.get("limits"))
    return caught.value.reason


def test_a_picture_is_a_clip_of_one_frame(tmp_path):
    for suffix, data in (
        (".png", png(quarters())),
        (".jpg", jpg(quarters())),
        (".jpeg", jpg(quarters())),
    ):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(data)
        info = probe(path)
        assert suffix in IMAGE_SUFFIXES and info.still and info.has_video and not info.has_audio
        assert (info.duration_s, info.width, info.height) == (0.0, 32, 24)
        for options in ({}, {"fps": 1.0}, {"fps": 30.0}, {"fps": 240.0, "duration_s": 5.0}):
            clip = read_clip(path, **options)
            assert clip.times_s.tolist() == [0.0] and clip.name == path.name
        with pytest.raises(MediaError, match="nothing to read from 1 s on"):
            read_clip(path, start_s=1.0)
        with pytest.raises(MediaError, match="no sound stream"):
            read_clip(path, frames=False)
    assert [path.name for path in list_folder(tmp_path).media] == ["a.jpeg", "a.jpg", "a.png"]


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    "pixel_format", ["rgb24", "rgba", "rgb48be", "rgba64be", "gray", "gray16be", "ya8", "ya16be"]
)
def test_every_kind_of_png_keeps_its_pixels(pixel_format, interlaced):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (13, 18, 3), dtype=np.uint8)
    if "gray" in pixel_format or "ya" in pixel_format:
        picture[:] = picture[..., :1]
    data = png(picture, pixel_format, flags="+ildct" if interlaced else "0")
    assert data[28] == interlaced
    found = picture_of(data)
    # grey from RGB is rounded by the converter of this test
    assert np.abs(found.astype(int) - picture).max() <= (0 if "rgb" in pixel_format else 1)


def test_palettes_and_transparency_lie_on_white():
    levels = bytes([*RED, *BLUE, 9, 9, 9])
    rows = b"".join(b"\0" + bytes([0, 1, 2, 2]) for _ in range(4))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 3, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    plain = PNG_MARK + header + chunk(b"PLTE", levels) + body
    assert picture_of(plain)[0].tolist() == [[*RED], [*BLUE], [9, 9, 9], [9, 9, 9]]
    clear = PNG_MARK + header + chunk(b"PLTE", levels) + chunk(b"tRNS", bytes([255, 255, 0])) + body
    assert picture_of(clear)[0].tolist() == [[*RED], [*BLUE], [255] * 3, [255] * 3]
    half = np.zeros((4, 4, 4), np.uint8)
    half[..., 0], half[..., 3] = 200, 51
    assert picture_of(png(half, "rgba", "rgba"))[0, 0].tolist() == [244, 204, 204]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("write", [png, jpg])
def test_the_orientation_of_a_camera_is_undone(write, order):
    upright = quarters()
    stored = {  # what a camera held so would store, by EXIF's table
        1: upright,
        2: upright[:, ::-1],
        3: np.rot90(upright, 2),
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright.transpose(1, 0, 2), 2),
        8: np.rot90(upright, -1),
    }
    for number, picture in stored.items():
        data = with_exif(write(picture), number, order)
        info = probe(MediaBytes("a.jpg", data))
        assert (info.height, info.width) == upright.shape[:2]
        found = picture_of(data)
        assert found.shape == upright.shape
        assert np.abs(found.astype(int) - upright).max() < 12
    small = picture_of(with_exif(write(stored[6]), 6), size=(8, 8))
    assert np.abs(small[1, 1].astype(int) - RED).max() < 12
    for nonsense in (0, 9, 4096):
        assert picture_of(with_exif(write(upright), nonsense)).shape == upright.shape


def test_jpgs_of_all_kinds_look_like_in_a_viewer():
    pillow = pytest.importorskip("PIL.Image")
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    picture = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], ramp[::-1, None]), -1)
    image = pillow.fromarray(picture)
    for mode, options in (
        ("RGB", {}),
        ("RGB", {"progressive": True}),
        ("RGB", {"subsampling": 2}),
        ("L", {}),
        ("L", {"progressive": True}),
        ("CMYK", {}),
    ):
        file = io.BytesIO()
        image.convert(mode).save(file, "JPEG", quality=95, **options)
        seen = np.asarray(pillow.open(file).convert("RGB")).astype(int)
        difference = np.abs(picture_of(file.getvalue()) - seen)
        assert difference.mean() < 1.5, (mode, options)


def test_limits_come_before_the_decoder():
    pixels = Limits(max_pixels=500)
    for data in (png(quarters()), jpg(quarters())):
        assert "768 pixels a frame, over the limit of 500" in refusal(data, limits=pixels)
        assert "Limits.max_bytes" in refusal(data, limits=Limits(max_bytes=50))


def test_a_broken_picture_is_refused():
    for write, wanted in ((png, "the png"), (jpg, "jpg")):
        data = write(quarters())
        for end in (9, 20, len(data) // 2, len(data) - 3):
            assert wanted in refusal(data[:end])
    flipped = bytearray(png(quarters()))
    flipped[45] ^= 4
    assert "wrong checksum" in refusal(bytes(flipped))
    assert "without a header" in refusal(PNG_MARK + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    assert "how large it is" in refusal(jpg(quarters()).replace(b"\xff\xc0", b"\xff\xe9", 1))


def test_notes_in_a_png_never_reach_the_decoder():
    # A note that inflates to a gigabyte, and a colour profile of nonsense.
    bomb = zlib.compressobj(9)
    note = bomb.compress(bytes(1 << 20)) + bomb.flush()
    data = png(quarters())
    extra = chunk(b"zTXt", b"k\0\0" + note) + chunk(b"iCCP", b"p\0\0" + note)
    assert np.array_equal(picture_of(data[:33] + extra + data[33:]), quarters())


def test_an_animated_png_is_read_as_its_first_picture():
    data = png(quarters())
    animated = data[:33] + chunk(b"acTL", struct.pack(">II", 2, 0)) + data[33:]
    clip = read_clip(MediaBytes("a.png", animated))
    assert len(clip.frames_TCHW) == 1 and "its first picture is read" in str(clip.notices)


def test_the_content_counts_and_not_the_name(tmp_path, recording):
    film = recording(length_s=0.2, flashes_s=()).write(tmp_path)
    renamed = film.rename(tmp_path / "film.png")
    assert len(read_clip(renamed).frames_TCHW) == 6 and not probe(renamed).still
    (tmp_path / "picture.mp4").write_bytes(png(quarters()))
    assert probe(tmp_path / "picture.mp4").still
