"""Recordings that lie inside of something else: a shard, a tar, a table. In: where each one lies.
Out: windows as documents, cut and read as those of a folder are.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from datamodules.base import ClipDataModule, Loading, Split
from datamodules.feed.documents import Documents, Skipped
from datamodules.feed.split import split_by_kind
from datamodules.files.finding import Wanted
from datamodules.files.recordings import Recording, Source, hold_out_last
from datamodules.files.window_documents import WindowDocuments
from mmpredict.media import Limits, MediaBytes, MediaError, MediaInfo
from mmpredict.media.cutting import SHORTEST_WINDOW_S, Cut
from mmpredict.media.speech import mended
from mmpredict.schema import TextPiece
from mmpredict.tokens import MelChunks, Patches, TextTokens, Vectors

UNUSED = "has no stream that the recipe uses"
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Holder(Protocol):
    """Where a recording lies; both methods raise MediaError with the recording's name."""

    def media(self) -> MediaBytes | Path:
        """The file."""

    def texts(self) -> tuple[TextPiece, ...]:
        """What is said in it, on its clock."""


@dataclass(frozen=True)
class Stored(Recording):
    """A recording that somebody holds.

    Args:
        holder: gives its bytes and its text.
        speaks: whether it has text that the run uses.
        whole: one document of the whole recording; its text keeps its times, or has none.
    """

    holder: Holder | None = None
    speaks: bool = False
    whole: bool = False

    @property
    def is_image(self) -> bool:
        """One document, whose text stands as it is."""
        return self.whole or self.info.still or not (self.info.has_video or self.info.has_audio)

    def medium(self) -> MediaBytes | Path:
        assert self.holder is not None
        return self.holder.media()

    def pieces(self) -> tuple[TextPiece, ...]:
        if not self.speaks or self.holder is None:
            return ()
        texts = self.holder.texts()
        if self.whole:
            return tuple(replace(piece, text=mended(piece.text)) for piece in texts)
        return Recording.pieces(replace(self, texts=texts))


@dataclass(frozen=True)
class Look:
    """What a recording turned out to be at the first look.

    Args:
        info: its header; a text alone has neither frames nor sound.
        holder: where it lies.
        digest: hash in hex of what decides its split.
        has_text: whether there is text for it.
        split: that somebody decided already.
    """

    info: MediaInfo
    holder: Holder
    digest: str
    has_text: bool = False
    split: Split | None = None


@dataclass(frozen=True)
class Windows:
    """How recordings fall into documents; see the datamodules for what each setting does."""

    clip_seconds: float | None
    random_start: bool
    run_seconds: float
    held_out_share: float
    limits: Limits

    def __post_init__(self) -> None:
        seconds = self.clip_seconds
        if seconds is not None and not SHORTEST_WINDOW_S <= seconds < math.inf:
            raise ValueError(
                f"data.clip_seconds={seconds:g} must be at least {SHORTEST_WINDOW_S}, or null for "
                "whole recordings"
            )
        if not 0 < self.held_out_share < 0.5:
            raise ValueError(
                f"data.held_out_share={self.held_out_share:g} must lie between 0 and 0.5"
            )
        if not 0 <= self.run_seconds < math.inf:
            raise ValueError(f"data.run_seconds={self.run_seconds:g} must be 0 or more")


