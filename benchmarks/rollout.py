"""What it costs to go on from a prompt: ours beside Hugging Face's `generate`, and beside ourselves
without a cache.

Text: a Llama of 6 layers, width 256, 4 heads, SwiGLU 704, 512 ids, float32. The same weights (read
from its folder) in both, 128 tokens of prompt, 128 new ones, always the likeliest; first both must
say the same tokens, or nothing is reported. At 16 futures the rival gets 16 equal prompts, which is
what its `num_return_sequences` does; ours reads the prompt once. `decode` leaves reading the prompt
out on both sides (the time for 1 new token is taken off).
Frames, sound and text: a model of the size of recipes/quickstart.yaml, one second of prompt, one
second more, with the cache and by the training path anew at each step.
CPU time, one thread, in turn. Run: python benchmarks/rollout.py [--smoke] [--json FILE]   (needs
transformers). Targets: rollout_vs_hf >= 1.6 and rollout_vs_hf_16 >= 1.6.
"""

from __future__ import annotations

import math
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from harness import Timing, parse_arguments, print_table, time_interleaved, write_result  # noqa: E402

from mmpredict.generate import rollouts  # noqa: E402
from mmpredict.generate.futures import Futures, Sampling  # noqa: E402
from mmpredict.model import Predictor, PredictorConfig  # noqa: E402
from mmpredict.model.pretrained import from_language_model  # noqa: E402
from mmpredict.schema import Clip, Layout, Modality, StreamSpec, TextPiece, Tokens  # noqa: E402
from mmpredict.tokens import Codecs, MelChunks, Patches, TextTokens  # noqa: E402
from tests.generate.recomputed import Recomputed  # noqa: E402

VOCABULARY, PROMPT, NEW = 512, 128, 128
QUICKSTART = {"dim": 128, "depth": 6, "num_heads": 4}


def llama_and_ours() -> tuple[torch.nn.Module, Predictor]:
    """The rival and a predictor with its weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    llama = LlamaForCausalLM(config).eval()
    layout = Layout((StreamSpec(Modality.TEXT, "text", vocab_size=VOCABULARY),))
    with tempfile.TemporaryDirectory() as folder:
        llama.save_pretrained(folder)
        return llama, from_language_model(layout, PredictorConfig(), folder).eval()


def ours(predictor: Predictor, ids_L: Tensor, futures: int, new: int) -> Tensor:
    """(futures, new) ids, by what `rollouts` does for text alone."""
    untimed = torch.full((len(ids_L),), math.nan, dtype=torch.float64)
    prompt = {int(Modality.TEXT): Tokens(Modality.TEXT, ids_L, untimed)}
    spec, rows = predictor.layout[Modality.TEXT], range(futures)
    with torch.inference_mode():
        grown = Futures(
            predictor, prompt, len(ids_L) + new, Sampling(text_temperature=0), count=futures
        )
        for _ in range(new):
            grown.ask(spec, math.nan, rows)
            grown.add_text(rows)
    return torch.stack([grown.made(row)[Modality.TEXT].contents for row in rows])


def theirs(llama: torch.nn.Module, ids_L: Tensor, futures: int, new: int) -> Tensor:
    with torch.inference_mode():
        said = llama.generate(
            ids_L.expand(futures, -1),
            attention_mask=torch.ones(futures, len(ids_L), dtype=torch.long),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
            eos_token_id=None,
        )
    return said[:, len(ids_L) :]


def text_rows(rounds: int, new: int) -> tuple[dict[str, float], dict[str, object]]:
    """Ratios and figures beside Hugging Face."""
    llama, predictor = llama_and_ours()
    ids_L = torch.randint(VOCABULARY, (PROMPT,), generator=torch.Generator().manual_seed(1))
    ratios, figures = {}, {}
    for futures in (1, 16):
        same = torch.equal(ours(predictor, ids_L, futures, new), theirs(llama, ids_L, futures, new))
        if not same:
            raise SystemExit(f"{futures} futures: the two say different tokens; nothing to compare")
        calls = {}
        for name, say, model in (("ours", ours, predictor), ("hf", theirs, llama)):
            calls[name] = lambda s=say, m=model, f=futures: s(m, ids_L, f, new)
            calls[f"{name}, 1 token"] = lambda s=say, m=model, f=futures: s(m, ids_L, f, 1)
        times = time_interleaved(calls, rounds=rounds)
        show(f"{futures} futures of {PROMPT} + {new} tokens", times, new * futures)
        name = "rollout_vs_hf" if futures == 1 else f"rollout_vs_hf_{futures}"
        median = {key: time.cpu_median_s for key, time in times.items()}
        ratios[name] = median["hf"] / median["ours"]
        alone = [median[who] - median[f"{who}, 1 token"] for who in ("hf", "ours")]
        ratios[f"{name}_decode"] = alone[0] / alone[1]
        figures[f"text, {futures} futures"] = {key: asdict(time) for key, time in times.items()}
    return ratios, figures


def quickstart() -> tuple[Predictor, Codecs, Clip]:
    """A predictor of the quickstart's size, untrained, and a second of noise to go on from."""
    codecs = Codecs(video=Patches(32, 8, 8), audio=MelChunks(16000, 2), text=TextTokens())
    torch.manual_seed(0)
    predictor = Predictor(codecs.layout, PredictorConfig(**QUICKSTART)).eval()
    frames = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    prompt = Clip(
        frames_TCHW=frames,
        times_s=torch.arange(8).double() / 8,
        waveform_CS=0.1 * torch.randn(2, 16000),
        sample_rate=16000,
        texts=(TextPiece("a ball", 0.1, 0.6),),
    )
    return predictor, codecs, prompt


