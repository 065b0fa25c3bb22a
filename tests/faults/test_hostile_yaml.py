"""Recipes that would run code or fill the memory: refused with code 2, nothing has happened."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import runs

CPU_S, MEMORY_BYTES = 2.0, 500_000_000  # of the whole command
GOOD = {
    "model": "model: {class_path: mmpredict.training.Pretrain}",
    "data": "data: {class_path: datamodules.World}",
    "trainer": "trainer: {max_steps: 1}",
}


def recipe(**changed: str) -> str:
    return "\n".join({**GOOD, **changed}.values()) + "\n"


def bomb(levels: int = 9, width: int = 9) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


def merge_bomb() -> str:
    lines = ["a0: &a0 {k: v}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 9)]
    return "\n".join(lines)


TOUCH = "touch canary"
HOSTILE = {
    "apply": recipe(model=f"model: !!python/object/apply:os.system ['{TOUCH}']"),
    "new": recipe(model="model: !!python/object/new:subprocess.Popen [[touch, canary]]"),
    "name": recipe(model="model: !!python/name:os.system"),
    "module": recipe(model="model: !!python/module:evil"),
    "apply in a key": f"? !!python/object/apply:os.system ['{TOUCH}']\n: 1",
    "own tag": recipe(model="model: !evil {x: 1}"),
    "tag directive": f"%TAG ! tag:yaml.org,2002:python/\n---\na: !object/apply:os.system [{TOUCH}]",
    "os.system": recipe(model=f"model: {{class_path: os.system, init_args: {{command: {TOUCH}}}}}"),
    "Popen": recipe(
        model="model: {class_path: subprocess.Popen, init_args: {args: [touch, canary]}}"
    ),
    "foreign module": recipe(model="model: {class_path: evil.Model}"),
    "foreign data": recipe(data="data: {class_path: evil.Model}"),
    "foreign callback": recipe(trainer="trainer: {callbacks: [{class_path: evil.Model}]}"),
    "foreign logger": recipe(trainer="trainer: {logger: {class_path: evil.Model}}"),
    "through ours": recipe(model="model: {class_path: mmpredict.cli.os.system}"),
    "through torch": recipe(model="model: {class_path: torch.nn.modules.module.os.system}"),
    "name like ours": recipe(model="model: {class_path: mmpredict_evil.Model}"),
    "torch.load": recipe(model="model: {class_path: torch.load, init_args: {f: canary.pt}}"),
    "nested 10000 deep": "[" * 10_000 + "]" * 10_000,
    "maps 10000 deep": "{a: " * 10_000 + "1" + "}" * 10_000,
    "lines 5000 deep": "".join(" " * i + "a:\n" for i in range(1400)),
    "alias bomb": bomb(),
    "merge bomb": merge_bomb(),
    "alias of itself": "a: &a [*a]",
    "two megabytes": "a: " + "x" * 2_000_000,
    "a million keys": "\n".join(f"k{i}: 1" for i in range(110_000)),
    "two documents": recipe() + "---\n" + recipe(),
    "no text": "\x00\x01",
}


def limited(memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def fit(folder: Path, *words: str, text: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """`mmpredict fit` in a limited process; its CPU seconds come back."""
    folder.mkdir(exist_ok=True)
    (folder / "bad.yaml").write_text(text)
    evil = "open('canary', 'w').close()\nclass Model: pass\n"
    (folder / "evil.py").write_text(evil)
    (folder / "mmpredict_evil.py").write_text(evil)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "mmpredict", "fit", "--config", "bad.yaml", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{runs.ROOT}:{folder}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: limited(MEMORY_BYTES),
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_recipe_is_refused_and_nothing_happens(name, tmp_path):
    done, cpu_s = fit(tmp_path, text=HOSTILE[name])
    assert done.returncode == 2, (done.returncode, done.stderr[-1000:])
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 8
    assert "bad.yaml" in done.stderr
    assert not (tmp_path / "canary").exists() and not (tmp_path / "runs").exists()
    assert cpu_s < CPU_S, f"{cpu_s:.1f} s"


@pytest.mark.parametrize(
    "words",
    [
        ("--model", "os.system"),
        ("--model", f"!!python/object/apply:os.system ['{TOUCH}']"),
        ("--model.predictor", "!!python/object/new:subprocess.Popen [[touch, canary]]"),
        ("--trainer.callbacks", "[{class_path: evil.Model}]"),
        ("--trainer.callbacks+=evil.Model",),
        ("--data", "[" * 10_000),
        ("--model", bomb()),
    ],
    ids=range(7),
)
def test_the_command_line_is_held_to_the_same(words, tmp_path):
    done, cpu_s = fit(tmp_path, *words, text=recipe())
    assert done.returncode == 2, done.stderr[-1000:]
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 8
    assert not (tmp_path / "canary").exists() and cpu_s < CPU_S


def test_the_canary_does_sing(tmp_path):
    """That the module above would have been noticed: allowed by hand, it is imported."""
    text = HOSTILE["foreign module"]
    (tmp_path / "evil.py").write_text("open('canary', 'w').close()\nclass Model: pass\n")
    (tmp_path / "bad.yaml").write_text(text)
    subprocess.run([sys.executable, "-c", "import evil"], cwd=tmp_path, check=True, timeout=60)
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["../../out", "/etc/out", "..", "a/b", "a\x00b", "x" * 300, "."])
def test_a_recipes_name_does_not_lead_out_of_the_runs_folder(name, tmp_path, monkeypatch):
    from mmpredict import run_folder

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(run_folder.CHILD_VARIABLE, raising=False)
    folder = run_folder.choose(None, name, "settings")
    inside = folder.resolve().relative_to((tmp_path / "runs").resolve())
    assert len(inside.parts) == 2 and len(inside.parts[0]) <= 64
    assert not inside.parts[0].startswith(".")


def test_the_suite_of_an_items_file_does_not_name_a_folder_elsewhere():
    from mmpredict.run_folder import safe_name

    for name in ("x/../../../../tmp/evil", "/etc", "..", "a\x00b"):
        assert "/" not in safe_name(f"probe-{name}") and "\x00" not in safe_name(f"probe-{name}")
