"""Runs a checked command with Lightning: builds data, model and trainer, then fit, validate, ...

In: a Command whose recipe was found in order. Out: an exit code. Mistakes of the user that show
only now (a missing file, sizes that do not fit) end with one message and code 2; what fails once
batches are being worked on is a crash, and keeps its traceback.
"""

from __future__ import annotations

import inspect
import logging
import os
import pickle
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelSummary, ProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from mmpredict import recipe_files, run_folder
from mmpredict.command_line import DEFAULT_MODEL, TRAINER_DEFAULTS, Command
from mmpredict.schema import Stop, UserError

MAX_LINES = 8
USER_MISTAKES = (
    ValueError,
    FileNotFoundError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
    ImportError,
    MisconfigurationException,
)
# What a damaged checkpoint, one of another model, or one with more than plain data in it raises.
BAD_CHECKPOINT = (pickle.UnpicklingError, EOFError, RuntimeError, KeyError)
NOISE = (  # notes of Lightning on things that are as we want them
    r".*does not have many workers",
    r".*The number of training batches .* is smaller than the logging interval",
    r".*LeafSpec",
    r".*`weights_only` was not set",
    r".*[Dd]irectory .* exists and is not empty",
    r".*You have overridden `on_before_batch_transfer` in `LightningModule`",
    r"Found \d+ module\(s\) in eval mode",  # frozen image encoders stay so
    r"Mismatch dtype between input and weight",  # rms_norm under autocast: slower, not wrong
)
PARSER_CHAFF = re.compile(
    r"^\s*(Does not validate against any of the Union|Subtypes:|Errors:|Given value( type)?:"
    r"|Expected a <class 'NoneType'>)|^\s*$"
)


class ParserComplaint(SystemExit):
    """The trainer's parser refused something. Passes through `except Exception` like its parent."""

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message


class Parser(LightningArgumentParser):
    """Lightning's parser, without the page of usage before every message."""

    def error(self, message: str, ex: Exception | None = None) -> None:
        raise ParserComplaint(message) from ex


class FirstBatch(Callback):
    """Knows whether work on batches has begun: errors from then on are crashes, not mistakes."""

    begun = False

    def on_train_batch_start(self, *_: Any) -> None:
        self.begun = True

    def on_validation_batch_start(self, *_: Any) -> None:
        self.begun = True

    def on_test_batch_start(self, *_: Any) -> None:
        self.begun = True

    def on_predict_batch_start(self, *_: Any) -> None:
        self.begun = True


class KeepSettings(Callback):
    """Writes config.yaml and env.json when the run starts; a folder used before is no obstacle."""

    def __init__(self, folder: Path, settings: str) -> None:
        self.folder = folder
        self.settings = settings

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "config.yaml").write_text(self.settings, encoding="utf-8")
            run_folder.write_environment(self.folder)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["recipe"] = self.settings

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        from mmpredict.training.compared import settings_note

        note = settings_note(checkpoint.get("recipe", self.settings), self.settings)
        print(note if trainer.is_global_zero else "", end="\n" * bool(note), flush=True)


