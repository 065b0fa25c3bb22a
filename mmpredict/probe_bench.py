"""`mmpredict probe --bench NAME --root DIR`: a checkpoint and a published benchmark to the
published metric, to the files that its authors' server takes (`--export`), to a readout trained on
its own training clips (`--readout`); and generated videos to a score (`--judge`). Torch is imported
only when something is asked."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpredict.probe_subjects import (
    Subject,
    about,
    ask,
    chosen_variants,
    closing,
    listed,
    load_subject,
)

if TYPE_CHECKING:
    from mmpredict.probes.external import Bench
    from mmpredict.probes.items import Suite
    from mmpredict.probes.run import ProbeRun

FILES = ("results.json", "per_item.jsonl", "per_item-unlabelled.jsonl")
DEFAULT_CONTEXT = 1024  # of a checkpoint that does not say with how many positions it was trained


def run_bench(args: argparse.Namespace) -> int:
    """Ask, write the files and print the metric.

    Returns:
        0; 2 where items could not be asked because their data are missing or damaged.

    Raises:
        ValueError: a mistake of the user, in words.
    """
    from mmpredict.probes.external import load_bench

    bench = load_bench(args.bench, args.root)
    for note in bench.notes:
        print(f"note: {note}")
    if args.judge is not None:
        return _judge(args, bench)
    _check(args, bench)
    subject = load_subject(args.ckpt, args.workers)
    out = args.out or args.ckpt.parent / f"probe-{bench.name}"
    if args.readout is not None:
        return _readout(args, bench, subject, out)
    if bench.continuations:
        return _continue(args, bench, subject)
    return _ask(args, bench, subject, out)


def _check(args: argparse.Namespace, bench: Bench) -> None:
    """What the folder cannot give is said before the checkpoint is loaded."""
    if args.export is not None and not bench.exports:
        raise ValueError(
            f"{bench.name} has no server whose answer files could be written: it is scored here; "
            "leave --export out"
        )
    if args.readout is not None:
        bench.labels_for_training()
    elif bench.continuations and args.export is None:
        raise ValueError(
            f"{bench.name} asks nothing: --export DIR generates its {len(bench.continuations)} "
            "videos, --judge DIR scores a folder of them"
        )
    elif not bench.continuations and not bench.asked:
        more = []
        if bench.handed_in is not bench.suite:
            more.append(f"--export DIR hands in {len(bench.handed_in.items)} without labels")
        if bench.readout is not None:
            more.append("--readout trains on its training clips")
        if args.export is None or bench.handed_in is bench.suite:
            remedy = f"; {', '.join(more)}" if more else ""
            raise ValueError(
                f"{bench.name}: none of {len(bench.suite.items)} items can be asked{remedy}"
            )


def _ask(args: argparse.Namespace, bench: Bench, subject: Subject, out: Path) -> int:
    """By likelihood or by surprise: the published metric, by every rule of ours."""
    from mmpredict.probes.writing import as_json, write_whole

    faults = tuple(f"{item}: {why}" for item, why in bench.faults.items())
    whole = None
    if bench.asked:
        asked = _asked(args, subject, replace(bench.suite, items=bench.asked), "model")
        asked.write(out / "per_item.jsonl")
        metric = _published(bench, asked)
        results = {"about": about(args, subject, asked), "metric": metric}
        write_whole(out / "results.json", as_json(results))
        _print(metric)
        whole = replace(asked, errors=(*faults, *asked.errors))
    if args.export is not None:
        secret = bench.handed_in
        if secret is not bench.suite:
            asked = _ungraded(_asked(args, subject, secret, "without labels"))
            asked.write(out / "per_item-unlabelled.jsonl")
            errors = (*(whole.errors if whole else ()), *asked.errors)
            rows = (*(whole.rows if whole else ()), *asked.rows)
            whole = replace(asked, rows=rows, errors=errors)
        _export(args, bench, asked)
    return closing(out, FILES, whole)


def _asked(args: argparse.Namespace, subject: Subject, suite: Suite, name: str) -> ProbeRun:
    variants = chosen_variants(args, subject, suite)
    return ask(subject, suite, variants, seed=args.seed, name=name)


def _ungraded(asked: ProbeRun) -> ProbeRun:
    """Without scores: the marks of these items are placeholders."""
    blank = {"score": None, "scores": {}, "tied": False}
    return replace(asked, rows=tuple({**row, **blank} for row in asked.rows))


def _export(args: argparse.Namespace, bench: Bench, asked: ProbeRun) -> None:
    """Answer files of all that was asked; nothing where an answer is missing.

    Raises:
        ValueError: in several forms of evidence, of which a file holds one.
    """
    variants = list(dict.fromkeys(row["variant"] for row in asked.rows))
    if len(variants) > 1:
        raise ValueError(
            f"--export writes the answers to one form of evidence, asked were "
            f"{', '.join(variants)}: choose with --evidence"
        )
    lost = [row["id"] for row in asked.rows if row["error"]]
    if lost:
        print(
            f"--export: nothing written, {len(lost)} of {len(asked.rows)} have no answer, the "
            f"first is {lost[0]!r}",
            file=sys.stderr,
        )
        return
    answers = {row["id"]: row["numbers"][row["rule"]] for row in asked.rows}
    for kind in bench.exports:
        for path in bench.export(kind, answers, args.export):
            print(f"wrote {path}")


def _published(bench: Bench, asked: ProbeRun) -> dict[str, dict[str, dict[str, float]]]:
    """variant -> rule -> the published metric; the registered rule of each item comes first."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for variant in asked.variants:
        rows = [row for row in asked.rows if row["variant"] == variant]
        rules = dict.fromkeys(rule for row in rows for rule in row["numbers"])
        if not rules:
            continue
        found[variant] = {"registered": bench.score_rows(rows, variant=variant)}
        for rule in rules:
            found[variant][rule] = bench.score_rows(rows, variant=variant, rule=rule)
    return found


