"""F14: checkpoints that would run code. In all ways in which one is opened, none does."""

from __future__ import annotations

import http.server
import pickle
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from mmpredict import cli
from mmpredict.training.checkpoint import load_predictor, read
from mmpredict.training.checkpoint_io import VerifiedCheckpointIO

UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


class Opens:
    """Unpickled by a careless reader, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return (open, (str(self.canary), "w"))


def shell(canary: Path, path: Path) -> None:
    """A reduce of os.system in the place of a tensor."""

    class Shell:
        def __reduce__(self):
            import os

            return (os.system, (f"touch {canary}",))

    torch.save({"state_dict": {"predictor.x": Shell()}, "mmpredict": {"format": 2}}, path)


def plain_pickle(canary: Path, path: Path) -> None:
    """No zip at all: the form of torch before 1.6."""
    path.write_bytes(pickle.dumps({"state_dict": Opens(canary)}))


def hyper_parameters(canary: Path, path: Path) -> None:
    """Lightning's notes on how to build the model name what to call."""
    notes = {"_instantiator": "os.system", "_class_path": "os.system", "command": f"touch {canary}"}
    torch.save(
        {
            "state_dict": {},
            "hyper_parameters": notes,
            "datamodule_hyper_parameters": notes,
            "hparams_type": "os.system",
            "pytorch-lightning_version": "2.6.6",
        },
        path,
    )


def in_the_optimizer(canary: Path, path: Path) -> None:
    """Deep inside what a resumed run would restore."""
    states = [{"state": {0: {"exp_avg": Opens(canary)}}, "param_groups": []}]
    torch.save({"state_dict": {}, "optimizer_states": states}, path)


def extra_member(canary: Path, path: Path) -> None:
    """An archive whose pickle was exchanged."""
    torch.save({"state_dict": {"x": torch.zeros(2)}}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            evil = pickle.dumps({"state_dict": Opens(canary)}, protocol=2)
            archive.writestr(name, evil if name.endswith("data.pkl") else data)


EVIL = [shell, plain_pickle, hyper_parameters, in_the_optimizer, extra_member]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def openers(path: str) -> list[list[str]]:
    """Every verb that opens a checkpoint."""
    return [
        ["inspect", path],
        ["rollout", "--ckpt", path, "--prompt", "a ball", "--out", "x.mp4"],
        ["probe", "--ckpt", path, "--suite", "smoke", "--out", "p"],
        ["export", "--ckpt", path, "--out", "e"],
    ]


@pytest.mark.parametrize("make", EVIL)
@pytest.mark.parametrize("unsafe", [False, True])
def test_no_checkpoint_runs_code(here: Path, monkeypatch, capsys, make, unsafe: bool):
    canary, path = here / "canary", here / "evil.ckpt"
    make(canary, path)
    if unsafe:
        monkeypatch.setenv(UNSAFE, "1")
    resumed = partial(VerifiedCheckpointIO().load_checkpoint, weights_only=False)
    for open_it in (read, load_predictor, resumed):
        try:
            open_it(path)
        except ValueError as error:
            assert "evil.ckpt" in str(error)
            assert "weights_only" not in str(error)  # torch would advise to load it all the same
        else:
            assert (
                make is hyper_parameters and open_it is not load_predictor
            )  # plain words, never acted on
    trust = ["--trust"] if unsafe else []
    for words in openers(str(path)):
        code = cli.main([*words, *trust])
        assert code == 2 or (words[0], make) == ("inspect", hyper_parameters), words
        assert len(capsys.readouterr().err.splitlines()) <= 8
    assert not canary.exists()


def test_the_unsafe_variable_is_refused_unless_trusted(here: Path, monkeypatch, capsys):
    monkeypatch.setenv(UNSAFE, "1")
    (here / "any.ckpt").write_bytes(b"")
    recipe = here / "r.yaml"
    recipe.write_text("trainer: {max_steps: 1}\n")
    for words in [*openers("any.ckpt"), ["fit", "--config", str(recipe)]]:
        assert cli.main(words) == 2
        said = capsys.readouterr().err
        assert UNSAFE in said and "--trust" in said and len(said.splitlines()) <= 3
    assert cli.main(["recipes"]) == 0  # opens nothing


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A web server on this machine, and what it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}", asked
        found.shutdown()


def test_urls_are_refused_before_anything_is_asked_for(here: Path, server, capsys):
    address, asked = server
    url = f"{address}/x.ckpt"
    recipe = here / "r.yaml"
    recipe.write_text("trainer: {max_steps: 1}\nmodel: {}\ndata: datamodules.World\n")
    verbs = openers(url)[1:]  # for `inspect` a URL names shards, whose index is JSON
    for words in [*verbs, ["fit", "--config", str(recipe), "--ckpt_path", url]]:
        assert cli.main(words) == 2, words
        assert len(capsys.readouterr().err.splitlines()) <= 8
    for open_it in (read, load_predictor):
        with pytest.raises(ValueError, match="download it first"):
            open_it(url)
    assert asked == []
