"""From a folder or a manifest to what is trained on. In: a path. Out: Recordings and TextFiles, the
hash of every file, and what cannot be used.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from datamodules.feed.documents import Skipped
from datamodules.files.headers import Header, content_hash, look_at, read_headers, skipped
from datamodules.files.recordings import Recording, Source, TextFile, passages
from mmpredict.media import (
    IMAGE_SUFFIXES,
    Limits,
    Listing,
    ManifestRow,
    MediaError,
    MediaInfo,
    list_folder,
    read_manifest,
    texts_beside,
)
from mmpredict.media.cutting import Cut
from mmpredict.schema import TextPiece

SPAN_SLACK_S = 0.5  # a span may pass the header's length by so much, or by 2 %: headers round
MIN_S = 1e-3  # of a file: a span may start at 0 of an image, too


@dataclass(frozen=True)
class Wanted:
    """What a run can use, and how it is cut.

    Args:
        video, audio, text: streams of the recipe.
        clip_seconds: length of a window.
        passage_bytes: most of a document of text alone; 0 for no such documents.
        limits: what a file may cost.
    """

    video: bool
    audio: bool
    text: bool
    clip_seconds: float
    passage_bytes: int
    limits: Limits

    def of(self, info: MediaInfo) -> tuple[bool, bool]:
        """Whether frames and sound of a file are to be read."""
        return info.has_video and self.video, info.has_audio and self.audio

    def kind(self, source: Source) -> str:
        """What a source holds of the recipe's streams; each kind is split by itself."""
        if not isinstance(source, Recording):
            return "text"
        names = ("image" if source.is_image else "video", "audio")
        have = [n for n, has in zip(names, self.of(source.info), strict=True) if has]
        return "+".join(have) or "text"


@dataclass
class Found:
    """What a folder or manifest comes to.

    Args:
        sources: what documents are made of, in order.
        digests: hash of the content of every media and text file in use.
        skipped: files that cannot be used.
        unused: files without a stream of the recipe: nothing is wrong with them.
        num_files: how many were looked at, unused ones apart.
    """

    sources: list[Source] = field(default_factory=list)
    digests: dict[Path, str] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    unused: list[Path] = field(default_factory=list)
    num_files: int = 0

    def leave_out(self, path: Path) -> None:
        """A file that was looked at, but has nothing for this run."""
        self.unused.append(path)
        self.num_files -= 1


def find(root: Path, wanted: Wanted, *, show: bool = True) -> Found:
    """All sources of a folder, a file or a manifest; `show` says how far it is when it takes long.

    Raises:
        ValueError: there is nothing at `root`, or a manifest's row that cannot be.
    """
    if root.is_file() and root.suffix.lower() == ".jsonl":
        return _of_manifest(root, wanted, show)
    listing = list_folder(root) if root.exists() else Listing()
    if not listing:
        lack = "holds no video, sound, image or text (.mp4, .mkv, .wav, .mp3, .png, .txt, ...)"
        raise ValueError(
            f"data.root={root} {lack if root.exists() else 'does not exist'}; "
            "give the folder that holds your files"
        )
    return _of_folder(listing, wanted, show)


def _of_folder(listing: Listing, wanted: Wanted, show: bool) -> Found:
    found = Found()
    found.skipped += [Skipped(str(path), reason) for path, reason in listing.closed.items()]
    found.num_files += len(listing.closed)
    media = {
        path: beside if wanted.text else None
        for path, beside in listing.media.items()
        if wanted.video or path.suffix.lower() not in IMAGE_SUFFIXES or (wanted.text and beside)
    }
    found.unused += listing.media.keys() - media.keys()
    for path, header in _usable(media, wanted, found, show).items():
        info = header.info
        texts = media[path] or (path if wanted.text and info.text_codec else None)
        if not any(wanted.of(info)) and texts is None:
            found.leave_out(path)
            continue
        found.digests[path] = header.digest
        cut = Cut(0.0, info.duration_s, wanted.clip_seconds)
        found.sources.append(Recording(info, cut, texts, (0.0, info.duration_s)))
    if wanted.passage_bytes:
        _add_texts(listing.texts, wanted, found, show)
    else:
        found.unused += listing.texts
    _add_digests((beside for beside in media.values() if beside is not None), found, show)
    return found


