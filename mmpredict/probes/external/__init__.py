"""Published benchmarks in the layouts that their authors publish. In: a name and a folder that the
user has downloaded. Out: a `Bench`: items, the published metric, exports. Nothing is fetched.

The adapters were tested on small synthetic folders in the published layout, not on the downloads.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

from mmpredict.probes.external import (
    babi,
    cater,
    clevrer,
    ewok,
    grasp,
    inflevel,
    intphys,
    intphys2,
    mvp,
    physics_iq,
    physion,
    spartqa,
    spatialsoundqa,
    stepgame,
    vlmevalkit_tsv,
    vsibench,
    vsr,
    whatsup,
)
from mmpredict.probes.external.bench import Answers, Bench, BenchError, Continuation, Readout

BENCHES: dict[str, ModuleType] = {
    "intphys": intphys,
    "intphys2": intphys2,
    "inflevel": inflevel,
    "grasp": grasp,
    "mvp": mvp,
    "whatsup": whatsup,
    "vsr": vsr,
    "babi": babi,
    "stepgame": stepgame,
    "spartqa": spartqa,
    "ewok": ewok,
    "clevrer": clevrer,
    "physion": physion,
    "cater": cater,
    "physics_iq": physics_iq,
    "vlmevalkit_tsv": vlmevalkit_tsv,
    "vsibench": vsibench,
    "spatialsoundqa": spatialsoundqa,
}

__all__ = ["BENCHES", "Answers", "Bench", "BenchError", "Continuation", "Readout", "load_bench"]


def load_bench(name: str, root: str | Path) -> Bench:
    """Read a benchmark's folder.

    Args:
        name: of `BENCHES`, or with a part of it after a colon: "vsr:zeroshot", "cater:localize".
        root: the folder as it was unpacked.

    Raises:
        BenchError: there is no such benchmark, or the folder is not as published.
    """
    bench, _, part = name.partition(":")
    if bench not in BENCHES:
        raise BenchError(f"no benchmark {bench!r}; there are {', '.join(BENCHES)}")
    found = BENCHES[bench].load(Path(root), part)
    if not (found.suite.items or found.unlabelled or found.readout or found.continuations):
        raise BenchError(f"{root} has nothing of {bench} that belongs to the part {part!r}")
    unlabelled = found.unlabelled and replace(found.unlabelled, root=str(Path(root)))
    return replace(found, suite=replace(found.suite, root=str(Path(root))), unlabelled=unlabelled)
