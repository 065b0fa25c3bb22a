"""Prints a merged recipe as YAML, every value with where it came from: file and line, or default.

In: a checked Command. Out: lines of text that are themselves a recipe.
"""

from __future__ import annotations

import ast
from dataclasses import replace

import yaml

from mmpredict import signatures
from mmpredict.command_line import Command
from mmpredict.recipe_files import Setting
from mmpredict.signatures import Found, Kind, Parameter, Signature

COMMENT_COLUMN = 52
FACTORY = "field(default_factory="
EMPTY_FACTORIES = {f"{FACTORY}dict)": "{}", f"{FACTORY}list)": "[]", f"{FACTORY}tuple)": "[]"}


def show(command: Command) -> list[str]:
    """The whole recipe. Of the trainer's many settings only those that somebody set are listed."""
    tree = command.tree
    lines = [f"# {command.shown}, merged; run it: mmpredict fit --config {command.shown}"]
    lines += _entry("seed_everything", tree.value.get("seed_everything"), "0", "fit", 0)
    for key in ("run_dir", "ckpt_path"):
        if key in tree.value:
            lines += _entry(key, tree.value[key], None, "", 0)
    trainer = signatures.find("pytorch_lightning.Trainer")
    section = tree.value.get("trainer")
    lines.append("trainer:" if section is not None and section.value else "trainer: {}")
    if section is not None and section.is_map and trainer is not None:
        lines += _tree(section, 1)
        total = len(signatures.signature(trainer).parameters)
        rest = total - len(section.value)
        lines.append(f"  # {rest} more at Lightning's defaults: mmpredict fit --help")
    for key in ("model", "data"):
        lines.append(f"{key}:")
        lines += _class(tree.value[key], 1, hidden=("layout",) if key == "model" else ())
    return lines


def _line(depth: int, text: str, comment: str) -> str:
    start = "  " * depth + text
    return f"{start:<{COMMENT_COLUMN}}  # {comment}" if comment else start


def _entry(
    key: str, setting: Setting | None, default: str | None, owner: str, depth: int
) -> list[str]:
    """One scalar: the setting if there is one, else the default of its owner."""
    if setting is not None:
        return _line_of(key, setting, depth)
    if default is None:
        return [_line(depth, f"# {key}:", f"required by {owner}, not set")]
    text = as_yaml(default)
    if text is None:
        return [_line(depth, f"# {key}: {default}", f"default of {owner}, made in code")]
    return [_line(depth, f"{key}: {text}", f"default of {owner}")]


def _line_of(key: str, setting: Setting, depth: int) -> list[str]:
    return [_line(depth, f"{key}: {setting.text}", setting.origin)]


def _class(setting: Setting, depth: int, hidden: tuple[str, ...] = ()) -> list[str]:
    name = setting.value["class_path"]
    lines = _line_of("class_path", name, depth)
    found = signatures.find(str(name.value))
    arguments = setting.value.get("init_args") or Setting({}, setting.origin)
    if found is None or not arguments.is_map:
        return lines + _tree(Setting({"init_args": arguments}, setting.origin), depth)
    signature = signatures.signature(found)
    kept = {key: p for key, p in signature.parameters.items() if key not in hidden}
    body = _arguments(arguments, replace(signature, parameters=kept), depth + 1)
    return lines + (["  " * depth + "init_args:", *body] if body else [])


def _arguments(setting: Setting, signature: Signature, depth: int) -> list[str]:
    """All parameters in their order, set or not, then what was set beyond them."""
    lines: list[str] = []
    owner = signature.found.node.name
    for key, parameter in signature.parameters.items():
        child = setting.value.get(key)
        inner = _dataclass_of(parameter.kind)
        if child is not None:
            lines += _child(key, child, inner, depth)
        elif inner is not None and _is_plain_default(parameter, inner):
            body = _arguments(Setting({}, ""), signatures.signature(inner), depth + 1)
            lines += ["  " * depth + f"{key}:", *body]
        else:
            lines += _entry(key, None, parameter.default, owner, depth)
    for key, child in setting.value.items():
        if key not in signature.parameters:
            lines += _child(key, child, None, depth)
    return lines


def _child(key: str, child: Setting, inner: Found | None, depth: int) -> list[str]:
    if child.is_map and "class_path" in child.value:
        return ["  " * depth + f"{key}:", *_class(child, depth + 1)]
    if child.is_map and inner is not None:
        body = _arguments(child, signatures.signature(inner), depth + 1)
        return ["  " * depth + f"{key}:", *body]
    return _tree(Setting({key: child}, child.origin), depth)


def _tree(setting: Setting, depth: int) -> list[str]:
    """Settings as they are, without defaults."""
    lines: list[str] = []
    for key, child in setting.value.items():
        if child.is_map and "class_path" in child.value:
            lines += ["  " * depth + f"{key}:", *_class(child, depth + 1)]
        elif child.is_map and child.value:
            lines += ["  " * depth + f"{key}:", *_tree(child, depth + 1)]
        elif child.is_list and any(item.is_map or item.is_list for item in child.value):
            lines += ["  " * depth + f"{key}:", *_items(child, depth)]
        elif child.is_list:
            text = ", ".join(item.text for item in child.value)
            lines.append(_line(depth, f"{key}: [{text}]", child.origin))
        elif child.is_map:
            lines.append(_line(depth, f"{key}: {{}}", child.origin))
        else:
            lines += _line_of(key, child, depth)
    return lines


def _items(setting: Setting, depth: int) -> list[str]:
    lines: list[str] = []
    for item in setting.value:
        if not item.is_map:
            lines.append(_line(depth, f"- {item.text}", item.origin))
            continue
        is_class = "class_path" in item.value
        body = _class(item, depth + 1) if is_class else _tree(item, depth + 1)
        first = body[0].removeprefix("  " * (depth + 1))
        lines += ["  " * depth + f"- {first}", *body[1:]]
    return lines


def _dataclass_of(kind: Kind) -> Found | None:
    return kind.dataclasses[0] if len(kind.dataclasses) == 1 and kind.items is None else None


def _is_plain_default(parameter: Parameter, found: Found) -> bool:
    """Whether the default is the dataclass with its own defaults."""
    text = (parameter.default or "").removeprefix(FACTORY)
    return text in (f"{found.node.name}()", f"{found.node.name})")


def as_yaml(source: str) -> str | None:
    """A default's source text as YAML; None where only the class can make the value."""
    if source in EMPTY_FACTORIES:
        return EMPTY_FACTORIES[source]
    try:
        value = ast.literal_eval(source)
    except (ValueError, SyntaxError):
        return None
    if isinstance(value, tuple):
        value = list(value)
    shown = yaml.safe_dump(value, default_flow_style=True, width=10_000)
    return shown.removesuffix("\n").removesuffix("\n...")
