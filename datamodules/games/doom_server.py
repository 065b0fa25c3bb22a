"""The Doom engine in a process of its own. Run as a script by `datamodules.games.doom_engine`:

    python -P doom_server.py CONNECTION LIFELINE        (two open file descriptors)

In: requests over the connection. Out: what the engine shows, sounds and knows, step by step.

Two processes: the server, which holds the engines, and a guard, which does nothing but wait. When
the lifeline closes (the user's process has ended, however it ended) or the server dies, the guard
kills the server with its engines, and removes what they leave in shared memory and in the
temporary folder that both run in. It is a fork, made before anything is imported or started.

Knows nothing of torch or of the rest of the house, so that it starts in a moment.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import select
import shutil
import signal
import sys
from collections import OrderedDict
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

BUTTONS = (
    "ATTACK",
    "USE",
    "MOVE_FORWARD",
    "MOVE_BACKWARD",
    "MOVE_LEFT",
    "MOVE_RIGHT",
    "TURN_LEFT",
    "TURN_RIGHT",
)
VARIABLES = (
    *("POSITION_X", "POSITION_Y", "POSITION_Z", "ANGLE", "PITCH"),
    *("VELOCITY_X", "VELOCITY_Y", "VELOCITY_Z", "HEALTH", "ARMOR", "DEAD"),
    *("HITCOUNT", "KILLCOUNT", "ITEMCOUNT", "HITS_TAKEN", "DAMAGE_TAKEN"),
)
MAX_GAMES = 8  # engines kept open, about 30 MB each
SHARED = "/dev/shm/ViZDoom"


class Scene(NamedTuple):
    """What an engine is opened for.

    Args:
        config: path of the scenario's .cfg file.
        doom_map, skill: None leaves the config's.
        sound_hz: samples of sound per second.
        truth: also depth and objects.
    """

    config: str
    doom_map: str | None
    skill: int | None
    sound_hz: int
    truth: bool


def main(connection: int, lifeline: int) -> None:
    """Fork; be the guard here and the server there."""
    alive_end, alive = os.pipe()
    server = os.fork()
    if server == 0:
        os.setpgid(0, 0)
        os.close(alive_end)
        os.close(lifeline)
        os.set_inheritable(connection, False)  # or the engines would hold it open
        serve(Connection(connection), alive)
        os._exit(0)
    with suppress(OSError):  # the server has done it itself
        os.setpgid(server, server)
    os.close(alive)
    os.close(connection)
    guard(server, lifeline, alive_end)


def guard(server: int, lifeline: int, alive: int) -> None:
    """Wait until the lifeline or the server ends, then clean up."""
    said = b""
    while True:
        ready, _, _ = select.select([lifeline, alive], [], [])
        more = os.read(alive, 4096) if alive in ready else b""
        said += more
        if lifeline in ready or not more:
            break
    left_behind = set(said.decode().split()) | shared_by(server)
    with suppress(OSError):
        os.killpg(server, signal.SIGKILL)
    for path in left_behind:
        Path(path).unlink(missing_ok=True)
    shutil.rmtree(os.getcwd(), ignore_errors=True)


def shared_by(process: int) -> set[str]:
    """The engines' files in shared memory that a process has open; known on Linux alone."""
    with suppress(OSError):
        lines = Path(f"/proc/{process}/maps").read_text().splitlines()
        return {path for line in lines if (path := line.split()[-1]).startswith(SHARED)}
    return set()


def serve(connection: Connection, alive: int) -> None:
    """Answer requests until there is nobody to ask."""
    import vizdoom

    server = Server(vizdoom, alive)
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        try:
            if "scene" in request:  # it travels as a plain tuple
                request["scene"] = Scene(*request["scene"])
            answer = ("ok", getattr(server, request.pop("do"))(**request))
        except Exception as error:  # told to the one who asked
            answer = ("error", f"{type(error).__name__}: {error}")
        try:
            connection.send(answer)
        except OSError:
            return


