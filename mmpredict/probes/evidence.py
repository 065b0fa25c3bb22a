"""What is shown or told before a question, as a checkpoint's encoders see it. In: an item's
evidence and the variant that is asked. Out: tokens per stream, and the moment at which they end.

Questions and answers stand in time as the world's own dialogues do: the question soon after the
moment that it is about, and its answer after a short pause. What a variant withholds is blank, and
silence goes on while somebody speaks (`background`).

Shapes: K blocks of one stream.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from mmpredict.media import read_clip
from mmpredict.probes.background import Background, latest
from mmpredict.probes.items import VARIANTS, Evidence, Files, Item, Source
from mmpredict.schema import Clip, Modality, StreamSpec, TextPiece, Tokens, UserError
from mmpredict.tokens import Codecs
from mmpredict.world import Film, Take
from mmpredict.world.captions import WORD_S

REACTION_S = 0.06  # from a moment to the first word about it, as in the world's captions
PAUSE_S = 0.04  # between a question and its answer, and between told lines
KEPT = 16  # sources whose tokens stay in memory
NEEDS = {"text": ("text",), "audio": ("audio",), "video": ("video",)}
NEEDS["video+audio"] = ("video", "audio")
Withheld = Literal["blank", "absent"]


class EvidenceError(ValueError):
    """A source cannot be shown: an error of the data; says which source, and why."""


@dataclass(frozen=True)
class Shown:
    """What is given before the question.

    Args:
        streams: with one block at least; empty where nothing is shown or told.
        end_s: when it ends; None for told lines that have no times.
        blank: numbers of the streams that only say that there is nothing.
        background: what goes on afterwards; None for nothing.
    """

    streams: tuple[Tokens, ...]
    end_s: float | None
    blank: frozenset[int] = frozenset()
    background: Background | None = None


def needed_streams(item: Item, variant: str) -> tuple[str, ...]:
    """Streams that a model must have to be asked."""
    words = () if item.score == "voe" else ("text",)
    return tuple(dict.fromkeys(NEEDS[variant] + words))


def possible_variants(codecs: Codecs, items: Iterable[Item]) -> tuple[str, ...]:
    """The variants in which a model of these streams can be asked some of the items."""
    have = {spec.name for spec in codecs.layout.streams}
    found = {
        variant
        for item in items
        for variant in item.variants
        if have.issuperset(needed_streams(item, variant))
    }
    return tuple(variant for variant in VARIANTS if variant in found)


def check_streams(codecs: Codecs, items: Iterable[Item], variants: Sequence[str]) -> None:
    """Raise UserError where a checkpoint lacks a stream that a variant needs."""
    items = list(items)
    have = [spec.name for spec in codecs.layout.streams]
    for variant in variants:
        asked = [item for item in items if variant in item.variants]
        lacks = [item for item in asked if set(needed_streams(item, variant)) - set(have)]
        if lacks:
            missing = sorted({s for i in lacks for s in needed_streams(i, variant)} - set(have))
            possible = possible_variants(codecs, items)
            remedy = "none can be asked"
            if possible:
                remedy = f"ask with --evidence {','.join(possible)}"
            raise UserError(
                f"evidence {variant!r} of {len(lacks)} items ({lacks[0].family}, ...) needs "
                f"{', '.join(missing)}; this checkpoint has only {', '.join(have)}: {remedy}"
            )


class Footage:
    """Takes are filmed and files are read as a checkpoint sees them; the latest are kept.

    Args:
        sources: by name.
        codecs: the checkpoint's encoders: frame size, frame rate, sample rate.
        variants: that will be asked; streams that none of them needs are not made.
        withheld: whether streams that a variant withholds are "blank" or "absent"; where they are
            absent, nothing goes on under the question either.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        codecs: Codecs,
        variants: Iterable[str] = VARIANTS,
        *,
        withheld: Withheld = "blank",
    ) -> None:
        self.sources, self.codecs = sources, codecs
        self.background = Background(codecs) if withheld == "blank" else None
        wanted = {name for variant in variants for name in NEEDS[variant]}
        self.frames = codecs.video is not None and "video" in wanted
        self.sound = codecs.audio is not None and "audio" in wanted
        self._kept: OrderedDict[str, Shown | EvidenceError] = OrderedDict()

    def whole(self, name: str) -> Shown:
        """All of a source.

        Raises:
            EvidenceError: it cannot be read.
        """
        if name not in self._kept:
            try:
                self._kept[name] = self._made(name)
            except (OSError, ValueError) as error:
                self._kept[name] = EvidenceError(f"source {name!r}: {error}")
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(name)
        kept = self._kept[name]
        if isinstance(kept, EvidenceError):
            raise kept
        return kept

    def shown(self, evidence: Evidence, variant: str) -> Shown:
        """What of an evidence a variant gives.

        Raises:
            EvidenceError: the source cannot be read, or has nothing of a stream that is asked for.
        """
        if variant == "text":
            return self._told(evidence)
        if not evidence.source:
            return self.nothing(evidence.until_s)
        whole, until_s = self.whole(evidence.source), evidence.until_s
        streams = []
        for name in NEEDS[variant]:
            modality = Modality[name.upper()]
            found = [t for t in whole.streams if t.modality == modality]
            part = found and cut(found[0], self.codecs.layout[modality], until_s)
            if not part or not len(part.end_s):
                when = "" if until_s is None else f" up to {until_s} s"
                raise EvidenceError(f"source {evidence.source!r} has no {name}{when}")
            streams.append(part)
        end_s = whole.end_s if until_s is None else until_s
        streams = tuple(sorted(streams, key=lambda t: t.modality))
        return with_background(streams, end_s, self.background)

    def nothing(self, until_s: float | None) -> Shown:
        """Up to a moment, without evidence."""
        return with_background((), until_s, self.background)

    def _told(self, evidence: Evidence) -> Shown:
        """Lines one after another from 0 s on, without times where the evidence has no clock."""
        if not evidence.told and evidence.source:
            raise EvidenceError(f"source {evidence.source!r}: nothing of it is told in words")
        start_s = None if evidence.until_s is None else 0.0
        pieces = spoken(evidence.told, start_s)
        tokens = words(self.codecs, pieces)
        end_s = evidence.until_s
        if pieces and end_s is not None:
            end_s = max(end_s, pieces[-1].end_s)
        return with_background(() if tokens is None else (tokens,), end_s, self.background)

    def _made(self, name: str) -> Shown:
        source, codecs = self.sources[name], self.codecs
        if isinstance(source, Take):
            clip = source.record(self.film).clip
            end_s = source.stage.seconds
        else:
            clip = _read(source, codecs, frames=self.frames, sound=self.sound)
            end_s = _end_of(clip)
        return Shown(tuple(t for t in codecs.encode(clip) if len(t.end_s)), end_s)

    @property
    def film(self) -> Film:
        """How a take is filmed for this checkpoint."""
        video, audio = self.codecs.video, self.codecs.audio
        return Film(
            video.height_width if video else (16, 16),
            video.fps if video else 8.0,
            audio.sample_rate if audio else 16000,
            audio.channels if audio else 2,
            frames=self.frames,
            sound=self.sound,
        )


