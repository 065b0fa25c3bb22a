"""The front door: looks at the first word and imports only what that verb needs.

`mmpredict --help`, `recipes`, `show` and the message for a broken recipe answer at once, because
torch is imported only when something is going to run. Exit codes: 0 done, 1 crash, 2 a mistake of
the user, and those of `schema.Stop`: 65 too much bad data, 70 too many bad steps, 75 nothing moves,
130 SIGINT, 143 SIGTERM or SIGUSR1.
"""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
from types import FrameType, ModuleType

import mmpredict

VERBS = {
    "fit": "train: mmpredict fit --config quickstart",
    "validate": "measure on the validation data: ... --config RECIPE --ckpt_path FILE",
    "test": "measure on the test data: ... --config RECIPE --ckpt_path FILE",
    "predict": "predict over the predict data: ... --config RECIPE --ckpt_path FILE",
    "rollout": "continue a prompt: ... --ckpt FILE --prompt FILE_OR_TEXT --seconds 4 --out x.mp4",
    "prepare": "turn media into shards: mmpredict prepare SOURCE --out DIR",
    "inspect": "what is in a folder, shard or file: mmpredict inspect PATH [--verify]",
    "probe": "ask a model what is left, hidden, falling: ... --ckpt FILE --suite smoke",
    "export": "a checkpoint to plain files for others: ... --ckpt FILE --out DIR",
    "doctor": "what is wrong with this machine or installation: mmpredict doctor",
    "recipes": "list the recipes that come along",
    "show": "a recipe with all its defaults, and where each value was written",
}
OPTIONS = (
    ("--config RECIPE", "a file or the name of a shipped recipe; several are merged in order"),
    ("--KEY VALUE", "any setting, such as --trainer.max_steps 10; wins over the recipe"),
    ("--run_dir DIR", "where to write; default runs/<recipe>/<time>-<hash>/"),
    ("--ckpt_path FILE", "resume or evaluate this checkpoint; `last`: the newest of --run_dir"),
    ("--seed_everything N", "seed of the run (default 0)"),
    ("--allow-import PACKAGE", "let class_path name classes of a package of yours"),
    ("--print_config", "print the full configuration and stop"),
    ("--model.help CLASS", "describe the arguments of a class (so too --data.help)"),
    ("--traceback", "show where a mistake was noticed"),
    ("--trust", "run although the environment lets torch run code out of files"),
)


def main(words: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    words = sys.argv[1:] if words is None else words
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_page())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"mmpredict {mmpredict.__version__}")
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        return fail(unknown_verb(verb))
    printers = {
        "recipes": list_recipes,
        "show": show_recipe,
        "rollout": rollout,
        "prepare": prepare,
        "inspect": inspect,
        "probe": probe,
        "export": export,
        "doctor": doctor,
    }
    if verb not in printers:
        return train(verb, rest)
    try:
        code = printers[verb](rest)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code


def fail(message: str) -> int:
    """Say what is wrong; the exit code of a user's mistake."""
    print(message, file=sys.stderr)
    return 2


def help_page() -> str:
    lines = [
        "mmpredict: one causal predictor for the next word, the next frame and the next sound.",
        "",
        "usage: mmpredict VERB ...     (mmpredict VERB --help says more)",
        "",
        *(f"  {verb:<10} {text}" for verb, text in VERBS.items()),
        "",
        "first steps: mmpredict recipes; mmpredict fit --config quickstart",
    ]
    return "\n".join(lines)


def unknown_verb(verb: str) -> str:
    close = difflib.get_close_matches(verb, VERBS, n=1)
    lines = [f"mmpredict: unknown verb {verb!r}"]
    if verb.startswith("-"):
        lines = [f"mmpredict: the verb comes first: mmpredict fit {verb} ..."]
    lines += [f"did you mean `{close[0]}`?"] if close else []
    return "\n  ".join([*lines, "verbs: " + ", ".join(VERBS)])


def list_recipes(words: list[str]) -> int:
    """One line for each shipped recipe."""
    from mmpredict import recipe_files

    if words and words[0] in ("-h", "--help"):
        print("usage: mmpredict recipes     lists the recipes that come along, one a line")
        return 0
    if words:
        return fail(f"mmpredict recipes takes no arguments, got {' '.join(words)!r}")
    paths = recipe_files.shipped_recipes()
    names = [recipe_files.recipe_name(path) for path in paths]
    width = max(map(len, names), default=0)
    for name, path in zip(names, paths, strict=True):
        print(f"{name:<{width}}  {recipe_files.head(path).get('What', '')}")
    if not paths:
        return fail(f"no recipes in {recipe_files.recipes_folder()}; reinstall mmpredict")
    return 0


