"""A predictor and its encoders to a folder and back. In: a Predictor, its Codecs. Out: a folder of
plain files: model.safetensors, config.json, tokenizer.json where the text has a trained vocabulary,
and whatever texts come along. Nothing in it can run code when it is read.

The folder is written whole or not at all: beside its place first, then renamed.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmpredict.model import Predictor, PredictorConfig
from mmpredict.schema import UserError
from mmpredict.tokens import Codecs

FORMAT = 2  # of a predictor's tensors and their names; 1: before the trunk was a module of its own
KIND = "mmpredict predictor"  # says in config.json that the folder is one of ours
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
MAX_CONFIG_BYTES = 16_000_000
MAX_TOKENIZER_BYTES = 256_000_000
MAX_HEADER_BYTES = 100_000_000  # what safetensors itself allows
MAX_DEPTH = 10_000
SHOWN = 5  # names in a message


def is_export(path: str | Path) -> bool:
    """Whether a folder looks like one that `write_folder` wrote."""
    return (Path(path) / CONFIG).is_file() and (Path(path) / WEIGHTS).is_file()


def write_folder(  # noqa: PLR0913 - all that a folder is made of
    folder: str | Path,
    predictor: Predictor,
    codecs: Codecs,
    *,
    context_length: int | None,
    versions: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write a predictor so that `read_folder` gives the same one again, on any machine.

    Args:
        folder: made here; one that holds something is refused.
        predictor: with the weights that are to be kept.
        codecs: its encoders; a vocabulary goes to a file of its own.
        context_length: positions of a row in training; None where it is not known.
        versions: of packages, for the reader.
        texts: further files by name ("README.md").
        overwrite: replace an earlier export that lies there; nothing else is ever replaced.

    Returns:
        The files.
    """
    folder = Path(folder)
    check_place(folder, overwrite=overwrite)
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    absolute = folder.absolute()
    part = Path(tempfile.mkdtemp(prefix=f".{absolute.name}.", suffix=".part", dir=absolute.parent))
    try:
        for name, text in (texts or {}).items():
            (part / name).write_text(text, encoding="utf-8")
        _write_config(part, predictor, codecs, context_length, versions or {})
        _write_weights(part / WEIGHTS, predictor)
        for path in part.iterdir():
            _sync(path)
        _put_in_place(part, absolute)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    _sync(absolute.parent)
    return sorted(folder.iterdir())


def check_place(folder: Path, *, overwrite: bool) -> None:
    """Raise UserError where a folder may not be written to."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder} is a file or a link; name a folder that does not exist yet")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise UserError(
            f"{folder} is not empty; name another folder, or say --overwrite if it is an earlier "
            "export that is to be replaced"
        )
    try:
        _plain_config(folder)
    except UserError as error:
        raise UserError(
            f"{folder} is not empty and no export of mmpredict; --overwrite replaces those alone"
        ) from error


def _put_in_place(part: Path, folder: Path) -> None:
    """Rename `part`; an earlier export steps aside first, and comes back if that fails."""
    part.chmod(0o777 & ~_umask())
    if not folder.is_dir() or not any(folder.iterdir()):
        os.replace(part, folder)  # an empty folder is replaced
        return
    aside = part.with_suffix(".old")
    os.replace(folder, aside)
    try:
        os.replace(part, folder)
    except OSError:
        os.replace(aside, folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    """Until this returns, a file may exist in memory alone."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _write_config(
    part: Path,
    predictor: Predictor,
    codecs: Codecs,
    context_length: int | None,
    versions: Mapping[str, str],
) -> None:
    plain = codecs.to_plain()
    text = plain["text"]
    if text is not None and text["vocabulary"] is not None:
        (part / TOKENIZER).write_text(text["vocabulary"], encoding="utf-8", newline="")
        # The file of the machine that trained: of no use elsewhere, and nobody's business.
        plain["text"] = text | {"vocabulary": None, "path": text["path"] and TOKENIZER}
    about = {
        "kind": KIND,
        "format": FORMAT,
        "predictor": _portable(asdict(predictor.config)),
        "codecs": plain,
        "context_length": context_length,
        "versions": dict(versions),
    }
    text = json.dumps(about, indent=2, allow_nan=False)
    (part / CONFIG).write_text(f"{text}\n", encoding="utf-8")


def _portable(config: dict[str, Any]) -> dict[str, Any]:
    """Without the files and downloads that weights came from: they are in the export now."""
    encoders = {
        name: encoder | {"pretrained": False, "weights": None}
        for name, encoder in config["encoders"].items()
    }
    return config | {"encoders": encoders}


def _write_weights(path: Path, predictor: Predictor) -> None:
    from safetensors.torch import save_file

    state = predictor.state_dict()
    second = _second_names(state)
    kept = {n: t.detach().contiguous().cpu() for n, t in state.items() if n not in second}
    save_file(kept, path, metadata={"format": "pt"})


