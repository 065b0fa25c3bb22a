"""A small folder of a Llama with random weights and a tokenizer, as Hugging Face has them; written
without transformers."""

from __future__ import annotations

import json
from pathlib import Path

import torch

DIM, HIDDEN, HEADS, KV_HEADS, DEPTH = 32, 48, 4, 2, 2
CORPUS = ["the red ball rolls behind the wall and bounces", "a cup falls from the table"] * 3
SCALING = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def write_llama(folder: Path) -> Path:
    """config.json, model.safetensors and tokenizer.json of a tied model with Llama 3's scaling."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    vocab, end = write_tokenizer(folder)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": DIM,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 20_000,
        "rope_parameters": SCALING,
        "tie_word_embeddings": True,
        "eos_token_id": end,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: 0.2 * torch.randn(shape, generator=generator) + (len(shape) == 1)
        for name, shape in shapes(vocab).items()
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


def shapes(vocab: int) -> dict[str, tuple[int, ...]]:
    kv = DIM // HEADS * KV_HEADS
    of_layer = {
        "input_layernorm": (DIM,),
        "post_attention_layernorm": (DIM,),
        "self_attn.q_proj": (DIM, DIM),
        "self_attn.k_proj": (kv, DIM),
        "self_attn.v_proj": (kv, DIM),
        "self_attn.o_proj": (DIM, DIM),
        "mlp.gate_proj": (HIDDEN, DIM),
        "mlp.up_proj": (HIDDEN, DIM),
        "mlp.down_proj": (DIM, HIDDEN),
    }
    layers = {
        f"model.layers.{i}.{name}.weight": shape
        for i in range(DEPTH)
        for name, shape in of_layer.items()
    }
    return {"model.embed_tokens.weight": (vocab, DIM), "model.norm.weight": (DIM,)} | layers


def write_tokenizer(folder: Path) -> tuple[int, int]:
    """Rows of the table (some more than the tokenizer has ids), and the id that ends a text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer.get_vocab_size() + 3, tokenizer.token_to_id("<|im_end|>")
