"""Samples that were prepared as frames and sound, one document each. In: numbers of samples in a
store. Out: rows, at the rates of the run where that loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from datamodules.feed.documents import ClipDocuments, Encoder, Skipped
from datamodules.files.headers import skipped
from mmpredict.media import MediaError
from mmpredict.media.speech import mended
from mmpredict.schema import Clip, UserError
from mmpredict.shards import Index, Store, codec_signatures
from mmpredict.tokens import Codecs

STREAMS = ("audio", "video", "text")
_ROUNDING = 1e-6  # of a frame's place on the grid


@dataclass(frozen=True)
class Kinds:
    """What the samples of a store hold, each kind with the name of one that does.

    Args:
        video: (frames a second, height, width); 0 for single frames, None for frames off any grid.
        audio: samples a second.
    """

    video: dict[tuple[float | None, int, int], str]
    audio: dict[int, str]

    def add(self, name: str, streams: dict[str, Any]) -> None:
        """Take note of a sample, by its `streams` in the index."""
        video, audio = streams.get("video"), streams.get("audio")
        if video and video["frames"]:
            fps = video["fps"] or (0.0 if video["frames"] == 1 else None)
            self.video.setdefault((fps, video["height"], video["width"]), name)
        if audio and audio["samples"]:
            self.audio.setdefault(audio["sample_rate"], name)

    def check(self, codecs: Codecs) -> None:
        """Refuse what cannot become what the run wants without decoding the sources again.

        Raises:
            UserError: names both numbers and the remedy.
        """
        if codecs.video is not None:
            fps, (height, width) = codecs.video.fps, codecs.video.height_width
            for (stored, *size), name in self.video.items():
                if tuple(size) != (height, width):
                    raise UserError(
                        f"{name} was prepared at {size[0]}x{size[1]} pixels, the run wants "
                        f"{height}x{width}: set data.video.size to [{size[0]}, {size[1]}], or "
                        f"prepare the data again with --size {height}"
                    )
                if stored is None or (stored and not _whole(stored / fps)):
                    rate = "times of its own" if stored is None else f"{stored:g} frames a second"
                    raise UserError(
                        f"{name} was prepared with {rate}, of which the run's {fps:g} is no whole "
                        f"part: set data.video.fps to {stored or 'the rate'} or an even part of "
                        f"it, or prepare the data again with --fps {fps:g}"
                    )
        if codecs.audio is not None:
            for rate, name in self.audio.items():
                if rate != codecs.audio.sample_rate:
                    raise UserError(
                        f"{name} was prepared with sound at {rate} Hz, the run wants "
                        f"{codecs.audio.sample_rate} Hz: set data.audio.sample_rate to {rate}, or "
                        f"prepare the data again with --sample_rate {codecs.audio.sample_rate}"
                    )


def _whole(ratio: float) -> bool:
    return ratio > 0.5 and abs(ratio - round(ratio)) < _ROUNDING


def fitted(clip: Clip, codecs: Codecs) -> Clip:
    """A stored clip with the frames of the run's grid and its number of channels."""
    times_s, frames_TCHW, waveform_CS = clip.times_s, clip.frames_TCHW, clip.waveform_CS
    if codecs.video is not None and times_s is not None and frames_TCHW is not None:
        fps = codecs.video.fps
        steps = times_s * fps
        shown = (steps - steps.round()).abs() < _ROUNDING
        if not bool(shown.all()):
            frames_TCHW, steps = frames_TCHW[shown], steps[shown]
        times_s = steps.round() / fps
    if codecs.audio is not None and waveform_CS is not None:
        channels = codecs.audio.channels
        if waveform_CS.shape[0] > channels:
            waveform_CS = waveform_CS.mean(0, keepdim=True)
        elif waveform_CS.shape[0] < channels:
            waveform_CS = waveform_CS.expand(channels, -1)
    texts = tuple(replace(piece, text=mended(piece.text)) for piece in clip.texts)
    return replace(
        clip, frames_TCHW=frames_TCHW, times_s=times_s, waveform_CS=waveform_CS, texts=texts
    )


def counts_hold(index: Index, codecs: Codecs) -> bool:
    """Whether the tokens that the index counts are those of a run: if its codecs are the same."""
    own = codec_signatures(codecs)
    return not codecs.series and all(
        own[name] == index.header.codecs.get(name)
        for name in STREAMS
        if getattr(codecs, name) is not None
    )


class SampleDocuments(ClipDocuments):
    """Documents of one split.

    Args:
        module: encodes.
        codecs: of the run.
        store: holds the samples.
        numbers: which of its samples, rising.
        counts_NS: (samples, streams) tokens that the index counts for each.
    """

    def __init__(
        self,
        module: Encoder,
        codecs: Codecs,
        store: Store,
        numbers: np.ndarray,
        counts_NS: np.ndarray,
    ) -> None:
        super().__init__(module)
        self.codecs, self.store, self.numbers = codecs, store, numbers
        used = [getattr(codecs, name) is not None for name in STREAMS]
        self.lengths = counts_NS[:, used].sum(1) if counts_hold(store.index, codecs) else None

    def __len__(self) -> int:
        return len(self.numbers)

    def name(self, index: int) -> str:
        return self.store.name(self.store.index.samples[int(self.numbers[index])])

    def length(self, epoch: int, index: int) -> int | None:
        return None if self.lengths is None else int(self.lengths[index])

    def clip(self, epoch: int, index: int) -> Clip | Skipped:
        sample = self.store.index.samples[int(self.numbers[index])]
        codecs = self.codecs
        try:
            clip = self.store.read(
                sample, frames=codecs.video is not None, sound=codecs.audio is not None
            )
        except MediaError as error:
            return skipped(error)
        return fitted(clip, codecs)
