"""`mmpredict rollout`: a checkpoint and a prompt to x.mp4, x.wav, x.txt, x.action.csv and x.png.

Only `run` imports torch; the front door reads the options without it.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmpredict.command_line import check_checkpoint

if TYPE_CHECKING:
    from mmpredict.generate import Rollout
    from mmpredict.schema import Clip
    from mmpredict.tokens import Codecs

DEFAULT_CONTEXT = 1024  # for checkpoints that do not say with how many positions they were trained


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rollout`."""
    add = parser.add_argument
    add("--ckpt", required=True, type=Path, help="checkpoint of a run")
    add(
        "--prompt",
        required=True,
        action="append",
        metavar="FILE_OR_TEXT",
        help="a video, sound or text file, a csv file of vectors as this verb writes them, or the "
        "text itself; may be given several times",
    )
    add("--seconds", type=float, default=4.0, help="how long to go on (default 4)")
    add("--out", required=True, type=Path, help="x.mp4; x.wav, x.txt, ... come beside it")
    add(
        "--streams",
        metavar="NAMES",
        help="what goes on, such as text or video,audio (default: all that the model has)",
    )
    noise = "noise of all but words; 0: their mean (default 1)"
    add("--temperature", type=float, default=1.0, help=noise)
    add(
        "--text_temperature",
        "--text-temperature",
        type=float,
        default=0.7,
        help="of the words; 0: the likeliest (default 0.7)",
    )
    add(
        "--guidance",
        type=float,
        default=1.0,
        help="above 1: more of what the past makes likely, if the head learned it (default 1)",
    )
    add(
        "--futures",
        type=int,
        default=1,
        help="in how many ways to go on; if several: x-1.mp4, x-2.mp4, ... (default 1)",
    )
    add("--steps", type=int, default=10, help="steps of the flow heads per block (default 10)")
    add("--seed", type=int, default=0, help="seed of the draws; future n has seed + n (default 0)")
    add(
        "--prompt_seconds",
        "--prompt-seconds",
        type=float,
        help="how much of a prompt file is used (default: what fills half of the context)",
    )


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What can be said of the options before torch is loaded."""
    check_checkpoint(parser, args.ckpt)
    if args.seconds <= 0 or args.steps < 1:
        parser.error(f"--seconds {args.seconds} and --steps {args.steps} must be above 0")
    if args.temperature < 0:
        parser.error(f"--temperature {args.temperature} must be 0 or more")
    if args.futures < 1:
        parser.error(f"--futures {args.futures} must be at least 1")


def run(args: argparse.Namespace) -> int:
    """Go on from the prompt, write the files and say which.

    Raises:
        ValueError: a mistake of the user, in words.
        FileNotFoundError: the checkpoint or a prompt file does not exist.
    """
    import torch

    from mmpredict.generate import rollouts, write_rollout
    from mmpredict.training.checkpoint import load_predictor

    predictor, codecs, info = load_predictor(args.ckpt)
    context_length = int(info.get("context_length") or DEFAULT_CONTEXT)
    prompt_s = args.prompt_seconds
    if prompt_s is None:
        prompt_s = _half_context_s(codecs, context_length)
    elif not prompt_s > 0:
        raise ValueError(f"--prompt_seconds {prompt_s} must be above 0")
    prompt = read_prompt(args.prompt, codecs, prompt_s)
    names = None if args.streams is None else [n.strip() for n in args.streams.split(",")]

    results = rollouts(
        predictor.to("cuda" if torch.cuda.is_available() else "cpu"),
        codecs,
        prompt,
        futures=args.futures,
        seconds=args.seconds,
        streams=names,
        temperature=args.temperature,
        text_temperature=args.text_temperature,
        guidance=args.guidance,
        steps=args.steps,
        seed=args.seed,
        context_length=context_length,
    )
    for notice in dict.fromkeys([*prompt.notices, *(n for r in results for n in r.notices)]):
        print(f"note: {notice}")
    for number, result in enumerate(results, start=1):
        out = args.out
        if len(results) > 1:
            out = out.with_name(f"{out.stem}-{number}{out.suffix}")
        for path in write_rollout(result, out):
            print(f"wrote {path}")
        _print_text(result, codecs)
    return 0


def _print_text(result: Rollout, codecs: Codecs) -> None:
    """What was said, a line per piece."""
    from mmpredict.generate.render import timed_line

    for tokens in result.tokens:
        if not codecs.layout[tokens.modality].is_discrete:
            continue
        for piece in codecs.text.decode(tokens).texts:
            if piece.text:
                print(f"text: {timed_line(piece)}")


def read_prompt(items: list[str], codecs: Codecs, prompt_s: float) -> Clip:
    """One clip from files and literal text, in the form that the encoders take.

    Args:
        items: paths or texts, in order.
        codecs: say which streams the model has, and their sizes and rates.
        prompt_s: of each file, what lies after this is left out.
    """
    from mmpredict.generate.series import SERIES_SUFFIX
    from mmpredict.media import AUDIO_SUFFIXES, TEXT_SUFFIXES, VIDEO_SUFFIXES, read_text
    from mmpredict.schema import Clip, TextPiece

    media = VIDEO_SUFFIXES + AUDIO_SUFFIXES
    known = media + TEXT_SUFFIXES + (SERIES_SUFFIX,)
    clip = Clip(name="prompt")
    for item in items:
        suffix = os.path.splitext(item)[1].lower()
        if not _is_path(item, known):
            if not item.strip():
                raise ValueError("--prompt is empty; give a file or a text")
            clip = replace(clip, texts=(*clip.texts, TextPiece(item)))
        elif not os.path.isfile(item):
            raise FileNotFoundError(f"--prompt {item} looks like a path, but no such file exists")
        elif suffix in TEXT_SUFFIXES:
            pieces = read_text(item)
            kept = [p for p in pieces if p.end_s is None or p.end_s <= prompt_s]
            if not kept:
                raise ValueError(f"--prompt {item} has no text within its first {prompt_s:.2f} s")
            clip = replace(clip, texts=(*clip.texts, *kept))
        elif suffix in media:
            clip = _with_media(clip, item, codecs, prompt_s)
        elif suffix == SERIES_SUFFIX:
            clip = _with_series(clip, item, codecs, prompt_s)
        else:
            raise ValueError(f"--prompt {item} is not of a known kind: {' '.join(known)}")
    if clip.texts and codecs.text is None:
        raise ValueError(f"--prompt has text, but this checkpoint has only {_names(codecs)}")
    return clip


def _names(codecs: Codecs) -> str:
    return ", ".join(spec.name for spec in codecs.layout.streams)


def _with_series(clip: Clip, path: str, codecs: Codecs, prompt_s: float) -> Clip:
    """Add the vectors of a file that lie within the prompt."""
    from mmpredict.generate.series import read_table
    from mmpredict.schema import Series

    name, series = read_table(path)
    if name not in codecs.series:
        raise ValueError(f"--prompt {path} is of {name}, this checkpoint has {_names(codecs)}")
    if name in clip.series:
        raise ValueError(f"--prompt {path} is of {name}, and so is an earlier prompt; give one")
    width = codecs.series[name].width
    if series.values_TD.shape[1] != width:
        got = f"{series.values_TD.shape[1]} values per vector"
        raise ValueError(f"--prompt {path} has {got}, this checkpoint takes {width}")
    kept = series.times_s < prompt_s - 1e-6
    if not bool(kept.any()):
        raise ValueError(f"--prompt {path} has no vector within its first {prompt_s:.2f} s")
    series = Series(series.values_TD[kept], series.times_s[kept])
    return replace(clip, series={**clip.series, name: series})


def _with_media(clip: Clip, path: str, codecs: Codecs, prompt_s: float) -> Clip:
    """Add the streams of a file that the model takes."""
    from mmpredict.media import read_clip

    video, audio = codecs.video, codecs.audio
    if video is None and audio is None:
        raise ValueError(f"--prompt {path}: this checkpoint has only {_names(codecs)}")
    read = read_clip(
        path,
        duration_s=prompt_s,
        fps=video.fps if video else None,
        size=video.height_width if video else None,
        sample_rate=audio.sample_rate if audio else None,
        channels=audio.channels if audio else None,
        frames=video is not None,
        sound=audio is not None,
    )
    for stream in ("frames_TCHW", "waveform_CS"):
        if getattr(read, stream) is not None and getattr(clip, stream) is not None:
            kind = "frames" if stream == "frames_TCHW" else "sound"
            raise ValueError(f"--prompt {path} has {kind}, and so has an earlier prompt; give one")
    if read.frames_TCHW is not None:
        clip = replace(clip, frames_TCHW=read.frames_TCHW, times_s=read.times_s)
    if read.waveform_CS is not None:
        clip = replace(
            clip,
            waveform_CS=read.waveform_CS,
            sample_rate=read.sample_rate,
            waveform_start_s=read.waveform_start_s,
        )
    return replace(clip, name=read.name, notices=(*clip.notices, *read.notices))


def _is_path(item: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a prompt means a file. A sentence may hold a slash: "on the left/right side"."""
    if "\n" in item:
        return False
    separators = {os.sep, os.altsep or os.sep}
    one_word = not any(char.isspace() for char in item)
    starts = item.startswith(("/", "./", "../", "~"))
    has_separator = any(sep in item for sep in separators)
    known = item.lower().endswith(suffixes)
    return known or starts or (has_separator and (one_word or os.path.isfile(item)))


def _half_context_s(codecs: Codecs, context_length: int) -> float:
    """Seconds that fill half of the context, in whole periods of the slowest clocked stream."""
    clocked = [spec for spec in codecs.layout.streams if spec.period_s]
    if not clocked:
        return float("inf")
    per_s = sum(spec.positions_per_block / spec.period_s for spec in clocked)
    slowest_s = max(spec.period_s for spec in clocked)
    return max(1, int(context_length / 2 / per_s / slowest_s)) * slowest_s
