"""Where a run keeps what it makes: `runs/<recipe>/<time>-<hash>/`, or what `--run_dir` names.

In: the recipe's name and its settings as text. Out: a folder, and env.json on what ran where.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

RUNS = "runs"
LOCK = ".lock"  # in a run folder: which process writes there
CHILD_VARIABLE = "MMPREDICT_RUN_DIR"  # tells the processes of further ranks where rank 0 writes
PACKAGES = (
    "mmpredict",
    "torch",
    "torchvision",
    "torchaudio",
    "pytorch-lightning",
    "jsonargparse",
    "av",
    "timm",
    "numpy",
    "tokenizers",
    "pymunk",
)


def safe_name(text: str) -> str:
    """A name made of letters, digits, dot, dash and underscore, 1 to 64 of them, not hidden."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text).lstrip(".")[:64] or "run"


def choose(asked: str | None, name: str, settings: str) -> Path:
    """The folder of this run; made here, by the first rank only.

    Args:
        asked: `--run_dir`, or None for a fresh folder below `runs/`.
        name: of the recipe.
        settings: the whole configuration; its hash tells runs of one second apart.
    """
    if asked is not None:
        folder = Path(asked)
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"run_dir {asked!r} is a file; name a folder")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _not_writable(folder, error) from error
        return folder
    if int(os.environ.get("LOCAL_RANK", "0")) > 0 and CHILD_VARIABLE in os.environ:
        return Path(os.environ[CHILD_VARIABLE])
    if int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1:
        raise ValueError(
            "several processes were started from outside; give all of them one --run_dir"
        )
    digest = hashlib.sha256(settings.encode()).hexdigest()[:6]
    stem = Path(RUNS) / safe_name(name) / f"{datetime.now():%Y%m%d-%H%M%S}-{digest}"
    folder, number = stem, 1
    while not _made(folder):
        number += 1
        folder = stem.with_name(f"{stem.name}-{number}")
    os.environ[CHILD_VARIABLE] = str(folder.resolve())
    return folder


def _made(folder: Path) -> bool:
    """Make a folder; False if it is there already, perhaps made by another process just now."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def lock(folder: Path) -> None:
    """Keep other processes from writing to this run folder as long as this process lives.

    The lock is the system's own on the file `.lock`: it goes with the process, however that ends,
    and is not inherited by loader workers. Ranks of one run share the lock of the first.

    Raises:
        ValueError: another process has the lock, or nothing can be written here.
    """
    if not _is_first_rank():
        return
    path = folder / LOCK
    try:
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _not_writable(folder, error) from error
    holder = _lock_or_holder(opened)
    if holder is not None:
        os.close(opened)
        raise ValueError(
            f"run_dir {folder} is in use by {holder}; two runs would overwrite each other's "
            "files. Wait, end that process, or name another folder: --run_dir DIR"
        )
    note = {"pid": os.getpid(), "host": platform.node(), "since": f"{datetime.now(UTC):%F %T} UTC"}
    os.ftruncate(opened, 0)
    os.pwrite(opened, f"{json.dumps(note)}\n".encode(), 0)  # left open: closing would unlock


def _lock_or_holder(opened: int) -> str | None:
    """Take the lock; who has it, if somebody else does."""
    try:
        import fcntl
    except ImportError:  # not on this system, which then has no lock
        return None
    try:
        # Not flock: that lock would live on in the workers of a process that was killed.
        fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            print(f"note: this disk knows no locks ({error.strerror}); start one run a folder")
            return None
        return _holder(os.pread(opened, 1000, 0))
    return None


def _holder(note: bytes) -> str:
    """A process in words, from what it wrote into the lock."""
    try:
        said = json.loads(note)
        return f"process {said['pid']} on {said['host']}, since {said['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _is_first_rank() -> bool:
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
    return all(os.environ.get(name, "0") in ("", "0") for name in names)


def _not_writable(folder: Path, error: OSError) -> ValueError:
    return ValueError(
        f"run_dir {folder} cannot be written to: {error.strerror or error}; name a folder of yours "
        "on a disk that is not read-only: --run_dir DIR"
    )


def environment() -> dict[str, object]:
    """What another person needs to know to repeat this run."""
    import torch

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["mmpredict", *sys.argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "git": _git_commit(),
        "versions": versions_of(PACKAGES),
    }


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Of those packages that are installed."""
    return {name: version for name in packages if (version := _version(name))}


def write_environment(folder: Path) -> None:
    """Write env.json; a later start in the same folder adds to the list instead of replacing it."""
    path = folder / "env.json"
    starts: list[object] = []
    if path.is_file():
        try:
            starts = json.loads(path.read_text(encoding="utf-8"))["starts"]
        except (ValueError, KeyError, TypeError):
            starts = []  # a damaged note must not stop a run
    text = json.dumps({"starts": [*starts, environment()]}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """What the system calls its processor; empty if it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git_commit() -> str | None:
    """The commit of our own checkout, with a plus sign when files differ from it."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return f"{commit}+" if _git(root, "status", "--porcelain", "-uno") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()
