"""Shards that `mmpredict prepare` made, here or behind a URL. In: their index. Out: documents.

Files that were kept as they are (form "keep") are cut into windows as a folder of files is; clips
that were prepared as frames and sound, and passages of text (forms "encoded" and "raw"), are one
document a sample, read at the cost of its bytes. Every member's sha256 is checked at each read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.base import Loading, Split
from datamodules.feed.documents import Documents, Skipped
from datamodules.feed.draws import Joined
from datamodules.files.samples import STREAMS, Kinds, SampleDocuments
from datamodules.files.stored import SPLITS, UNUSED, Look, Stored, StoredModule, Windows, split_of
from mmpredict.media import IMAGE_SUFFIXES, Limits, MediaBytes, MediaError, MediaInfo
from mmpredict.schema import TextPiece, UserError
from mmpredict.shards import Remote, Store
from mmpredict.tokens import MelChunks, Patches, TextTokens, Vectors


class Shards(StoredModule):
    """Prepared shards.

    A sample is held out if it was when the shards were made; where nothing was decided then, by the
    sha256 of the file that it came from (see `split_by_kind`): all samples of a file are in one
    split. With fewer than three different files, each file's last documents are held out.

    Args:
        root: the folder that `mmpredict prepare SOURCE --out FOLDER` made, or the http(s) URL of
            one.
        audio, video, text: encoders; null leaves the stream out.
        series: encoders of further streams that were prepared (actions, states), by name.
        clip_seconds: length of a document of files that were kept as they are; null for whole
            files. Samples with frames and sound have the length that they were prepared with.
        random_start, run_seconds: see `datamodules.AudioVisual`; for kept files.
        held_out_share: expected share of the sources for validation, and as much again for testing.
        check: compare every member's sha256 with the index at each read.
        remote: how URLs are reached: schemes, time-out, attempts.
        limits: what a kept file may cost.
        loading: how documents become batches.
        seed: of the order of the training documents, and of `random_start`.
    """

    def __init__(  # noqa: PLR0913 - the knobs of a recipe
        self,
        root: str,
        audio: MelChunks | None = MelChunks(),
        video: Patches | None = Patches(),
        text: TextTokens | None = TextTokens(),
        *,
        series: Mapping[str, Vectors] | None = None,
        clip_seconds: float | None = 2.0,
        random_start: bool = False,
        run_seconds: float = 64.0,
        held_out_share: float = 0.1,
        check: bool = True,
        remote: Remote = Remote(),
        limits: Limits = Limits(),
        loading: Loading | None = None,
        seed: int = 0,
    ) -> None:
        windows = Windows(clip_seconds, random_start, run_seconds, held_out_share, limits)
        super().__init__(
            audio=audio,
            video=video,
            text=text,
            windows=windows,
            loading=loading,
            seed=seed,
            series=series,
        )
        self.root = root
        self._check, self._remote = check, remote
        self._store: Store | None = None
        self._kept: list[tuple[_Row, Split | None]] = []
        self._samples: dict[Split, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def store(self) -> Store:
        """The samples; there after `setup`."""
        if self._store is None:
            raise RuntimeError("call setup() first")
        return self._store

    def setup(self, stage: str | None = None) -> None:
        """Read the index, once."""
        if self._store is None:
            limit = self.windows.limits.max_bytes
            self._store = Store(self.root, remote=self._remote, check=self._check, max_bytes=limit)
            if not len(self._store):
                raise UserError(f"data.root={self.root} holds no sample; prepare the data again")
            self._say_what_was_left_out()
            self._divide()
        super().setup(stage)

    def _say_what_was_left_out(self) -> None:
        skipped = self.store.index.skipped
        if skipped and self._place()[0] == 0:
            print(
                f"note: {len(skipped)} sources were left out when {self.root} was prepared; "
                "`mmpredict inspect` lists them"
            )

    def fingerprint(self) -> dict[str, str]:
        """The sha256 of every shard, as the index has it."""
        return {shard.name: shard.sha256 for shard in self.store.index.shards}

    def _divide(self) -> None:
        """Give every usable sample its split."""
        rows, sources = self._usable(), self.store.index.sources
        names = split_of(
            [row.split for row in rows],
            [sources[row.source].sha256 for row in rows],
            [row.kind for row in rows],
            self.windows.held_out_share,
        )
        splits = names or [None] * len(rows)
        self._kept = [(row, name) for row, name in zip(rows, splits, strict=True) if row.kept]
        if not self._kept:
            self._sources = {name: [] for name in SPLITS}  # there is nothing to cut into windows
        made = [(row, name) for row, name in zip(rows, splits, strict=True) if not row.kept]
        if names is None:
            chosen = _last_of_each([row.source for row, _ in made], self.windows.held_out_share)
        else:
            chosen = {s: [i for i, (_, name) in enumerate(made) if name == s] for s in SPLITS}
        numbers = np.array([row.number for row, _ in made], np.int64)
        counts = np.array([row.counts for row, _ in made], np.int32).reshape(-1, len(STREAMS))
        self._samples = {split: (numbers[p], counts[p]) for split, p in chosen.items()}

    def _usable(self) -> list[_Row]:
        """The samples that have a stream of the run, checked to be what it can read."""
        store, codecs = self.store, self.codecs
        streams = [name for name in STREAMS if getattr(codecs, name) is not None]
        found, rows, longest_s = Kinds({}, {}), [], 0.0
        samples = store.index.samples
        for number in range(len(samples)):
            plain = samples.plain(number)  # type: ignore[attr-defined]  # there may be millions
            name = f"{store.index.shards[plain['shard']].name}!{plain['key']}"
            have = [stream for stream in streams if stream in plain["streams"]]
            have += [n for n in codecs.series if n in plain["streams"].get("series", {})]
            if not have:
                self.skip_log.note(Skipped(name, UNUSED, kind="empty"))
                continue
            kept = plain["form"] == "keep"
            if not kept:
                found.add(name, plain["streams"])
                longest_s = max(longest_s, plain["duration_s"])
            kind = "+".join(stream for stream in have if stream != "text") or "text"
            counts = tuple(plain["tokens"].get(stream, 0) for stream in STREAMS)
            rows.append(_Row(number, kept, plain["split"], plain["source"], kind, counts))
        self.skip_log.num_sources = len(store)
        self.skip_log.check()
        found.check(codecs)
        if longest_s:
            self.check_context(longest_s)
            self._say_what_has_no_say(longest_s)
        return rows

    def _say_what_has_no_say(self, longest_s: float) -> None:
        windows = self.windows
        other = windows.clip_seconds is not None and abs(windows.clip_seconds - longest_s) > 0.1
        if (other or windows.random_start) and self._place()[0] == 0:
            print(
                f"note: samples of {self.root} were prepared as clips, the longest with "
                f"{longest_s:g} s; for them data.clip_seconds and data.random_start have no say"
            )

    def look(self) -> Sequence[Look | Skipped]:
        sources, samples = self.store.index.sources, self.store.index.samples
        return [
            Look(
                _info(self.store, row.number),
                _Kept(self.store, row.number),
                sources[row.source].sha256,
                "text" in samples[row.number].streams,
                name,
            )
            for row, name in self._kept
        ]

    def decide(self, looks: Sequence[Look], recordings: Sequence[Stored]) -> list[Split] | None:
        names = [look.split for look in looks if look.split is not None]
        return names if len(names) == len(looks) else None

    def documents(self, split: Split) -> Documents:
        numbers, counts = self._samples[split] if self._samples else ((), None)
        if not len(numbers):
            return super().documents(split)
        prepared = SampleDocuments(self, self.codecs, self.store, numbers, counts)
        return Joined([super().documents(split), prepared]) if self._kept else prepared

    def corpus(self) -> Iterable[str]:
        yield from super().corpus()
        for number in self._samples["train"][0].tolist():
            try:
                pieces = self.store.texts(self.store.index.samples[number])
            except MediaError:
                continue  # its document will be skipped by name
            yield from (piece.text for piece in pieces)


class _Row(NamedTuple):
    """A usable sample: its number, whether it is a file as it was, its split if it has one, the
    number of its source, its streams, and how many tokens it has of each of STREAMS."""

    number: int
    kept: bool
    split: Split | None
    source: int
    kind: str
    counts: tuple[int, ...]


@dataclass(frozen=True)
class _Kept:
    """A sample of the form "keep"."""

    store: Store
    number: int

    def media(self) -> MediaBytes:
        return self.store.file(self.store.index.samples[self.number])

    def texts(self) -> tuple[TextPiece, ...]:
        return self.store.texts(self.store.index.samples[self.number])


def _info(store: Store, number: int) -> MediaInfo:
    """The header of a kept file, as the index has it."""
    sample = store.index.samples[number]
    suffix = store.file_suffix(sample)
    video, audio = sample.streams.get("video"), sample.streams.get("audio")
    return MediaInfo(
        Path(store.name(sample, suffix or "json")),
        sample.duration_s,
        video is not None,
        audio is not None,
        width=video["width"] if video else 0,
        height=video["height"] if video else 0,
        fps=video["fps"] if video else 0.0,
        sample_rate=audio["sample_rate"] if audio else 0,
        channels=audio["channels"] if audio else 0,
        still=f".{suffix}" in IMAGE_SUFFIXES,
    )


def _last_of_each(sources: Sequence[int], share: float) -> dict[Split, list[int]]:
    """Of the samples of each source the last for "val" and "test"; of a single one all three."""
    of_source: dict[int, list[int]] = {}
    for place, source in enumerate(sources):
        of_source.setdefault(source, []).append(place)
    split: dict[Split, list[int]] = {name: [] for name in SPLITS}
    for places in of_source.values():
        held_out = max(1, round(share * len(places)))
        first = max(1, len(places) - 2 * held_out)
        split["train"] += places[:first]
        split["val"] += places[first : first + held_out] or places[-1:]
        split["test"] += places[first + held_out :] or places[-1:]
    return split
