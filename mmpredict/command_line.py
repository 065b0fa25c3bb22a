"""Reads `fit --config NAME --key value ...` into one tree of settings, without importing torch.

In: the words after the verb. Out: a Command with the merged tree (what would run, and where each
value was written) and the words for the trainer's own parser, recipes first, so that the command
line wins.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field
from pathlib import Path

from mmpredict import recipe_files
from mmpredict.recipe_files import RecipeError, Setting

TRAINER_VERBS = ("fit", "validate", "test", "predict")
DEFAULT_MODEL = "mmpredict.training.Pretrain"
# Where we differ from Lightning: one device unless asked, and our own summary of the model.
TRAINER_DEFAULTS = {"devices": 1, "enable_model_summary": False}
TRUSTED = (  # what a recipe may name; anything else is refused before it is imported
    "mmpredict",
    "datamodules",
    "pytorch_lightning",
    "torch.nn",
    "torch.optim",
    "torchvision.transforms.v2",
    "timm",
)


@dataclass
class Command:
    """What the user asked of a verb.

    Args:
        verb: fit, validate, test or predict.
        configs: recipes in the order in which they are merged.
        overrides: (key, text) of `--key text`, in order.
        passed_on: words for the trainer's parser that are no settings (`--print_config`).
        trusted: packages that class_path may name.
        wants_help: `--help` was among the words.
        show_traceback: `--traceback` was among the words.
        trusts_environment: `--trust` was among the words.
        tree: everything merged.
    """

    verb: str
    configs: list[Path] = field(default_factory=list)
    overrides: list[tuple[str, str]] = field(default_factory=list)
    passed_on: list[str] = field(default_factory=list)
    trusted: tuple[str, ...] = TRUSTED
    wants_help: bool = False
    show_traceback: bool = False
    trusts_environment: bool = False
    tree: Setting = field(default_factory=recipe_files.empty)

    @property
    def name(self) -> str:
        """What the run folder is called after."""
        return self.configs[-1].stem if self.configs else self.verb

    @property
    def uses_default_model(self) -> bool:
        """Whether neither recipe nor command line names the model's class."""
        model = self.tree.value["model"]
        return model.is_map and model.value["class_path"].origin == "default"

    @property
    def shown(self) -> str:
        return recipe_files.display_path(self.configs[-1]) if self.configs else "RECIPE"

    def trainer_words(self) -> list[str]:
        """The command for the trainer's parser, which takes the last word on every key."""
        words = [self.verb]
        for path in self.configs:
            words += ["--config", str(path)]
        words += [f"--{key}={text}" for key, text in self.overrides]
        return words + self.passed_on


UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def refuse_unsafe_environment(trusts: bool) -> None:
    """torch runs whatever code a file brings along where this variable is set; ours are opened
    safely all the same, but not what a package of the recipe opens."""
    if not trusts and os.environ.get(UNSAFE, "0") in ("1", "y", "yes", "true"):
        raise RecipeError(
            f"error: {UNSAFE} is set: files that torch opens could run code of strangers\n"
            f"  unset {UNSAFE}; or, if you trust every file that will be opened, add --trust"
        )


def parse(verb: str, words: list[str]) -> Command:
    """Sort the words after the verb and merge what they say."""
    command = Command(verb)
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, equals, text = word.partition("=")
        if name in ("-h", "--help"):
            command.wants_help = True
        elif name == "--traceback":
            command.show_traceback = True
        elif name == "--trust":
            command.trusts_environment = True
        elif name == "--print_config":
            command.passed_on.append(word)
        elif not name.startswith("-") or name == "--":
            raise RecipeError(f"unexpected word {word!r}; settings are written --key value")
        else:
            _take(command, name, text if equals else _value(queue, name))
    command.tree = _merge(command)
    _last_of_what(command.tree)
    return command


def _last_of_what(tree: Setting) -> None:
    """`--ckpt_path last` goes on with a run, so the run must be named: a new folder has none."""
    asked, trainer = tree.value.get("ckpt_path"), tree.value.get("trainer")
    named = "run_dir" in tree.value or (
        trainer is not None and trainer.is_map and "default_root_dir" in trainer.value
    )
    if asked is not None and asked.value == "last" and not named:
        raise RecipeError(
            f"{asked.origin}: ckpt_path last means the newest checkpoint of a run; name the run "
            "with --run_dir DIR"
        )


def _value(queue: list[str], name: str) -> str:
    if not queue or queue[0].startswith("--"):
        raise RecipeError(f"{name} needs a value: {name} VALUE")
    return queue.pop(0)


def _take(command: Command, name: str, text: str) -> None:
    """One option and its value."""
    if name in ("-c", "--config"):
        command.configs.append(recipe_files.locate(text))
    elif name in ("--allow-import", "--allow_import"):
        if not all(part.isidentifier() for part in text.split(".")):
            raise RecipeError(f"--allow-import {text!r}: give a package name such as my_package")
        command.trusted = (*command.trusted, text)
    elif name.startswith("--") and name.endswith(".help"):
        command.passed_on.append(f"{name}={text}")
    elif name.startswith("--"):
        command.overrides.append((name.removeprefix("--").replace("-", "_"), text))
    else:
        raise RecipeError(f"unknown option {name}; settings are written --key value")


def _merge(command: Command) -> Setting:
    tree = recipe_files.empty()
    for path in command.configs:
        tree = recipe_files.merge(tree, _named_classes(recipe_files.read(path)))
    model = tree.value.setdefault("model", Setting({}, "default"))
    if model.is_map and "class_path" not in model.value:
        default = Setting(DEFAULT_MODEL, "default", "default", "str")
        tree.value["model"] = Setting({"class_path": default, **model.value}, model.origin)
    for key, text in command.overrides:
        value = recipe_files.from_text(text, f"--{key}")
        recipe_files.put(tree, key, value)
    return _named_classes(tree)


def _named_classes(tree: Setting) -> Setting:
    """`data: datamodules.World` is short for `data: {class_path: datamodules.World}`."""
    for key in ("model", "data"):
        value = tree.value.get(key)
        if value is not None and value.kind == "str":
            tree.value[key] = Setting({"class_path": value}, value.origin, value.key_origin)
    return tree


def check_checkpoint(parser: argparse.ArgumentParser, path: Path) -> None:
    """What can be said of `--ckpt` before torch is loaded."""
    if ":/" in str(path)[:8]:
        parser.error(f"--ckpt {str(path)!r} is a URL; download it first, loading those is unsafe")
    if not path.exists():
        parser.error(f"--ckpt {str(path)!r} does not exist")
