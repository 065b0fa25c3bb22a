"""Sources to shards. In: what was found, and DIR. Out: DIR/NNNNNN.tar and DIR/index.jsonl.

    1. what is known already, and still as it was, is not made again;
    2. the rest goes to processes of its own, several at a time, each leaving a spool file;
    3. as soon as the next source in order is there, its samples are laid out in shards;
    4. when all are, shards and index take their places.

The result depends on the sources and settings alone: not on the number of workers, not on what was
there before, not on how often the work was stopped.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mmpredict.schema import UserError
from mmpredict.shards.convert import stat_of
from mmpredict.shards.index import Header, Index, SkippedSource, codec_signatures
from mmpredict.shards.known import (
    WORK_NAME,
    Known,
    check_ours,
    from_spool,
    known_sources,
    old_index,
    spool_path,
)
from mmpredict.shards.sandbox import Item, JobLimits, Sandbox, Verdict, WorkerFailed
from mmpredict.shards.settings import Settings, check_same
from mmpredict.shards.spool import read_rows
from mmpredict.shards.stage import Stage, put_in_place, set_aside, write_whole
from mmpredict.tokens import Codecs

CONVERTER = "mmpredict.shards.convert:open_converter"
_SMALL_BYTES = 4 * 1024**2  # sources that are not larger, together, share a process


class Task(Protocol):
    """A source, as far as this file wants to know."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    def item(self) -> Item:
        """As plain JSON, for a worker; "sha256" in it is the digest where that is known."""


@dataclass(frozen=True)
class Work:
    """How sources are made into samples.

    Args:
        target: "module:function" that opens a worker in the sandbox (see Sandbox).
        context: what it is called with; the settings for files.
        workers: processes.
        limits: of each source.
        items_per_job: small sources that one process works on, one after the other: to make a
            process costs more than to read a small file.
        sandbox: where the worker runs; it is started once there is something to do.
    """

    target: str = CONVERTER
    context: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1
    limits: JobLimits = JobLimits()
    items_per_job: int = 16
    sandbox: Callable[..., Sandbox] = Sandbox


@dataclass
class Summary:
    """What came of it."""

    sources: int = 0
    used: int = 0
    converted: int = 0
    unchanged: int = 0
    removed: int = 0
    samples: int = 0
    shards: int = 0
    bytes: int = 0
    bytes_copied: int = 0
    worker_cpu_s: float = 0.0
    tokens: Counter[str] = field(default_factory=Counter)
    skipped: tuple[SkippedSource, ...] = ()
    fingerprint: str = ""

    @property
    def bad_sources(self) -> int:
        """Sources of which something could not be used."""
        return len({skipped.path for skipped in self.skipped})


Progress = Callable[[int, int, str], None]


def prepare(
    tasks: Sequence[Task],
    out: Path,
    settings: Settings,
    codecs: Codecs | None,
    work: Work,
    progress: Progress = lambda done, total, name: None,
) -> Summary:
    """Bring DIR to what the sources and settings say.

    Args:
        tasks: the sources, in order of name.
        out: DIR; made if it is not there.
        settings: decide the bytes.
        codecs: count the tokens.
        work: decides how fast it goes.
        progress: called with sources laid out, all sources and the last one's name.

    Raises:
        UserError: DIR is not ours, is in use, or was made with other settings; the disk is full.
    """
    check_ours(out)
    folder = out / WORK_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            return _prepare(tasks, out, settings, codecs, work, progress)
    except WorkerFailed as error:
        raise UserError(str(error)) from error
    except OSError as error:
        if error.filename is None or str(out) in str(error.filename):
            raise UserError(
                f"cannot write to {out}: {error.strerror or error}; what was made is kept, "
                "make room and run the same command again"
            ) from error
        raise


def _prepare(
    tasks: Sequence[Task],
    out: Path,
    settings: Settings,
    codecs: Codecs | None,
    work: Work,
    progress: Progress,
) -> Summary:
    put_in_place(out)  # where the last run was stopped at the very end
    before = old_index(out)
    _check_settings(out, before, settings)
    set_aside(out / WORK_NAME)
    known = known_sources(out, before)
    _check_other_source(out, known, tasks)
    header = Header(settings.plain(), codec_signatures(codecs))
    run = _Run(tasks, known, Stage(out, header, settings.shard_bytes, before), work, progress)
    run.go()
    return run.summary(before, known)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another `mmpredict prepare` is writing to {folder.parent}; wait for it"
            ) from None
        yield


def _check_settings(out: Path, before: Index | None, settings: Settings) -> None:
    """Hold the settings against those of the last run, finished or not."""
    plain = json.loads(json.dumps(settings.plain()))
    path = out / WORK_NAME / "settings.json"
    if before is not None:
        check_same(before.header.settings, plain, out)
    elif path.exists():
        check_same(json.loads(path.read_bytes()), plain, out)
    write_whole(path, [json.dumps(plain).encode()])


def _check_other_source(out: Path, known: Mapping[str, Known], tasks: Sequence[Task]) -> None:
    names = {task.name for task in tasks}
    if known and names and not names & known.keys():
        raise UserError(
            f"{out} was prepared from other sources: none of its {len(known)} is among the "
            f"{len(names)} that are given now; give another --out, or delete {out} first"
        )


