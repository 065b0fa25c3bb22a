"""A Clip to things that a person can look at. In: a Clip and where its prompt ends. Out: files.

Shapes: T frames, C channels (colours or ears), H W pixels, S samples, J spectra, F mel bins.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmpredict.generate.rollout import Rollout
from mmpredict.generate.series import (
    SERIES_SUFFIX,
    draw_lanes,
    lanes_height,
    table_path,
    write_table,
)
from mmpredict.media import AUDIO_SUFFIXES, VIDEO_SUFFIXES, write_clip, write_wav
from mmpredict.media.writer import written_whole
from mmpredict.schema import Clip, TextPiece
from mmpredict.tokens import MelChunks

SHOWN_PX = 256  # small frames are enlarged to about this
SUBTITLE_S = 1.0  # a word that came in an instant is shown for so long
DPI = 100
MARGIN_PX = {"left": 56, "right": 16, "top": 38, "bottom": 34, "gap": 8}
SOUND_PX, LANE_PX, CHAR_PX = 96, 18, 6.6  # heights of a panel and a line of text, width of a letter
MAX_LANES = 8
MAX_FRAMES_PX = 400  # two frames are not drawn as high as the whole is wide
PROMPT_COLOUR, ROLLOUT_COLOUR = "#5b6770", "#c8501e"


@dataclass(frozen=True)
class _Line:
    """A piece of text as it is drawn: its lane from above, its left end, its words."""

    lane: int
    left_s: float
    words: str
    piece: TextPiece


def strip(
    clip: Clip, *, prompt_end_s: float | None = None, max_frames: int = 16, width: int = 1600
) -> Tensor:
    """Draw a clip over its time axis: frames, the sound of each ear, series, the text.

    Args:
        clip: frames, sound or series, with or without text.
        prompt_end_s: where the prompt ends; a line marks it, frames change their border.
        max_frames: at most so many frames, evenly spaced.
        width: of the image, pixels.

    Returns:
        (H, W, 3) uint8; H depends on what there is to see.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series = {name: s for name, s in clip.series.items() if len(s.times_s)}
    if clip.frames_TCHW is None and clip.waveform_CS is None and not series:
        raise ValueError(
            f"{clip.name or 'clip'}: a strip needs frames or sound or series; this has none"
        )
    start_s, end_s = _span(clip)
    inner = width - MARGIN_PX["left"] - MARGIN_PX["right"]
    lines = _lanes(clip.texts, (start_s, end_s), (end_s - start_s) / inner)
    columns = _columns(clip, start_s, end_s, max_frames)
    ears = 0 if clip.waveform_CS is None else len(clip.waveform_CS)
    heights = [SOUND_PX] * ears
    if columns:
        heights.insert(0, _frames_height(clip, inner * columns[0][2] / (end_s - start_s)))
    heights += [lanes_height(vectors) for vectors in series.values()]
    if lines:
        heights.append(LANE_PX * _num_lanes(lines))
    gaps = MARGIN_PX["gap"] * (len(heights) - 1)
    height = MARGIN_PX["top"] + sum(heights) + gaps + MARGIN_PX["bottom"]

    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    panels = _panels(figure, heights, (width, height), (start_s, end_s))
    rest = list(panels)
    if columns:
        _draw_frames(rest.pop(0), clip, columns, prompt_end_s)
    if ears:
        _draw_sound(rest[:ears], clip)
    colours = (PROMPT_COLOUR, ROLLOUT_COLOUR)
    for axes, (name, vectors) in zip(rest[ears:], series.items(), strict=False):
        draw_lanes(axes, name, vectors, prompt_end_s=prompt_end_s, colours=colours)
    if lines:
        _draw_text(rest[-1], lines, prompt_end_s)
    _draw_prompt_end(panels, (start_s, end_s), prompt_end_s)
    with warnings.catch_warnings():  # the font lacks many scripts; it draws boxes for them
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def write_rollout(rollout: Rollout, out: Path) -> list[Path]:
    """Write x.mp4 (frames, sound, subtitles), x.wav, x.txt (times and text), x.action.csv (and so
    for each series) and x.png (`strip`).

    A file is written only if there is something for it: no mp4 without frames, no wav without
    sound, no txt without text, and no png for text alone. Each appears whole or not at all.

    Args:
        rollout: what to write.
        out: where; one of these names, or their common start. The folder is made if needed.

    Returns:
        the files written.
    """
    stem = _stem(Path(out))
    stem.parent.mkdir(parents=True, exist_ok=True)
    clip, written = rollout.clip, []

    def path(suffix: str) -> Path:
        written.append(stem.with_name(stem.name + suffix))
        return written[-1]

    if clip.frames_TCHW is not None and len(clip.frames_TCHW):
        scale = max(1, round(SHOWN_PX / max(clip.frames_TCHW.shape[2:])))
        write_clip(path(".mp4"), _watchable(clip), scale=scale)
    if clip.waveform_CS is not None:
        # The clock of the sound file is that of the others: silence up to the first sound.
        silence = max(0, round(clip.waveform_start_s * clip.sample_rate))
        padded = torch.nn.functional.pad(clip.waveform_CS, (silence, 0))
        write_wav(path(".wav"), padded, clip.sample_rate)
    if clip.texts:
        with written_whole(path(".txt")) as file:
            lines = "".join(f"{timed_line(piece)}\n" for piece in clip.texts)
            file.write(lines.encode("utf-8", errors="replace"))
    series = {name: s for name, s in clip.series.items() if len(s.times_s)}
    for name, vectors in series.items():
        written.append(table_path(stem, name))
        with written_whole(written[-1]) as file:
            write_table(file, name, vectors)
    if clip.frames_TCHW is not None or clip.waveform_CS is not None or series:
        from matplotlib.image import imsave

        with written_whole(path(".png")) as file:
            image = strip(clip, prompt_end_s=rollout.prompt_end_s)
            imsave(file, image.numpy(), format="png")
    return written


