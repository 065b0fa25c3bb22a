"""`mmpredict prepare`: a folder, a manifest or a recipe's documents to shards.

Only `run` imports torch; the front door reads the options without it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmpredict.shards.prepare import Summary
    from mmpredict.shards.sandbox import Worker
    from mmpredict.shards.settings import Settings

SPLITS = ("train", "val", "test")
OF_A_RECIPE = ("size", "patch", "fps", "sample_rate", "channels", "clip_seconds", "text")
DEFAULTS = {
    "size": (64, 64),
    "patch": 8,
    "fps": 8.0,
    "sample_rate": 16000,
    "channels": 2,
    "clip_seconds": 2.0,
    "text": "bytes",
}
LINE_EVERY_S = 10.0  # of progress, where nobody looks at a terminal
BAR = 30  # characters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `prepare`."""
    add = parser.add_argument
    add("source", nargs="?", type=Path, help="folder, media file or manifest (.jsonl)")
    add("--config", help="write the documents of a recipe in place of files")
    add("--out", required=True, type=Path, metavar="DIR", help="where the shards go")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--keep", action="store_true", help="files as they are (default)")
    forms.add_argument("--encode", action="store_true", help="clips as small mp4 and flac")
    forms.add_argument(
        "--raw", action="store_true", help="clips as plain arrays (default with --config)"
    )
    add("--size", type=_size, metavar="N|HxW", help="pixels of a frame (default 64)")
    add("--fps", type=float, help="frames a second (default 8)")
    add("--sample_rate", type=int, help="of the sound in Hz (default 16000)")
    add("--channels", type=int, choices=(1, 2), help="of the sound (default 2)")
    add("--clip_seconds", type=float, help="length of a clip (default 2)")
    add("--patch", type=int, help="side of a patch, to count tokens (default 8)")
    add("--text", metavar="bytes|FILE", help="tokenizer.json that counts tokens of text")
    add("--sound", choices=("int16", "float32"), default="int16", help="of --raw")
    add("--crf", type=int, default=10, help="quality of --encode, 0 best to 51 (default 10)")
    add("--gop", type=int, default=12, help="frames between key frames (default 12)")
    add("--trust", action="store_true", help="with --keep: do not decode every file once")
    _add_limits(parser)
    add("--split", default=",".join(SPLITS), help="with --config: which (default all three)")
    add("--epochs", type=int, default=1, help="with --config: of the training documents")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="with --config: a setting of the recipe, such as data.train_scenes=200",
    )
    add("--allow-import", action="append", default=[], metavar="PACKAGE", help="see fit --help")
    add("--max_skipped", type=float, default=0.05, help="share of bad sources (default 0.05)")
    add("--json", action="store_true", help="print a summary as JSON")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--shard_bytes", type=int, default=256 * 1024**2, help="of a shard (default 256 MiB)")
    add("--workers", type=int, default=0, help="processes (default: one for each core)")
    add("--memory", type=int, default=2048, metavar="MB", help="of a source (default 2048)")
    add("--timeout", type=float, default=120.0, metavar="S", help="without progress (default 120)")
    add("--max_bytes", type=int, help="refuse larger files (default 2 GiB)")
    add("--max_pixels", type=int, help="refuse larger frames (default 64,000,000)")
    add("--max_frames", type=int, help="refuse files of more frames (default 250,000)")
    add("--max_duration", type=float, metavar="S", help="refuse longer files (default 3600)")