def show_recipe(words: list[str]) -> int:
    """Print a recipe merged with its defaults."""
    from mmpredict import recipe_show
    from mmpredict.command_line import Command

    if not words or words[0] in ("-h", "--help"):
        usage = "usage: mmpredict show RECIPE [--config RECIPE ...] [--KEY VALUE ...]"
        print(usage, file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if not words[0].startswith("-"):
        words = ["--config", *words]
    command = checked("fit", words)
    if isinstance(command, Command):
        print("\n".join(recipe_show.show(command)))
        return 0
    return command


def checked(verb: str, words: list[str]):
    """The Command of a trainer verb, or the exit code if it is wrong or was only asked for help."""
    from mmpredict import command_line
    from mmpredict.recipe_check import Check
    from mmpredict.recipe_files import RecipeError

    try:
        command = command_line.parse(verb, words)
        if command.wants_help:
            print(verb_page(verb))
            return 0
        command_line.refuse_unsafe_environment(command.trusts_environment)
        if command.trusted != command_line.TRUSTED and "" not in sys.path:
            sys.path.append("")  # the package that was allowed may lie in the current folder
        explores = any(".help" in word for word in command.passed_on)
        check = Check(command)
        problems = [] if explores else check.run()
    except RecipeError as error:
        return fail(str(error))
    for notice in check.notices:
        print(notice, file=sys.stderr)
    if problems:
        more = f"\n({len(problems) - 1} more after this one)" if len(problems) > 1 else ""
        return fail(f"{problems[0]}{more}")
    return command


def train(verb: str, words: list[str]) -> int:
    """fit, validate, test, predict: check the recipe first; import the rest if it is in order."""
    from mmpredict.command_line import Command

    # Until there is a training that has something to finish: see training/signals.py.
    stops = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, leave) for number in stops}
    try:
        command = checked(verb, words)
        if not isinstance(command, Command):
            return command
        from mmpredict.lightning_cli import run

        return run(command)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(number: int, frame: FrameType | None) -> None:
    """End at once, with a line in the place of a traceback."""
    import multiprocessing

    if multiprocessing.parent_process() is None:  # not a loader's worker
        print(f"{signal.Signals(number).name}: left at once; no step to save", file=sys.stderr)
        for worker in multiprocessing.active_children():
            worker.kill()
    os._exit(130 if number == signal.SIGINT else 143)


def verb_page(verb: str) -> str:
    """Help for a trainer verb: our options and the trainer's, read from its source."""
    from mmpredict import signatures
    from mmpredict.command_line import TRAINER_DEFAULTS

    trainer = signatures.find("pytorch_lightning.Trainer")
    parameters = signatures.signature(trainer).parameters.values() if trainer else ()
    lines = [f"usage: mmpredict {verb} --config RECIPE [--KEY VALUE ...]", ""]
    lines += [f"  {option:<24} {text}" for option, text in OPTIONS]
    lines += ["", "model and data settings of a recipe: mmpredict show RECIPE", "trainer settings:"]
    for p in parameters:
        default = TRAINER_DEFAULTS.get(p.name, p.default)
        lines.append(f"  --trainer.{p.name} {p.annotation} = {default}"[:100])
    return "\n".join(lines)


class _Arguments(argparse.ArgumentParser):
    """argparse with one line in place of the usage page."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}\n  help: {self.prog} --help\n")


def rollout(words: list[str]) -> int:
    """Continue a prompt with a trained model; torch is loaded once the options are in order."""
    from mmpredict import rollout_verb

    return own_verb(rollout_verb, "rollout", "Let a trained model go on.", words, opens=True)


def prepare(words: list[str]) -> int:
    """Media to shards."""
    from mmpredict import prepare_verb

    return own_verb(prepare_verb, "prepare", "Turn media into shards.", words)


def inspect(words: list[str]) -> int:
    """What a folder, a shard or a file holds."""
    from mmpredict import inspect_verb

    return own_verb(
        inspect_verb, "inspect", "Say what is in a folder, shard or file.", words, opens=True
    )


def probe(words: list[str]) -> int:
    """Ask a trained model, or audit what it is asked."""
    from mmpredict import probe_verb

    return own_verb(
        probe_verb, "probe", "Ask a trained model about space and things.", words, opens=True
    )


def export(words: list[str]) -> int:
    """A checkpoint to a folder of plain files."""
    from mmpredict import export_verb

    return own_verb(export_verb, "export", "Turn a checkpoint into plain files.", words, opens=True)


def doctor(words: list[str]) -> int:
    """What is wrong with this machine."""
    from mmpredict import doctor_verb

    return own_verb(doctor_verb, "doctor", "Look at this machine and this installation.", words)


def own_verb(
    module: ModuleType, name: str, description: str, words: list[str], *, opens: bool = False
) -> int:
    """Parse, check and run a verb of ours; `opens` those that open checkpoints.

    Its module has `add_arguments(parser)`, `check(parser, args)` for what can be said before torch
    is loaded, and `run(args)`, which returns the exit code.
    """
    from mmpredict import command_line
    from mmpredict.recipe_files import RecipeError

    parser = _Arguments(prog=f"mmpredict {name}", description=description)
    module.add_arguments(parser)
    if opens:
        parser.add_argument("--trust", action="store_true", help=dict(OPTIONS)["--trust"])
    try:
        args = parser.parse_args(words)
        if opens:
            command_line.refuse_unsafe_environment(args.trust)
        module.check(parser, args)
    except SystemExit as stop:
        return int(stop.code or 0)
    except RecipeError as error:
        return fail(str(error))
    try:
        return module.run(args)
    except (ValueError, FileNotFoundError, ImportError) as error:
        return fail(f"error: {error}")
