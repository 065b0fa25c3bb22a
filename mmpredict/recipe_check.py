"""Judges a merged recipe against the signatures of what it names, before anything is imported.

In: a Command. Out: problems with file, line, key and remedy. An unknown key is always an error; a
value of the wrong type is one where the annotation says plainly what is expected. What cannot be
judged from source text alone is left to the trainer's parser.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from pathlib import Path

from mmpredict import recipe_files, signatures
from mmpredict.command_line import Command
from mmpredict.recipe_files import CLASS_KEYS, Setting
from mmpredict.signatures import Found, Kind, Parameter, Signature

TRAINER = "pytorch_lightning.Trainer"
NOT_SETTINGS = {
    "self",
    "model",
    "train_dataloaders",
    "val_dataloaders",
    "dataloaders",
    "datamodule",
}
# `weights_only=False` would run code from a checkpoint, so it is not offered.
NOT_SETTINGS |= {"weights_only"}
OUR_PACKAGES = ("mmpredict", "datamodules")
# Where trusted packages define what they offer under their own name.
HOMES = ("lightning_fabric", "torch", "torchvision", "torchmetrics")
SHORT_NAMES = ("pytorch_lightning.callbacks", "pytorch_lightning.loggers", "pytorch_lightning")
OPTIONAL_TEXT = Kind(scalars=frozenset({"str", "null"}))
OPTIONAL_NUMBER = Kind(scalars=frozenset({"int", "float", "null"}))
MAX_NAME = 80  # letters of a class's name in a message
MAX_LISTED = 12  # names that fit a line; longer lists are a job for --help


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and what to do about it."""

    origin: str
    text: str
    remedies: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n  ".join([f"{self.origin}: {self.text}", *self.remedies])


