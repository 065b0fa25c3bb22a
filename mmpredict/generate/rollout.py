"""A predictor goes on where a prompt ends, in every stream. In: a Clip. Out: the Clip, longer.

The continuous streams come by the clock: the next frame is due one period after the last, and so is
the next chunk of sound. Between them stands text when the head `next_stream` says that text is
next.

A block that does not exist yet is asked for by a placeholder of zeros at its time. Nothing that the
predictor says of a block depends on the block itself or on what follows, so the zeros do not matter
(tests/generate/test_rollout.py).

Shapes: C channels and S samples of a waveform.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mmpredict.generate.row import SLACK_S, Row, Sampling
from mmpredict.model import Predictor
from mmpredict.schema import Clip, Layout, Modality, Series, StreamSpec, Tokens
from mmpredict.tokens import Codecs, MelChunks

SEAM_S = 0.005  # the jump between recorded and generated sound is spread over this long


@dataclass(frozen=True)
class Rollout:
    """A prompt and how the predictor went on.

    Args:
        clip: the prompt, unchanged, followed by the continuation. Where sound goes on, the prompt's
            is cut to whole chunks.
        prompt_end_s: where the continuation starts, seconds on the clip's clock.
        tokens: the continuation alone, one Tokens for each stream that got a block.
        notices: what the user should know ("the oldest blocks are out of sight from 1.20 s on").
    """

    clip: Clip
    prompt_end_s: float
    tokens: list[Tokens] = field(default_factory=list)
    notices: tuple[str, ...] = ()


@torch.no_grad()
def rollout(  # noqa: PLR0913 - the front door of the room; every argument is a user's choice
    predictor: Predictor,
    codecs: Codecs,
    prompt: Clip,
    *,
    seconds: float,
    streams: Collection[str] | None = None,
    temperature: float = 1.0,
    text_temperature: float = 0.7,
    min_p: float = 0.05,
    steps: int = 10,
    seed: int = 0,
    context_length: int = 1024,
    max_text_run: int = 64,
    max_tokens: int = 256,
) -> Rollout:
    """Let the predictor go on from a prompt.

    A stream that the prompt lacks begins where the prompt ends; a stream that ends earlier than the
    others is caught up first. Where only text goes on, it goes on to the end of a piece (with a
    model of text alone: for `max_tokens`), and a prompt of untimed text alone is continued inside
    its last piece.

    Args:
        predictor: in evaluation mode, on the device that is to work.
        codecs: the encoders that the predictor was trained with.
        prompt: frames, sound and text in the form that the encoders take; any may be missing.
        seconds: how long to go on; without meaning where only text goes on.
        streams: names of the streams that go on; None for all that the predictor has.
        temperature: scale of the noise of frames and sound; 0 gives the mean.
        text_temperature: of words and of the decision whether to speak; 0 takes the likelier.
        min_p: words less likely than this share of the likeliest are not drawn.
        steps: steps of the flow heads.
        seed: same seed, same device, same result.
        context_length: positions that the predictor sees; give that of the training.
        max_text_run: text tokens between two other blocks, at most.
        max_tokens: text tokens where only text goes on, at most.
    """
    layout = codecs.layout
    names = _wanted(layout, streams)
    clocked = [spec for spec in layout.streams if spec.name in names and spec.period_s]
    speaks = any(spec.name in names and spec.modality == Modality.TEXT for spec in layout.streams)
    _check(layout, clocked, seconds, context_length)
    sampling = Sampling(temperature, text_temperature, min_p, steps, seed)

    encoded = {tokens.modality: tokens for tokens in codecs.encode(prompt)}
    goes_on_inside = not clocked and set(encoded) == {Modality.TEXT} and _is_untimed_at_end(encoded)
    if goes_on_inside:
        encoded[Modality.TEXT] = _first(encoded[Modality.TEXT], -1)  # without END
    prompt_end_s = _end_s(layout, encoded)
    row = Row(predictor, encoded, context_length, sampling)
    if clocked:
        clocks = [Clock.after(spec, encoded.get(spec.modality), prompt_end_s) for spec in clocked]
        _run_clocks(row, clocks, prompt_end_s + seconds, max_text_run if speaks else 0)
    else:
        row.wait_until(prompt_end_s)  # what is said of a video comes when its last frame was shown
        stop_id = None if len(layout.streams) == 1 else codecs.text.end_id
        _run_text(row, max_tokens, stop_id)

    made = row.made()
    clip = _joined(codecs, prompt, encoded, made, goes_on_inside)
    notices = [*_unused(layout, prompt), *row.notices]
    return Rollout(clip, prompt_end_s, list(made.values()), tuple(notices))


def block_start_s(spec: StreamSpec, end_s: float) -> float:
    """Start of a block's period: a frame stands at the start of its period, a chunk at the end."""
    return end_s - spec.period_s if spec.fills_period else end_s