class StoredModule(ClipDataModule):
    """Base of the datamodules over stored recordings; a subclass looks at what there is.

    Args:
        audio, video, text: encoders; None leaves the stream out.
        windows: how recordings fall into documents.
        loading: how documents become batches.
        seed: of the order of the training documents, and of `random_start`.
        series: encoders of further continuous streams, by name.
    """

    def __init__(  # noqa: PLR0913 - hands the knobs of the recipes on
        self,
        *,
        audio: MelChunks | None,
        video: Patches | None,
        text: TextTokens | None,
        windows: Windows,
        loading: Loading | None,
        seed: int,
        series: Mapping[str, Vectors] | None = None,
    ) -> None:
        super().__init__(
            audio=audio, video=video, text=text, loading=loading, seed=seed, series=series
        )
        self.windows = windows
        self._sources: dict[Split, list[Source]] | None = None

    @property
    def clip_seconds(self) -> float:
        """Length of a window; of whole recordings, the longest that is allowed."""
        return self.windows.clip_seconds or self.windows.limits.max_duration_s

    @property
    def run_seconds(self) -> float:
        return self.windows.run_seconds

    @property
    def wanted(self) -> Wanted:
        """What the recipe can use of a recording."""
        codecs = self.codecs
        return Wanted(
            video=codecs.video is not None,
            audio=codecs.audio is not None,
            text=codecs.text is not None,
            clip_seconds=self.clip_seconds,
            passage_bytes=0,
            limits=self.windows.limits,
        )

    @abstractmethod
    def look(self) -> Sequence[Look | Skipped]:
        """What there is; called once, by `setup`."""

    def setup(self, stage: str | None = None) -> None:
        """Look at everything, once."""
        if self._sources is None:
            if self.windows.clip_seconds is not None:
                self.check_context(self.clip_seconds)
            self._sources = self._divided(self.look())
        super().setup(stage)

    def _divided(self, looks: Sequence[Look | Skipped]) -> dict[Split, list[Source]]:
        usable = []
        for found in looks:
            if isinstance(found, Skipped):
                self.skip_log.note(found)
            elif any(self.wanted.of(found.info)) or (self.wanted.text and found.has_text):
                usable.append(found)
            else:
                self.skip_log.note(Skipped(str(found.info.path), UNUSED, kind="empty"))
        self.skip_log.num_sources = self.skip_log.num_sources or len(looks)
        self.skip_log.check()
        recordings = [self._recording(found) for found in usable]
        if not recordings:
            raise ValueError(
                f"{type(self).__name__} finds nothing with a stream of the recipe "
                f"({', '.join(spec.name for spec in self.layout.streams)}); give other data, or a "
                "recipe with their streams"
            )
        names = self.decide(usable, recordings)
        if names is None:
            return hold_out_last(recordings, self.windows.held_out_share)
        split: dict[Split, list[Source]] = {name: [] for name in SPLITS}
        for name, recording in zip(names, recordings, strict=True):
            split[name].append(recording)
        return split

    def decide(self, looks: Sequence[Look], recordings: Sequence[Stored]) -> list[Split] | None:
        """The split of each recording; None holds the last documents of each out."""
        return split_of(
            [look.split for look in looks],
            [look.digest for look in looks],
            [self.wanted.kind(recording) for recording in recordings],
            self.windows.held_out_share,
        )

    def _recording(self, found: Look) -> Stored:
        info = found.info
        length_s = info.duration_s
        whole = self.windows.clip_seconds is None
        return Stored(
            info,
            Cut(0.0, 0.0 if whole else length_s, self.clip_seconds),
            text_span_s=(0.0, length_s),
            holder=found.holder,
            speaks=found.has_text and self.wanted.text,
            whole=whole,
        )

    def documents(self, split: Split) -> Documents:
        if self._sources is None:
            raise RuntimeError("call setup() first")
        moves = self.windows.random_start and split == "train"
        return WindowDocuments(self, self._sources[split], moves)

    def corpus(self) -> Iterable[str]:
        assert self._sources is not None
        for source in self._sources["train"]:
            assert isinstance(source, Recording)
            try:
                pieces = source.pieces()
            except MediaError:
                continue  # its documents will be skipped by name
            for window in source.cut if pieces else ():
                said = pieces if source.is_image else window.said(pieces)
                yield from (piece.text for piece in said)


def split_of(
    stored: Sequence[Split | None], digests: Sequence[str], kinds: Sequence[str], share: float
) -> list[Split] | None:
    """The split of each recording: the one it came with, or else by the hash of its content.

    Where the splits that came lack "val" or "test", these are held out from what would train. None
    where nothing came and there are fewer than three different contents.
    """
    missing = {"val", "test"} - set(stored)
    open_ = [i for i, name in enumerate(stored) if name is None or (missing and name == "train")]
    own = [digests[i] for i in open_]
    if not missing and None not in stored:
        return list(stored)  # type: ignore[arg-type]
    names = list(stored)
    if len(set(own)) >= 3:
        drawn = split_by_kind([kinds[i] for i in open_], own, share)
    elif all(name is None for name in stored):
        return None
    else:
        drawn = ["train"] * len(own)
    for i, name in zip(open_, drawn, strict=True):
        names[i] = name if name in missing or stored[i] is None else "train"
    return names  # type: ignore[return-value]
