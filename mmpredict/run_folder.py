"""Where a run keeps what it makes: `runs/<recipe>/<time>-<hash>/`, or what `--run_dir` names.

In: the recipe's name and its settings as text. Out: a folder, and env.json on what ran where.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

RUNS = "runs"
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
        folder.mkdir(parents=True, exist_ok=True)
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
    while folder.exists():
        number += 1
        folder = stem.with_name(f"{stem.name}-{number}")
    folder.mkdir(parents=True)
    os.environ[CHILD_VARIABLE] = str(folder.resolve())
    return folder


def environment() -> dict[str, object]:
    """What another person needs to know to repeat this run."""
    import torch

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["mmpredict", *sys.argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "git": _git_commit(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


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


def _cpu() -> str:
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
