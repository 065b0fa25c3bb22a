"""Who is asked by `mmpredict probe`: a checkpoint, and whoever stands beside it; and what is said
of it at the end. In: the options. Out: runs. Torch is imported only when something is asked."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpredict.probes.writing import OWN_BASELINES

if TYPE_CHECKING:
    from mmpredict.probes.items import Item, Suite
    from mmpredict.probes.run import ProbeRun
    from mmpredict.tokens import Codecs

VARIANTS = ("text", "audio", "video", "video+audio")  # as in probes.items, which loads torch
NAMED = 10  # errors that are printed; all stand in per_item.jsonl
MANY_ANSWERS = 500  # from here on further processes are worth their start of some seconds


@dataclass(frozen=True)
class Subject:
    """A checkpoint that is asked: its file, its `Predictor`, its encoders, its row's length, and
    how many processes ask it."""

    path: Path
    predictor: Any
    codecs: Codecs
    context_length: int
    workers: int

    @property
    def sha(self) -> str:
        """Of the file; of an export, that with the weights."""
        path = self.path / "model.safetensors" if self.path.is_dir() else self.path
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def listed(words: str | None) -> list[str]:
    parts = [] if words is None else [word.strip() for word in words.split(",")]
    return list(dict.fromkeys(part for part in parts if part))


def load_subject(path: Path, workers: int) -> Subject:
    import torch

    from mmpredict.training.checkpoint import load_predictor

    predictor, codecs, about = load_predictor(path)
    context_length = int(about.get("context_length") or 0)
    if torch.cuda.is_available():
        return Subject(path, predictor.to("cuda"), codecs, context_length, 1)
    if workers > 1:  # threads of several processes only wait for each other
        torch.set_num_threads(1)
    return Subject(path, predictor, codecs, context_length, workers)


def chosen_variants(args: argparse.Namespace, subject: Subject, suite: Suite) -> tuple[str, ...]:
    """Those that were asked for, or all that the checkpoint and the items have.

    Raises:
        UserError: the checkpoint lacks a stream.
    """
    from mmpredict.probes.evidence import check_streams, possible_variants

    if args.evidence is not None:
        variants = tuple(listed(args.evidence))
    else:
        variants = possible_variants(subject.codecs, suite.items)
    check_streams(subject.codecs, suite.items, variants or VARIANTS)
    return variants


def ask(
    subject: Subject,
    suite: Suite,
    variants: Sequence[str],
    *,
    seed: int,
    name: str = "model",
    blind: bool = False,
) -> ProbeRun:
    from mmpredict.probes.shares import Job, run_in_shares
    from mmpredict.probes.writing import progress_line

    job = Job(subject.predictor, subject.codecs, tuple(variants), seed, blind)
    answers = sum(variant in item.variants for item in suite.items for variant in variants)
    workers = subject.workers if answers >= MANY_ANSWERS else 1
    return run_in_shares(job, suite, workers=workers, progress=progress_line(name))


def ask_baselines(
    args: argparse.Namespace, subject: Subject, suite: Suite, variants: Sequence[str]
) -> dict[str, ProbeRun]:
    """Everybody else who is asked, by name. Another checkpoint is asked what it has streams for."""
    from mmpredict.probes.controls import untrained
    from mmpredict.probes.evidence import possible_variants
    from mmpredict.probes.reference import Majority
    from mmpredict.probes.run import run_suite

    found: dict[str, ProbeRun] = {}
    for name in args.baseline or ("majority", "blind"):
        if name == "majority":
            known = "majority" if args.items is None else "own majority"
            found[known] = run_suite(Majority(known_items(args, suite)), suite, variants)
        elif name == "blind" and subject.codecs.text is not None:
            spoken = replace(suite, items=tuple(i for i in suite.items if i.score != "voe"))
            if any(set(item.variants) & set(variants) for item in spoken.items):
                found[name] = ask(subject, spoken, variants, seed=args.seed, name=name, blind=True)
        elif name == "untrained":
            fresh = replace(subject, predictor=untrained(subject.predictor, args.seed))
            found[name] = ask(fresh, suite, variants, seed=args.seed, name=name)
        elif name not in OWN_BASELINES and name != "none":
            other = load_subject(Path(name), args.workers)
            able = possible_variants(other.codecs, suite.items)
            theirs = [variant for variant in variants if variant in able]
            if not theirs:
                raise ValueError(f"--baseline {name} has none of the streams of {list(variants)}")
            found[name] = ask(other, suite, theirs, seed=args.seed, name=name)
    return found


def known_items(args: argparse.Namespace, suite: Suite) -> Sequence[Item]:
    """Items of other scenes, whose answers may be known; of a file of items, those themselves."""
    from mmpredict.probes.suites import build_suite

    if args.items is not None:
        return suite.items
    return build_suite("smoke", split="dev", seed=args.seed).items


def about(args: argparse.Namespace, subject: Subject, asked: ProbeRun) -> dict[str, Any]:
    """What the numbers are of."""
    import torch

    import mmpredict

    return {
        "model": str(subject.path),
        "ckpt_sha": subject.sha,
        "suite": asked.suite,
        "suite_sha": asked.suite_sha,
        "world_version": asked.world_version,
        "variants": list(asked.variants),
        "seed": args.seed,
        "context_length": subject.context_length,
        "mmpredict": mmpredict.__version__,
        "torch": torch.__version__,
        "device": str(next(subject.predictor.parameters()).device),
    }


def closing(out: Path, files: Sequence[str], asked: ProbeRun) -> int:
    """Where the files are, and what could not be asked."""
    for name in files:
        if (out / name).is_file():
            print(f"wrote {out / name}")
    if not asked.errors:
        return 0
    print(f"{len(asked.errors)} of {len(asked.rows)} could not be asked:", file=sys.stderr)
    for error in asked.errors[:NAMED]:
        print(f"  {error}", file=sys.stderr)
    if len(asked.errors) > NAMED:
        print(f"  and {len(asked.errors) - NAMED} more, see per_item.jsonl", file=sys.stderr)
    return 2
