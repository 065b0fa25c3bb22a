"""The gate's eye: of every thing that the world can have, whether it is in a picture, and where.

In: pictures; to learn, also the truth of their takes. Out: a `Glance` per picture. Each name ("red
ball") has its own map over the picture, and one more place for "not to be seen"; what is said of
the thing is read from where its map points. Nothing but pictures reaches it once it has learnt, so
what it gets right is in the pixels at that size.

Shapes: B pictures, K names, G cells of the map, D width, F numbers that are said of a thing,
N objects, T pictures of a take, H and W sides in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmpredict.world import COLOURS, MATERIALS, SHAPES, Recording, Truth
from mmpredict.world.camera import Camera

NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
_SIDE = 32  # cells of a map on a side
_NUMBERS = 5  # x, y, z, width, height
_SEEN, _HELD = _NUMBERS, _NUMBERS + 1
_SAID = _NUMBERS + 2 + len(MATERIALS)
_PLAIN_SHARE, _LEAST_SHARE = 0.3, 0.02  # seen; between them a picture teaches neither yes nor no
_NOT_TAUGHT = -100
_BATCH = 32
_RATE = 3e-3
_FAR_M = 5.0


@dataclass(frozen=True)
class Glance:
    """What is made out in pictures.

    Args:
        there_BK: probability that a thing is to be seen.
        place_BK3, size_BK2: m; mean nothing where it is not there.
        seen_BK, held_BK: share that is seen; probability that it is in the hand.
        materials_BKM: probabilities.
    """

    there_BK: Tensor
    place_BK3: Tensor
    size_BK2: Tensor
    seen_BK: Tensor
    held_BK: Tensor
    materials_BKM: Tensor


@dataclass(frozen=True)
class Lessons:
    """Pictures and what is right of them.

    Args:
        frames_BCHW: uint8.
        cell_BK: of the thing's middle; G where it is not seen; _NOT_TAUGHT where it hardly is.
        right_BKF: numbers, seen share, held (0 or 1), material (as one of M).
        shown_BK: where the numbers can be learnt.
    """

    frames_BCHW: Tensor
    cell_BK: Tensor
    right_BKF: Tensor
    shown_BK: Tensor

    def __len__(self) -> int:
        return len(self.frames_BCHW)

    def part(self, chosen_B: Tensor) -> Lessons:
        """Some of them."""
        return Lessons(*(x[chosen_B] for x in self._parts()))

    def mirrored(self, which_B: Tensor) -> Lessons:
        """These pictures as in a mirror, and what is right of them then."""
        turn_B111, turn_B1 = which_B[:, None, None, None], which_B[:, None]
        row_BK, column_BK = self.cell_BK // _SIDE, self.cell_BK % _SIDE
        turned_BK = row_BK * _SIDE + _SIDE - 1 - column_BK
        inside_BK = (self.cell_BK >= 0) & (self.cell_BK < _SIDE**2)
        right_BKF = self.right_BKF.clone()
        right_BKF[..., 0] *= 1 - 2 * turn_B1.float()
        return Lessons(
            torch.where(turn_B111, self.frames_BCHW.flip(3), self.frames_BCHW),
            torch.where(turn_B1 & inside_BK, turned_BK, self.cell_BK),
            right_BKF,
            self.shown_BK,
        )

    def _parts(self) -> tuple[Tensor, ...]:
        return self.frames_BCHW, self.cell_BK, self.right_BKF, self.shown_BK

    @classmethod
    def joined(cls, several: Sequence[Lessons]) -> Lessons:
        """One after another."""
        return cls(*map(torch.cat, zip(*(one._parts() for one in several), strict=True)))


def lessons(recording: Recording, most: int, *, seed: int = 0) -> Lessons:
    """At most so many pictures of a recording, drawn by the seed."""
    frames_TCHW = recording.clip.frames_TCHW
    generator = torch.Generator().manual_seed(seed)
    chosen_T = torch.randperm(len(frames_TCHW), generator=generator)[:most]
    return Lessons(frames_TCHW[chosen_T], *_right(recording.truth, chosen_T, frames_TCHW.shape[2:]))


def _right(truth: Truth, chosen_T: Tensor, size: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
    """Cell, numbers and what is shown, of all names."""
    count = len(chosen_T)
    cell_TK = torch.full((count, len(NAMES)), _SIDE**2)
    right_TKF = torch.zeros(count, len(NAMES), _SAID)
    shown_TK = torch.zeros(count, len(NAMES), dtype=torch.bool)
    camera = Camera(*size)
    for n, name in enumerate(truth.names):
        k = NAMES.index(name)
        place_T3 = truth.position_TN3[chosen_T, n]
        x, y, z = place_T3.double().numpy().T
        column, row = (torch.from_numpy(side) for side in camera.project(x, y, z))
        at_T2 = torch.stack([column / size[1], row / size[0]], 1) * _SIDE
        inside_T = ((at_T2 >= 0) & (at_T2 < _SIDE)).all(1)
        share_T = truth.visible_TN[chosen_T, n] * inside_T
        at_T2 = at_T2.clamp(0, _SIDE - 1).long()
        shown_TK[:, k] = share_T >= _PLAIN_SHARE
        cell_TK[share_T > _LEAST_SHARE, k] = _NOT_TAUGHT
        cell_T = at_T2[:, 1] * _SIDE + at_T2[:, 0]
        cell_TK[:, k] = torch.where(shown_TK[:, k], cell_T, cell_TK[:, k])
        material = torch.eye(len(MATERIALS))[truth.material_N[n]].expand(count, -1)
        size_T2 = truth.size_N2[n].expand(count, -1)
        held_T = truth.held_TN[chosen_T, n].float()
        numbers = [place_T3.clamp(-_FAR_M, _FAR_M), size_T2, share_T[:, None], held_T[:, None]]
        right_TKF[:, k] = torch.cat([*numbers, material], 1)
    return cell_TK, right_TKF, shown_TK


class Eye(nn.Module):
    """Convolutions, a map for each name, and a reader of what lies under it.

    Args:
        size: of the square pictures, px; a multiple of 32.
        dim: D.
    """

    def __init__(self, size: int, *, dim: int = 32) -> None:
        super().__init__()
        if size % _SIDE:
            raise ValueError(f"size={size} px must be a multiple of {_SIDE}")
        stride = size // _SIDE
        self.stem = nn.Conv2d(3, dim, stride + 4, stride=stride, padding=2)
        self.places = nn.Parameter(torch.zeros(dim, _SIDE, _SIDE))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(4, dim),
                nn.Conv2d(dim, dim, 3, padding=reach, dilation=reach),
                nn.GELU(),
                nn.Conv2d(dim, dim, 1),
            )
            for reach in (1, 2, 4, 1)
        )
        self.norm = nn.GroupNorm(4, dim)
        self.maps = nn.Conv2d(dim, len(NAMES), 1)
        # Most things are nowhere: at first all are, more surely than over all cells together.
        self.nowhere = nn.Parameter(torch.full((len(NAMES),), 3 + math.log(_SIDE**2)))
        self.names = nn.Parameter(torch.randn(len(NAMES), dim))
        self.head = nn.Sequential(
            nn.Linear(2 * dim + 3, 2 * dim), nn.GELU(), nn.Linear(2 * dim, _SAID)
        )
        side = (torch.arange(_SIDE) + 0.5) / _SIDE * 2 - 1
        grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
        self.register_buffer("grid_G2", grid.reshape(-1, 2))

    def forward(self, frames_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, G + 1) log probability of where each thing is, last of nowhere; (B, K, F) what is
        said of it."""
        h_BDG = self.stem(frames_BCHW.float() / 127.5 - 1) + self.places
        for block in self.blocks:
            h_BDG = h_BDG + block(h_BDG)
        h_BDG = functional.gelu(self.norm(h_BDG))
        map_BKG = self.maps(h_BDG).flatten(2)
        nowhere_BK1 = self.nowhere[None, :, None].expand(len(h_BDG), -1, -1)
        where = torch.cat([map_BKG, nowhere_BK1], 2).log_softmax(2)
        look_BKG = map_BKG.softmax(2)
        at_BK2 = look_BKG @ self.grid_G2
        spread_BK = look_BKG @ self.grid_G2.square().sum(1) - at_BK2.square().sum(2)
        under_BKD = look_BKG @ h_BDG.flatten(2).transpose(1, 2)
        names_BKD = self.names.expand(len(h_BDG), -1, -1)
        said = self.head(torch.cat([under_BKD, names_BKD, at_BK2, spread_BK[..., None]], 2))
        # A metre at depth z is 1 / z of the picture; the head says the rest.
        across_BK2 = at_BK2 * said[..., 2:3] / 2 * torch.tensor([1.0, -1.0])
        return where, torch.cat([said[..., :2] + across_BK2, said[..., 2:]], 2)

    @torch.no_grad()
    def look(self, frames_BCHW: Tensor) -> Glance:
        """What is made out."""
        where, said = self(frames_BCHW)
        return Glance(
            1 - where[..., -1].exp(),
            said[..., :3],
            said[..., 3:_NUMBERS],
            said[..., _SEEN].clamp(0, 1),
            said[..., _HELD].sigmoid(),
            said[..., _HELD + 1 :].softmax(-1),
        )


