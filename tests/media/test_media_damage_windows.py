"""Law: damage costs the windows that need it, and no other; all others are those of the whole
film."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from mmpredict.media import MediaError, read_clip, read_windows
from tests.media.test_media_windows import GRID, Film, assert_same, check

KEYS = {"bf": "3", "b_strategy": "0", "g": "10", "sc_threshold": "0"}  # three a second
FILM = {"video_s": (0.0, 10.0), "sound_s": (0.0, 10.0), "video_options": KEYS}
KINDS = {
    "mp4": {},
    "mkv": {"name": "film.mkv"},
    "mkv_flac": {"name": "film.mkv", "audio_codec": "flac"},
    "mkv_mp3": {"name": "film.mkv", "audio_codec": "libmp3lame"},
    "m4a": {"name": "film.m4a", "video_s": None},
}


def spoil(path: Path, kind: str, at_s: float) -> None:
    """Overwrite the packet at a time."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        packets = [p for p in container.demux(stream) if p.pts is not None]
        worst = min(packets, key=lambda p: abs(float(p.pts * p.time_base) - at_s))
        content = bytes(worst)
    data = bytearray(path.read_bytes())
    place = data.index(content)
    data[place + 4 : place + len(content)] = b"\xff" * (len(content) - 4)
    path.write_bytes(data)


CASES = [(made, stream, 3.8) for made in KINDS for stream in ("video", "audio")]
CASES = [case for case in CASES if case[:2] != ("m4a", "video")]  # it has no picture
CASES += [("mp4", "video", 3.1), ("mp4", "audio", 3.1)]


@pytest.mark.parametrize(("made", "stream", "at_s"), CASES)
def test_one_damaged_packet_costs_one_window(made, stream, at_s, tmp_path):
    path = Film(**FILM | KINDS[made]).write(tmp_path)
    healthy = read_windows(path, 0.0, 1.0, 10, **GRID)
    spoil(path, stream, at_s)
    found = check(path, 0.0, 1.0, 10, **GRID)
    # MP3 takes up to a quarter of a second to forget.
    lost = [3, 4] if stream == "audio" and made == "mkv_mp3" else [3]
    assert [k for k, window in enumerate(found) if isinstance(window, MediaError)] == lost
    for k in set(range(10)) - set(lost):
        assert_same(found[k], healthy[k])


@pytest.mark.parametrize("fps", [10.0, None])
def test_windows_off_the_grid_of_key_frames(fps, tmp_path):
    """Behind the damage a window is whole from the next key frame on, wherever it starts."""
    path = Film(**FILM).write(tmp_path)
    options = GRID | {"fps": fps}
    starts = [0.5 + 0.13 * k for k in range(40)]
    healthy = [read_clip(path, start_s=s, duration_s=0.4, **options) for s in starts]
    spoil(path, "video", 1.5)
    for start_s, wanted in zip(starts, healthy, strict=True):
        needs_it = start_s + 0.4 > 1.36 and start_s < 5 / 3 - 0.05
        try:
            found = read_clip(path, start_s=start_s, duration_s=0.4, **options)
        except MediaError as error:
            assert 1.0 < start_s < 5 / 3, error
            assert "at 1." in error.reason
        else:
            assert_same(found, wanted)
            assert not needs_it or start_s < 1.2


def test_a_picture_made_from_a_damaged_one_is_never_shown(tmp_path):
    """One key frame in all, and no frame that is not the next one's reference."""
    path = Film(**FILM | {"video_options": KEYS | {"g": "400", "bf": "0"}}).write(tmp_path)
    spoil(path, "video", 3.5)
    found = check(path, 0.0, 1.0, 10, **GRID)
    assert [isinstance(window, MediaError) for window in found] == [False] * 3 + [True] * 7


def test_damage_in_the_first_packet_spoils_what_follows_until_a_key_frame(tmp_path):
    path = Film(**FILM).write(tmp_path)
    healthy = read_windows(path, 0.0, 1.0, 10, **GRID)
    spoil(path, "video", 0.0)
    found = check(path, 0.0, 1.0, 10, **GRID)
    assert isinstance(found[0], MediaError)
    for k in range(1, 10):
        assert_same(found[k], healthy[k])
