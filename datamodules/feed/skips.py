"""What could not be read: named, counted, and when it is too much, said and stopped.

In: Skipped documents. Out: the quarantine list of sources with reasons, and counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import PurePath

from datamodules.feed.documents import Skipped
from datamodules.feed.loading import Loading
from mmpredict.media import AUDIO_SUFFIXES, IMAGE_SUFFIXES, TEXT_SUFFIXES, VIDEO_SUFFIXES
from mmpredict.schema import Stop

TOO_BAD = 65  # exit code: the data are not what they should be (EX_DATAERR of sysexits.h)
SHOWN = 20  # names in the message that stops a run
KINDS = {
    "video": VIDEO_SUFFIXES,
    "audio": AUDIO_SUFFIXES,
    "image": IMAGE_SUFFIXES,
    "text": TEXT_SUFFIXES,
}


class SkipLog:
    """The quarantine list of a run, and what else the loader had to do to the documents."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self.num_sources = 0
        self.reasons: dict[str, str] = {}
        self.kinds: dict[str, str] = {}
        self._lost: dict[str, dict[str, float]] = {}  # shares of each source by reason
        self.truncated = 0
        self.substituted = 0
        self.ranks = 1  # that share the sources out between them
        self._in_a_row: dict[str, str] = {}  # by source: windows of one film count once

    def note(self, skipped: Skipped) -> None:
        if not skipped.harmless:
            self.reasons.setdefault(skipped.source, skipped.reason)
            self.kinds.setdefault(skipped.source, skipped.kind)
            self._lost.setdefault(skipped.source, {})[skipped.reason] = skipped.share

    def take_over(self, other: SkipLog) -> None:
        """What another log has noted, too."""
        self.reasons = {**other.reasons, **self.reasons}
        self.kinds = {**other.kinds, **self.kinds}
        self._lost = {**other._lost, **self._lost}

    def add(self, skipped: Skipped) -> None:
        """Note it, and stop if it is one too many."""
        self.note(skipped)
        self.check()

    def took(self, skipped: Skipped | None, title: Callable[[], str]) -> None:
        """A training document came (None) or did not; stops when too many fail one after the
        other."""
        if skipped is None or skipped.harmless:
            self._in_a_row.clear()
            return
        self._in_a_row.setdefault(skipped.source, f"  {title()}: {skipped.reason}")
        most = self.loading.max_skipped_in_a_row
        if len(self._in_a_row) >= most:
            shown = list(self._in_a_row.values())[-SHOWN:]
            raise Stop(
                TOO_BAD,
                "\n".join(
                    [
                        f"documents of {most} sources one after the other cannot be read (limit: "
                        f"data.loading.max_skipped_in_a_row={most}); the last of them:",
                        *shown,
                    ]
                ),
            )

    def counts(self) -> dict[str, int]:
        """Sources left out, by "modality/kind of reason" ("video/unreadable")."""
        return dict(
            sorted(Counter(f"{_modality(s)}/{kind}" for s, kind in self.kinds.items()).items())
        )

    def check(self) -> None:
        """Raise with the list when the limits of `Loading` are passed."""
        bad, total = len(self.reasons), max(self.num_sources, len(self.reasons), 1)
        # Of a long film with one broken window, little is lost.
        lost = sum(min(1.0, sum(shares.values())) for shares in self._lost.values())
        lost = round(lost * self.ranks, 6)
        most, least = self.loading.max_skipped_share * total, self.loading.min_skipped
        many = lost > most and bad * self.ranks >= least
        if bad and (many or lost > total / 2):
            shown = [f"  {source}: {reason}" for source, reason in self.reasons.items()][:SHOWN]
            more = [f"  ... and {bad - SHOWN} more"] if bad > SHOWN else []
            raise Stop(
                TOO_BAD,
                "\n".join(
                    [
                        f"{bad} of {total} files cannot be used (limits: "
                        f"data.loading.max_skipped_share={self.loading.max_skipped_share:g} from "
                        f"min_skipped={self.loading.min_skipped} on, and half of all):",
                        *shown,
                        *more,
                    ]
                ),
            )


def _modality(source: str) -> str:
    """What a source is by its suffix; a member of a shard ends with its suffix too."""
    suffix = PurePath(source).suffix.lower()
    return next((name for name, suffixes in KINDS.items() if suffix in suffixes), "other")
