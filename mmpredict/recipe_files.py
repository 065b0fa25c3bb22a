"""Recipes and command-line settings as one tree that remembers where every value was written.

In: YAML files and `--key value` pairs. Out: a tree of Setting, merged as the trainer merges it.
Only plain YAML is read: tags that would build Python objects are refused.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

MAX_BYTES = 1_000_000  # a recipe is a page of text; anything larger is a mistake
MAX_VALUES = 20_000  # aliases may refer to aliases; this bounds what they unfold to
CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
PLAIN_TAGS = {
    f"tag:yaml.org,2002:{n}"
    for n in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp", "merge", "value")
}
NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?$|[-+]?\.?(inf|nan)$", re.I)


class RecipeError(ValueError):
    """A recipe or a command line that cannot be used; the text is for the user."""


@dataclass
class Setting:
    """One value. `value` is a scalar, a dict of Setting, or a list of Setting.

    Args:
        value: as above.
        origin: where the value stands, "recipes/quickstart.yaml:14" or "command line".
        key_origin: where its key stands.
        kind: null, bool, int, float, str, map or seq.
        is_carried: argument of a class that a later file replaced; kept if the new class has it.
    """

    value: object
    origin: str
    key_origin: str = ""
    kind: str = "map"
    is_carried: bool = False

    @property
    def is_map(self) -> bool:
        return self.kind == "map"

    @property
    def is_list(self) -> bool:
        return self.kind == "seq"

    @property
    def text(self) -> str:
        """The value as it would be written in YAML."""
        if self.kind == "null":
            return "null"
        if self.kind == "bool":
            return str(self.value).lower()
        if self.kind == "str":
            return yaml.safe_dump(str(self.value), width=10_000).splitlines()[0]
        return str(self.value)


def empty() -> Setting:
    return Setting({}, "defaults")


def recipes_folder() -> Path:
    """The shipped recipes: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"


def shipped_recipes() -> list[Path]:
    return sorted(recipes_folder().rglob("*.yaml"))


def recipe_name(path: Path) -> str:
    """The name by which a shipped recipe is called, for example `quickstart`."""
    return path.relative_to(recipes_folder()).with_suffix("").as_posix()


def locate(name: str) -> Path:
    """A recipe's file: a path, or the name of a shipped recipe, from any folder."""
    if Path(name).is_file():
        return Path(name)
    short = name.removeprefix("recipes/").removesuffix(".yaml")
    for path in shipped_recipes():
        if recipe_name(path) == short:
            return path
    names = [recipe_name(path) for path in shipped_recipes()]
    close = difflib.get_close_matches(short, names, n=1)
    hint = (
        f"did you mean `{close[0]}`?"
        if close
        else "`mmpredict recipes` lists those that come along"
    )
    raise RecipeError(f"recipe {name!r}: no such file and no shipped recipe of that name\n  {hint}")


def display_path(path: Path) -> str:
    """The path as a person would write it from here."""
    if not path.is_absolute():
        return str(path)
    folder = recipes_folder()
    return f"recipes/{path.relative_to(folder)}" if path.is_relative_to(folder) else str(path)


