"""Atari 2600 games by the Arcade Learning Environment: frames, sound, actions and score, played as
they are needed. In: an index. Out: a stretch of play as a document.

    pip install "mmpredict[atari]"

The emulator and the games come with the package ale-py, under their own licences (GPL-2; the games
carry none): do not put recorded frames or sound into a repository.

Chance is switched off: the same actions from the same reset give the same game, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.feed.loading import Loading
from datamodules.games.episodes import Episodes, Plan, Play, Stretch, words
from mmpredict.schema import UserError
from mmpredict.tokens import MelChunks, Patches, TextTokens, Vectors

GAMES = ("pong", "breakout", "space_invaders", "seaquest", "ms_pacman")
BUTTONS = ("fire", "up", "down", "left", "right")
STEP_HZ = 60
STEP_SAMPLES = 512  # of sound per step: 30,720 Hz
SCREEN = (210, 160)
TV_ASPECT = 4 / 3  # how a television shows it, so that its pixels are wide
SILENCE = 128  # of unsigned samples
RAM_BYTES = 128

Events = tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class AtariTruth:
    """What the console knows at each frame.

    Args:
        times_s: (T,) float64, as in the clip.
        ram_TR: (T, 128) uint8, all its memory.
        lives_T: (T,) int64; 0 in games without lives.
        score_T: (T,) int64, gained since the document's start.
        events: (seconds, what happened) of the whole document.
    """

    times_s: Tensor
    ram_TR: Tensor
    lives_T: Tensor
    score_T: Tensor
    events: Events


class Atari(Episodes):
    """Stretches of Atari 2600 games.

    A frame is the brightest of the last two screens, pixel by pixel: many games draw half of their
    things on every other screen. The console's screen is shown 4 to 3, so video.size [24, 32] or
    any other 4 to 3 keeps all of it undistorted; other shapes go by `fit`.

    An action is the state of the joystick, 0 or 1 for each of fire, up, down, left, right:
    `series: {action: {width: 5, hz: 15}}` puts it into the model. Text is the name of the game, and
    what is gained and lost.

    Args:
        audio, video, text: encoders; null leaves the stream out.
        series: encoder of the actions, under the name "action".
        games: names as in ale-py, which take turns.
        clip_seconds: length of a document; it is shorter where the game ends.
        warmup_seconds: [least, most] played between the reset and the start of the document.
        hold: [least, most] steps (of 60 a second) that an action is held; in a document, up to the
            next time at which the recipe looks at actions.
        policy: "random" draws from the game's own actions; "noop" does nothing.
        fit: "crop" cuts a screen of another shape at its sides; "squeeze" distorts it.
        train_clips: documents of an epoch.
        repeat: every epoch shows the same documents; false plays new ones for ever.
        val_clips, test_clips: held-out documents.
        loading: how documents become batches.
        seed: of the play and the order of documents.
    """

    step_hz, native, buttons = STEP_HZ, SCREEN, BUTTONS
    pixel_aspect = TV_ASPECT * SCREEN[0] / SCREEN[1]

    def __init__(  # noqa: PLR0913 - the knobs of a recipe
        self,
        audio: MelChunks | None = MelChunks(channels=1),
        video: Patches | None = Patches(size=(24, 32), fps=15.0),
        text: TextTokens | None = TextTokens(),
        *,
        series: Mapping[str, Vectors] | None = None,
        games: tuple[str, ...] = GAMES,
        clip_seconds: float = 2.0,
        warmup_seconds: tuple[float, float] = (1.0, 20.0),
        hold: tuple[int, int] = (4, 12),
        policy: Literal["random", "noop"] = "random",
        fit: Literal["crop", "squeeze"] = "crop",
        train_clips: int = 2000,
        repeat: bool = False,
        val_clips: int = 64,
        test_clips: int = 128,
        loading: Loading | None = None,
        seed: int = 0,
    ) -> None:
        sizes = {"train": train_clips, "val": val_clips, "test": test_clips}
        super().__init__(
            audio=audio,
            video=video,
            text=text,
            series=series,
            worlds=games,
            play=Play(clip_seconds, tuple(warmup_seconds), tuple(hold), policy, fit, repeat, sizes),
            loading=loading,
            seed=seed,
        )
        self._actions: dict[str, list[tuple[int, ...]]] = {}

    def setup(self, stage: str | None = None) -> None:
        for game in self.worlds:
            _rom(game)  # what is missing is said now
        super().setup(stage)

    def fingerprint(self) -> dict[str, str]:
        """The emulator's version and the games."""
        digests = {game: sha256(_rom(game).read_bytes()).hexdigest() for game in self.worlds}
        return digests | {"ale-py": sha256(version("ale-py").encode()).hexdigest()}

    def __getstate__(self) -> dict[str, Any]:
        """The console does not travel; a process makes its own."""
        return {k: v for k, v in super().__getstate__().items() if k != "_console"}

    @cached_property
    def _console(self) -> Any:
        ale_py = _ale_py()
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        console = ale_py.ALEInterface()
        console.setFloat("repeat_action_probability", 0.0)
        console.setBool("sound_obs", True)  # counts only before a game is loaded
        return console

    def _start(self, game: str, seed: int) -> Any:
        """A console that has just been switched on. A reset or a restored state would be faster,
        but leaves the sound chip as the last document left it."""
        self._console.setInt("random_seed", seed)
        self._console.loadROM(_rom(game))
        return self._console

    def draw_action(self, world: str, rng: np.random.Generator) -> Sequence[int]:
        if world not in self._actions:
            of_game = self._start(world, 0).getMinimalActionSet()
            self._actions[world] = [_pressed(action.name) for action in of_game]
        actions = self._actions[world]
        return actions[rng.integers(len(actions))]

    def record(self, plan: Plan, *, truth: bool) -> Stretch:
        console, shown = self._start(plan.world, plan.seed), self.frame_states(plan)
        seen = set(shown.tolist()) | set((shown - 1).tolist())
        screens: dict[int, NDArray[np.uint8]] = {}
        memories: dict[int, NDArray[np.uint8]] = {}
        sound, counts = [], []
        for n, action in enumerate(_actions_of(plan.presses_ND), start=1):
            reward = console.act(action)
            if console.game_over():
                break
            if n >= plan.warmup - self.lead_steps:
                sound.append(console.getAudio().copy())
            if n >= plan.warmup:
                counts.append((reward, console.lives()))
            if n in seen:
                screens[n], memories[n] = console.getScreenRGB(), console.getRAM()
        counts_N2 = np.array(counts, np.int64).reshape(-1, 2)[: self.clip_steps]
        events = _events(counts_N2, self.step_hz)
        shown = shown[: sum(n in screens for n in shown.tolist())]
        known = self._truth(shown, memories, counts_N2, events, plan.warmup) if truth else None
        frames = [np.maximum(screens[n - 1], screens[n]) for n in shown.tolist()]
        return Stretch(
            plan=plan,
            steps=len(counts_N2),
            screens_THWC=np.array(frames, np.uint8).reshape(-1, *SCREEN, 3),
            sound_CS=_as_float(sound),
            sound_hz=STEP_HZ * STEP_SAMPLES,
            title=words(plan.world).capitalize(),
            events=events,
            truth=known,
        )

    def _truth(
        self,
        shown: NDArray[np.int64],
        memories: Mapping[int, NDArray[np.uint8]],
        counts_N2: NDArray[np.int64],
        events: Events,
        warmup: int,
    ) -> AtariTruth:
        ram_TR = np.array([memories[n] for n in shown.tolist()], np.uint8).reshape(-1, RAM_BYTES)
        gained_N = counts_N2[:, 0].cumsum() - counts_N2[:1, 0].sum()
        return AtariTruth(
            times_s=torch.arange(len(shown)).double() / self.fps,
            ram_TR=torch.from_numpy(ram_TR),
            lives_T=torch.from_numpy(counts_N2[shown - warmup, 1]),
            score_T=torch.from_numpy(gained_N[shown - warmup]),
            events=events,
        )


