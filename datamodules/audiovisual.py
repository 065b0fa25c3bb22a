"""A plain folder of videos and sounds, with text beside them. In: files. Out: windows as documents.

Any of a file's streams may be missing. A text file with the same stem (.srt, .vtt, .json, .jsonl, .txt)
becomes text in time; text without times is spread over its file by the length of its words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from datamodules.base import ClipDataModule, Documents, Loading, Skipped, Split
from mmpredict.media import (
    Limits,
    MediaError,
    MediaInfo,
    list_media,
    probe,
    read_clip,
    read_text,
    sidecar_text,
)
from mmpredict.schema import Batch, Clip, TextPiece
from mmpredict.tokens import MelChunks, Patches, TextTokens

SHORTEST_WINDOW_S = 0.25  # a remainder at the end of a file that is shorter is left out
HASHED_BYTES = 1 << 16  # of the head and of the tail; enough to tell files apart, quick for large ones


@dataclass(frozen=True)
class Window:
    """A stretch of a file that becomes one document."""

    path: Path
    start_s: float
    duration_s: float


class AudioVisual(ClipDataModule):
    """Videos with sound, sounds alone, silent videos: every media file below a folder.

    Files are split by a hash of their content, so that a copy of a training file is never a test file and
    a growing folder keeps its split. With fewer than three files, each file's last windows are held out.

    Args:
        root: folder (searched with its subfolders), or one file.
        audio, video, text: encoders; null leaves the stream out.
        clip_seconds: length of a document; a file is cut into as many as it holds.
        held_out_share: share of the files for validation, and as much again for testing.
        limits: what a file may cost; larger ones are skipped by name.
        loading: how documents become batches.
        seed: of the order of the training documents.
    """

    def __init__(  # noqa: PLR0913 - the knobs of a recipe
        self,
        root: str,
        audio: MelChunks | None = MelChunks(),
        video: Patches | None = Patches(),
        text: TextTokens | None = TextTokens(),
        *,
        clip_seconds: float = 2.0,
        held_out_share: float = 0.1,
        limits: Limits = Limits(),
        loading: Loading | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(audio=audio, video=video, text=text, loading=loading, seed=seed)
        if clip_seconds < SHORTEST_WINDOW_S or not 0 < held_out_share < 0.5:
            raise ValueError(
                f"data.clip_seconds={clip_seconds:g} must be at least {SHORTEST_WINDOW_S}, and "
                f"data.held_out_share={held_out_share:g} between 0 and 0.5"
            )
        self.root, self.clip_seconds, self.held_out_share = Path(root), clip_seconds, held_out_share
        self.limits = limits
        self._check_context()
        self._windows: dict[Split, list[Window]] | None = None

    def _check_context(self) -> None:
        positions = sum(
            round(self.clip_seconds / spec.period_s) * spec.positions_per_block
            for spec in self.layout.streams
            if spec.period_s
        )
        if positions > self.loading.context_length:
            raise ValueError(
                f"{self.clip_seconds:g} s of frames and sound are {positions} positions, "
                f"data.loading.context_length is {self.loading.context_length}; raise it, or lower "
                "data.clip_seconds, video.fps or video.size, or take larger patches"
            )

    def setup(self, stage: str | None = None) -> None:
        """Look at every file's header, once."""
        if self._windows is None:
            self._windows = self._split(self._usable_files())
        super().setup(stage)

    def _usable_files(self) -> dict[Path, MediaInfo]:
        files = list_media(self.root)
        if not files:
            raise ValueError(
                f"data.root={self.root} holds no video or sound file (.mp4, .mkv, .webm, .wav, .mp3, "
                "...); give the folder that holds them"
            )
        self.skip_log.num_sources = len(files)
        usable: dict[Path, MediaInfo] = {}
        for path in files:
            try:
                info = probe(path, self.limits)
            except MediaError as error:
                self.skip_log.add(Skipped(error.path, error.reason))
                continue
            if (info.has_video and self.codecs.video) or (info.has_audio and self.codecs.audio):
                usable[path] = info
            else:
                self.skip_log.add(Skipped(str(path), "has no stream that the recipe uses"))
        if not usable:
            self.skip_log.check()
        return usable

    def _split(self, files: dict[Path, MediaInfo]) -> dict[Split, list[Window]]:
        windows = {path: self._cut(path, info.duration_s) for path, info in files.items()}
        split: dict[Split, list[Window]] = {"train": [], "val": [], "test": []}
        if len(files) < 3:
            for cut in windows.values():
                held_out = max(1, round(self.held_out_share * len(cut)))
                first = max(1, len(cut) - 2 * held_out)
                split["train"] += cut[:first]
                split["val"] += cut[first : first + held_out] or cut[-1:]
                split["test"] += cut[first + held_out :] or cut[-1:]
            return split
        place = sorted(files, key=content_hash)
        count = max(1, round(self.held_out_share * len(files)))
        for rank, path in enumerate(place):
            name = "test" if rank < count else "val" if rank < 2 * count else "train"
            split[name] += windows[path]
        return {name: sorted(cut, key=lambda w: (w.path, w.start_s)) for name, cut in split.items()}

    def _cut(self, path: Path, duration_s: float) -> list[Window]:
        whole = int(duration_s / self.clip_seconds + 1e-6)
        rest = duration_s - whole * self.clip_seconds
        lengths = [self.clip_seconds] * whole
        if rest >= SHORTEST_WINDOW_S or not lengths:
            lengths.append(max(rest, SHORTEST_WINDOW_S))
        return [Window(path, k * self.clip_seconds, length) for k, length in enumerate(lengths)]

    def clip(self, window: Window) -> Clip:
        """Read a window as the run's streams see it; raises MediaError."""
        video, audio = self.codecs.video, self.codecs.audio
        clip = read_clip(
            window.path,
            start_s=window.start_s,
            duration_s=window.duration_s,
            fps=video.fps if video else None,
            size=video.height_width if video else None,
            sample_rate=audio.sample_rate if audio else None,
            channels=audio.channels if audio else None,
            frames=video is not None,
            sound=audio is not None,
            limits=self.limits,
        )
        beside = sidecar_text(window.path) if self.codecs.text else None
        if beside is None:
            return clip
        length_s = probe(window.path, self.limits).duration_s
        end_s = window.start_s + window.duration_s
        return replace(clip, texts=said_between(read_text(beside), length_s, window.start_s, end_s))

    def documents(self, split: Split) -> Documents:
        if self._windows is None:
            raise RuntimeError("call setup() first")
        return _Windows(self, self._windows[split])

    def corpus(self) -> Iterable[str]:
        assert self._windows is not None
        for path in sorted({window.path for window in self._windows["train"]}):
            beside = sidecar_text(path)
            if beside is not None:
                yield from (piece.text for piece in read_text(beside))


