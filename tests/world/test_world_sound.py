"""Laws of the world's sound: where, when, how high and how loud."""

from __future__ import annotations

import numpy as np
import pytest

from mmpredict.world import FAMILIES, draw_scene
from mmpredict.world.physics import simulate
from mmpredict.world.sound import MAX_LAG_S, ears, ring, synthesise
from mmpredict.world.stage import ObjectSpec, Stage
from mmpredict.world.truth import read_history

RATE = 16000


def ball(x: float, *, width: float = 0.5, lane: int = 0, material: str = "metal") -> ObjectSpec:
    return ObjectSpec("red", "ball", material, width, width, lane, x, 1.6)


def heard(spec: ObjectSpec) -> tuple[np.ndarray, float]:
    """The sound of a falling object in a silent room, and when it meets the floor."""
    stage = Stage((spec,), 1.2)
    motion = simulate(stage)
    events = read_history(stage, motion).events
    sound_CS = synthesise(stage, motion, events, 0, sample_rate=RATE, room_tone_db=-200.0)
    return sound_CS, next(e.time_s for e in events if e.kind == "bounce")


def pitch(sound_S: np.ndarray) -> float:
    """Frequency of the strongest partial above the thud of the floor, Hz."""
    spectrum = np.abs(np.fft.rfft(sound_S))
    hertz = np.fft.rfftfreq(len(sound_S), 1 / RATE)
    return float(hertz[np.argmax(spectrum * (hertz > 150))])


@pytest.mark.parametrize("x", [-0.9, 0.9])
def test_nearer_ear_is_louder_and_earlier(x):
    sound_CS, time_s = heard(ball(x))
    start = round(time_s * RATE)
    left, right = sound_CS[:, start : start + 2000]
    near, far = (left, right) if x < 0 else (right, left)
    assert np.square(near).sum() > 1.3 * np.square(far).sum()
    match = [float(near[20:-20] @ far[20 + lag : len(far) - 20 + lag]) for lag in range(-20, 21)]
    assert 0 < np.argmax(match) - 20 <= MAX_LAG_S * RATE + 1


def test_mirrored_source_swaps_the_ears():
    gains = ears(0.7, 0.3, 3.0)
    mirrored = ears(-0.7, 0.3, 3.0)
    assert gains == pytest.approx(mirrored[[1, 0, 3, 2]])
    left_CS, right_CS = heard(ball(-0.6))[0], heard(ball(0.6))[0]
    assert left_CS == pytest.approx(right_CS[::-1], abs=1e-4)


def test_straight_ahead_sounds_the_same_in_both_ears():
    sound_CS, _ = heard(ball(0.0))
    assert sound_CS[0] == pytest.approx(sound_CS[1], abs=1e-8)


@pytest.mark.parametrize("material", ["wood", "metal"])
def test_larger_objects_sound_lower(material):
    pitches = [pitch(heard(ball(0.0, width=w, material=material))[0][0]) for w in (0.4, 0.6, 0.8)]
    assert pitches[0] > 1.2 * pitches[1] > 1.3 * pitches[2]


def test_materials_differ_in_pitch():
    pitches = [pitch(ring(ball(0.0, material=m), RATE)) for m in ("wood", "metal")]
    assert pitches[1] > 1.5 * pitches[0]


def test_sound_starts_at_its_event():
    for x in (-0.5, 0.0, 0.8):
        sound_CS, time_s = heard(ball(x))
        loud = np.flatnonzero(np.abs(sound_CS).max(0) > 0.01)[0] / RATE
        assert 0 <= loud - time_s < 0.002


def test_farther_and_softer_impacts_are_quieter():
    near, far = (np.abs(heard(ball(0.0, lane=lane))[0]).max() for lane in (0, 2))
    assert near > 1.2 * far
    low = ObjectSpec("red", "ball", "metal", 0.5, 0.5, 0, 0.0, 0.6)
    assert near > 1.2 * np.abs(heard(low)[0]).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_clips_and_the_room_is_never_silent(family):
    for index in range(6):
        sound = draw_scene(index, split="test_speed", families=(family,)).record(frames=False)
        waveform_CS = sound.clip.waveform_CS.numpy()
        assert waveform_CS.dtype == np.float32 and waveform_CS.shape == (2, 2 * RATE)
        assert np.abs(waveform_CS).max() < 0.999
        level = np.sqrt(np.square(waveform_CS).reshape(2, -1, 640).mean(-1))
        assert level.min() > 10 ** (-62 / 20)


def test_one_channel_is_the_mean_of_both():
    scene = draw_scene(3, split="train")
    both, one = (scene.record(frames=False, channels=c).clip.waveform_CS for c in (2, 1))
    assert one.numpy() == pytest.approx(both.numpy().mean(0, keepdims=True), abs=1e-6)