def multimodal(rounds: int, seconds: float) -> tuple[dict[str, float], dict[str, object]]:
    """The cache beside the training path, frames and sound and words together."""
    arguments = quickstart()
    size = {"seconds": seconds, "max_text_run": 4, "context_length": 352}

    def cached(futures: int = 1) -> list[Tensor]:
        made = rollouts(*arguments, futures=futures, **size)
        return [tokens.contents.double() for tokens in made[0].tokens]

    def anew() -> list[Tensor]:
        with mock.patch("mmpredict.generate.futures.Past", Recomputed):
            return cached()

    pairs = list(zip(cached(), anew(), strict=True))
    # A last bit may turn a rounded pixel or half-precision mel by one step, no more.
    apart = max(float((a - b).abs().max()) if a.shape == b.shape else math.inf for a, b in pairs)
    if apart > 1:
        raise SystemExit(f"with and without the cache the rollouts are {apart} apart")
    calls = {"cached": cached, "4 futures, cached": lambda: cached(4), "anew at each step": anew}
    times = time_interleaved(calls, rounds=rounds)
    show(f"frames, sound and words, {seconds:g} s", times, 1)
    median = {name: time.cpu_median_s for name, time in times.items()}
    ratios = {
        "rollout_vs_uncached": median["anew at each step"] / median["cached"],
        "futures_4_vs_1": median["4 futures, cached"] / median["cached"],
    }
    per_second = {f"cpu_s_per_s, {name}": time / seconds for name, time in median.items()}
    return ratios, {"multimodal": {name: asdict(t) for name, t in times.items()} | per_second}


def show(title: str, times: dict[str, Timing], tokens: int) -> None:
    """A table of CPU seconds, and tokens per second where there is more than one."""
    print(title)
    rows = []
    for name, time in times.items():
        cells = [f"{s:.3f}" for s in (time.cpu_min_s, time.cpu_median_s, time.cpu_max_s)]
        many = tokens > 1 and "1 token" not in name
        rows.append([name, *cells, f"{tokens / time.cpu_median_s:.0f}" if many else ""])
    print_table(["", "min cpu-s", "median", "max", "tokens/cpu-s"], rows)


def main() -> None:
    arguments = parse_arguments(__doc__)
    torch.set_num_threads(1)
    rounds, new, seconds = (1, 8, 0.125) if arguments.smoke else (5, NEW, 1.0)
    ratios, figures = text_rows(rounds, new)
    more_ratios, more_figures = multimodal(1 if arguments.smoke else 3, seconds)
    ratios |= more_ratios
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    write_result(arguments.json, "rollout", ratios=ratios, figures=figures | more_figures)


if __name__ == "__main__":
    main()