def _print(metric: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """A line per form of evidence and rule, or who was read."""
    for variant, by_name in metric.items():
        for name, found in by_name.items():
            values = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
            print(f"{variant}, {name}: {values}")


def _readout(args: argparse.Namespace, bench: Bench, subject: Subject, out: Path) -> int:
    """Trained on the training clips that the benchmark gives, with controls beside it."""
    from mmpredict.probes.external.readout import ask_bench_readout
    from mmpredict.probes.run import ProbeRun
    from mmpredict.probes.writing import as_json, progress_line, write_whole

    variants = tuple(listed(args.evidence)) or ("video",)
    found = {
        variant: ask_bench_readout(
            subject.predictor,
            subject.codecs,
            bench,
            variant,
            seed=args.seed,
            progress=progress_line(f"readout, {variant}"),
        )
        for variant in variants
    }
    rows = tuple(
        {"id": name, "variant": variant, "scores": scores}
        for variant, one in found.items()
        for name, scores in one.scores.items()
    )
    errors = tuple(f"{name}: {why}" for one in found.values() for name, why in one.faults.items())
    faults = (f"{item}: {why}" for item, why in bench.faults.items())
    errors = tuple(dict.fromkeys((*faults, *errors)))
    suite = bench.suite
    asked = ProbeRun(suite.name, suite.sha, suite.world_version, variants, rows, errors)
    asked.write(out / "per_item.jsonl")
    metric = {variant: one.metric for variant, one in found.items()}
    results = {"about": about(args, subject, asked), "readout": metric}
    write_whole(out / "results.json", as_json(results))
    _print(metric)
    return closing(out, FILES, asked)


def _continue(args: argparse.Namespace, bench: Bench, subject: Subject) -> int:
    """Generate the videos that are wanted, beside the list of them."""
    from mmpredict.probes.external.continuing import continue_videos
    from mmpredict.probes.writing import progress_line

    written, faults = continue_videos(
        subject.predictor,
        subject.codecs,
        bench,
        args.export,
        context_length=subject.context_length or DEFAULT_CONTEXT,
        seed=args.seed,
        progress=progress_line("videos"),
    )
    for kind in bench.exports:
        written += bench.export(kind, {}, args.export)
    print(f"wrote {len(written)} files to {args.export}")
    for name, why in faults.items():
        print(f"not generated: {name}: {why}", file=sys.stderr)
    return 2 if faults else 0


def _judge(args: argparse.Namespace, bench: Bench) -> int:
    """Score generated videos; no checkpoint is needed.

    Raises:
        ValueError: the benchmark judges no videos.
    """
    from mmpredict.probes.writing import as_json, write_whole

    if bench.judge is None:
        raise ValueError(f"{bench.name} has no videos to judge; --judge is for physics_iq")
    metric: dict[str, Any] = bench.judge(args.judge)
    out = args.out or Path(f"probe-{bench.name}")
    results = {"about": {"bench": bench.name, "videos": str(args.judge)}, "metric": metric}
    write_whole(out / "results.json", as_json(results))
    print(json.dumps(metric, indent=1))
    print(f"wrote {out / 'results.json'}")
    return 0
