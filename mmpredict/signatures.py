"""Reads what a class or function accepts from its source text, importing nothing.

In: a dotted name such as `datamodules.World`. Out: its parameters with what may stand for each.
So a recipe is judged in a fraction of a second, before torch is loaded and before any code of a
package that a recipe names has run. What cannot be read this way is left to the real parser.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

SCALARS = {"int": "int", "float": "float", "bool": "bool", "str": "str", "Path": "str"}
LISTS = {"list", "List", "tuple", "Tuple", "Sequence", "Iterable", "set", "frozenset"}
MAPPINGS = {"dict", "Dict", "Mapping"}
MAX_HOPS = 8  # re-exports followed on the way to a constant


@dataclass(frozen=True, eq=False)
class Module:
    """The names of one source file.

    Args:
        name: dotted name.
        is_package: whether the file is an `__init__.py`.
        definitions: classes and functions at the top level.
        imports: name -> (module, name in that module or None for the module itself).
        stars: modules of `from x import *`.
        aliases: name -> expression, for `A = B`.
    """

    name: str
    is_package: bool
    definitions: dict[str, ast.ClassDef | ast.FunctionDef] = field(default_factory=dict)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    aliases: dict[str, ast.expr] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Found:
    """A class or function and the file it stands in."""

    module: Module
    node: ast.ClassDef | ast.FunctionDef

    @property
    def path(self) -> str:
        return f"{self.module.name}.{self.node.name}"

    @property
    def is_dataclass(self) -> bool:
        names = [d.func if isinstance(d, ast.Call) else d for d in self.node.decorator_list]
        return any(ast.unparse(name).split(".")[-1] == "dataclass" for name in names)


@dataclass(frozen=True)
class Kind:
    """What may stand for a parameter.

    Args:
        scalars: among int, float, bool, str, null.
        choices: the values of a Literal.
        dataclasses: whose fields may be written as nested keys.
        items: kind of the members of a list.
        values: kind of the values of a mapping with free keys.
        is_open: something here is not judged; anything goes.
    """

    scalars: frozenset[str] = frozenset()
    choices: tuple[object, ...] = ()
    dataclasses: tuple[Found, ...] = ()
    items: Kind | None = None
    values: Kind | None = None
    is_open: bool = False

    def __or__(self, other: Kind) -> Kind:
        return Kind(
            self.scalars | other.scalars,
            self.choices + other.choices,
            self.dataclasses + other.dataclasses,
            self.items or other.items,
            self.values or other.values,
            self.is_open or other.is_open,
        )

    def __str__(self) -> str:
        names = [name for name in ("bool", "int", "float", "str") if name in self.scalars]
        names += [repr(choice) for choice in self.choices]
        names += [f"a mapping ({found.node.name})" for found in self.dataclasses]
        names += ["a list"] * (self.items is not None) + ["a mapping"] * (self.values is not None)
        return " or ".join(names + ["null"] * ("null" in self.scalars))


OPEN = Kind(is_open=True)


@dataclass(frozen=True)
class Parameter:
    """One parameter; `default` is its source text, None where a value must be given."""

    name: str
    kind: Kind
    default: str | None
    annotation: str


@dataclass(frozen=True)
class Signature:
    """What a class or function takes; `is_open` when its `**kwargs` lead elsewhere."""

    found: Found
    parameters: dict[str, Parameter]
    is_open: bool = False


@cache
def module_file(dotted: str) -> Path | None:
    """The source file of a module; only the top-level package is looked up by the import system."""
    top, *rest = dotted.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not spec.submodule_search_locations:
        return Path(spec.origin) if spec.origin and not rest else None
    for folder in spec.submodule_search_locations:
        path = Path(folder).joinpath(*rest)
        for candidate in (path / "__init__.py", path.with_name(path.name + ".py")):
            if candidate.is_file():
                return candidate
    return None


def is_plain_folder(dotted: str) -> bool:
    """Whether Python imports from this folder although it has no __init__.py."""
    top, *rest = dotted.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    places = spec.submodule_search_locations if spec else None
    return any(Path(place, *rest).is_dir() for place in places or ())


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Top-level statements, those under `if` and `try` included."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try):
            yield from _statements(statement.body)
            yield from _statements(statement.orelse)
        if isinstance(statement, ast.Try):
            for handler in statement.handlers:
                yield from _statements(handler.body)


@cache
def load(dotted: str) -> Module | None:
    """Read a module's names from its file; None when there is no readable source."""
    path = module_file(dotted)
    if path is None or path.suffix != ".py":
        return Module(dotted, is_package=True) if path is None and is_plain_folder(dotted) else None
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, OSError):
        return None
    module = Module(dotted, is_package=path.name == "__init__.py")
    for statement in _statements(tree.body):
        if isinstance(statement, ast.ClassDef | ast.FunctionDef):
            module.definitions.setdefault(statement.name, statement)
        elif isinstance(statement, ast.ImportFrom):
            _note_import(module, statement)
        elif isinstance(statement, ast.Import):
            for name in statement.names:
                bound = name.asname or name.name.split(".")[0]
                module.imports[bound] = (name.name if name.asname else bound, None)
        elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            module.aliases[statement.targets[0].id] = statement.value
    return module


