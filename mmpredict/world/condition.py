"""What a user may set about the world, and what the splits change."""

from __future__ import annotations

from dataclasses import dataclass

SPLITS = ("train", "dev", "test_iid", "test_comp", "test_size", "test_speed", "test_layout")
SPEECH = ("captions", "dialogue", "both", "none")


@dataclass(frozen=True)
class Condition:
    """The knobs of the world.

    Args:
        seconds: length of a clip, s; at least 1.
        num_objects: fewest and most objects of a scene. A family that needs more takes more.
        num_objects_test_size: the same for the split `test_size`.
        speed: least and most first speed of what moves, m/s.
        speed_test_speed: the same for the split `test_speed`.
        speech: "captions" tell what happens; "dialogue" asks and answers; "both"; or "none".
        relations: share of opening captions that state how objects stand to each other ("the red
            ball is left of the blue box") instead of naming them; 0 leaves relations unsaid.
        room_tone_db: level of the soft noise of the room, dB below full scale (RMS).
        camera_noise: standard deviation of each pixel, grey levels of 255.
    """

    seconds: float = 2.0
    num_objects: tuple[int, int] = (2, 4)
    num_objects_test_size: tuple[int, int] = (5, 6)
    speed: tuple[float, float] = (0.9, 2.0)
    speed_test_speed: tuple[float, float] = (2.3, 3.0)
    speech: str = "both"
    relations: float = 0.35
    room_tone_db: float = -60.0
    camera_noise: float = 0.0

    def __post_init__(self) -> None:
        if self.seconds < 1.0:
            raise ValueError(f"seconds={self.seconds} is too short to show anything; use 1 or more")
        if self.speech not in SPEECH:
            raise ValueError(f"speech={self.speech!r} is not one of {', '.join(SPEECH)}")
        for name in ("num_objects", "num_objects_test_size", "speed", "speed_test_speed"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}={low, high} must be (least, most), both above 0")

    def counts(self, split: str) -> tuple[int, int]:
        """Fewest and most objects of a scene of this split."""
        return self.num_objects_test_size if split == "test_size" else self.num_objects

    def speeds(self, split: str) -> tuple[float, float]:
        """Least and most first speed in this split, m/s."""
        return self.speed_test_speed if split == "test_speed" else self.speed
