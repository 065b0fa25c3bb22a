"""Opens checkpoints, says what is in them, and finds the newest that is whole.

In: a path. Out: plain data, or a predictor with its encoders, without the training data. Every
checkpoint is opened by `read` and by nothing else: no URLs, the hash beside it checked, tensors and
plain types only.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mmpredict.exported import FORMAT, is_export, read_folder
from mmpredict.model import Predictor, PredictorConfig
from mmpredict.tokens import Codecs

PREFIX = "predictor."  # of the predictor's tensors in a checkpoint of Pretrain
ENDING = ".ckpt"
HASHES = ".sha256"  # of the file beside a checkpoint; `sha256sum -c` reads it too
OTHERS = "meta.pt"  # in the folder of a sharded checkpoint: all but the weights
CHUNK = 1 << 22  # bytes read at a time
NEXT, LAST, PREVIOUS = (f"{name}{ENDING}" for name in ("next", "last", "previous"))


class DamagedCheckpoint(ValueError):
    """A checkpoint is not what was written: its hash differs, or it cannot be read."""


def describe(predictor: Predictor, codecs: Codecs, context_length: int) -> dict[str, Any]:
    """Plain types from which `load_predictor` builds the predictor and its encoders again."""
    return {
        "format": FORMAT,
        "predictor": asdict(predictor.config),
        "codecs": codecs.to_plain(),
        "context_length": context_length,
    }


# -- opening -----------------------------------------------------------------------------------


def read(path: str | Path, *, mmap: bool = False, verify: bool = True) -> dict[str, Any]:
    """All that a checkpoint holds, on the CPU: tensors and plain types (`weights_only=True`).

    Args:
        path: a local file; or a run folder or its ckpt/, for the newest whole checkpoint there; or
            the folder of a sharded checkpoint, of which all but the weights is read.
        mmap: leave the tensors in the file until they are used.
        verify: compare the hash beside it first, where there is one, and name what was passed over.
    """
    path = locate(path, say=verify)
    if verify:
        check_hash(path)
    return _opened(path, mmap=mmap)


def _opened(path: Path, *, mmap: bool) -> dict[str, Any]:
    inside = path / OTHERS if path.is_dir() else path
    try:
        found = torch.load(inside, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        raise DamagedCheckpoint(f"checkpoint {str(path)!r} {_reason(error)}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no checkpoint: it holds a {type(found).__name__}")
    return found


def _reason(error: Exception) -> str:
    """What is wrong, in a line; torch's own advice, to load it anyway, is left out."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, pickle.UnpicklingError):
        thing = re.search(r"GLOBAL ([\w.]+)", text)
        if thing is None:
            return "is damaged"
        return f"holds {thing[1]}, not only plain data; it was not loaded: that could run any code"
    return f"cannot be read: {text.splitlines()[0][:200]}"


def refuse_url(path: str | Path) -> None:
    """Only local files are opened: what a server gives may be another file the next time."""
    if "://" in str(path):
        raise ValueError(f"checkpoint {path} is a URL; download it first and give the local file")


