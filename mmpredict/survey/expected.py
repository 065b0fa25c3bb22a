"""The documents that a run would cut from one media file, without running it.

In: what was measured of the file, and a Plan (encoders and length of a document). Out: which
documents there are, which of them cannot be read and why, and how many tokens the others have.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmpredict.media import Limits, MediaError, MediaInfo, read_clip
from mmpredict.media.clock import FrameGrid
from mmpredict.media.cutting import SHORTEST_WINDOW_S, Cut, Window
from mmpredict.media.facts import FileFacts
from mmpredict.media.speech import in_time
from mmpredict.schema import TextPiece
from mmpredict.tokens import Codecs, MelChunks, Patches, TextTokens

MAX_TRIED = 256  # documents of a damaged file that are read


@dataclass(frozen=True)
class Plan:
    """What a run would do with the files.

    Args:
        codecs: its encoders.
        clip_seconds: length of a document; inf for whole files.
        context_length, rows: of a batch.
        name: of the recipe, for a person.
        limits: what a file may cost.
    """

    codecs: Codecs = field(default_factory=lambda: Codecs(MelChunks(), Patches(), TextTokens()))
    clip_seconds: float = 2.0
    context_length: int = 2048
    rows: int = 8
    name: str = "the default encoders"
    limits: Limits = Limits()

    @property
    def longest(self) -> int:
        """Positions of a document that has all frames and sound; text comes on top. 0 if that
        depends on the file."""
        if math.isinf(self.clip_seconds):
            return 0
        return sum(
            math.ceil(self.clip_seconds / spec.period_s - 1e-6) * spec.positions_per_block
            for spec in self.codecs.layout.streams
            if spec.period_s
        )


@dataclass(frozen=True)
class Lost:
    """A document that would be skipped."""

    start_s: float
    end_s: float
    reason: str


def text_tokens(piece: TextPiece, codec: TextTokens | None) -> int:
    """Tokens of a piece with its END; bytes where the vocabulary is yet to be trained."""
    if codec is None:
        return 0
    if not codec.is_fitted:
        return len(piece.text.encode("utf-8", "surrogatepass")) + 1
    return len(codec.ids_of(piece.text)[0]) + 1


class Expected:
    """The documents of a span of one file.

    Args:
        path: the file.
        plan: the run.
        info, facts: its header, and what was measured.
        span_s: start and end on the file's clock.
    """

    def __init__(
        self, path: Path, plan: Plan, info: MediaInfo, facts: FileFacts, span_s: tuple[float, float]
    ) -> None:
        self.path, self.plan, self.facts, self.is_still = path, plan, facts, info.still
        self.video: Patches | None = plan.codecs.video if info.has_video else None
        self.audio: MelChunks | None = plan.codecs.audio if info.has_audio else None
        self.span_s = span_s
        self.to_the_end = span_s[1] >= info.duration_s
        said_until_s = math.inf if self.to_the_end else span_s[1]
        self.windows = list(Cut(*span_s, plan.clip_seconds, said_until_s=said_until_s))
        self.notices: dict[str, None] = {}
        self.lost: dict[int, Lost] = {}
        self._cpu_s: list[float] = []

    @property
    def read_cpu_s(self) -> float:
        """Processor time of a document, mean of those that were read; 0 if none was."""
        return sum(self._cpu_s) / len(self._cpu_s) if self._cpu_s else 0.0

    @property
    def kept(self) -> list[Window]:
        """The documents that can be read, as far as was looked."""
        return [window for n, window in enumerate(self.windows) if n not in self.lost]

    def try_out(self) -> None:
        """Fill `lost`: read the first document, the last, and those around damage that was found,
        as a run would."""
        if self.video is None and self.audio is None:
            return
        ends = [s.end_s for s in (self.facts.video, self.facts.audio) if s is not None]
        found: dict[int, str] = {}
        for number, window in enumerate(self.windows):
            if window.start_s >= max(ends):
                found[number] = f"the file ends at {max(ends):.2f} s"
        last = len(self.windows) - 1
        places = {0: None, last: None} | self._near_damage()
        for number in list(places)[:MAX_TRIED]:
            reason = self._read(self.windows[number])
            if reason is not None:
                found.setdefault(number, reason)
        for number, reason in sorted(found.items()):
            window = self.windows[number]
            end_s = window.start_s + self._length_s(window)
            self.lost[number] = Lost(window.start_s, end_s, reason)

    def _length_s(self, window: Window) -> float:
        """How much is read for a window: of the last one as much as there is, where the header
        claimed too little."""
        length_s = window.duration_s
        if window.is_last and self.to_the_end and not math.isinf(self.plan.clip_seconds):
            length_s = self.plan.clip_seconds
        return max(length_s, SHORTEST_WINDOW_S)

    def _near_damage(self) -> dict[int, None]:
        """Documents with damage in them, and their neighbours: to read those, a run starts to
        decode before them and stops behind them."""
        near: dict[int, None] = {}
        for damage in self.facts.damage:
            if self.span_s[0] <= damage.at_s < self.span_s[1] + self.plan.clip_seconds:
                number = int((damage.at_s - self.span_s[0]) // self.plan.clip_seconds)
                near |= dict.fromkeys(range(number - 1, number + 3))
        return {number: None for number in near if 0 <= number < len(self.windows)}

    def _read(self, window: Window) -> str | None:
        """Read a document as a run would; why it cannot be."""
        started = time.process_time()
        try:
            clip = read_clip(
                self.path,
                start_s=window.start_s,
                duration_s=self._length_s(window),
                fps=self.video.fps if self.video else None,
                size=self.video.height_width if self.video else None,
                sample_rate=self.audio.sample_rate if self.audio else None,
                channels=self.audio.channels if self.audio else None,
                frames=self.video is not None,
                sound=self.audio is not None,
                limits=self.plan.limits,
            )
        except MediaError as error:
            return error.reason
        self._cpu_s.append(time.process_time() - started)
        self.notices |= dict.fromkeys(clip.notices)
        return None

    def tokens(
        self, pieces: Sequence[TextPiece] | None, text_span_s: tuple[float, float]
    ) -> dict[str, int]:
        """Positions by stream of the documents in `kept`; `pieces` is the text of `text_span_s`, or
        None."""
        found = {}
        if self.audio is not None and self.facts.audio is not None:
            found["audio"] = sum(self._chunks(self.audio, window) for window in self.kept)
        if self.video is not None and self.facts.video is not None:
            frames = sum(self._frames(self.video, window) for window in self.kept)
            found["video"] = frames * self.video.spec.positions_per_block
        if pieces is not None:
            found["text"] = self._said(pieces, text_span_s)
        return found

    def _chunks(self, codec: MelChunks, window: Window) -> int:
        """Whole chunks of sound: a document lasts as long as the longer of its streams."""
        used = (self.facts.audio, self.facts.video if self.video is not None else None)
        end_s = max(stream.end_s for stream in used if stream is not None)
        length_s = min(self._length_s(window), end_s - window.start_s)
        samples = round(max(0.0, length_s) * codec.sample_rate)
        return samples // codec.chunk_samples

    def _frames(self, codec: Patches, window: Window) -> int:
        """Grid times at which a frame is on show."""
        video = self.facts.video
        assert video is not None
        if video.end_s <= window.start_s:
            return 0
        grid = FrameGrid(codec.fps, self._length_s(window))
        return len(grid.show(video.start_s - window.start_s, video.end_s - window.start_s))

    def _said(self, pieces: Sequence[TextPiece], span_s: tuple[float, float]) -> int:
        """Tokens of the words that are said in the documents."""
        codec = self.plan.codecs.text
        if self.is_still:
            return sum(text_tokens(piece, codec) for piece in pieces)
        timed = in_time(pieces, *span_s)
        said = (piece for window in self.kept for piece in window.said(timed))
        return sum(text_tokens(piece, codec) for piece in said)
