"""What can be said of a machine and an installation without running anything. In: the system's own
files. Out: findings, each with a remedy where something is wrong. Nothing heavy is imported.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmpredict.run_folder import cpu_name

FINE, NOTE, WRONG = "fine", "note", "WRONG"
GIB = 1 << 30
LEAST_DISK, WANTED_DISK = GIB, 10 * GIB
LEAST_SHM, LEAST_FILES, LEAST_MEMORY = GIB, 1024, 2 * GIB
# Uploads that carried malware (GHSA-w37p-236h-pfx3), under both names of the project.
MALICIOUS = {name: ("2.6.2", "2.6.3") for name in ("pytorch-lightning", "lightning")}
FLAGS = ("avx2", "avx512f", "amx_bf16")
UNSAFE = {
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "any checkpoint can run code while it is read",
    "LD_PRELOAD": "every process loads foreign code first",
}
STALE = ("MMPREDICT_RUN_DIR", "RANK", "LOCAL_RANK", "WORLD_SIZE")  # left by another launch


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        state: fine, note (works, but) or WRONG.
        what: in a word.
        text: what was found.
        remedy: what to do about it; empty where nothing needs to be done.
    """

    state: Literal["fine", "note", "WRONG"]
    what: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.state:<5}  {self.what:<9}  {self.text}"
        return f"{line}\n{'':18}-> {self.remedy}" if self.remedy else line


def facts(run_dir: Path) -> Iterator[Finding]:
    """All findings, in the order in which a reader wants them."""
    yield from packages(_requirements())
    yield from cpu()
    yield memory()
    yield gpu()
    yield disk(run_dir)
    yield temporary(run_dir)
    yield from variables(os.environ)
    yield shared_memory(Path("/dev/shm"))
    yield from limits()
    yield home()


def _requirements() -> list[str]:
    try:
        return importlib.metadata.requires("mmpredict") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def packages(required: list[str]) -> Iterator[Finding]:
    """Python and the packages of pyproject.toml, with their bounds."""
    shown = f"Python {platform.python_version()}"
    if sys.version_info >= (3, 14):
        yield Finding(NOTE, "python", f"{shown}, not tried yet", "install Python 3.13")
    else:
        yield Finding(FINE, "python", f"{shown} at {sys.executable}")
    if not required:
        yield Finding(NOTE, "packages", "mmpredict is not installed", "pip install -e .")
        return
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield Finding(WRONG, "packages", "`packaging` is missing", "pip install packaging")
        return
    fine = []
    for text in required:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        have = _version(wanted.name)
        bad = MALICIOUS.get(wanted.name, ())
        if have is None:
            yield Finding(WRONG, "packages", f"{wanted.name} is missing", f"pip install '{wanted}'")
        elif have not in bad and not wanted.specifier.contains(have, prereleases=True):
            yield Finding(
                WRONG,
                "packages",
                f"{wanted.name} {have}, wanted {wanted.specifier}",
                f"pip install '{wanted}'",
            )
        elif have not in bad:
            fine.append(f"{wanted.name} {have}")
    yield Finding(FINE, "packages", ", ".join(fine) or "none as wanted")
    yield from _harmful()


def _harmful() -> Iterator[Finding]:
    for name, bad in MALICIOUS.items():
        if (have := _version(name)) in bad:
            yield Finding(
                WRONG,
                "packages",
                f"{name} {have} was a malicious upload",
                f"pip uninstall {name}; then change every password and token of this machine",
            )
    if _version("lightning") is not None:
        yield Finding(
            WRONG,
            "packages",
            "`lightning` stands beside `pytorch-lightning`: two Trainers that refuse each other",
            "pip uninstall lightning",
        )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu() -> Iterator[Finding]:
    """Its name, what it can, and how much of it we may use."""
    text = _read(Path("/proc/cpuinfo"))
    lines = [line for line in text.splitlines() if line.startswith(("flags", "Features"))]
    have = set(lines[0].split()) if lines else set()
    known = [flag for flag in FLAGS if flag in have]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _quota(_read(Path("/sys/fs/cgroup/cpu.max")))
    shown = f"{cpu_name() or platform.machine()}, {cores} of {os.cpu_count()} cores"
    yield Finding(FINE, "cpu", f"{shown}, {' '.join(known) or 'no vector units that matter here'}")
    if quota is not None and cores and quota < cores:
        yield Finding(
            NOTE,
            "cpu",
            f"a container's limit gives {quota:g} of {cores} cores",
            f"OMP_NUM_THREADS={max(1, int(quota))}, or more threads only wait for each other",
        )
    if have and "avx2" not in have and platform.machine() in ("x86_64", "AMD64"):
        yield Finding(NOTE, "cpu", "no AVX2: training is several times slower", "a newer CPU")


def _quota(text: str) -> float | None:
    """Cores of a cgroup's cpu.max ("150000 100000"); None without a limit."""
    words = text.split()
    if len(words) != 2 or not all(word.isdigit() for word in words) or not int(words[1]):
        return None
    return int(words[0]) / int(words[1])


def memory() -> Finding:
    """Of the machine, or of the container."""
    found = [line.split() for line in _read(Path("/proc/meminfo")).splitlines()]
    sizes = {words[0]: int(words[1]) * 1024 for words in found if len(words) == 3}
    total, free = sizes.get("MemTotal:", 0), sizes.get("MemAvailable:", 0)
    limit = _read(Path("/sys/fs/cgroup/memory.max")).strip()
    if limit.isdigit() and int(limit) < total:
        total, free = int(limit), min(free, int(limit))
    if not total:
        return Finding(NOTE, "memory", "not known on this system")
    text = f"{total / GIB:.1f} GiB, {free / GIB:.1f} GiB of it free"
    if free < LEAST_MEMORY:
        return Finding(NOTE, "memory", text, "the quickstart needs 3 GiB; end other programs")
    return Finding(FINE, "memory", text)


