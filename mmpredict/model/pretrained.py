"""A predictor whose trunk is a language model from a Hugging Face folder (Llama, Qwen2, Qwen3).

In: a folder with config.json and safetensors, a layout, a recipe's PredictorConfig. Out: a
Predictor that says of text alone what the language model says; other streams begin afresh.

The folder's sizes fill what the recipe leaves at its defaults; what contradicts them is refused.
Every tensor of the folder must find its place and every parameter of the trunk its tensor.

Shapes: V vocabulary, D model width, S streams.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmpredict.model.config import PredictorConfig
from mmpredict.model.predictor import Predictor
from mmpredict.model.pretrained_config import LanguageModel, read_config
from mmpredict.schema import Layout, Modality, UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OLD_BUFFER = ".rotary_emb.inv_freq"  # computed from the config; older folders carry it
SHOWN = 5  # names in a message
WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack"}
# Ends of our names -> theirs, within a layer.
OF_LAYER = {
    "attention_norm.weight": "input_layernorm.weight",
    "feed_forward_norm.weight": "post_attention_layernorm.weight",
}
ROOMS_OF_LAYER = {"attention": "self_attn", "feed_forward": "mlp"}


def from_language_model(layout: Layout, config: PredictorConfig, folder: str | Path) -> Predictor:
    """A predictor for `layout` that begins with the weights of the language model in `folder`.

    Args:
        layout: the streams. Text, where there is any, must have the folder's vocabulary.
        config: switches of the recipe; sizes at their defaults are filled in from the folder.
        folder: config.json with model.safetensors, or shards of it and their index.
    """
    model = read_config(folder)
    _check_vocabulary(layout, model)
    predictor = Predictor(layout, model.adopt(config))
    with ExitStack() as files:
        load(predictor, model, _Tensors(model.folder, files))
    return predictor


@torch.no_grad()
def load(predictor: Predictor, model: LanguageModel, tensors: _Tensors) -> None:
    """Copy every tensor of the folder to its places, in the predictor's own precision."""
    places = _places(predictor, model)
    left_out = _left_out(predictor, model)
    found = {name for name in tensors if not name.endswith(OLD_BUFFER)}
    missing, extra = sorted(places.keys() - found), sorted(found - places.keys() - left_out)
    if missing or extra:
        parts = [_few(missing, "are missing"), _few(extra, "have no place in the predictor")]
        raise UserError(
            f"{model}: of {len(found)} tensors and {len(places)} that a {model.architecture} of "
            f"{model.config.depth} layers has, {'; '.join(filter(None, parts))}; is config.json "
            "that of these weights?"
        )
    wrong = [
        f"{name} is {tensors.shape(name)}, config.json says {_shape_of(targets[0], name)}"
        for name, targets in places.items()
        if tensors.shape(name) != _shape_of(targets[0], name)
    ]
    if wrong:
        raise UserError(f"{model}: {_few(wrong, 'of another shape', between='; ')}")
    for name, targets in places.items():
        values = _checked(tensors[name], name, model)
        for target in targets:
            target.copy_(values)
    _check_tied(predictor, model, tensors)
    _enter_at_the_size_of_text(predictor, model, tensors)


def _places(predictor: Predictor, model: LanguageModel) -> dict[str, list[Tensor]]:
    """Their name -> the parameters of ours that begin with it. Streams with feed-forwards of their
    own all begin with the model's one."""
    places: dict[str, list[Tensor]] = {"model.norm.weight": [predictor.trunk.norm.weight]}
    for index, layer in enumerate(predictor.trunk.layers):
        for name, parameter in layer.named_parameters():
            if not name.startswith(("memory.", "memory_norm.")):  # fast weights begin afresh
                theirs = f"model.layers.{index}.{_in_layer(name)}"
                places.setdefault(theirs, []).append(parameter)
    text = _text_name(predictor.layout)
    if text is not None:
        places["model.embed_tokens.weight"] = [predictor.embed.tables[text].weight]
        if not model.config.tie_text:
            places["lm_head.weight"] = [predictor.heads[text].weight]
    return places


def _in_layer(name: str) -> str:
    """feed_forward.streams.video.up_proj.weight -> mlp.up_proj.weight."""
    if name in OF_LAYER:
        return OF_LAYER[name]
    room, *rest = name.split(".")
    if rest[0] == "streams":
        rest = rest[2:]
    return ".".join([ROOMS_OF_LAYER[room], *rest])


def _left_out(predictor: Predictor, model: LanguageModel) -> set[str]:
    """Their tensors that have no place on purpose."""
    if _text_name(predictor.layout) is None:
        return {"model.embed_tokens.weight", "lm_head.weight"}
    return {"lm_head.weight"} if model.config.tie_text else set()


