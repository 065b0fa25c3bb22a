"""The front door of the world: a scene is a name for a clip; `record` films it.

Everything is a pure function of (seed, family, condition, split): the same bytes in every process.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from ..schema import Clip
from .captions import write_captions
from .condition import SPLITS, Condition
from .families import FAMILIES, build_stage
from .physics import Motion, simulate
from .questions import Question, ask_questions
from .render import render
from .sound import synthesise
from .stage import ObjectSpec, Stage, random_for
from .truth import Event, History, Truth, frame_truth, read_history


@dataclass(frozen=True)
class Recording:
    """A clip, the truth about it, and questions with answers."""

    clip: Clip
    truth: Truth
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Film:
    """How a scene is filmed; see `Scene.record`."""

    height_width: tuple[int, int]
    fps: float = 8.0
    sample_rate: int = 16000
    channels: int = 2
    frames: bool = True
    sound: bool = True

    def __post_init__(self) -> None:
        if min(self.height_width) < 16 or self.fps <= 0 or self.sample_rate < 4000:
            raise ValueError(
                f"size={self.height_width} px, fps={self.fps} and sample_rate={self.sample_rate} "
                "Hz: needs at least 16 px, more than 0 frames per second and 4000 Hz"
            )
        if self.channels not in (1, 2):
            raise ValueError(f"channels={self.channels}; the world is heard with 1 or 2")


@dataclass(frozen=True)
class Play:
    """What happens on a stage, and what is heard of it.

    Args:
        motion, history: where everything is at every step, and the events.
        sounding: the events that are heard; None for all of the history.
        voices: things that are not there but ring; see `synthesise`.
    """

    stage: Stage
    motion: Motion
    history: History
    sounding: tuple[Event, ...] | None = None
    voices: tuple[ObjectSpec, ...] = ()


@dataclass(frozen=True)
class Scene:
    """One scene of the world.

    Args:
        seed: number of the scene.
        family: one of FAMILIES.
        condition: the user's knobs.
        split: one of SPLITS; decides which compositions are allowed.
    """

    seed: int
    family: str
    condition: Condition = field(default_factory=Condition)
    split: str = "train"

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"family={self.family!r} is not one of {', '.join(FAMILIES)}")
        if self.split not in SPLITS:
            raise ValueError(f"split={self.split!r} is not one of {', '.join(SPLITS)}")

    @property
    def name(self) -> str:
        return f"world/{self.split}/{self.family}/{self.seed}"

    def record(
        self,
        size: int | tuple[int, int] = 64,
        fps: float = 8.0,
        sample_rate: int = 16000,
        channels: int = 2,
        *,
        frames: bool = True,
        sound: bool = True,
    ) -> Recording:
        """Film the scene.

        Args:
            size: height and width of the frames, px.
            fps: frames per second; frame k shows the moment k / fps.
            sample_rate: Hz.
            channels: 2 for both ears, 1 for their mean.
            frames, sound: False leaves the stream out of the clip and saves its cost.

        Returns:
            The clip with its truth. Events, captions and positions do not depend on size and fps.
        """
        height_width = (size, size) if isinstance(size, int) else size
        film = Film(height_width, fps, sample_rate, channels, frames, sound)
        stage = self.stage()
        motion = simulate(stage)
        history = read_history(stage, motion)
        return self.film(stage, motion, history, film)

    @property
    def key(self) -> str:
        """What the scene's random choices depend on."""
        return f"{self.seed}/{self.family}/{self.split}"

    def stage(self) -> Stage:
        """What stands there before the first moment."""
        return build_stage(self.seed, self.family, self.split, self.condition)

    def film(
        self,
        stage: Stage,
        motion: Motion,
        history: History,
        film: Film,
        *,
        sounding: tuple[Event, ...] | None = None,
    ) -> Recording:
        """Film what happened.

        Args:
            motion, history: of the stage; `record` takes those that physics gives.
            sounding: the events that are heard; None for all that happened.
        """
        play = Play(stage, motion, history, sounding)
        return film_play(play, film, self.condition, self.key, self.name)


def film_play(play: Play, film: Film, condition: Condition, key: str, name: str) -> Recording:
    """Film what happened.

    Args:
        key: what painting, noise and words depend on.
        name: of the clip.
    """
    stage, motion, history, fps = play.stage, play.motion, play.history, film.fps
    times_T = np.arange(max(1, round(condition.seconds * fps))) / fps
    picture, visible_TN = render(stage, motion, times_T, film.height_width, key, paints=film.frames)
    if film.frames and condition.camera_noise > 0:
        picture = _add_camera_noise(picture, condition.camera_noise, key)
    waveform = None
    if film.sound:
        waveform = synthesise(
            stage,
            motion,
            history.events if play.sounding is None else play.sounding,
            key,
            sample_rate=film.sample_rate,
            room_tone_db=condition.room_tone_db,
            voices=play.voices,
        )
        waveform = waveform if film.channels == 2 else waveform.mean(0, keepdims=True)
    questions = ask_questions(stage, motion, history, key)
    truth = frame_truth(stage, motion, history, times_T, visible_TN)
    clip = Clip(
        frames_TCHW=_to_TCHW(picture) if film.frames else None,
        times_s=truth.times_s if film.frames else None,
        waveform_CS=torch.from_numpy(waveform) if film.sound else None,
        sample_rate=film.sample_rate if film.sound else None,
        texts=write_captions(stage, motion, history, questions, condition, key),
        name=name,
    )
    return Recording(clip, truth, questions)


def _to_TCHW(picture_THWC: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture_THWC.transpose(0, 3, 1, 2)))


def _add_camera_noise(picture_THWC: np.ndarray, level: float, key: str) -> np.ndarray:
    noise = random_for("camera", key).standard_normal(picture_THWC.shape, np.float32)
    return np.clip(np.rint(picture_THWC + level * noise), 0, 255).astype(np.uint8)


def draw_scene(
    index: int,
    *,
    split: str,
    seed: int = 0,
    families: tuple[str, ...] = FAMILIES,
    condition: Condition | None = None,
) -> Scene:
    """The index-th scene of a split. Families take turns; splits share no scene.

    Args:
        seed: another seed is another world of scenes.
    """
    if not families:
        raise ValueError(f"families is empty; name one or more of {', '.join(FAMILIES)}")
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not one of {', '.join(SPLITS)}")
    number = int(random_for("scene", seed, split, index).integers(2**62))
    family = families[index % len(families)]
    return Scene(number, family, condition or Condition(), split)
