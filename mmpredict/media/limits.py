"""What a media file may cost, and the errors the readers raise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Literal

Kind = Literal["unreadable", "limits", "missing", "empty", "hash"]


class MediaError(ValueError):
    """A file that cannot be used. `str` is "<path>: <reason>"; the parts are attributes too.

    Args:
        path: the file, or what it is called.
        reason: why, in words.
        kind: why, in one word for counting: it is damaged or not understood, too large, not there,
            without anything in it, or other than its checksum says.
    """

    def __init__(
        self, path: str | PathLike[str], reason: str, *, kind: Kind = "unreadable"
    ) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason
        self.kind: Kind = kind

    def __reduce__(self) -> tuple[Callable[..., MediaError], tuple[str, str]]:
        # Raised in loader workers and pickled home: the default would call __init__ with one
        # argument.
        return partial(type(self), kind=self.kind), (self.path, self.reason)


class DamagedError(MediaError):
    """A packet or a frame that its decoder refuses; what does not need it can still be read."""


class BehindTheEndError(MediaError):
    """A span begins where nothing can be decoded any more.

    Args:
        path: the file.
        start_s: start of the span.
        end_s: what can be decoded ends here; both on the file's clock.
    """

    def __init__(self, path: str | PathLike[str], start_s: float, end_s: float) -> None:
        reason = f"nothing to read from {start_s:g} s on; what can be decoded ends at {end_s:.2f} s"
        super().__init__(path, reason, kind="empty")
        self.start_s, self.end_s = start_s, end_s

    def __reduce__(self) -> tuple[type, tuple[str, float, float]]:  # type: ignore[override]
        return type(self), (self.path, self.start_s, self.end_s)


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

    def check(
        self,
        path: str | PathLike[str],
        *,
        pixels: int = 0,
        duration_s: float = 0.0,
        frames: int = 0,
        bytes_: int = 0,
    ) -> None:
        """MediaError if this much of a file is too much."""
        reason = self.refusal(pixels=pixels, duration_s=duration_s, frames=frames, bytes_=bytes_)
        if reason is not None:
            raise MediaError(path, reason, kind="limits")
