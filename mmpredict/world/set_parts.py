"""What the plots of matched sets share: a draft, screens that hide a thing, who is seen when.

In: a Casting (choices by the rules of a split). Out: parts of stages. Metres, seconds.
Shapes: T frames at FPS, N objects, K entries of the physics log.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from .families import Casting, DoesNotFit
from .physics import STEP_HZ, Motion, simulate, wall_x
from .render import render
from .stage import EYE_HEIGHT, GRAVITY, LANES_Z, SHAPES, ObjectSpec, ScreenSpec, Stage, StringSpec
from .take import Take

SECONDS = 2.0
FPS = 8.0  # what must be seen, or hidden, is so in frames at this rate
MARGIN_S = 0.01  # a cut is so long before a breach, or before the first sound that may differ
TALL = ("ball", "box", "cup", "cone")  # a plate is too flat to be plain to see in a small picture
SEEN = 0.9  # share of a thing that must be seen where it matters
SLIDE_S = 0.25  # a screen takes so long to come or go
_SCREENS_Z = (2.3, 2.85, 3.4)  # before each lane
_SHADOW = 0.66  # half the width of a shadow as a share of the width of its object
_EDGE = 0.04  # what is hidden ends so far inside of the screen's edge, as a share of its depth:
# more than a pixel of a picture of 32 pixels
_TIP_EDGE = 0.055  # the same of a cone's tip, which is drawn softer than other edges
_RIM = 0.18  # the far rim of a cup is seen so much above its top, as a share of its width
_SAME_M = 5e-5  # in a picture of 96 pixels: half a grey level at the sharpest edge
_TRIES = 30  # for each bystander, before all is laid out anew
_PX = 64


@dataclass(frozen=True)
class Draft:
    """Four takes (start A end A, start A end B, start B end A, start B end B), without a key.

    Args:
        cut_s: takes with the same start are alike, bit for bit, up to here.
        target: number of the object of the first take that all is about.
        condition: what may matter.
    """

    takes: tuple[Take, Take, Take, Take]
    cut_s: float
    target: int
    condition: dict[str, str | float | bool] = field(default_factory=dict)


# A plot lays out one set: choices, whether what decides is hidden, and the number of the variant.
Plot = Callable[[Casting, bool, int], Draft]
VARIANTS = 12  # a number below; plots take what is left after division by how many they have


def exchanged(a: Stage, b: Stage, *swaps_s: float) -> tuple[Take, Take, Take, Take]:
    """Starts and ends of two lawful stages, crossed: what comes after a swap is of the other.

    Refused where a bystander goes another way on the one than on the other: when two of them meet,
    the last digits decide, and it would jump at the swap.
    """
    same = [one == two for one, two in zip(a.objects, b.objects, strict=False)]
    shared = (same + [False]).index(False)
    paths = [played(stage).state_KN6[:, :shared, :3] for stage in (a, b)]
    need(not shared or np.abs(paths[0] - paths[1]).max() < _SAME_M, "a bystander would jump")
    return (
        Take(a, ""),
        Take(a, "", other=b, swaps_s=swaps_s),
        Take(b, "", other=a, swaps_s=swaps_s),
        Take(b, ""),
    )


def need(holds: bool | np.bool_, what: str) -> None:
    """Refuse this draw where something does not hold."""
    if not holds:
        raise DoesNotFit(what)


def bystanders(
    cast: Casting, *plot: ObjectSpec, still: float = 0.5, own: int = 1, backed: bool = True
) -> tuple[ObjectSpec, ...]:
    """Objects in the other lanes with other names, as many as the split wants.

    They meet nothing of the plot and never hide it; those that move pass behind it.

    Args:
        plot: the objects of the plot, and places that must be free; all of one lane.
        still: share of the bystanders that do not move.
        own: how many objects of the plot are on one stage, at most.
        backed: whether some may stand behind it, where they could be taken for a support.
    """
    for spec in plot:
        need(abs(spec.x) + spec.width / 2 < wall_x(spec.z) - 0.01, "outside the room")
    named = {spec.name: spec for spec in plot}
    cast.objects[:] = named.values()
    for _ in range(_TRIES * cast.num_objects):
        if len(cast.objects) - len(named) + own >= cast.num_objects:
            return tuple(cast.objects[len(named) :])
        try:
            _bystander(cast, plot, still, backed)
        except DoesNotFit:
            continue  # another one may fit
    raise DoesNotFit("no room for all the bystanders")


def _bystander(cast: Casting, plot: tuple[ObjectSpec, ...], still: float, backed: bool) -> None:
    lane = cast.lane(*(k for k in range(len(LANES_Z)) if k != plot[0].lane))
    spec = cast.thing(lane, "ball", *SHAPES)
    spec = replace(spec, x=cast.place(lane, -0.85, 0.85))
    is_behind = lane > plot[0].lane
    if is_behind and not cast.chance(still):
        cast.put(spec, vx=(-1 if spec.x > 0 else 1) * cast.speed())
        return
    for other in () if is_behind and backed else plot:
        apart = abs(spec.x / spec.z - other.x / other.z)
        need(apart > (spec.width / spec.z + other.width / other.z) / 2, "in front or behind")
    cast.put(spec)


@dataclass(frozen=True)
class Cover:
    """A screen that hides a stretch of a lane up to a height, with shadows."""

    x: float
    z: float
    width: float
    height: float

    def standing(self) -> ScreenSpec:
        """It stands there all the time."""
        return ScreenSpec(self.x, self.z, self.width, self.height)

    def coming(self, side: int, come_s: float, go_s: float | None) -> ScreenSpec:
        """It slides in from a side and, if that is wanted, out again."""
        away = side * (self.z / 2 + self.width / 2 + 0.05) - self.x
        return ScreenSpec(
            self.x + away,
            self.z,
            self.width,
            self.height,
            leave_s=come_s,
            leave_dx=-away,
            leave_takes_s=SLIDE_S,
            back_s=go_s,
        )

    def hides(self, spec: ObjectSpec, x_K: np.ndarray) -> np.ndarray:
        """(K,) whether an object and its shadow are wholly hidden at these places."""
        low, high = _span(spec, x_K, self.z)
        return (low >= self.x - self.width / 2 - 1e-9) & (high <= self.x + self.width / 2 + 1e-9)


def _span(
    spec: ObjectSpec, x: float | np.ndarray, z: float
) -> tuple[float | np.ndarray, float | np.ndarray]:
    """From where to where a screen at this depth must reach to hide an object and its shadow."""
    reach, nearer, edge = _SHADOW * spec.width, z / spec.z, _EDGE * z
    return (x - reach) * nearer - edge, (x + reach) * nearer + edge


def cover(*specs: ObjectSpec, spare: float = 0.0, over: float = 0.0) -> Cover:
    """The screen that hides objects of one lane where they stand.

    Args:
        spare, over: m by which it is wider and higher than it must be.
    """
    z = _SCREENS_Z[specs[0].lane]
    spans = [_span(spec, spec.x, z) for spec in specs]
    left, right = min(low for low, _ in spans), max(high for _, high in spans)
    top = max(spec.top + _RIM * spec.width * (spec.shape == "cup") for spec in specs)
    edge = _TIP_EDGE if any(spec.shape == "cone" for spec in specs) else _EDGE
    height = EYE_HEIGHT + (top - EYE_HEIGHT) * z / specs[0].z + edge * z + over
    x, width = (left + right) / 2, right - left + spare
    need(abs(x) + width / 2 < z / 2 and height < 1.9, "the screen leaves the picture")
    return Cover(x, z, width, height)


def rolling(
    cast: Casting, spec: ObjectSpec, fast: float = 1.15, nearest: float = 0.75
) -> ObjectSpec:
    """Near one wall, on its way to the other one.

    Args:
        fast: so many times as fast as what only passes by.
        nearest: how near the wall at least, as a share of the way from the middle.
    """
    side = cast.side()
    x = side * cast.between(nearest, 1.0) * (wall_x(spec.z) - spec.width / 2 - 0.02)
    return replace(spec, x=x, vx=-side * fast * cast.speed())


def behind(screens: tuple[ScreenSpec, ...], *objects: ObjectSpec) -> Stage:
    """A stage with screens, if there are any."""
    first = screens[0] if screens else None
    return Stage(objects, SECONDS, screen=first, more_screens=screens[1:])


@lru_cache(maxsize=8)
def played(stage: Stage) -> Motion:
    """What happens by the laws; kept for a while, as one draw asks several times. Read only."""
    return simulate(stage)


@lru_cache(maxsize=8)
def seen(stage: Stage) -> np.ndarray:
    """(T, N) share of each object that is seen by the laws, at 8 frames per second. Read only."""
    times_T = np.arange(round(stage.seconds * FPS)) / FPS
    return render(stage, played(stage), times_T, (_PX, _PX), 0, paints=False)[1]


def need_seen(
    stage: Stage, n: int, low_s: float, high_s: float, least: int, share: float = SEEN
) -> None:
    """Refuse where fewer frames than `least` of this time show so much of an object."""
    share_T = seen(stage)[:, n]
    times_T = np.arange(len(share_T)) / FPS
    count = ((share_T >= share) & (times_T >= low_s) & (times_T <= high_s)).sum()
    need(count >= least, "not seen")


def highest(lane: int) -> float:
    """Up to this height a thing in this lane is in the picture, m."""
    return EYE_HEIGHT + 0.26 * LANES_Z[lane]


def tossed(
    cast: Casting,
    spec: ObjectSpec,
    lands_s: float,
    ground: float = 0.0,
    height: float | None = None,
) -> ObjectSpec:
    """In the air at time 0, with the speed that lets it come down to `ground` at this time; at a
    height (m above the ground) that is drawn, or given."""
    if height is None:
        height = cast.between(0.3, 1.1)
    vy = 0.5 * GRAVITY * lands_s - height / lands_s
    peak = ground + height + max(vy, 0.0) ** 2 / (2 * GRAVITY)
    need(peak + spec.height < highest(spec.lane), "too high")
    return replace(spec, y=ground + spec.foot + height, vy=vy)


def last_hidden(hidden_K: np.ndarray) -> float:
    """The last moment of the first time that a thing is hidden; refused where no frame shows it."""
    starts = np.flatnonzero(hidden_K)
    need(len(starts) > 0, "never hidden")
    ends = np.flatnonzero(~hidden_K[starts[0] :])
    last = starts[0] + (ends[0] if len(ends) else len(hidden_K) - starts[0]) - 1
    need(last_frame(last / STEP_HZ) >= starts[0] / STEP_HZ, "hidden between two frames")
    return float(last) / STEP_HZ


def last_frame(time_s: float) -> float:
    """When the last frame up to this time is taken."""
    return np.floor(time_s * FPS + 1e-9) / FPS


def with_bystanders(stage: Stage, others: tuple[ObjectSpec, ...]) -> Stage:
    """Bystanders come first, so that they look and sound alike whatever the plot has."""
    shift, hand = len(others), stage.hand
    return replace(
        stage,
        objects=(*others, *stage.objects),
        strings=tuple(
            StringSpec(s.upper + shift, s.lower + shift, s.length) for s in stage.strings
        ),
        hand=hand and replace(hand, target=hand.target + shift),
    )
