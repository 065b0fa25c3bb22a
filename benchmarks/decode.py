"""How fast frames and sound come off the disk, beside decoding alone, torchcodec and plain seeks.

All sides run in this process in interleaved rounds, one thread each, judged by CPU time. The clips
are made here: 256x256, H.264 crf 23 with x264's default GOP (250), 30 frames a second, 16 kHz mono
AAC; every frame carries its number. Frames come out at 64x64; sound is decoded on every side.

- decode_vs_decode_only: CPU-ms per frame of `read_clip` (demux, decode, resize, colours, sound laid
  on the clock) over PyAV that demuxes and decodes the same two streams of the same files and drops
  what comes. Goal <= 1.5.
- decode_vs_torchcodec: frames per CPU-second of `read_clip` over torchcodec with its Resize and its
  sound decoder. Goal >= 1.3; null, with the reason, where torchcodec cannot be used.
- windows_vs_seek: CPU-ms per random 16-frame window of a plain PyAV reader (containers stay open;
  seek, decode, resize, sound) over `read_windows` of neighbours and a shuffle buffer. Goal >= 5.
- raw_vs_seek: the same plain reader over a store of raw shards, hashes checked. Goal >= 20.

Equality first: nothing is reported unless the numbers in the frames are right on every side.
Run: python benchmarks/decode.py [--smoke] [--json FILE]
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import decode_sides as sides  # noqa: E402
from decode_sides import FPS, RATE, burnt_numbers  # noqa: E402
from harness import Timing, parse_arguments, print_table, time_interleaved, write_result  # noqa: E402

from mmpredict.media import read_clip, read_windows  # noqa: E402
from mmpredict.schema import Clip  # noqa: E402
from mmpredict.shards import Store  # noqa: E402

SIZE = (64, 64)
REAL_SIZE = (360, 640)
REAL_SMALL = (64, 114)
WINDOW = 16  # frames
WINDOW_S = WINDOW / FPS
BUFFER = 256  # windows
REAL_CLIPS = Path(os.environ.get("MMPREDICT_REAL_CLIPS", "~/.cache/mmpredict/real_clips"))
GOALS = {
    "decode_vs_decode_only": "<= 1.5",
    "decode_vs_torchcodec": ">= 1.3",
    "windows_vs_seek": ">= 5",
    "raw_vs_seek": ">= 20",
}


@dataclass
class Report:
    """What has been measured so far."""

    ratios: dict[str, float | None] = field(default_factory=dict)
    figures: dict[str, object] = field(default_factory=dict)

    def time(
        self,
        calls: dict[str, Callable[[], object]],
        amounts: dict[str, int],
        unit: str,
        rounds: int,
    ) -> dict[str, float]:
        """Time calls in turn, print them; returns CPU-ms per unit, the middle round of each."""
        timings = time_interleaved(calls, rounds=rounds)
        rows, middles = [], {}
        for name, timing in timings.items():
            middles[name] = 1000 * timing.cpu_median_s / amounts[name]
            rows.append([name, *_cells(timing, amounts[name])])
            self.figures[name] = {
                f"cpu_ms_per_{unit}": middles[name],
                f"cpu_ms_per_{unit}_least": 1000 * timing.cpu_min_s / amounts[name],
                f"cpu_ms_per_{unit}_most": 1000 * timing.cpu_max_s / amounts[name],
                f"wall_ms_per_{unit}": 1000 * timing.wall_median_s / amounts[name],
                f"{unit}s": amounts[name],
                "rounds": timing.rounds,
            }
        print_table(["side", f"CPU-ms per {unit}", "least to most", "wall-ms"], rows)
        return middles


def _cells(timing: Timing, amount: int) -> list[str]:
    least, middle, most = (
        1000 * s / amount for s in (timing.cpu_min_s, timing.cpu_median_s, timing.cpu_max_s)
    )
    wall = 1000 * timing.wall_median_s / amount
    return [f"{middle:.4f}", f"{least:.4f} to {most:.4f}", f"{wall:.4f}"]


def _check(numbers: Iterable[int], first: int, count: int, who: str) -> None:
    """Stop the benchmark where a side gave other frames than it was asked for."""
    found = list(numbers)
    if found != list(range(first, first + count)):
        raise SystemExit(f"{who} gave frames {found[:20]}, not {count} from {first} on")


def sequential(report: Report, folder: Path, smoke: bool) -> None:
    """Whole files, one after the other."""
    count, frames, rounds = (2, 90, 2) if smoke else (6, 300, 5)
    paths = [
        sides.encode(
            folder / f"clip{seed}.mp4",
            sides.drawn(frames, seed),
            sides.tone(frames / FPS + 1, seed),
        )
        for seed in range(count)
    ]
    reader = sides.torchcodec_reader(SIZE)
    exact = sides.exact_frames(paths[0])
    clip = read_clip(paths[0], size=SIZE)
    _check(burnt_numbers(clip.frames_TCHW), 0, frames, "read_clip")
    errors = {"read_clip": float(abs(clip.frames_TCHW.numpy() - exact).mean())}
    calls: dict[str, Callable[[], object]] = {
        "read_clip": lambda: [read_clip(path, size=SIZE) for path in paths],
        "decode_only": lambda: [sides.decode_only(path) for path in paths],
    }
    if isinstance(reader, str):
        print(f"skipped: {reader}")
        report.figures["torchcodec_skipped"] = reader
    else:
        theirs, sound = reader(paths[0])
        _check(burnt_numbers(theirs), 0, frames, "torchcodec")
        errors["torchcodec"] = float(abs(theirs.numpy() - exact).mean())
        length = min(sound.shape[1], clip.waveform_CS.shape[1])
        apart = (sound[:, :length] - clip.waveform_CS[:, :length]).abs().max()
        report.figures["sound_apart_from_torchcodec"] = float(apart)
        calls["torchcodec"] = lambda: [reader(path) for path in paths]
    for who, error in errors.items():
        print(f"{who}: {error:.2f} grey levels off the box filter of the full frame, on average")
    report.figures["grey_levels_off_box_filter"] = errors
    middles = report.time(calls, dict.fromkeys(calls, count * frames), "frame", rounds)
    report.ratios["decode_vs_decode_only"] = middles["read_clip"] / middles["decode_only"]
    report.ratios["decode_vs_torchcodec"] = (
        middles["torchcodec"] / middles["read_clip"] if "torchcodec" in middles else None
    )


def shuffled(clips: Iterable[Clip], chance: random.Random) -> Iterator[Clip]:
    """Clips in random order out of a buffer."""
    buffer: list[Clip] = []
    for clip in clips:
        if len(buffer) < BUFFER:
            buffer.append(clip)
            continue
        place = chance.randrange(BUFFER)
        yield buffer[place]
        buffer[place] = clip
    chance.shuffle(buffer)
    yield from buffer


def in_runs(
    paths: list[Path], windows: int, at_once: int, size: tuple[int, int], chance: random.Random
) -> Iterator[Clip]:
    """All windows of all files, a run of neighbours per open, runs in random order."""
    runs = [(path, first) for path in paths for first in range(0, windows, at_once)]
    chance.shuffle(runs)
    for path, first in runs:
        count = min(at_once, windows - first)
        found = read_windows(
            path, first * WINDOW_S, WINDOW_S, count, fps=float(FPS), size=size, sample_rate=RATE
        )
        for clip in found:
            if not isinstance(clip, Clip):
                raise clip
            yield clip


def _check_windows(paths: list[Path], windows: int, size: tuple[int, int], who: str) -> float:
    """Both sides give the right frames, and the same sound; returns how far their frames are
    apart."""
    seeker, apart = sides.PlainSeeker(WINDOW, size), 0.0
    for path in paths:
        found = read_windows(
            path, 0.0, WINDOW_S, windows, fps=float(FPS), size=size, sample_rate=RATE
        )
        for number, clip in enumerate(found):
            frames, sound = seeker.read(path, number * WINDOW)
            _check(burnt_numbers(clip.frames_TCHW), number * WINDOW, WINDOW, f"{who}: read_windows")
            _check(burnt_numbers(frames), number * WINDOW, WINDOW, f"{who}: plain seek")
            length = min(len(sound), clip.waveform_CS.shape[1])
            if length < 0.99 * WINDOW_S * RATE or (
                (sound[:length] - clip.waveform_CS[0, :length]).abs().max() > 1e-6
            ):
                raise SystemExit(f"{who}: the sound of window {number} of {path.name} differs")
            apart += float((frames.float() - clip.frames_TCHW.float()).abs().mean())
    return apart / (windows * len(paths))


def windows(
    report: Report, paths: list[Path], frames: int, size: tuple[int, int], *, name: str, rounds: int
) -> float:
    """Random windows by seeks, and all windows by runs; returns CPU-ms per window by seeks."""
    count = frames // WINDOW
    apart = _check_windows(paths, count, size, name)
    print(f"{name}: frames of the two sides are {apart:.2f} grey levels apart on average")
    report.figures[f"{name}_grey_levels_apart"] = apart
    chance = random.Random(0)
    seeker = sides.PlainSeeker(WINDOW, size)
    asked = min(60, count * len(paths))
    seek = f"{name}_plain_seek"

    def by_seeks() -> None:
        for _ in range(asked):
            seeker.read(chance.choice(paths), chance.randrange(count) * WINDOW)

    def by_runs(at_once: int) -> Callable[[], int]:
        return lambda: sum(
            1 for _ in shuffled(in_runs(paths, count, at_once, size, chance), chance)
        )

    runs = {f"{name}_runs_of_{n}": by_runs(n) for n in (16, 32, count) if n <= count}
    calls = {seek: by_seeks, **runs}
    amounts = {seek: asked, **dict.fromkeys(runs, count * len(paths))}
    middles = report.time(calls, amounts, "window", rounds)
    for run in runs:
        report.figures[run]["times_cheaper_than_seeks"] = middles[seek] / middles[run]  # type: ignore[index]
        print(f"{run}: {middles[seek] / middles[run]:.2f} times cheaper than plain seeks")
    report.ratios[f"{name}_vs_seek"] = middles[seek] / middles[f"{name}_runs_of_{min(32, count)}"]
    return middles[seek]


def raw_shards(
    report: Report, paths: list[Path], folder: Path, seek_ms: float, rounds: int
) -> None:
    """The same windows out of raw shards, at random, every hash checked."""
    shards = folder / "shards"
    command = [sys.executable, "-m", "mmpredict", "prepare", str(paths[0].parent)]
    command += ["--out", str(shards), "--raw", "--size", f"{SIZE[0]}x{SIZE[1]}", "--fps", str(FPS)]
    command += ["--clip_seconds", repr(WINDOW_S), "--sample_rate", str(RATE), "--channels", "1"]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"mmpredict prepare failed:\n{done.stdout}{done.stderr}")
    store = Store(shards, check=True)
    whole = []
    for sample in store.index.samples:
        clip = store.read(sample)
        numbers = burnt_numbers(clip.frames_TCHW)
        if len(numbers) == WINDOW:
            _check(numbers, numbers[0], WINDOW, "raw shards")
            whole.append(sample)
    expected = len(paths) * (int(read_clip(paths[0]).times_s.numel()) // WINDOW)
    if len(whole) != expected:
        raise SystemExit(f"the shards hold {len(whole)} whole windows, not {expected}")
    chance = random.Random(0)

    def read() -> None:
        for _ in range(200):
            clip = store.read(chance.choice(whole))
            assert clip.frames_TCHW is not None and clip.waveform_CS is not None

    middles = report.time({"raw_shards": read}, {"raw_shards": 200}, "window", rounds)
    report.ratios["raw_vs_seek"] = seek_ms / middles["raw_shards"]


def real(report: Report, folder: Path, frames: int, rounds: int) -> None:
    """The same on a real film, where there is one."""
    source = REAL_CLIPS.expanduser() / "bigbuckbunny.mp4"
    if not source.is_file():
        reason = f"no {source.name}; run examples/fetch_real_clips.py, or set MMPREDICT_REAL_CLIPS"
        print(f"skipped the real film: {reason}")
        report.figures["real_skipped"] = reason
        return
    sound = read_clip(source, frames=False, sample_rate=RATE, channels=1).waveform_CS[0].numpy()
    repeats = int(frames / FPS * RATE // len(sound)) + 2
    path = sides.encode(
        folder / "real.mp4",
        sides.filmed(source, frames, REAL_SIZE),
        torch.from_numpy(sound).repeat(repeats).numpy(),
        fixed_gop=True,
    )
    windows(report, [path], frames, REAL_SMALL, name="real_windows", rounds=rounds)
    report.figures["real_windows_vs_seek"] = report.ratios.pop("real_windows_vs_seek")


def main() -> None:
    """Whole files, then windows, then the same windows from shards and from a real film."""
    arguments = parse_arguments(__doc__)
    torch.set_num_threads(1)
    report = Report()
    smoke = arguments.smoke
    count, frames, rounds = (1, 330, 2) if smoke else (3, 1500, 5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("whole files, read one after the other")
        sequential(report, folder, smoke)
        long = folder / "long"
        long.mkdir()
        paths = [
            sides.encode(
                long / f"clip{seed}.mp4",
                sides.drawn(frames, seed),
                sides.tone(frames / FPS + 1, seed),
            )
            for seed in range(count)
        ]
        print(f"\nrandom windows of {WINDOW} frames, a key frame every 250")
        seek_ms = windows(report, paths, frames, SIZE, name="windows", rounds=rounds)
        raw_shards(report, paths, folder, seek_ms, rounds)
        if smoke:
            report.figures["real_skipped"] = "--smoke"
        else:
            print(f"\nthe same windows of a real film at {REAL_SIZE[1]}x{REAL_SIZE[0]}")
            real(report, folder, frames, rounds)
    print()
    for ratio, goal in GOALS.items():
        value = report.ratios[ratio]
        print(f"{ratio}: {'null' if value is None else f'{value:.2f}'} (goal {goal})")
    write_result(arguments.json, "decode", ratios=report.ratios, figures=report.figures)


if __name__ == "__main__":
    main()
