"""Who may import whom. Reads the imports from the source text, so nothing has to be importable."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE, MAX_FUNCTION, HARD_FUNCTION = 400, 50, 80
DRAWERS = {"utils", "util", "common", "helpers", "misc"}

LEAF = {"schema"}
FRONT = {"cli", "command_line", "signatures", "recipe_files", "recipe_check", "recipe_show"}
HEAVY_FRONT = {
    "lightning_cli",
    "run_folder",
    "rollout_verb",
    "prepare_verb",
    "inspect_verb",
    "probe_verb",
    "probe_subjects",
    "probe_bench",
    "export_verb",
    "export_card",
    "doctor_verb",
    "doctor_facts",
    "doctor_trial",
}  # imported once something is going to run
# room -> rooms of the house that it may import (itself always)
HOUSE = {
    "schema": set(),
    "media": LEAF,
    "tokens": LEAF,
    "sequence": LEAF,
    "model": LEAF,
    "objectives": LEAF,
    "world": LEAF,
    "shards": LEAF | {"media", "tokens"},
    "survey": LEAF | {"media", "tokens", "shards"},
    "generate": LEAF | {"media", "tokens", "sequence", "model"},
    # media: published benchmarks are folders of somebody's files
    "probes": LEAF | {"media", "world", "sequence", "tokens", "model", "objectives", "generate"},
    # tokens: a checkpoint carries its codecs
    "exported": LEAF | {"tokens", "model", "generate"},
    "training": LEAF
    | {"tokens", "sequence", "model", "objectives", "generate", "probes", "exported"},
    "datamodules": LEAF | {"media", "tokens", "sequence", "world", "shards"},
    # asked by other people's frameworks, never by the rest of the house
    "integrations": LEAF
    | {"media", "tokens", "sequence", "model", "generate", "probes", "training"},
    "cli": LEAF
    | {"media", "tokens", "shards", "survey", "generate", "probes", "training", "exported"},
    "mmpredict": {"exported", "training"},  # when `mmpredict.load` is called, and not before
}
ARRAYS = {"torch", "numpy"}
# imported only where they are used
LATE = {"torchaudio", "torchvision", "timm", "tokenizers", "safetensors", "matplotlib"}
LATE |= {"fsspec", "aiohttp"}
EXTRAS = {"pyarrow", "transformers", "ale_py", "vizdoom", "torchcodec"}  # optional, so late too
# room -> packages that it may import at the top of a file
THIRD_PARTY = {room: ARRAYS for room in HOUSE} | {
    "media": ARRAYS | {"av"},
    "world": ARRAYS | {"pymunk"},
    "training": ARRAYS | {"pytorch_lightning", "safetensors", "rich", "yaml"},
    "datamodules": ARRAYS | {"pytorch_lightning"},
    "integrations": ARRAYS | {"lm_eval", "lmms_eval"},  # guarded; neither is a dependency
    "exported": ARRAYS | {"huggingface_hub"},
    "cli": {"yaml", "packaging"},
    "mmpredict": set(),
}
HEAVY_THIRD_PARTY = {"torch", "pytorch_lightning", "jsonargparse"}
STANDARD = set(__import__("sys").stdlib_module_names)


@dataclass(frozen=True)
class Import:
    """One import: the whole dotted name, its line, and whether it stands inside a function."""

    name: str
    line: int
    late: bool


def room_of(path: Path) -> str:
    """The room of a file, by its path below the root."""
    parts = path.with_suffix("").parts
    if parts[0] == "datamodules":
        return "datamodules"
    if parts[1] in FRONT | HEAVY_FRONT | {"__main__"}:
        return "cli"
    return "mmpredict" if parts[1] == "__init__" else parts[1]


def imports_of(source: str, path: Path) -> list[Import]:
    """All imports of a source text, relative ones made absolute."""
    found: list[Import] = []
    package = path.with_suffix("").parts[:-1]

    def visit(node: ast.AST, late: bool) -> None:
        for child in ast.iter_child_nodes(node):
            inside = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            inside = inside or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
            if isinstance(child, ast.Import):
                found.extend(Import(name.name, child.lineno, inside) for name in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = ".".join(package[: len(package) - child.level + 1]) if child.level else ""
                origin = ".".join(filter(None, [base, child.module]))
                for name in child.names:
                    # `from mmpredict import media` imports a room too
                    whole = f"{origin}.{name.name}" if origin == "mmpredict" else origin
                    found.append(Import(whole, child.lineno, inside))
            visit(child, inside)

    visit(ast.parse(source), late=False)
    return found


def target_room(name: str) -> str | None:
    """The room that an imported name lies in; None for what is not ours."""
    top, _, rest = name.partition(".")
    if top == "datamodules":
        return "datamodules"
    if top != "mmpredict":
        return None
    first = rest.split(".")[0]
    if first in ("", "__version__"):
        return "mmpredict"
    return "cli" if first in FRONT | HEAVY_FRONT else first


def breaches(source: str, path: Path) -> list[str]:
    """Everything that a file imports against the table."""
    room = room_of(path)
    found = []
    for item in imports_of(source, path):
        where = f"{path}:{item.line}: {room}"
        target = target_room(item.name)
        top = item.name.split(".")[0]
        if target == "datamodules" and room != "datamodules":
            found.append(f"{where} imports datamodules; recipes name them by class_path")
        elif target is not None:
            if target not in HOUSE.get(room, set()) | {room, "mmpredict"}:
                found.append(f"{where} may not import room {target}")
            elif room == "mmpredict" and target != "mmpredict" and not item.late:
                found.append(f"{where} may not import room {target} at the top")
        elif top not in STANDARD and not third_party_ok(top, room, path, late=item.late):
            found.append(f"{where} may not import {top}{'' if item.late else ' at the top'}")
    return found


def third_party_ok(top: str, room: str, path: Path, *, late: bool) -> bool:
    allowed = THIRD_PARTY.get(room, set())
    if path.stem in HEAVY_FRONT and room == "cli":
        allowed = allowed | HEAVY_THIRD_PARTY if path.stem == "lightning_cli" else allowed
        return top in allowed or (late and top in ARRAYS)
    return top in allowed or (late and top in LATE | EXTRAS and room != "cli")


def length_breaches(source: str, path: Path) -> list[str]:
    """Files and functions that are too long for a reader; `# long: reason` excuses a function."""
    lines = source.splitlines()
    found = []
    if len(lines) > MAX_FILE:
        found.append(f"{path}: {len(lines)} lines, at most {MAX_FILE}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1 - docstring_lines(node)
            head = lines[max(node.lineno - 2, 0) : node.body[0].lineno]
            excused = any("# long:" in line for line in head)
            limit = HARD_FUNCTION if excused else MAX_FUNCTION
            if length > limit:
                found.append(f"{path}:{node.lineno}: {node.name} has {length} lines, limit {limit}")
    return found


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a docstring: they help the reader, so they do not count against the function."""
    first = node.body[0]
    return first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0