@dataclass
class Clock:
    """When the blocks of a continuous stream are due: at first_s + count * period."""

    spec: StreamSpec
    first_s: float
    count: int = 0

    @classmethod
    def after(cls, spec: StreamSpec, prompt: Tokens | None, prompt_end_s: float) -> Clock:
        """One period after the prompt's last block, or on the grid after the prompt's end."""
        if prompt is not None:
            return cls(spec, float(prompt.end_s[-1]) + spec.period_s)
        periods = math.ceil((prompt_end_s - SLACK_S) / spec.period_s)
        at_zero = spec.period_s if spec.fills_period else 0.0
        return cls(spec, at_zero + periods * spec.period_s)

    @property
    def due_s(self) -> float:
        return self.first_s + self.count * self.spec.period_s

    @property
    def order(self) -> tuple[int, int]:
        """Sorts as in a row: by microseconds, then by stream."""
        return round(self.due_s * 1e6), self.spec.modality


def _run_clocks(row: Row, clocks: list[Clock], until_s: float, max_text_run: int) -> None:
    """Make every block whose period starts before `until_s`, with text between them."""
    text_run = 0
    while True:
        going = [c for c in clocks if block_start_s(c.spec, c.due_s) < until_s - SLACK_S]
        if not going:
            return
        clock = min(going, key=lambda c: c.order)
        view = row.look(clock.spec, clock.due_s)
        # Text that ends with the last block would stand behind a frame or sound of the same time.
        slack_s = -SLACK_S if clock.spec.modality > Modality.TEXT else SLACK_S
        at_once = row.now_s is not None and clock.due_s <= row.text_end_s + slack_s
        if text_run < max_text_run and not at_once and row.text_is_next(view):
            row.add_text(view)
            text_run += 1
        else:
            row.add_values(view)
            clock.count += 1
            text_run = 0


def _run_text(row: Row, max_tokens: int, stop_id: int | None) -> None:
    spec = row.layout[Modality.TEXT]
    for _ in range(max_tokens):
        view = row.look(spec, row.text_end_s)
        if row.add_text(view) == stop_id:
            return


def _wanted(layout: Layout, streams: Collection[str] | None) -> set[str]:
    """Names of the streams that go on."""
    have = [spec.name for spec in layout.streams]
    wanted = set(have if streams is None else streams)
    if not wanted:
        raise ValueError(f"streams is empty; name one or more of {', '.join(have)}")
    if wanted - set(have):
        raise ValueError(
            f"streams names {', '.join(sorted(wanted - set(have)))}; "
            f"this model has {', '.join(have)}"
        )
    return wanted


def _check(layout: Layout, clocked: list[StreamSpec], seconds: float, context_length: int) -> None:
    if clocked and not 0 < seconds < math.inf:
        raise ValueError(f"seconds is {seconds}; it must be above 0")
    for spec in clocked:
        if spec.is_discrete:
            raise ValueError(
                f"stream {spec.name}: ids that come by a clock cannot be rolled out yet"
            )
    # Each stream must see its own last block, or it starts from nothing at every step.
    least = 2 * sum(spec.positions_per_block for spec in layout.streams)
    if context_length < least:
        raise ValueError(
            f"context_length={context_length} is too short for this model: two blocks of each "
            f"stream take {least} positions"
        )


def _is_untimed_at_end(encoded: dict[int, Tokens]) -> bool:
    return bool(encoded[Modality.TEXT].end_s[-1].isnan())


def _first(tokens: Tokens, count: int) -> Tokens:
    return replace(tokens, contents=tokens.contents[:count], end_s=tokens.end_s[:count])


def _end_s(layout: Layout, encoded: dict[int, Tokens]) -> float:
    """End of the prompt's frames and chunks; of its timed text if it has neither."""
    ends = [
        block_start_s(layout[m], float(tokens.end_s[-1])) + layout[m].period_s
        for m, tokens in encoded.items()
        if layout[m].period_s
    ]
    if not ends:
        ends = [float(t.end_s.nan_to_num(0.0).max()) for t in encoded.values() if len(t.end_s)]
    return max(ends, default=0.0)