def _events(counts_N2: NDArray[np.int64], step_hz: int) -> Events:
    """What is gained and lost, from the reward and the lives of every step."""
    events = []
    for n in range(1, len(counts_N2)):
        reward, lost = int(counts_N2[n, 0]), int(counts_N2[n - 1, 1] - counts_N2[n, 1])
        if reward:
            events.append((n / step_hz, f"{'Gains' if reward > 0 else 'Loses'} {abs(reward)}."))
        if lost > 0:
            events.append((n / step_hz, "Loses a life."))
    return tuple(events)


def _as_float(sound: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """(1, S) in [-1, 1]."""
    samples_S = np.array(sound, np.float32).reshape(1, -1)
    return (samples_S - SILENCE) / SILENCE


def _pressed(name: str) -> tuple[int, ...]:
    """A 0 or 1 for each of BUTTONS, from the name of an action: "UPRIGHTFIRE"."""
    return tuple(int(button.upper() in name) for button in BUTTONS)


def _actions_of(presses_ND: NDArray[np.uint8]) -> list[Any]:
    """The emulator's actions."""
    by_buttons = {_pressed(name): a for name, a in _ale_py().Action.__members__.items()}
    return [by_buttons[tuple(pressed)] for pressed in presses_ND.tolist()]


def _ale_py() -> Any:
    try:
        import ale_py
    except ImportError as error:
        raise UserError(
            f'Atari needs the package ale-py: pip install "mmpredict[atari]" ({error})'
        ) from error
    return ale_py


def _rom(game: str) -> Path:
    """The file of a game."""
    _ale_py()
    from ale_py import roms

    known = roms.get_all_rom_ids()
    path = roms.get_rom_path(game) if game in known else None
    if path is None:
        near = get_close_matches(game, known, 3) or known
        raise UserError(f"data.games: no game {game!r}; did you mean {', '.join(near)}?")
    return path
