"""`mmpredict export`: a checkpoint to a folder of plain files that others can load and read.

In: a checkpoint and what its run left beside it. Out: model.safetensors, config.json,
tokenizer.json, recipe.yaml and README.md. Only `run` imports torch.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from mmpredict.command_line import check_checkpoint

RECIPE, CARD = "recipe.yaml", "README.md"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
LOCAL_PATH = re.compile(r"(?m)(?:^|[\s'\":])((?:/|~/|[A-Za-z]:\\)[\w.~/\\-]+)")
VERSIONS = ("mmpredict", "torch", "safetensors", "tokenizers", "timm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `export`."""
    add = parser.add_argument
    add("--ckpt", required=True, type=Path, help="checkpoint of a run, or the run's folder")
    add("--out", required=True, type=Path, metavar="DIR", help="folder; made whole or not at all")
    add("--overwrite", action="store_true", help="replace an earlier export in DIR")
    add("--push", metavar="OWNER/NAME", help="then upload DIR to a hub, with your own token")
    add("--public", action="store_true", help="a repository that --push makes is for everybody")


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What can be said of the options before torch is loaded."""
    check_checkpoint(parser, args.ckpt)
    if args.push is not None and not REPOSITORY.fullmatch(args.push):
        parser.error(f"--push {args.push!r} is not of the form OWNER/NAME")
    if args.public and args.push is None:
        parser.error("--public is for --push OWNER/NAME")


def run(args: argparse.Namespace) -> int:
    """Write the folder and say what is in it.

    Raises:
        ValueError: a mistake of the user, in words.
        FileNotFoundError: there is no checkpoint.
    """
    from mmpredict.export_card import card, gather
    from mmpredict.exported import Loaded, write_folder
    from mmpredict.exported.folder import check_place
    from mmpredict.run_folder import versions_of
    from mmpredict.schema import UserError
    from mmpredict.training.checkpoint import load_predictor

    try:
        check_place(args.out, overwrite=args.overwrite)
        loaded = Loaded.of(*load_predictor(args.ckpt))
        facts = gather(args.ckpt)
        files = write_folder(
            args.out,
            loaded.predictor,
            loaded.codecs,
            context_length=loaded.about.get("context_length"),
            versions=versions_of(VERSIONS),
            texts=facts.texts | {CARD: card(facts, loaded)},
            overwrite=args.overwrite,
        )
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise UserError(f"{args.out} cannot be written: {error.strerror or error}") from error
    for path in files:
        print(f"wrote {path} ({path.stat().st_size:,} bytes)")
    for notice in [*facts.notices, *_local_paths(args.out / RECIPE)]:
        print(f"note: {notice}")
    print(f"use it: mmpredict.load({str(args.out)!r}) in Python, or --ckpt {args.out}")
    return 0 if args.push is None else _push(args)


def _local_paths(recipe: Path) -> list[str]:
    """What a stranger would learn of this machine."""
    text = recipe.read_text(encoding="utf-8") if recipe.is_file() else ""
    paths = sorted(set(LOCAL_PATH.findall(text)))
    return [f"{recipe} names paths of this machine: {', '.join(paths[:3])}"] if paths else []


def _push(args: argparse.Namespace) -> int:
    """Upload; the folder stays, whatever happens."""
    from mmpredict.exported.hub import push
    from mmpredict.schema import UserError

    try:
        where = push(args.out, args.push, private=not args.public)
    except Exception as error:  # of the network, of the hub, of the token: said in the same way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the upload to {args.push} failed: {type(error).__name__}: {reason}\n  {args.out} is "
            "whole; `hf auth login` gives a token, and `hf upload` repeats the upload"
        ) from error
    print(f"uploaded to {where}")
    return 0
