"""Attention of packed rows on one thread of a CPU, forward and backward: all backends side by side.

Rivals: our backends; the fused kernel (`scaled_dot_product_attention`) with the rows' mask; the
same kernel called for one document after another. Every round has rows with documents of new
lengths, as training has. Before timing: all equal the float32 reference.
Run: python benchmarks/attention.py [--smoke] [--json FILE]
Targets: "auto" within 10 % of the best of our backends, eager and compiled.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import cycle, pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from harness import parse_arguments, print_table, time_interleaved, write_result  # noqa: E402

from mmpredict.model.sight import Backend, attend, look  # noqa: E402

_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
Ids = tuple[Tensor, Tensor]  # doc_id_BL, block_id_BL


@dataclass(frozen=True)
class Case:
    """Rows of one kind; `frame` positions in the longest blocks, 1 for text alone."""

    rows: int
    length: int
    documents: int
    heads: tuple[int, int] = (4, 4)
    width: int = 64
    frame: int = 1
    window: int = 0

    def draw(self, seed: int) -> Ids:
        """Documents of random lengths; frames and single positions in turn; a little padding."""
        rng = random.Random(seed)
        doc_id_BL = torch.zeros(self.rows, self.length, dtype=torch.long)
        block_id_BL = torch.full_like(doc_id_BL, -1)
        for row in range(self.rows):
            used = self.length - rng.randrange(self.length // 64 + 1)
            cuts = sorted(rng.sample(range(self.frame, used - self.frame), self.documents - 1))
            for number, (start, stop) in enumerate(pairwise([0, *cuts, used]), 1):
                doc_id_BL[row, start:stop] = number
            place, block = 0, 0
            while place < used:
                size = self.frame if rng.random() < 0.4 else 1
                block_id_BL[row, place : min(place + size, used)] = block
                place, block = place + size, block + 1
        ends = torch.zeros_like(block_id_BL)  # a block ends with its document
        ends[:, 1:] = (doc_id_BL[:, 1:] != doc_id_BL[:, :-1]).long()
        block_id_BL = torch.where(doc_id_BL > 0, 2 * block_id_BL + ends.cumsum(1), -1)
        return doc_id_BL, block_id_BL


CASES = {
    "text, 8 x 512, 4 documents": Case(8, 512, 4),
    "text, 8 x 512, 1 document": Case(8, 512, 1),
    "text, 2 x 2048, 8 documents": Case(2, 2048, 8),
    "frames, 16 x 352, 2 documents": Case(16, 352, 2, width=32, frame=16),
    "frames, 4 x 1119, 3 documents": Case(4, 1119, 3, width=32, frame=16),
    "window 256, 2 x 2048, 2 documents, grouped": Case(2, 2048, 2, heads=(4, 2), window=256),
}


def per_document(q: Tensor, k: Tensor, v: Tensor, ids: Ids, case: Case) -> Tensor:
    """The fused kernel, document by document: causal where the blocks are single positions."""
    rows = []
    for row, (doc_L, block_L) in enumerate(zip(*ids, strict=True)):
        _, counts = doc_L.unique_consecutive(return_counts=True)
        edges = [0, *counts.cumsum(0).tolist()]
        parts = []
        for start, stop in pairwise(edges):
            here = slice(row, row + 1), slice(None), slice(start, stop)
            causal = case.frame == 1 and not case.window
            mask = None
            if not causal:
                block, index = block_L[start:stop], torch.arange(stop - start)
                near = index[:, None] - index[None] < (case.window or stop)
                own = block[:, None] == block[None]
                mask = (block[None] <= block[:, None]) & (near | own)
            parts.append(
                F.scaled_dot_product_attention(
                    q[here], k[here], v[here], mask, is_causal=causal, enable_gqa=True
                )
            )
        rows.append(torch.cat(parts, 2))
    return torch.cat(rows)


Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


_compiled = torch.compile(attend, dynamic=False)  # one function for all batches, as a layer is


def rivals(case: Case, ids: Ids) -> dict[str, Attention]:
    """Name to attention of these rows; what can be prepared per batch is prepared."""
    made: dict[str, Attention] = {}

    def ours(name: str, backend: Backend, *, static: bool = False) -> None:
        sight = look(
            *ids, window=case.window, backend=backend, static=static, longest_block=case.frame
        )
        function = _compiled if static else attend
        made[name] = lambda q, k, v: function(q, k, v, sight)

    ours("reference", "reference")
    mask_B1LL = look(*ids, window=case.window, backend="reference").mask_B1NK
    made["fused, mask"] = lambda q, k, v: F.scaled_dot_product_attention(
        q, k, v, mask_B1LL, enable_gqa=True
    )
    made["fused, per document"] = lambda q, k, v: per_document(q, k, v, ids, case)
    ours("chunked", "chunked")
    ours("documents", "documents")
    ours("auto", "auto")
    ours("chunked, compiled", "chunked", static=True)
    ours("documents, compiled", "documents", static=True)
    ours("auto, compiled", "auto", static=True)
    return made


def measure(case: Case, dtype: torch.dtype, rounds: int) -> dict[str, float]:
    """CPU-ms of forward and backward of every rival, after all were found equal."""
    (H, G), E = case.heads, case.width
    generator = torch.Generator().manual_seed(0)
    q, k, v, dy = (
        torch.randn(case.rows, n, case.length, E, generator=generator).to(dtype)
        for n in (H, G, G, H)
    )
    for x in (q, k, v):
        x.requires_grad_()
    warm_up = 2
    torch._dynamo.reset()
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):  # the biases' precision
        batches = [rivals(case, case.draw(seed)) for seed in range(warm_up + rounds)]
    check(batches[0], (q, k, v), case, dtype)

    def timed(name: str) -> Callable[[], None]:
        turn = cycle(batches)
        return lambda: torch.autograd.grad(next(turn)[name](q, k, v), (q, k, v), dy)

    names = [n for n in batches[0] if n != "reference" or dtype == torch.float32]
    timings = time_interleaved({n: timed(n) for n in names}, rounds=rounds, warm_up=warm_up)
    return {name: 1e3 * asdict(timing)["cpu_median_s"] for name, timing in timings.items()}


def check(
    made: dict[str, Attention], inputs: tuple[Tensor, ...], case: Case, dtype: torch.dtype
) -> None:
    """No figures without equality: values and gradients."""
    doc_id_BL, _ = case.draw(0)
    real = (doc_id_BL > 0)[:, None, :, None]

    def outcome(attention: Attention, args: tuple[Tensor, ...]) -> list[Tensor]:
        y = attention(*args).float() * real
        return [y, *torch.autograd.grad(y.square().sum(), args)]

    wide = tuple(x.detach().float().requires_grad_() for x in inputs)
    expected = outcome(made["reference"], wide)
    for name, attention in made.items():
        for a, b in zip(outcome(attention, inputs), expected, strict=True):
            a, b = a.detach().float(), b.detach()
            error = float((a - b).abs().max() / b.abs().max().clamp(min=1.0))
            if error > _TOLERANCE[dtype]:
                raise SystemExit(f"{name} differs from the reference by {error:.2g} ({case})")


def main() -> None:
    """Time all cases in float32 and bfloat16."""
    arguments = parse_arguments(__doc__)
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")
    cases = dict(list(CASES.items())[:1]) if arguments.smoke else CASES
    figures: dict[str, dict[str, float]] = {}
    ratios: dict[str, float] = {}
    for title, case in cases.items():
        for dtype in (torch.bfloat16, torch.float32):
            name = f"{title}, {str(dtype).removeprefix('torch.')}"
            ms = figures[name] = measure(case, dtype, 2 if arguments.smoke else 9)
            eager = ms["auto"] / min(ms["chunked"], ms["documents"])
            compiled = ms["auto, compiled"] / min(
                ms["chunked, compiled"], ms["documents, compiled"]
            )
            ratios |= {
                f"{name}: auto over best": eager,
                f"{name}: auto over best, compiled": compiled,
                f"{name}: fused mask over auto": ms["fused, mask"] / ms["auto"],
                f"{name}: fused per document over auto": ms["fused, per document"] / ms["auto"],
            }
            print(f"{name}; CPU-ms forward and backward")
            print_table(["way", "ms"], [[way, f"{x:.1f}"] for way, x in ms.items()])
            print(f"auto over best: {eager:.2f} eager, {compiled:.2f} compiled\n", flush=True)
    write_result(arguments.json, "attention", ratios=ratios, figures={"cpu_ms": figures})


if __name__ == "__main__":
    main()