def _grouped(items: list[Item], most: int) -> Iterator[list[Item]]:
    """Neighbours that are small together; large files stand alone."""
    group: list[Item] = []
    room = _SMALL_BYTES
    for item in items:
        size = Path(item["path"]).stat().st_size if os.path.isfile(item.get("path", "")) else 0
        if group and (len(group) == most or size > room):
            yield group
            group, room = [], _SMALL_BYTES
        group.append(item)
        room -= size
    if group:
        yield group


def _holds(known: Known, item: Item) -> bool:
    """Whether a source is plainly as it was when `known` was made of it."""
    if "sha256" in item:
        return item["sha256"] == known.sha256
    return known.stat is not None and known.stat == stat_of(item)


class _Run:
    """The tasks on their way: waiting, in the hands of a worker, made, laid out."""

    def __init__(
        self,
        tasks: Sequence[Task],
        known: Mapping[str, Known],
        stage: Stage,
        work: Work,
        progress: Progress,
    ) -> None:
        self.tasks, self.stage, self.work, self.progress = tasks, stage, work, progress
        self.folder = stage.out / WORK_NAME
        self.known = dict(known)
        self.made: dict[str, Known] = {}
        self.converted: set[str] = set()
        self.worker_cpu_s = 0.0
        self._waiting: deque[list[Item]] = deque()
        self._jobs: dict[int, list[Item]] = {}

    def go(self) -> None:
        """Make what is missing and lay all out, in order."""
        missing = [item for item in map(self._missing, self.tasks) if item is not None]
        self._waiting.extend(_grouped(missing, self.work.items_per_job))
        done = 0
        with self.work.sandbox(
            self.work.target,
            dict(self.work.context),
            workers=self.work.workers,
            limits=self.work.limits,
        ) as sandbox:
            while done < len(self.tasks):
                self._submit(sandbox)
                while done < len(self.tasks) and self.tasks[done].name in self.made:
                    name = self.tasks[done].name
                    self.stage.add(name, self.made.pop(name))
                    done += 1
                    self.progress(done, len(self.tasks), name)
                if sandbox.busy:
                    self._take(*sandbox.next_done())
        self.stage.finish()

    def summary(self, before: Index | None, known: Mapping[str, Known]) -> Summary:
        """What came of it, from the index that stands in DIR now."""
        index = old_index(self.stage.out)
        assert index is not None
        tokens: Counter[str] = Counter()
        for line in self.stage.lines:
            tokens.update(json.loads(line)["tokens"])
        names = {task.name for task in self.tasks}
        return Summary(
            sources=len(self.tasks),
            used=len(index.sources),
            converted=len(self.converted),
            unchanged=len(self.tasks) - len(self.converted),
            removed=len(known.keys() - names) if before is not None else 0,
            samples=len(index.samples),
            shards=len(index.shards),
            bytes=sum(shard.bytes for shard in index.shards),
            bytes_copied=self.stage.bytes_copied,
            worker_cpu_s=self.worker_cpu_s,
            tokens=tokens,
            skipped=index.skipped,
            fingerprint=index.fingerprint,
        )

    def _missing(self, task: Task) -> Item | None:
        """The item for a worker, where it is not clear that what is known still holds."""
        item = task.item()
        for known in (from_spool(self.folder, task.name), self.known.get(task.name)):
            if known is not None and known.final and _holds(known, item):
                self.made[task.name] = known
                return None
        path = spool_path(self.folder, task.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # of an earlier state of the source
        known = self.known.get(task.name)
        if known is not None and known.final:
            item["known"] = known.sha256
        return {**item, "spool": str(path)}

    def _submit(self, sandbox: Sandbox) -> None:
        while self._waiting and sandbox.free > 0:
            items = self._waiting.popleft()
            number = 1 + max(self._jobs, default=-1)
            self._jobs[number] = items
            sandbox.submit(number, list(items))

    def _take(self, number: int, verdict: Verdict) -> None:
        """A job has ended: take what it made, and blame the source at which it failed."""
        items = self._jobs.pop(number)
        was_alone = len(items) == 1
        self.worker_cpu_s += verdict.cpu_s
        if verdict.kind == "disk":
            raise UserError(
                f"no space left for {self.stage.out}; what was made is kept, make room and run "
                "the same command again"
            )
        while items:
            if not self._was_made(items[0], verdict):
                break
            items.pop(0)
        if not items:
            return
        blamed, rest = items[0], items[1:]
        if rest:
            self._waiting.appendleft(rest)
        if not was_alone:  # what came before it in its process may be to blame
            self._waiting.appendleft([blamed])
            return
        skip = SkippedSource(blamed["name"], verdict.kind, verdict.reason, blamed["kind"])
        self.made[blamed["name"]] = Known("", 0, None, [skip], lambda: iter(()))
        self.converted.add(blamed["name"])

    def _was_made(self, item: Item, verdict: Verdict) -> bool:
        name = item["name"]
        rows = read_rows(Path(item["spool"]))
        fresh = rows is not None and rows["name"] == name
        if fresh and rows.get("same"):
            known = self.known[name]
            self.made[name] = Known(
                known.sha256, known.bytes, rows["stat"], known.skipped, known.pieces, known.spool
            )
            return True
        found = from_spool(self.folder, name) if fresh else None
        if found is None:
            if verdict.kind:
                return False
            raise UserError(f"the reader of {name} ended without a word; run again")
        self.made[name] = found
        self.converted.add(name)
        return True