class _Windows:
    def __init__(self, module: AudioVisual, windows: list[Window]) -> None:
        self.module, self.windows = module, windows

    def __len__(self) -> int:
        return len(self.windows)

    def document(self, epoch: int, index: int) -> Batch | Skipped:
        window = self.windows[index]
        try:
            row = self.module.encode(self.module.clip(window))
        except MediaError as error:
            return Skipped(error.path, error.reason)
        if row is None:
            where = f"{window.start_s:g} to {window.start_s + window.duration_s:g} s"
            return Skipped(str(window.path), f"has no frame, sound or text from {where}")
        return row


def content_hash(path: Path) -> str:
    """sha256 of a file's size, head and tail."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HASHED_BYTES)
        file.seek(max(0, size - HASHED_BYTES))
        tail = file.read(HASHED_BYTES)
    return hashlib.sha256(b"%d:" % size + head + tail).hexdigest()


def said_between(
    pieces: Iterable[TextPiece], length_s: float, start_s: float, end_s: float
) -> tuple[TextPiece, ...]:
    """The words that end in (start_s, end_s], on a clock that starts at start_s.

    Words share their piece's time in proportion to their letters; untimed pieces share the file's
    `length_s` in the same way.
    """
    pieces = list(pieces)
    untimed = [piece for piece in pieces if piece.start_s is None]
    letters = sum(len(piece.text) + 1 for piece in untimed)
    passed = 0
    found = []
    for piece in pieces:
        if piece.start_s is None:
            first = length_s * passed / letters
            passed += len(piece.text) + 1
            piece = TextPiece(piece.text, first, length_s * passed / letters)
        said = [w for w in _words(piece) if start_s < w.end_s <= end_s]
        if said:
            begin = max(0.0, said[0].start_s - start_s)
            text = " ".join(word.text for word in said)
            found.append(TextPiece(text, begin, said[-1].end_s - start_s))
    return tuple(found)


def _words(piece: TextPiece) -> list[TextPiece]:
    words = piece.text.split()
    letters = sum(len(word) + 1 for word in words)
    span = piece.end_s - piece.start_s
    timed, passed = [], 0
    for word in words:
        begin = piece.start_s + span * passed / letters
        passed += len(word) + 1
        timed.append(TextPiece(word, begin, piece.start_s + span * passed / letters))
    return timed