def description(checkpoint: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """What a checkpoint of Pretrain says of itself; refused if this version cannot use it."""
    about = checkpoint.get("mmpredict")
    if about is None:
        raise ValueError(f"checkpoint {path} was not written by mmpredict (no 'mmpredict' entry)")
    if about["format"] > FORMAT:
        raise ValueError(
            f"checkpoint {path} has format {about['format']}, this version reads up to {FORMAT}; "
            "install a newer mmpredict"
        )
    if about["format"] < FORMAT:
        raise ValueError(
            f"checkpoint {path} has format {about['format']}, of an early version whose layers had "
            f"other names; this version reads format {FORMAT}: train anew, or use the version that "
            "wrote it"
        )
    return about


def load_predictor(path: str | Path) -> tuple[Predictor, Codecs, dict[str, Any]]:
    """A predictor in evaluation mode, its encoders, and the checkpoint's own description; so too
    from the folder of an export."""
    if is_export(path):
        return read_folder(path)
    checkpoint = read(path)
    about = description(checkpoint, path)
    if "state_dict" not in checkpoint:
        raise ValueError(
            f"checkpoint {path} is sharded over devices; resume it with the strategy that wrote "
            "it, or train with save_distributed_checkpoint: false to get one file"
        )
    codecs = Codecs.from_plain(about["codecs"])
    config = PredictorConfig.from_plain(about["predictor"])
    predictor = Predictor(codecs.layout, config)
    state = {  # beside it stand the weights of the losses, where they are learned
        name.removeprefix(PREFIX): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(PREFIX)
    }
    if "adapters" in about:
        from mmpredict.training.lora import merged  # it asks for the base here in turn

        state = merged(state, about, locate(path), predictor.state_dict())
    predictor.load_state_dict(state)
    return predictor.eval(), codecs, about


# -- hashes ------------------------------------------------------------------------------------


def hashes_path(path: Path) -> Path:
    """Where the hashes of a checkpoint stand."""
    return path.with_name(path.name + HASHES)


def files_of(path: Path) -> list[Path]:
    """The files of a checkpoint: itself, or all in its folder."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def known_hashes(path: Path) -> dict[str, set[str]]:
    """By file, in its own folder ("" for a checkpoint that is one file), the hashes that it may
    have: two while a new checkpoint takes the place of an old one."""
    lines = re.findall(r"(?m)^([0-9a-f]{64})  (.+)$", hashes_path(path).read_text("utf-8"))
    found: dict[str, set[str]] = {}
    for digest, name in lines:
        found.setdefault(name.partition("/")[2], set()).add(digest)
    return found


def check_hash(path: Path) -> bool:
    """Compare a checkpoint with the hashes beside it; False if there are none."""
    if not hashes_path(path).is_file():
        return False
    known = known_hashes(path)
    if not known:
        raise DamagedCheckpoint(f"{hashes_path(path)} holds no hash; it is damaged")
    present = {str(p.relative_to(path)) if path.is_dir() else "": p for p in files_of(path)}
    missing = sorted(known.keys() - present.keys())
    if missing:
        raise DamagedCheckpoint(f"checkpoint {path} lacks {', '.join(missing[:3])}")
    for name, digests in known.items():
        with present[name].open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() not in digests:
                raise DamagedCheckpoint(
                    f"checkpoint {path} is damaged: its sha256 is not the one in "
                    f"{hashes_path(path).name}"
                )
    return True


# -- finding -----------------------------------------------------------------------------------


def is_sharded(path: Path) -> bool:
    """Whether this folder is one checkpoint, written by several devices."""
    return (path / OTHERS).is_file()


def locate(path: str | Path, *, say: bool = True) -> Path:
    """The checkpoint that a path names; of a run folder or its ckpt/ the newest that is whole.

    Args:
        say: name those that were passed over because they are damaged, on stdout.
    """
    refuse_url(path)
    place = Path(path)
    if place.is_dir() and not is_sharded(place):
        found, skipped = newest(place)
        for reason in skipped if say else ():
            print(f"note: passed over: {reason}", flush=True)
        if found is None:
            why = ": " + "; ".join(skipped) if skipped else f" (no *{ENDING} in it or in ckpt/)"
            raise FileNotFoundError(f"there is no whole checkpoint in {place}{why}")
        return found
    if not place.exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    return place


def candidates(folder: Path) -> list[Path]:
    """The checkpoints of a run folder or of its ckpt/, newest first."""
    inside = folder / "ckpt"
    folder = inside if inside.is_dir() else folder
    order = {name: place for place, name in enumerate((NEXT, LAST, PREVIOUS))}

    def age(path: Path) -> tuple[int, float]:
        return order.get(path.name, len(order)), -path.stat().st_mtime

    return sorted(folder.glob(f"*{ENDING}"), key=age)


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run folder or of its ckpt/ (None if there is none), and why
    those that are newer were passed over."""
    skipped: list[str] = []
    for path in candidates(folder):
        try:
            check_hash(path)
            _opened(path, mmap=path.is_file())
        except (DamagedCheckpoint, OSError) as error:
            skipped.append(str(error))
        else:
            return path, skipped
    return None, skipped
