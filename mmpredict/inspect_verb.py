"""`mmpredict inspect`: what is in a file, a folder, a shard or a checkpoint, as plain text.

Only `run` imports torch; what is measured and how it is put in words lies in mmpredict/shards.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmpredict.recipe_files import Setting
    from mmpredict.survey.expected import Plan

TRAINER_KEYS = {"state_dict", "loops", "callbacks", "hyper_parameters", "mmpredict"}
DIGEST_BYTES = 8  # of each source, that a checkpoint keeps
QUIET_S = 1.0  # no progress for what is done so quickly
LOG_EVERY_S = 30.0  # where progress goes to a file
FORMATS = {  # what a folder without media may be, by a suffix of its files
    ".tar": "it holds .tar files: inspect them one by one; datamodules.WebDataset reads them",
    ".parquet": "it holds tables: datamodules.Parquet or datamodules.LeRobot reads them",
    ".ckpt": "it holds checkpoints: inspect them one by one",
}
USES = {  # option -> kinds of PATH that it goes with, and what it does
    "verify": (("shards",), "checks the hashes that only shards have"),
    "decode": (("media", "folder"), "decodes media files"),
    "config": (("media", "folder", "text"), "counts tokens of media and text files"),
    "limit": (("folder",), "is for folders of media files"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `inspect`."""
    add = parser.add_argument
    add(
        "path",
        metavar="PATH",
        help="a media or text file, a folder, a folder of shards, a .tar or a .ckpt",
    )
    add("--verify", action="store_true", help="shards: check every hash; exit code 1 if one fails")
    add("--decode", action="store_true", help="media: decode everything, from start to end")
    add(
        "--config",
        "--recipe",
        metavar="RECIPE",
        help="media: count documents and tokens as this recipe would (default: the encoders' own)",
    )
    add("--limit", type=int, metavar="N", help="folders: look at N files only, spread evenly")
    add("--all", action="store_true", help="name every file of a list, not only the first 20")
    add("--json", type=Path, metavar="FILE", help="write all figures to FILE, too")


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What can be said of the options before torch is loaded."""
    if "://" not in args.path and not os.path.exists(args.path):
        parser.error(f"{args.path!r} does not exist")
    if args.limit is not None and args.limit < 1:
        parser.error(f"--limit {args.limit} must be 1 or more")
    if args.json is not None and not args.json.absolute().parent.is_dir():
        parser.error(f"--json {args.json}: the folder {args.json.parent} does not exist")


def run(args: argparse.Namespace) -> int:
    """Look, print, and return the exit code: 1 if `--verify` found damage.

    Raises:
        ValueError: a mistake of the user, in words.
    """
    from mmpredict.survey.page_rows import printed

    path, kind = Path(args.path), kind_of(args.path)
    for option, (kinds, what) in USES.items():
        if getattr(args, option) not in (None, False) and kind not in kinds:
            raise ValueError(f"--{option} {what}; {path} is of the kind {kind!r}")
    look = {
        "folder": _folder,
        "media": _media,
        "text": _text,
        "shards": _shards,
        "checkpoint": _checkpoint,
    }[kind]
    lines, figures, code = look(path, args)
    print(printed(lines))
    if args.json is not None:
        text = json.dumps({"what": kind, **plain(figures)}, indent=1, allow_nan=False)
        args.json.write_text(text + "\n", encoding="utf-8")
    return code


Found = tuple[list[str], Any, int]  # lines to print, figures for --json, exit code


def kind_of(given: str) -> str:
    """What PATH is: folder (or manifest), media, text, shards or checkpoint."""
    from mmpredict.exported import is_export
    from mmpredict.media import AUDIO_SUFFIXES, IMAGE_SUFFIXES, TEXT_SUFFIXES, VIDEO_SUFFIXES
    from mmpredict.shards import INDEX_NAME

    path = Path(given)
    suffix = path.suffix.lower()
    if "://" in given or suffix == ".tar" or path.name == INDEX_NAME:
        return "shards"
    if path.is_dir():
        kind = "checkpoint" if is_export(path) else "folder"
        return "shards" if (path / INDEX_NAME).is_file() else kind
    if suffix == ".jsonl" and is_manifest(path):
        return "folder"
    known = {
        "checkpoint": (".ckpt",),
        "media": VIDEO_SUFFIXES + AUDIO_SUFFIXES + IMAGE_SUFFIXES,
        "text": TEXT_SUFFIXES,
    }
    for kind, suffixes in known.items():
        if suffix in suffixes:
            return kind
    what = "a recipe; `mmpredict show` reads it" if suffix in (".yaml", ".yml") else "not read"
    read = "\n  ".join(" ".join(suffixes) for suffixes in known.values())
    raise ValueError(f"{path}: {suffix or 'a file without suffix'} is {what}\n  {read} .tar")


def is_manifest(path: Path) -> bool:
    """Whether the first row of a .jsonl names a file; else it is text."""
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError:
                    return False
                return isinstance(row, dict) and "path" in row
    return False


def _media(path: Path, args: argparse.Namespace) -> Found:
    from mmpredict.survey.page_file import file_page
    from mmpredict.survey.source import survey_file

    plan = plan_of(args.config)
    survey = survey_file(path, plan, decode=args.decode)
    return file_page(survey, plan, show_all=args.all), survey, 0


def _text(path: Path, args: argparse.Namespace) -> Found:
    from mmpredict.survey.page_file import text_page
    from mmpredict.survey.source import survey_text

    plan = plan_of(args.config)
    facts = survey_text(path, plan.codecs.text)
    return text_page(facts, plan), facts, 0


def _folder(path: Path, args: argparse.Namespace) -> Found:
    from mmpredict.survey.folder import survey_folder
    from mmpredict.survey.page_folder import folder_page

    plan = plan_of(args.config)
    progress = _Progress()
    survey = survey_folder(path, plan, decode=args.decode, limit=args.limit, progress=progress.show)
    progress.clear()
    if not survey.found and not survey.texts_alone:
        others = [words for suffix, words in FORMATS.items() if suffix in survey.other_files]
        raise ValueError(
            "\n  ".join(
                [f"{path} holds no media or text file (.mp4, .mkv, .wav, .mp3, .srt, ...)", *others]
            )
        )
    return folder_page(survey, plan, decode=args.decode, show_all=args.all), survey, 0


class _Progress:
    """One line on the error output that says how far a long survey is."""

    def __init__(self) -> None:
        self.started = self.said = time.monotonic()
        self.is_open = False

    def show(self, done: int, total: int, name: str) -> None:
        """Files that were looked at."""
        self._say(f"{done:,} of {total:,} files; {name[-50:]}", done, total)

    def _say(self, words: str, done: int, total: int) -> None:
        now = time.monotonic()
        is_terminal = sys.stderr.isatty()
        if now - self.started < QUIET_S or now - self.said < (0.1 if is_terminal else LOG_EVERY_S):
            return
        self.said = now
        left_s = (now - self.started) / max(1, done) * (total - done)
        words = f"{left_s:,.0f} s left; {words}".encode("ascii", "replace").decode()
        line, end = (f"\r{words:<99.99}", "") if is_terminal else (words, "\n")
        print(line, end=end, file=sys.stderr, flush=True)
        self.is_open = is_terminal

    def bytes(self, done: int, total: int) -> None:
        """Bytes that were verified."""
        self._say(f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB verified", done, total)

    def clear(self) -> None:
        if self.is_open:
            print(f"\r{'':99}\r", end="", file=sys.stderr, flush=True)


def _shards(path: Path, args: argparse.Namespace) -> Found:
    from mmpredict.shards.verify import verify
    from mmpredict.survey import page_shards
    from mmpredict.survey.stored import TarSurvey, survey_shards

    survey = survey_shards(args.path)  # as it was given: a URL is no path
    if isinstance(survey, TarSurvey):
        if args.verify:
            raise ValueError(f"--verify: {path} has no index with hashes beside it")
        return page_shards.tar_page(survey), survey, 0
    lines = page_shards.shards_page(survey, show_all=args.all)
    figures = plain(survey)
    if not args.verify:
        return lines, figures, 0
    progress = _Progress()
    damage = verify(survey.root, progress=progress.bytes)
    progress.clear()
    if survey.shard:
        damage = [found for found in damage if found.member.startswith(survey.shard)]
    lines += page_shards.verify_page(survey, damage, show_all=args.all)
    figures["damage"] = [[found.member, found.reason] for found in damage]
    return lines, figures, 1 if damage else 0


def plan_of(recipe: str | None) -> Plan:
    """The encoders and sizes of a recipe, without building its data; the defaults without one."""
    from mmpredict import recipe_files
    from mmpredict.media import Limits
    from mmpredict.survey.expected import Plan
    from mmpredict.tokens import Codecs, MelChunks, Patches, TextTokens

    if recipe is None:
        return Plan()
    shown = recipe_files.display_path(recipe_files.locate(recipe))
    tree = recipe_files.read(recipe_files.locate(recipe))
    data = tree.value.get("data")
    if data is None or not data.is_map:
        raise ValueError(f"{shown}: no `data` section; is this a recipe?")
    settings, name = _settings(data), shown
    loading = settings.get("loading") or {}
    if settings.get("parts"):
        settings = settings["parts"][0].get("init_args") or {}
        name = f"the first part of {shown}"
    clip_seconds = settings.get("clip_seconds", Plan.clip_seconds)
    kinds = {"audio": MelChunks, "video": Patches, "text": TextTokens}
    try:
        codecs = {
            key: None if settings.get(key, {}) is None else kind(**settings.get(key, {}))
            for key, kind in kinds.items()
        }
        return Plan(
            Codecs(**codecs),
            math.inf if clip_seconds is None else float(clip_seconds),
            int(loading.get("context_length", Plan.context_length)),
            int(loading.get("rows", Plan.rows)),
            name,
            Limits(**(settings.get("limits") or {})),
        )
    except TypeError as error:
        problem = str(error).replace(".__init__()", "")
        raise ValueError(f"{shown}: data: {problem}; see `mmpredict show {recipe}`") from error


def _settings(data: Setting) -> dict[str, Any]:
    """Arguments of the datamodule as plain values."""
    arguments = data.value.get("init_args")
    return {} if arguments is None else unwrapped(arguments)


def unwrapped(setting: Setting) -> Any:
    """A setting of a recipe as a plain value."""
    if setting.is_map:
        return {key: unwrapped(child) for key, child in setting.value.items()}
    if setting.is_list:
        return [unwrapped(child) for child in setting.value]
    if setting.kind in ("int", "float"):
        number = str(setting.value).replace("_", "")
        return int(number) if setting.kind == "int" else float(number)
    return None if setting.kind == "null" else setting.value


def plain(figures: Any) -> Any:
    """Figures as JSON knows them; what is infinite or no number becomes null."""
    if dataclasses.is_dataclass(figures):
        names = [field.name for field in dataclasses.fields(figures)]
        return {name: plain(getattr(figures, name)) for name in names}
    if isinstance(figures, dict):
        return {str(key): plain(value) for key, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [plain(value) for value in figures]
    if isinstance(figures, float) and not math.isfinite(figures):
        return None
    if isinstance(figures, str):
        return figures.encode("utf-8", "backslashreplace").decode()
    return figures


def _checkpoint(path: Path, args: argparse.Namespace) -> Found:
    from mmpredict.exported import is_export, read_folder
    from mmpredict.training.checkpoint import read

    if is_export(path):
        predictor, _, about = read_folder(path)
        found = {"state_dict": predictor.state_dict(), "mmpredict": about}
    else:
        found = read(path, mmap=True)
    if "state_dict" not in found:
        raise ValueError(f"{path} is no checkpoint of a run (it has no state_dict)")
    figures = checkpoint_figures(found)
    return checkpoint_page(path, figures), figures, 0


def checkpoint_figures(found: dict[str, Any]) -> dict[str, Any]:
    """What a loaded checkpoint says of itself, without its weights."""
    from mmpredict.tokens import Codecs

    tensors = found["state_dict"]
    about = found.get("mmpredict") or {}
    figures = {
        "step": found.get("global_step"),
        "epoch": found.get("epoch"),
        "trainer": found.get("pytorch-lightning_version"),
        "format": about.get("format"),
        "parameters": sum(t.numel() for t in tensors.values() if t.is_floating_point()),
        "tensors": len(tensors),
        "predictor": about.get("predictor", {}),
        "context_length": about.get("context_length"),
        "streams": {},
        "data": {
            name: _data_state(state)
            for name, state in found.items()
            if name not in TRAINER_KEYS and isinstance(state, dict)
        },
    }
    if "codecs" in about:
        codecs = Codecs.from_plain(about["codecs"])
        for modality, codec in codecs.by_modality.items():
            settings = dataclasses.asdict(codec)
            settings.pop("vocabulary", None)  # pages of it
            spec = codec.spec
            figures["streams"][spec.name] = {
                "modality": modality,
                "positions": spec.positions_per_block,
                "values": spec.width or spec.vocab_size,
                **settings,
            }
    return figures


def _data_state(state: dict[str, Any]) -> dict[str, Any]:
    """Where a datamodule was, of how many sources, and with which settings."""
    position = state.get("position")
    if not isinstance(position, dict):
        return {key: value for key, value in state.items() if isinstance(value, int | float | str)}
    sources = (state.get("sources") or {}).get("digests")
    return {
        "epoch": position.get("epoch"),
        "next_place": position.get("place"),
        "waiting_rows": len(position.get("packer", {}).get("rows", ())),
        "sources": None if sources is None else sources.numel() // DIGEST_BYTES,
        **state.get("settings", {}),
    }


def checkpoint_page(path: Path, figures: dict[str, Any]) -> list[str]:
    """A checkpoint in words."""
    from mmpredict.survey.page_rows import row, size

    ours = figures["format"] is not None
    maker = f"written by mmpredict (format {figures['format']})" if ours else "not of mmpredict"
    what = "export" if path.is_dir() else "checkpoint"
    file = path / "model.safetensors" if path.is_dir() else path
    lines = [f"{path}: {what}, {size(file.stat().st_size)}, {maker}"]
    if figures["step"] is not None:
        lines += row("trained", f"{figures['step']} steps; in epoch {figures['epoch']} (from 0)")
    lines += row("weights", f"{figures['parameters']:,} numbers in {figures['tensors']} tensors")
    if ours:
        lines += row("predictor", _words(figures["predictor"]))
        lines += row("context", f"{figures['context_length']} positions")
    for name, stream in figures["streams"].items():
        lines += row(name, _words(stream))
    for name, state in figures["data"].items():
        lines += row("data", f"{name}: {_words(state)}")
    if ours:
        lines += row("use it", f"mmpredict rollout --ckpt {path} --prompt FILE --out next.mp4")
    return lines


def _words(settings: dict[str, Any]) -> str:
    """key value, key value; what is long is cut."""
    words = (f"{key} {value}" for key, value in settings.items() if value not in (None, {}, ""))
    return ", ".join(word if len(word) <= 200 else f"{word[:200]}..." for word in words)