def _size(text: str) -> tuple[int, int]:
    parts = [int(part) for part in text.lower().split("x")]
    height, width = parts * 2 if len(parts) == 1 else parts
    return height, width


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What can be said of the options before torch is loaded."""
    if (args.source is None) == (args.config is None):
        parser.error("give either a SOURCE (folder, file, manifest) or --config RECIPE")
    if args.config is not None:
        _check_recipe_options(parser, args)
    else:
        _check_file_options(parser, args)
    for name, default in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    _check_numbers(parser, args)


def _check_recipe_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    for name in (*OF_A_RECIPE, "trust", "keep"):
        if getattr(args, name):
            parser.error(f"--{name} has no effect with --config: the recipe decides")
    if not set(args.split.split(",")) <= set(SPLITS):
        parser.error(f"--split {args.split!r}: choose of {','.join(SPLITS)}")
    if any("=" not in text for text in args.set):
        parser.error("--set takes KEY=VALUE, such as --set data.train_scenes=200")


def _check_file_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if not args.source.exists():
        is_address = ":/" in str(args.source)
        more = "; addresses are not read, download it first" if is_address else ""
        parser.error(f"{args.source} does not exist{more}")
    if args.set or args.allow_import or args.epochs != 1 or args.split != ",".join(SPLITS):
        parser.error("--set, --allow-import, --split and --epochs are for --config")
    if args.trust and (args.encode or args.raw):
        parser.error("--trust is for --keep; clips cannot be made without decoding")


def _check_numbers(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    above = ("fps", "sample_rate", "patch", "gop", "shard_bytes", "memory", "timeout", "epochs")
    limits = ("max_bytes", "max_pixels", "max_frames", "max_duration")
    for name in above + limits:
        value = getattr(args, name)
        if value is not None and not value > 0:
            parser.error(f"--{name} {value} must be above 0")
    if args.workers < 0 or not 0 <= args.crf <= 51 or not 0 <= args.max_skipped <= 1:
        parser.error(
            f"--workers {args.workers} from 0 up, --crf {args.crf} in 0..51, "
            f"--max_skipped {args.max_skipped} in 0..1"
        )
    if not 0.25 <= args.clip_seconds <= 3600:
        parser.error(f"--clip_seconds {args.clip_seconds:g} must lie in 0.25..3600")
    if any(side < args.patch or side % args.patch for side in args.size):
        parser.error(
            f"--size {args.size[0]}x{args.size[1]} is not a multiple of --patch {args.patch}"
        )
    if args.text != "bytes" and not Path(args.text).is_file():
        parser.error(f"--text {args.text!r} is neither 'bytes' nor a tokenizer.json")


def run(args: argparse.Namespace) -> int:
    """Prepare, say what came of it and what was skipped, and why.

    Raises:
        ValueError: a mistake of the user, in words.
    """
    started = time.monotonic()
    former = signal.signal(signal.SIGTERM, _stop)
    try:
        from mmpredict.shards.told import exit_code, plain, told

        with progress_shown() as progress:
            summary, left_alone = (_files if args.config is None else _recipe)(args, progress)
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGTERM, former)
    seconds = time.monotonic() - started
    if args.json:
        print(json.dumps(plain(summary, left_alone, seconds)))
    else:
        print("\n".join(told(summary, args.out, left_alone, seconds)))
    code, why = exit_code(summary, args.max_skipped)
    if why:
        print(f"error: {why}", file=sys.stderr)
    return code


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def progress_shown() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on a terminal, now and then a line elsewhere; on stderr."""
    live = sys.stderr.isatty()
    last = time.monotonic()

    def show(done: int, total: int, name: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < (0.1 if live else LINE_EVERY_S) and done < total:
            return
        last = now
        text = f"{done}/{total} sources  {ascii(name[-40:])[1:-1]}"
        if live:
            filled = BAR * done // total
            bar = "#" * filled + "-" * (BAR - filled)
            print(f"\r[{bar}] {text:<60}", end="", file=sys.stderr, flush=True)
        elif done < total:
            print(text, file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if live:
            print("\r" + " " * (BAR + 64) + "\r", end="", file=sys.stderr, flush=True)


def _files(
    args: argparse.Namespace, progress: Callable[[int, int, str], None]
) -> tuple[Summary, Counter[str]]:
    from mmpredict.shards.prepare import Work, prepare
    from mmpredict.shards.sources import find_sources

    found = find_sources(args.source, args.out)
    if not found.sources:
        raise ValueError(f"{args.source} holds no video, sound, picture or text that is known")
    form = "encoded" if args.encode else "raw" if args.raw else "keep"
    settings = settings_of(args, form)
    context = {"settings": settings.__dict__}
    work = Work(context=context, workers=_workers(args), limits=_job_limits(args))
    summary = prepare(found.sources, args.out, settings, settings.codecs(), work, progress)
    return summary, found.left_alone


def settings_of(args: argparse.Namespace, form: str, recipe: str = "") -> Settings:
    """The settings that decide the bytes."""
    from mmpredict.shards.settings import Settings

    limits = {
        "max_bytes": args.max_bytes,
        "max_pixels": args.max_pixels,
        "max_frames": args.max_frames,
        "max_duration_s": args.max_duration,
    }
    return Settings(
        form=form,
        **{name: getattr(args, name) for name in OF_A_RECIPE},
        sound=args.sound,
        crf=args.crf,
        gop=args.gop,
        shard_bytes=args.shard_bytes,
        trust=args.trust,
        recipe=recipe,
        **{name: value for name, value in limits.items() if value is not None},
    )


def _workers(args: argparse.Namespace) -> int:
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return args.workers or mine or 1


def _job_limits(args: argparse.Namespace) -> Any:
    from mmpredict.shards.sandbox import JobLimits

    return JobLimits(args.memory, args.timeout)


@dataclass(frozen=True)
class RecipeTask:
    """A document of a recipe, as a source."""

    name: str
    split: str
    epoch: int
    index: int
    sha256: str
    kind: str = "recipe"

    def item(self) -> dict[str, Any]:
        """As plain JSON, for a worker."""
        return dict(self.__dict__)


def _recipe(
    args: argparse.Namespace, progress: Callable[[int, int, str], None]
) -> tuple[Summary, Counter[str]]:
    from mmpredict.shards.prepare import Work, prepare

    words = ["--config", args.config]
    for text in args.set:
        key, _, value = text.partition("=")
        words += [f"--{key}={value}"]
    for package in args.allow_import:
        words += ["--allow-import", package]
    module, recipe = build_data(words)
    settings = settings_of(args, "encoded" if args.encode else "raw", recipe)
    tasks = [
        task
        for split in sorted(set(args.split.split(",")))
        for task in _documents(module, recipe, split, args.epochs if split == "train" else 1)
    ]
    work = Work(
        target="mmpredict.prepare_verb:open_recipe",
        context={"words": words, "settings": settings.__dict__},
        workers=_workers(args),
        limits=_job_limits(args),
    )
    return prepare(tasks, args.out, settings, module.codecs, work, progress), Counter()


def _documents(module: Any, recipe: str, split: str, epochs: int) -> Iterator[RecipeTask]:
    documents = module.documents(split)
    try:
        if len(documents):
            documents.clip(0, 0)
    except TypeError as error:
        raise ValueError(f"{error}; prepare its files instead") from error
    for epoch in range(epochs):
        for index in range(len(documents)):
            name = f"{split}/{epoch:04d}/{index:07d}"
            digest = hashlib.sha256(f"{recipe}/{name}".encode()).hexdigest()
            yield RecipeTask(name, split, epoch, index, digest)


def open_recipe(context: dict[str, Any]) -> Worker:
    """The worker of a sandbox that writes documents of a recipe."""
    from mmpredict.shards.convert import write_document
    from mmpredict.shards.settings import Settings

    module, _ = build_data(context["words"])
    settings = Settings(**context["settings"])
    documents: dict[str, Any] = {}

    def work(item: dict[str, Any], beat: Callable[[], None]) -> None:
        split = item["split"]
        if split not in documents:
            documents[split] = module.documents(split)
        make = partial(documents[split].clip, item["epoch"], item["index"])
        write_document(item, make, settings, module.codecs)

    return work


def build_data(words: list[str]) -> tuple[Any, str]:
    """The datamodule of a recipe, set up, and a name for what its documents are.

    Raises:
        ValueError: the recipe is wrong, in words.
    """
    from mmpredict import command_line, lightning_cli
    from mmpredict.recipe_check import Check

    command = command_line.parse("fit", words)
    problems = Check(command).run()
    if problems:
        raise ValueError(str(problems[0]))
    lightning_cli.quiet()
    lightning_cli.trust(command.trusted)

    class DataAlone(lightning_cli.TrainerCLI):
        """Builds the data and neither model nor trainer."""

        def instantiate_classes(self) -> None:
            def nothing(kind: type, *args: Any, **kwargs: Any) -> None:
                return None

            builders = [(nothing, lightning_cli.LightningModule, True)]
            self.config_init = self.parser.instantiate(self.config, instantiators=builders)
            self.datamodule = self._get(self.config_init, "data")

    try:
        cli = DataAlone(command, lightning_cli.FirstBatch(), run=False)
    except lightning_cli.ParserComplaint as complaint:
        raise ValueError(lightning_cli.parser_message(command, complaint.message)) from complaint
    module = cli.datamodule
    module.setup(None)
    asked = cli.config.data.as_dict()
    asked.get("init_args", {}).pop("loading", None)  # how clips are batched changes none
    about = json.dumps([asked, sorted(module.fingerprint().items())], sort_keys=True, default=str)
    digest = hashlib.sha256(about.encode()).hexdigest()
    return module, f"{asked['class_path']} {digest[:16]}"
