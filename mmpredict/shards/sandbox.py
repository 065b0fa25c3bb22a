"""Work on untrusted files in processes of their own, with limits on memory and time.

One helper process loads what is heavy and then forks for every job, so that a job costs some
milliseconds and not the start of an interpreter. A job is a list of items, worked on one after the
other. One that crashes, hangs or asks for too much memory ends alone, and is reported with the
reason; which item it was shows in what the items before it have left.

    with Sandbox("package.module:open_worker", context, workers=2, limits=JobLimits()) as sandbox:
        sandbox.submit(7, [item, item])
        number, verdict = sandbox.next_done()

`open_worker(context)` is called once in the helper and returns the function that each fork calls
with each of its items, and with a function to be called now and then: who neither finishes an item
nor calls it for too long is ended. Items and context are plain JSON; what is made goes to files.

The helper and its forks end when the process that made them does, however it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

Item = dict[str, Any]
Beat = Callable[[], None]
Worker = Callable[[Item, Beat], None]
_MIB = 1 << 20
_START_S = 300.0  # the helper may load torch from a slow disk, or build a datamodule
_OUT_OF_MEMORY, _RAISED, _DISK_FULL = 97, 98, 99  # exit codes of a fork
_PR_SET_PDEATHSIG = 1
_MAX_RESTARTS = 3
# The helper loads this file alone: what the package would load, the worker asks for if it needs it.
_BOOT = (
    "import sys, json, importlib.util as u; sys.path[:] = json.loads(sys.argv[1]); "
    "spec = u.spec_from_file_location('mmpredict_sandbox', sys.argv[2]); "
    "module = sys.modules[spec.name] = u.module_from_spec(spec); "
    "spec.loader.exec_module(module); module.serve(sys.argv[3], json.loads(sys.argv[4]))"
)


class WorkerFailed(RuntimeError):
    """The helper could not be started or kept alive."""


@dataclass(frozen=True)
class JobLimits:
    """What a job may use.

    Args:
        memory_mb: MiB of address space besides what is loaded before it starts.
        timeout_s: seconds without progress, of the clock and of the processor.
    """

    memory_mb: int = 2048
    timeout_s: float = 120.0


@dataclass(frozen=True)
class Verdict:
    """How a job ended.

    Args:
        kind: "" if well; else "timeout", "memory", "crash", "disk".
        reason: in words.
        cpu_s: seconds of processor it took.
    """

    kind: str = ""
    reason: str = ""
    cpu_s: float = 0.0


class Sandbox:
    """Hands jobs to forks of a helper process, at most `workers` at a time.

    Args:
        target: "module:function" that makes the worker.
        context: what it is called with.
        workers: jobs at a time.
        limits: of each job.
    """

    def __init__(
        self, target: str, context: Item, *, workers: int, limits: JobLimits = JobLimits()
    ) -> None:
        self.target, self.context, self.workers, self.limits = target, context, workers, limits
        self._waiting: dict[int, list[Item]] = {}
        self._restarts = 0
        self._helper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def free(self) -> int:
        """How many more jobs can run now."""
        return self.workers - len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether a job is under way."""
        return bool(self._waiting)

    def submit(self, number: int, items: list[Item]) -> None:
        """Start a job."""
        self._waiting[number] = items
        self._send(number, items)

    def next_done(self) -> tuple[int, Verdict]:
        """Wait for the next job to end.

        Raises:
            WorkerFailed: the helper cannot be kept alive.
        """
        while True:
            helper = self._alive()
            assert helper.stdout is not None
            line = helper.stdout.readline()
            if line:
                answer = json.loads(line)
                if "failed" in answer:
                    self.close()
                    raise WorkerFailed(answer["failed"])
                del self._waiting[answer["number"]]
                return answer["number"], Verdict(**answer["verdict"])
            self._restart()

    def close(self) -> None:
        """End the helper and every job under way."""
        helper, self._helper = self._helper, None
        if helper is None:
            return
        assert helper.stdin is not None and helper.stdout is not None
        with contextlib.suppress(OSError):
            helper.stdin.close()  # this is how it learns
        try:
            helper.wait(5)
        except subprocess.TimeoutExpired:
            helper.kill()
            helper.wait()
        helper.stdout.close()

    def _send(self, number: int, items: list[Item]) -> None:
        helper = self._alive()
        assert helper.stdin is not None
        order = {"number": number, "items": items, "limits": asdict(self.limits)}
        try:
            helper.stdin.write(json.dumps(order).encode() + b"\n")
            helper.stdin.flush()
        except BrokenPipeError:
            pass  # it is gone; next_done starts another one and sends everything again

    def _alive(self) -> subprocess.Popen[bytes]:
        if self._helper is None:
            one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
            self._helper = subprocess.Popen(
                [sys.executable, "-c", _BOOT, json.dumps(sys.path), __file__, *self._worker()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | one_thread,
                start_new_session=True,  # Ctrl-C is for the parent, which then ends the helper
            )
        return self._helper

    def _worker(self) -> tuple[str, str]:
        return self.target, json.dumps(self.context)

    def _restart(self) -> None:
        """The helper itself was killed, as by a system out of memory: its jobs start anew."""
        self.close()
        self._restarts += 1
        if self._restarts > _MAX_RESTARTS:
            raise WorkerFailed(
                f"the process that reads files ended {self._restarts} times; "
                "try fewer --workers or less --memory"
            )
        for number, items in self._waiting.items():
            self._send(number, items)


@dataclass
class _Fork:
    """A job under way. Its fork writes a byte to the pipe whose end is `beat` after each item,
    and while it gets on with one."""

    number: int
    limits: JobLimits
    ends_at: float
    beat: int
    timed_out: bool = False


def serve(target: str, context: Item) -> NoReturn:
    """What the helper runs: fork for each job that comes in on stdin, until stdin ends."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    try:
        module, _, function = target.partition(":")
        worker = getattr(importlib.import_module(module), function)(context)
    except Exception as error:
        text = str(error) or type(error).__name__
        answers.write(json.dumps({"failed": text}).encode() + b"\n")
        os._exit(1)
    gc.freeze()  # else the first collection in every fork copies all of it
    forks: dict[int, _Fork] = {}
    pending = b""
    while True:
        beats = {fork.beat: pid for pid, fork in forks.items()}
        wait_s = min((fork.ends_at for fork in forks.values()), default=None)
        wait_s = None if wait_s is None else max(0.0, wait_s - time.monotonic())
        ready, _, _ = select.select([0, *beats], [], [], wait_s)
        if 0 in ready:
            data = os.read(0, 1 << 16)
            if not data:
                _end_all(forks)
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                _start(json.loads(line), worker, forks)
        for end in set(ready) & beats.keys():
            pid = beats[end]
            if os.read(end, 1 << 16):
                forks[pid].ends_at = time.monotonic() + forks[pid].limits.timeout_s
            else:  # the fork has ended, and with it its end of the pipe
                fork, verdict = _reaped(pid, forks)
                answer = {"number": fork.number, "verdict": asdict(verdict)}
                answers.write(json.dumps(answer).encode() + b"\n")
        _kill_late(forks)


def _end_all(forks: dict[int, _Fork]) -> NoReturn:
    for pid in forks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os._exit(0)


def _start(order: Item, worker: Worker, forks: dict[int, _Fork]) -> None:
    limits = JobLimits(**order["limits"])
    helper = os.getpid()
    heard, beat = os.pipe()
    pid = os.fork()
    if not pid:
        _work(worker, order["items"], limits, helper, beat)
    os.close(beat)
    forks[pid] = _Fork(order["number"], limits, time.monotonic() + limits.timeout_s, heard)


def _work(worker: Worker, items: list[Item], limits: JobLimits, helper: int, pipe: int) -> NoReturn:
    """The life of a fork."""
    code = _RAISED

    def beat() -> None:
        spent = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(spent.ru_utime + spent.ru_stime + limits.timeout_s) + 1
        _set_limit(resource.RLIMIT_CPU, soft, hard=False)
        os.write(pipe, b".")

    try:
        _die_with(helper)
        _limit(limits)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for item in items:
            beat()
            worker(item, beat)
        code = 0
    except MemoryError:
        code = _OUT_OF_MEMORY
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            code = _DISK_FULL
        else:
            sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


def _die_with(helper: int) -> None:
    """Have the system end this process when the helper ends (Linux; elsewhere limits do)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != helper:
        os._exit(_RAISED)


def _limit(limits: JobLimits) -> None:
    used = _address_space()
    if used:
        _set_limit(resource.RLIMIT_AS, used + limits.memory_mb * _MIB)
    _set_limit(resource.RLIMIT_CORE, 0)
    with contextlib.suppress(OSError):
        os.nice(5)


def _set_limit(kind: int, amount: int, *, hard: bool = True) -> None:
    _, top = resource.getrlimit(kind)
    if top != resource.RLIM_INFINITY:
        amount = min(amount, top)
    resource.setrlimit(kind, (amount, amount if hard else top))


def _address_space() -> int:
    """Bytes of address space of this process; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):
        return 0
    return pages * resource.getpagesize()


def _kill_late(forks: dict[int, _Fork]) -> None:
    now = time.monotonic()
    for pid, fork in forks.items():
        if now >= fork.ends_at:
            fork.timed_out, fork.ends_at = True, now + _START_S
            os.kill(pid, signal.SIGKILL)


def _reaped(pid: int, forks: dict[int, _Fork]) -> tuple[_Fork, Verdict]:
    fork = forks.pop(pid)
    os.close(fork.beat)
    _, status, usage = os.wait4(pid, 0)
    kind, reason = _verdict(fork, status)
    return fork, Verdict(kind, reason, usage.ru_utime + usage.ru_stime)


def _verdict(fork: _Fork, status: int) -> tuple[str, str]:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if fork.timed_out or number == signal.SIGXCPU:
            return "timeout", (
                f"made no progress for {fork.limits.timeout_s:g} s; "
                "raise --timeout if the file is in order"
            )
        name = signal.Signals(number).name
        more = "; the system may be out of memory" if number == signal.SIGKILL else ""
        return "crash", f"its reader was ended by {name}{more}"
    code = os.WEXITSTATUS(status)
    if code == _OUT_OF_MEMORY:
        return "memory", f"needs more than {fork.limits.memory_mb} MiB; raise --memory"
    if code == _DISK_FULL:
        return "disk", "no space left"
    return ("crash", f"its reader ended with code {code}") if code else ("", "")
