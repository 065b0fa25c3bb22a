"""Stage to motion, by pymunk. The log has one entry per step of 1/240 s, whatever the frame rate.

Shapes: K steps + 1 (entry k is time k / STEP_HZ), N objects, E contacts.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import numpy as np
import pymunk
from pymunk import batch

from .stage import (
    CUP_WALL,
    FLOOR,
    GRAVITY,
    LANES_Z,
    NONE,
    WALL,
    HandSpec,
    ObjectSpec,
    Stage,
    carried,
)

STEP_HZ = 240
# (density kg/m2, bounce, friction). Bounce and friction of a pair are the products of both.
_MATERIAL = {"rubber": (1.0, 0.9, 0.6), "wood": (0.8, 0.7, 0.5), "metal": (2.0, 0.55, 0.45)}
_FLOOR_BOUNCE, _FLOOR_FRICTION = 0.9, 0.35
CUP_BASE = 0.8  # width of a cup's bottom as a share of its rim
_AIR = 0.9  # share of its speed that a free body keeps per second
_BODY = (
    batch.BodyFields.BODY_ID
    | batch.BodyFields.POSITION
    | batch.BodyFields.ANGLE
    | batch.BodyFields.VELOCITY
    | batch.BodyFields.ANGULAR_VELOCITY
)
_ARBITER = (
    batch.ArbiterFields.BODY_A_ID
    | batch.ArbiterFields.BODY_B_ID
    | batch.ArbiterFields.TOTAL_IMPULSE
    | batch.ArbiterFields.IS_FIRST_CONTACT
    | batch.ArbiterFields.NORMAL
    | batch.ArbiterFields.POINT_A_1
    | batch.ArbiterFields.DISTANCE_1
)
_GAP = 0.01  # m; further apart than this is no contact, though the engine still remembers one


@dataclass(frozen=True)
class Contacts:
    """Who touched whom in which step, sorted by (step, a, b); one entry per pair and step.

    Args:
        step_E: the state before is entry `step`, the state after `step + 1`.
        a_E, b_E: objects; b may be FLOOR or WALL. a < b where both are objects.
        impulse_E: kg m/s in this step.
        first_E: whether the pair did not touch just before.
        normal_E2: unit vector from a to b.
        point_E2: where, m.
    """

    step_E: np.ndarray
    a_E: np.ndarray
    b_E: np.ndarray
    impulse_E: np.ndarray
    first_E: np.ndarray
    normal_E2: np.ndarray
    point_E2: np.ndarray


@dataclass(frozen=True)
class Motion:
    """What happened.

    Args:
        state_KN6: x, y, angle, vx, vy, spin of every object at every step (m, rad, s).
        contacts: see `Contacts`.
        held_K: whether the hand holds its object.
        mass_N: kg.
    """

    state_KN6: np.ndarray
    contacts: Contacts
    held_K: np.ndarray
    mass_N: np.ndarray

    @property
    def times_K(self) -> np.ndarray:
        return np.arange(len(self.state_KN6)) / STEP_HZ

    def at(self, times_T: np.ndarray) -> np.ndarray:
        """(T, N, 6) state at any times, by straight lines between steps."""
        place_T = np.clip(np.asarray(times_T) * STEP_HZ, 0, len(self.state_KN6) - 1)
        low_T = np.minimum(place_T.astype(np.int64), len(self.state_KN6) - 2)
        share_T11 = (place_T - low_T)[:, None, None]
        return self.state_KN6[low_T] * (1 - share_T11) + self.state_KN6[low_T + 1] * share_T11


@dataclass(frozen=True)
class Breach:
    """A breach of the laws: one object is elsewhere at once, or moves otherwise, for no reason.
    A hand must not hold it from then on, unless only its place or its velocity is changed.

    Args:
        step: comes before this step; log entry `step` is the last one that knows nothing of it.
        target: number of the object.
        place: its new x and y, m; None leaves it where it is.
        velocity: its new vx and vy, m/s; None leaves it. A spin turns with the sign of vx.
        hangs: from now on it hangs in the air, whatever pulls or pushes.
        through: from now on it and this object pass through each other.
        glued_to: from now on it goes along with this object, at its distance.
    """

    step: int
    target: int
    place: tuple[float, float] | None = None
    velocity: tuple[float, float] | None = None
    hangs: bool = False
    through: int | None = None
    glued_to: int | None = None

    def act(self, space: pymunk.Space, bodies: list[pymunk.Body]) -> None:
        """Break the laws."""
        body = bodies[self.target]
        if self.place is not None:
            body.position = self.place
        if self.velocity is not None:
            if self.velocity[0] * body.velocity[0] < 0:
                body.angular_velocity = -body.angular_velocity
            body.velocity = self.velocity
        if self.through is not None:
            # A joint without force: all that it does is to keep the two from colliding.
            joint = pymunk.PivotJoint(body, bodies[self.through], (0.0, 0.0), (0.0, 0.0))
            joint.max_force, joint.collide_bodies = 0.0, False
            space.add(joint)
        if self.glued_to is not None:
            other = bodies[self.glued_to]
            pivot = pymunk.PivotJoint(body, other, tuple(body.position))
            gear = pymunk.GearJoint(body, other, other.angle - body.angle, 1.0)
            pivot.collide_bodies = gear.collide_bodies = False
            space.add(pivot, gear)
        if self.hangs:
            body.velocity, body.angular_velocity = (0.0, 0.0), 0.0
            body.body_type = pymunk.Body.KINEMATIC


def simulate(stage: Stage, *breaches: Breach) -> Motion:
    """Run the stage's physics for its whole length; with breaches, the same up to the first."""
    space = pymunk.Space()
    space.gravity = (0.0, -GRAVITY)
    space.damping = _AIR
    space.iterations = 12
    space.collision_slop = 0.002  # the default is 0.1 m, in a world of half-metre things
    _add_room(space, {spec.lane for spec in stage.objects})
    bodies = [_add_object(space, spec) for spec in stage.objects]
    for string in stage.strings:
        upper, lower = stage.objects[string.upper], stage.objects[string.lower]
        ends = (0.0, -upper.foot), (0.0, lower.height - lower.foot)
        pair = bodies[string.upper], bodies[string.lower]
        space.add(pymunk.SlideJoint(*pair, *ends, 0.0, string.length))
    num_steps = math.ceil(stage.seconds * STEP_HZ)
    mass_N = np.array([body.mass for body in bodies])
    state, held_K, contacts = _run(space, bodies, stage.hand, num_steps, breaches)
    return Motion(state, contacts, held_K, mass_N)


