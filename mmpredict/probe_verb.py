"""`mmpredict probe`: a checkpoint and a suite of questions to results.json, per_item.jsonl and
table.md.

`mmpredict probe audit` asks the suite itself whether it can be trusted; `--bench NAME --root DIR`
asks a published benchmark that lies in a folder. Only `run` imports torch; the front door reads the
options without it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mmpredict.probe_subjects import (
    VARIANTS,
    Subject,
    about,
    ask,
    ask_baselines,
    chosen_variants,
    closing,
    listed,
    load_subject,
)
from mmpredict.probes.writing import OWN_BASELINES
from mmpredict.run_folder import safe_name

if TYPE_CHECKING:
    from mmpredict.probes.frozen import FrozenResults
    from mmpredict.probes.items import Suite
    from mmpredict.probes.run import ProbeRun

SUITES = ("smoke", "spatial")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `probe`."""
    add = parser.add_argument
    add("what", nargs="?", choices=("audit",), help="audit: test the suite itself, no model needed")
    add("--ckpt", type=Path, help="checkpoint of a run")
    add("--suite", choices=SUITES, default="smoke", help="how many scenes (default smoke)")
    add("--split", default="test_iid", help="scenes of this split of the world (default test_iid)")
    add("--scenes", type=int, help="so many scenes in place of the suite's own number")
    add("--seed", type=int, default=0, help="of scenes and of noise (default 0)")
    add("--items", type=Path, metavar="FILE", help="the items of a file (.jsonl) in place of these")
    add(
        "--evidence",
        metavar="LIST",
        help=f"some of {', '.join(VARIANTS)}, with commas between (default: all that fit)",
    )
    add(
        "--baseline",
        action="append",
        metavar="NAME",
        help="asked the same, to compare: majority (knows the answers' shares), blind (the model "
        "without evidence), untrained (the same architecture), or a checkpoint; may be given "
        "several times (default: majority and blind; none for none)",
    )
    add(
        "--frozen",
        action="store_true",
        help="also decode positions, speeds, supports ... from frozen activations",
    )
    add("--text_only", "--text-only", type=Path, metavar="CKPT", help="a control for --frozen")
    add(
        "--readout",
        nargs="*",
        type=Path,
        metavar="TRAIN DEV",
        help="with --items: train a readout of frozen activations on the items of two other files; "
        "with --bench, and without files: on the benchmark's own training clips",
    )
    add("--out", type=Path, metavar="DIR", help="(default: probe-NAME beside the checkpoint)")
    add("--write_items", "--write-items", type=Path, metavar="FILE", help="keep the items asked")
    add("--workers", type=int, default=_cores(), help="processes on a CPU (default: its cores)")
    add("--power", action="store_true", help="say which differences would show, and stop")
    add(
        "--gate",
        choices=("state", "pixels"),
        help="with audit: can a small model that is trained on the evidence answer (minutes)",
    )
    add("--gate_steps", "--gate-steps", type=int, default=1000, help="of its training per family")
    _add_bench_arguments(parser)


def _add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of published benchmarks."""
    add = parser.add_argument
    add("--bench", metavar="NAME", help="a published benchmark, read from --root")
    add("--root", type=Path, metavar="DIR", help="folder of the benchmark, as it was unpacked")
    add(
        "--export",
        type=Path,
        metavar="DIR",
        help="with --bench: also ask the items without labels, and write into DIR what the "
        "authors' server takes (of physics_iq: the videos)",
    )
    add("--judge", type=Path, metavar="DIR", help="with --bench: score the videos in DIR")


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What can be said of the options before torch is loaded."""
    needs_model = args.what != "audit" and not args.power and args.judge is None
    if needs_model and args.ckpt is None:
        parser.error("--ckpt FILE is missing: which checkpoint is to be asked?")
    if args.ckpt is not None and ":/" in str(args.ckpt)[:8]:
        parser.error(f"--ckpt {str(args.ckpt)!r} is a URL; download it first")
    files = (args.ckpt, args.items, args.text_only, *(args.readout or ()), *_checkpoints(args))
    for path in files:
        is_export = path is not None and (Path(path) / "config.json").is_file()
        if path is not None and not is_export and not Path(path).is_file():
            parser.error(f"{str(path)!r} does not exist")
    for name in ("scenes", "workers", "gate_steps"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} {value} must be at least 1")
    if args.evidence is not None and not set(listed(args.evidence) or [""]) <= set(VARIANTS):
        parser.error(f"--evidence {args.evidence!r}: take some of {', '.join(VARIANTS)}")
    _check_together(parser, args)


