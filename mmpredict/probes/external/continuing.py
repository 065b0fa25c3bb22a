"""Videos that a benchmark wants generated. In: a checkpoint and the `Continuation`s of a `Bench`.
Out: one mp4 each, under the name and at the rate at which it is handed in.

Shapes: T frames, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mmpredict.generate import rollout
from mmpredict.media import MediaError, read_clip, write_clip
from mmpredict.model import Predictor
from mmpredict.probes.external.bench import Bench, BenchError, Continuation
from mmpredict.schema import Clip, TextPiece, UserError
from mmpredict.tokens import Codecs

SHOWN_PX = 256  # small frames are enlarged to about this: mp4 halves the resolution of colour
PROMPT_SHARE = 0.5  # of the context that what is given may fill
SLACK_S = 1e-6


def continue_videos(  # noqa: PLR0913 - a checkpoint, a benchmark, and how
    predictor: Predictor,
    codecs: Codecs,
    bench: Bench,
    out: Path,
    *,
    context_length: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Path], dict[str, str]]:
    """Go on from the last frames of each given video, in pictures alone.

    A model that reads is also told the description, without times. Frames are those of the
    checkpoint's own size and rate; each is shown until the next one.

    Args:
        predictor: in evaluation mode, on the device that is to work.
        codecs: its encoders.
        bench: with continuations.
        out: folder.
        context_length: positions; half of them hold what is given.
        seed: of the draws, the same for every video.
        progress: told how many are done.

    Returns:
        the files, and the tasks whose given video cannot be read, with why.

    Raises:
        UserError: the checkpoint has no pictures.
        BenchError: a name is no plain file name.
    """
    if codecs.video is None:
        have = ", ".join(spec.name for spec in codecs.layout.streams)
        raise UserError(f"{bench.name} wants videos generated; this checkpoint has only {have}")
    for task in bench.continuations:
        if Path(task.file).name != task.file or not task.file:
            raise BenchError(f"{bench.name}: {task.file!r} is not a plain name of a file")
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    faults: dict[str, str] = {}
    for number, task in enumerate(bench.continuations, 1):
        try:
            given = _given(codecs, bench, task, context_length)
        except (MediaError, OSError) as error:
            faults[task.file] = str(error)
            continue
        made = rollout(
            predictor,
            codecs,
            given,
            seconds=task.seconds,
            streams=["video"],
            seed=seed,
            context_length=context_length,
        )
        path = (out / task.file).with_suffix(".mp4")
        scale = max(1, round(SHOWN_PX / max(codecs.video.height_width)))
        write_clip(path, handed_in(made.clip, made.prompt_end_s, task), fps=task.fps, scale=scale)
        written.append(path)
        if progress is not None:
            progress(number, len(bench.continuations))
    return written, faults


def handed_in(clip: Clip, start_s: float, task: Continuation) -> Clip:
    """What comes after `start_s`, at the rate that is asked for: at every moment the frame that is
    on show, and the first one before there is any."""
    after_T = clip.times_s >= start_s - SLACK_S
    frames_TCHW, times_T = clip.frames_TCHW[after_T], clip.times_s[after_T] - start_s
    asked_T = torch.arange(round(task.seconds * task.fps)).double() / task.fps
    shown_T: Tensor = torch.searchsorted(times_T.contiguous(), asked_T + SLACK_S, right=True) - 1
    return Clip(frames_TCHW=frames_TCHW[shown_T.clamp(min=0)], times_s=asked_T)


def _given(codecs: Codecs, bench: Bench, task: Continuation, context_length: int) -> Clip:
    """The last frames of the video that fit, their clock at 0, and the description."""
    video = codecs.video
    path = bench.suite.sources[task.source].video
    clip = read_clip(path, fps=video.fps, size=video.height_width, sound=False)
    if clip.frames_TCHW is None or not len(clip.frames_TCHW):
        raise MediaError(f"{path} has no frames")
    texts = (TextPiece(task.prompt),) if codecs.text is not None and task.prompt else ()
    room = int(PROMPT_SHARE * context_length)
    most = max(2, room // video.spec.positions_per_block)
    frames_TCHW = clip.frames_TCHW[-most:]
    times_s = torch.arange(len(frames_TCHW)).double() / video.fps
    return Clip(frames_TCHW=frames_TCHW, times_s=times_s, texts=texts, name=Path(path).name)
