"""The windows of many files as numbered documents. In: Recordings and TextFiles. Out: rows, or why
there is none.

Neighbours are read by one pass over their file: `read` of any of them gives what `document` gives
of each.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, groupby
from typing import Protocol

import torch
from torch import Tensor

from datamodules.feed.documents import ClipDocuments, Skipped
from datamodules.files.finding import Wanted
from datamodules.files.headers import skipped
from datamodules.files.recordings import Recording, Source, TextFile
from mmpredict.media import BehindTheEndError, MediaError, read_windows
from mmpredict.media.cutting import Cut, Window, drawn_start_s
from mmpredict.schema import Batch, Clip, TextPiece
from mmpredict.tokens import Codecs

READ_THROUGH_S = 4.0  # a shorter gap between two windows is decoded, too: a seek costs as much
RUN_BYTES = 256 * 1024**2  # of pictures that a run may hold in memory
KEPT_TEXTS = 32
RUN_PASSAGES = 64  # of a text file, which is read as a whole for one of them


class Module(Protocol):
    """What is asked of the datamodule."""

    codecs: Codecs
    clip_seconds: float
    run_seconds: float
    seed: int

    @property
    def wanted(self) -> Wanted: ...

    def encode(self, clip: Clip) -> Batch | None: ...


class WindowDocuments(ClipDocuments):
    """Documents of one split.

    Args:
        module: says how to read and encode.
        sources: what there is.
        random_start: a file's windows begin elsewhere in every epoch. They may be one more then
            than the file has otherwise; where they are not, the last document is skipped.
    """

    def __init__(self, module: Module, sources: Sequence[Source], random_start: bool) -> None:
        super().__init__(module)
        self.module: Module = module
        self.sources, self.random_start = list(sources), random_start
        self._ends = list(accumulate(map(self._slots, self.sources)))
        # Both by the recording's id: stored ones may share a name.
        self._ended: dict[int, tuple[float, MediaError]] = {}  # nothing from there on
        self._texts: dict[int, tuple[TextPiece, ...]] = {}

    def _slots(self, source: Source) -> int:
        moves = self.random_start and isinstance(source, Recording) and len(source) > 1
        return len(source) + moves

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def find(self, index: int) -> tuple[Source, int]:
        """The source of a document, and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        place = bisect_right(self._ends, index)
        source = self.sources[place]
        return source, index - self._ends[place] + self._slots(source)

    def cut(self, epoch: int, recording: Recording) -> Cut:
        """The windows of a recording in an epoch."""
        cut = recording.cut
        if not self.random_start:
            return cut
        # The name alone: a run goes on unchanged where the folder has been moved.
        key = (self.module.seed, epoch, recording.path.name, cut.start_s)
        return cut.shifted(drawn_start_s(cut.window_s, *key))

    def window(self, epoch: int, index: int) -> Window | None:
        """The window of a document; None for text alone, and behind the last one."""
        source, number = self.find(index)
        cut = self.cut(epoch, source) if isinstance(source, Recording) else ()
        return cut[number] if number < len(cut) else None

    def name(self, index: int) -> str:
        source, number = self.find(index)
        if isinstance(source, TextFile):
            return f"{source.path} passage {source.first + number + 1}"
        if self.random_start:
            return f"{source.path} window {number + 1}"
        return self.title(0, index)

    def title(self, epoch: int, index: int) -> str:
        window = self.window(epoch, index)
        if window is None:
            return self.name(index)
        return f"{self.find(index)[0].path} {window.start_s:g}-{window.end_s:g} s"

    def runs(self) -> Sequence[range] | None:
        video = self.module.codecs.video
        most = max(1, int(self.module.run_seconds / self.module.clip_seconds + 1e-6))
        if video is not None:
            height, width = video.height_width
            frames = self.module.clip_seconds * video.fps + 1
            most = max(1, min(most, int(RUN_BYTES / (frames * 3 * height * width))))
        found = []
        for source, end in zip(self.sources, self._ends, strict=True):
            step = most if isinstance(source, Recording) else RUN_PASSAGES
            first = end - self._slots(source)
            found += [range(k, min(k + step, end)) for k in range(first, end, step)]
        return found if len(found) < len(self) else None

    def weights(self) -> Tensor | None:
        if all(source.weight == 1 for source in self.sources):
            return None
        slots = torch.tensor([self._slots(source) for source in self.sources])
        each = torch.tensor([source.weight for source in self.sources], dtype=torch.float64)
        return each.repeat_interleave(slots)

    def document(self, epoch: int, index: int) -> Batch | Skipped:
        return self.read(epoch, [index])[0]

    def read(self, epoch: int, indices: Sequence[int]) -> list[Batch | Skipped]:
        clips = self._clips(epoch, indices)
        rows = {index: self._encoded(epoch, index, clip) for index, clip in clips}
        return [rows[index] for index in indices]

    def clip(self, epoch: int, index: int) -> Clip | Skipped:
        return next(clip for _, clip in self._clips(epoch, [index]))

    def _encoded(self, epoch: int, index: int, clip: Clip | Skipped) -> Batch | Skipped:
        if isinstance(clip, Skipped):
            return clip
        row = self.module.encode(clip)
        if row is not None:
            return row
        path, window = self.find(index)[0].path, self.window(epoch, index)
        if window is None:
            return Skipped(str(path), "has no text that the recipe uses", kind="empty")
        where = f"{window.start_s:g} to {window.end_s:g} s"
        only = window.start_s == 0 and window.is_last
        reason = f"has no frame, sound or text from {where}"
        return Skipped(str(path), reason, harmless=not only, kind="empty")

    def _clips(self, epoch: int, indices: Sequence[int]) -> Iterator[tuple[int, Clip | Skipped]]:
        """The clips of documents, each once, file by file."""
        ordered = sorted(set(indices))
        for place, group in groupby(ordered, lambda index: bisect_right(self._ends, index)):
            of_file = {self.find(index)[1]: index for index in group}
            source = self.sources[place]
            if isinstance(source, TextFile):
                clips = _passages(source, list(of_file))
            else:
                clips = self._windows(self.cut(epoch, source), source, list(of_file))
            for number, clip in clips.items():
                yield of_file[number], clip

    def _windows(
        self, cut: Cut, recording: Recording, numbers: list[int]
    ) -> dict[int, Clip | Skipped]:
        """Some windows of a recording with what is said in them."""
        path = str(recording.path)
        behind = Skipped(path, "has one window less in this epoch", harmless=True, kind="empty")
        found: dict[int, Clip | Skipped] = {n: behind for n in numbers if n >= len(cut)}
        numbers = [n for n in numbers if n < len(cut)]
        end_s, ended = self._ended.get(id(recording), (math.inf, None))
        for number in [n for n in numbers if cut[n].start_s >= end_s]:
            found[number] = self._skipped(ended, recording, cut[number])
            numbers.remove(number)
        try:
            pieces = self._pieces(recording)
        except MediaError as error:
            return found | dict.fromkeys(numbers, skipped(error))
        for group in _passes(cut, recording, numbers):
            for number, clip in self._one_pass(cut, recording, group).items():
                if isinstance(clip, MediaError):
                    self._remember_end(clip, recording, cut[number])
                    found[number] = self._skipped(clip, recording, cut[number])
                else:
                    said = pieces if recording.is_image else cut[number].said(pieces)
                    found[number] = replace(clip, texts=said)
        return found

    def _pieces(self, recording: Recording) -> tuple[TextPiece, ...]:
        """The timed text of a recording; of the last few it is kept, because a subtitle track is
        spread over its whole file."""
        key = id(recording)
        if key not in self._texts:
            self._texts[key] = recording.pieces()
            if len(self._texts) > KEPT_TEXTS:
                del self._texts[next(iter(self._texts))]
        return self._texts[key]

    def _one_pass(
        self, cut: Cut, recording: Recording, numbers: list[int]
    ) -> Mapping[int, Clip | MediaError]:
        wanted, codecs = self.module.wanted, self.module.codecs
        frames, sound = wanted.of(recording.info)
        if not (frames or sound):
            return dict.fromkeys(numbers, Clip(name=recording.path.name))
        video, audio = codecs.video, codecs.audio
        first = cut[numbers[0]]
        try:
            clips = read_windows(
                recording.medium(),
                first.start_s,
                _read_s(cut, recording, first),
                numbers[-1] - numbers[0] + 1,
                fps=video.fps if video else None,
                size=video.height_width if video else None,
                sample_rate=audio.sample_rate if audio else None,
                channels=audio.channels if audio else None,
                frames=frames,
                sound=sound,
                limits=wanted.limits,
            )
        except MediaError as error:
            return dict.fromkeys(numbers, error)
        return {number: clips[number - numbers[0]] for number in numbers}

    def _remember_end(self, error: MediaError, recording: Recording, window: Window) -> None:
        """To find that there is nothing so late costs a look at the whole file: do it once."""
        known_s = self._ended.get(id(recording), (math.inf, None))[0]
        if isinstance(error, BehindTheEndError) and window.start_s < known_s:
            self._ended[id(recording)] = window.start_s, error

    def _skipped(self, error: MediaError, recording: Recording, window: Window) -> Skipped:
        found = replace(skipped(error), share=1 / max(1, len(recording)))
        if not isinstance(error, BehindTheEndError):
            return found
        # A stream may end before one that the run does not use; else the header was wrong.
        info = recording.info
        unused = self.module.wanted.of(info) != (info.has_video, info.has_audio)
        claim = f"its header claims {info.duration_s:.2f} s"
        reason = f"{claim}, what can be decoded ends at {error.end_s:.2f} s"
        return replace(found, reason=reason, harmless=unused and window.start_s > 0)


def _read_s(cut: Cut, recording: Recording, window: Window) -> float:
    """How much is read for a window: of the last one as much as there is."""
    return cut.window_s if window.is_last and recording.to_the_end else window.duration_s


def _passes(cut: Cut, recording: Recording, numbers: list[int]) -> Iterator[list[int]]:
    """Rising numbers of windows, those together that one pass over the file can give."""
    group: list[int] = []
    for number in numbers:
        alone = _read_s(cut, recording, cut[number]) != cut.window_s
        far = group and (number - group[-1] - 1) * cut.window_s > READ_THROUGH_S
        if group and (alone or far):
            yield group
            group = []
        if alone:
            yield [number]
        else:
            group.append(number)
    if group:
        yield group


def _passages(source: TextFile, numbers: list[int]) -> dict[int, Clip | Skipped]:
    try:
        texts = source.passages()
    except MediaError as error:
        return dict.fromkeys(numbers, skipped(error))
    name = source.path.name
    return {n: Clip(texts=(TextPiece(texts[n]),), name=name) for n in numbers}
