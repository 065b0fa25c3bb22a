"""A language model's folder becomes a predictor that says the same of text. transformers is the
reference, and writes the folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmpredict.model import Predictor, PredictorConfig
from mmpredict.model.fast_weights import FastWeightsConfig
from mmpredict.model.pretrained import from_language_model
from mmpredict.model.pretrained_config import read_config
from mmpredict.model.rotary import Llama3Scaling, RotaryConfig, frequencies
from mmpredict.schema import Batch, Layout, Modality, StreamSpec, Tokens, UserError
from mmpredict.sequence import interleave, pack
from tests.builders import LAYOUT, audio_tokens, video_tokens

TEXT = int(Modality.TEXT)
VOCAB = 97
WORDS = Layout((StreamSpec(modality=TEXT, name="text", vocab_size=VOCAB),))
ALL = Layout((*LAYOUT.streams[:2], *WORDS.streams))
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.3,  # sharp attention: an error anywhere shows in the logits
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
WINDOW = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama tied": ("Llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "llama wide heads": ("Llama", {"head_dim": 16, "num_key_value_heads": 6}),
    "llama 3 scaling": ("Llama", {"rope_parameters": LLAMA3}),
    "qwen2": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2 window": ("Qwen2", WINDOW),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3 tied": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    "qwen3 window": ("Qwen3", {"head_dim": 8} | WINDOW),
}
each_model = pytest.mark.parametrize("name", MODELS)


def reference(kind: str, **settings: Any) -> Any:
    """transformers' model with random weights, also where it would begin with 0 or 1."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(**(SIZES | settings))
    config._attn_implementation = "eager"
    generator = torch.Generator().manual_seed(3)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "bias")):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def saved(kind: str, folder: Path, **settings: Any) -> Any:
    model = reference(kind, **settings)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("llama")
    return saved("Llama", folder), folder


