"""A job may crash, hang, eat memory or shout: it ends alone, with the reason, and leaves nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmpredict.shards.index import read_index
from mmpredict.shards.sandbox import JobLimits, Sandbox, WorkerFailed
from tests.shards.prepared import RAW, files_of, prepared, wav

JOBS = "tests.shards.sandbox_jobs"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    limits = JobLimits(memory_mb=256, timeout_s=1.5)
    with Sandbox(f"{JOBS}:open_worker", {}, workers=3, limits=limits) as sandbox:
        result(sandbox, tmp_path_factory.mktemp("first"), "well")
        yield sandbox


def result(sandbox, tmp_path, what):
    sandbox.submit(1, [{"do": what, "mark": str(tmp_path / "mark")}])
    number, verdict = sandbox.next_done()
    assert number == 1
    return verdict


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("well", "", ""),
        ("print", "", ""),
        ("long", "", ""),  # longer than the limit in all, but it says that it gets on
        ("sleep", "timeout", "no progress for 1.5 s"),
        ("spin", "timeout", "no progress for 1.5 s"),
        ("eat", "memory", "more than 256 MiB"),
        ("crash", "crash", "SIGSEGV"),
        ("raise", "crash", "code"),
        ("fill", "disk", "no space"),
    ],
)
def test_how_a_job_ends_is_told(sandbox, tmp_path, what, kind, words):
    begun = time.monotonic()
    verdict = result(sandbox, tmp_path, what)
    assert verdict.kind == kind and words in verdict.reason
    assert time.monotonic() - begun < 5
    assert not alive(int((tmp_path / "mark").read_text()))
    assert result(sandbox, tmp_path, "well").kind == ""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def gone(pid):
    end = time.monotonic() + 20
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def wait_for(path):
    end = time.monotonic() + 120
    while not path.exists() or not path.read_text():
        assert time.monotonic() < end, f"{path} does not appear"
        time.sleep(0.02)
    return int(path.read_text())


def test_jobs_run_side_by_side(sandbox, tmp_path):
    for number in range(3):
        sandbox.submit(number, [{"do": "sleep", "mark": str(tmp_path / str(number))}])
    begun = time.monotonic()
    assert sandbox.free == 0
    assert {sandbox.next_done()[0] for _ in range(3)} == {0, 1, 2}
    assert time.monotonic() - begun < 4.5 and not sandbox.busy


def test_each_item_of_a_job_has_its_own_time(sandbox, tmp_path):
    items = [{"do": "nap", "mark": str(tmp_path / str(n))} for n in range(3)]
    sandbox.submit(1, items)
    assert sandbox.next_done()[1].kind == ""  # together they took longer than the limit
    items = [{"do": do, "mark": str(tmp_path / do)} for do in ("well", "sleep", "print")]
    sandbox.submit(2, items)
    assert sandbox.next_done()[1].kind == "timeout"
    assert (tmp_path / "sleep").exists() and not (tmp_path / "print").exists()


def test_a_helper_that_is_killed_is_replaced_and_its_jobs_done(sandbox, tmp_path):
    result(sandbox, tmp_path, "well")
    (tmp_path / "mark").unlink()
    sandbox.submit(1, [{"do": "sleep", "mark": str(tmp_path / "mark")}])
    fork = wait_for(tmp_path / "mark")
    os.kill(sandbox._helper.pid, signal.SIGKILL)
    assert gone(fork)
    assert sandbox.next_done()[1].kind == "timeout"  # it was started anew


def test_closing_ends_what_is_under_way(tmp_path):
    with Sandbox(f"{JOBS}:open_worker", {}, workers=1, limits=JobLimits(256, 60.0)) as sandbox:
        sandbox.submit(1, [{"do": "spin", "mark": str(tmp_path / "mark")}])
        fork, helper = wait_for(tmp_path / "mark"), sandbox._helper.pid
    assert gone(fork) and gone(helper)


def test_nobody_is_left_when_the_parent_is_killed(tmp_path):
    script = (
        f"import sys; from mmpredict.shards.sandbox import *\n"
        f"s = Sandbox({JOBS + ':open_worker'!r}, {{}}, workers=1, limits=JobLimits(256, 60.0))\n"
        f"s.submit(1, [{{'do': 'spin', 'mark': {str(tmp_path / 'mark')!r}}}])\n"
        f"open({str(tmp_path / 'helper')!r}, 'w').write(str(s._helper.pid))\n"
        f"s.next_done()"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    fork, helper = wait_for(tmp_path / "mark"), wait_for(tmp_path / "helper")
    parent.kill()
    parent.wait()
    assert gone(fork) and gone(helper)


def test_a_worker_that_cannot_be_opened_says_why(tmp_path):
    with Sandbox(f"{JOBS}:open_worker", {"broken": True}, workers=1) as sandbox:
        sandbox.submit(1, [{"do": "well", "mark": str(tmp_path / "mark")}])
        with pytest.raises(WorkerFailed, match="no such recipe"):
            sandbox.next_done()


def test_preparing_survives_readers_that_hang_crash_and_eat(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    for number, name in enumerate(("a", "crashes", "hangs", "hungry", "z")):
        wav(root / f"{name}.wav", 0.5, number)
    work = {
        "target": f"{JOBS}:open_hanging_reader",
        "sandbox": Sandbox,
        "limits": JobLimits(memory_mb=256, timeout_s=3.0),
    }
    summary = prepared(root, tmp_path / "out", **work)
    kinds = {skip.path: skip.kind for skip in summary.skipped}
    assert kinds == {"crashes.wav": "crash", "hangs.wav": "timeout", "hungry.wav": "memory"}
    assert [s.path for s in read_index(tmp_path / "out").sources] == ["a.wav", "z.wav"]
    again = prepared(root, tmp_path / "out")  # a better day: nothing else is made again
    assert again.converted == 3 and not again.skipped
    prepared(root, tmp_path / "fresh", RAW)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")
