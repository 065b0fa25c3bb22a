"""A picture of where one training step's time goes: every operation, as the profiler saw it.

In: the quickstart's model and a batch of its data, one thread, bfloat16 where this machine has it.
Out: a PNG with one lane per kind of work over time, and the shares of the step.
Run: python benchmarks/step_picture.py [--out docs/images/step.png]
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT)]

from mixed import quickstart_model, world  # noqa: E402

from mmpredict.model import Predictor  # noqa: E402
from mmpredict.objectives import LossWeights, next_loss  # noqa: E402
from mmpredict.schema import Batch  # noqa: E402

PHASES = ("forward: trunk", "forward: heads", "losses", "backward", "optimiser")
# kind: parts of the names of its operations; the first that fits counts
KINDS = {
    "matrix products": ("mm", "bmm", "linear", "addmm", "matmul"),
    "softmax": ("softmax",),
    "norms": ("norm",),
    "AdamW": ("adam",),
    "gather and scatter": ("index", "gather", "scatter", "cat", "embedding"),
    "copies and types": ("copy", "to", "clone", "fill", "zero", "empty"),
    "elementwise": ("",),
}
WHOLE = {"mm", "bmm", "addmm", "baddbmm", "_fused_adamw_", "softmax", "_softmax", "embedding"}
COLOURS = ("#3b6ea5", "#d08a2e", "#6a9a5b", "#8a5ca8", "#b85450", "#8c8c8c", "#c9b458")


def traced(model: Predictor, batch: Batch) -> list[Any]:
    """The profiler's events of one step, after two that warm up."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            with record_function(PHASES[0]):
                placed = batch.placed()
                hidden = model.hidden(placed)
            with record_function(PHASES[1]):
                said = said_from(model, placed, hidden)
            with record_function(PHASES[2]):
                loss = next_loss(said, model.layout, LossWeights()).total
        with record_function(PHASES[3]):
            loss.backward()
        with record_function(PHASES[4]):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    step()
    step()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    return list(seen.events())


def said_from(model: Predictor, batch: Batch, hidden: torch.Tensor) -> Any:
    """The predictor's forward pass behind the trunk."""
    model.hidden = lambda *_: hidden  # type: ignore[method-assign]
    try:
        return model(batch)
    finally:
        del model.hidden


def outermost(events: list[Any]) -> Iterator[Any]:
    """Operations that do work of their own: products whole, others where nothing is below."""
    inside: set[int] = set()
    for event in events:  # parents come before their children
        if event.id in inside or not event.name.startswith(("aten::", "mkldnn::")):
            if event.id in inside:
                inside |= {child.id for child in event.cpu_children}
            continue
        whole = event.name.removeprefix("aten::") in WHOLE
        if whole:
            inside |= {child.id for child in event.cpu_children}
        if whole or not event.cpu_children:
            yield event


def kind_of(name: str) -> str:
    short = name.removeprefix("aten::").removeprefix("mkldnn::").strip("_").lower()
    return next(kind for kind, marks in KINDS.items() if any(mark in short for mark in marks))


def draw(events: list[Any], out: Path) -> dict[str, float]:
    """The picture; the share of each kind."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    phases = {e.name: e.time_range for e in events if e.name in PHASES}
    start = min(r.start for r in phases.values())
    whole = max(r.end for r in phases.values()) - start
    bars: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for event in outermost(events):
        span = event.time_range
        if span.start >= start:
            bars[kind_of(event.name)].append(((span.start - start) / 1e3, span.elapsed_us() / 1e3))
    shares = {kind: sum(length for _, length in bars[kind]) * 1e3 / whole for kind in KINDS}
    figure, axes = pyplot.subplots(figsize=(10, 3.6), layout="constrained")
    for lane, (kind, colour) in enumerate(zip(KINDS, COLOURS, strict=True)):
        axes.broken_barh(bars[kind], (lane + 0.1, 0.8), color=colour)
    names = [f"{kind} ({shares[kind]:.0%})" for kind in KINDS]
    axes.set_yticks([lane + 0.5 for lane in range(len(KINDS))], names)
    for name in PHASES:
        left, right = ((t - start) / 1e3 for t in (phases[name].start, phases[name].end))
        axes.axvline(left, color="black", lw=0.6)
        if right - left > 0.04 * whole / 1e3:
            axes.text((left + right) / 2, len(KINDS) + 0.15, name, ha="center", fontsize=8)
    axes.set(xlim=(0, whole / 1e3), ylim=(len(KINDS), 0), xlabel="milliseconds")
    axes.invert_yaxis()
    axes.set_title("One training step of the quickstart on one CPU thread", pad=18, fontsize=10)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "step.png")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")
    data = world(workers=0)
    model = quickstart_model(data.layout, data.statistics())
    batch = next(iter(data.train_dataloader()))
    shares = draw(traced(model, batch), arguments.out)
    for kind, share in shares.items():
        print(f"{kind}: {share:.1%} of the step")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
