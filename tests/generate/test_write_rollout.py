"""A rollout comes back from its files, and the strip shows what there is."""

import struct
from dataclasses import replace

import av
import pytest
import torch

from mmpredict.generate import Rollout, rollout, strip, write_rollout
from mmpredict.generate.render import timed_line
from mmpredict.media import read_clip
from mmpredict.schema import Clip, TextPiece
from tests.generate.small import make_prompt

NAMES = ("audio", "video", "text")


def suffixes(paths) -> list[str]:
    return [path.suffix for path in paths]


def test_all_four_files_are_written_and_read_back(all_three, tmp_path):
    result = rollout(*all_three, make_prompt(*NAMES), seconds=0.5, steps=1, max_text_run=2)
    out = tmp_path / "new" / "x.mp4"
    paths = write_rollout(result, out)
    assert [path.name for path in paths] == ["x.mp4", "x.wav", "x.txt", "x.png"]
    assert sorted(path.name for path in out.parent.iterdir()) == sorted(p.name for p in paths)
    with av.open(str(out)) as container:
        assert [s.type for s in container.streams] == ["video", "audio", "subtitle"]
        assert container.streams.video[0].height == 256
    read = read_clip(out, size=(16, 16), sample_rate=8000)
    assert torch.allclose(read.times_s[:12], torch.arange(12).double() / 8, atol=1e-3)
    apart = (read.frames_TCHW[:12].int() - result.clip.frames_TCHW.int()).abs().float()
    assert apart.mean() < 12  # coloured noise is the worst there is for H.264
    sound = read_clip(tmp_path / "new" / "x.wav")
    assert sound.waveform_CS.shape == (2, 8000 + 13 * 320)  # the last chunk begins before 1.5 s
    assert torch.allclose(sound.waveform_CS, result.clip.waveform_CS, atol=1e-4)
    lines = (tmp_path / "new" / "x.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "[  0.100 -   0.600] a ball" and len(lines) == len(result.clip.texts)


def test_the_png_is_the_strip(all_three, tmp_path):
    result = rollout(*all_three, make_prompt(*NAMES), seconds=0.5, steps=1)
    path = write_rollout(result, tmp_path / "x")[-1]
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    image = strip(result.clip, prompt_end_s=result.prompt_end_s)
    assert image.dtype == torch.uint8 and tuple(image.shape) == (height, width, 3)
    assert width == 1600


def test_only_what_exists_is_written(tmp_path):
    for names, expected in {
        ("text",): [".txt"],
        ("audio",): [".wav", ".png"],
        ("video",): [".mp4", ".png"],
        ("audio", "text"): [".wav", ".txt", ".png"],
        ("video", "text"): [".mp4", ".txt", ".png"],
    }.items():
        result = Rollout(make_prompt(*names), 0.5)
        assert suffixes(write_rollout(result, tmp_path / "-".join(names))) == expected


def test_words_said_of_a_video_can_be_read_in_the_mp4(tmp_path):
    said = (TextPiece("it falls", 0.875, 0.875),)
    clip = replace(make_prompt("video"), texts=said)
    (path, *_) = write_rollout(Rollout(clip, 1.0), tmp_path / "x.mp4")
    with av.open(str(path)) as container:
        assert container.streams.subtitles[0].duration / 1e6 == pytest.approx(1.875, abs=0.01)
    read = read_clip(path)
    assert float(read.times_s[-1]) == pytest.approx(1.75, abs=1e-3)  # the last frame is held


def test_sound_that_starts_late_keeps_its_time_in_the_wav(tmp_path):
    clip = replace(make_prompt("audio"), waveform_start_s=0.5)
    (path, *_) = write_rollout(Rollout(clip, 0.5), tmp_path / "x.wav")
    waveform = read_clip(path).waveform_CS
    assert waveform.shape == (2, 12000) and not waveform[:, :4000].any()


@pytest.mark.parametrize("names", [("video",), ("audio",), NAMES], ids="-".join)
def test_strip_has_the_asked_width_and_a_panel_for_each_stream(names):
    image = strip(make_prompt(*names), prompt_end_s=0.5, width=800, max_frames=4)
    assert image.shape[1:] == (800, 3)
    heights = {("video",): 256, ("audio",): 272, NAMES: 490}
    assert abs(image.shape[0] - heights[names]) < 30


def test_strip_shows_the_frames_and_copes_with_any_text():
    red = torch.zeros(8, 3, 16, 16, dtype=torch.uint8)
    red[:, 0] = 255
    texts = [TextPiece("$x$ \x00 \u4e2d \ufffd", 0.1 * k, 0.1 * k) for k in range(12)]
    clip = Clip(red, torch.arange(8).double() / 8, texts=(TextPiece("untimed"), *texts))
    image = strip(clip, width=600)
    assert ((image == torch.tensor([255, 0, 0])).all(-1)).float().mean() > 0.1


def test_a_strip_of_nothing_and_a_wrong_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="needs frames or sound"):
        strip(Clip(texts=(TextPiece("a"),)))
    with pytest.raises(ValueError, match=r"\.avi is not written; give .*x\.mp4"):
        write_rollout(Rollout(make_prompt("video"), 0.5), tmp_path / "x.avi")
    assert not list(tmp_path.iterdir())


def test_a_text_line_has_its_times():
    assert timed_line(TextPiece("a\nb\x07")) == "a b\ufffd"
    assert timed_line(TextPiece("a", 1.0, 2.5)) == "[  1.000 -   2.500] a"
