"""What a Hugging Face folder's config.json says of a language model, in our own words.

In: a folder. Out: a LanguageModel, whose PredictorConfig turns text alone exactly as the model
does. Whatever would change the model's output and has no counterpart here is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmpredict.model.config import PredictorConfig
from mmpredict.model.rotary import Llama3Scaling, RotaryConfig
from mmpredict.schema import UserError

CONFIG = "config.json"
SIZES = {  # ours: theirs; without them there is no model
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden": "intermediate_size",
}
# What a recipe may set beside the model: they bound what it looks at, and change no weight.
LIMITS = {"window", "rotary.max_ticks"}


@dataclass(frozen=True)
class Kind:
    """How one architecture differs from the others."""

    qk_norm: bool = False
    qkv_bias: bool = False
    head_dim: int = 0  # where config.json says none; 0: hidden_size / num_attention_heads
    can_slide: bool = True


KINDS = {
    "LlamaForCausalLM": Kind(can_slide=False),
    "Qwen2ForCausalLM": Kind(qkv_bias=True),
    "Qwen3ForCausalLM": Kind(qk_norm=True, head_dim=128),
}
# Keys with a value under which the model is another than ours, and the only one that is known.
ONLY = {
    "hidden_act": "silu",
    "mlp_bias": False,
    "attention_bias": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}


@dataclass(frozen=True)
class LanguageModel:
    """A folder's model.

    Args:
        folder: where it lies.
        architecture: as config.json has it.
        vocab_size: rows of its table of words; may be more than its tokenizer has.
        config: its sizes; all else at the defaults.
    """

    folder: Path
    architecture: str
    vocab_size: int
    config: PredictorConfig

    def __str__(self) -> str:
        return f"{self.folder} ({self.architecture})"

    def adopt(self, recipe: PredictorConfig) -> PredictorConfig:
        """The recipe's config with the folder's sizes where the recipe left the defaults.

        Raises UserError where the recipe asks for something else than the folder has.
        """
        model, plain = _flat(self.config), _flat(PredictorConfig())
        given = _flat(recipe)
        own = {name: given[name] for name in model if given[name] != plain[name]}
        wrong = [
            f"{name}={value}, the folder has {model[name]}"
            for name, value in own.items()
            if value != model[name] and name not in LIMITS
        ]
        if wrong:
            raise UserError(
                f"predictor settings contradict {self}: {'; '.join(wrong)}; leave them out (the "
                "folder's are taken over), or train without init_trunk_from"
            )
        taken = model | own
        rotary = {k.removeprefix("rotary."): v for k, v in taken.items() if "." in k}
        sizes = {k: v for k, v in taken.items() if "." not in k}
        return replace(recipe, **sizes, rotary=RotaryConfig(**rotary))


def _flat(config: PredictorConfig) -> dict[str, Any]:
    """The settings that a folder decides, by the name under which a recipe gives them."""
    names = (*SIZES, "num_kv_heads", "head_dim", "qk_norm", "qkv_bias", "norm_eps", "window")
    values = {name: getattr(config, name) for name in (*names, "norm_text", "tie_text")}
    rotary = ("base", "axes", "max_ticks", "scaling")
    return values | {f"rotary.{name}": getattr(config.rotary, name) for name in rotary}


def read_config(folder: str | Path) -> LanguageModel:
    """Read config.json; UserError says what of it is missing, unknown or not supported."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"init_trunk_from={folder} is not a folder; download the model first and give the "
            "folder with its config.json and safetensors"
        )
    if not (folder / CONFIG).is_file():
        raise UserError(f"init_trunk_from={folder} has no {CONFIG}; it holds {_listing(folder)}")
    try:
        plain = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / CONFIG} is not JSON: {error}") from error
    if not isinstance(plain, dict):
        raise UserError(f"{folder / CONFIG} is not a JSON object")
    architecture = _architecture(plain, folder)
    try:
        config = _predictor_config(plain, KINDS[architecture])
    except (KeyError, TypeError, ValueError) as error:
        what = f"lacks {error.args[0]!r}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{folder / CONFIG} ({architecture}): {what}") from error
    return LanguageModel(folder, architecture, _number(plain, "vocab_size"), config)


