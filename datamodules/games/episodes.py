"""Games that are played as they are needed. In: an index. Out: a stretch of play as a document.

A game goes in steps. After n steps it is in state n, at n / step_hz seconds: that is when its
picture is shown and when the sound of step n begins. So what is seen and heard of one cause starts
at one instant. An action of time t works from t on: the first picture that it changes is
shown after t, and the first sound of it starts after t. Frames show the last finished state and
actions wait for the next step, so this also holds at frame rates that do not divide step_hz.

Every document starts from a reset of its own, with its own seed and its own number of steps before
it: any of them can be made at once, by any process, in any order, with the same result.

Shapes: N steps, T frames, A actions, D values of an action, S samples, C channels.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.base import ClipDataModule, Split
from datamodules.feed.documents import ClipDocuments, Documents, Skipped
from datamodules.feed.loading import Loading
from datamodules.games.screens import Fit, action_steps, count_within, frame_steps
from mmpredict.media.audio import resample
from mmpredict.schema import Clip, Series, TextPiece
from mmpredict.tokens import MelChunks, Patches, TextTokens, Vectors

SPLITS = ("train", "val", "test")
POLICIES = ("random", "noop")
ACTION = "action"  # the series in the clip
DEFAULT_HZ = 8.0  # of frames and actions where the recipe has no such stream
CORPUS_CLIPS = 100
ATTEMPTS = 8  # each with half the steps before the start, so that short episodes are met as well
WANTED_SHARE = 0.5  # of the clip's length, below which another attempt is made
LEAST_SHARE = 0.1  # of it, below which the longest of the attempts is no document
TAIL_STEPS = 2  # more sound than is kept, for the filter that resamples it
WORD_S = 0.2  # how long a word of the text takes
PATIENCE_S = 1.0  # what cannot be said so soon after it happened is not said


@dataclass(frozen=True)
class Play:
    """How the games are played.

    Args:
        clip_seconds: length of a document; it is shorter where the episode ends.
        warmup_seconds: [least, most] played between the reset and the start of the document.
        hold: [least, most] steps that an action is held; in a document, up to the next time at
            which the recipe looks at actions.
        policy: "random" draws actions; "noop" does nothing.
        fit: how a screen becomes a picture of another shape; see `Fit`.
        repeat: every epoch shows the same stretches; false draws new ones for ever.
        sizes: documents of each split.
    """

    clip_seconds: float
    warmup_seconds: tuple[float, float]
    hold: tuple[int, int]
    policy: Literal["random", "noop"]
    fit: Literal["crop", "squeeze"]
    repeat: bool
    sizes: Mapping[Split, int]

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"data.policy={self.policy!r} must be one of {', '.join(POLICIES)}")
        least, most = self.warmup_seconds
        if not 0 <= least <= most:
            raise ValueError(f"data.warmup_seconds={[least, most]} must be [least, most] from 0 up")
        if not 1 <= self.hold[0] <= self.hold[1]:
            raise ValueError(f"data.hold={list(self.hold)} must be [least, most] from 1 step up")
        if self.clip_seconds <= 0:
            raise ValueError(f"data.clip_seconds={self.clip_seconds:g} must be positive")
        for split, size in self.sizes.items():
            if size < 1:
                raise ValueError(f"data.{split}_clips={size} must be at least 1")


@dataclass(frozen=True)
class Plan:
    """All that is put into a game for one document.

    Args:
        world: the game or scenario.
        name: of the document, for messages.
        seed: of the game's own chance.
        warmup: steps before the document starts.
        presses_ND: uint8, the action of every step.
    """

    world: str
    name: str
    seed: int
    warmup: int
    presses_ND: NDArray[np.uint8]


@dataclass(frozen=True)
class Stretch:
    """What a game gave for a plan.

    Args:
        plan: what went in.
        steps: states from the start of the document on, before the episode ended.
        screens_THWC: uint8 native screens, one for every frame.
        sound_CS: float32 in [-1, 1], from `Episodes.lead_steps` before the start.
        sound_hz: its rate.
        title: the game in words.
        events: (seconds from the start, what happened), in order of time.
        truth: what else the game knows; see the datamodule.
    """

    plan: Plan
    steps: int
    screens_THWC: NDArray[np.uint8]
    sound_CS: NDArray[np.float32]
    sound_hz: int
    title: str
    events: tuple[tuple[float, str], ...]
    truth: Any = None


class Episodes(ClipDataModule):
    """Base of the datamodules that play games; a subclass says how.

    Args:
        audio, video, text: encoders; None leaves the stream out.
        series: encoder of the actions, under the name "action".
        worlds: games or scenarios, which take turns.
        play: how they are played.
        loading: how documents become batches.
        seed: of the play and the order of documents.
    """

    step_hz: int  # steps of the game in a second
    native: tuple[int, int]  # height and width of its screen
    pixel_aspect: float  # width over height of the screen's pixels as they are shown
    buttons: tuple[str, ...]  # what the values of an action mean

    def __init__(  # noqa: PLR0913 - the knobs of every recipe, handed on
        self,
        *,
        audio: MelChunks | None,
        video: Patches | None,
        text: TextTokens | None,
        series: Mapping[str, Vectors] | None,
        worlds: Sequence[str],
        play: Play,
        loading: Loading | None,
        seed: int,
    ) -> None:
        super().__init__(
            audio=audio, video=video, text=text, series=series, loading=loading, seed=seed
        )
        if not worlds:
            raise ValueError("the list of games is empty; name at least one")
        for name, codec in self.codecs.series.items():
            if name != ACTION:
                raise ValueError(f"data.series.{name}: a game has no such series, only {ACTION}")
            if codec.width != len(self.buttons):
                raise ValueError(
                    f"data.series.{ACTION}.width={codec.width} must be {len(self.buttons)}: "
                    f"{', '.join(self.buttons)}"
                )
        self.worlds, self.play = tuple(worlds), play
        self.fit = Fit(self.native, self._size, self.pixel_aspect, play.fit)

    @abstractmethod
    def draw_action(self, world: str, rng: np.random.Generator) -> Sequence[int]:
        """What a player who acts at random does next: a 0 or 1 for each of `buttons`."""

    @abstractmethod
    def record(self, plan: Plan, *, truth: bool) -> Stretch:
        """Play a plan: a pure function of it."""

    def setup(self, stage: str | None = None) -> None:
        self.check_context(self.play.clip_seconds)
        super().setup(stage)

    @property
    def _size(self) -> tuple[int, int]:
        return self.codecs.video.height_width if self.codecs.video else self.native

    @property
    def fps(self) -> float:
        """Frames of a second."""
        return self.codecs.video.fps if self.codecs.video else self.action_hz

    @property
    def action_hz(self) -> float:
        """Actions of a second: what the recipe's series asks for, else one for each frame."""
        if ACTION in self.codecs.series:
            return self.codecs.series[ACTION].hz
        return self.codecs.video.fps if self.codecs.video else DEFAULT_HZ

    @property
    def lead_steps(self) -> int:
        """Steps of sound before the start: a whole number of samples, for the filter to run in."""
        rate = self.codecs.audio.sample_rate if self.codecs.audio else self.step_hz
        return self.step_hz // math.gcd(self.step_hz, rate)

    @property
    def clip_steps(self) -> int:
        """States that a whole document spans."""
        return count_within(self.play.clip_seconds, self.step_hz)

    def frame_states(self, plan: Plan) -> NDArray[np.int64]:
        """(T,) the states of the game that the frames of a whole document show."""
        return plan.warmup + frame_steps(self.play.clip_seconds, self.fps, self.step_hz)

    def number(self, split: Split, epoch: int, index: int) -> int:
        """Counts the stretches of a split; held-out ones are the same in every epoch."""
        new = split == "train" and not self.play.repeat
        return epoch * self.play.sizes[split] + index if new else index

    def plan(self, split: Split, number: int, attempt: int = 0) -> Plan:
        """Draw what is played; another attempt is another course, from an earlier start."""
        rng = np.random.default_rng((self.seed, SPLITS.index(split), number, attempt))
        world = self.worlds[number % len(self.worlds)]
        least, most = (round(s * self.step_hz) for s in self.play.warmup_seconds)
        warmup = max(self.lead_steps + 1, int(rng.integers(least, most + 1)) >> attempt)
        total = warmup + self.clip_steps + TAIL_STEPS
        grid = action_steps(self.play.clip_seconds + 1.0, self.action_hz, self.step_hz)
        may_change = np.ones(total, bool)
        may_change[warmup:] = np.isin(np.arange(total - warmup), grid)
        presses_ND = np.zeros((total, len(self.buttons)), np.uint8)
        seed, left = int(rng.integers(1, 2**31)), 0
        for n in range(total if self.play.policy == "random" else 0):
            if left <= 0 and may_change[n]:
                action = self.draw_action(world, rng)
                left = int(rng.integers(self.play.hold[0], self.play.hold[1] + 1))
            presses_ND[n], left = action, left - 1
        return Plan(world, f"{world}/{split}/{number}", seed, warmup, presses_ND)

    def stretch(
        self, split: Split, epoch: int, index: int, *, truth: bool = False
    ) -> Stretch | Skipped:
        """Play a document: the first attempt that is long enough, else the longest."""
        number, longest = self.number(split, epoch, index), None
        for attempt in range(ATTEMPTS):
            stretch = self.record(self.plan(split, number, attempt), truth=truth)
            if longest is None or stretch.steps > longest.steps:
                longest = stretch
            if longest.steps >= WANTED_SHARE * self.clip_steps:
                break
        if longest.steps >= LEAST_SHARE * self.clip_steps:
            return longest
        return Skipped(
            longest.plan.name,
            f"{ATTEMPTS} episodes ended within {LEAST_SHARE * self.play.clip_seconds:g} s of their "
            "start; take a shorter data.clip_seconds",
            harmless=True,  # others of the same game may be longer
            kind="empty",
        )

    def clip(self, stretch: Stretch) -> Clip:
        """A stretch as the run's streams see it."""
        seconds = min(self.play.clip_seconds, stretch.steps / self.step_hz)
        plan, audio = stretch.plan, self.codecs.audio
        frames_TCHW = times_s = None
        if self.codecs.video:
            frames_TCHW = self.fit.frames(stretch.screens_THWC)
            times_s = torch.arange(len(frames_TCHW)).double() / self.fps
        begins_A = plan.warmup + action_steps(seconds, self.action_hz, self.step_hz)
        actions_AD = torch.from_numpy(plan.presses_ND[begins_A].astype(np.float32))
        action_times_s = torch.arange(len(actions_AD)).double() / self.action_hz
        return Clip(
            frames_TCHW=frames_TCHW,
            times_s=times_s,
            waveform_CS=self._waveform(stretch, seconds, audio) if audio else None,
            sample_rate=audio.sample_rate if audio else None,
            texts=(TextPiece(f"{stretch.title}."), *spoken(stretch.events, seconds)),
            series={ACTION: Series(actions_AD, action_times_s)},
            name=plan.name,
        )

    def _waveform(self, stretch: Stretch, seconds: float, audio: MelChunks) -> Tensor:
        """Sound at the run's rate and number of channels, sample 0 at the document's start."""
        sound_CS = stretch.sound_CS
        if len(sound_CS) > audio.channels:
            sound_CS = sound_CS.mean(0, keepdims=True, dtype=np.float32)
        resampled_CS = resample(sound_CS, stretch.sound_hz, audio.sample_rate)
        first, count = (
            self.lead_steps * audio.sample_rate // self.step_hz,
            round(seconds * audio.sample_rate),
        )
        kept_CS = np.zeros((audio.channels, count), np.float32)
        part_CS = resampled_CS[:, first : first + count]
        kept_CS[:, : part_CS.shape[1]] = part_CS  # one ear is heard with both
        return torch.from_numpy(kept_CS).clamp_(-1.0, 1.0)

    def truth(self, split: Split, epoch: int, index: int) -> Any:
        """What the game knows of a document and its clip does not say; Skipped where that is."""
        stretch = self.stretch(split, epoch, index, truth=True)
        return stretch if isinstance(stretch, Skipped) else stretch.truth

    def documents(self, split: Split) -> Documents:
        return _Stretches(self, split)

    def corpus(self) -> Iterable[str]:
        """The text of the first training documents."""
        documents = self.documents("train")
        for index in range(min(CORPUS_CLIPS, len(documents))):
            clip = documents.clip(0, index)
            yield from () if isinstance(clip, Skipped) else (piece.text for piece in clip.texts)