class _Logs(threading.local):
    """The engine's buffers, one pair a thread. They are never freed by pymunk: a new pair for every
    scene would lose a quarter of a megabyte each time."""

    def __init__(self) -> None:
        self.bodies, self.contacts = batch.Buffer(), batch.Buffer()


_LOGS = _Logs()


def _run(
    space: pymunk.Space,
    bodies: list[pymunk.Body],
    hand: HandSpec | None,
    num_steps: int,
    breaches: tuple[Breach, ...],
) -> tuple[np.ndarray, np.ndarray, Contacts]:
    body_log, contact_log = _LOGS.bodies, _LOGS.contacts
    body_log.clear()
    contact_log.clear()
    contact_ends = np.zeros(num_steps, np.int64)
    held_K = np.zeros(num_steps + 1, bool)
    grip = _Grip(hand, bodies[hand.target], num_steps) if hand else None
    batch.get_space_bodies(space, _BODY, body_log)
    for step in range(num_steps):
        if grip:
            held_K[step] = grip.act(step)
        for breach in breaches:
            if step == breach.step:
                breach.act(space, bodies)
        space.step(1.0 / STEP_HZ)
        batch.get_space_bodies(space, _BODY, body_log)
        batch.get_space_arbiters(space, _ARBITER, contact_log)
        contact_ends[step] = len(contact_log.int_buf())
    held_K[-1] = held_K[-2]
    ids = np.frombuffer(body_log.int_buf(), np.uint64).reshape(num_steps + 1, -1)
    rows = np.frombuffer(body_log.float_buf()).reshape(num_steps + 1, -1, 6)
    assert (ids == ids[0]).all(), "the engine changed the order of its bodies"
    column = {int(body_id): k for k, body_id in enumerate(ids[0])}
    state_KN6 = rows[:, [column[body.id] for body in bodies]].copy()
    number = {body.id: n for n, body in enumerate(bodies)}
    contact_ints = np.frombuffer(contact_log.int_buf(), np.uint64).reshape(-1, 3).copy()
    contact_rows = np.frombuffer(contact_log.float_buf()).reshape(-1, 7).copy()
    ends = contact_ends // (3 * 8)  # from bytes to entries
    return state_KN6, held_K, read_contacts(contact_ints, contact_rows, ends, number)