def gpu(proc: Path = Path("/proc/driver/nvidia")) -> Finding:
    """What the driver says; whether torch can use it, the trial says."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return Finding(FINE, "gpu", "Apple")
    cards = [_read(path) for path in sorted(proc.glob("gpus/*/information"))]
    names = [
        line.partition(":")[2].strip()
        for card in cards
        for line in card.splitlines()
        if line.startswith("Model")
    ]
    if names:
        words = _read(proc / "version").split()
        version = next((word for word in words if word[:1].isdigit() and "." in word), "unknown")
        return Finding(FINE, "gpu", f"{', '.join(names)}; driver {version}")
    return Finding(FINE, "gpu", "none found; not needed")


def disk(run_dir: Path) -> Finding:
    """Room where runs are kept."""
    place = _existing(run_dir)
    free = shutil.disk_usage(place).free
    text = f"{free / GIB:.1f} GiB free for {run_dir} ({_filesystem(place)})"
    if not os.access(place, os.W_OK):
        return Finding(WRONG, "disk", f"{place} cannot be written to", "--run_dir DIR")
    if free < LEAST_DISK:
        return Finding(WRONG, "disk", text, "free some; a run of the quickstart keeps 100 MB")
    if free < WANTED_DISK:
        return Finding(NOTE, "disk", text, "a large model's checkpoints need more")
    return Finding(FINE, "disk", text)


def temporary(run_dir: Path) -> Finding:
    """The folder for temporary files; ours are written where they will lie."""
    try:
        folder = Path(tempfile.gettempdir())
    except OSError as error:
        return Finding(WRONG, "temporary", str(error), "set TMPDIR to a folder of yours")
    free = shutil.disk_usage(folder).free
    same = folder.stat().st_dev == _existing(run_dir).stat().st_dev
    text = f"{folder} ({_filesystem(folder)}), {free / GIB:.1f} GiB free"
    text += "" if same else ", not the disk of the runs (checkpoints do not pass through it)"
    if free < LEAST_DISK:
        return Finding(NOTE, "temporary", text, "set TMPDIR to a folder with more room")
    return Finding(FINE, "temporary", text)


def variables(env: Mapping[str, str]) -> Iterator[Finding]:
    """Of the environment, those that change what is safe, or what a run does."""
    unsafe = [name for name in UNSAFE if env.get(name, "0") not in ("", "0")]
    for name in unsafe:
        is_wrong = name == "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
        state = WRONG if is_wrong else NOTE
        yield Finding(state, "variables", f"{name} is set: {UNSAFE[name]}", f"unset {name}")
    stale = [name for name in STALE if name in env]
    if stale:
        yield Finding(
            NOTE,
            "variables",
            f"{', '.join(stale)} set: a run takes itself for a part of another one",
            f"unset {' '.join(stale)}",
        )
    threads, cores = env.get("OMP_NUM_THREADS", ""), os.cpu_count() or 1
    if threads.isdigit() and int(threads) > cores:
        said = f"OMP_NUM_THREADS={threads} on {cores} cores"
        yield Finding(NOTE, "variables", said, f"OMP_NUM_THREADS={cores}")
    if not unsafe and not stale:
        yield Finding(FINE, "variables", "none that is unsafe or left over")


def shared_memory(place: Path) -> Finding:
    """Through which loader workers hand over batches."""
    if not place.is_dir():
        return Finding(NOTE, "shm", f"no {place}", "data.loading.workers 0 works without")
    size = shutil.disk_usage(place).total
    if size < LEAST_SHM:
        said = f"{place} has {size / (1 << 20):.0f} MiB"
        remedy = "docker run --shm-size 2g, or data.loading.workers 0"
        return Finding(NOTE, "shm", said, remedy)
    return Finding(FINE, "shm", f"{place}, {size / GIB:.1f} GiB")


def limits() -> Iterator[Finding]:
    """How many files may be open, and how large one may be."""
    try:
        import resource
    except ImportError:  # not on this system
        return
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    endless = most == resource.RLIM_INFINITY
    if not endless and most < LEAST_FILES:
        yield Finding(NOTE, "limits", f"{most} open files", f"ulimit -n {4 * LEAST_FILES}")
    else:
        yield Finding(FINE, "limits", f"{'any number of' if endless else most} open files")
    size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if size != resource.RLIM_INFINITY:
        said = f"files may have {size / (1 << 20):.0f} MiB at most"
        yield Finding(NOTE, "limits", said, "ulimit -f unlimited; checkpoints may be larger")


def home() -> Finding:
    """Caches of packages lie there; ours needs none."""
    place = Path(os.path.expanduser("~"))
    if place.is_dir() and os.access(place, os.W_OK):
        return Finding(FINE, "home", str(place))
    return Finding(NOTE, "home", f"{place} cannot be written to; mmpredict does not need it")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _existing(path: Path) -> Path:
    """The nearest folder above that exists."""
    path = path.absolute()
    return path if path.is_dir() else _existing(path.parent)


def _filesystem(path: Path) -> str:
    """The kind of the file system that a path lies on, as Linux names it."""
    place, best = str(path.resolve()), ("", "file system not known")
    for line in _read(Path("/proc/mounts")).splitlines():
        words = line.split()
        inside = len(words) > 2 and (place + "/").startswith(words[1].rstrip("/") + "/")
        if inside and len(words[1]) >= len(best[0]):
            best = (words[1], words[2])
    return best[1]
