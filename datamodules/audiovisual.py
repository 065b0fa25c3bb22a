"""A plain folder of videos and sounds, with text beside them. In: files. Out: windows as documents.

Any of a file's streams may be missing. A text file with the same stem (.srt, .vtt, .json, .jsonl,
.txt) becomes text in time; text without times is spread over its file by the length of its words.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from datamodules.base import ClipDataModule, Loading, Split, mended, split_by_hash
from datamodules.documents import Documents, Skipped
from mmpredict.media import (
    TEXT_SUFFIXES,
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
HASHED_BYTES = 1 << 16  # of the head and of the tail; tells files apart, quick for large ones
NOTHING = "nothing to read"  # how the reader says that a span lies behind the end


@dataclass(frozen=True)
class Window:
    """A stretch of a file that becomes one document.

    Args:
        info: the file's header.
        start_s, duration_s: the stretch.
        is_last: of its file.
        beside: the file with its text.
    """

    info: MediaInfo
    start_s: float
    duration_s: float
    is_last: bool
    beside: Path | None = None

    @property
    def path(self) -> Path:
        return self.info.path

    def said(self, pieces: Iterable[TextPiece]) -> tuple[TextPiece, ...]:
        """What of the file's text is said in this window."""
        # A cue may last a little longer than its file, and a short remainder has no window.
        end_s = math.inf if self.is_last else self.start_s + self.duration_s
        return said_between(pieces, self.info.duration_s, self.start_s, end_s)


class AudioVisual(ClipDataModule):
    """Videos with sound, sounds alone, silent videos: every media file below a folder.

    Files are split by a hash of their content (see `split_by_hash`): neither a new name nor a copy
    changes a file's split, and as a folder grows no training file is ever held out. With fewer than
    three different files, each file's last windows are held out; a file of one window, or the last
    of two, then stands in more than one split.

    Args:
        root: folder (searched with its subfolders), or one file.
        audio, video, text: encoders; null leaves the stream out.
        clip_seconds: length of a document; a file is cut into as many as it holds.
        held_out_share: expected share of the files for validation, and as much again for testing.
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
        if not SHORTEST_WINDOW_S <= clip_seconds < math.inf or not 0 < held_out_share < 0.5:
            raise ValueError(
                f"data.clip_seconds={clip_seconds:g} must be at least {SHORTEST_WINDOW_S}, and "
                f"data.held_out_share={held_out_share:g} between 0 and 0.5"
            )
        self.root, self.clip_seconds = Path(root).expanduser(), clip_seconds
        self.held_out_share, self.limits = held_out_share, limits
        self._windows: dict[Split, list[Window]] | None = None

    def setup(self, stage: str | None = None) -> None:
        """Look at every file's header, once."""
        self.check_context(self.clip_seconds)
        if self._windows is None:
            self._windows = self._split(self._usable_files())
        super().setup(stage)

    def _usable_files(self) -> dict[MediaInfo, Path | None]:
        """Headers of the files that have a stream of the run, each with its text file."""
        files = list_media(self.root) if self.root.exists() else []
        if not files:
            lack = "holds no video or sound file (.mp4, .mkv, .webm, .wav, .mp3, ...)"
            raise ValueError(
                f"data.root={self.root} {lack if self.root.exists() else 'does not exist'}; "
                "give the folder that holds your files"
            )
        self.skip_log.num_sources = len(files)
        usable: dict[MediaInfo, Path | None] = {}
        with_text = {f for f in {path.parent for path in files} if self.codecs.text and _texts(f)}
        for path in files:
            try:
                info = probe(path, self.limits)
            except MediaError as error:
                self.skip_log.note(Skipped(error.path, error.reason))
                continue
            beside = sidecar_text(path) if path.parent in with_text else None
            if any(self._wanted(info)) or beside is not None:
                usable[info] = beside
            else:
                self.skip_log.note(Skipped(str(path), "has no stream that the recipe uses"))
        self.skip_log.check()
        return usable

    def _wanted(self, info: MediaInfo) -> tuple[bool, bool]:
        """Whether frames and sound are to be read."""
        video, audio = self.codecs.video is not None, self.codecs.audio is not None
        return info.has_video and video, info.has_audio and audio

    def _split(self, files: dict[MediaInfo, Path | None]) -> dict[Split, list[Window]]:
        split: dict[Split, list[Window]] = {"train": [], "val": [], "test": []}
        windows = [self._cut(info, beside) for info, beside in files.items()]
        hashes = [content_hash(info.path) for info in files]
        if len(set(hashes)) >= 3:
            for name, cut in zip(split_by_hash(hashes, self.held_out_share), windows, strict=True):
                split[name] += cut
            return split
        for cut in windows:
            held_out = max(1, round(self.held_out_share * len(cut)))
            first = max(1, len(cut) - 2 * held_out)
            split["train"] += cut[:first]
            split["val"] += cut[first : first + held_out] or cut[-1:]
            split["test"] += cut[first + held_out :] or cut[-1:]
        return split

    def _cut(self, info: MediaInfo, beside: Path | None) -> list[Window]:
        whole = int(info.duration_s / self.clip_seconds + 1e-6)
        rest = info.duration_s - whole * self.clip_seconds
        lengths = [self.clip_seconds] * whole
        if rest >= SHORTEST_WINDOW_S or not lengths:
            lengths.append(max(rest, SHORTEST_WINDOW_S))
        last = len(lengths) - 1
        return [
            Window(info, k * self.clip_seconds, length, k == last, beside)
            for k, length in enumerate(lengths)
        ]

    def clip(self, window: Window) -> Clip:
        """Read a window as the run's streams see it; raises MediaError."""
        video, audio = self.codecs.video, self.codecs.audio
        frames, sound = self._wanted(window.info)
        clip = Clip(name=window.path.name)
        if frames or sound:
            clip = read_clip(
                window.path,
                start_s=window.start_s,
                duration_s=window.duration_s,
                fps=video.fps if video else None,
                size=video.height_width if video else None,
                sample_rate=audio.sample_rate if audio else None,
                channels=audio.channels if audio else None,
                frames=frames,
                sound=sound,
                limits=self.limits,
            )
        if window.beside is None:
            return clip
        return replace(clip, texts=window.said(read_text(window.beside)))

    def documents(self, split: Split) -> Documents:
        if self._windows is None:
            raise RuntimeError("call setup() first")
        return _Windows(self, self._windows[split])

    def corpus(self) -> Iterable[str]:
        assert self._windows is not None
        for beside, windows in groupby(self._windows["train"], lambda window: window.beside):
            try:
                pieces = read_text(beside) if beside is not None else ()
            except MediaError:
                continue  # its documents will be skipped by name
            for window in windows:
                yield from (piece.text for piece in window.said(pieces))


