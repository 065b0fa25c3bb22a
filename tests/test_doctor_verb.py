"""`mmpredict doctor`: quick facts without torch, a remedy for what is wrong, and a trial."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from mmpredict import cli, doctor_facts, doctor_trial, doctor_verb
from mmpredict.doctor_facts import FINE, NOTE, WRONG, Finding

ROOT = Path(__file__).resolve().parents[1]
Usage = namedtuple("Usage", "total used free")


def states(findings) -> list[str]:
    return [finding.state for finding in findings]


def doctor(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmpredict", "doctor", *words]
    changed = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(
        command, cwd=ROOT, env=changed, capture_output=True, text=True, timeout=400, check=False
    )


def test_facts_come_at_once_and_without_torch(tmp_path):
    code = (
        "import resource, sys; from mmpredict import cli\n"
        f"cli.main(['doctor', '--facts', '--run_dir', {str(tmp_path)!r}])\n"
        "assert not {'torch', 'pytorch_lightning', 'av'} & set(sys.modules)\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print('cpu', used.ru_utime + used.ru_stime)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 0.5
    words = ("python", "packages", "cpu", "memory", "gpu", "disk", "temporary", "shm", "limits")
    for word in words:
        assert f"  {word}" in done.stdout


def test_an_unsafe_variable_is_wrong_and_the_remedy_is_named(tmp_path):
    done = doctor("--facts", TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1")
    assert done.returncode == 1
    assert "WRONG  variables  TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" in done.stdout
    assert "unset TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" in done.stdout


@pytest.mark.parametrize(
    ("env", "state", "words"),
    [
        ({}, FINE, "none"),
        ({"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}, WRONG, "run code"),
        ({"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}, FINE, "none"),
        ({"LD_PRELOAD": "/tmp/x.so"}, NOTE, "foreign code"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, NOTE, "RANK, WORLD_SIZE"),
        ({"OMP_NUM_THREADS": "4096"}, NOTE, "4096"),
    ],
)
def test_variables(env, state, words):
    first = next(doctor_facts.variables(env))
    assert first.state == state and words in first.text
    assert bool(first.remedy) == (state != FINE)


def with_versions(monkeypatch, **versions: str) -> None:
    found = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(doctor_facts, "_version", found.get)


def test_a_package_out_of_bounds_and_a_missing_one_are_wrong(monkeypatch):
    with_versions(monkeypatch, torch="2.12.0", numpy="2.1")
    wanted = ["torch>=2.11,<2.12", "numpy>=2", "av>=18.1", "ruff; extra == 'test'"]
    found = list(doctor_facts.packages(wanted))
    wrong = [str(f) for f in found if f.state == WRONG]
    assert len(wrong) == 2
    assert "torch 2.12.0, wanted <2.12,>=2.11" in wrong[0] and "pip install" in wrong[0]
    assert "av is missing" in wrong[1]
    assert any(f.text == "numpy 2.1" for f in found if f.state == FINE)


@pytest.mark.parametrize("name", ["pytorch_lightning", "lightning"])
@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_the_malicious_uploads_are_named(name, version, monkeypatch):
    with_versions(monkeypatch, **{name: version})
    found = [str(f) for f in doctor_facts.packages(["pytorch-lightning>=2.6"]) if f.state == WRONG]
    assert any("malicious" in text and "password" in text for text in found)


def test_two_lightnings_are_one_too_many(monkeypatch):
    with_versions(monkeypatch, pytorch_lightning="2.6.6", lightning="2.6.6")
    found = [f for f in doctor_facts.packages(["pytorch-lightning>=2.6"]) if f.state == WRONG]
    assert len(found) == 1 and found[0].remedy == "pip uninstall lightning"


def test_our_own_bounds_hold_here():
    import tomllib

    plain = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = list(doctor_facts.packages(plain["project"]["dependencies"]))
    assert [str(f) for f in found if f.state == WRONG] == []
    assert len(found[-1].text.split(", ")) == len(plain["project"]["dependencies"])


@pytest.mark.parametrize(
    ("text", "cores"),
    [("150000 100000", 1.5), ("max 100000", None), ("", None), ("x y", None), ("1 0", None)],
)
def test_a_containers_share_of_the_cpu(text, cores):
    assert doctor_facts._quota(text) == cores


def test_little_room_is_told(tmp_path, monkeypatch):
    def with_free(free: int) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(1 << 40, 0, free))

    with_free(100 << 20)
    assert doctor_facts.disk(tmp_path).state == WRONG
    assert doctor_facts.temporary(tmp_path).state == NOTE
    with_free(5 << 30)
    assert doctor_facts.disk(tmp_path / "not" / "yet").state == NOTE
    with_free(500 << 30)
    assert doctor_facts.disk(tmp_path).state == FINE


def test_shared_memory_that_is_small_or_missing(tmp_path, monkeypatch):
    missing = doctor_facts.shared_memory(tmp_path / "shm")
    assert missing.state == NOTE and "workers 0" in missing.remedy
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(64 << 20, 0, 0))
    small = doctor_facts.shared_memory(tmp_path)
    assert small.state == NOTE and "64 MiB" in small.text and "--shm-size" in small.remedy


def test_few_open_files_are_told(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    assert states(doctor_facts.limits()) == [NOTE, NOTE]


def test_the_driver_names_its_cards(tmp_path):
    card = tmp_path / "gpus" / "0000:01:00.0"
    card.mkdir(parents=True)
    (card / "information").write_text("Model: \t\t Some Card 9000\nIRQ: 5\n")
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX Module  570.12.3  Mon\n")
    assert doctor_facts.gpu(tmp_path).text == "Some Card 9000; driver 570.12.3"
    assert doctor_facts.gpu(tmp_path / "none").state == FINE


def trial_by(script: str, tmp_path: Path, monkeypatch, limit_s: float = 60.0) -> list[Finding]:
    """The trial, with a script in the place of Python."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(path))
    return list(doctor_verb.trial(limit_s))