class TrainerCLI(LightningCLI):
    """Lightning's CLI with our run folder, strictness and order of precedence.

    Args:
        command: the checked command.
        first_batch: told when work on batches begins.
        run: whether to go on to the verb, or to stop when all is built.
    """

    def __init__(self, command: Command, first_batch: FirstBatch, *, run: bool = True) -> None:
        self.command = command
        self.first_batch = first_batch
        self.run_dir = Path()
        super().__init__(
            LightningModule,
            LightningDataModule,
            save_config_callback=None,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=command.trainer_words() if run else command.trainer_words()[1:],
            run=run,
            auto_configure_optimizers=False,
        )

    def subcommands(self) -> dict[str, set[str]]:
        """Only the verb that was asked for: building the others takes seconds."""
        loaders = {"dataloaders", "train_dataloaders", "val_dataloaders"}
        return {self.command.verb: loaders | {"model", "datamodule", "weights_only", "verbose"}}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # Data first: the model is built from the streams that the data have.
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{key}": value for key, value in TRAINER_DEFAULTS.items()})
        parser.add_subclass_arguments(
            LightningDataModule, "data", fail_untyped=False, required=True
        )
        parser.add_subclass_arguments(
            LightningModule, "model", fail_untyped=False, required=True, skip={"layout"}
        )
        parser.add_argument("--run_dir", type=str | None, default=None, help="Folder of the run.")
        parser.add_argument("--init_from", type=str | None, default=None, help="First weights.")
        parser.add_argument("--init_least", type=float | None, default=None, help="Their share.")
        if self.command.uses_default_model:
            parser.set_defaults({"model": {"class_path": DEFAULT_MODEL}})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: what the user wrote wins over what an old checkpoint says of its own run."""

    def _add_instantiators(self) -> None:
        """Do nothing: ours are handed over where they are used."""

    def instantiate_classes(self) -> None:
        """Build data, then model, then trainer; a model that asks for a layout gets the data's."""
        built: list[LightningDataModule] = []
        self.start = start_of(self.config.get(str(self.subcommand), self.config), self.command)

        def build_data(kind: type[LightningDataModule], *args: Any, **kwargs: Any) -> Any:
            built.append(self.start.data(kind(*args, **kwargs)))
            return built[-1]

        def build_model(kind: type[LightningModule], *args: Any, **kwargs: Any) -> Any:
            if "layout" in inspect.signature(kind).parameters:
                kwargs["layout"] = built[-1].layout
            if "predictor" in inspect.signature(kind).parameters:
                kwargs = self.start.model_settings(kwargs, built[-1].layout)
            return kind(*args, **kwargs)

        builders = [(build_data, LightningDataModule, True), (build_model, LightningModule, True)]
        self.config_init = self.parser.instantiate(self.config, instantiators=builders)
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")
        self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        from mmpredict.training.checkpoint_io import with_verified_io

        config = self.config.get(str(self.subcommand), self.config)
        settings = self._parser(self.subcommand).dump(config, skip_unset=False)
        trainer = {**self._get(self.config_init, "trainer"), **kwargs}
        asked = config.get("run_dir")
        root = trainer.pop("default_root_dir", None)
        if asked and root and Path(asked) != Path(root):
            raise ValueError(
                f"run_dir {asked!r} and trainer.default_root_dir {str(root)!r} differ; keep one"
            )
        anonymous = re.sub(r"(?m)^run_dir:.*\n", "", settings)
        self.run_dir = run_folder.choose(asked or root, self.command.name, anonymous)
        run_folder.lock(self.run_dir)
        trainer["precision"] = choose_precision(trainer)
        trainer["plugins"] = with_verified_io(trainer.get("plugins"))
        trainer["logger"] = loggers(self.run_dir, trainer.get("logger"))
        trainer["callbacks"] = [
            *self.start.callbacks(callbacks(self.run_dir, trainer), self.run_dir),
            KeepSettings(self.run_dir, settings),
            self.first_batch,
        ]
        return Trainer(default_root_dir=self.run_dir, **trainer)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        from mmpredict.training.saving import path_of

        # Full unpickling would run code that a checkpoint brings along.
        settings = {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}
        starts = subcommand == "fit"
        settings["ckpt_path"] = path_of(settings.get("ckpt_path"), self.trainer, starts=starts)
        if subcommand in ("validate", "test"):
            settings["verbose"] = False  # our own table says it, beside the baselines
        return settings


def start_of(config: Any, command: Command) -> Any:
    """What the run begins with: nothing, another checkpoint's weights, or its own."""
    from mmpredict.training.warm_start import Start

    resumed = config.get("ckpt_path")
    if resumed == "last":  # recipe_check saw to it that the run is named
        resumed = config.get("run_dir") or config.trainer.default_root_dir
    written = [path for path, _ in recipe_files.walk(command.tree)]
    asked = {"least": config.get("init_least"), "written": written}
    return Start.of(config.get("init_from"), resumed, **asked)


def loggers(run_dir: Path, asked: Any) -> list[Logger] | bool:
    """CSV and TensorBoard in the run folder, and what the recipe adds; `false` turns all off."""
    if asked is False:
        return False
    wanted = [] if asked in (None, True) else list(asked) if isinstance(asked, list) else [asked]
    from mmpredict.training.csv_log import AppendingCSVLogger, EventLogger

    replaced = {AppendingCSVLogger: CSVLogger, EventLogger: TensorBoardLogger}
    ours = [kind for kind, base in replaced.items() if not _has(wanted, base)]
    return [kind(str(run_dir), name="", version="") for kind in ours] + wanted


def callbacks(run_dir: Path, trainer: dict[str, Any]) -> list[Callback]:
    """The callbacks of every run, and the recipe's; one of the same class replaces ours."""
    asked = trainer.get("callbacks") or []
    asked = list(asked) if isinstance(asked, list) else [asked]
    switches = {
        "enable_progress_bar": ProgressBar,
        "enable_checkpointing": Checkpoint,
        "enable_model_summary": ModelSummary,
    }
    # Lightning refuses a callback whose switch is off.
    refused = tuple(kind for key, kind in switches.items() if trainer.get(key) is False)
    ours = [c for c in default_callbacks(run_dir) if not isinstance(c, refused)]
    return [c for c in ours if not _has(asked, type(c))] + asked