def _shape_of(target: Tensor, name: str) -> tuple[int, ...]:
    """A gain for each stream begins with the model's one gain."""
    shape = tuple(target.shape)
    return shape[-1:] if name.endswith("norm.weight") else shape


def _checked(values: Tensor, name: str, model: LanguageModel) -> Tensor:
    if not values.is_floating_point() or values.element_size() < 2:
        raise UserError(
            f"{model}: {name} is {values.dtype}; quantised weights are not read, convert them to "
            "bfloat16, float16 or float32"
        )
    values = values.float() if values.element_size() < 4 else values
    bad = int((~values.isfinite()).sum())
    if bad:
        raise UserError(f"{model}: {bad} of {values.numel()} values of {name} are not finite")
    return values


def _check_tied(predictor: Predictor, model: LanguageModel, tensors: _Tensors) -> None:
    """A tied model may be stored with its table twice, but not with two tables."""
    text = _text_name(predictor.layout)
    if text is None or not model.config.tie_text or "lm_head.weight" not in tensors:
        return
    if not torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]):
        raise UserError(
            f"{model}: tie_word_embeddings is true, and yet lm_head.weight differs from "
            "model.embed_tokens.weight; set it to false in config.json if both are to be used"
        )


def _enter_at_the_size_of_text(
    predictor: Predictor, model: LanguageModel, tensors: _Tensors
) -> None:
    """New streams enter the trunk with the root mean square of the words that it knows."""
    if "model.embed_tokens.weight" not in tensors:
        return
    size = tensors["model.embed_tokens.weight"].float().square().mean().sqrt()
    for norm in predictor.embed.norm.values():
        norm.weight.mul_(size)
    predictor.embed.stream.weight.mul_(size)


def _check_vocabulary(layout: Layout, model: LanguageModel) -> None:
    text = _text_name(layout)
    if text is None:
        return
    have = layout[int(Modality.TEXT)].vocab_size
    if have != model.vocab_size:
        raise UserError(
            f"{model} has {model.vocab_size} text ids, the run {have}; give data.text "
            f"{{kind: bpe, path: {model.folder}}}, the folder itself, so that its tokenizer, the "
            "size of its table and its end of text are used"
        )


def _text_name(layout: Layout) -> str | None:
    return layout[int(Modality.TEXT)].name if int(Modality.TEXT) in layout else None


def _few(names: list[str], what: str, between: str = ", ") -> str:
    if not names:
        return ""
    more = f"{between}..." if len(names) > SHOWN else ""
    return f"{len(names)} {what}: {between.join(names[:SHOWN])}{more}"


class _Tensors(Mapping[str, Tensor]):
    """The tensors of a folder, each read from the disk when it is asked for.

    Args:
        folder: with model.safetensors, or with its shards and their index.
        files: closes the files that are opened here.
    """

    def __init__(self, folder: Path, files: ExitStack) -> None:
        self.folder = folder
        self.opened: dict[str, Any] = {}
        self.where: dict[str, str] = {}
        for file in self._files():
            self.opened[file] = opened = files.enter_context(_open(folder / file))
            for name in opened.keys():  # noqa: SIM118 - not a dict
                if name in self.where:
                    raise UserError(f"{folder}: {name} lies in {self.where[name]} and in {file}")
                self.where[name] = file

    def _files(self) -> list[str]:
        if (self.folder / WEIGHTS).is_file():
            return [WEIGHTS]
        if not (self.folder / INDEX).is_file():
            names = sorted(p.name for p in self.folder.iterdir() if p.suffix in WEIGHT_SUFFIXES)
            raise UserError(
                f"{self.folder} has neither {WEIGHTS} nor {INDEX}; it holds "
                f"{', '.join(names[:SHOWN]) or 'no weights'}. Other forms (.bin runs code when it "
                "is read) are not read: save the model again as safetensors"
            )
        try:
            index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
            files = sorted(set(index["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.folder / INDEX} is damaged: {error!r}") from error
        outside = [file for file in files if Path(file).name != file]
        if outside:
            raise UserError(f"{self.folder / INDEX} names files outside the folder: {outside[:3]}")
        gone = [file for file in files if not (self.folder / file).is_file()]
        if gone:
            raise UserError(
                f"{self.folder}: of {len(files)} shards {_few(gone, 'are missing')}; download again"
            )
        return files

    def shape(self, name: str) -> tuple[int, ...]:
        """Read from the file's head."""
        return tuple(self.opened[self.where[name]].get_slice(name).get_shape())

    def __getitem__(self, name: str) -> Tensor:
        return self.opened[self.where[name]].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.where)

    def __len__(self) -> int:
        return len(self.where)


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}") from error
