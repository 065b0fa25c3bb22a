"""The embedded sounding world: small scenes with pictures, stereo sound, words and full truth."""

from .condition import SPEECH, SPLITS, Condition
from .counterfactual import SOUND_KINDS, VIDEO_KINDS, Pair, Unsuitable, draw_pairs, matched_pair
from .families import FAMILIES
from .questions import Question
from .scene import Film, Recording, Scene, draw_scene
from .sets import SET_KINDS, MatchedSet, matched_set
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
from .take import Knock, Resound, Take
from .truth import Event, Truth

__all__ = [
    "COLOURS",
    "FAMILIES",
    "FLOOR",
    "HAND",
    "MATERIALS",
    "NONE",
    "SCREEN",
    "SET_KINDS",
    "SHAPES",
    "SOUND_KINDS",
    "SPEECH",
    "SPLITS",
    "VIDEO_KINDS",
    "WALL",
    "WORLD_VERSION",
    "Condition",
    "Event",
    "Film",
    "Knock",
    "MatchedSet",
    "Pair",
    "Question",
    "Recording",
    "Resound",
    "Scene",
    "Take",
    "Truth",
    "Unsuitable",
    "draw_pairs",
    "draw_scene",
    "is_held_out_pair",
    "is_held_out_place",
    "matched_pair",
    "matched_set",
]