def _note_import(module: Module, statement: ast.ImportFrom) -> None:
    origin = statement.module or ""
    if statement.level:
        parts = module.name.split(".")
        parts = parts[: len(parts) - statement.level + (1 if module.is_package else 0)]
        origin = ".".join(parts + ([statement.module] if statement.module else []))
    for name in statement.names:
        if name.name == "*":
            module.stars.append(origin)
        else:
            module.imports[name.asname or name.name] = (origin, name.name)


def lookup(module: Module, name: str, seen: frozenset = frozenset()) -> Found | Module | None:
    """What `name` means inside a module, imports and re-exports followed."""
    if (module.name, name) in seen:
        return None
    seen |= {(module.name, name)}
    if name in module.definitions:
        return Found(module, module.definitions[name])
    if name in module.imports:
        origin, attribute = module.imports[name]
        source = load(origin)
        if attribute is None or source is None:
            return source
        return lookup(source, attribute, seen) or load(f"{origin}.{attribute}")
    if isinstance(module.aliases.get(name), ast.Name | ast.Attribute):
        return lookup_expression(module, module.aliases[name], seen)
    for star in module.stars:
        source = load(star)
        found = lookup(source, name, seen) if source else None
        if found:
            return found
    return load(f"{module.name}.{name}") if module.is_package else None


def lookup_expression(
    module: Module, expression: ast.expr, seen: frozenset = frozenset()
) -> Found | Module | None:
    """What `a.b.C` means inside a module."""
    if isinstance(expression, ast.Name):
        return lookup(module, expression.id, seen)
    if isinstance(expression, ast.Attribute):
        owner = lookup_expression(module, expression.value, seen)
        return lookup(owner, expression.attr, seen) if isinstance(owner, Module) else None
    return None


def find(dotted: str) -> Found | None:
    """The class or function of that dotted name, or None."""
    parts = dotted.split(".")
    place: Found | Module | None = load(parts[0])
    for part in parts[1:]:
        place = lookup(place, part) if isinstance(place, Module) else None
    return place if isinstance(place, Found) else None


def names_in(dotted: str) -> list[str]:
    """Public classes and modules that can be reached through a module, for suggestions."""
    module = load(dotted)
    if module is None:
        return []
    names = [n for n, node in module.definitions.items() if isinstance(node, ast.ClassDef)]
    names += [*module.imports, *module.aliases]
    for star in module.stars:
        names += names_in(star)
    path = module_file(dotted)
    if module.is_package and path is not None:
        names += [p.stem for p in path.parent.glob("*.py")]
        names += [p.parent.name for p in path.parent.glob("*/__init__.py")]
    return sorted({name for name in names if not name.startswith("_")})


def kind_of(annotation: ast.expr | None, module: Module) -> Kind:
    """What an annotation admits, as far as it can be told without importing."""
    if annotation is None:
        return OPEN
    if isinstance(annotation, ast.Constant):
        if annotation.value is None:
            return Kind(scalars=frozenset({"null"}))
        if isinstance(annotation.value, str):
            try:
                return kind_of(ast.parse(annotation.value, mode="eval").body, module)
            except SyntaxError:
                return OPEN
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return kind_of(annotation.left, module) | kind_of(annotation.right, module)
    if isinstance(annotation, ast.Subscript):
        return _kind_of_subscript(annotation, module)
    if isinstance(annotation, ast.Name | ast.Attribute):
        return _kind_of_name(annotation, module)
    return OPEN


def _kind_of_name(annotation: ast.Name | ast.Attribute, module: Module) -> Kind:
    last = ast.unparse(annotation).split(".")[-1]
    if last in SCALARS:
        return Kind(scalars=frozenset({SCALARS[last]}))
    if last in LISTS:
        return Kind(items=OPEN)
    if last in MAPPINGS:
        return Kind(values=OPEN)
    found = lookup_expression(module, annotation)
    if isinstance(found, Found) and found.is_dataclass:
        return Kind(dataclasses=(found,))
    return OPEN