def learn_eye(several: Sequence[Lessons], *, steps: int, dim: int = 32, seed: int = 0) -> Eye:
    """An eye that has seen so many batches of 32 pictures, half of them in a mirror: the world is
    as likely so."""
    given = Lessons.joined(several)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        eye = Eye(given.frames_BCHW.shape[-1], dim=dim)
    optimiser = torch.optim.AdamW(eye.parameters(), lr=_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, _RATE, total_steps=steps, pct_start=0.1
    )
    for _ in range(steps):
        some = given.part(torch.randint(len(given), (_BATCH,), generator=generator))
        loss = _loss(eye, some.mirrored(torch.rand(_BATCH, generator=generator) < 0.5))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(eye.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return eye.eval()


def _loss(eye: Eye, some: Lessons) -> Tensor:
    """Of a picture: where things are, and of what is shown what is said of it."""
    where, said = eye(some.frames_BCHW)
    found = functional.nll_loss(
        where.flatten(0, 1), some.cell_BK.flatten(), ignore_index=_NOT_TAUGHT, reduction="sum"
    )
    said, right = said[some.shown_BK], some.right_BKF[some.shown_BK]
    numbers = (said[:, : _SEEN + 1] - right[:, : _SEEN + 1]).abs().sum(1)
    held = functional.binary_cross_entropy_with_logits(
        said[:, _HELD], right[:, _HELD], reduction="none"
    )
    material = functional.cross_entropy(
        said[:, _HELD + 1 :], right[:, _HELD + 1 :], reduction="none"
    )
    return found / len(some) + (numbers + held + 0.3 * material).mean().nan_to_num()