def some_ids(length: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


def row_of(ids: Tensor, layout: Layout = WORDS) -> Batch:
    untimed = torch.full((len(ids),), float("nan"), dtype=torch.float64)
    return interleave([Tokens(TEXT, ids, untimed)], layout)


@torch.no_grad()
def said(predictor: Predictor, batch: Batch) -> Tensor:
    """(N, V) logits of every token of text, row by row."""
    z_N1Z = predictor.condition(batch, predictor.hidden(batch), TEXT)
    return predictor.heads["text"].logits(z_N1Z[:, 0])


@torch.no_grad()
def expected(model: Any, ids: Tensor) -> Tensor:
    """Logits of all tokens but the first: what the model says at the token before."""
    return model(ids[None]).logits[0, :-1]


def assert_equal_to(model: Any, predictor: Predictor, ids: Tensor, layout: Layout = WORDS) -> None:
    want = expected(model, ids)
    assert want.std() > 0.5  # not a model that says nothing
    torch.testing.assert_close(said(predictor, row_of(ids, layout))[1:], want, atol=1e-4, rtol=0)


@each_model
def test_logits_equal_transformers(name: str, tmp_path: Path):
    kind, settings = MODELS[name]
    model = saved(kind, tmp_path, **settings)
    predictor = from_language_model(WORDS, PredictorConfig(), tmp_path).eval()
    for length in (2, 9, 130, 300):
        assert_equal_to(model, predictor, some_ids(length, seed=length))


@each_model
def test_packed_documents_equal_each_alone(name: str, tmp_path: Path):
    kind, settings = MODELS[name]
    model = saved(kind, tmp_path, **settings)
    predictor = from_language_model(WORDS, PredictorConfig(), tmp_path).eval()
    parts = [[some_ids(40, 1), some_ids(21, 2)], [some_ids(33, 3), some_ids(5, 4)]]
    batch = pack([[row_of(ids) for ids in row] for row in parts], context_length=70)
    logits, start = said(predictor, batch), 0
    for ids in (ids for row in parts for ids in row):
        mine = logits[start + 1 : start + len(ids)]
        torch.testing.assert_close(mine, expected(model, ids), atol=1e-4, rtol=0)
        start += len(ids)


@pytest.mark.parametrize("name", ["llama", "llama 3 scaling", "qwen3 window"])
def test_a_document_of_some_thousand_tokens(name: str, tmp_path: Path):
    kind, settings = MODELS[name]
    model = saved(kind, tmp_path, **settings | {"num_hidden_layers": 1})
    model.set_attn_implementation("sdpa")
    predictor = from_language_model(WORDS, PredictorConfig(), tmp_path).eval()
    assert_equal_to(model, predictor, some_ids(3500))


def test_sizes_and_switches_come_from_the_folder(llama: tuple[Any, Path]):
    config = read_config(llama[1]).config
    want = PredictorConfig(
        dim=48,
        depth=3,
        num_heads=6,
        num_kv_heads=2,
        head_dim=8,
        hidden=80,
        qk_norm=False,
        rotary=RotaryConfig(axes="diagonal", max_ticks=4096),
        norm_text=False,
        tie_text=False,
    )
    assert config == want


def test_what_a_recipe_may_say_beside_the_folder(llama: tuple[Any, Path]):
    own = PredictorConfig(
        dim=48, num_heads=6, window=20, rotary=RotaryConfig(max_ticks=50), horizons=(1, 2)
    )
    config = from_language_model(WORDS, own, llama[1]).config
    assert (config.window, config.rotary.max_ticks, config.horizons) == (20, 50, (1, 2))
    assert (config.rotary.axes, config.depth) == ("diagonal", 3)


def test_a_contradicting_recipe_is_refused_with_both_numbers(llama: tuple[Any, Path]):
    own = PredictorConfig(dim=64, depth=2, norm_eps=1e-4, rotary=RotaryConfig(base=5e5))
    with pytest.raises(UserError) as caught:
        from_language_model(WORDS, own, llama[1])
    for part in ("dim=64, the folder has 48", "depth=2, the folder has 3", "norm_eps=0.0001"):
        assert part in str(caught.value)
    assert "rotary.base=500000.0, the folder has 10000.0" in str(caught.value)


@pytest.mark.parametrize("experts", ["none", "ffn"])
def test_text_among_other_streams_and_memories_is_as_alone(experts: str, llama: tuple[Any, Path]):
    """Feed-forwards per stream begin as copies, fast weights begin silent."""
    model, folder = llama
    own = PredictorConfig(experts=experts, fast_weights=FastWeightsConfig(key_dim=8, value_dim=8))
    predictor = from_language_model(ALL, own, folder).eval()
    assert_equal_to(model, predictor, some_ids(50), ALL)
    streams = [audio_tokens(5), video_tokens(3), *_timed(some_ids(6))]
    prediction = predictor(interleave(streams, ALL))
    assert set(prediction.streams) == {0, 1, 2}


def _timed(ids: Tensor) -> list[Tokens]:
    return [Tokens(TEXT, ids, 0.05 * torch.arange(1, len(ids) + 1).double())]


def test_new_streams_enter_at_the_size_of_the_words(llama: tuple[Any, Path]):
    predictor = from_language_model(ALL, PredictorConfig(), llama[1])
    size = predictor.embed.tables["text"].weight.square().mean().sqrt()
    x_BLD = predictor.embed(interleave([audio_tokens(5), video_tokens(3)], ALL))
    assert 0.5 * size < x_BLD.square().mean().sqrt() < 2 * size


def test_a_run_without_text_takes_the_trunk_alone(llama: tuple[Any, Path]):
    model, folder = llama
    predictor = from_language_model(Layout(ALL.streams[:2]), PredictorConfig(), folder)
    mine = predictor.trunk.layers[1].attention.k_proj.weight
    assert torch.equal(mine, model.model.layers[1].self_attn.k_proj.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_folders_become_float32(dtype: torch.dtype, tmp_path: Path):
    reference("Llama").to(dtype).save_pretrained(tmp_path)
    model = pytest.importorskip("transformers").LlamaForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32
    )
    predictor = from_language_model(WORDS, PredictorConfig(), tmp_path).eval()
    assert {p.dtype for p in predictor.parameters()} == {torch.float32}
    assert_equal_to(model, predictor, some_ids(60))


def test_shards_with_an_index(tmp_path: Path):
    model = reference("Qwen3", head_dim=16)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    predictor = from_language_model(WORDS, PredictorConfig(), tmp_path).eval()
    assert_equal_to(model, predictor, some_ids(60))
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(UserError, match=rf"1 are missing: {gone.name}"):
        from_language_model(WORDS, PredictorConfig(), tmp_path)


def test_a_config_of_the_older_kind(llama: tuple[Any, Path], tmp_path: Path):
    """rope_theta and rope_scaling in place of rope_parameters, with and without `type`."""
    plain = json.loads((llama[1] / "config.json").read_text())
    del plain["rope_parameters"]
    scaling = {k: v for k, v in LLAMA3.items() if k not in ("rope_type", "rope_theta")}
    for key in ("rope_type", "type"):
        older = plain | {"rope_theta": 3e4, "rope_scaling": scaling | {key: "llama3"}}
        (tmp_path / "config.json").write_text(json.dumps(older))
        rotary = read_config(tmp_path).config.rotary
        assert rotary.base == 3e4 and rotary.scaling == Llama3Scaling(original_ticks=64)
    (tmp_path / "config.json").write_text(json.dumps(plain | {"architectures": None}))
    assert read_config(tmp_path).architecture == "LlamaForCausalLM"


def test_a_checkpoints_config_comes_back_with_its_scaling():
    rotary = RotaryConfig(axes="diagonal", scaling=Llama3Scaling(factor=32.0))
    config = PredictorConfig(rotary=rotary, norm_text=False, tie_text=False)
    assert PredictorConfig.from_plain(json.loads(json.dumps(asdict(config)))) == config


def _changed(folder: Path, to: Path, config: dict[str, Any], change: Callable | None) -> Path:
    """A copy of a folder, with other settings and tensors."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    if change is not None:
        change(tensors)
    save_file(tensors, to / "model.safetensors")
    plain = json.loads((folder / "config.json").read_text()) | config
    (to / "config.json").write_text(json.dumps(plain))
    return to


def _rename(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.mlp.gate_up_proj.weight"] = tensors.pop(
        "model.layers.0.mlp.gate_proj.weight"
    )


def _put(name: str, values: Tensor) -> Callable:
    return lambda tensors: tensors.update({name: values})


OF_K = "model.layers.1.self_attn.k_proj.weight"
NAN = torch.full((16, 48), float("nan"))
DAMAGE: dict[str, tuple[dict[str, Any], Callable | None, str]] = {
    "architecture": ({"architectures": ["GPT2LMHeadModel"]}, None, "GPT2.*LlamaForCausalLM, Qwen2"),
    "deeper": ({"num_hidden_layers": 4}, None, r"9 are missing: model.layers.3"),
    "shallower": ({"num_hidden_layers": 2}, None, r"9 have no place in the predictor: model.lay"),
    "fused": ({}, _rename, r"1 are missing: .*gate_proj.weight; 1 have no place .*gate_up_proj"),
    "heads": ({"num_key_value_heads": 3}, None, r"6 of another shape: .*\(16, 48\), .*\(24, 48\)"),
    "odd head": ({"head_dim": 12}, None, "head_dim=12 is not a multiple of 8"),
    "odd group": ({"num_key_value_heads": 4}, None, "num_heads=6 is not a multiple"),
    "vocabulary": ({"vocab_size": 90}, None, "has 90 text ids, the run 97.*the folder itself"),
    "tied": ({"tie_word_embeddings": True}, None, "lm_head.weight differs"),
    "nan": ({}, _put(OF_K, NAN), r"768 of 768 values of model.layers.1.* not finite"),
    "quantised": ({}, _put(OF_K, torch.ones(16, 48, dtype=torch.int8)), "torch.int8; quantised"),
    "bias": ({"attention_bias": True}, None, "attention_bias=True is not supported"),
    "gelu": ({"hidden_act": "gelu"}, None, "hidden_act=gelu is not supported, only silu"),
    "yarn": ({"rope_parameters": {"rope_type": "yarn"}}, None, "rotary scaling of type yarn"),
    "by type": ({"rope_parameters": {"full_attention": {}}}, None, "differ by layer type"),
    "no size": ({"hidden_size": None}, None, "hidden_size=None is not a whole number"),
    "layers differ": (
        {"architectures": ["Qwen2ForCausalLM"]} | WINDOW | {"max_window_layers": 1},
        None,
        "2 of 3 layers have a sliding window",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_does_not_fit_is_refused_by_name(damage: str, llama: tuple[Any, Path], tmp_path: Path):
    config, change, message = DAMAGE[damage]
    folder = _changed(llama[1], tmp_path, config, change)
    with pytest.raises(UserError, match=message) as caught:
        from_language_model(WORDS, PredictorConfig(), folder)
    assert len(str(caught.value)) < 700


def test_known_extras_of_older_folders_are_no_mistake(llama: tuple[Any, Path], tmp_path: Path):
    buffer = _put("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4))
    folder = _changed(llama[1], tmp_path, {}, buffer)
    assert_equal_to(llama[0], from_language_model(WORDS, PredictorConfig(), folder), some_ids(9))

    def twice(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    folder = _changed(llama[1], tmp_path, {"tie_word_embeddings": True}, twice)
    predictor = from_language_model(WORDS, PredictorConfig(), folder)
    assert predictor.heads["text"].weight is predictor.embed.tables["text"].weight


def test_folders_without_what_is_needed(llama: tuple[Any, Path], tmp_path: Path):
    def refused(match: str, folder: Path = tmp_path) -> None:
        with pytest.raises(UserError, match=match):
            from_language_model(WORDS, PredictorConfig(), folder)

    refused("org/model is not a folder; download", Path("org/model"))
    (tmp_path / "notes.txt").touch()
    refused("has no config.json; it holds notes.txt")
    (tmp_path / "config.json").write_text("{")
    refused("is not JSON")
    (tmp_path / "config.json").write_bytes((llama[1] / "config.json").read_bytes())
    refused("it holds no weights")
    (tmp_path / "pytorch_model.bin").touch()
    refused("holds pytorch_model.bin.*save the model again as safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"not that")
    refused("cannot be read as safetensors")
    (tmp_path / "model.safetensors").unlink()
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../secret"}}))
    refused("names files outside the folder")
    index.write_text("[]")
    refused("is damaged")


@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_frequencies_are_the_references_to_the_last_bit(head_dim: int):
    """At position 100 000 one bit is 0.01 of an angle."""
    model = reference("Llama", head_dim=head_dim, num_hidden_layers=1)
    mine = frequencies(head_dim, RotaryConfig())
    assert torch.equal(mine, model.model.rotary_emb.inv_freq)
