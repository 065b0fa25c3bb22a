"""All measurements that need a GPU, in one run; without one, the same code in a small CPU size.

Ceilings (matrix product, copy) on random numbers; then per model size: tokens/s and MFU on packed
multimodal rows from a cached batch and from a loader with workers, peak memory against the formula
printed before, host reads between steps by the profiler; packed against padded rows; beside Hugging
Face's Llama, compiled, with the same weights (skipped without transformers); and a rollout of one
row against the time that reading weights and cache takes. A part that fails is named and the others
go on. Needs torch and numpy; the loader is that of the recipes over the embedded world where its
packages are there (h200_data.py), and the result says which it was.

Run: python benchmarks/h200.py [--smoke] [--json FILE]
Targets: MFU 42 / 47 / 52 % at 0.12 / 0.35 / 1.3 B; >= 1.15 x Llama; 0 host reads; memory <= 1.1 x
the formula; rollout >= 60 % of the roof.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT)]
try:
    import pytorch_lightning  # noqa: F401
except ImportError:  # the rooms below do without it; the package's head does not
    bare = types.ModuleType("mmpredict.training")
    bare.__path__ = [str(ROOT / "mmpredict" / "training")]
    sys.modules["mmpredict.training"] = bare

from h200_data import LAYOUT, LENGTH, batch_of, loader_of  # noqa: E402
from harness import parse_arguments, print_table, write_result  # noqa: E402

from mmpredict.model import HeadConfig, Predictor, PredictorConfig  # noqa: E402
from mmpredict.objectives import LossWeights, next_loss  # noqa: E402
from mmpredict.schema import Batch, Layout, Tokens  # noqa: E402
from mmpredict.sequence import interleave, pack  # noqa: E402
from mmpredict.training.flops import (  # noqa: E402
    known_peak,
    matmul_speed,
    positions,
    visible_pairs,
    work_of,
)
from mmpredict.training.memory import GB, memory_of  # noqa: E402
from mmpredict.training.optim import OptimizerSettings, optimizer_for  # noqa: E402

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
HEADS = {"video": HeadConfig(dim=512, depth=3), "audio": HeadConfig(dim=512, depth=2)}
SMALL_HEADS = {name: HeadConfig(dim=32, depth=1) for name in HEADS}
# name: width, depth, heads, rows, MFU to reach
SIZES = {
    "0.12B": (768, 12, 12, 16, 0.42),
    "0.35B": (1024, 24, 16, 16, 0.47),
    "1.3B": (2048, 24, 16, 16, 0.52),
}
CPU_SIZES = {"cpu": (64, 2, 2, 2, 0.0)}
Step = Callable[[Batch], torch.Tensor]


def predictor(size: tuple[int, int, int, int, float], layout: Layout = LAYOUT) -> Predictor:
    dim, depth, heads, _, _ = size
    torch.manual_seed(0)
    config = PredictorConfig(
        dim=dim, depth=depth, num_heads=heads, heads=HEADS if CUDA else SMALL_HEADS
    )
    with torch.device(DEVICE):
        model = Predictor(layout, config)
    return model


def half() -> torch.autocast:
    return torch.autocast(DEVICE.type, torch.bfloat16, cache_enabled=False)


def trained(model: torch.nn.Module, loss_of: Callable[[Any], torch.Tensor]) -> Step:
    """One step of fused AdamW with clipping; nothing is read back."""
    optimizer = optimizer_for(model, OptimizerSettings(lr=1e-4))

    def step(batch: Any) -> torch.Tensor:
        with half():
            loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return step


def predictor_step(model: Predictor) -> Step:
    model.compile_layers()
    return trained(model, lambda b: next_loss(model(b), model.layout, LossWeights()).total)


def seconds_a_step(step: Step, batches: Iterator[Any], warm_up: int, steps: int) -> float:
    """Between two events on the device; it is waited for once at each end."""
    for _ in range(warm_up):
        step(next(batches))
    if not CUDA:
        start = time.perf_counter()
        for _ in range(steps):
            step(next(batches))
        return (time.perf_counter() - start) / steps
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(steps):
        step(next(batches))
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / steps


def cycle(batches: list[Any]) -> Iterator[Any]:
    while True:
        yield from batches


def host_reads(step: Step, batches: Iterator[Any], steps: int = 3) -> dict[str, int]:
    """Events of `steps` steps that make the host wait for the device."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if CUDA else [])
    watched = ("aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select")
    watched += ("cudaStreamSynchronize", "cudaDeviceSynchronize")
    own = torch.profiler.record_function
    with profile(activities=kinds) as seen:
        for _ in range(steps):
            with own("step"):
                step(next(batches))
    return {e.key: e.count for e in seen.key_averages() if e.key in watched}


