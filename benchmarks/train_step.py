"""What a training step costs: ours beside Hugging Face's Llama, and frames and sound beside text.

Shape: 8 rows of 512 tokens, 6 layers, width 256, 4 heads, SwiGLU 704, 512 ids. The same weights (a
Llama folder read by `init_trunk_from`) in both, the same ids, the same fused AdamW; step for step
the same losses, or nothing is reported. Rivals: Llama compiled, bf16 autocast (with its default
attention, SDPA); Llama as it comes, eager in float32. CPU time, one thread, in turn.
The multimodal rows are packed scenes of the embedded world (frames of 16 patches and stereo sound,
no text) in a model of all three streams, beside rows of text alone in the very same model: in the
shape above, and in that of recipes/small.yaml (12 layers of 512, and its vocabulary).
Run: python benchmarks/train_step.py [--smoke] [--json FILE]   (needs transformers)
Targets: step_vs_hf_compiled >= 1.5, step_vs_hf_default >= 3, multimodal_vs_text <= 1.08.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from harness import parse_arguments, print_table, time_interleaved, write_result  # noqa: E402

from datamodules import Loading, World  # noqa: E402
from mmpredict.model import HeadConfig, Predictor, PredictorConfig  # noqa: E402
from mmpredict.model.pretrained import from_language_model  # noqa: E402
from mmpredict.objectives import LossWeights, next_loss  # noqa: E402
from mmpredict.schema import Batch, Layout, Modality, StreamSpec, Tokens  # noqa: E402
from mmpredict.sequence import first_blocks, interleave, pack  # noqa: E402
from mmpredict.tokens import MelChunks, Patches, TextTokens  # noqa: E402

ROWS, LENGTH, VOCABULARY = 8, 512, 512
SHAPE = {"dim": 256, "depth": 6, "num_heads": 4, "hidden": 704}
LR = 1e-3
LOSS_STEPS = 5
TOLERANCE = {"bf16": 1e-2, "fp32": 1e-5}


def text_layout() -> Layout:
    return Layout((StreamSpec(Modality.TEXT, "text", vocab_size=VOCABULARY),))


def text_rows(ids_BL: Tensor, layout: Layout) -> Batch:
    """Every row one document. Its first token is not counted: a language model says nothing of
    it."""
    untimed = torch.full((ids_BL.shape[1],), torch.nan, dtype=torch.float64)
    rows = [[interleave([Tokens(Modality.TEXT, ids, untimed)], layout)] for ids in ids_BL]
    batch = pack(rows, context_length=ids_BL.shape[1])
    counted = batch.loss_mask.clone()
    counted[:, 0] = False
    return replace(batch, loss_mask=counted)


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=SHAPE["dim"],
            num_hidden_layers=SHAPE["depth"],
            num_attention_heads=SHAPE["num_heads"],
            intermediate_size=SHAPE["hidden"],
            max_position_embeddings=LENGTH,
            tie_word_embeddings=False,
        )
    )


def autocast(bf16: bool) -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext()


def stepper(
    parameters: list[nn.Parameter],
    loss_of: Callable[[], Tensor],
    *,
    bf16: bool,
    fast: bool = True,
    fused: bool = True,
) -> Callable[[], float]:
    """A call that takes one optimiser step and says the loss before it.

    Args:
        fast: matrix products by the fastest library (as mmpredict sets it), or torch's default.
        fused: AdamW in one kernel.
    """
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.05, fused=fused)

    def step() -> float:
        torch.set_float32_matmul_precision("medium" if fast else "highest")
        with autocast(bf16):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def our_loss(model: Predictor, batch: Batch) -> Callable[[], Tensor]:
    weights = LossWeights(z=0.0, next_stream=0.0)
    return lambda: next_loss(model(batch), model.layout, weights).total


def text_sides(ids_BL: Tensor) -> dict[str, Callable[[], float]]:
    """Ours and the rivals, all with the same weights."""
    hf = llama()
    layout = text_layout()
    with tempfile.TemporaryDirectory() as folder:
        hf.save_pretrained(folder)
        mine = from_language_model(layout, PredictorConfig(), folder)
    batch = text_rows(ids_BL, layout)
    ours, ours_eager = mine, copy.deepcopy(mine)
    ours.compile_layers()
    rival, rival_default = hf, copy.deepcopy(hf)
    compiled = torch.compile(rival)

    def hf_loss(model: Callable[..., Any]) -> Callable[[], Tensor]:
        return lambda: model(input_ids=ids_BL, labels=ids_BL, use_cache=False).loss

    def of(model: nn.Module) -> list[nn.Parameter]:
        return list(model.parameters())

    return {
        "ours, compiled, bf16": stepper(of(ours), our_loss(ours, batch), bf16=True),
        "ours, eager, bf16": stepper(of(ours_eager), our_loss(ours_eager, batch), bf16=True),
        "Llama, compiled, bf16": stepper(of(rival), hf_loss(compiled), bf16=True),
        "Llama, eager, fp32": stepper(
            of(rival_default), hf_loss(rival_default), bf16=False, fast=False, fused=False
        ),
    }


def check_losses(sides: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Losses of the first steps, which also compile; stop where they are not the same."""
    losses = {name: [step() for _ in range(LOSS_STEPS)] for name, step in sides.items()}
    truth = losses["Llama, eager, fp32"]
    for name, found in losses.items():
        worst = max(abs(a - b) for a, b in zip(found, truth, strict=True))
        print(f"{name}: loss {found[0]:.4f} ... {found[-1]:.4f}, off by {worst:.1e}")
        if worst > TOLERANCE["bf16"]:
            raise SystemExit(f"{name} computes another loss: {found} against {truth}")
    return losses