def _of_manifest(manifest: Path, wanted: Wanted, show: bool) -> Found:
    """Rows in their order; those of weight 0 are left out, and each file is looked at once."""
    found = Found()
    rows = [row for row in read_manifest(manifest) if row.weight > 0]
    if not rows:
        raise ValueError(f"data.root={manifest} names no file; give rows with a path and a weight")
    headers = _usable((row.path for row in rows), wanted, found, show)
    beside = texts_beside(headers)
    besides: set[Path] = set()
    unused: set[Path] = set()
    for row in rows:
        header = headers.get(row.path)
        if header is None:
            continue
        own = row.path if header.info.text_codec else None
        texts = row.texts or beside[row.path] or own
        recording = _of_row(manifest, row, header.info, texts if wanted.text else None, wanted)
        if any(wanted.of(header.info)) or recording.texts:
            found.sources.append(recording)
            found.digests[row.path] = header.digest
            if isinstance(texts, Path) and wanted.text and texts != row.path:
                besides.add(texts)
        else:
            unused.add(row.path)
    for path in sorted(unused - found.digests.keys()):
        found.leave_out(path)
    _add_digests([manifest, *sorted(besides)], found, show)
    return found


def _of_row(
    manifest: Path,
    row: ManifestRow,
    info: MediaInfo,
    texts: Path | tuple[TextPiece, ...] | None,
    wanted: Wanted,
) -> Recording:
    """The span of a row; text of its own is spread over it, text beside the file over the file."""
    length_s = info.duration_s
    end_s = length_s if row.end_s is None else row.end_s
    if row.start_s >= max(length_s, MIN_S) or end_s > length_s + max(SPAN_SLACK_S, 0.02 * length_s):
        raise ValueError(
            f"{manifest}: line {row.line}: {row.start_s:g} to {end_s:g} s is not inside of "
            f"{row.path}, which is {length_s:.2f} s long"
        )
    to_the_end = end_s >= length_s
    span_s = (row.start_s, min(end_s, length_s))
    cut = Cut(*span_s, wanted.clip_seconds, said_until_s=math.inf if to_the_end else end_s)
    text_span_s = (0.0, length_s) if isinstance(texts, Path) else span_s
    return Recording(info, cut, texts, text_span_s, row.weight, to_the_end)


def _usable(paths: Iterable[Path], wanted: Wanted, found: Found, show: bool) -> dict[Path, Header]:
    """The headers of the files that have one; the others are noted."""
    headers = read_headers(paths, wanted.limits, show=show)
    found.num_files += len(headers)
    found.skipped += [header for header in headers.values() if isinstance(header, Skipped)]
    return {path: h for path, h in headers.items() if isinstance(h, Header)}


def _add_texts(paths: Iterable[Path], wanted: Wanted, found: Found, show: bool) -> None:
    """Texts that stand alone, cut into passages."""

    def look(path: Path) -> tuple[int, str] | Skipped:
        try:
            return len(passages(path, wanted.passage_bytes)), content_hash(path)
        except MediaError as error:
            return skipped(error)
        except OSError as error:
            return Skipped(str(path), error.strerror or str(error))

    for path, result in look_at(paths, look, show=show).items():
        found.num_files += 1
        if isinstance(result, Skipped):
            found.skipped.append(result)
        elif result[0] == 0:
            found.skipped.append(Skipped(str(path), "holds no text", kind="empty"))
        else:
            found.sources.append(TextFile(path, wanted.passage_bytes, 0, result[0]))
            found.digests[path] = result[1]


def _add_digests(paths: Iterable[Path], found: Found, show: bool) -> None:
    """Of texts beside media; a broken one is named when its documents are read."""

    def look(path: Path) -> str:
        try:
            return content_hash(path)
        except OSError as error:
            return hashlib.sha256(str(error).encode()).hexdigest()

    found.digests |= look_at(dict.fromkeys(paths), look, show=show)
