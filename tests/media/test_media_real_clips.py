"""Real clips, where `examples/fetch_real_clips.py` has put them. They never travel with the
project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mmpredict.media import list_folder, probe, read_clip

FOLDER = Path(os.environ.get("MMPREDICT_REAL_CLIPS", "~/.cache/mmpredict/real_clips")).expanduser()


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER.is_dir(), reason="run examples/fetch_real_clips.py first")
def test_real_clips_are_read_whole_and_by_windows():
    paths = list(list_folder(FOLDER).media)
    assert paths
    for path in paths:
        info = probe(path)
        options = {"fps": 10.0, "size": (64, 64), "sample_rate": 16_000, "channels": 1}
        whole = read_clip(path, **options)
        if info.has_video:
            assert whole.frames_TCHW.shape[1:] == (3, 64, 64)
            assert whole.frames_TCHW.float().std() > 5  # a picture, not one colour
            assert abs(len(whole.frames_TCHW) / 10 - info.duration_s) < 0.5
        if info.has_audio:
            assert abs(whole.waveform_CS.shape[1] / 16_000 - info.duration_s) < 0.5
        if info.duration_s < 4:
            continue
        window = read_clip(path, start_s=3.0, duration_s=0.5, **options)
        if info.has_video:
            assert torch.equal(window.frames_TCHW, whole.frames_TCHW[30:35])
        if info.has_audio:
            sound = whole.waveform_CS[:, 48_000:56_000]
            assert (window.waveform_CS - sound).abs().max() < 0.02
