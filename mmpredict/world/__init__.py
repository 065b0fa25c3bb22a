"""The embedded sounding world: small scenes with pictures, stereo sound, words and full truth."""

from .condition import SPEECH, SPLITS, Condition
from .families import FAMILIES
from .questions import Question
from .scene import Recording, Scene, draw_scene
from .stage import (
    COLOURS,
    FLOOR,
    HAND,
    MATERIALS,
    NONE,
    SCREEN,
    SHAPES,
    WALL,
    WORLD_VERSION,
    is_held_out_pair,
    is_held_out_place,
)
from .truth import Event, Truth

__all__ = [
    "COLOURS",
    "FAMILIES",
    "FLOOR",
    "HAND",
    "MATERIALS",
    "NONE",
    "SCREEN",
    "SHAPES",
    "SPEECH",
    "SPLITS",
    "WALL",
    "WORLD_VERSION",
    "Condition",
    "Event",
    "Question",
    "Recording",
    "Scene",
    "Truth",
    "draw_scene",
    "is_held_out_pair",
    "is_held_out_place",
]
