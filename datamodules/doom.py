"""Doom by ViZDoom: a first-person world that nobody made for models, with stereo sound from where
things are, actions, and truth: depth, boxes, positions. In: an index. Out: a stretch of play as a
document.

    pip install "mmpredict[doom]"        (Linux and macOS; the sound needs the library OpenAL)

The engine runs in a process of its own, which ends with this one; see doom_server.py. Scenarios and
maps come with the package vizdoom (the maps are Freedoom's, under a BSD licence).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from datamodules.feed.loading import Loading
from datamodules.games.doom_engine import DoomEngine, scenario_folder
from datamodules.games.doom_server import BUTTONS, VARIABLES
from datamodules.games.doom_truth import read_events, read_truth
from datamodules.games.episodes import Episodes, Plan, Play, Stretch, words
from mmpredict.schema import UserError
from mmpredict.tokens import MelChunks, Patches, TextTokens, Vectors

SCENARIOS = (
    "deadly_corridor",
    "take_cover",
    "defend_the_center",
    "basic_audio",
    "deathmatch",
    "freedoom2:MAP01",
)
MAPS = {"freedoom1": "E1M1", "freedoom2": "MAP01"}  # their configs name none that exists
MAP_NAME = r"E[1-4]M[1-9]|MAP(0[1-9]|[12][0-9]|3[0-2])|[A-Za-z0-9_]{1,8}"
SOUND_RATES = (11025, 22050, 44100)  # that the engine can make
STEP_HZ = 35
SCREEN = (120, 160)
# chances of a player who acts at random: of one direction, of the other
WAYS = {
    ("MOVE_FORWARD", "MOVE_BACKWARD"): (0.6, 0.2),  # or nobody would get anywhere
    ("MOVE_LEFT", "MOVE_RIGHT"): (1 / 3, 1 / 3),
    ("TURN_LEFT", "TURN_RIGHT"): (1 / 3, 1 / 3),
    ("ATTACK", "USE"): (0.25, 0.1),
}


class Doom(Episodes):
    """Stretches of Doom.

    The screen is 4 to 3, so video.size [24, 32] or any other 4 to 3 shows all of it undistorted;
    other shapes go by `fit`. An action is 0 or 1 for each of attack, use, forward, backward, left,
    right, turn left, turn right: `series: {action: {width: 8, hz: 8.75}}` puts it into the model.
    Text is the name of the scenario, which monster comes into sight on which side, and what is hit,
    suffered and picked up. `truth` gives depth, boxes and positions.

    Args:
        audio, video, text: encoders; null leaves the stream out.
        series: encoder of the actions, under the name "action".
        scenarios: which take turns: names as in vizdoom ("take_cover"), with a map where there are
            several ("freedoom2:MAP07"), or paths of own .cfg files.
        clip_seconds: length of a document; it is shorter where the episode ends.
        warmup_seconds: [least, most] played between the reset and the start of the document.
        hold: [least, most] steps (of 35 a second) that an action is held; in a document, up to the
            next time at which the recipe looks at actions.
        policy: "random" draws from the scenario's own buttons; "noop" does nothing.
        fit: "crop" cuts a screen of another shape at its sides; "squeeze" distorts it.
        skill: 1 (easy) to 5; null takes the scenario's own.
        train_clips: documents of an epoch.
        repeat: every epoch shows the same documents; false plays new ones for ever.
        val_clips, test_clips: held-out documents.
        engine_timeout_s: stop when the engine needs longer for one document.
        loading: how documents become batches.
        seed: of the play and the order of documents.
    """

    step_hz, native, pixel_aspect, buttons = STEP_HZ, SCREEN, 1.0, BUTTONS

    def __init__(  # noqa: PLR0913 - the knobs of a recipe
        self,
        audio: MelChunks | None = MelChunks(),
        video: Patches | None = Patches(size=(24, 32), fps=8.75),
        text: TextTokens | None = TextTokens(),
        *,
        series: Mapping[str, Vectors] | None = None,
        scenarios: tuple[str, ...] = SCENARIOS,
        clip_seconds: float = 2.0,
        warmup_seconds: tuple[float, float] = (1.0, 10.0),
        hold: tuple[int, int] = (4, 12),
        policy: Literal["random", "noop"] = "random",
        fit: Literal["crop", "squeeze"] = "crop",
        skill: int | None = None,
        train_clips: int = 2000,
        repeat: bool = False,
        val_clips: int = 64,
        test_clips: int = 128,
        engine_timeout_s: float = 60.0,
        loading: Loading | None = None,
        seed: int = 0,
    ) -> None:
        sizes = {"train": train_clips, "val": val_clips, "test": test_clips}
        super().__init__(
            audio=audio,
            video=video,
            text=text,
            series=series,
            worlds=scenarios,
            play=Play(clip_seconds, tuple(warmup_seconds), tuple(hold), policy, fit, repeat, sizes),
            loading=loading,
            seed=seed,
        )
        if skill is not None and not 1 <= skill <= 5:
            raise ValueError(f"data.skill={skill} must lie between 1 and 5")
        self.skill, self._engine = skill, DoomEngine(engine_timeout_s)
        self._own_buttons: dict[str, list[str]] = {}

    def setup(self, stage: str | None = None) -> None:
        for scenario in self.worlds:
            _scene(scenario)  # what is missing is said now
        if self.codecs.audio and not self._engine.ask("looking for OpenAL", "has_sound"):
            raise UserError(
                "Doom makes its sound with the library OpenAL, which this machine does not have, "
                "and would be silent: install it (Debian and Ubuntu: apt-get install libopenal1; "
                "macOS: brew install openal-soft), or leave the sound out with data.audio=null"
            )
        super().setup(stage)

    def fingerprint(self) -> dict[str, str]:
        """The engine's version and the scenarios' files."""
        configs = {Path(_scene(scenario)[0]) for scenario in self.worlds}
        digests = {path.name: sha256(path.read_bytes()).hexdigest() for path in configs}
        return digests | {"vizdoom": sha256(version("vizdoom").encode()).hexdigest()}

    @property
    def sound_hz(self) -> int:
        """What the engine is asked for: no less than the run needs, where it can."""
        needed = self.codecs.audio.sample_rate if self.codecs.audio else 0
        return next((rate for rate in SOUND_RATES if rate >= needed), SOUND_RATES[-1])

    def draw_action(self, world: str, rng: np.random.Generator) -> Sequence[int]:
        if world not in self._own_buttons:
            config, _ = _scene(world)
            self._own_buttons[world] = self._engine.ask(_named(world), "buttons", config=config)
        own, pressed = self._own_buttons[world], set()
        for (one, other), (chance_of_one, chance_of_other) in WAYS.items():
            drawn = rng.random()
            if drawn < chance_of_one:
                pressed.add(one)
            elif drawn < chance_of_one + chance_of_other:
                pressed.add(other)
        return [int(button in pressed and button in own) for button in BUTTONS]

    def record(self, plan: Plan, *, truth: bool) -> Stretch:
        config, doom_map = _scene(plan.world)
        shown = self.frame_states(plan)
        answer = self._engine.ask(
            _named(plan.world),
            "record",
            scene=(config, doom_map, self.skill, self.sound_hz, truth),
            seed=plan.seed,
            presses=plan.presses_ND.tolist(),
            sound_from=plan.warmup - self.lead_steps,
            shown=shown.tolist(),
        )
        variables_NV = np.array(answer["variables"], np.float64).reshape(-1, len(VARIABLES))
        variables_NV = variables_NV[self.lead_steps :][: self.clip_steps]
        pictures = answer["pictures"]
        times_s = torch.arange(len(pictures)).double() / self.fps
        events = read_events(pictures, times_s, variables_NV, self.step_hz, self.fit)
        known = None
        if truth:
            of_frames_TV = variables_NV[shown[: len(pictures)] - plan.warmup]
            known = read_truth(pictures, of_frames_TV, times_s, self.fit, events)
        sound = np.array(answer["sound"], np.float32).reshape(-1, 2)
        return Stretch(
            plan=plan,
            steps=len(variables_NV),
            screens_THWC=np.array([p["screen"] for p in pictures], np.uint8).reshape(
                -1, *SCREEN, 3
            ),
            sound_CS=np.ascontiguousarray(sound.T) / 2**15,
            sound_hz=self.sound_hz,
            title=_title(plan.world),
            events=events,
            truth=known,
        )


def _named(scenario: str) -> str:
    return f"scenario {scenario!r}"


def _title(scenario: str) -> str:
    """What the text calls it: "take_cover" is "Take cover", a map goes by its name."""
    name, _, doom_map = scenario.partition(":")
    return " ".join(filter(None, [words(Path(name).stem).capitalize(), doom_map]))


def _scene(scenario: str) -> tuple[str, str | None]:
    """The config file of a scenario, and its map where one is named."""
    name, _, doom_map = scenario.partition(":")
    folder = scenario_folder()
    path = Path(name).absolute() if name.endswith(".cfg") else folder / f"{name}.cfg"
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.cfg"))
        near = get_close_matches(name, known, 3) or known
        raise UserError(
            f"data.scenarios: no scenario {name!r}; did you mean {', '.join(near)}, or the path of "
            "a .cfg file?"
        )
    if doom_map and not re.fullmatch(MAP_NAME, doom_map):
        raise UserError(f"data.scenarios: {doom_map!r} is no name of a map, like E1M1 or MAP07")
    return str(path), doom_map or MAPS.get(name)