class _Grip:
    """Moves the held body along the hand's path; the body ignores all forces while it is held."""

    def __init__(self, hand: HandSpec, body: pymunk.Body, num_steps: int) -> None:
        self.body, self.mass, self.moment = body, body.mass, body.moment
        self.grab = round(hand.grab_s * STEP_HZ)
        self.release = num_steps if hand.release_s is None else round(hand.release_s * STEP_HZ)
        path_K2 = carried(hand, np.arange(num_steps + 1) / STEP_HZ)
        self.velocities = (np.diff(path_K2, axis=0) * STEP_HZ).tolist()
        self.last = [0.0, 0.0]

    def act(self, step: int) -> bool:
        """Do what is due before this step; returns whether the hand holds the body."""
        if step < self.grab or step > self.release:
            return False
        body = self.body
        if step == self.release:
            body.body_type = pymunk.Body.DYNAMIC
            body.mass, body.moment = self.mass, self.moment
            body.velocity = (0.0, 0.0)
            return False
        if step == self.grab:
            body.body_type = pymunk.Body.KINEMATIC
            body.velocity, body.angular_velocity = (0.0, 0.0), 0.0
        if self.velocities[step] != self.last:
            body.velocity = self.last = self.velocities[step]
        return True


def _add_room(space: pymunk.Space, lanes: set[int]) -> None:
    """A floor for all, and for each lane the two walls at the edges of the picture."""
    floor = pymunk.Segment(space.static_body, (-9.0, -1.0), (9.0, -1.0), 1.0)
    floor.elasticity, floor.friction = _FLOOR_BOUNCE, _FLOOR_FRICTION
    space.add(floor)
    for lane in sorted(lanes):
        for side in (-1, 1):
            x = side * (wall_x(LANES_Z[lane]) + 0.5)
            wall = pymunk.Segment(space.static_body, (x, -2.0), (x, 9.0), 0.5)
            wall.elasticity, wall.friction = _FLOOR_BOUNCE, 0.3
            wall.filter = pymunk.ShapeFilter(categories=1 << lane, mask=1 << lane)
            space.add(wall)


def wall_x(z: float) -> float:
    """Where the side walls stand at this depth: |x| in metres, the edge of a square picture."""
    return z / 2


def _add_object(space: pymunk.Space, spec: ObjectSpec) -> pymunk.Body:
    density, bounce, friction = _MATERIAL[spec.material]
    body = pymunk.Body()
    body.position = (spec.x, spec.y)
    body.velocity = (spec.vx, spec.vy)
    shapes: list[pymunk.Shape] = []
    if spec.shape == "ball":
        shapes.append(pymunk.Circle(body, spec.width / 2))
        if spec.y - spec.foot < 0.01:
            body.angular_velocity = -spec.vx / (spec.width / 2)
    else:
        shapes.extend(pymunk.Poly(body, part) for part in outline(spec))
    for shape in shapes:
        shape.density, shape.elasticity, shape.friction = density, bounce, friction
        shape.filter = pymunk.ShapeFilter(categories=1 << spec.lane, mask=_lane_mask(spec.lane))
    space.add(body, *shapes)
    return body


def _lane_mask(lane: int) -> int:
    other_lanes = sum(1 << k for k in range(len(LANES_Z)) if k != lane)
    return pymunk.ShapeFilter.ALL_MASKS() & ~other_lanes


