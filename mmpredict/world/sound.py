"""Motion to stereo sound: struck objects ring, rolling and sliding ones rustle, the room hums.

Pitch comes from size and material, level from impulse and distance, and the ears differ in level
and in time of arrival by where the source is. Mixing is direct: one template per struck object,
added at the sample of the event.
Shapes: C channels (left, right), S samples, L samples of a template, P points of an envelope.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from .physics import STEP_HZ, Motion
from .stage import FLOOR, LANES_Z, ObjectSpec, Stage, random_for
from .truth import Event

MAX_LAG_S = 0.66e-3  # time of arrival between the ears for a sound from the side
_MAX_LEVEL_DB = 14.0  # level difference between the ears for a sound from the side
_NEAR = LANES_Z[0]  # m: distance of level 1
# Per material: pitch of an object of 1 m (Hz), partials as ratio : level : decay (1/s).
_RING = {
    "rubber": (95.0, ((1.0, 1.0, 26.0), (1.6, 0.35, 40.0))),
    "wood": (260.0, ((1.0, 1.0, 22.0), (2.42, 0.6, 36.0), (4.1, 0.3, 60.0))),
    "metal": (520.0, ((1.0, 0.8, 7.0), (2.76, 0.6, 10.0), (5.4, 0.4, 16.0), (8.9, 0.2, 26.0))),
}
_RING_S = 0.4  # length of a template
_SIZE_STEPS = 24  # templates per octave of size: finer than a semitone
_STRIKE = 0.16  # level of an impulse of 1 kg m/s at the distance _NEAR
_IMPULSE_POWER = 0.6  # level grows more slowly than impulse, as in hearing
_RUB = 0.012  # level of an object that slides at 1 m/s
_RUB_HZ = 125  # envelope points per second
_NOISE_S = 4.0


def ears(x: float | np.ndarray, y: float | np.ndarray, z: float | np.ndarray) -> np.ndarray:
    """How a source is heard: its azimuth decides the difference, its distance the level.

    Args:
        x, y, z: place in metres, of any one shape; the ears are at the origin of x and z.

    Returns:
        (4, ...) gain left, gain right, delay left, delay right (seconds, from 0 up).
    """
    sine = x / np.hypot(x, z)
    level = _NEAR / np.sqrt(x * x + (y - 0.8) ** 2 + z * z)
    tilt = 10 ** (sine * _MAX_LEVEL_DB / 40)
    lag = sine * MAX_LAG_S
    return np.stack([level / tilt, level * tilt, np.maximum(lag, 0), np.maximum(-lag, 0)])


def ring(spec: ObjectSpec, sample_rate: int) -> np.ndarray:
    """(L,) float32 sound of one strike, level 1. Smaller objects sound higher."""
    size = math.sqrt(spec.width * spec.height)
    bucket = round(math.log2(size) * _SIZE_STEPS)
    return _ring(spec.material, bucket, sample_rate)


@lru_cache(maxsize=512)
def _ring(material: str, bucket: int, sample_rate: int) -> np.ndarray:
    pitch, partials = _RING[material]
    pitch = pitch * 2 ** (-bucket / _SIZE_STEPS)
    times_L = np.arange(int(_RING_S * sample_rate)) / sample_rate
    sound_L = np.zeros(len(times_L))
    for ratio, level, decay in partials:
        if ratio * pitch < 0.45 * sample_rate:
            wave_L = np.sin(2 * np.pi * ratio * pitch * times_L)
            sound_L += level * np.exp(-decay * times_L) * wave_L
    sound_L *= np.minimum(1, times_L * 2000)  # half a millisecond of attack: no click
    sound_L *= np.minimum(1, (_RING_S - times_L) * 50)
    return sound_L.astype(np.float32)


@lru_cache(maxsize=8)
def _thud(sample_rate: int) -> np.ndarray:
    """(L,) float32 what floor and walls add to a strike."""
    times_L = np.arange(int(0.08 * sample_rate)) / sample_rate
    fade_L = np.exp(-60 * times_L) * np.minimum(1, times_L * 1000)
    return (fade_L * np.sin(2 * np.pi * 70 * times_L)).astype(np.float32)


@lru_cache(maxsize=16)
def _noise(kind: str, sample_rate: int) -> np.ndarray:
    """float32 noise of RMS 1: "room" white, "roll" a rumble, "slide" a hiss."""
    low, high = {"room": (0, 1e9), "roll": (60, 350), "slide": (500, 2500)}[kind]
    samples = int(_NOISE_S * sample_rate)
    spectrum = np.fft.rfft(random_for("noise", kind, sample_rate).standard_normal(samples))
    hertz = np.fft.rfftfreq(samples, 1 / sample_rate)
    outside = np.maximum(low - hertz, 0) / 60 + np.maximum(hertz - high, 0) / 300
    spectrum *= np.exp(-outside)
    noise = np.fft.irfft(spectrum, samples)
    return (noise / noise.std()).astype(np.float32)


def synthesise(  # noqa: PLR0913 - all that is heard
    stage: Stage,
    motion: Motion,
    events: tuple[Event, ...],
    seed: int,
    *,
    sample_rate: int = 16000,
    room_tone_db: float = -60.0,
    voices: tuple[ObjectSpec, ...] = (),
) -> np.ndarray:
    """(2, S) float32 sound of a scene, left and right ear, between -1 and 1.

    Args:
        room_tone_db: RMS of the noise of the room, dB below full scale.
        voices: things that are not there but ring; events number them on from the objects.
    """
    samples = round(stage.seconds * sample_rate)
    rng = random_for("sound", seed)
    sound_CS = _room_tone(samples, sample_rate, rng, room_tone_db)
    for n in range(len(stage.objects)):
        _add_rubbing(sound_CS, stage, motion, n, sample_rate, rng)
    for event in events:
        if event.impulse > 0:
            _add_strike(sound_CS, (*stage.objects, *voices), event, sample_rate)
    return np.tanh(sound_CS, out=sound_CS)  # a soft limit


def _room_tone(
    samples: int, sample_rate: int, rng: np.random.Generator, level_db: float
) -> np.ndarray:
    noise, level = _noise("room", sample_rate), np.float32(10 ** (level_db / 20))
    return np.stack([_from(noise, rng, samples) * level for _ in range(2)])


def _from(noise: np.ndarray, rng: np.random.Generator, samples: int) -> np.ndarray:
    """A stretch of noise from a random place, repeated as often as needed."""
    start = int(rng.integers(len(noise)))
    if start + samples <= len(noise):
        return noise[start : start + samples]
    return np.resize(np.roll(noise, -start), samples)


def _add_strike(
    sound_CS: np.ndarray, ringing: tuple[ObjectSpec, ...], event: Event, sample_rate: int
) -> None:
    level = _STRIKE * event.impulse**_IMPULSE_POWER
    gain_left, gain_right, lag_left, lag_right = ears(*event.position)
    parts = [ring(ringing[event.a], sample_rate)]
    parts.append(ring(ringing[event.b], sample_rate) if event.b >= 0 else _thud(sample_rate))
    for part_L in parts:
        for channel, gain, lag in ((0, gain_left, lag_left), (1, gain_right, lag_right)):
            add_at(sound_CS[channel], part_L, (event.time_s + lag) * sample_rate, level * gain)


def add_at(sound_S: np.ndarray, part_L: np.ndarray, place: float, gain: float) -> None:
    """Add a sound at a place between samples, by straight lines between its own."""
    first = math.floor(place)
    share = place - first
    for start, weight in ((first, (1 - share) * gain), (first + 1, share * gain)):
        length = min(len(part_L), len(sound_S) - start)
        if length > 0 and weight:
            sound_S[start : start + length] += np.float32(weight) * part_L[:length]


def _add_rubbing(
    sound_CS: np.ndarray,
    stage: Stage,
    motion: Motion,
    n: int,
    sample_rate: int,
    rng: np.random.Generator,
) -> None:
    """What rolls rumbles, what slides hisses, in step with its speed."""
    spec, samples = stage.objects[n], sound_CS.shape[1]
    noise = _noise("roll" if spec.shape == "ball" else "slide", sample_rate)
    noise_S = _from(noise, rng, samples + int(2 * MAX_LAG_S * sample_rate) + 2)
    touching_K = _touches(motion, n)
    speed_K = np.abs(motion.state_KN6[:, n, 3]) * touching_K
    if speed_K.max() < 0.1:
        return
    block = sample_rate // _RUB_HZ
    points = -(-samples // block) + 1
    entry_P = np.minimum(np.arange(points) * block * STEP_HZ // sample_rate, len(speed_K) - 1)
    x_P, y_P = motion.state_KN6[entry_P, n, 0], motion.state_KN6[entry_P, n, 1]
    left_P, right_P, lag_left_P, lag_right_P = ears(x_P, y_P, spec.z)
    strength_P = _RUB * np.maximum(speed_K[entry_P] - 0.05, 0)
    # The lag steps from block to block; at this level the steps are not heard.
    for channel, gain_P, lag_P in ((0, left_P, lag_left_P), (1, right_P, lag_right_P)):
        envelope_S = _ramps((strength_P * gain_P).astype(np.float32), block)[:samples]
        shift_P = np.round((MAX_LAG_S - lag_P) * sample_rate).astype(np.int64)
        place_S = np.arange(samples) + np.repeat(shift_P[:-1], block)[:samples]
        sound_CS[channel] += envelope_S * noise_S[place_S]


def _touches(motion: Motion, n: int) -> np.ndarray:
    """(K,) 1 where the object touches the floor or another object."""
    contacts = motion.contacts
    touching_K = np.zeros(len(motion.state_KN6))
    mine_E = ((contacts.a_E == n) | (contacts.b_E == n)) & (contacts.b_E >= FLOOR)
    touching_K[contacts.step_E[mine_E] + 1] = 1.0
    touching_K[0] = touching_K[1]
    return touching_K


def _ramps(points_P: np.ndarray, block: int) -> np.ndarray:
    """Straight lines between points that are `block` samples apart."""
    share = (np.arange(block, dtype=np.float32) / block)[None]
    return (points_P[:-1, None] * (1 - share) + points_P[1:, None] * share).reshape(-1)
