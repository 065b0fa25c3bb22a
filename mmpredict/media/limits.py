"""What a media file may cost, and the one error the readers raise."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike


class MediaError(ValueError):
    """A file that cannot be used. `str` is "<path>: <reason>"; both parts are attributes too."""

    def __init__(self, path: str | PathLike[str], reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        # Raised in loader workers and pickled home: the default would call __init__ with one
        # argument.
        return type(self), (self.path, self.reason)


@dataclass(frozen=True)
class Limits:
    """Refuse what is larger; held against the header first and against what is decoded again.

    Args:
        max_pixels: width times height of one frame.
        max_duration_s: length of the file in seconds.
        max_frames: frames of the file as its header counts them, and frames read in one go.
        max_bytes: the file on disk, and the frames and samples read in one go.
    """

    max_pixels: int = 64_000_000
    max_duration_s: float = 3600.0
    max_frames: int = 250_000  # one hour at 60 frames a second still passes
    max_bytes: int = 2 * 1024**3

    def refusal(
        self, *, pixels: int = 0, duration_s: float = 0.0, frames: int = 0, bytes_: int = 0
    ) -> str | None:
        """Why this much is too much, with the numbers and the remedy; None if it is not."""
        claims = (
            ("pixels a frame", pixels, self.max_pixels, "max_pixels"),
            ("seconds", duration_s, self.max_duration_s, "max_duration_s"),
            ("frames", frames, self.max_frames, "max_frames"),
            ("bytes", bytes_, self.max_bytes, "max_bytes"),
        )
        for unit, amount, limit, name in claims:
            if amount > limit:
                return (
                    f"{amount:,.10g} {unit}, over the limit of {limit:,.10g}; "
                    f"raise Limits.{name} if you trust it, or ask for less"
                )
        return None