def _check_together(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Options that need each other, or that exclude each other."""
    if args.gate is not None and args.what != "audit":
        parser.error("--gate is a part of the audit: mmpredict probe audit --gate ...")
    if args.readout is not None:
        _check_readout(parser, args)
    if args.text_only is not None and not args.frozen:
        parser.error("--text_only is a control of --frozen; add that")
    _check_bench(parser, args)


def _check_bench(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Options of published benchmarks."""
    if (args.bench is None) != (args.root is None):
        parser.error("--bench NAME and --root DIR go together")
    if args.root is not None and not args.root.is_dir():
        parser.error(f"--root {str(args.root)!r} is not a folder")
    if args.bench is not None and args.items is not None:
        parser.error("--bench has items of its own; leave --items out")
    for name in ("export", "judge"):
        if getattr(args, name) is not None and args.bench is None:
            parser.error(f"--{name} DIR goes with --bench NAME --root DIR")
    if args.export is not None and (args.readout is not None or args.judge is not None):
        parser.error("--export goes with neither --readout nor --judge: one at a time")
    if args.export is not None and args.export.exists() and not args.export.is_dir():
        parser.error(f"--export {str(args.export)!r} is a file; give a folder")
    if args.judge is not None and not args.judge.is_dir():
        parser.error(f"--judge {str(args.judge)!r} is not a folder")


def _check_readout(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Of items two files, of a benchmark none."""
    if args.bench is not None:
        if args.readout:
            parser.error("--bench brings its own training clips: --readout alone, without files")
    elif args.items is None:
        parser.error(
            "--readout TRAIN DEV needs --items FILE, whose items are asked; without files it goes "
            "with --bench"
        )
    elif len(args.readout) != 2:
        parser.error(f"--readout needs two files, TRAIN and DEV; got {len(args.readout)}")


def _checkpoints(args: argparse.Namespace) -> list[str]:
    return [name for name in args.baseline or () if name not in (*OWN_BASELINES, "none")]


def run(args: argparse.Namespace) -> int:
    """Ask, write the files and print the table.

    Returns:
        0; 2 where items could not be asked because their data are missing or damaged.

    Raises:
        ValueError: a mistake of the user, in words.
    """
    if args.what == "audit":
        return _audit(args)
    if args.power:
        return _power(_suite(args))
    if args.bench is not None:
        from mmpredict.probe_bench import run_bench

        return run_bench(args)
    subject = load_subject(args.ckpt, args.workers)
    suite = _suite(args)
    if args.write_items is not None:
        suite.write(args.write_items)
    if args.readout:
        return _readout(args, subject, suite)
    variants = chosen_variants(args, subject, suite)
    asked = ask(subject, suite, variants, seed=args.seed)
    baselines = ask_baselines(args, subject, suite, variants)
    return _write(args, subject, suite, asked, baselines)


def _suite(args: argparse.Namespace) -> Suite:
    from mmpredict.probes.items import Suite
    from mmpredict.probes.suites import build_suite

    if args.items is not None:
        return Suite.read(args.items)
    return build_suite(args.suite, split=args.split, scenes=args.scenes, seed=args.seed)


def _readout(args: argparse.Namespace, subject: Subject, suite: Suite) -> int:
    """A readout of frozen activations, trained on one file of items, chosen on another."""
    from mmpredict.probes.item_readout import ask_readout
    from mmpredict.probes.items import Suite
    from mmpredict.probes.run import ProbeRun, named_errors

    train, dev = (Suite.read(path) for path in args.readout)
    variants = chosen_variants(args, subject, suite)
    suites = {"train": train, "dev": dev, "test": suite}
    rows = ask_readout(subject.predictor, subject.codecs, suites, variants, seed=args.seed)
    runs = {
        name: ProbeRun(
            suite.name, suite.sha, suite.world_version, variants, tuple(mine), named_errors(mine)
        )
        for name, mine in rows.items()
    }
    asked = runs.pop("model")
    return _write(args, subject, suite, asked, runs)


def _write(
    args: argparse.Namespace,
    subject: Subject,
    suite: Suite,
    asked: ProbeRun,
    baselines: Mapping[str, ProbeRun],
) -> int:
    """All files and the table; see probes.output."""
    from mmpredict.probes.output import FILES, set_pictures, write_results
    from mmpredict.training.report_style import STYLE

    kind = "readout-" if args.readout else ""
    # An items file names its suite as it likes.
    out = args.out or args.ckpt.parent / safe_name(f"probe-{kind}{suite.name}")
    more, tables = {}, ""
    if args.frozen:
        found = _frozen(args, subject)
        more["frozen"] = found.to_plain(timing=False)
        tables = found.markdown()
    table = write_results(
        out,
        about(args, subject, asked),
        asked,
        baselines,
        more=more,
        pictures=set_pictures(suite, asked, subject.codecs),
        style=STYLE,
    )
    print(table, tables, sep="\n" if tables else "", end="")
    return closing(out, FILES, asked)


def _frozen(args: argparse.Namespace, subject: Subject) -> FrozenResults:
    """Frozen probes with all their controls, in the size of the suite."""
    from mmpredict.probes.frozen import SMOKE, run_frozen

    text_only = None
    if args.text_only is not None:
        other = load_subject(args.text_only, 1)
        text_only = (other.predictor, other.codecs)
    size = SMOKE if args.suite == "smoke" else {}
    return run_frozen(
        subject.predictor, subject.codecs, text_only=text_only, seed=args.seed, **size
    )


def _power(suite: Suite) -> int:
    """Which differences a suite can show, before anybody is asked."""
    from mmpredict.probes.stats import detectable, error_of_design

    print(
        "difference that is found in 9 of 10 runs, by family (score .6, items of a scene .3 alike):"
    )
    print(f"{'family':<20} {'items':>6} {'scenes':>6}  paired  unpaired")
    for family in suite.families:
        items = [item for item in suite.items if item.family == family]
        scenes = len({item.cluster for item in items})
        per_scene = max(1, round(len(items) / scenes))
        both = [
            detectable(error_of_design(scenes, per_scene, paired=paired))
            for paired in (True, False)
        ]
        print(f"{family:<20} {len(items):>6} {scenes:>6}  {both[0]:6.3f}  {both[1]:8.3f}")
    return 0


def _audit(args: argparse.Namespace) -> int:
    """Ask the suite itself; 2 where it fails."""
    from mmpredict.probes.audit import run_audit
    from mmpredict.probes.audit_gate import Gate

    suite = _suite(args)
    gate = None
    if args.gate is not None:
        gate = Gate(args.gate, scenes=args.scenes or 1000, steps=args.gate_steps)
    passed = run_audit(
        suite, out=args.out or Path(f"probe-audit-{suite.name}"), gate=gate, seed=args.seed
    )
    return 0 if passed else 2