class _Stretches(ClipDocuments):
    def __init__(self, episodes: Episodes, split: Split) -> None:
        super().__init__(episodes)
        self.episodes, self.split = episodes, split

    def __len__(self) -> int:
        return self.episodes.play.sizes[self.split]

    def name(self, index: int) -> str:
        return self.title(0, index)

    def title(self, epoch: int, index: int) -> str:
        number = self.episodes.number(self.split, epoch, index)
        return f"{self.episodes.worlds[number % len(self.episodes.worlds)]}/{self.split}/{number}"

    def clip(self, epoch: int, index: int) -> Clip | Skipped:
        stretch = self.episodes.stretch(self.split, epoch, index)
        return stretch if isinstance(stretch, Skipped) else self.episodes.clip(stretch)


def spoken(events: Iterable[tuple[float, str]], seconds: float) -> list[TextPiece]:
    """Events as timed text: one after the other, none before it happened or after the end."""
    pieces: list[TextPiece] = []
    free_s = 0.0
    for time_s, text in events:
        start_s = max(time_s, free_s)
        end_s = start_s + WORD_S * len(text.split())
        if end_s <= seconds and start_s - time_s <= PATIENCE_S:
            pieces.append(TextPiece(text, start_s, end_s))
            free_s = end_s
    return pieces


def words(name: str) -> str:
    """A name from code in words: "ShotgunGuy" and "shotgun_guy" as "shotgun guy"."""
    apart = "".join(
        f" {c}" if c.isupper() and i and name[i - 1].islower() else c for i, c in enumerate(name)
    )
    return " ".join(apart.replace("_", " ").split()).lower()