@dataclass
class Check:
    """Collects the problems of one command, and notices of arguments that a class change drops."""

    command: Command
    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def run(self) -> list[Problem]:
        """Judge the whole tree."""
        top = top_level(self.command.verb)
        tree = self.command.tree
        plain = {k: v for k, v in tree.value.items() if k not in ("model", "data", "trainer")}
        self._keys(replace(tree, value=plain), Signature(_trainer(), top), "")
        for key in ("model", "data"):
            section = tree.value.get(key)
            if section is None:
                self._add(tree, f"no `{key}` section", _missing_remedy(self.command, key))
            elif not section.is_map:
                self._add(section, f"`{key}` needs class_path and init_args, not {section.text}")
            elif "class_path" not in section.value:
                self._add(section, f"`{key}` has no class_path", "class_path: datamodules.World")
            else:
                self._class(section, key)
        if "trainer" in tree.value:
            self._trainer_section(tree.value["trainer"])
        if "ckpt_path" in tree.value:
            self._checkpoint(tree.value["ckpt_path"])
        if "init_from" in tree.value:
            self._init_from(tree.value["init_from"])
        self.problems.sort(key=_reading_order)
        return self.problems

    def _add(self, setting: Setting, text: str, *remedies: str) -> None:
        self.problems.append(Problem(setting.origin, text, tuple(r for r in remedies if r)))

    def _trainer_section(self, section: Setting) -> None:
        if section.is_map:
            self._keys(section, signatures.signature(_trainer()), "trainer")
            for key in ("callbacks", "logger"):
                value = section.value.get(key)
                items = value.value if value is not None and value.is_list else [value]
                for item in items:  # a bare word is short for its class_path
                    if item is not None and item.kind == "str":
                        self._class(replace(item, value={"class_path": item}), f"trainer.{key}")
        elif section.kind != "null":
            self._add(section, f"`trainer` expects a mapping, got {section.text}")

    def _checkpoint(self, setting: Setting) -> None:
        if setting.kind == "null":
            return
        path = str(setting.value)
        if "://" in path:
            remedy = "download it first, then give the file: --ckpt_path FILE"
            self._add(setting, f"checkpoint {path!r} is a URL; loading those can run code", remedy)
        elif path not in ("last", "best", "hpc") and not _has_checkpoint(Path(path)):
            folder = Path(path).is_dir()
            state = "is a folder without checkpoints" if folder else "does not exist"
            remedy = "checkpoints of a run lie in runs/<recipe>/<time>-<hash>/ckpt/"
            self._add(setting, f"checkpoint {path!r} {state}", remedy)

    def _init_from(self, setting: Setting) -> None:
        """A file, a run folder or the folder of an export; which, is seen when it is opened."""
        path = str(setting.value)
        if setting.kind != "null" and ("://" in path or not Path(path).exists()):
            what = "is a URL" if "://" in path else "does not exist"
            remedy = "give a local checkpoint, a run folder, or the folder of an export"
            self._add(setting, f"init_from {path!r} {what}", remedy)

    def _keys(self, setting: Setting, signature: Signature, path: str) -> None:
        """Every key of a mapping is a parameter, and every value fits it."""
        for key, child in list(setting.value.items()):
            where = f"{path}.{key}" if path else key
            parameter = signature.parameters.get(key)
            if parameter is not None:
                self._value(child, parameter.kind, where)
            elif child.is_carried and not signature.is_open:
                del setting.value[key]
                name = signature.found.node.name
                self.notices.append(
                    f"{child.key_origin}: `{key}` dropped, {name} has no such argument"
                )
            elif signature.is_open:
                self._value(child, signatures.OPEN, where)
            else:
                self._unknown(child, key, signature, path)

    def _unknown(self, child: Setting, key: str, signature: Signature, path: str) -> None:
        names = [name for name in signature.parameters if name != "self"]
        owner = signature.found.node.name
        section = f"in {path}" if path else "at the top level"
        section += f" ({owner})" if path not in ("", "trainer") else ""
        close = difflib.get_close_matches(key, names, n=1)
        hint = f"did you mean `{close[0]}`?" if close else ""
        if not close and path == "" and key in signatures.signature(_trainer()).parameters:
            hint = f"did you mean `trainer.{key}`?"
        listed = ", ".join(names) if len(names) <= MAX_LISTED else self._where_listed()
        problem = Problem(child.key_origin or child.origin, f"unknown key `{key}` {section}")
        remedies = tuple(r for r in (hint, f"valid keys: {listed or 'none'}") if r)
        self.problems.append(Problem(problem.origin, problem.text, remedies))

    def _where_listed(self) -> str:
        return f"mmpredict {self.command.verb} --help, or mmpredict show {self.command.shown}"

    def _value(self, setting: Setting, kind: Kind, path: str) -> None:
        if setting.is_map:
            self._mapping(setting, kind, path)
        elif setting.is_list:
            if kind.items is None and not kind.is_open:
                self._add(setting, f"{path} expects {kind}, got a list")
            for child in setting.value:
                self._value(child, kind.items or signatures.OPEN, path)
        elif not fits(setting, kind):
            self._wrong_scalar(setting, kind, path)

    def _mapping(self, setting: Setting, kind: Kind, path: str) -> None:
        if "class_path" in setting.value:
            self._class(setting, path)
        elif kind.dataclasses:
            self._keys(setting, _joined(kind.dataclasses), path)
        elif kind.values is not None or kind.is_open:
            for key, child in setting.value.items():
                self._value(child, kind.values or signatures.OPEN, f"{path}.{key}")
        else:
            self._add(setting, f"{path} expects {kind}, got a mapping")

    def _wrong_scalar(self, setting: Setting, kind: Kind, path: str) -> None:
        got = setting.text if setting.kind != "str" else repr(setting.value)
        choices = [str(choice) for choice in kind.choices]
        close = difflib.get_close_matches(str(setting.value), choices, n=1)
        hint = f"did you mean `{close[0]}`?" if close else ""
        self._add(setting, f"{path} expects {kind}, got {got}", hint)

    def _class(self, setting: Setting, path: str) -> None:
        """A `class_path` with its `init_args`; refused unless its package is trusted."""
        name = setting.value["class_path"]
        if name.kind != "str":
            self._add(
                name, f"{path}.class_path expects the dotted name of a class, got {name.text}"
            )
            return
        for key, child in setting.value.items():
            if key not in CLASS_KEYS:
                hint = f"arguments of the class go below init_args: {path}.init_args.{key}"
                where = child.key_origin or child.origin
                self.problems.append(Problem(where, f"unknown key `{key}` in {path}", (hint,)))
        found = self._find(name, path)
        arguments = setting.value.get("init_args")
        if found is None or arguments is None or arguments.kind == "null":
            return
        if not arguments.is_map:
            self._add(arguments, f"{path}.init_args expects a mapping, got {arguments.text}")
            return
        signature = signatures.signature(found)
        if path == "model":  # the streams come from the data, never from the recipe
            taken = {k: p for k, p in signature.parameters.items() if k != "layout"}
            signature = replace(signature, parameters=taken)
        self._keys(arguments, signature, path)

    def _find(self, name: Setting, path: str) -> Found | None:
        dotted = str(name.value)
        if not all(part.isidentifier() for part in dotted.split(".")):
            shown = dotted if len(dotted) <= MAX_NAME else f"{dotted[:MAX_NAME]}..."
            self._add(name, f"{path}.class_path {shown!r} is not the dotted name of a class")
            return None
        if "." not in dotted:
            places = [f"{home}.{dotted}" for home in SHORT_NAMES]
            return next(filter(None, map(signatures.find, places)), None) or self._no_class(
                name, path, [*SHORT_NAMES, "mmpredict.training", "datamodules"]
            )
        if not is_trusted(dotted, self.command.trusted):
            top = dotted.split(".")[0]
            allowed = "allowed: " + ", ".join(self.command.trusted)
            remedy = f"if you trust it: --allow-import {top}"
            self._add(
                name, f"class_path {dotted!r} refused, its package is not allowed", allowed, remedy
            )
            return None
        found = signatures.find(dotted)
        if found is None:
            return self._no_class(name, path, [])
        if not is_trusted(found.path, (*self.command.trusted, *HOMES)):
            self._add(name, f"class_path {dotted!r} refused, it leads to {found.path}")
            return None
        return found

    def _no_class(self, name: Setting, path: str, homes: list[str]) -> None:
        """Say at which word of the dotted name the trail ends."""
        dotted = str(name.value)
        parts = dotted.split(".")
        known = 1
        while known < len(parts) and signatures.load(".".join(parts[:known])):
            known += 1
        prefix, wrong = ".".join(parts[: known - 1]), parts[known - 1]
        if not homes:
            module = signatures.load(prefix) if prefix else None
            if signatures.module_file(parts[0]) is None and not signatures.load(parts[0]):
                self._add(
                    name, f"{path}.class_path {dotted!r}: package {parts[0]!r} is not installed"
                )
                return
            if module is None or "__getattr__" in module.definitions:
                return  # no readable source, or names made at run time: the real parser decides
            if parts[0] not in OUR_PACKAGES and not signatures.names_in(prefix):
                return
            homes = [prefix]
        options = {name: f"{home}.{name}" for home in homes for name in signatures.names_in(home)}
        close = [options[n] for n in difflib.get_close_matches(wrong, options, n=1, cutoff=0.5)]
        tail = ".".join(parts[known:])
        better = f"{close[0]}.{tail}" if close and tail else (close[0] if close else "")
        hint = f"did you mean `{better}`?" if better else ""
        place = f" in {homes[-1]}" if prefix else ""
        self._add(name, f"{path}.class_path {dotted!r}: there is no `{wrong}`{place}", hint)


