"""A predictor goes on where a prompt ends, in every stream. In: a Clip. Out: the Clip, longer; or
several, as it may go on in one way or another.

The continuous streams come by the clock: the next frame is due one period after the last, and so is
the next chunk of sound. Between them stands text when the head `next_stream` says that text is
next.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace

import torch

from mmpredict.generate.futures import Futures, Sampling, can_be_guided
from mmpredict.generate.joining import joined
from mmpredict.generate.row import SLACK_S, Row
from mmpredict.model import Predictor
from mmpredict.schema import Clip, Layout, Modality, StreamSpec, Tokens
from mmpredict.tokens import Codecs


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
    guidance: float = 1.0,
    steps: int = 10,
    seed: int = 0,
    context_length: int = 1024,
    max_text_run: int = 64,
    max_tokens: int = 256,
) -> Rollout:
    """Let the predictor go on from a prompt, in one way; the arguments are those of `rollouts`."""
    (only,) = rollouts(
        predictor,
        codecs,
        prompt,
        futures=1,
        seconds=seconds,
        streams=streams,
        temperature=temperature,
        text_temperature=text_temperature,
        min_p=min_p,
        guidance=guidance,
        steps=steps,
        seed=seed,
        context_length=context_length,
        max_text_run=max_text_run,
        max_tokens=max_tokens,
    )
    return only


def rollouts(  # noqa: PLR0913 - the front door of the room; every argument is a user's choice
    predictor: Predictor,
    codecs: Codecs,
    prompt: Clip,
    *,
    futures: int,
    seconds: float,
    streams: Collection[str] | None = None,
    temperature: float = 1.0,
    text_temperature: float = 0.7,
    min_p: float = 0.05,
    guidance: float = 1.0,
    steps: int = 10,
    seed: int = 0,
    context_length: int = 1024,
    max_text_run: int = 64,
    max_tokens: int = 256,
) -> list[Rollout]:
    """Let the predictor go on from a prompt, in several ways side by side.

    The prompt is read once. A stream that the prompt lacks begins where the prompt ends; a stream
    that ends earlier than the others is caught up first. Where only text goes on, it goes on to the
    end of a piece (with a model of text alone: for `max_tokens`), and a prompt of untimed text
    alone is continued inside its last piece.

    Args:
        predictor: in evaluation mode, on the device that is to work.
        codecs: the encoders that the predictor was trained with.
        prompt: frames, sound and text in the form that the encoders take; any may be missing.
        futures: in how many ways.
        seconds: how long to go on; without meaning where only text goes on.
        streams: names of the streams that go on; None for all that the predictor has.
        temperature: scale of the noise of frames and sound; 0 gives the mean.
        text_temperature: of words and of the decision whether to speak; 0 takes the likelier.
        min_p: words and codes less likely than this share of the likeliest are not drawn.
        guidance: above 1, more of what the past makes likely, in streams whose head was trained
            with `drop_condition`.
        steps: steps of the flow heads.
        seed: of the first future; the n-th is what `seed + n` alone gives. Same seed, same device,
            same number of futures: same result.
        context_length: positions that the predictor sees; give that of the training. When they are
            full, the oldest blocks go, so that half is free. A model with a shorter attention
            window sees what is in its window, however long the row.
        max_text_run: text tokens between two other blocks, at most.
        max_tokens: text tokens where only text goes on, at most.
    """
    layout = codecs.layout
    names = _wanted(layout, streams)
    clocked = [spec for spec in layout.streams if spec.name in names and spec.period_s]
    speaks = any(spec.name in names and spec.modality == Modality.TEXT for spec in layout.streams)
    _check(layout, clocked, seconds, context_length, futures)
    sampling = Sampling(temperature, text_temperature, min_p, steps, guidance, seed)
    notices = [*_unused(layout, prompt), *_unguided(predictor, names, guidance)]

    encoded = {tokens.modality: tokens for tokens in codecs.encode(prompt)}
    goes_on_inside = not clocked and set(encoded) == {Modality.TEXT} and _is_untimed_at_end(encoded)
    if goes_on_inside:
        encoded[Modality.TEXT] = _first(encoded[Modality.TEXT], -1)  # without END
    prompt_end_s = _end_s(layout, encoded)
    with torch.inference_mode():
        grown = Futures(predictor, encoded, context_length, sampling, count=futures)
        if clocked:
            clocks = [Clock.after(s, encoded.get(s.modality), prompt_end_s) for s in clocked]
            _run_clocks(grown, clocks, prompt_end_s + seconds, max_text_run if speaks else 0)
        else:
            # What is said of a video comes when its last frame was shown.
            grown.wait_until(prompt_end_s)
            stop_id = None if len(layout.streams) == 1 else codecs.text.end_id
            _run_text(grown, max_tokens, stop_id)

    results = []
    for index, row in enumerate(grown.rows):
        made = grown.made(index)
        clip = joined(codecs, prompt, encoded, made, goes_on_inside)
        told = (*notices, *_out_of_sight(row))
        results.append(Rollout(clip, prompt_end_s, list(made.values()), told))
    return results


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


def _run_clocks(futures: Futures, clocks: list[Clock], until_s: float, max_text_run: int) -> None:
    """Make every block whose period starts before `until_s`, with text between them."""
    while True:
        going = [c for c in clocks if block_start_s(c.spec, c.due_s) < until_s - SLACK_S]
        if not going:
            return
        clock = min(going, key=lambda c: c.order)
        futures.ask(clock.spec, clock.due_s)
        _run_text_before(futures, clock, max_text_run)
        futures.add_values(clock.spec, clock.due_s)
        clock.count += 1


def _run_text_before(futures: Futures, clock: Clock, max_text_run: int) -> None:
    """Text that comes before a block of the clock, in the futures that have something to say."""
    # Text that ends with the last block would stand behind a frame or sound of the same time.
    slack_s = -SLACK_S if clock.spec.modality > Modality.TEXT else SLACK_S

    def has_time(row: Row) -> bool:
        return row.now_s is None or clock.due_s > row.text_end_s + slack_s

    speaking = list(range(len(futures.rows)))
    for _ in range(max_text_run):
        speaking = [index for index in speaking if has_time(futures.rows[index])]
        speaking = futures.text_is_next(clock.spec, speaking)
        if not speaking:
            return
        futures.add_text(speaking)
        futures.ask(clock.spec, clock.due_s, speaking)


def _run_text(futures: Futures, max_tokens: int, stop_id: int | None) -> None:
    spec = futures.layout[Modality.TEXT]
    speaking = list(range(futures.count))
    for _ in range(max_tokens):
        futures.ask(spec, futures.rows[0].text_end_s, speaking)
        ids_B = futures.add_text(speaking)
        if stop_id is not None:
            said = ids_B.tolist()
            speaking = [index for index in speaking if said[index] != stop_id]
            if not speaking:
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


def _check(
    layout: Layout,
    clocked: list[StreamSpec],
    seconds: float,
    context_length: int,
    futures: int,
) -> None:
    if futures < 1:
        raise ValueError(f"futures={futures} must be at least 1")
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


def _unguided(predictor: Predictor, names: set[str], guidance: float) -> list[str]:
    """The streams on which guidance has no hold."""
    if guidance == 1:
        return []
    specs = [spec for spec in predictor.layout.streams if spec.name in names]
    deaf = [spec.name for spec in specs if not can_be_guided(predictor, spec)]
    if len(deaf) == len(specs):
        raise ValueError(
            f"guidance={guidance:g} needs a head that was trained with the past withheld; of "
            f"{', '.join(deaf)} none was: train with predictor.heads.NAME.drop_condition=0.1, or "
            "leave guidance at 1"
        )
    return [f"guidance has no hold on {n}: its head was trained without it" for n in deaf]


def _out_of_sight(row: Row) -> list[str]:
    if row.full_at_s is None:
        return []
    when = "" if math.isnan(row.full_at_s) else f" from {row.full_at_s:.2f} s on"
    return [
        f"the context of {row.limit} positions is full{when}: the oldest blocks are out of sight"
    ]