class Server:
    """The requests, one method each."""

    def __init__(self, vizdoom: Any, alive: int) -> None:
        self.vizdoom, self.alive = vizdoom, alive
        self.games: OrderedDict[Scene, Any] = OrderedDict()
        self.shared: set[str] = set()

    def has_sound(self) -> bool:
        """Whether the engine can make sound: without OpenAL it is silent and does not say so."""
        beside = str(Path(self.vizdoom.__file__).with_name("libopenal.so.1"))
        for name in ("libopenal.so.1", beside, ctypes.util.find_library("openal")):
            with suppress(OSError):
                if name and ctypes.CDLL(name):
                    return True
        return False

    def buttons(self, config: str) -> list[str]:
        """The buttons of BUTTONS that a scenario is made for."""
        game = self.vizdoom.DoomGame()
        game.load_config(config)
        own = {button.name for button in game.get_available_buttons()}
        return [name for name in BUTTONS if name in own]

    def record(
        self,
        scene: Scene,
        seed: int,
        presses: list[list[int]],
        sound_from: int,
        shown: list[int],
    ) -> dict[str, Any]:
        """Play an episode; state n is what step n leaves.

        Args:
            scene: where.
            seed: of the engine's chance.
            presses: for every step, a 0 or 1 for each of BUTTONS.
            sound_from: the first state whose sound and variables are wanted.
            shown: states whose picture is wanted.
        """
        game, truth = self._game(scene), scene.truth
        game.set_seed(seed)
        game.new_episode()
        wanted = set(shown)
        sound, variables, pictures = [], [], []
        for n, pressed in enumerate(presses, start=1):
            game.set_action(pressed)
            game.advance_action(1, n >= sound_from)  # without a picture as long as none is wanted
            if game.is_episode_finished():
                break
            if n < sound_from:
                continue
            state = game.get_state()
            sound.append(state.audio_buffer)
            variables.append(state.game_variables)
            if n in wanted:
                pictures.append(_picture(state, truth))
        return {"sound": sound, "variables": variables, "pictures": pictures}

    def _game(self, scene: Scene) -> Any:
        if scene not in self.games:
            if len(self.games) >= MAX_GAMES:
                self.games.popitem(last=False)[1].close()
            self.games[scene] = self._open(scene)
            self._name_shared_memory()
        self.games.move_to_end(scene)
        return self.games[scene]

    def _open(self, scene: Scene) -> Any:
        vizdoom, game = self.vizdoom, self.vizdoom.DoomGame()
        game.load_config(scene.config)
        if scene.doom_map is not None:
            game.set_doom_map(scene.doom_map)
        if scene.skill is not None:
            game.set_doom_skill(scene.skill)
        game.set_mode(vizdoom.Mode.PLAYER)
        game.set_window_visible(False)
        game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_render_hud(False)
        game.set_render_crosshair(False)
        game.set_automap_buffer_enabled(False)
        game.set_notifications_buffer_enabled(False)
        game.set_sectors_info_enabled(False)
        game.set_labels_buffer_enabled(True)
        game.set_depth_buffer_enabled(scene.truth)
        game.set_objects_info_enabled(scene.truth)
        game.set_audio_buffer_enabled(True)
        game.set_audio_sampling_rate(getattr(vizdoom.SamplingRate, f"SR_{scene.sound_hz}"))
        game.set_audio_buffer_size(1)
        game.add_game_args("+snd_efx 0")  # the room's echo needs an extension of the sound library
        game.set_available_buttons([getattr(vizdoom.Button, name) for name in BUTTONS])
        game.set_available_game_variables(
            [getattr(vizdoom.GameVariable, name) for name in VARIABLES]
        )
        game.init()
        return game

    def _name_shared_memory(self) -> None:
        """Tell the guard what would be left behind, should this process crash."""
        new = shared_by(os.getpid()) - self.shared
        os.write(self.alive, "".join(f"{path} " for path in new).encode())
        self.shared |= new


def _picture(state: Any, truth: bool) -> dict[str, Any]:
    """What a state shows, and who is in it."""
    seen = [
        (label.object_id, label.object_name, label.object_category, label.value)
        + (label.x, label.y, label.width, label.height)
        for label in state.labels
    ]
    picture = {"screen": state.screen_buffer, "seen": seen}
    if truth:
        picture["mask"] = state.labels_buffer
        picture["depth"] = state.depth_buffer
        picture["objects"] = [
            (o.id, o.name, o.category)
            + (o.position_x, o.position_y, o.position_z)
            + (o.velocity_x, o.velocity_y, o.velocity_z, o.angle)
            for o in state.objects
        ]
    return picture


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
