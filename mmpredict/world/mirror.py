"""Left and right exchanged: of a stage, of what happened on it, and of a recording.

The room has stripes and the light comes from one side, so a mirrored recording is the recording,
turned over: its picture, its ears and its truth. Shapes: as in physics.py and truth.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from .physics import Motion
from .questions import Question
from .scene import Recording
from .stage import ScreenSpec, Stage

_STATE_SIGN = np.array([-1.0, 1.0, -1.0, -1.0, 1.0, -1.0])  # x, y, angle, vx, vy, spin


def mirror_stage(stage: Stage) -> Stage:
    """What stands there, left and right exchanged."""
    hand = stage.hand and replace(
        stage.hand,
        side=-stage.hand.side,
        moves=tuple(replace(m, dx=-m.dx) for m in stage.hand.moves),
    )
    return replace(
        stage,
        objects=tuple(replace(o, x=-o.x, vx=-o.vx) for o in stage.objects),
        screen=stage.screen and _mirror_screen(stage.screen),
        more_screens=tuple(_mirror_screen(screen) for screen in stage.more_screens),
        hand=hand,
    )


def _mirror_screen(screen: ScreenSpec) -> ScreenSpec:
    return replace(screen, x=-screen.x, leave_dx=-screen.leave_dx)


def mirror_motion(motion: Motion) -> Motion:
    """What happened, left and right exchanged, to the bit."""
    flip_2 = np.array([-1.0, 1.0])
    contacts = replace(
        motion.contacts,
        normal_E2=motion.contacts.normal_E2 * flip_2,
        point_E2=motion.contacts.point_E2 * flip_2,
    )
    return replace(motion, state_KN6=motion.state_KN6 * _STATE_SIGN, contacts=contacts)


def mirror_recording(recording: Recording, questions: tuple[Question, ...]) -> Recording:
    """The picture flipped, the ears swapped, the truth with its x and its turns negated.

    Args:
        questions: about the mirrored stage; words are not turned over.
    """
    clip, truth = recording.clip, recording.truth
    frames, sound = clip.frames_TCHW, clip.waveform_CS
    clip = replace(
        clip,
        frames_TCHW=None if frames is None else frames.flip(-1),
        waveform_CS=None if sound is None else sound.flip(0),
    )
    flip_3 = torch.tensor([-1.0, 1.0, 1.0])
    truth = replace(
        truth,
        position_TN3=truth.position_TN3 * flip_3,
        velocity_TN3=truth.velocity_TN3 * flip_3,
        angle_TN=-truth.angle_TN,
        events=tuple(replace(e, position=(-e.position[0], *e.position[1:])) for e in truth.events),
    )
    return Recording(clip, truth, questions)