@dataclass(frozen=True)
class Mixed:
    """A model of three streams and the rows that it is timed on.

    Args:
        shape: of the trunk.
        head: width of the heads for frames and sound.
        size, patch: of the frames, px.
        rows, length: of a batch.
    """

    shape: Mapping[str, int]
    head: int
    size: int
    patch: int
    rows: int
    length: int


MIXED = {
    "256 x 6": Mixed(SHAPE, 128, 32, 8, ROWS, LENGTH),
    "512 x 12": Mixed({"dim": 512, "depth": 12, "num_heads": 8}, 256, 128, 16, 4, 1152),
}


def world_rows(mixed: Mixed) -> tuple[Layout, Batch, Any]:
    """A batch of packed frames and sound: in every row one whole scene where it fits, and of
    another what still fits."""
    data = World(
        audio=MelChunks(sample_rate=16000, channels=2),
        video=Patches(size=mixed.size, patch=mixed.patch, fps=8),
        text=TextTokens(kind="bpe", vocab_size=VOCABULARY),
        loading=Loading(workers=0),
    )
    data.setup()
    rows = []
    for number in range(mixed.rows):
        first, second = (_without_text(data, 2 * number + which) for which in (0, 1))
        first = first_blocks(first, mixed.length)
        left = mixed.length - first.modality.shape[1]
        fits = left >= data.layout[Modality.VIDEO].positions_per_block
        rows.append([first, first_blocks(second, left)] if fits else [first])
    return data.layout, pack(rows, mixed.length), data.statistics()


def _without_text(data: World, number: int) -> Batch:
    """Frames and sound of one scene."""
    clip = data.clip(data.scene("train", 0, number))
    return interleave(data.codecs.encode(replace(clip, texts=())), data.layout)


def multimodal_sides(mixed: Mixed) -> tuple[dict[str, Callable[[], float]], dict[str, float]]:
    """Rows of frames and sound, and rows of text, in one model of all three streams."""
    layout, frames, statistics = world_rows(mixed)
    text = text_rows(torch.randint(VOCABULARY, (mixed.rows, mixed.length)), layout)
    heads = {name: HeadConfig(dim=mixed.head) for name in ("video", "audio")}
    sides, tokens = {}, {}
    for name, batch in (("frames and sound", frames), ("text", text)):
        torch.manual_seed(0)
        model = Predictor(layout, PredictorConfig(**mixed.shape, heads=heads))
        model.set_statistics(statistics)
        model.compile_layers()

        def loss_of(model: Predictor = model, batch: Batch = batch) -> Tensor:
            return next_loss(model(batch), layout, LossWeights()).total

        sides[name] = stepper(list(model.parameters()), loss_of, bf16=True)
        tokens[name] = float(batch.num_tokens)
    return sides, tokens


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    rounds = 2 if arguments.smoke else 9
    torch.manual_seed(1)
    sides = text_sides(torch.randint(VOCABULARY, (ROWS, LENGTH)))
    losses = check_losses(sides)
    timings = time_interleaved(sides, rounds=rounds)
    tokens = dict.fromkeys(sides, float(ROWS * LENGTH))
    everything = dict(timings)
    for shape, mixed in list(MIXED.items())[: 1 if arguments.smoke else None]:
        made, counts = multimodal_sides(mixed)
        found = time_interleaved(made, rounds=rounds, warm_up=2)
        everything |= {f"{name}, {shape}": timing for name, timing in found.items()}
        tokens |= {f"{name}, {shape}": count for name, count in counts.items()}
    print_table(
        ["step", "tokens", "CPU ms min", "median", "max", "tokens / CPU s"],
        [
            [
                name,
                f"{tokens[name]:.0f}",
                *(f"{1e3 * x:.1f}" for x in (t.cpu_min_s, t.cpu_median_s, t.cpu_max_s)),
                f"{tokens[name] / t.cpu_median_s:.0f}",
            ]
            for name, t in everything.items()
        ],
    )

    def per_token(name: str) -> float:
        return everything[name].cpu_median_s / tokens[name]

    ours = timings["ours, compiled, bf16"].cpu_median_s
    ratios = {
        "step_vs_hf_compiled": timings["Llama, compiled, bf16"].cpu_median_s / ours,
        "step_vs_hf_default": timings["Llama, eager, fp32"].cpu_median_s / ours,
    }
    for shape in (shape for shape in MIXED if f"text, {shape}" in everything):
        ratio = per_token(f"frames and sound, {shape}") / per_token(f"text, {shape}")
        ratios["multimodal_vs_text" if shape == "256 x 6" else "multimodal_vs_text_small"] = ratio
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.3f}")
    write_result(
        arguments.json,
        "train_step",
        ratios=ratios,
        figures={
            "seconds": {name: asdict(t) for name, t in everything.items()},
            "tokens_per_step": tokens,
            "losses": losses,
            "shape": SHAPE | {"rows": ROWS, "length": LENGTH, "vocabulary": VOCABULARY},
        },
    )


if __name__ == "__main__":
    main()