FILES = sorted(
    path.relative_to(ROOT)
    for folder in ("mmpredict", "datamodules")
    for path in (ROOT / folder).rglob("*.py")
)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_floors(path):
    source = (ROOT / path).read_text(encoding="utf-8")
    assert room_of(path) in HOUSE, f"{path}: a room that is not in the plan"
    assert breaches(source, path) == []


@pytest.mark.parametrize("path", FILES, ids=str)
def test_short_plain_and_named_for_what_it_does(path):
    source = (ROOT / path).read_text(encoding="utf-8")
    assert source.isascii(), f"{path}: not ASCII"
    assert path.stem not in DRAWERS, f"{path}: name a file after what it does"
    assert length_breaches(source, path) == []
    assert ast.get_docstring(ast.parse(source)), f"{path}: no docstring at the head"


def test_rooms_make_no_circles():
    graph: dict[str, set[str]] = {}
    for path in FILES:
        rooms = map(target_room, (i.name for i in imports_of((ROOT / path).read_text(), path)))
        graph.setdefault(room_of(path), set()).update(r for r in rooms if r)
    for room, targets in graph.items():
        targets -= {room, "mmpredict"}
    while leaves := [room for room, targets in graph.items() if not targets & graph.keys()]:
        for room in leaves:
            del graph[room]
    assert graph == {}, f"these rooms import each other: {sorted(graph)}"


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("mmpredict/model/x.py", "from mmpredict.objectives import losses"),
        ("mmpredict/model/x.py", "from ..media import read_clip"),
        ("mmpredict/model/x.py", "import pytorch_lightning"),
        ("mmpredict/training/x.py", "import datamodules"),
        ("mmpredict/training/x.py", "from mmpredict import media"),
        ("mmpredict/tokens/x.py", "import av"),
        ("mmpredict/tokens/x.py", "import torchaudio"),
        ("mmpredict/cli.py", "import torch"),
        ("mmpredict/recipe_check.py", "def f():\n    import timm"),
        ("datamodules/x.py", "from mmpredict.model import Predictor"),
        ("mmpredict/__init__.py", "from mmpredict.schema import Clip"),
        ("mmpredict/media/x.py", "def f():\n    import requests"),
    ],
)
def test_a_breach_is_noticed(path, line):
    assert len(breaches(line, Path(path))) == 1


def test_what_is_allowed_passes():
    late = "import numpy\nimport torch\ndef f():\n    import torchaudio"
    assert breaches(late, Path("mmpredict/tokens/x.py")) == []
    assert breaches("from mmpredict.world import scene", Path("datamodules/x.py")) == []
    assert breaches("from . import clock", Path("mmpredict/media/x.py")) == []


def test_length_is_noticed():
    body = "\n".join(f"    x{i} = {i}" for i in range(60))
    assert len(length_breaches(f"def f():\n{body}\n", Path("x.py"))) == 1
    assert length_breaches(f"def f():  # long: a table\n{body}\n", Path("x.py")) == []
    assert len(length_breaches("x = 1\n" * 401, Path("x.py"))) == 1
