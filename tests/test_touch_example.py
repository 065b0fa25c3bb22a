"""A modality that the package does not have, by one short file, into a checkpoint that lacks it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datamodules import Loading
from examples.touch import HZ, Touch, forces
from mmpredict.tokens import Codecs, MelChunks, Patches, TextTokens
from mmpredict.training.carried import Carried
from mmpredict.world import Scene
from mmpredict.world.physics import STEP_HZ, simulate
from tests.training.test_warm_start import model

ROOT = Path(__file__).parents[1]
AUDIO, VIDEO = MelChunks(sample_rate=8000, num_mels=8, hops=2), Patches(16, patch=8, fps=8)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene(7, "roll_and_bounce")


def test_the_file_is_short_and_no_part_of_the_package():
    lines = (ROOT / "examples/touch.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 80
    for folder in ("mmpredict", "datamodules"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "touch.py" not in path.read_text(encoding="utf-8")


def test_forces_are_those_of_the_physics(scene: Scene):
    series, motion = forces(scene), simulate(scene.stage())
    assert series.values_TD.shape == (50, 2) and bool((series.values_TD >= 0).all())
    newtons = torch.expm1(series.values_TD.double()).sum() / HZ
    assert float(newtons) == pytest.approx(float(motion.contacts.impulse_E.sum()), rel=1e-4)
    # What rests on the floor presses with its weight: m g, as long as it lies.
    assert float(series.values_TD[:, 0].median()) > 0
    first = motion.contacts.step_E[motion.contacts.first_E]
    assert len(first) and float(first.max()) / STEP_HZ <= scene.condition.seconds


def test_a_clip_is_seen_and_felt(scene: Scene):
    data = Touch(audio=AUDIO, video=VIDEO, text=TextTokens())
    clip = data.clip(scene)
    assert clip.frames_TCHW is not None and "touch" in clip.series
    tokens = data.codecs.encode(clip)
    assert [t.modality for t in tokens] == [0, 1, 2, 3]
    assert data.layout.streams[-1].name == "touch"


def test_into_a_checkpoint_that_has_never_felt():
    """Everything old is taken; touch begins anew, at its copy-last baseline."""
    old = Codecs(audio=AUDIO, video=VIDEO, text=TextTokens())
    loading = Loading(context_length=400, rows=1, statistics_documents=2)
    data = Touch(audio=AUDIO, video=VIDEO, text=TextTokens(), train_scenes=4, loading=loading)
    data.setup()
    first, second = model(old, 1), model(data.codecs, 2)
    plan = Carried(first.state_dict(), old).plan(second, data.codecs)
    assert plan.share == 1.0 and not plan.reshaped and not plan.left
    assert all("touch" in name for name in plan.anew) and plan.new_statistics == ("touch",)
    second.set_statistics(data.statistics())
    second.load_state_dict(plan.tensors, strict=False)
    assert float(second.embed.standardise["touch"].mean[0]) > 0
    assert torch.equal(second.trunk.norm.weight, first.trunk.norm.weight)