def timed_line(piece: TextPiece) -> str:
    """A piece on one line: its times in seconds, then its text."""
    times = "" if piece.start_s is None else f"[{piece.start_s:7.3f} - {piece.end_s:7.3f}] "
    return times + printable(piece.text)


def printable(text: str) -> str:
    """On one line, without characters that a screen cannot show."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))


def _stem(out: Path) -> Path:
    if out.suffix.lower() in (".mp4", ".wav", ".txt", ".png", SERIES_SUFFIX):
        return out.with_suffix("")
    if out.suffix.lower() in VIDEO_SUFFIXES + AUDIO_SUFFIXES:
        raise ValueError(f"{out}: {out.suffix} is not written; give {out.with_suffix('.mp4')}")
    return out


def _watchable(clip: Clip) -> Clip:
    """For the eye: words that came in an instant stay for a while.

    Words after the last frame (what is said of a video) would never be seen: the frame is held.
    """
    texts: list[TextPiece] = []
    period_s, last_s = _period_s(clip), float(clip.times_s[-1])
    starts = [piece.start_s for piece in clip.texts if piece.start_s is not None]
    for piece in clip.texts:
        if piece.start_s is not None:
            later = min((s for s in starts if s > piece.end_s), default=float("inf"))
            shown_until = min(later, piece.start_s + SUBTITLE_S)
            if piece.start_s < last_s:
                shown_until = min(shown_until, last_s + period_s)
            piece = replace(piece, text=printable(piece.text), end_s=max(piece.end_s, shown_until))
        texts.append(piece)
    frames, times_s = clip.frames_TCHW, clip.times_s
    until_s = max((p.end_s for p in texts if p.end_s is not None), default=0.0)
    missing = round(min(SUBTITLE_S, until_s - last_s - period_s) / period_s)
    if missing > 0:
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
        held_s = last_s + period_s * torch.arange(1, missing + 1).double()
        times_s = torch.cat([times_s, held_s])
    return replace(clip, frames_TCHW=frames, times_s=times_s, texts=tuple(texts))


def _seconds(time_s: float) -> str:
    return f"{time_s:.3f}".rstrip("0").rstrip(".")


def _period_s(clip: Clip) -> float:
    """Typical time between frames."""
    return float(clip.times_s.diff().median()) if len(clip.times_s) > 1 else 0.125


def _span(clip: Clip) -> tuple[float, float]:
    """First and last moment at which there is a frame, a sound, a vector or a word."""
    starts = [p.start_s for p in clip.texts if p.start_s is not None]
    ends = [p.end_s for p in clip.texts if p.end_s is not None]
    if clip.frames_TCHW is not None and len(clip.frames_TCHW):
        starts.append(float(clip.times_s[0]))
        ends.append(float(clip.times_s[-1]) + _period_s(clip))
    if clip.waveform_CS is not None:
        starts.append(clip.waveform_start_s)
        ends.append(clip.waveform_start_s + clip.waveform_CS.shape[1] / clip.sample_rate)
    for series in clip.series.values():
        starts += series.times_s[:1].tolist()
        ends += series.times_s[-1:].tolist()
    start_s = min(starts, default=0.0)
    return start_s, max([*ends, start_s + 0.01])


def _columns(
    clip: Clip, start_s: float, end_s: float, max_frames: int
) -> list[tuple[int, float, float]]:
    """(index of the frame, left edge, width in seconds) of the frames that are drawn."""
    if clip.frames_TCHW is None or not len(clip.frames_TCHW):
        return []
    period_s = _period_s(clip)
    # The drawn frames stand on the time axis, so they are every n-th of the clip.
    every = -(-max(1, round((end_s - start_s) / period_s)) // max_frames)
    chosen = range(0, len(clip.times_s), every)
    return [(k, float(clip.times_s[k]), every * period_s) for k in chosen]


def _frames_height(clip: Clip, column_px: float) -> int:
    """Pixels of the panel in which every frame is `column_px` wide."""
    H, W = clip.frames_TCHW.shape[2:]
    return min(MAX_FRAMES_PX, max(24, round(column_px * H / W)))


def _lanes(
    texts: tuple[TextPiece, ...], span_s: tuple[float, float], s_per_px: float
) -> list[_Line]:
    """Give every piece a lane on which it covers no other; what finds none is left out."""
    free_from_s = [float("-inf")] * MAX_LANES
    room = int((span_s[1] - span_s[0]) / s_per_px / CHAR_PX)
    lines = []
    for piece in texts:
        words = printable(piece.text)
        words = words if len(words) <= room else words[: room - 3] + "..."
        length_s = len(words) * CHAR_PX * s_per_px
        start_s = span_s[0] if piece.start_s is None else piece.start_s
        left_s = max(span_s[0], min(start_s, span_s[1] - length_s))  # not beyond the right edge
        lane = next((i for i, free in enumerate(free_from_s) if free <= left_s), None)
        if lane is not None:
            ends_s = (left_s + length_s + 2 * CHAR_PX * s_per_px, piece.end_s or 0.0)
            free_from_s[lane] = max(ends_s)
            lines.append(_Line(lane, left_s, words, piece))
    return lines


def _num_lanes(lines: list[_Line]) -> int:
    return max(2, 1 + max(line.lane for line in lines))


def _panels(
    figure: Any, heights: list[int], size: tuple[int, int], span_s: tuple[float, float]
) -> list[Any]:
    """Axes one below the other, on one time axis; the lowest carries its numbers."""
    width, height = size
    inner = width - MARGIN_PX["left"] - MARGIN_PX["right"]
    top, panels = height - MARGIN_PX["top"], []
    for tall in heights:
        top -= tall
        box = (MARGIN_PX["left"] / width, top / height, inner / width, tall / height)
        axes = figure.add_axes(box)
        axes.set_xlim(*span_s)
        axes.set_yticks([])
        axes.tick_params(labelbottom=False, bottom=False, labelsize=8)
        for side in axes.spines.values():
            side.set_visible(False)
        panels.append(axes)
        top -= MARGIN_PX["gap"]
    panels[-1].tick_params(labelbottom=True, bottom=True)
    panels[-1].spines["bottom"].set_visible(True)
    panels[-1].set_xlabel("seconds", fontsize=8, labelpad=1)
    return panels


def _draw_frames(
    axes: Any, clip: Clip, columns: list[tuple[int, float, float]], prompt_end_s: float | None
) -> None:
    from matplotlib.patches import Rectangle

    axes.set_ylim(0, 1)
    axes.set_ylabel("frames", fontsize=8)
    for k, left_s, length_s in columns:
        image = clip.frames_TCHW[k].permute(1, 2, 0).expand(-1, -1, 3).numpy()
        right_s = left_s + 0.97 * length_s
        axes.imshow(image, extent=(left_s, right_s, 0, 1), aspect="auto", interpolation="nearest")
        made = prompt_end_s is not None and left_s >= prompt_end_s - 1e-6
        colour = ROLLOUT_COLOUR if made else PROMPT_COLOUR
        frame = Rectangle((left_s, 0), right_s - left_s, 1, fill=False, lw=3, ec=colour)
        axes.add_patch(frame)
        axes.text(left_s, 1.02, _seconds(left_s), fontsize=8, va="bottom", color=colour)
    axes.set_xlim(*axes.figure.axes[0].get_xlim())


def _draw_sound(panels: list[Any], clip: Clip) -> None:
    """Log-mel power, one panel per ear, in common colours."""
    hop = max(1, round(clip.sample_rate / 100))
    ears = len(clip.waveform_CS)
    mels = MelChunks(clip.sample_rate, min(2, ears), chunk_s=4 * hop / clip.sample_rate, hops=4)
    whole = clip.waveform_CS.shape[1] // hop * hop
    if not whole:
        return
    log_mel_CJF = mels.log_mel(clip.waveform_CS[:, :whole].float())
    high = float(log_mel_CJF.max())
    names = ("left", "right") if ears == 2 else ("sound",) * ears
    end_s = clip.waveform_start_s + whole / clip.sample_rate
    for axes, spectra_JF, name in zip(panels, log_mel_CJF, names, strict=True):
        span_s = axes.get_xlim()
        axes.imshow(
            spectra_JF.T.numpy(),
            extent=(clip.waveform_start_s, end_s, 0, 1),
            aspect="auto",
            origin="lower",
            cmap="magma",
            vmin=high - 14,  # 60 dB
            vmax=high,
        )
        axes.set_xlim(*span_s)
        axes.set_ylabel(name, fontsize=8)


def _draw_text(axes: Any, lines: list[_Line], prompt_end_s: float | None) -> None:
    """Each piece at its time, over a bar as long as it lasts; text without a time at the left."""
    axes.set_ylim(_num_lanes(lines), 0)
    axes.set_ylabel("text", fontsize=8)
    for line in lines:
        start_s, end_s = line.piece.start_s, line.piece.end_s
        made = None not in (prompt_end_s, end_s) and end_s >= prompt_end_s - 1e-6
        look = {
            "fontsize": 8,
            "color": ROLLOUT_COLOUR if made else PROMPT_COLOUR,
            "style": "italic" if start_s is None else "normal",
        }
        words = line.words.replace("\ufffd", "?")  # fonts lack the sign
        moved = start_s is not None and line.left_s < start_s
        place = (axes.get_xlim()[1], "right") if moved else (line.left_s, "left")
        at = {"x": place[0], "y": line.lane + 0.45, "ha": place[1], "va": "center"}
        axes.text(s=words, parse_math=False, **at, **look)
        if start_s is not None:
            bar_s = (start_s, max(end_s, start_s + 0.002))
            axes.hlines(line.lane + 0.92, *bar_s, color=look["color"], lw=2, clip_on=False)


def _draw_prompt_end(
    panels: list[Any], span_s: tuple[float, float], prompt_end_s: float | None
) -> None:
    if prompt_end_s is None or not span_s[0] < prompt_end_s < span_s[1]:
        return
    for axes in panels:
        axes.axvline(prompt_end_s, color=ROLLOUT_COLOUR, lw=1.5, ls="--")
    panels[0].figure.text(
        0.5,
        0.995,
        f"prompt up to {prompt_end_s:.2f} s (grey), then rollout (orange)",
        ha="center",
        va="top",
        fontsize=8,
        color=ROLLOUT_COLOUR,
    )