def ceilings() -> dict[str, float]:
    """Matrix product and copy, random numbers, in this run."""
    rows, dim = (8192, 8192) if CUDA else (1024, 256)
    found = {
        "gemm_flops": matmul_speed(
            rows, dim, dim, device=DEVICE, dtype=torch.bfloat16, seconds=1.0 if CUDA else 0.1
        )
    }
    x = torch.randn(2**28 if CUDA else 2**22, device=DEVICE)
    y = torch.empty_like(x)
    copies = cycle([None])
    took = seconds_a_step(lambda _: y.copy_(x), copies, 3, 20)
    return found | {"copy_bytes_per_s": 2 * x.nbytes / took}


def train(name: str, size: tuple[int, int, int, int, float], steps: int) -> dict[str, Any]:
    """Throughput, share of the machine, memory and host reads of one size."""
    layout, fed_by, statistics, source = loader_of(size[3])
    model = predictor(size, layout)
    if statistics is not None:
        model.set_statistics(statistics)
    batches = iter(fed_by)
    cached = [next(batches) for _ in range(4)]
    moved = [b.to(DEVICE) for b in cached]
    work = work_of(model, moved[0])
    step = predictor_step(model)
    formula = memory_of(model, moved[0], half=True)
    print(f"{name}: memory by the formula {formula.total / GB:.2f} GB", flush=True)
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    warm_up = 10 if CUDA else 2
    begun = time.perf_counter()
    step(moved[0])
    first_s = time.perf_counter() - begun
    took = seconds_a_step(step, cycle(moved), warm_up, steps)
    reads = host_reads(step, cycle(moved))
    fed = (b.to(DEVICE) for b in batches)
    took_fed = seconds_a_step(step, fed, 4 if CUDA else 1, steps)
    tokens = sum(sum(positions(b).values()) for b in cached) / len(cached)
    flops = sum(
        sum(work.parts(positions(b), float(visible_pairs(b))).values()) for b in cached
    ) / len(cached)
    peak = known_peak(DEVICE)
    found: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "loader": source,
        "tokens_a_step": tokens,
        "flops_a_step": flops,
        "step_s": took,
        "fed_step_s": took_fed,
        "first_step_s": first_s,
        "tokens_per_s": tokens / took_fed,
        "flops_per_s": flops / took_fed,
        "mfu_cached": flops / took / peak if peak else None,
        "mfu": flops / took_fed / peak if peak else None,
        "mfu_wanted": size[4],
        "loader_ratio": took_fed / took,
        "host_reads_of_3_steps": reads,
        "memory_formula_gb": formula.total / GB,
    }
    if CUDA:
        found["memory_gb"] = torch.cuda.max_memory_allocated() / GB
        found["memory_ratio"] = found["memory_gb"] / found["memory_formula_gb"]
    return found


def packed_or_padded(size: tuple[int, int, int, int, float], steps: int) -> dict[str, float]:
    """Useful tokens a second of packed rows over those of one document a row."""
    model, rows = predictor(size), size[3]
    step, rate = predictor_step(model), {}
    for name, packed in (("packed", True), ("padded", False)):
        batches = [batch_of(rows, seed, packed=packed).to(DEVICE) for seed in range(4)]
        took = seconds_a_step(step, cycle(batches), 5 if CUDA else 1, steps)
        rate[name] = sum(sum(positions(b).values()) for b in batches) / len(batches) / took
    return {"packed_vs_padded": rate["packed"] / rate["padded"]} | rate


