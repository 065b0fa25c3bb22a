"""examples/doom_probes.py: what is asked of Doom is true in Doom, and mirror images mirror it."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from mmpredict.media import read_clip
from mmpredict.probes.items import Suite
from mmpredict.schema import UserError

pytest.importorskip("vizdoom")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("doom_probes", ROOT / "examples/doom_probes.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def suite(example, tmp_path_factory) -> Suite:
    try:
        return example.record(tmp_path_factory.mktemp("doom"), "test", 12, 0)
    except UserError as error:
        if "OpenAL" not in str(error):
            raise
        pytest.skip("the machine has no OpenAL")


def test_mirror_images_have_the_other_answer(suite: Suite):
    groups: dict[str, list] = {}
    for item in suite.items:
        groups.setdefault(item.group, []).append(item)
    assert {"left_right", "sound_dir"} <= set(suite.families)
    for members in groups.values():
        one, other = members
        said = [item.choices[item.answer] for item in members]
        if one.family in ("left_right", "sound_dir"):
            assert sorted(said) == ["left", "right"]
        else:
            assert said[0] == said[1]
        if one.family == "nearer_farther":
            assert one.choices == other.choices[::-1]


def test_the_mirrored_files_are_mirrored(suite: Suite):
    name = next(name for name in suite.sources if not name.endswith("-m"))
    one, other = (suite.sources[n] for n in (name, f"{name}-m"))
    heard, swapped = (read_clip(f.audio, frames=False).waveform_CS for f in (one, other))
    assert torch.equal(heard.flip(0), swapped)
    assert heard.abs().max() > 0.01
    seen, flipped = (read_clip(f.video, sound=False).frames_TCHW.float() for f in (one, other))
    assert len(seen) == 16
    assert (seen.flip(-1) - flipped).abs().mean() < 3  # the video's compression is not symmetric


def test_the_only_monster_is_louder_on_its_side(suite: Suite):
    """The truth of the engine and its sound agree, which neither of them knows of the other."""
    agree = []
    for item in suite.items:
        if item.family == "sound_dir":
            files = suite.sources[item.evidence[0].source]
            left, right = read_clip(files.audio, frames=False).waveform_CS.square().mean(1).tolist()
            agree.append((right > left) == (item.choices[item.answer] == "right"))
    assert agree and sum(agree) >= 0.9 * len(agree)


def test_answers_of_count_are_equally_frequent(suite: Suite):
    counts = [item.answer for item in suite.items if item.family == "count"]
    assert len({counts.count(answer) for answer in set(counts)}) <= 1