def cut(tokens: Tokens, spec: StreamSpec, until_s: float | None) -> Tokens:
    """Frames that begin before `until_s`, and sound that ends by then."""
    if until_s is None:
        return tokens
    count = int((tokens.end_s <= latest(spec, until_s)).sum())
    return replace(tokens, contents=tokens.contents[:count], end_s=tokens.end_s[:count])


def with_background(
    streams: tuple[Tokens, ...], end_s: float | None, background: Background | None
) -> Shown:
    """Evidence over a background; what has no times stands alone."""
    if end_s is None or background is None:
        return Shown(streams, end_s)
    filled = background.fill(streams, end_s)
    blank = {t.modality for t in filled} - {t.modality for t in streams}
    return Shown(filled, end_s, frozenset(blank), background)


def words(codecs: Codecs, pieces: Sequence[TextPiece]) -> Tokens | None:
    """Text pieces encoded; None for none."""
    return codecs.text.encode(Clip(texts=tuple(pieces)))


def spoken(lines: Sequence[str], start_s: float | None) -> tuple[TextPiece, ...]:
    """Lines said one after another from `start_s` on, each as long as it takes to say; without
    times if `start_s` is None."""
    pieces: list[TextPiece] = []
    for line in lines:
        if start_s is None:
            pieces.append(TextPiece(line))
            continue
        end_s = start_s + WORD_S * len(line.split())
        pieces.append(TextPiece(line, round(start_s, 4), round(end_s, 4)))
        start_s = end_s + PAUSE_S
    return tuple(pieces)


def question_and_answer(
    shown: Shown, question: str, answer: str
) -> tuple[tuple[TextPiece, ...], TextPiece]:
    """The question (or none) soon after what is shown, and the answer after it."""
    start_s = None if shown.end_s is None else shown.end_s + REACTION_S
    *asked, said = spoken([question, answer] if question else [answer], start_s)
    return tuple(asked), said


def _read(files: Files, codecs: Codecs, *, frames: bool, sound: bool) -> Clip:
    """Somebody's files in the form that the encoders take."""
    span = {"start_s": files.start_s}
    if files.end_s is not None:
        span["duration_s"] = files.end_s - files.start_s
    video, audio, clip = codecs.video, codecs.audio, Clip()
    hears = {"sample_rate": audio.sample_rate, "channels": audio.channels} if sound else {}
    if files.images and frames:
        clip = _slides(files, codecs)
    wants_sound = sound and not files.audio
    if files.video and (frames or wants_sound):
        sees = {"fps": video.fps, "size": video.height_width} if frames else {}
        clip = read_clip(files.video, frames=frames, sound=wants_sound, **span, **sees, **hears)
    if files.audio and sound:
        heard = read_clip(files.audio, frames=False, **span, **hears)
        clip = replace(
            clip,
            waveform_CS=heard.waveform_CS,
            sample_rate=heard.sample_rate,
            waveform_start_s=heard.waveform_start_s,
        )
    return clip


def _slides(files: Files, codecs: Codecs) -> Clip:
    """Pictures one after another, spread over the span that the source names (frames of the
    codecs' rate are taken from them), or each for the time of one frame."""
    video, count = codecs.video, len(files.images)
    numbers = list(range(count))
    if files.end_s is not None:
        seconds = files.end_s - files.start_s
        shown = max(1, round(seconds * video.fps))
        numbers = [min(count - 1, int(n / video.fps / seconds * count)) for n in range(shown)]
    pictures = {
        n: read_clip(files.images[n], size=video.height_width, sound=False).frames_TCHW[:1]
        for n in dict.fromkeys(numbers)
    }
    times_s = torch.arange(len(numbers)).double() / video.fps
    return Clip(frames_TCHW=torch.cat([pictures[n] for n in numbers]), times_s=times_s)


def _end_of(clip: Clip) -> float:
    """When the last frame has been shown and the last sound heard."""
    ends = [0.0]
    if clip.frames_TCHW is not None and len(clip.times_s):
        times = clip.times_s
        ends.append(float(times[-1] + (times[-1] - times[-2] if len(times) > 1 else 0.0)))
    if clip.waveform_CS is not None:
        ends.append(clip.waveform_start_s + clip.waveform_CS.shape[1] / clip.sample_rate)
    return max(ends)
