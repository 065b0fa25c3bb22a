"""Which precision is chosen, what stays float32 under bfloat16, and how often layers compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmpredict.model import Predictor, PredictorConfig
from mmpredict.objectives import LossWeights, next_loss
from mmpredict.schema import Batch
from mmpredict.sequence import pack
from mmpredict.training import precision
from tests import builders


def test_bfloat16_is_taken_where_the_processor_multiplies_it(monkeypatch: pytest.MonkeyPatch):
    for flags, expected in (
        ({"avx512f", "avx512_bf16"}, "bf16-mixed"),
        ({"amx_bf16"}, "bf16-mixed"),
        ({"avx2", "avx512f", "f16c"}, "32-true"),
        (set(), "32-true"),
    ):
        monkeypatch.setattr(precision, "cpu_flags", lambda flags=flags: flags)
        assert precision.choose({"accelerator": "cpu"}) == expected
    assert precision.best_precision("mps") == "32-true"


def test_what_the_recipe_says_wins():
    assert precision.choose({"accelerator": "cpu", "precision": "32-true"}) == "32-true"
    assert precision.choose({"accelerator": "cpu", "precision": "64-true"}) == "64-true"
    assert precision.choose({"accelerator": "cpu", "plugins": ["theirs"]}) is None


@pytest.mark.parametrize("asked", ["16-mixed", "16-true", 16])
def test_float16_on_a_cpu_is_refused(asked: Any):
    with pytest.raises(ValueError, match="float16 is slower"):
        precision.choose({"accelerator": "cpu", "precision": asked})


def scene(seed: int, rows: int = 2) -> Batch:
    documents = [builders.document(seed=seed + 10 * r, blocks=(20, 8, 20)) for r in range(rows)]
    return pack([[document] for document in documents], context_length=96)


def model(**config: Any) -> Predictor:
    torch.manual_seed(0)
    sizes = {"dim": 64, "depth": 2, "num_heads": 2} | config
    return Predictor(builders.LAYOUT, PredictorConfig(**sizes))


def half(enabled: bool) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled, cache_enabled=False)


def test_what_is_scored_stays_float32_under_bfloat16():
    predictor, batch = model(), scene(0)
    with half(True):
        hidden = predictor.hidden(batch)
        prediction = predictor(batch)
        losses = next_loss(prediction, predictor.layout, LossWeights())
        table = predictor.trunk.rows(batch).table
        product = predictor.from_any(hidden)
    assert product.dtype == torch.bfloat16  # the switch was on
    kept = {f"loss {name}": part for name, part in losses.parts.items()} | {
        "hidden": hidden,
        "total": losses.total,
        "cosines": table[0],
        "sines": table[1],
        "standardised": predictor.embed.values(batch, builders.VIDEO),
        "next stream": prediction.next_stream.logits_MV,
        "text": prediction.streams[builders.TEXT].logits_MV,
    }
    for name in ("mean_MPD", "targets_MPD", "denoised_RMPD", "level_RM"):
        kept[f"video {name}"] = getattr(prediction.streams[builders.VIDEO], name)
    assert {name: t.dtype for name, t in kept.items() if t.dtype != torch.float32} == {}
    losses.total.backward()
    assert {p.grad.dtype for p in predictor.parameters() if p.grad is not None} == {torch.float32}


def losses_of(steps: int, *, in_half: bool) -> list[float]:
    predictor = model()
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=3e-3, fused=True)
    said, batches = [], [scene(seed) for seed in range(4)]
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        with half(in_half):
            prediction = predictor(batches[step % 4], generator)
            loss = next_loss(prediction, predictor.layout, LossWeights()).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        said.append(float(loss.detach()))
    return said


def test_bfloat16_learns_as_float32_does():
    full, mixed = losses_of(30, in_half=False), losses_of(30, in_half=True)
    assert full != mixed
    assert mixed[0] == pytest.approx(full[0], rel=0.01)
    assert sum(full[-8:]) < 0.9 * sum(full[:8])
    assert sum(mixed[-8:]) == pytest.approx(sum(full[-8:]), rel=0.05)


def step(predictor: Predictor, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    predictor.zero_grad()
    generator = torch.Generator().manual_seed(0)
    loss = next_loss(predictor(batch, generator), predictor.layout, LossWeights()).total
    loss.backward()
    return loss.detach(), [p.grad for p in predictor.parameters() if p.grad is not None]


@pytest.mark.slow
def test_layers_compile_once_for_all_batches_of_a_run():
    """Unlike documents, packings and shares of streams; equal results; one compilation."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    plain, compiled = model(), model()
    compiled.trunk.compile_layers()
    seen = []
    for seed in range(4):
        batch = scene(seed) if seed % 2 else mixed_rows(seed)
        (a, a_grads), (b, b_grads) = step(plain, batch), step(compiled, batch)
        assert torch.allclose(a, b, rtol=1e-4)
        for x, y in zip(a_grads, b_grads, strict=True):
            assert torch.allclose(x, y, rtol=1e-3, atol=1e-5)
        seen.append(counters["stats"]["unique_graphs"])
    assert seen[0] >= 1 and set(seen) == {seen[0]}


def mixed_rows(seed: int) -> Batch:
    rows = [
        [
            builders.document(seed=seed, blocks=(6, 3, 9)),
            builders.document({builders.TEXT}, seed=seed + 1),
        ],
        [builders.document({builders.VIDEO}, seed=seed + 2, blocks=(0, 9, 0))],
    ]
    return pack(rows, context_length=96)