def _kind_of_subscript(annotation: ast.Subscript, module: Module) -> Kind:
    name = ast.unparse(annotation.value).split(".")[-1]
    inner = annotation.slice
    members = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if name == "Literal":
        choices = tuple(m.value for m in members if isinstance(m, ast.Constant))
        return Kind(choices=choices) if len(choices) == len(members) else OPEN
    if name == "Annotated":
        return kind_of(members[0], module)
    if name == "Optional":
        return kind_of(inner, module) | Kind(scalars=frozenset({"null"}))
    kinds = [kind_of(m, module) for m in members if ast.unparse(m) != "..."]
    if name == "Union" or name in LISTS:
        joined = kinds[0] if kinds else OPEN
        for kind in kinds[1:]:
            joined |= kind
        return joined if name == "Union" else Kind(items=joined)
    if name in MAPPINGS and len(kinds) == 2:
        return Kind(values=kinds[1])
    return OPEN


@cache
def signature(found: Found, method: str = "__init__") -> Signature:
    """The parameters of a class, a dataclass, or (with `method`) of one of its methods."""
    if isinstance(found.node, ast.FunctionDef):
        return _from_function(found, found.node, skip_first=False)
    for statement in found.node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == method:
            own = _from_function(found, statement, skip_first=True)
            return _with_bases(own, method, statement) if own.is_open else own
    if found.is_dataclass:
        return _from_fields(found)
    for base in _bases(found):
        return replace(signature(base, method), found=found)
    return Signature(found, {}, is_open=bool(found.node.bases))


def _bases(found: Found) -> Iterator[Found]:
    for expression in found.node.bases:
        base = lookup_expression(found.module, expression)
        if isinstance(base, Found) and isinstance(base.node, ast.ClassDef):
            yield base


def _with_bases(own: Signature, method: str, node: ast.FunctionDef) -> Signature:
    """A class that passes `**kwargs` on takes what its bases take too, and nothing else if it says
    plainly that they go there."""
    bases = [signature(base, method) for base in _bases(own.found)]
    parameters = {k: v for base in reversed(bases) for k, v in base.parameters.items()}
    given_on = rf"super\(\)\.{method}\([^()]*\*\*{node.args.kwarg.arg}\)"
    is_open = not bases or bases[0].is_open or not re.search(given_on, ast.unparse(node))
    return replace(own, parameters={**parameters, **own.parameters}, is_open=is_open)


def _from_function(found: Found, node: ast.FunctionDef, *, skip_first: bool) -> Signature:
    arguments = node.args
    positional = arguments.posonlyargs + arguments.args
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    pairs = list(zip(positional, [*defaults, *arguments.defaults], strict=True))
    pairs = pairs[1:] if skip_first else pairs
    pairs += list(zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True))
    parameters = {a.arg: _parameter(a.arg, a.annotation, d, found.module) for a, d in pairs}
    return Signature(found, parameters, is_open=arguments.kwarg is not None)


def _from_fields(found: Found) -> Signature:
    parameters: dict[str, Parameter] = {}
    for base in reversed(list(_bases(found))):
        parameters |= signature(base).parameters
    for statement in found.node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            if ast.unparse(statement.annotation).startswith("ClassVar"):
                continue
            name = statement.target.id
            parameters[name] = _parameter(name, statement.annotation, statement.value, found.module)
    return Signature(found, parameters)


def _constant(expression: ast.expr, module: Module) -> ast.expr:
    """The value behind a name in capitals, where it is written down plainly."""
    value = expression
    for _ in range(MAX_HOPS):
        if not isinstance(value, ast.Name):
            break
        origin, name = module.imports.get(value.id, (module.name, value.id))
        source = load(origin)
        if source is None or name is None:
            return expression
        module, value = source, source.aliases.get(name, ast.Name(name))
    return expression if isinstance(value, ast.Call | ast.Name) else value


def _parameter(
    name: str, annotation: ast.expr | None, default: ast.expr | None, module: Module
) -> Parameter:
    kind = kind_of(annotation, module)
    if isinstance(default, ast.Constant) and default.value is None:
        kind |= Kind(scalars=frozenset({"null"}))
    text = None if default is None else ast.unparse(_constant(default, module))
    return Parameter(name, kind, text, "" if annotation is None else ast.unparse(annotation))