def read(path: Path) -> Setting:
    """Read one recipe."""
    shown = display_path(path)
    try:
        data = path.read_bytes()
        if len(data) > MAX_BYTES:
            raise RecipeError(f"{shown}: {len(data)} bytes, a recipe has at most {MAX_BYTES}")
        node = yaml.compose(data.decode("utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise RecipeError(f"{shown}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{shown}: not UTF-8 text (byte {error.start}); is this a recipe?"
        ) from None
    except yaml.YAMLError as error:
        raise RecipeError(_yaml_message(shown, error)) from None
    except RecursionError:
        raise RecipeError(f"{shown}: nested too deeply to be a recipe") from None
    if node is None:
        return Setting({}, f"{shown}:1")
    setting = _Builder(shown).build(node)
    if not setting.is_map:
        raise RecipeError(
            f"{setting.origin}: a recipe is `key: value` lines, this is {setting.kind}"
        )
    return setting


def _yaml_message(shown: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    where = f"{shown}:{mark.line + 1}" if mark else shown
    hint = (
        "tabs are not allowed; indent with spaces" if "\\t" in problem else "check the indentation"
    )
    remedy = f"{hint}, colons and quotes of this line and the one above"
    return f"{where}: not valid YAML: {problem}\n  {remedy}"


@dataclass
class _Builder:
    """Turns YAML nodes into settings; counts them, because aliases can multiply."""

    shown: str
    count: int = 0
    line_numbers: bool = True
    active: set[int] = field(default_factory=set)

    def where(self, node: yaml.Node) -> str:
        return f"{self.shown}:{node.start_mark.line + 1}" if self.line_numbers else self.shown

    def build(self, node: yaml.Node, key_origin: str = "") -> Setting:
        origin = self.where(node)
        self.count += 1
        if self.count > MAX_VALUES or id(node) in self.active:
            raise RecipeError(
                f"{origin}: the aliases of this file unfold to over {MAX_VALUES} values"
            )
        if node.tag not in PLAIN_TAGS:
            raise RecipeError(f"{origin}: tag {node.tag!r} refused; recipes hold plain values only")
        self.active.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return Setting(self._mapping(node), origin, key_origin or origin)
            if isinstance(node, yaml.SequenceNode):
                items = [self.build(child) for child in node.value]
                return Setting(items, origin, key_origin or origin, "seq")
        finally:
            self.active.discard(id(node))
        kind = node.tag.rsplit(":", 1)[1]
        if kind == "str" and node.style in ("'", '"', "|", ">"):
            return Setting(node.value, origin, key_origin or origin, "str")
        return _scalar(node.value, kind, origin, key_origin or origin)

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Setting]:
        settings: dict[str, Setting] = {}
        merged: dict[str, Setting] = {}
        for key_node, value_node in node.value:
            where = self.where(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise RecipeError(f"{where}: a key must be a plain word")
            value = self.build(value_node, where)
            if key_node.tag.endswith(":merge"):
                for part in value.value if value.is_list else [value]:
                    merged = {**part.value, **merged}
                continue
            if key_node.value in settings:
                first = settings[key_node.value].key_origin
                raise RecipeError(
                    f"{where}: key `{key_node.value}` is there twice, first at {first}\n"
                    "  keep one of the two; the other would be ignored silently"
                )
            settings[key_node.value] = value
        return {**merged, **settings}


def _scalar(text: str, kind: str, origin: str, key_origin: str) -> Setting:
    if kind == "str" and NUMBER.match(text):
        kind = "float"  # YAML 1.1 takes 1e-3 for a word; the trainer does not
    if kind == "bool":
        return Setting(text.lower() in ("true", "yes", "on"), origin, key_origin, "bool")
    return Setting(text, origin, key_origin, kind if kind != "timestamp" else "str")


def from_text(text: str, origin: str) -> Setting:
    """A value of the command line; what is not YAML is a plain word."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        return Setting(text, origin, origin, "str")
    if node is None:
        return Setting("", origin, origin, "str")
    return _Builder(origin, line_numbers=False).build(node)


def merge(low: Setting, high: Setting) -> Setting:
    """`high` over `low`. Where `high` names another class, arguments of the first are marked."""
    if not (low.is_map and high.is_map):
        return high
    merged = dict(low.value)
    old, new = low.value.get("class_path"), high.value.get("class_path")
    arguments = low.value.get("init_args")
    if new is not None and old is not None and new.value != old.value and arguments is not None:
        carried = {key: replace(child, is_carried=True) for key, child in arguments.value.items()}
        merged["init_args"] = replace(arguments, value=carried)
    for key, value in high.value.items():
        merged[key] = merge(merged[key], value) if key in merged else value
    return Setting(merged, high.origin, high.key_origin)


def put(tree: Setting, key: str, value: Setting) -> None:
    """Set `a.b.c` in a tree; `init_args` may be left out, as in `--model.lr`."""
    *parents, last = key.removesuffix("+").split(".")
    place = tree
    for part in parents:
        place = _inside(place, part, value)
        child = place.value.get(part)
        if child is None or not (child.is_map or child.is_list):
            child = place.value[part] = Setting({}, value.origin, value.origin)
        place = child
    place = _inside(place, last, value)
    before = place.value.get(last)
    if key.endswith("+"):
        old = before.value if before is not None and before.is_list else []
        new = value.value if value.is_list else [value]
        place.value[last] = Setting([*old, *new], value.origin, value.origin, "seq")
    elif before is not None:
        place.value[last] = merge(_as_class(before, value), _as_class(value, before))
    else:
        place.value[last] = value


def _as_class(value: Setting, other: Setting) -> Setting:
    """A bare word over a class, as in `--model mmpredict.training.Finetune`, names the class."""
    if value.kind == "str" and other.is_map and "class_path" in other.value:
        return Setting({"class_path": value}, value.origin, value.key_origin)
    return value


def _inside(place: Setting, part: str, value: Setting) -> Setting:
    """The mapping that a key belongs in: of a list the last item, of a class its arguments."""
    if place.is_list:  # --trainer.callbacks.patience is meant for the callback named last
        if not place.value:
            return empty()
        if place.value[-1].kind == "str":
            name = place.value[-1]
            place.value[-1] = Setting({"class_path": name}, name.origin, name.key_origin)
        place = place.value[-1]
    if not place.is_map:
        return empty()
    if "class_path" in place.value and part not in CLASS_KEYS:
        return place.value.setdefault("init_args", Setting({}, value.origin, value.origin))
    return place


def walk(setting: Setting, path: str = "") -> Iterator[tuple[str, Setting]]:
    """Every setting with its dotted path."""
    if path:
        yield path, setting
    if setting.is_map:
        for key, child in setting.value.items():
            yield from walk(child, f"{path}.{key}" if path else key)
    elif setting.is_list:
        for child in setting.value:
            yield from walk(child, path)


def head(path: Path) -> dict[str, str]:
    """The passport at the top of a recipe: What, Run, Cost, Expect."""
    words: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        for match in re.finditer(
            r"(What|Run|Cost|Expect):\s*(.*?)(?=\s{2,}(?:Expect|Cost):|$)", line
        ):
            words.setdefault(match[1], match[2].strip())
    return words