def _architecture(plain: Mapping[str, Any], folder: Path) -> str:
    listed = plain.get("architectures") or []
    name = listed[0] if listed else f"model_type {plain.get('model_type')}"
    if not listed:  # very old folders name only the type
        types = {kind.removesuffix("ForCausalLM").lower(): kind for kind in KINDS}
        name = types.get(str(plain.get("model_type")), name)
    if name not in KINDS:
        raise UserError(
            f"{folder / CONFIG} is of architecture {name}; the trunk can begin with "
            f"{', '.join(KINDS)}"
        )
    return name


def _predictor_config(plain: Mapping[str, Any], kind: Kind) -> PredictorConfig:
    for key, known in ONLY.items():
        if plain.get(key, known) not in (known, None):
            raise ValueError(f"{key}={plain[key]} is not supported, only {known}")
    sizes = {ours: _number(plain, theirs) for ours, theirs in SIZES.items()}
    heads = sizes["num_heads"]
    kv_heads = plain.get("num_key_value_heads") or heads
    head_dim = plain.get("head_dim") or kind.head_dim or sizes["dim"] // heads
    return PredictorConfig(
        **sizes,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        qk_norm=kind.qk_norm,
        qkv_bias=kind.qkv_bias,
        norm_eps=float(plain.get("rms_norm_eps", 1e-6)),
        window=_window(plain, sizes["depth"]) if kind.can_slide else 0,
        rotary=_rotary(plain),
        norm_text=False,
        tie_text=bool(plain.get("tie_word_embeddings", False)),
    )


def _window(plain: Mapping[str, Any], depth: int) -> int:
    """0 where all layers see all, the window where all have it; layers that differ are refused."""
    if not plain.get("use_sliding_window", False) or plain.get("sliding_window", 4096) is None:
        return 0
    first = int(plain.get("max_window_layers", 28))
    by_rule = ["sliding_attention" if i >= first else "full_attention" for i in range(depth)]
    types = plain.get("layer_types") or by_rule
    sliding = types.count("sliding_attention")
    if sliding not in (0, depth) or set(types) - {"sliding_attention", "full_attention"}:
        raise ValueError(
            f"{sliding} of {depth} layers have a sliding window (max_window_layers={first}); here "
            "all layers have the same window. Set use_sliding_window to false in config.json if "
            f"your documents stay below {plain.get('sliding_window', 4096)} tokens"
        )
    return int(plain.get("sliding_window", 4096)) if sliding else 0


def _rotary(plain: Mapping[str, Any]) -> RotaryConfig:
    """From `rope_parameters`, or from `rope_theta` and `rope_scaling` of older folders."""
    given = {**(plain.get("rope_scaling") or {}), **(plain.get("rope_parameters") or {})}
    if any(isinstance(value, Mapping) for value in given.values()):
        raise ValueError(f"rope_parameters differ by layer type ({', '.join(given)}), unsupported")
    if given.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"partial_rotary_factor={given['partial_rotary_factor']}, unsupported")
    max_ticks = _number(plain, "max_position_embeddings")
    rope_type = given.get("rope_type", given.get("type", "default"))
    if rope_type not in ("default", "llama3"):
        raise ValueError(
            f"rotary scaling of type {rope_type} is not supported, only default and llama3; "
            "remove it from config.json if your documents stay within the length before scaling"
        )
    scaling = None
    if rope_type == "llama3":
        original = given.get("original_max_position_embeddings", max_ticks)
        scaling = Llama3Scaling(
            factor=float(given["factor"]),
            low_freq_factor=float(given["low_freq_factor"]),
            high_freq_factor=float(given["high_freq_factor"]),
            original_ticks=int(original),
        )
    base = float(given.get("rope_theta", plain.get("rope_theta", 10_000.0)))
    return RotaryConfig(base=base, axes="diagonal", max_ticks=max_ticks, scaling=scaling)


def _number(plain: Mapping[str, Any], key: str) -> int:
    value = plain[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key}={value!r} is not a whole number of 1 or more")
    return value


def _listing(folder: Path) -> str:
    """What lies in a folder, for messages."""
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "") or "-"