def beside_llama(size: tuple[int, int, int, int, float], steps: int) -> dict[str, Any]:
    """The same weights and words in Hugging Face's Llama, compiled, bfloat16 autocast."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from mmpredict.model.pretrained import from_language_model

    dim, depth, heads, rows, _ = size
    vocabulary = LAYOUT[2].vocab_size
    settings = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=dim,
        intermediate_size=64 * round(dim * 8 / 3 / 64),
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )
    theirs = LlamaForCausalLM(settings)
    words = Layout((LAYOUT[2],))
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = from_language_model(words, PredictorConfig(), folder).to(DEVICE)
    theirs = theirs.to(DEVICE)
    ids = torch.randint(vocabulary, (rows, LENGTH), generator=torch.Generator().manual_seed(0))
    untimed = torch.full((LENGTH,), float("nan"), dtype=torch.float64)
    batch = pack([[interleave([Tokens(2, row, untimed)], words)] for row in ids], LENGTH)
    weights = LossWeights(z=0.0, next_stream=0.0)
    compiled = torch.compile(theirs)
    ours.trunk.compile_layers()
    their_step = trained(theirs, lambda x: compiled(input_ids=x, labels=x).loss)
    our_step = trained(ours, lambda b: next_loss(ours(b), words, weights).total)
    ids, batch = ids.to(DEVICE), batch.to(DEVICE)
    losses = float(our_step(batch)), float(their_step(ids))
    if abs(losses[0] - losses[1]) > 0.02 * losses[1]:
        raise RuntimeError(f"losses differ, nothing is timed: ours {losses[0]}, Llama {losses[1]}")
    rounds = [
        (
            seconds_a_step(our_step, cycle([batch]), 3, steps // 2 or 1),
            seconds_a_step(their_step, cycle([ids]), 3, steps // 2 or 1),
        )
        for _ in range(3)
    ]
    ratio = sorted(b / a for a, b in rounds)[1]
    return {"step_vs_hf_compiled": ratio, "losses": losses, "seconds": rounds}


@torch.no_grad()
def roll(size: tuple[int, int, int, int, float], roof: float, tokens: int) -> dict[str, float]:
    """Frames and words aside: the trunk alone, one position at a time, one row."""
    model = predictor(size).eval()
    dim = size[0]
    with half():
        cache = model.trunk.new_cache(1, tokens + 16)
        x = torch.randn(1, 1, dim, device=DEVICE)
        place = torch.zeros(1, 1, 3, device=DEVICE)

        def step(_: Any) -> torch.Tensor:
            place[..., 0] += 0.04
            return model.trunk.extend(x, place, cache)

        took = seconds_a_step(step, cycle([None]), 10, tokens)
    weights = sum(p.numel() for p in model.trunk.parameters())
    read = 2 * weights + 2 * 2 * size[1] * dim * tokens / 2  # bfloat16: weights, half-full cache
    return {"tokens_per_s": 1 / took, "roof_share": read / (roof / 2) / took}


def clocks() -> str:
    """Clocks, power and temperature of the GPU, as its driver says."""
    query = "clocks.sm,clocks.mem,power.draw,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0])
    torch.set_float32_matmul_precision("medium")
    quick = arguments.smoke or not CUDA
    steps = 3 if quick else 50
    if not CUDA:
        print("no GPU: the CPU size, to see that it runs; MFU, memory and speed are NOT measured")
    found: dict[str, Any] = {"device": DEVICE.type, "clocks_before": clocks() if CUDA else ""}
    sizes = SIZES if CUDA else CPU_SIZES
    least = next(iter(sizes.values()))

    def part(name: str, call: Callable[[], Any]) -> None:
        try:
            found[name] = call()
        except Exception as error:  # one part must not cost the others
            found[name] = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
        if CUDA:
            torch.cuda.empty_cache()
        torch._dynamo.reset()
        print(f"{name}: {found[name]}", flush=True)

    part("ceilings", ceilings)
    roof = found["ceilings"].get("copy_bytes_per_s", 1.0)
    for name, size in sizes.items():
        part(f"train {name}", lambda n=name, s=size: train(n, s, steps))
    part("packing", lambda: packed_or_padded(least, steps))
    part("llama", lambda: beside_llama(list(sizes.values())[min(1, len(sizes) - 1)], steps))
    part("rollout", lambda: roll(list(sizes.values())[-1], roof, 8 if quick else 256))
    found["clocks_after"] = clocks() if CUDA else ""
    table = [
        [n, *(str(found[f"train {n}"].get(k)) for k in ("mfu", "mfu_wanted", "tokens_per_s"))]
        for n in sizes
    ]
    print_table(["size", "MFU", "wanted", "tokens/s"], table)
    ratios = {}
    if CUDA and "step_vs_hf_compiled" in found["llama"]:
        ratios["gpu_step_vs_hf_compiled"] = found["llama"]["step_vs_hf_compiled"]
    write_result(arguments.json, "h200", ratios=ratios, figures=found)


if __name__ == "__main__":
    main()
