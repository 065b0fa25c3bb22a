"""Draws docs/images/world.png: one scene of each family, eight frames of two seconds, 64x64."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from mmpredict.world import FAMILIES, draw_scene

ROOT = Path(__file__).parents[1]
SCALE = 2
SHOWN_FRAMES = slice(0, 16, 2)


def main(out: Path) -> None:
    """Write the sheet: a row per family, its captions beside it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 1.75 * len(FAMILIES)), dpi=80)
    for row, family in enumerate(FAMILIES):
        clip = draw_scene(3, split="train", families=(family,)).record(size=64, fps=8.0).clip
        frames = clip.frames_TCHW[SHOWN_FRAMES]
        strip = torch.cat(list(torch.nn.functional.pad(frames, (0, 2, 0, 0), value=255)), dim=2)
        picture = strip.repeat_interleave(SCALE, 1).repeat_interleave(SCALE, 2).permute(1, 2, 0)
        axes = figure.add_axes((0, 1 - (row + 1) / len(FAMILIES), 1, 0.8 / len(FAMILIES)))
        axes.imshow(picture.numpy())
        axes.axis("off")
        said = "; ".join(piece.text for piece in clip.texts)
        axes.set_title(f"{family}: {said}"[:140], loc="left", fontsize=9)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    print(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images" / "world.png")