def outline(spec: ObjectSpec) -> list[list[tuple[float, float]]]:
    """The convex parts of an upright object around its origin, m."""
    w, h = spec.width / 2, spec.height / 2
    if spec.shape == "cone":
        return [[(-w, -spec.foot), (w, -spec.foot), (0.0, spec.height - spec.foot)]]
    if spec.shape != "cup":
        return [[(-w, -h), (w, -h), (w, h), (-w, h)]]
    base, t = CUP_BASE * w, CUP_WALL
    right = [(base - t, -h), (base, -h), (w, h), (w - t, h)]
    left = [(-x, y) for x, y in right]
    return [[(-base, -h), (base, -h), (base, -h + t), (-base, -h + t)], left, right]


def read_contacts(
    ints: np.ndarray, rows: np.ndarray, ends: np.ndarray, number: dict[int, int]
) -> Contacts:
    """Sort the raw log (its order depends on memory addresses) and merge the parts of a pair.

    Args:
        ints: body a, body b, first contact; one row per entry.
        rows: impulse x y, normal x y, point x y, distance.
        ends: how many entries the log had after each step.
        number: body to object; all other bodies are the room.
    """
    steps = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    a, b = (np.full(len(ints), FLOOR) for _ in range(2))
    for body_id, n in number.items():
        a[ints[:, 0] == body_id] = n
        b[ints[:, 1] == body_id] = n
    normal, swap = rows[:, 2:4].copy(), (a < 0) | ((b >= 0) & (b < a))
    a, b = np.where(swap, b, a), np.where(swap, a, b)
    normal[swap] *= -1
    b[(b < 0) & (np.abs(normal[:, 0]) > 0.7)] = WALL
    impulse = np.hypot(rows[:, 0], rows[:, 1])
    keep = rows[:, 6] < _GAP
    # Every column takes part: parts of a cup may tie in all but the last, and then only equal
    # entries are left in the order of the log.
    rest = (ints[:, 2], rows[:, 6], normal[:, 1], normal[:, 0], rows[:, 5], rows[:, 4])
    columns = (*rest, impulse, b, a, steps)
    order = np.lexsort([c[keep] for c in columns])
    steps, a, b, impulse = (c[keep][order] for c in (steps, a, b, impulse))
    first = ints[keep, 2][order].astype(bool)
    normal, point = normal[keep][order], rows[keep, 4:6][order]
    same = (np.diff(steps) == 0) & (np.diff(a) == 0) & (np.diff(b) == 0)
    starts = np.flatnonzero(np.r_[True, ~same]) if len(steps) else np.zeros(0, np.int64)
    if not len(starts):
        none = np.zeros(0)
        return Contacts(starts, starts, starts, none, starts > 0, none.reshape(0, 2), point)
    total = np.add.reduceat(impulse, starts)
    all_first = np.logical_and.reduceat(first, starts)
    last = np.r_[starts[1:], len(steps)] - 1  # sorted by impulse: the strongest part speaks for all
    return Contacts(steps[last], a[last], b[last], total, all_first, normal[last], point[last])


def support_from(contacts: Contacts, num_entries: int, num_objects: int) -> np.ndarray:
    """(K, N) what each object stands on after each step: object, FLOOR or NONE.

    The strongest contact from below counts. Entry 0 repeats entry 1.
    """
    support_KN = np.full((num_entries, num_objects), NONE)
    ny = contacts.normal_E2[:, 1]
    on_other, on_this = ny < -0.5, (ny > 0.5) & (contacts.b_E >= 0)
    step = np.r_[contacts.step_E[on_other], contacts.step_E[on_this]] + 1
    upper = np.r_[contacts.a_E[on_other], contacts.b_E[on_this]]
    lower = np.r_[contacts.b_E[on_other], contacts.a_E[on_this]]
    impulse = np.r_[contacts.impulse_E[on_other], contacts.impulse_E[on_this]]
    order = np.argsort(impulse, kind="stable")  # of several, the last one written stays
    order = order[lower[order] != WALL]
    support_KN[step[order], upper[order]] = lower[order]
    support_KN[0] = support_KN[min(1, num_entries - 1)]
    return support_KN