def _reading_order(problem: Problem) -> tuple[str, int]:
    file, _, line = problem.origin.rpartition(":")
    return (file, int(line)) if line.isdigit() else (problem.origin, 0)


def _joined(dataclasses: tuple[Found, ...]) -> Signature:
    """Fields of a dataclass, or of several that may stand in the same place."""
    first, *others = (signatures.signature(found) for found in dataclasses)
    parameters = dict(first.parameters)
    for other in others:
        parameters |= other.parameters
    return Signature(first.found, parameters)


def _trainer() -> Found:
    found = signatures.find(TRAINER)
    if found is None:
        raise recipe_files.RecipeError(
            "pytorch-lightning is not installed\n  pip install -e .  (in a checkout)"
        )
    return found


def top_level(verb: str) -> dict[str, Parameter]:
    """The keys that may stand at the left margin of a recipe."""
    open_kind = signatures.OPEN
    parameters = {
        "seed_everything": Parameter("seed_everything", Kind(frozenset({"bool", "int"})), "0", ""),
        "run_dir": Parameter("run_dir", OPTIONAL_TEXT, "None", "str | None"),
        "init_from": Parameter("init_from", OPTIONAL_TEXT, "None", "str | None"),
        "init_least": Parameter("init_least", OPTIONAL_NUMBER, "None", "float | None"),
        "trainer": Parameter("trainer", open_kind, "", ""),
        "model": Parameter("model", open_kind, "", ""),
        "data": Parameter("data", open_kind, "", ""),
    }
    method = signatures.signature(_trainer(), verb).parameters
    more = {name: p for name, p in method.items() if name not in NOT_SETTINGS}
    if "ckpt_path" in more:
        more["ckpt_path"] = Parameter("ckpt_path", OPTIONAL_TEXT, "None", "str | None")
    return parameters | more


def is_trusted(dotted: str, trusted: tuple[str, ...]) -> bool:
    """Whether a dotted name lies in one of the packages."""
    return any(dotted == package or dotted.startswith(f"{package}.") for package in trusted)


def fits(setting: Setting, kind: Kind) -> bool:
    """Whether a scalar may stand for a parameter of that kind."""
    if kind.is_open or kind == Kind():
        return True
    if any(str(choice) == str(setting.value) for choice in kind.choices):
        return True
    word = setting.kind
    if word == "str" and recipe_files.NUMBER.match(str(setting.value)):
        word = "float" if "float" in kind.scalars else "int"  # quoted numbers are read as numbers
    if word == "str":
        # A bare word may also be the path of a file with the settings of a dataclass.
        return "str" in kind.scalars or bool(kind.dataclasses)
    if word in ("int", "float") and "str" in kind.scalars:
        return True
    if word == "int":
        return bool({"int", "float"} & kind.scalars)
    return word in kind.scalars


def _missing_remedy(command: Command, key: str) -> str:
    if not command.configs:
        return f"name a recipe: mmpredict {command.verb} --config quickstart"
    return f"add to {command.shown}:  {key}: {{class_path: datamodules.World}}"


def _has_checkpoint(path: Path) -> bool:
    """A file, a sharded checkpoint, a run folder or its ckpt/."""
    inside = ("meta.pt", "*.ckpt", "ckpt/*.ckpt")
    return path.is_file() or any(any(path.glob(pattern)) for pattern in inside)