def _second_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of tensors that are another's memory too (a tied table), and that other's name."""
    first: dict[tuple[Any, ...], str] = {}
    second: dict[str, str] = {}
    for name in sorted(state):
        tensor = state[name]
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and place in first:
            second[name] = first[place]
        else:
            first[place] = name
    return second


def read_folder(folder: str | Path) -> tuple[Predictor, Codecs, dict[str, Any]]:
    """The predictor of an export in evaluation mode, its encoders, and what config.json says.

    Raises:
        UserError: a file is missing, damaged, or does not fit the others.
    """
    folder = Path(folder)
    about = _plain_config(folder)
    _check_format(folder, about)
    weights = _open_weights(folder / WEIGHTS)
    with weights as tensors:
        predictor, codecs = _build(folder, about, num_tensors=len(tensors.keys()))
        state = predictor.state_dict()
        second = _second_names(state)
        _check_tensors(folder, {n: t for n, t in state.items() if n not in second}, tensors)
        found = {name: tensors.get_tensor(second.get(name, name)) for name in state}
    predictor.load_state_dict(found)
    return predictor.eval(), codecs, about | {"codecs": codecs.to_plain()}


def _plain_config(folder: Path) -> dict[str, Any]:
    """What config.json says, if it is ours."""
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder} has no {CONFIG}; is it a folder that mmpredict export wrote?")
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {str(error)[:200] or 'nested too deeply'}") from error
    if not isinstance(about, dict) or about.get("kind") != KIND:
        raise UserError(f"{path} was not written by mmpredict export (kind is not {KIND!r})")
    return about


def _check_format(folder: Path, about: Mapping[str, Any]) -> None:
    have = about.get("format")
    if have == FORMAT:
        return
    newer = isinstance(have, int) and have > FORMAT
    remedy = "install a newer mmpredict" if newer else "export it again from its checkpoint"
    raise UserError(f"{folder} has format {have}, this version reads {FORMAT}; {remedy}")


def _open_weights(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path} does not exist; the export is not whole")
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > min(MAX_HEADER_BYTES, path.stat().st_size):
        raise UserError(f"{path} is damaged: it says that its head has {header} bytes")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {str(error)[:200]}") from error


def _build(folder: Path, about: Mapping[str, Any], num_tensors: int) -> tuple[Predictor, Codecs]:
    """A predictor of the sizes in config.json, not yet with its weights.

    A layer has several tensors, so a file of few tensors bounds what a false config.json can ask.
    """
    try:
        plain = dict(about["codecs"])
        if plain.get("text") is not None:
            plain["text"] = _with_vocabulary(folder, plain["text"])
        codecs = Codecs.from_plain(plain)
        config = PredictorConfig.from_plain(about["predictor"])
        if config.depth > num_tensors:
            raise ValueError(f"depth {config.depth} for a file of {num_tensors} tensors")
        for encoder in config.encoders.values():
            if encoder.brings_weights:
                raise ValueError("an encoder's weights are to come from outside the export")
        if any(getattr(head, "tokenizer", "") for head in config.heads.values()):
            raise ValueError("a head's tokenizer is to come from outside the export")
        with torch.device("meta"):  # sizes that no memory holds are found before it is asked for
            sizes = Predictor(codecs.layout, config).state_dict()
        _check_sizes(folder, sizes)
        return Predictor(codecs.layout, config), codecs
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"{folder / CONFIG} does not describe a predictor: {type(error).__name__}: {reason}"
        ) from error


def _with_vocabulary(folder: Path, text: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the text with the vocabulary from its file, and from no other place."""
    if text.get("kind") != "bpe":
        return dict(text)
    path = folder / TOKENIZER
    if text.get("path") not in (None, TOKENIZER) or text.get("vocabulary") is not None:
        raise ValueError(f"the vocabulary is to come from another place than {TOKENIZER}")
    if not path.is_file() or path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise UserError(f"{path} is missing, or too large; the export is not whole")
    return {**text, "vocabulary": path.read_bytes().decode("utf-8")}


def _check_sizes(folder: Path, sizes: Mapping[str, Tensor]) -> None:
    """The weights cannot have more numbers than the file has bytes."""
    numbers = sum(tensor.numel() for tensor in sizes.values())
    have = (folder / WEIGHTS).stat().st_size
    if numbers > 2 * have:  # a tied table counts twice
        raise UserError(
            f"{folder}: {CONFIG} asks for {numbers:,} numbers, {WEIGHTS} has {have:,} bytes; the "
            "two do not belong together"
        )


def _check_tensors(folder: Path, wanted: Mapping[str, Tensor], tensors: Any) -> None:
    """Every tensor has its place, its shape and its type."""
    have = set(tensors.keys())
    missing, extra = sorted(wanted.keys() - have), sorted(have - wanted.keys())
    if missing or extra:
        parts = [_few(missing, "are missing"), _few(extra, "have no place")]
        raise UserError(f"{folder / WEIGHTS}: of its tensors {'; '.join(filter(None, parts))}")
    wrong = []
    for name, tensor in wanted.items():
        found = tensors.get_tensor(name)
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            wrong.append(f"{name} {tuple(found.shape)} {found.dtype}")
    if wrong:
        raise UserError(
            f"{folder / WEIGHTS}: {_few(wrong, 'are not as config.json says')}; do the two files "
            "belong together?"
        )


def _few(names: list[str], what: str) -> str:
    if not names:
        return ""
    more = ", ..." if len(names) > SHOWN else ""
    return f"{len(names)} {what}: {', '.join(names[:SHOWN])}{more}"
