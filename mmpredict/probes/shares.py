"""A suite asked by several processes, each a share of the scenes. In: as `run.run_suite`. Out: the
same rows, whatever the number of processes.

Small models do not gain from threads (two of them wait for each other most of the time), and films
are drawn by one thread anyway; scenes have nothing to do with each other, so processes gain all.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from typing import Any

import torch

from mmpredict.model import Predictor
from mmpredict.probes.items import Item, Suite
from mmpredict.probes.run import (
    ModelScorer,
    ProbeRun,
    Progress,
    named_errors,
    run_suite,
    together,
    voe_to_draw,
)
from mmpredict.tokens import Codecs


@dataclass(frozen=True)
class Job:
    """Who is asked, and how.

    Args:
        predictor: in evaluation mode.
        codecs: its encoders.
        variants: of the evidence.
        seed: of the noise of surprise.
        blind: see `ModelScorer`.
    """

    predictor: Predictor
    codecs: Codecs
    variants: tuple[str, ...]
    seed: int = 0
    blind: bool = False

    def run(self, suite: Suite, drawn: frozenset[str], progress: Progress | None) -> ProbeRun:
        """Ask a suite, or a share of one."""
        scorer = ModelScorer(
            self.predictor,
            self.codecs,
            suite.sources,
            variants=self.variants,
            seed=self.seed,
            blind=self.blind,
        )
        scorer.drawn |= drawn
        return run_suite(scorer, suite, self.variants, progress=progress, curves_per_family=0)


def run_in_shares(
    job: Job,
    suite: Suite,
    *,
    workers: int = 1,
    progress: Progress | None = None,
    curves_per_family: int = 1,
) -> ProbeRun:
    """Ask a suite in several processes.

    Args:
        job: who is asked, and how.
        suite: what.
        workers: processes, this one included; for a model on a CPU.
        progress: told how many answers of how many are in, by this process's share.
        curves_per_family: see `run_suite`.
    """
    drawn = frozenset(voe_to_draw(suite.items, curves_per_family))
    shares = _shares(suite, job.variants, workers)
    if len(shares) < 2:
        return job.run(suite, drawn, progress)
    mine, *others = shares
    context = get_context("spawn")
    with ProcessPoolExecutor(len(others), context, initializer=leave_with_parent) as pool:
        waiting = [pool.submit(_work, job, share, drawn) for share in others]
        runs = [job.run(mine, drawn, _scaled(progress, suite, mine, job.variants))]
        runs += [future.result() for future in waiting]
    return _merged(suite, job.variants, runs)


def leave_with_parent() -> None:
    """End this process when the one that started it is gone: killed, it cannot say so."""

    def watch() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(job: Job, suite: Suite, drawn: frozenset[str]) -> ProbeRun:
    torch.set_num_threads(1)
    return job.run(suite, drawn, None)


def _shares(suite: Suite, variants: Sequence[str], workers: int) -> list[Suite]:
    """Scenes in turn to each process; a share where nothing is asked is left out."""
    groups = [g for g in together(suite.items) if _count(g, variants)]
    shares = []
    for number in range(workers):
        items = tuple(item for group in groups[number::workers] for item in group)
        used = {e.source for item in items for e in item.evidence}
        if items:
            sources = {name: s for name, s in suite.sources.items() if name in used}
            shares.append(replace(suite, items=items, sources=sources))
    return shares


def _count(items: Sequence[Item], variants: Sequence[str]) -> int:
    return sum(variant in item.variants for item in items for variant in variants)


def _scaled(
    progress: Progress | None, suite: Suite, mine: Suite, variants: Sequence[str]
) -> Progress | None:
    """Told as if the others were as far."""
    if progress is None:
        return None
    ours, total = _count(mine.items, variants), _count(suite.items, variants)
    return lambda done, _: progress(round(done * total / ours), total)


def _merged(suite: Suite, variants: Sequence[str], runs: Sequence[ProbeRun]) -> ProbeRun:
    """All shares in the suite's order."""
    rows = {(row["id"], row["variant"]): row for run in runs for row in run.rows}
    order = [(item.id, v) for item in suite.items for v in variants if v in item.variants]
    curves: dict[tuple[str, str], Any] = {}
    for run in runs:
        curves |= run.curves
    ordered = tuple(rows[key] for key in order)
    return ProbeRun(
        suite.name,
        suite.sha,
        suite.world_version,
        tuple(variants),
        ordered,
        named_errors(ordered),
        {key: curves[key] for key in order if key in curves},
    )
