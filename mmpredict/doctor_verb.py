"""`mmpredict doctor`: what is wrong with this machine and this installation, and what to do.

Facts are printed at once; a trial of everything in small follows, in a process of its own. Exit
code 0: all works. 1: something is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from mmpredict.doctor_facts import FINE, WRONG, Finding, facts

LIMIT_S = 300.0  # of the trial, which takes about 10 s on two free cores
REMEDIES = {
    "torch": "pip install --force-reinstall 'torch>=2.11,<2.12'; for a GPU see pytorch.org",
    "media": "pip install --force-reinstall av",
    "training": "mmpredict fit --config recipes/smoke.yaml --traceback shows where",
    "resume": "runs cannot be continued exactly here; please report it with this page",
    "rollout": "mmpredict rollout --help; please report it with this page",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `doctor`."""
    add = parser.add_argument
    add("--facts", action="store_true", help="only what can be said at once; no trial")
    add("--run_dir", "--run-dir", type=Path, default=Path("runs"), help="(default runs)")
    add("--json", type=Path, metavar="FILE", help="write all findings to FILE, too")


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What can be said of the options before anything is looked at."""
    if args.json is not None and not args.json.absolute().parent.is_dir():
        parser.error(f"--json {args.json}: the folder {args.json.parent} does not exist")


def run(args: argparse.Namespace) -> int:
    """Look, try, print; 1 if something is wrong."""
    found = []
    for finding in _everything(args):
        found.append(finding)
        print(finding, flush=True)
    wrong = sum(finding.state == WRONG for finding in found)
    print(f"{wrong} of {len(found)} findings are wrong" if wrong else "nothing is wrong")
    if args.json is not None:
        text = json.dumps([vars(finding) for finding in found], indent=1)
        args.json.write_text(f"{text}\n", encoding="utf-8")
    return 1 if wrong else 0


def _everything(args: argparse.Namespace) -> Iterator[Finding]:
    yield from facts(args.run_dir)
    if not args.facts:
        print("trial of about 10 s (--facts leaves it out):", flush=True)
        yield from trial()


def trial(limit_s: float = LIMIT_S) -> Iterator[Finding]:
    """Stage by stage, as they end."""
    with tempfile.TemporaryDirectory(prefix="mmpredict-doctor-") as folder:
        env = {name: value for name, value in os.environ.items() if name != "MMPREDICT_RUN_DIR"}
        with subprocess.Popen(
            [sys.executable, "-m", "mmpredict.doctor_trial", folder],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as process:
            late = threading.Timer(limit_s, process.kill)
            late.start()
            said: list[str] = []
            reader = threading.Thread(target=lambda: said.extend(process.stderr))
            reader.start()
            stages = list(REMEDIES)
            try:
                for line in process.stdout:
                    if line.startswith('{"what"'):
                        finding = _of(json.loads(line))
                        stages.remove(finding.what)
                        yield finding
                code = process.wait()
            finally:
                process.kill()
                reader.join()
                in_time = late.is_alive()
                late.cancel()
        if code not in (0, 1):
            yield _ended(stages, code, said, limit_s if not in_time else None)


def _of(found: dict[str, object]) -> Finding:
    what, took = str(found["what"]), f"({found['seconds']} s)"
    if "error" in found:
        return Finding(WRONG, what, f"{found['error']} {took}", REMEDIES[what])
    return Finding(FINE, what, f"{found['text']} {took}")


def _ended(stages: list[str], code: int, said: list[str], limit_s: float | None) -> Finding:
    """The trial did not come to its end: of which stage, and how."""
    what = stages[0] if stages else "rollout"
    if limit_s is not None:
        return Finding(WRONG, what, f"no answer within {limit_s:g} s", REMEDIES[what])
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    last = [line.strip() for line in said if line.strip()][-1:]
    return Finding(WRONG, what, f"the trial ended with {how} {''.join(last)[:200]}", REMEDIES[what])
