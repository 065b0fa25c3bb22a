"""What packing is worth: slots that hold real tokens, and useful tokens a second of training.

The documents are those of recipes/mixture.yaml (scenes of the embedded world and help texts), the
model and rows are the recipe's. Rivals: our packed rows; batches of documents, one to a row, padded
to the longest of them. Both sides train on the same documents with the same optimiser.
Before timing: text losses of the same documents, packed and padded, agree.
Run: python benchmarks/packing.py [--smoke] [--json FILE]
Targets: >= 99 % of the slots are real tokens; >= 2.5 times the useful tokens per second.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from harness import parse_arguments, print_table, time_interleaved, write_result  # noqa: E402
from mixed import mixture, quickstart_model  # noqa: E402

from datamodules import Loading, PackedLoader  # noqa: E402
from datamodules.feed.skips import SkipLog  # noqa: E402
from mmpredict.model import Predictor  # noqa: E402
from mmpredict.objectives import LossWeights, next_loss  # noqa: E402
from mmpredict.schema import Batch, Modality  # noqa: E402
from mmpredict.sequence import BestFit, pack, unpack  # noqa: E402

_PADDED_DOCUMENTS = 32
_PIECE = 4  # rows
_LOSS_TOLERANCE = 1e-4


def pad_to_longest(documents: list[Batch], size: int) -> list[Batch]:
    """One document to a row, every row as long as the longest of its `size` documents; given in
    pieces of a few rows, because a batch of 32 long rows does not fit into memory."""
    batches = []
    for first in range(0, len(documents), size):
        group = documents[first : first + size]
        longest = max(d.modality.shape[1] for d in group)
        rows = [[d] for d in group]
        batches += [pack(rows[i : i + _PIECE], longest) for i in range(0, len(rows), _PIECE)]
    return batches


def train_on(model: Predictor, batches: list[Batch]) -> Callable[[], None]:
    """A call that takes one optimiser step on every batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

    def run() -> None:
        for batch in batches:
            next_loss(model(batch), model.layout, LossWeights()).total.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def text_loss(model: Predictor, batches: list[Batch]) -> float:
    """Summed cross-entropy of all text tokens: no noise in it, so it can be compared."""
    total = 0.0
    with torch.no_grad():
        for batch in batches:
            text = model(batch).streams.get(int(Modality.TEXT))
            if text is not None:
                total += torch.nn.functional.cross_entropy(
                    text.logits_MV, text.targets_M, reduction="sum"
                ).item()
    return total


def efficiency(batches: list[Batch]) -> float:
    return sum(b.num_tokens for b in batches) / sum(b.doc_id.numel() for b in batches)


def packers(lengths: list[int], context_length: int) -> dict[str, float]:
    """Efficiency of our packer with different numbers of open rows, and of plainer ways."""
    found = {}
    for open_rows in (4, 16, 64):
        packer: BestFit[int] = BestFit(context_length, open_rows)
        rows = [row for n, length in enumerate(lengths) for row in packer.add(n, length)]
        full = sum(lengths[n] for row in rows for n in row)
        found[f"best_fit_{open_rows}"] = full / (len(rows) * context_length)
    used, rows_used = 0, 1
    for length in lengths:
        if used + length > context_length:
            rows_used, used = rows_used + 1, 0
        used += length
    found["next_fit"] = sum(lengths) / (rows_used * context_length)
    groups = [lengths[i : i + 32] for i in range(0, len(lengths), 32)]
    found["pad_to_longest_of_32"] = sum(lengths) / sum(32 * max(g) for g in groups)
    return found


def main() -> None:
    """Draw documents, lay them out both ways, compare losses, then time."""
    arguments = parse_arguments(__doc__)
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")
    data = mixture()
    drawn, timed = (60, 32) if arguments.smoke else (2000, 64)
    loading = Loading(**{**vars(data.loading), "workers": 0})
    loader = PackedLoader(data.documents("train"), loading, SkipLog(loading), seed=0)
    packed: list[Batch] = []
    documents = 0
    for batch in loader:
        packed.append(batch)
        documents += int(batch.doc_id.max(dim=1).values.sum())
        if documents >= drawn:
            break
    share = loader.meter.figures()["efficiency"]
    some = [d for batch in packed for row in unpack(batch) for d in row]
    lengths = [d.modality.shape[1] for d in some]
    by_packer = packers(lengths, loading.context_length)

    subset = some[:: max(1, len(some) // timed)][:timed]
    order = torch.randperm(len(subset), generator=torch.Generator().manual_seed(0)).tolist()
    padded = pad_to_longest([subset[i] for i in order], min(_PADDED_DOCUMENTS, timed))
    packer: BestFit[int] = BestFit(loading.context_length, loading.open_rows)
    rows = [r for n, d in enumerate(subset) for r in packer.add(n, d.modality.shape[1])]
    rows += packer.flush()
    # The last rows are not full: a training has none of those, but equal documents matter more.
    ours = [
        pack(
            [[subset[n] for n in row] for row in rows[i : i + loading.rows]], loading.context_length
        )
        for i in range(0, len(rows), loading.rows)
    ]
    model = quickstart_model(data.layout, data.statistics())
    losses = text_loss(model, ours), text_loss(model, padded)
    if abs(losses[0] - losses[1]) > _LOSS_TOLERANCE * abs(losses[1]):
        raise SystemExit(f"text losses differ: packed {losses[0]}, padded {losses[1]}")
    calls = {"packed": train_on(model, ours), "pad_to_longest": train_on(model, padded)}
    timings = time_interleaved(calls, rounds=1 if arguments.smoke else 5)
    useful = sum(d.modality.shape[1] for d in subset)
    rates = {name: useful / timing.cpu_median_s for name, timing in timings.items()}
    print_table(
        ["side", "useful tokens/CPU-s", "slots filled"],
        [
            ["packed", f"{rates['packed']:.0f}", f"{efficiency(ours):.3f}"],
            ["pad to longest of 32", f"{rates['pad_to_longest']:.0f}", f"{efficiency(padded):.3f}"],
        ],
    )
    print_table(
        ["layout of the same lengths", "slots filled"],
        [[name, f"{value:.4f}"] for name, value in by_packer.items()],
    )
    ratio = rates["packed"] / rates["pad_to_longest"]
    print(f"packing efficiency over {len(packed)} batches of a training: {share:.4f} (goal 0.99)")
    print(f"useful tokens per second against padding: {ratio:.2f} (goal 2.5)")
    write_result(
        arguments.json,
        "packing",
        ratios={"useful_tokens_vs_padding": ratio},
        figures={
            "packing_efficiency": share,
            "documents": len(some),
            "context_length": loading.context_length,
            "text_loss": {"packed": losses[0], "padded": losses[1]},
            "useful_tokens_per_cpu_s": rates,
            "efficiency_by_packer": by_packer,
            "timings": {name: asdict(timing) for name, timing in timings.items()},
        },
    )


if __name__ == "__main__":
    main()