def _unused(layout: Layout, prompt: Clip) -> list[str]:
    has = {
        Modality.AUDIO: prompt.waveform_CS is not None,
        Modality.VIDEO: prompt.frames_TCHW is not None,
        Modality.TEXT: bool(prompt.texts),
    }
    lacking = [m.name.lower() for m, present in has.items() if present and m not in layout]
    names = {spec.name for spec in layout.streams}
    lacking += [f"series {name}" for name in prompt.series if name not in names]
    return [f"the model has no {name}: that of the prompt was not looked at" for name in lacking]


def _joined(
    codecs: Codecs, prompt: Clip, encoded: dict[int, Tokens], made: dict[int, Tokens], inside: bool
) -> Clip:
    """The prompt and its continuation as one clip."""
    clip = prompt
    if Modality.VIDEO in made:
        new = codecs.video.decode(made[Modality.VIDEO])
        frames, times_s = new.frames_TCHW, new.times_s
        if Modality.VIDEO in encoded:
            frames = torch.cat([prompt.frames_TCHW, frames])
            times_s = torch.cat([prompt.times_s.double(), times_s])
        clip = replace(clip, frames_TCHW=frames, times_s=times_s)
    if Modality.AUDIO in made:
        clip = _with_sound(codecs.audio, clip, encoded.get(Modality.AUDIO), made[Modality.AUDIO])
    for name, codec in codecs.series.items():
        if codec.modality in made:
            new = codec.decode(made[codec.modality]).series[name]
            clip = replace(clip, series={**clip.series, name: _longer(clip.series.get(name), new)})
    if Modality.TEXT in made:
        new, kept = made[Modality.TEXT], prompt.texts
        if inside:  # the last piece is open: it is decoded again together with what follows it
            last_ids, _ = codecs.text.ids_of(prompt.texts[-1].text)
            old = encoded[Modality.TEXT]
            begin = len(old.contents) - len(last_ids)
            ids = torch.cat([old.contents[begin:], new.contents])
            new = replace(new, contents=ids, end_s=torch.cat([old.end_s[begin:], new.end_s]))
            kept = kept[:-1]
        said = [piece for piece in codecs.text.decode(new).texts if piece.text]
        clip = replace(clip, texts=(*kept, *said))
    return clip


def _longer(before: Series | None, made: Series) -> Series:
    """A series and what follows it."""
    if before is None or not len(before.times_s):
        return made
    values_TD = torch.cat([before.values_TD.float(), made.values_TD])
    return Series(values_TD, torch.cat([before.times_s.double(), made.times_s]))


def _with_sound(audio: MelChunks, clip: Clip, before: Tokens | None, made: Tokens) -> Clip:
    """Append the waveform of generated chunks to the clip's own."""
    # A spectrum looks back over its window, so the sound begins with some chunks of the prompt.
    look_back = -(-audio.num_fft // audio.chunk_samples) + 1
    lead = made.contents[:0] if before is None else before.contents[-look_back:]
    contents = torch.cat([lead, made.contents])
    end_s = audio.chunk_s * torch.arange(1, len(contents) + 1).double()
    decoded = audio.decode(Tokens(Modality.AUDIO, contents, end_s)).waveform_CS
    new_CS = decoded[:, len(lead) * audio.chunk_samples :]
    if before is None:
        start_s = float(made.end_s[0]) - audio.chunk_s
        return replace(
            clip, waveform_CS=new_CS, sample_rate=audio.sample_rate, waveform_start_s=start_s
        )
    old_CS = clip.waveform_CS[:, : len(before.end_s) * audio.chunk_samples]
    new_CS = _without_click(old_CS, new_CS, round(SEAM_S * audio.sample_rate))
    return replace(clip, waveform_CS=torch.cat([old_CS, new_CS], dim=1))


def _without_click(old_CS: Tensor, new_CS: Tensor, seam: int) -> Tensor:
    """`new_CS`, but starting where `old_CS` ends; itself again after `seam` samples."""
    length = min(new_CS.shape[1], max(1, seam))
    jump_C1 = old_CS[:, -1:] - new_CS[:, :1]
    seam_CS = new_CS[:, :length] + jump_C1 * torch.linspace(1, 0, length)
    return torch.cat([seam_CS, new_CS[:, length:]], dim=1).clamp(-1, 1)
