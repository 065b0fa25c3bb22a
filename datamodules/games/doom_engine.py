"""A line to the Doom engine. In: requests. Out: its answers, or a UserError that says what to do.

An engine process is started at the first request, one for each process that asks; it runs in a
temporary folder, ends with whoever started it, and is given up when it does not answer in time.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import weakref
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from mmpredict.schema import UserError

SERVER = Path(__file__).with_name("doom_server.py")
LOG = "server.log"
LOG_CHARS = 500
SOUND_CONF = "drivers = null\nhrtf = false\nstereo-encoding = panpot\nstereo-mode = speakers\n"


def scenario_folder() -> Path:
    """Where the package keeps its scenarios; UserError where the package is missing."""
    found = importlib.util.find_spec("vizdoom")
    if found is None or not found.submodule_search_locations:
        raise UserError('Doom needs the package vizdoom: pip install "mmpredict[doom]"')
    return Path(found.submodule_search_locations[0]) / "scenarios"


class DoomEngine:
    """The engine process of this process.

    Args:
        timeout_s: stop when an answer takes longer.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._line: _Line | None = None

    def ask(self, what: str, do: str, **request: Any) -> Any:
        """The answer to a request; `what` it is about is named when there is none."""
        if self._line is None or self._line.owner != os.getpid():
            if self._line is not None:
                self._line.let_go()  # it is our parent's
            self._line = _Line()
        line = self._line
        try:
            line.connection.send({"do": do, **request})
            if not line.connection.poll(self.timeout_s):
                self.close()
                raise UserError(
                    f"Doom: {what} gave no answer in {self.timeout_s:g} s and was stopped; a map "
                    "that the game does not have does this, so check data.scenarios "
                    "(or raise data.engine_timeout_s)"
                )
            kind, answer = line.connection.recv()
        except (EOFError, OSError) as error:
            said = line.last_words()
            self.close()
            raise UserError(f"Doom: the engine died in {what}: {said or error}") from error
        if kind == "error":
            raise UserError(f"Doom: {what}: {answer}")
        return answer

    def close(self) -> None:
        """End the engine process; the next request starts another."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def __getstate__(self) -> dict[str, Any]:
        """A line does not travel; a process makes its own."""
        return {"timeout_s": self.timeout_s, "_line": None}


class _Line:
    """One engine process and the two ends that this process holds."""

    def __init__(self) -> None:
        scenario_folder()  # or say that the package is missing
        self.owner = os.getpid()
        self.folder = Path(tempfile.mkdtemp(prefix="mmpredict-doom-"))
        sound_conf = self.folder / "sound.conf"
        sound_conf.write_text(SOUND_CONF)
        self.connection, theirs = Pipe()
        lifeline_end, self.lifeline = os.pipe()
        with open(self.folder / LOG, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(SERVER), str(theirs.fileno()), str(lifeline_end)],
                cwd=self.folder,
                # the user's own sound settings and devices must not change what is heard
                env=os.environ | {"ALSOFT_CONF": str(sound_conf), "ALSOFT_DRIVERS": "null"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(), lifeline_end),
                start_new_session=True,  # Ctrl-C is for us
            )
        theirs.close()
        os.close(lifeline_end)
        self._end = weakref.finalize(
            self, _end, self.owner, self.connection, self.lifeline, self.process
        )

    def last_words(self) -> str:
        """The end of what the engine printed."""
        with suppress(OSError):
            return (self.folder / LOG).read_text(errors="replace")[-LOG_CHARS:].strip()
        return ""

    def let_go(self) -> None:
        """Forget a parent's line without ending it."""
        self._end.detach()
        self.connection.close()
        os.close(self.lifeline)
        self.process.returncode = 0  # not our child: nothing to wait for

    def close(self) -> None:
        self._end()


def _end(
    owner: int, connection: Connection, lifeline: int, process: subprocess.Popen[bytes]
) -> None:
    if owner != os.getpid():
        return
    connection.close()
    os.close(lifeline)  # the guard kills the engines and leaves
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