class _Windows(Documents):
    def __init__(self, module: AudioVisual, windows: list[Window]) -> None:
        self.module, self.windows = module, windows

    def __len__(self) -> int:
        return len(self.windows)

    def name(self, index: int) -> str:
        window = self.windows[index]
        return f"{window.path} {window.start_s:g}-{window.start_s + window.duration_s:g} s"

    def document(self, epoch: int, index: int) -> Batch | Skipped:
        window = self.windows[index]
        info = window.info
        try:
            row = self.module.encode(self.module.clip(window))
        except MediaError as error:
            # A stream may end before one that the run does not use; else the header was wrong.
            unused = self.module._wanted(info) != (info.has_video, info.has_audio)
            ended = unused and window.start_s > 0 and error.reason.startswith(NOTHING)
            return Skipped(error.path, error.reason, harmless=ended)
        if row is None:
            where = f"{window.start_s:g} to {window.start_s + window.duration_s:g} s"
            only = window.start_s == 0 and window.is_last
            reason = f"has no frame, sound or text from {where}"
            return Skipped(str(window.path), reason, harmless=not only)
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

    Words share their piece's time in proportion to their letters, as the encoder has it; untimed
    pieces share the file's `length_s` in the same way. What begins at `length_s` or later is left
    out. A window that starts at 0 has the words that end at 0, too.
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
        elif piece.start_s >= length_s > 0:
            continue
        said = [
            word
            for word in _words(piece)
            if word.end_s <= end_s and (word.end_s > start_s or start_s == 0)
        ]
        if said:
            # The first word may begin before the window: its times stay right only so.
            text = " ".join(word.text for word in said)
            found.append(TextPiece(text, said[0].start_s - start_s, said[-1].end_s - start_s))
    return tuple(found)


def _words(piece: TextPiece) -> list[TextPiece]:
    words = mended(piece.text).split()
    letters = len(" ".join(words))
    span = piece.end_s - piece.start_s
    timed, passed = [], 0
    for word in words:
        begin = piece.start_s + span * passed / letters
        passed += len(word)
        timed.append(TextPiece(word, begin, piece.start_s + span * passed / letters))
        passed += 1  # the space
    return timed


def _texts(folder: Path) -> bool:
    """Whether there is a text file; spares every media file a search of its folder."""
    return any(entry.suffix.lower() in TEXT_SUFFIXES for entry in folder.iterdir())