def choose_precision(trainer: dict[str, Any]) -> str | None:
    """What the recipe asks for, or what the machine is good at."""
    from mmpredict.training.precision import choose

    return choose(trainer)


def default_callbacks(run_dir: Path) -> list[Callback]:
    """Progress, report and checkpoints of the training room, writing to the run folder."""
    from mmpredict.training.callbacks import run_callbacks

    return run_callbacks(run_dir)


def _has(items: list[Any], kind: type) -> bool:
    return any(type(item) is kind for item in items)


def quiet() -> None:
    """Keep Lightning's greetings and tips off the console; its warnings about real trouble stay."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for pattern in NOISE:
        warnings.filterwarnings("ignore", message=pattern)


def trust(packages: tuple[str, ...]) -> None:
    """Let the parser import from these packages and from nowhere else."""
    jsonargparse.set_parsing_settings(
        import_path_denylist=["*"], import_path_allowlist=list(packages)
    )


def run(command: Command) -> int:
    """Run a checked command; the exit code."""
    quiet()
    trust(command.trusted)
    # On a CPU without AMX this still computes in fp32, by a faster library: 1.6 times the step.
    torch.set_float32_matmul_precision("medium")
    first_batch = FirstBatch()
    try:
        TrainerCLI(command, first_batch)
    except ParserComplaint as complaint:
        print(parser_message(command, complaint.message), file=sys.stderr)
        return 2
    except Stop as stop:
        if str(stop):  # one rank speaks for all
            print(f"stopped: {stop}", file=sys.stderr)
        return stop.code
    except Exception as error:
        if isinstance(error, UserError) and not shows_traceback(command):
            print(f"error: {error}", file=sys.stderr)
            return 2
        kinds = USER_MISTAKES + (BAD_CHECKPOINT if checkpoint_of(command) else ())
        if first_batch.begun or shows_traceback(command) or not isinstance(error, kinds):
            raise
        print(mistake_message(command, error), file=sys.stderr)
        return 2
    return 0


def checkpoint_of(command: Command) -> str | None:
    setting = command.tree.value.get("ckpt_path")
    return None if setting is None or setting.kind == "null" else str(setting.value)


def shows_traceback(command: Command) -> bool:
    return command.show_traceback or os.environ.get("MMPREDICT_TRACEBACK", "0") not in ("", "0")


def parser_message(command: Command, message: str) -> str:
    """The one part of a parser's message that says what is wrong, with the line it is about."""
    key = re.search(r"(?:Parser key|option|Option|Key) [\"'`]([\w.]+)", message)
    kept = condense(message)[:5]
    where = _origin(command, key[1]) if key else command.shown
    remedy = f"mmpredict {command.verb} --help, or mmpredict show {command.shown}"
    return "\n  ".join([f"{where}: {kept[0]}", *kept[1:], f"help: {remedy}"])


def condense(message: str) -> list[str]:
    """The lines of a message that say something, without the parser's list of what it tried."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    return [line[:300] for line in lines if not PARSER_CHAFF.match(line)] or [message[:300]]


def _origin(command: Command, key: str) -> str:
    key = key.removeprefix(f"{command.verb}.")
    for path, setting in recipe_files.walk(command.tree):
        plain = path.replace(".init_args", "")
        if plain == key or plain.endswith(f".{key}"):
            return setting.origin
    return command.shown


def mistake_message(command: Command, error: BaseException) -> str:
    """`error: ...`, at most eight lines; of an error in a loader's process the last line."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, pickle.UnpicklingError):  # torch's own text advises to load it anyway
        thing = re.search(r"GLOBAL (\S+)", text)
        reason = f"holds {thing[1]}, not only plain data" if thing else "is damaged"
        text = f"checkpoint {checkpoint_of(command)!r} {reason}; it was not loaded"
    elif isinstance(error, BAD_CHECKPOINT):
        text = f"checkpoint {checkpoint_of(command)!r} cannot be used here:\n{text}"
    if text.startswith("Caught ") and "worker process" in text:
        text = text.splitlines()[-1].partition(": ")[2] or text.splitlines()[-1]
    lines = condense(text)[: MAX_LINES - 1]
    return "\n  ".join(
        [f"error: {lines[0]}", *lines[1:], "(--traceback shows where this was noticed)"]
    )
