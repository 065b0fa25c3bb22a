"""What a folder of media holds and what a run would make of it.

In: a folder and a Plan. Out: a FolderSurvey: the surveys of its files, added up.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmpredict.shards.sources import Found, find_sources
from mmpredict.survey.expected import Plan
from mmpredict.survey.source import (
    FileSurvey,
    Measured,
    TextFacts,
    measure,
    survey_source,
    survey_text,
)

KINDS = ("video", "sound", "image", "unreadable")
Progress = Callable[[int, int, str], None]  # (files done, files in all, the next one)


@dataclass(frozen=True)
class Kind:
    """Files of one kind, added up; frames by the stamps of their packets."""

    files: int
    seconds: float
    frames: int
    bytes: int


@dataclass(frozen=True)
class FolderSurvey:
    """All about a folder.

    Args:
        root: the folder.
        found: media files in it.
        kinds: "video", "sound", "image", "unreadable" of the files that were looked at.
        pictures, frame_rates, sounds, codecs: what was seen, and in how many files.
        missing: how many files lack a stream, in words.
        odd: files by what is unusual with them: (path, detail).
        skipped: (path, reason) of files of which nothing can be used.
        lost: (path, reason) of documents that cannot be read, in files of which others can.
        texts_alone: text files that belong to no medium.
        other_files: files of other kinds, by suffix.
        documents: that a run gets.
        tokens: positions by stream.
        steps: batches that all documents and the texts that stand alone fill together.
        read_cpu_s: processor time to read all documents once.
        files: the surveys.
    """

    root: str
    found: int
    kinds: dict[str, Kind]
    pictures: dict[str, int]
    frame_rates: dict[str, int]
    sounds: dict[str, int]
    codecs: dict[str, int]
    missing: dict[str, int]
    odd: dict[str, list[tuple[str, str]]]
    skipped: list[tuple[str, str]]
    lost: list[tuple[str, str]]
    texts_alone: tuple[TextFacts, ...]
    other_files: dict[str, int]
    documents: int
    tokens: dict[str, int]
    steps: float
    read_cpu_s: float
    files: tuple[FileSurvey, ...]


def survey_folder(
    root: str | os.PathLike[str],
    plan: Plan | None = None,
    *,
    decode: bool = False,
    limit: int | None = None,
    progress: Progress | None = None,
) -> FolderSurvey:
    """Look at every media file below a folder, or at every row of a manifest.

    Args:
        root: a folder, searched with its subfolders, or a manifest (.jsonl).
        plan: the run; None for the default encoders.
        decode: decode everything (see `survey_file`).
        limit: look at so many only, spread evenly.
        progress: told before each file.
    """
    plan = plan or Plan()
    findings = find_sources(root, Path(os.devnull))
    media = [source for source in findings.sources if source.kind != "text"]
    looked_at = spread(media, limit)
    files: list[FileSurvey] = []
    measured: dict[Path, Measured | str] = {}
    for number, source in enumerate(looked_at):
        if progress is not None:
            progress(number, len(looked_at), source.name)
        if source.path not in measured:  # the rows of a manifest share files, one after the other
            measured = {source.path: measure(source.path, plan, decode=decode)}
        files.append(survey_source(source, plan, measured[source.path]))
    texts = tuple(
        survey_text(source.path, plan.codecs.text)
        for source in findings.sources
        if source.kind == "text"
    )
    others = texts, dict(findings.left_alone.most_common())
    return add_up(str(root), files, plan, found=len(media), others=others)


def spread(sources: Sequence[Found], limit: int | None) -> list[Found]:
    """At most `limit` of them, evenly."""
    if limit is None or limit >= len(sources):
        return list(sources)
    return [sources[number * len(sources) // limit] for number in range(limit)]


def add_up(
    root: str,
    files: Iterable[FileSurvey],
    plan: Plan,
    *,
    found: int,
    others: tuple[tuple[TextFacts, ...], dict[str, int]] = ((), {}),
) -> FolderSurvey:
    """The sums over some files.

    Args:
        root: what they are called together.
        files: their surveys.
        plan: the run.
        found: how many there are, with those that were not looked at.
        others: text files that stand alone, and numbers of other files by suffix.
    """
    files = tuple(files)
    alone = sum(text.tokens for text in others[0])
    usable = [file for file in files if file.refused is None]
    tokens: Counter[str] = Counter()
    for file in usable:
        tokens.update(file.tokens)
    odd: dict[str, list[tuple[str, str]]] = {}
    for file in files:
        for thing in file.odd:
            odd.setdefault(thing.kind, []).append((file.name, thing.detail))
    return FolderSurvey(
        root,
        found,
        {kind: _kind(files, kind) for kind in KINDS},
        *_seen(files),
        _missing(files, plan),
        odd,
        [(file.name, file.refused) for file in files if file.refused is not None],
        [
            (file.name, f"{lost.start_s:g} to {lost.end_s:g} s: {lost.reason}")
            for file in files
            for lost in file.lost
        ],
        *others,
        sum(file.documents for file in usable),
        dict(tokens),
        (sum(tokens.values()) + alone) / (plan.context_length * plan.rows),
        sum(file.documents * file.read_cpu_s for file in usable),
        files,
    )


def _kind(files: Iterable[FileSurvey], kind: str) -> Kind:
    """Spans are added up; what belongs to a file counts once, however many spans it has."""
    spans = [file for file in files if file.kind == kind]
    kept = {file.path: file for file in spans}.values()
    frames = [f.facts.video.packets for f in kept if f.facts is not None and f.facts.video]
    seconds = sum(f.span_s[1] - f.span_s[0] for f in spans if f.refused is None)
    return Kind(len(kept), seconds, sum(frames), sum(file.bytes for file in kept))


def _seen(
    files: Iterable[FileSurvey],
) -> tuple[dict[str, int], dict[str, int], dict[str, int], dict[str, int]]:
    """Sizes, frame rates, sounds and codecs, the commonest first."""
    pictures: Counter[str] = Counter()
    frame_rates: Counter[str] = Counter()
    sounds: Counter[str] = Counter()
    codecs: Counter[str] = Counter()
    passed: set[str] = set()
    for file in files:
        if file.facts is None or file.path in passed:
            continue
        passed.add(file.path)
        video, audio = file.facts.video, file.facts.audio
        if video is not None:
            pictures[f"{video.width}x{video.height}"] += 1
            if video.fps:
                frame_rates[f"{video.fps:.4g}"] += 1
            codecs[video.codec] += 1
        if audio is not None:
            sounds[f"{audio.sample_rate} Hz {audio.layout}"] += 1
            codecs[audio.codec] += 1
    return tuple(dict(seen.most_common()) for seen in (pictures, frame_rates, sounds, codecs))


def _missing(files: Iterable[FileSurvey], plan: Plan) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for file in files:
        if file.facts is None:
            continue
        if file.kind == "video" and file.facts.audio is None:
            counts["without sound: video"] += 1
        if file.facts.audio is not None and file.facts.audio.silent_share == 1.0:
            counts[f"with a silent track: {file.kind}"] += 1
        if plan.codecs.text is not None and file.text is None:
            counts[f"without text: {file.kind}"] += 1
    return dict(counts)
