"""What a checkpoint hears and sees where a probe shows nothing. In: what is shown. Out: the blocks
of its other streams, and those that go on while somebody speaks.

A model that was trained on pictures and sound has hardly ever seen a word without sound around it.
Where the evidence simply ends before the question, or a stream is left out, it is lost: in the
world's own dialogues the answer costs a model of an hour's training 0.86 nats, 7.8 where picture
and sound end before the question, 4.0 without the stream of sound (docs/probes.md). So silence
stands in place of sound that is withheld, a grey picture in place of frames, and silence goes on
under the question and its answers. The picture that was shown last stays: no new frame comes (0.97
nats; a new frame at every tick, 0.87, would make a suite four times as dear), but for checkpoints
without sound, where frames alone keep the time.

Shapes: K blocks of one stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from mmpredict.schema import Clip, Modality, StreamSpec, Tokens
from mmpredict.tokens import Codecs

GREY = 128
SLACK_S = 1e-6  # times closer than this are the same


class Background:
    """Silence and grey pictures, as the encoders of a checkpoint see them.

    Args:
        codecs: the checkpoint's encoders.
    """

    def __init__(self, codecs: Codecs) -> None:
        self.specs = {s.modality: s for s in codecs.layout.streams}
        self.blank = {t.modality: _one(t) for t in codecs.encode(_nothing(codecs))}
        keepers = (Modality.AUDIO, Modality.VIDEO)
        self.goes_on = next((m for m in keepers if m in self.blank), None)

    def fill(self, streams: Sequence[Tokens], until_s: float) -> tuple[Tokens, ...]:
        """Also the streams that are withheld, blank from 0 s to `until_s`, and sound that ends
        earlier, with silence behind it."""
        given = {t.modality: t for t in streams}
        for modality, block in self.blank.items():
            if modality not in given:
                given[modality] = self._blocks(modality, block, -1.0, 0, until_s)
            elif modality == self.goes_on:
                given[modality] = _joined(given[modality], self.after(streams, -1.0, until_s))
        return tuple(given[m] for m in sorted(given) if len(given[m].end_s))

    def after(self, streams: Sequence[Tokens], start_s: float, stop_s: float) -> Tokens | None:
        """What goes on behind what is shown: blocks that end after `start_s`, by `stop_s`."""
        if self.goes_on is None:
            return None
        block, first_s = self.blank[self.goes_on], 0.0
        for tokens in streams:
            if tokens.modality == self.goes_on and len(tokens.end_s):
                period_s = self.specs[self.goes_on].period_s
                first_s = float(tokens.end_s[-1]) + period_s - float(block.end_s[0])
                if tokens.modality == Modality.VIDEO:  # the picture that was seen last
                    block = replace(block, contents=tokens.contents[-1:])
        return self._blocks(self.goes_on, block, start_s, first_s, stop_s)

    def _blocks(
        self, modality: int, block: Tokens, start_s: float, first_s: float, stop_s: float
    ) -> Tokens:
        """A block again and again, on the grid that has one `first_s` later than its own time."""
        period_s, own_s = self.specs[modality].period_s, float(block.end_s[0])
        count = max(0, int((stop_s + SLACK_S - first_s - own_s) / period_s + 1))
        end_s = first_s + own_s + period_s * torch.arange(count).double()
        spec = self.specs[modality]
        end_s = end_s[(end_s > latest(spec, start_s)) & (end_s <= latest(spec, stop_s))]
        again = block.contents.expand(len(end_s), *block.contents.shape[1:])
        return replace(block, contents=again.clone(), end_s=end_s)


def latest(spec: StreamSpec, stop_s: float) -> float:
    """The end_s of the last block up to a moment: frames begin before it, sound ends by it."""
    return stop_s + SLACK_S if spec.fills_period else stop_s - SLACK_S


def _one(tokens: Tokens) -> Tokens:
    """A block from the middle, at the time of the first."""
    middle = len(tokens.end_s) // 2
    return replace(
        tokens, contents=tokens.contents[middle : middle + 1], end_s=tokens.end_s[:1].double()
    )


def _joined(tokens: Tokens, more: Tokens | None) -> Tokens:
    if more is None or not len(more.end_s):
        return tokens
    contents = torch.cat([tokens.contents, more.contents.to(tokens.contents.dtype)])
    return replace(tokens, contents=contents, end_s=torch.cat([tokens.end_s, more.end_s]))


def _nothing(codecs: Codecs) -> Clip:
    """A second of grey and of silence."""
    video, audio, clip = codecs.video, codecs.audio, Clip()
    if video is not None:
        count = max(1, round(video.fps))
        grey = torch.full((count, 3, *video.height_width), GREY, dtype=torch.uint8)
        times_s = torch.arange(count).double() / video.fps
        clip = replace(clip, frames_TCHW=grey, times_s=times_s)
    if audio is not None:
        silence = torch.zeros(audio.channels, audio.sample_rate)
        clip = replace(clip, waveform_CS=silence, sample_rate=audio.sample_rate)
    return clip
