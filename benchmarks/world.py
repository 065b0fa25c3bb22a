"""How fast the embedded world films: frames a second on one core, everything included.

Everything: layout, physics, frames, stereo sound, captions, questions and truth of every clip.
Rates are frames per second of CPU time; the rate of a setting is that of its middle round.
Run: python benchmarks/world.py [--smoke] [--json FILE]
Target: >= 1000 frames/s at 64x64, 8 fps, 2 s clips.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from harness import parse_arguments, print_table, time_interleaved, write_result  # noqa: E402

from mmpredict.world import FAMILIES, Scene, draw_scene  # noqa: E402

_SECONDS = 2.0
_TARGET = 1000.0
# name: (size px, frames per second, what else `record` is told)
_SETTINGS: dict[str, tuple[int, float, dict[str, bool]]] = {
    "64px_8fps": (64, 8.0, {}),
    "32px_8fps": (32, 8.0, {}),
    "64px_25fps": (64, 25.0, {}),
    "128px_8fps": (128, 8.0, {}),
    "64px_8fps_silent": (64, 8.0, {"sound": False}),
    "64px_8fps_unseen": (64, 8.0, {"frames": False}),
    "64px_8fps_words_only": (64, 8.0, {"frames": False, "sound": False}),
}


def _films(
    scenes: list[Scene], size: int, fps: float, leave_out: dict[str, bool]
) -> Callable[[], None]:
    def film() -> None:
        for scene in scenes:
            scene.record(size, fps, **leave_out)

    return film


def main() -> None:
    """Time every setting over all families, then the main setting family by family."""
    arguments = parse_arguments(__doc__)
    torch.set_num_threads(1)
    clips, rounds = (4, 2) if arguments.smoke else (40, 5)
    by_family = {
        family: [draw_scene(k, split="train", families=(family,)) for k in range(clips)]
        for family in FAMILIES
    }
    everything = [scene for scenes in by_family.values() for scene in scenes]
    calls, frames = {}, {}
    for name, (size, fps, leave_out) in _SETTINGS.items():
        calls[name] = _films(everything, size, fps, leave_out)
        frames[name] = len(everything) * round(_SECONDS * fps)
    for family, scenes in by_family.items():
        name = f"64px_8fps_{family}"
        calls[name] = _films(scenes, 64, 8.0, {})
        frames[name] = len(scenes) * round(_SECONDS * 8.0)
    timings = time_interleaved(calls, rounds=rounds)
    rows, figures = [], {}
    for name, timing in timings.items():
        count = frames[name]
        spread = f"{count / timing.cpu_max_s:.0f} to {count / timing.cpu_min_s:.0f}"
        per_clip_ms = 1000 * timing.cpu_median_s / (count / round(_SECONDS * _fps(name)))
        rows.append([name, f"{count / timing.cpu_median_s:.0f}", spread, f"{per_clip_ms:.2f}"])
        figures[name] = {
            "frames_per_cpu_s": count / timing.cpu_median_s,
            "frames_per_wall_s": count / timing.wall_median_s,
            "ms_per_clip": per_clip_ms,
            "frames": count,
            **asdict(timing),
        }
    print_table(["setting", "frames/s", "least to most", "ms per 2 s clip"], rows)
    main_rate = figures["64px_8fps"]["frames_per_cpu_s"]
    print(f"64x64 at 8 fps: {main_rate / _TARGET:.2f} times the target of {_TARGET:.0f} frames/s")
    ratios = {
        "rate_over_target": main_rate / _TARGET,
        "32px_over_64px": figures["32px_8fps"]["frames_per_cpu_s"] / main_rate,
        "25fps_over_8fps": figures["64px_25fps"]["frames_per_cpu_s"] / main_rate,
        "real_time_factor": main_rate / 8.0,
    }
    write_result(arguments.json, "world", ratios=ratios, figures=figures)


def _fps(name: str) -> float:
    return 25.0 if "25fps" in name else 8.0


if __name__ == "__main__":
    main()