TORCH_DONE = """echo '{"what": "torch", "text": "fine", "seconds": 1}'"""


def test_a_trial_that_dies_is_told_with_its_stage(tmp_path, monkeypatch):
    found = trial_by(f"{TORCH_DONE}; kill -ILL $$", tmp_path, monkeypatch)
    assert states(found) == [FINE, WRONG]
    assert found[1].what == "media" and "SIGILL" in found[1].text and found[1].remedy


def test_a_trial_that_hangs_is_ended(tmp_path, monkeypatch):
    found = trial_by(f"{TORCH_DONE}; exec sleep 60", tmp_path, monkeypatch, limit_s=0.5)
    assert states(found) == [FINE, WRONG] and "no answer within 0.5 s" in found[1].text


def test_a_trial_that_cannot_begin(tmp_path, monkeypatch):
    found = trial_by("echo 'No module named torch' >&2; exit 3", tmp_path, monkeypatch)
    assert states(found) == [WRONG]
    assert "exit code 3 No module named torch" in found[0].text


def test_a_stage_that_fails_is_wrong_and_those_that_need_it_are_not_tried(
    tmp_path, monkeypatch, capsys
):
    def broken() -> str:
        raise RuntimeError("a product of two matrices is wrong on cuda:0\nmore")

    stages = {"torch": broken, "media": lambda: "never"}
    monkeypatch.setattr(doctor_trial, "stages", lambda folder: stages)
    assert doctor_trial.main([str(tmp_path)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    finding = doctor_verb._of(json.loads(line))
    assert finding.state == WRONG and "cuda:0" in finding.text and "more" not in finding.text


def test_every_stage_has_a_remedy(tmp_path):
    assert list(doctor_trial.stages(tmp_path)) == list(doctor_verb.REMEDIES)


def test_findings_are_kept_as_json(tmp_path, capsys):
    code = cli.main(["doctor", "--facts", "--json", str(tmp_path / "x.json")])
    kept = json.loads((tmp_path / "x.json").read_text())
    assert {"state", "what", "text", "remedy"} == set(kept[0])
    assert code == int(any(f["state"] == WRONG for f in kept))
    assert cli.main(["doctor", "--json", str(tmp_path / "no" / "x.json")]) == 2


@pytest.mark.slow
def test_the_trial_passes_here(tmp_path):
    done = doctor("--run_dir", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stdout
    for what in doctor_verb.REMEDIES:
        assert f"fine   {what}" in done.stdout
    assert "bit for bit" in done.stdout
    assert not (tmp_path / "runs").exists()
